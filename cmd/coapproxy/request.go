package main

import (
	"context"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io"
	"math"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/client"
	"coapproxy/exchange"
	"coapproxy/wire"
)

// requestSettings are the flags and arguments of the subcommand request.
type requestSettings struct {
	request     client.Request
	numbers     wire.Numbers
	target      wire.URI // valid when targetKnown
	targetKnown bool
	via         string
	through     []wire.URI // further proxies behind via
	oscore      []string   // context files
	secrets     wayFlags
	bind        netip.AddrPort
	payloadFile string
	stopAfter   int
	retry       bool
	json        bool
	quiet       bool
	verbose     bool
}

const requestText = `Sends a CoAP request over UDP, DTLS, TCP, TLS or WebSocket, directly or through a proxy, and prints every response as it comes, with the
server it is from (Reply-From). METHOD is GET, POST, PUT, DELETE, FETCH, PATCH, iPATCH or a number from 1 to 31.
A group is asked through a proxy, with --multicast-timeout. Ctrl-C ends a group request early and tells the
proxy so. Exit codes: 0 there was a success (2.xx) or none was wanted, 1 there was none, 2 wrong command line.`

// runRequest is the subcommand request.
func runRequest(ctx context.Context, stdio stdio, args []string) int {
	s, code, done := parseRequest(stdio, args)
	if done {
		return code
	}
	fail := func(code int, err error) int {
		fmt.Fprintln(stdio.err, "coapproxy request:", err)
		return code
	}
	if err := s.readPayload(stdio.in); err != nil {
		return fail(exitFailed, err)
	}
	to, err := s.resolve(ctx, net.DefaultResolver)
	switch {
	case errors.Is(err, client.ErrRequest):
		return fail(exitUsage, err)
	case err != nil:
		return fail(exitFailed, err)
	}
	a, err := newAsker(ctx, s, stdio, to)
	switch {
	case errors.Is(err, client.ErrRequest):
		return fail(exitUsage, err)
	case err != nil:
		return fail(exitFailed, err)
	}
	defer a.close()
	return a.run(ctx)
}

// parseMixed is parse for arguments that may stand before, between and behind
// the flags.
func parseMixed(flags *flag.FlagSet, args []string, least, most int) (positional []string, code int, done bool) {
	for {
		if code, done := parse(flags, args, 0, math.MaxInt); done {
			return nil, code, true
		}
		if flags.NArg() == 0 {
			break
		}
		positional = append(positional, flags.Arg(0))
		args = flags.Args()[1:]
	}
	if len(positional) < least || len(positional) > most {
		wrongNumber(flags)
		return nil, exitUsage, true
	}
	return positional, exitOK, false
}

