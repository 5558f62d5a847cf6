package main

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"coapproxy/wire"
)

var update = flag.Bool("update", false, "rewrite golden files")

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	require.NoError(t, err)
	return b
}

// requireHarmless fails on anything that a terminal would obey.
func requireHarmless(t require.TestingT, line string) {
	require.True(t, utf8.ValidString(line), "%q", line)
	for _, r := range line {
		require.True(t, strconv.IsPrint(r), "%q in %q", r, line)
	}
}

type messageVector struct{ Name, Hex string }

func messageVectors(t testing.TB) []messageVector {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("..", "..", "testdata", "group-proxy-options.json"))
	require.NoError(t, err)
	var file struct{ Messages []messageVector }
	require.NoError(t, json.Unmarshal(data, &file))
	require.NotEmpty(t, file.Messages)
	return file.Messages
}

// decodeCommand runs the subcommand decode.
func decodeCommand(t testing.TB, stdin string, args ...string) (out, errs string, code int) {
	t.Helper()
	var o, e bytes.Buffer
	code = runDecode(t.Context(), stdio{strings.NewReader(stdin), &o, &e}, args)
	return o.String(), e.String(), code
}

// All messages of the vectors, as decode explains them.
func TestDecodeVectors(t *testing.T) {
	var all strings.Builder
	for _, v := range messageVectors(t) {
		out, errs, code := decodeCommand(t, "", v.Hex)
		require.Equal(t, exitOK, code, v.Name)
		require.Empty(t, errs)
		all.WriteString("# " + v.Name + "\n" + out + "\n")
	}
	requireGolden(t, "decode.golden", all.String())
}

func requireGolden(t *testing.T, name, got string) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		require.NoError(t, os.WriteFile(path, []byte(got), 0o644))
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, string(want), got)
}

