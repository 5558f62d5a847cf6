package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/plgd-dev/go-coap/v3/message"
	"golang.org/x/term"

	"coapproxy/client"
	"coapproxy/notation"
	"coapproxy/wire"
)

// requestOutput prints what the subcommand request has to tell. It is safe for
// concurrent use.
type requestOutput struct {
	out, err io.Writer
	words    notation.Options
	json     bool
	quiet    bool
	verbose  bool
	progress bool // err is a terminal
	scheme   string

	mu    sync.Mutex
	drawn bool // a progress line stands on the terminal
}

func newRequestOutput(stdio stdio, s *requestSettings) *requestOutput {
	file, ok := stdio.err.(*os.File)
	return &requestOutput{out: stdio.out, err: stdio.err, words: notation.Options{Numbers: s.numbers}, json: s.json, quiet: s.quiet,
		verbose: s.verbose, progress: !s.quiet && ok && term.IsTerminal(int(file.Fd()))}
}

// locked runs f while nothing else is printed and no progress line stands.
func (o *requestOutput) locked(f func()) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.erase()
	f()
}

// eraseLine takes a terminal's cursor to the beginning of its line and clears it.
const eraseLine = "\r\x1b[K"

func (o *requestOutput) erase() {
	if o.drawn {
		fmt.Fprint(o.err, eraseLine)
		o.drawn = false
	}
}

// hint prints a word of advice.
func (o *requestOutput) hint(format string, args ...any) {
	if o.quiet {
		return
	}
	o.locked(func() { fmt.Fprintln(o.err, "hint:", notation.Escape(fmt.Sprintf(format, args...))) })
}

// sent prints a message that was sent; it is client.Config.Trace.
func (o *requestOutput) sent(m *wire.Message, to netip.AddrPort) {
	o.locked(func() {
		kind, id := typeName(m.Type)+"  ", fmt.Sprintf("  message id %d", m.ID)
		if overConnection(o.scheme) { // RFC 8323 §3.2: messages have neither
			kind, id = "", ""
		}
		fmt.Fprintf(o.err, "> %s%s  to %s%s  %s  %s", kind, wire.CodeString(m.Code), peerURI(o.scheme, to), id,
			tokenText(m.Token), o.words.All(m.Options, m.Code, nil))
		if len(m.Payload) > 0 {
			fmt.Fprintf(o.err, "  payload %d bytes", len(m.Payload))
		}
		if note := purpose(m, o.words.Numbers); note != "" {
			fmt.Fprintf(o.err, "  (%s)", note)
		}
		fmt.Fprintln(o.err)
	})
}

// response prints one response of the server.
func (o *requestOutput) response(server string, p *client.Response) {
	if o.json {
		o.object(newJSONResponse(server, p, o.words))
		return
	}
	without := func(id message.OptionID) bool {
		switch id {
		case o.words.Numbers.ReplyFrom, o.words.Numbers.ResponseForwarding:
			return p.From != nil
		case wire.Block2:
			return p.Blocks > 1 && p.Incomplete == nil
		}
		return false
	}
	if o.verbose {
		without = nil
	}
	words := []string{fmt.Sprintf("+%.3fs", p.Elapsed.Seconds()), notation.Escape(server), wire.CodeString(p.Code)}
	if o.verbose {
		if !overConnection(p.Scheme) {
			words = append(words, typeName(p.Type))
		}
	}
	if p.Blocks > 1 {
		words = append(words, fmt.Sprintf("%d blocks", p.Blocks))
	}
	if p.Stale {
		words = append(words, "stale")
	}
	if p.Unprotected {
		words = append(words, "not protected")
	}
	if options := o.words.All(p.Options, p.Code, without); options != "" {
		words = append(words, options)
	}
	o.locked(func() {
		fmt.Fprintln(o.out, strings.Join(words, "  "))
		notation.PrintPayload(o.out, p.Payload, p.Options)
		if p.Incomplete != nil {
			fmt.Fprintln(o.out, "  (incomplete:", notation.Escape(p.Incomplete.Error())+")")
		}
	})
}

// summary prints the last word.
func (o *requestOutput) summary(t *requestTally) {
	switch {
	case o.json && !o.quiet:
		o.object(newJSONSummary(t))
	case o.quiet:
	default:
		o.locked(func() { fmt.Fprintln(o.out, notation.Escape(t.sentence())) })
	}
}

// object prints one line of JSON.
func (o *requestOutput) object(v any) {
	var b bytes.Buffer
	e := json.NewEncoder(&b)
	e.SetEscapeHTML(false)
	if err := e.Encode(v); err != nil {
		o.hint("%v", err)
		return
	}
	o.locked(func() { fmt.Fprintln(o.out, escapeJSON(strings.TrimSuffix(b.String(), "\n"))) })
}

// escapeJSON escapes in strings of JSON what encoding/json leaves as it is and a
// terminal would not.
func escapeJSON(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		switch {
		case strconv.IsPrint(r) && (r != utf8.RuneError || size > 1):
			b.WriteString(s[i : i+size])
		case r > 0xffff:
			high, low := utf16.EncodeRune(r)
			fmt.Fprintf(&b, `\u%04x\u%04x`, high, low)
		default: // bytes that are not UTF-8 become U+FFFD
			fmt.Fprintf(&b, `\u%04x`, r)
		}
		i += size
	}
	return b.String()
}

// startProgress shows, on a terminal, how the waiting for r goes until stop is
// called, which leaves no trace of it.
func (o *requestOutput) startProgress(r *client.Request, t *requestTally) (stop func()) {
	if !o.progress {
		return func() {}
	}
	const every = 100 * time.Millisecond
	began := time.Now()
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		ticker := time.NewTicker(every)
		defer ticker.Stop()
		for {
			select {
			case <-done:
				return
			case <-ticker.C:
				o.locked(func() {
					fmt.Fprint(o.err, progressLine(r, t, time.Since(began)))
					o.drawn = true
				})
			}
		}
	})
	return func() {
		close(done)
		wg.Wait()
		o.locked(func() {})
	}
}