// parseRequest reads the command line.
func parseRequest(stdio stdio, args []string) (_ *requestSettings, code int, done bool) {
	s := &requestSettings{numbers: wire.DefaultNumbers()}
	r := &s.request
	flags := newFlags(stdio, "request", "[flags] METHOD URI", requestText)
	add := func(id message.OptionID, value []byte) {
		r.Options = append(r.Options, message.Option{ID: id, Value: value})
	}

	flags.StringVar(&s.via, "via", "", "`URI` of the proxy, e.g. coap://127.0.0.1:5683 or coaps+tcp://proxy.example; without it the URI's host is asked")
	s.secrets.add(flags)
	flags.Func("oscore", "protect with the OSCORE context in `FILE`, for the proxy, or the server without one; again: for the next on the way", func(v string) error {
		s.oscore = append(s.oscore, v)
		return nil
	})
	flags.Func("through", "with --oscore: the `URI` of a further proxy, behind --via; may be repeated", func(v string) error {
		u, err := wire.ParseURI(v)
		if err == nil && (u.Scheme != "coap" || len(u.Path) > 0 || u.Query != nil) {
			err = errors.New("not coap://HOST or coap://HOST:PORT")
		}
		s.through = append(s.through, u)
		return err
	})
	flags.Func("multicast-timeout", "how long the proxy collects the responses of a group, `SECONDS`; 0: none are wanted", func(v string) (err error) {
		r.Timeout, err = parseSeconds(v)
		return err
	})
	payload := flags.String("payload", "", "`TEXT` to send")
	flags.StringVar(&s.payloadFile, "payload-file", "", "`FILE` to send; - is standard input")
	for name, option := range map[string]struct {
		id   message.OptionID
		text string
	}{
		"content-format": {wire.ContentFormat, "what the payload is: media type or number (`FORMAT`)"},
		"accept":         {wire.Accept, "what the response shall be: media type or number (`FORMAT`)"},
	} {
		flags.Func(name, option.text, func(v string) error {
			n, err := wire.ParseContentFormat(v)
			if err == nil {
				add(option.id, wire.AppendUint(nil, uint32(n)))
			}
			return err
		})
	}
	flags.BoolVar(&r.Observe, "observe", false, "print notifications until Ctrl-C or --stop-after")
	non := flags.Bool("non", false, "send non-confirmable messages")
	flags.Func("option", "a further option, `NUMBER=0xHEX` or NUMBER=TEXT; may be repeated", func(v string) error {
		o, err := parseOption(v)
		if err == nil {
			add(o.ID, o.Value)
		}
		return err
	})
	flags.Func("etag", "an ETag, `HEX`; may be repeated", hexOption(wire.ETag, add))
	flags.Func("group-etag", "a Group-ETag, `HEX`; may be repeated", hexOption(s.numbers.GroupETag, add))
	flags.Func("no-response", "classes of responses that are not wanted, the sum of 2 (2.xx), 8 (4.xx) and 16 (5.xx): `N`", func(v string) error {
		n, err := strconv.ParseUint(v, 10, 8)
		if err != nil {
			return errors.New("not a number from 0 to 255")
		}
		add(wire.NoResponse, wire.AppendUint(nil, uint32(n)))
		return nil
	})
	flags.IntVar(&s.stopAfter, "stop-after", 0, "stop after `N` responses and tell the proxy or server so")
	flags.BoolVar(&s.retry, "retry", false, "when a chain of proxies asks for a longer multicast timeout, send once more with it")
	cri := flags.Bool("proxy-cri", false, "name the target to the proxy with Proxy-Cri instead of Proxy-Uri")
	scheme := flags.Bool("proxy-scheme", false, "name the target to the proxy with Proxy-Scheme and Uri-* options")
	timeVar(flags, &r.Wait, "timeout", 0, "how long to wait for a single server, or for a proxy to take a group request, `TIME` (default 95s, 30s with --non)")
	flags.BoolVar(&s.json, "json", false, "print one JSON object a line: responses, then a summary")
	flags.BoolVar(&s.quiet, "quiet", false, "print responses only: no progress, no hints, no summary")
	flags.Func("bind", "send from this `ADDRESS` or ADDRESS:PORT", func(v string) (err error) {
		s.bind, err = parseBind(v)
		return err
	})
	legacy := flags.Uint("legacy-number", uint(wire.ResponseForwarding), "the option `NUMBER` of Response-Forwarding")
	flags.BoolVar(&s.verbose, "verbose", false, "print the messages sent as well, and every option received")
	flags.BoolVar(&s.verbose, "v", false, "the same as --verbose")

	positional, code, done := parseMixed(flags, args, 2, 2)
	if done {
		return nil, code, true
	}
	r.Confirmable, r.Payload, r.URI = !*non, []byte(*payload), positional[1]
	err := func() (err error) {
		if s.numbers, err = numbersWith(*legacy); err != nil {
			return err
		}
		if r.Method, err = parseMethod(positional[0]); err != nil {
			return err
		}
		if s.via != "" {
			r.Form = client.ProxyURI
		}
		switch {
		case s.via == "" && (*cri || *scheme):
			return errors.New("--proxy-cri and --proxy-scheme need a proxy: --via")
		case *cri && *scheme:
			return errors.New("either --proxy-cri or --proxy-scheme")
		case *cri:
			r.Form = client.ProxyCRI
		case *scheme:
			r.Form = client.ProxyScheme
		}
		return s.check()
	}()
	if err != nil {
		fmt.Fprintf(stdio.err, "coapproxy request: %v\n", err)
		return nil, exitUsage, true
	}
	return s, exitOK, false
}

// check finds what does not go together.
func (s *requestSettings) check() error {
	r := &s.request
	u, err := wire.ParseURI(r.URI)
	switch {
	case err == nil:
		s.target, s.targetKnown = u, true
	case !errors.Is(err, wire.ErrScheme) || r.Form == client.Direct || r.Form == client.ProxyScheme:
		return err
	}
	switch {
	case len(r.Payload) > 0 && s.payloadFile != "":
		return errors.New("either --payload or --payload-file")
	case r.Observe && r.Method != codes.GET && r.Method != wire.FETCH:
		return errors.New("--observe is for GET and FETCH")
	case s.stopAfter < 0:
		return errors.New("--stop-after is a number from 1 on")
	case r.Wait < 0:
		return errors.New("--timeout is positive")
	case s.targetKnown && s.target.Addr.IsMulticast() && s.via == "":
		return fmt.Errorf("%s is a group: ask it through a proxy, with --via", r.URI)
	}
	return nil
}

// groupWithoutTimeout reports a request that a proxy will refuse (GP-26).
func (s *requestSettings) groupWithoutTimeout() bool {
	return s.targetKnown && s.target.Addr.IsMulticast() && !s.request.Timeout.Present
}