func TestDecode(t *testing.T) {
	option := func(number int, value string) string { // the only option of a GET
		return encodeOption(t, 0x01, number, value)
	}
	response := func(number int, value string) string { return encodeOption(t, 0x45, number, value) }
	tests := []struct {
		name string
		hex  string
		want string // a part of the last line but one of the output or of it all
	}{
		{"ping", "40000001", "CON  0.00 Empty  message id 1 (0x0001)  no token\nping\n"},
		{"reset", "70001234", "RST  0.00 Empty  message id 4660 (0x1234)  no token\n"},
		{"extended token", "4d010001 00 0102030405060708090a0b0c0d", "token 0x0102030405060708090a0b0c0d"},
		{"unknown code", "45bf0001 0102030405", "5.31  message id"},
		{"observe, register", option(6, ""), "Observe  elective unsafe  register (0)"},
		{"observe, deregister", option(6, "01"), "deregister (1)"},
		{"notification", response(6, "0102"), "Observe  elective unsafe  258"},
		{"block asked for", option(23, "16"), "Block2  critical unsafe  num 1, size 1024"},
		{"block", response(23, "3e"), "Block2  critical unsafe  num 3, more, size 1024"},
		{"last block", option(27, "30"), "Block1  critical unsafe  num 3, last, size 16"},
		{"block of a reserved size", option(23, "07"), "7 (block size exponent 7 is reserved)"},
		{"accept", option(17, "3c"), "Accept  critical safe  application/cbor (60)"},
		{"unregistered format", option(12, "fde7"), "Content-Format  elective safe  64999"},
		{"no-response, nothing left out", option(258, ""), "No-Response  elective unsafe  0 (all responses wanted)"},
		{"no-response, errors", option(258, "18"), "24 (no 4.xx, 5.xx)"},
		{"no-response, no known class", option(258, "01"), "unsafe  1\n"},
		{"max-age", response(14, "3c"), "60 s"},
		{"if-none-match", option(5, ""), "If-None-Match  critical safe  present"},
		{"hop-limit", option(16, "10"), "Hop-Limit  elective safe  16"},
		{"size", response(28, "0bb8"), "Size2  elective safe nocachekey  3000 bytes"},
		{"path abbreviation", option(13, ""), "/.well-known/core (0)"},
		{"echo", option(252, "0102"), "Echo  elective safe nocachekey  0x0102"},
		{"OSCORE", option(9, ""), "OSCORE  critical safe  empty"},
		{"query", option(15, "1b5b"), `"\x1b["`},
		{"unknown option", option(65001, "0102"), "65001  unknown  critical safe  0x0102"},
		{"unknown option with text", option(65000, "6869"), `unknown  elective safe  0x6869 "hi"`},
		{"illegal length", option(60, "0102030405"), "0x0102030405 (5 bytes, not 0 to 4: counts as unrecognised)"},
		{"scheme number", option(239, "01"), "coaps (1)"},
		{"proxy-cri that is none", option(235, "8141"), "0x8141 ("},
		{"proxy-cri of another scheme", option(235, "821863 8161 61"), "("},
		{"reply-from, reverse", response(248, "8220814 4c0000201 82f6 82 6464657631 190929"),
			`server coap://192.0.2.1, follow up there with Uri-Host "dev1", Uri-Port 2345 (CRI [-1, [h'c0000201']], [null, ["dev1", 2345]])`},
		{"reply-from, reverse by address", response(248, "82208144c0000201 82f6 82 44c0000207 19f0b0"), "Uri-Host 192.0.2.7, Uri-Port 61616"},
		{"reply-from, reverse by path", response(248, "82208144c0000201 82f582626c3161 32"), `follow up there with Uri-Path "l1", Uri-Path "2"`},
		{"reply-from, bad", response(248, "8120aabbcc"), "(ignored: "},
		{"response-forwarding, group port", response(96, "8301d9010444c0000207f6"), "server coap://192.0.2.7 on the port of the group URI ([1, 260(h'c0000207'), null])"},
		{"response-forwarding, bad", response(96, "8209d9010444c0000207"), "[9, 260(h'c0000207')] (ignored: "},
		{"JSON", "45450001 0102030405 c132 ff 7b2261223a317d", "payload, 7 bytes:\n  {\"a\": 1}\n"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			out, errs, code := decodeCommand(t, "", test.hex)
			require.Equal(t, exitOK, code, errs)
			require.Contains(t, out, test.want)
		})
	}
}

func encodeOption(t testing.TB, code byte, number int, value string) string {
	t.Helper()
	v := unhex(t, value)
	head := []byte{0x40, code, 0, 1}
	var ext []byte
	nibble := func(n int) byte {
		switch {
		case n >= 269:
			ext = append(ext, byte((n-269)>>8), byte(n-269))
			return 14
		case n >= 13:
			ext = append(ext, byte(n-13))
			return 13
		}
		return byte(n)
	}
	first := nibble(number)<<4 | nibble(len(v))
	return hex.EncodeToString(append(append(append(head, first), ext...), v...))
}

