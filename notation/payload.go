package notation

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"

	"github.com/fxamacker/cbor/v2"
	"github.com/plgd-dev/go-coap/v3/message"

	"coapproxy/wire"
)

// Kind is how a payload is shown.
type Kind uint8

// What a payload may be.
const (
	Unknown Kind = iota // text if it looks like it, else a hex dump
	Binary
	Text
	JSON
	CBOR
	CBORSequence
	Links
)

// KindOf judges by the Content-Format option.
func KindOf(options message.Options) Kind {
	value, ok := wire.First(options, wire.ContentFormat)
	n, short := wire.Uint(value)
	if !ok || !short || n > 0xffff {
		return Unknown
	}
	name, ok := wire.ContentFormatName(uint16(n))
	if !ok {
		return Unknown
	}
	if strings.HasSuffix(name, ")") { // a content coding
		return Binary
	}
	media, _, _ := strings.Cut(name, ";")
	switch {
	case media == "application/json" || strings.HasSuffix(media, "+json"):
		return JSON
	case media == "application/cbor" || strings.HasSuffix(media, "+cbor"),
		media == "application/cose", media == "application/cwt", strings.HasPrefix(media, "application/cose-key"),
		media == "application/multipart-core":
		return CBOR
	case media == "application/cbor-seq" || strings.HasSuffix(media, "+cbor-seq"):
		return CBORSequence
	case media == "application/link-format":
		return Links
	case strings.HasPrefix(media, "text/"), media == "application/xml", strings.HasSuffix(media, "+xml"), media == "application/javascript":
		return Text
	}
	return Binary
}

// PrintPayload prints the payload of a message with the options, indented.
func PrintPayload(w io.Writer, payload []byte, options message.Options) {
	if len(payload) == 0 {
		return
	}
	for _, line := range payloadLines(payload, KindOf(options)) {
		fmt.Fprintln(w, strings.TrimRight("  "+line, " "))
	}
}

// payloadLines lays a payload out in lines without control characters. What is
// not of its kind is shown as text or, failing that, as a hex dump.
func payloadLines(payload []byte, kind Kind) []string {
	switch kind {
	case JSON:
		var compact bytes.Buffer
		if json.Compact(&compact, payload) == nil {
			return escapeLines(layOut(splitNotation(compact.String(), false)))
		}
	case CBOR, CBORSequence:
		if notation, err := Diagnose(payload, kind == CBORSequence); err == nil {
			return escapeLines(layOut(splitNotation(notation, true)))
		}
		return hexLines(payload)
	case Links:
		if utf8.Valid(payload) {
			return escapeLines(splitLinks(string(payload)))
		}
	case Text:
		if utf8.Valid(payload) {
			return textLines(payload)
		}
	case Binary:
		return hexLines(payload)
	}
	if LooksLikeText(payload) {
		return textLines(payload)
	}
	return hexLines(payload)
}

func textLines(payload []byte) []string {
	text := strings.TrimSuffix(string(payload), "\n")
	return escapeLines(strings.Split(strings.ReplaceAll(text, "\r\n", "\n"), "\n"))
}

func hexLines(payload []byte) []string {
	return strings.Split(strings.TrimSuffix(hex.Dump(payload), "\n"), "\n")
}

// LooksLikeText reports UTF-8 without control characters other than those that
// lay text out.
func LooksLikeText(b []byte) bool {
	for len(b) > 0 {
		r, size := utf8.DecodeRune(b)
		if r == utf8.RuneError && size == 1 || !strconv.IsPrint(r) && r != '\n' && r != '\r' && r != '\t' {
			return false
		}
		b = b[size:]
	}
	return true
}

// Escape makes everything in a line visible that is not printable: control
// characters, which a terminal would obey, those that turn the direction of
// writing, and bytes that are not UTF-8.
func Escape(line string) string {
	var b strings.Builder
	for i := 0; i < len(line); {
		r, size := utf8.DecodeRuneInString(line[i:])
		switch {
		case r == utf8.RuneError && size == 1:
			fmt.Fprintf(&b, `\x%02x`, line[i])
		case strconv.IsPrint(r):
			b.WriteString(line[i : i+size])
		case r == '\t':
			b.WriteString(`\t`)
		case r == '\n':
			b.WriteString(`\n`)
		case r == '\r':
			b.WriteString(`\r`)
		case r > 0xffff:
			fmt.Fprintf(&b, `\U%08x`, r)
		default:
			fmt.Fprintf(&b, `\u%04x`, r)
		}
		i += size
	}
	return b.String()
}

func escapeLines(lines []string) []string {
	for i := range lines {
		lines[i] = Escape(lines[i])
	}
	return lines
}

// Diagnose returns CBOR in diagnostic notation (RFC 8949 §8).
func Diagnose(data []byte, sequence bool) (string, error) {
	mode, err := cbor.DiagOptions{CBORSequence: sequence}.DiagMode()
	if err != nil {
		return "", err
	}
	return mode.Diagnose(data)
}