// progressLine says how the waiting goes.
func progressLine(r *client.Request, t *requestTally, elapsed time.Duration) string {
	responses := count(t.responses, "response")
	switch {
	case t.observed:
		return fmt.Sprintf("observing for %.1fs, %s", elapsed.Seconds(), responses)
	case r.Timeout.Present:
		elapsed = min(elapsed, r.Timeout.Duration()) // not the margin behind it
		return fmt.Sprintf("waiting %.1fs of %ds, %s", elapsed.Seconds(), r.Timeout.Seconds, responses)
	}
	return fmt.Sprintf("waiting %.1fs of %s", elapsed.Seconds(), r.Patience())
}

// jsonResponse is a response in JSON.
type jsonResponse struct {
	Event      string        `json:"event"` // "response"
	Seconds    float64       `json:"seconds"`
	Server     string        `json:"server"`
	Peer       string        `json:"peer"`
	Type       string        `json:"type,omitempty"`
	Code       string        `json:"code"`
	Name       string        `json:"name,omitempty"`
	Options    []jsonOption  `json:"options"`
	Payload    jsonPayloadOf `json:"payload"`
	Blocks     int           `json:"blocks,omitempty"`
	Stale      bool          `json:"stale,omitempty"`
	Incomplete string        `json:"incomplete,omitempty"`
}

type jsonOption struct {
	Number uint16 `json:"number"`
	Name   string `json:"name,omitempty"`
	Value  any    `json:"value"` // a number, a text, or opaque bytes in hex
	Text   string `json:"text"`  // in words
}

// jsonPayloadOf has, beside the length, the one member that suits the payload.
type jsonPayloadOf struct {
	Length     int             `json:"length"`
	Text       string          `json:"text,omitempty"`
	JSON       json.RawMessage `json:"json,omitempty"`
	Diagnostic string          `json:"diagnostic,omitempty"` // CBOR
	Hex        string          `json:"hex,omitempty"`
}

type jsonSummary struct {
	Event     string         `json:"event"` // "summary"
	Responses int            `json:"responses"`
	Servers   int            `json:"servers"`
	Codes     map[string]int `json:"codes"`
	Seconds   float64        `json:"seconds"`
	Ended     ending         `json:"ended"`
	Reason    string         `json:"reason,omitempty"`
}

func newJSONResponse(server string, p *client.Response, words notation.Options) jsonResponse {
	code, name, _ := strings.Cut(wire.CodeString(p.Code), " ")
	r := jsonResponse{Event: "response", Seconds: milliseconds(p.Elapsed), Server: server, Peer: peerURI(p.Scheme, p.Peer),
		Code: code, Name: name, Options: []jsonOption{}, Payload: newJSONPayload(p), Stale: p.Stale}
	if !overConnection(p.Scheme) {
		r.Type = typeName(p.Type)
	}
	if p.Blocks > 1 {
		r.Blocks = p.Blocks
	}
	if p.Incomplete != nil {
		r.Incomplete = p.Incomplete.Error()
	}
	for _, o := range p.Options {
		r.Options = append(r.Options, newJSONOption(o, p, words))
	}
	return r
}

func newJSONOption(o message.Option, p *client.Response, words notation.Options) jsonOption {
	d, known := words.Definition(o.ID)
	j := jsonOption{Number: uint16(o.ID), Name: d.Name, Value: hex.EncodeToString(o.Value), Text: words.Value(o, p.Code)}
	switch v, short := wire.Uint(o.Value); {
	case !known || !d.Valid(o.Value):
	case d.Format == wire.FormatUint && short:
		j.Value = v
	case d.Format == wire.FormatString && utf8.Valid(o.Value):
		j.Value = string(o.Value)
	}
	return j
}

func newJSONPayload(p *client.Response) jsonPayloadOf {
	j := jsonPayloadOf{Length: len(p.Payload)}
	if len(p.Payload) == 0 {
		return j
	}
	switch kind := notation.KindOf(p.Options); {
	case kind == notation.JSON && json.Valid(p.Payload) && utf8.Valid(p.Payload):
		j.JSON = p.Payload
		return j
	case kind == notation.CBOR || kind == notation.CBORSequence:
		if notation, err := notation.Diagnose(p.Payload, kind == notation.CBORSequence); err == nil {
			j.Diagnostic = notation
			return j
		}
	case kind != notation.Binary && (notation.LooksLikeText(p.Payload) || kind != notation.Unknown && utf8.Valid(p.Payload)):
		j.Text = string(p.Payload)
		return j
	}
	j.Hex = hex.EncodeToString(p.Payload)
	return j
}

func newJSONSummary(t *requestTally) jsonSummary {
	s := jsonSummary{Event: "summary", Responses: t.responses, Servers: len(t.servers), Codes: make(map[string]int),
		Seconds: milliseconds(time.Since(t.began)), Ended: t.ended, Reason: t.reason}
	for code, n := range t.codes {
		number, _, _ := strings.Cut(code, " ")
		s.Codes[number] += n
	}
	return s
}

// peerURI is the URI of a transport address.
func peerURI(scheme string, a netip.AddrPort) string {
	return scheme + "://" + wire.URI{Scheme: scheme, Addr: a.Addr(), Port: a.Port()}.Authority()
}

// milliseconds is a duration in seconds with three decimals.
func milliseconds(d time.Duration) float64 { return float64(d.Milliseconds()) / 1000 }
