package main

import (
	"context"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"strings"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/notation"
	"coapproxy/wire"
)

// maxHex bounds what decode reads from standard input, in bytes: far more than
// the hex digits of the longest datagram.
const maxHex = 1 << 20

// runDecode is the subcommand decode.
func runDecode(_ context.Context, stdio stdio, args []string) int {
	flags := newFlags(stdio, "decode", "[flags] HEX...", "Explains a CoAP message over UDP, option by option. HEX are its bytes, in one or several arguments;\n"+
		"spaces, colons, line breaks and 0x between them do not matter. \"-\" reads them from standard input.\n"+
		"Exit code 1: the message is malformed; what could be read is printed.")
	legacy := flags.Uint("legacy-number", uint(wire.ResponseForwarding), "the option `NUMBER` of Response-Forwarding")
	args, code, done := parseMixed(flags, args, 1, maxHex)
	if done {
		return code
	}
	fail := func(err error) int {
		fmt.Fprintln(stdio.err, "coapproxy decode:", err)
		return exitUsage
	}
	numbers, err := numbersWith(*legacy)
	if err != nil {
		return fail(err)
	}
	text := strings.Join(args, " ")
	if len(args) == 1 && args[0] == "-" {
		read, err := io.ReadAll(io.LimitReader(stdio.in, maxHex))
		if err != nil {
			return fail(err)
		}
		text = string(read)
	}
	data, err := readHex(text)
	if err != nil {
		return fail(err)
	}
	if err := explain(stdio.out, data, notation.Options{Numbers: numbers}); err != nil {
		fmt.Fprintln(stdio.err, "malformed:", err)
		return exitFailed
	}
	return exitOK
}

// numbersWith are the default numbers with another Response-Forwarding (GP-122).
func numbersWith(legacy uint) (wire.Numbers, error) {
	n := wire.DefaultNumbers()
	if _, known := wire.Lookup(message.OptionID(legacy)); legacy == 0 || legacy > 0xffff || known && legacy != uint(wire.ResponseForwarding) {
		return n, fmt.Errorf("--legacy-number %d: not a free option number", legacy)
	}
	n.ResponseForwarding = message.OptionID(legacy)
	return n, nil
}

// readHex reads hex digits with anything between bytes that dumps put there.
func readHex(text string) ([]byte, error) {
	var digits strings.Builder
	for _, word := range strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(" \t\r\n:,-", r) }) {
		word = strings.TrimPrefix(strings.TrimPrefix(word, "0x"), "0X")
		if i := strings.IndexFunc(word, func(r rune) bool { return !strings.ContainsRune("0123456789abcdefABCDEF", r) }); i >= 0 {
			return nil, fmt.Errorf("%q is not hex", word)
		}
		digits.WriteString(word)
	}
	data, err := hex.DecodeString(digits.String())
	if err != nil {
		return nil, fmt.Errorf("%d hex digits: the last byte has only one", digits.Len())
	}
	return data, nil
}

// formatError says where a message is malformed.
type formatError struct {
	at     int // offset in bytes
	reason string
}

func (e *formatError) Error() string { return fmt.Sprintf("byte %d: %s", e.at, e.reason) }

// explain prints the message in data as far as it can be read.
func explain(out io.Writer, data []byte, words notation.Options) error {
	m, read, err := dissect(data)
	if !read {
		return err
	}
	fmt.Fprintf(out, "%s  %s  message id %d (0x%04x)  %s\n", typeName(m.Type), wire.CodeString(m.Code), m.ID, m.ID, tokenText(m.Token))
	if note := purpose(m, words.Numbers); note != "" && err == nil {
		fmt.Fprintln(out, note)
	}
	names, classes := 0, 0
	for _, o := range m.Options {
		names, classes = max(names, len(optionName(words, o.ID))), max(classes, len(words.Class(o.ID)))
	}
	for _, o := range m.Options {
		fmt.Fprintf(out, "  %5d  %-*s  %-*s  %s\n", o.ID, names, optionName(words, o.ID), classes, words.Class(o.ID), words.Value(o, m.Code))
	}
	if len(m.Payload) > 0 {
		fmt.Fprintf(out, "payload, %d bytes:\n", len(m.Payload))
		notation.PrintPayload(out, m.Payload, m.Options)
	}
	return err
}

func optionName(words notation.Options, id message.OptionID) string {
	if d, ok := words.Definition(id); ok {
		return d.Name
	}
	return "unknown"
}