// What is malformed is printed as far as it can be read, with the place of the
// error.
func TestDecodeMalformed(t *testing.T) {
	const header = "CON  0.01 GET  message id 1 (0x0001)  "
	tests := []struct {
		name, hex, out, err string
	}{
		{"nothing", "", "", "byte 0: the end: a header has 4 bytes"},
		{"half a header", "4001", "", "byte 2: the end: a header has 4 bytes"},
		{"version", "80010001", "", "byte 0: version 2 is not CoAP version 1"},
		{"reserved class", "40210001 b161", "CON  1.01  message id 1 (0x0001)  no token\n     11  Uri-Path  critical unsafe repeatable  \"a\"\n", "byte 1: code 1.01 is of a reserved class"},
		{"content in an Empty message", "41000001 07", "CON  0.00 Empty  message id 1 (0x0001)  token 0x07\n", "byte 4: an Empty message with content"},
		{"token", "44010001 aabb", header + "no token\n", "byte 4: token: 4 bytes expected, 2 left"},
		{"token length", "4f010001 aabb", header + "no token\n", "byte 0: token length 15 is reserved"},
		{"extended token length", "4e010001 aa", header + "no token\n", "byte 4: extended token length: 2 bytes expected, 1 left"},
		{"option delta", "40010001 b161 f0", header + "no token\n     11  Uri-Path  critical unsafe repeatable  \"a\"\n", "byte 6: option delta 15 is reserved"},
		{"option length", "40010001 0f", header + "no token\n", "byte 4: option length 15 is reserved"},
		{"extended delta", "40010001 d0", header + "no token\n", "byte 5: extended option delta: 1 bytes expected, 0 left"},
		{"value", "40010001 b361", header + "no token\n", "byte 5: value of option 11: 3 bytes expected, 1 left"},
		{"number", "40010001 e0ffff", header + "no token\n", "byte 4: option number 65804 is above 65535"},
		{"no payload", "40010001 b0ff", header + "no token\n     11  Uri-Path  critical unsafe repeatable  \"\"\n", "byte 5: payload marker without payload"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			out, errs, code := decodeCommand(t, test.hex, "-")
			require.Equal(t, exitFailed, code)
			require.Equal(t, test.out, out)
			require.Equal(t, "malformed: "+test.err+"\n", errs)
		})
	}
}

func TestDecodeArguments(t *testing.T) {
	tests := []struct {
		name  string
		stdin string
		args  []string
		code  int
		want  string // of output and errors
	}{
		{"dump forms", "", []string{"0x40", "01:00:01\n", "0XB1,61"}, exitOK, `"a"`},
		{"flag behind", "", []string{"d2", "--legacy-number", "97"}, exitFailed, "malformed"},
		{"standard input", "40 01\n00 01\n", []string{"-"}, exitOK, "0.01 GET"},
		{"nothing", "", nil, exitUsage, "wrong number of arguments"},
		{"not hex", "", []string{"hello"}, exitUsage, `"hello" is not hex`},
		{"half a byte", "", []string{"400"}, exitUsage, "3 hex digits"},
		{"unknown flag", "", []string{"--frobnicate", "40"}, exitUsage, "frobnicate"},
		{"taken number", "", []string{"--legacy-number", "11", "40"}, exitUsage, "not a free option number"},
		{"number 0", "", []string{"--legacy-number", "0", "40"}, exitUsage, "not a free option number"},
		{"moved number", "", []string{"--legacy-number", "65004", encodeOption(t, 0x45, 65004, "8201d9010444c0000207")}, exitOK, "Response-Forwarding"},
		{"moved away", "", []string{"--legacy-number", "65004", encodeOption(t, 0x45, 96, "8201d9010444c0000207")}, exitOK, "unknown"},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			out, errs, code := decodeCommand(t, test.stdin, test.args...)
			require.Equal(t, test.code, code, errs)
			require.Contains(t, out+errs, test.want)
		})
	}
}

// FuzzDecodeCommand: no panic, no control characters, and the same judgement as
// the decoder of the message layer.
func FuzzDecodeCommand(f *testing.F) {
	for _, v := range messageVectors(f) {
		f.Add(unhex(f, v.Hex))
	}
	for _, s := range []string{"", "40", "40000000", "45450001aabbccddeec13cffa1611b63c29b1b", "45450001aabbccddeec128ff3c1b3e2c", "4001000100b0ff",
		"40010001e0ffff", "6f450001", "4045000161ffff"} {
		f.Add(unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		out, errs, code := decodeCommand(t, hex.EncodeToString(data), "-")
		for line := range strings.Lines(out + errs) {
			requireHarmless(t, strings.TrimSuffix(line, "\n"))
		}
		var m wire.Message
		want := exitOK
		if m.Decode(data) != nil {
			want = exitFailed
		}
		require.Equal(t, want, code, "%x: %s", data, errs)
	})
}