func parseSeconds(v string) (exchange.Timeout, error) {
	if n, err := strconv.ParseUint(v, 10, 32); err == nil {
		return exchange.Timeout{Seconds: uint32(n), Present: true}, nil
	}
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 || d%time.Second != 0 || d/time.Second > math.MaxUint32 {
		return exchange.Timeout{}, errors.New("not a number of whole seconds")
	}
	return exchange.Timeout{Seconds: uint32(d / time.Second), Present: true}, nil
}

func parseMethod(name string) (codes.Code, error) {
	if n, err := strconv.ParseUint(name, 10, 8); err == nil && wire.IsRequest(codes.Code(n)) {
		return codes.Code(n), nil
	}
	return wire.ParseMethod(name)
}

// parseOption reads NUMBER=VALUE.
func parseOption(v string) (message.Option, error) {
	number, value, ok := strings.Cut(v, "=")
	n, err := strconv.ParseUint(number, 10, 16)
	if !ok || err != nil || n == 0 {
		return message.Option{}, errors.New("not NUMBER=0xHEX or NUMBER=TEXT")
	}
	o := message.Option{ID: message.OptionID(n), Value: []byte(value)}
	if digits, isHex := strings.CutPrefix(value, "0x"); isHex {
		if o.Value, err = hex.DecodeString(digits); err != nil {
			return message.Option{}, fmt.Errorf("%q is not hex", digits)
		}
	}
	return o, nil
}

func hexOption(id message.OptionID, add func(message.OptionID, []byte)) func(string) error {
	return func(v string) error {
		value, err := hex.DecodeString(strings.TrimPrefix(v, "0x"))
		if d, _ := wire.Lookup(id); err != nil || !d.Valid(value) {
			return errors.New("not 1 to 8 bytes in hex")
		}
		add(id, value)
		return nil
	}
}

// parseBind reads an address with or without a port.
func parseBind(v string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(strings.Trim(v, "[]")); err == nil {
		return netip.AddrPortFrom(a, 0), nil
	}
	a, err := netip.ParseAddrPort(v)
	if err != nil {
		return netip.AddrPort{}, errors.New("not an IP address, with or without a port")
	}
	return a, nil
}

// maxPayload is the longest payload in bytes that is sent: one that fits into a
// UDP datagram with its options.
const maxPayload = 60_000

// readPayload reads the file of --payload-file.
func (s *requestSettings) readPayload(stdin io.Reader) error {
	in := stdin
	switch s.payloadFile {
	case "":
		in = nil
	case "-":
	default:
		f, err := os.Open(s.payloadFile) //nolint:gosec // the file that the user names
		if err != nil {
			return err
		}
		defer f.Close()
		in = f
	}
	if in != nil {
		var err error
		if s.request.Payload, err = io.ReadAll(io.LimitReader(in, maxPayload+1)); err != nil {
			return fmt.Errorf("read payload: %w", err)
		}
	}
	if len(s.request.Payload) > maxPayload {
		return fmt.Errorf("a payload of more than %d bytes does not fit into a message, and block-wise requests are not supported", maxPayload)
	}
	return nil
}

// resolver is what is needed of net.Resolver.
type resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// resolve finds where to send to: to the proxy or to the URI's host.
// What is wrong with the command line wraps client.ErrRequest.
func (s *requestSettings) resolve(ctx context.Context, names resolver) (destination, error) {
	u := s.target
	if s.via != "" {
		text := s.via
		if !strings.Contains(text, "://") {
			text = "coap://" + text
		}
		var err error
		if u, err = wire.ParseURI(text); err != nil {
			return destination{}, fmt.Errorf("%w: --via: %w", client.ErrRequest, err)
		}
		if len(u.Path) > 0 || u.Query != nil {
			return destination{}, fmt.Errorf("%w: --via %s: only a host and a port", client.ErrRequest, s.via)
		}
	}
	switch {
	case !isCoAP(u):
		return destination{}, fmt.Errorf("%w: %s needs a proxy: only the schemes of CoAP are spoken here", client.ErrRequest, u.Scheme)
	case u.Addr.IsMulticast():
		return destination{}, fmt.Errorf("%w: --via %s: a group is no proxy", client.ErrRequest, s.via)
	case u.Addr.IsValid():
		return destination{scheme: u.Scheme, addr: netip.AddrPortFrom(u.Addr, u.Port)}, nil
	}
	network := "ip"
	if s.bind.IsValid() {
		network = "ip6"
		if s.bind.Addr().Unmap().Is4() {
			network = "ip4"
		}
	}
	addrs, err := names.LookupNetIP(ctx, network, u.Host)
	if err != nil {
		return destination{}, err
	}
	for _, a := range addrs {
		if a = a.Unmap(); !a.IsMulticast() {
			return destination{scheme: u.Scheme, name: u.Host, addr: netip.AddrPortFrom(a, u.Port)}, nil
		}
	}
	return destination{}, fmt.Errorf("%s is a group: ask it through a proxy, with --via", u.Host)
}