func typeName(t message.Type) string {
	switch t {
	case message.Confirmable:
		return "CON"
	case message.NonConfirmable:
		return "NON"
	case message.Acknowledgement:
		return "ACK"
	}
	return "RST"
}

func tokenText(token []byte) string {
	if len(token) == 0 {
		return "no token"
	}
	return "token 0x" + hex.EncodeToString(token)
}

// purpose says what a message without options or payload of its own is for.
func purpose(m *wire.Message, numbers wire.Numbers) string {
	value, ok := wire.First(m.Options, numbers.MulticastTimeout)
	switch {
	case m.Code == codes.GET && ok && len(value) == 0 && len(m.Options) == 1:
		return "Early Stop Request, if an exchange with this token is running" // GP-40
	case m.Code == codes.Empty && m.Type == message.Confirmable:
		return "ping" // RFC 7252 §4.3
	}
	return ""
}

// dissect reads a message and, unlike the decoder of the message layer, keeps
// what it has read when it meets an error. read is false when not even the
// header could be.
func dissect(data []byte) (m *wire.Message, read bool, err error) {
	if len(data) < 4 {
		return nil, false, &formatError{len(data), "the end: a header has 4 bytes"}
	}
	if version := data[0] >> 6; version != 1 {
		return nil, false, &formatError{0, fmt.Sprintf("version %d is not CoAP version 1", version)}
	}
	m = &wire.Message{Type: message.Type(data[0] >> 4 & 3), Code: codes.Code(data[1]), ID: binary.BigEndian.Uint16(data[2:])}
	d := dissector{data: data, at: 4}
	switch class := m.Code >> 5; {
	case class == 1 || class >= 6:
		err = &formatError{1, fmt.Sprintf("code %d.%02d is of a reserved class", class, m.Code&0x1f)}
	case m.Code == codes.Empty && (data[0]&0x0f != 0 || len(data) > 4):
		err = &formatError{4, "an Empty message with content"} // RFC 7252 §4.1
	}
	if rest := d.rest(m); err == nil {
		err = rest
	}
	return m, true, err
}

// dissector reads what follows the header.
type dissector struct {
	data []byte
	at   int
}

func (d *dissector) rest(m *wire.Message) error {
	length, err := d.extended(uint(d.data[0]&0x0f), 0, "token length")
	if err != nil {
		return err
	}
	if m.Token, err = d.take(length, "token"); err != nil {
		return err
	}
	for id := uint(0); d.at < len(d.data); {
		begin := d.at
		first := d.data[d.at]
		d.at++
		if first == 0xff {
			if d.at == len(d.data) {
				return &formatError{begin, "payload marker without payload"}
			}
			m.Payload = d.data[d.at:]
			return nil
		}
		delta, err := d.extended(uint(first>>4), begin, "option delta")
		if err != nil {
			return err
		}
		length, err := d.extended(uint(first&0x0f), begin, "option length")
		if err != nil {
			return err
		}
		if id += delta; id > 0xffff {
			return &formatError{begin, fmt.Sprintf("option number %d is above 65535", id)}
		}
		value, err := d.take(length, fmt.Sprintf("value of option %d", id))
		if err != nil {
			return err
		}
		if id > 0 {
			m.Options = append(m.Options, message.Option{ID: message.OptionID(id), Value: value})
		}
	}
	return nil
}

// extended reads what extends a four-bit number (RFC 7252 §3.1, RFC 8974 §2.1).
// begin is where the four bits stand.
func (d *dissector) extended(nibble uint, begin int, what string) (uint, error) {
	switch nibble {
	case 15:
		return 0, &formatError{begin, what + " 15 is reserved"}
	case 14:
		b, err := d.take(2, "extended "+what)
		if err != nil {
			return 0, err
		}
		return 269 + uint(binary.BigEndian.Uint16(b)), nil
	case 13:
		b, err := d.take(1, "extended "+what)
		if err != nil {
			return 0, err
		}
		return 13 + uint(b[0]), nil
	}
	return nibble, nil
}

func (d *dissector) take(length uint, what string) ([]byte, error) {
	if left := uint(len(d.data) - d.at); length > left {
		return nil, &formatError{d.at, fmt.Sprintf("%s: %d bytes expected, %d left", what, length, left)}
	}
	b := d.data[d.at : d.at+int(length)]
	d.at += int(length)
	return b, nil
}