// splitLinks returns the links of a link-format document (RFC 6690 §2), one a
// line.
func splitLinks(s string) []string {
	var lines []string
	start, quoted, target := 0, false, false
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case quoted && c == '\\':
			i++
		case c == '"' && !target:
			quoted = !quoted
		case quoted:
		case c == '<':
			target = true
		case c == '>':
			target = false
		case c == ',' && !target:
			lines = append(lines, strings.TrimSpace(s[start:i+1]))
			start = i + 1
		}
	}
	return append(lines, strings.TrimSpace(s[start:]))
}

// pieces are JSON or CBOR diagnostic notation taken apart.
type pieces struct {
	text  []string
	match []int // of an opening bracket, where it closes
	start []int // where the piece begins when everything is in one line
}

// splitNotation takes a notation apart. In diagnostic notation, printable
// characters in texts are written as they are.
func splitNotation(s string, diagnostic bool) pieces {
	var n pieces
	var open []int
	width := 0
	add := func(text string) {
		n.text, n.match, n.start = append(n.text, text), append(n.match, 0), append(n.start, width)
		width += utf8.RuneCountInString(text)
		if text == "," || text == ":" {
			width++
		}
	}
	for i := 0; i < len(s); {
		end := i + 1
		switch c := s[i]; c {
		case ' ':
			i++
			continue
		case '[', '{':
			open = append(open, len(n.text))
		case ']', '}':
			if len(open) > 0 {
				n.match[open[len(open)-1]] = len(n.text)
				open = open[:len(open)-1]
			}
		case ',', ':':
		default:
			end = endOfScalar(s, i)
		}
		text := s[i:end]
		if diagnostic && text[0] == '"' {
			text = unescapePrintable(text)
		}
		add(text)
		i = end
	}
	n.start = append(n.start, width)
	return n
}

// endOfScalar returns where the string, number or name that begins at i ends; a
// tag number ends behind its parenthesis.
func endOfScalar(s string, i int) int {
	for ; i < len(s); i++ {
		switch c := s[i]; c {
		case '"', '\'':
			for i++; i < len(s) && s[i] != c; i++ {
				if s[i] == '\\' {
					i++
				}
			}
			return min(i+1, len(s))
		case '(', ')':
			return i + 1
		case '[', '{', ']', '}', ',', ':':
			return i
		}
	}
	return len(s)
}

// unescapePrintable replaces \uXXXX in a quoted text where the character is
// printable and none that has to be escaped.
func unescapePrintable(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		if s[i] != '\\' {
			b.WriteByte(s[i])
			i++
			continue
		}
		r, size := unicodeEscape(s[i:])
		if size == 0 { // another escape
			end := min(i+2, len(s))
			b.WriteString(s[i:end])
			i = end
			continue
		}
		if utf16.IsSurrogate(r) {
			if low, more := unicodeEscape(s[i+size:]); more > 0 {
				r, size = utf16.DecodeRune(r, low), size+more
			}
		}
		if r > utf8.RuneSelf && r != utf8.RuneError && strconv.IsPrint(r) {
			b.WriteRune(r)
		} else {
			b.WriteString(s[i : i+size])
		}
		i += size
	}
	return b.String()
}

// unicodeEscape reads \uXXXX; size is 0 when s does not begin with one.
func unicodeEscape(s string) (r rune, size int) {
	if len(s) < 6 || s[:2] != `\u` {
		return 0, 0
	}
	v, err := strconv.ParseUint(s[2:6], 16, 16)
	if err != nil {
		return 0, 0
	}
	return rune(v), 6
}

const (
	lineWidth = 100 // up to which arrays and maps stay in one line
	maxIndent = 40  // so that deep nesting does not make long output
)

// layOut writes a notation in lines: whatever fits into a line stays in one.
func layOut(n pieces) []string {
	var lines []string
	var line strings.Builder
	depth, inline := 0, -1 // inline: up to this piece there are no line breaks
	indent := func() int { return min(2*depth, maxIndent) }
	breakLine := func() {
		lines = append(lines, strings.TrimRight(line.String(), " "))
		line.Reset()
		line.WriteString(strings.Repeat(" ", indent()))
	}
	fits := func(from, to int) bool { return indent()+n.start[to+1]-n.start[from] <= lineWidth }
	if len(n.text) > 0 && fits(0, len(n.text)-1) {
		inline = len(n.text)
	}
	for i, text := range n.text {
		switch text {
		case "[", "{":
			line.WriteString(text)
			switch {
			case i <= inline:
			case n.match[i] == i+1 || fits(i, n.match[i]):
				inline = n.match[i]
			default:
				depth++
				breakLine()
			}
		case "]", "}":
			if i > inline {
				depth--
				breakLine()
			}
			line.WriteString(text)
		case ",":
			line.WriteString(", ")
			if i > inline {
				breakLine()
			}
		case ":":
			line.WriteString(": ")
		default:
			line.WriteString(text)
		}
	}
	return append(lines, line.String())
}
