package notation

import (
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"coapproxy/wire"
)

func TestPayload(t *testing.T) {
	const none = -1
	long := strings.Repeat("x", 70)
	tests := []struct {
		name    string
		format  int // Content-Format
		payload string
		want    []string
	}{
		{"nothing said, text", none, "21.5 °C", []string{"21.5 °C"}},
		{"nothing said, bytes", none, "\x00\x01ab", []string{"00000000  00 01 61 62                                       |..ab|"}},
		{"unregistered format", 64999, "text", []string{"text"}},
		{"text, several lines", 0, "one\r\ntwo\n\nfour\n", []string{"one", "two", "", "four"}},
		{"text with control characters", 0, "a\x1b[2Jb\tc\rd\x7f\u009b\u202e", []string{`a\u001b[2Jb\tc\rd\u007f\u009b\u202e`}},
		{"text that is not UTF-8", 0, "a\xff", []string{"00000000  61 ff                                             |a.|"}},
		{"binary that looks like text", 42, "abc", []string{"00000000  61 62 63                                          |abc|"}},
		{"a content coding", 11050, "abc", []string{"00000000  61 62 63                                          |abc|"}},
		{"JSON, short", 50, `{"a":[1,2,{"b":null}],"c":"x,\"y:[z"}`, []string{`{"a": [1, 2, {"b": null}], "c": "x,\"y:[z"}`}},
		{"JSON, white space", 50, "{\n \"a\" : 1 }", []string{`{"a": 1}`}},
		{"JSON, long", 110, `[{"n":"` + long + `","v":1},{"n":"` + long + `","v":[]}]`, []string{
			"[",
			`  {"n": "` + long + `", "v": 1},`,
			`  {"n": "` + long + `", "v": []}`,
			"]",
		}},
		{"JSON, longer", 50, `{"a":{"x":"` + long + `","y":"` + long + `"},"b":2}`, []string{
			"{",
			`  "a": {`,
			`    "x": "` + long + `",`,
			`    "y": "` + long + `"`,
			"  },",
			`  "b": 2`,
			"}",
		}},
		{"JSON, control characters", 50, "{\"a\":\"\u009b\x7f\"}", []string{`{"a": "\u009b\u007f"}`}},
		{"not JSON", 50, "{oops", []string{"{oops"}},
		{"CBOR", 60, "\xa2\x61t\xf9\x4d\x60\x61u\x63\xc2\xb0C", []string{`{"t": 21.5, "u": "°C"}`}},
		{"CBOR, control characters", 60, "\x63\xc2\x9b\x1b", []string{`"\u009b\u001b"`}},
		{"CBOR, not only text keys", 112, "\x81\xa3\x21\x63abc\x00\x61v\x02\x42\x01\x02", []string{`[{-2: "abc", 0: "v", 2: h'0102'}]`}},
		{"CBOR, tags and indefinite lengths", 60, "\x9f\xc1\x1a\x65\x00\x00\x00\x5f\x41\xaa\x41\xbb\xff\xff", []string{`[_ 1(1694498816), (_ h'aa', h'bb')]`}},
		{"CBOR, tag of an array", 18, "\xd2\x84\x40\xa0\xf6\x40", []string{`18([h'', {}, null, h''])`}},
		{"CBOR, long", 60, "\x82\x58\x28" + strings.Repeat("\xab", 40) + "\x58\x28" + strings.Repeat("\xcd", 40), []string{
			"[",
			"  h'" + strings.Repeat("ab", 40) + "',",
			"  h'" + strings.Repeat("cd", 40) + "'",
			"]",
		}},
		{"CBOR sequence", 63, "\x01\x61a\x80", []string{`1, "a", []`}},
		{"a sequence where one item belongs", 60, "\x01\x02", []string{"00000000  01 02                                             |..|"}},
		{"not CBOR", 60, "\xff", []string{"00000000  ff                                                |.|"}},
		{"links", 40, `</a,b>;title="x, <y>;\"",</c>;rt="t", </d>`, []string{`</a,b>;title="x, <y>;\"",`, `</c>;rt="t",`, "</d>"}},
		{"links with control characters", 40, "</a>;t=\"\x1b\",</b>", []string{`</a>;t="\u001b",`, "</b>"}},
		{"XML", 41, "<a/>", []string{"<a/>"}},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			var options message.Options
			if test.format != none {
				options = message.Options{{ID: wire.ContentFormat, Value: wire.AppendUint(nil, uint32(test.format))}}
			}
			require.Equal(t, test.want, payloadLines([]byte(test.payload), KindOf(options)))
		})
	}
}

// requireHarmless fails on anything that a terminal would obey.
func requireHarmless(t require.TestingT, line string) {
	require.True(t, utf8.ValidString(line), "%q", line)
	for _, r := range line {
		require.True(t, strconv.IsPrint(r), "%q in %q", r, line)
	}
}

// Whatever a payload holds, its lines are harmless and not much longer than it.
func TestPayloadIsHarmless(t *testing.T) {
	piece := rapid.OneOf(
		rapid.SampledFrom([]string{"[", "{", "]", "}", ",", ":", `"`, `\`, `\u0`, "'", "<", ">", "\x1b", "\n", "\u009b", "\xff", "\x81", "\xa1", "\x5f", "1", "true"}),
		rapid.Map(rapid.SliceOfN(rapid.Byte(), 0, 8), func(b []byte) string { return string(b) }),
	)
	rapid.Check(t, func(t *rapid.T) {
		payload := []byte(strings.Join(rapid.SliceOfN(piece, 0, 60).Draw(t, "pieces"), ""))
		kind := Kind(rapid.IntRange(0, int(Links)).Draw(t, "kind"))
		total := 0
		for _, line := range payloadLines(payload, kind) {
			requireHarmless(t, line)
			total += len(line)
		}
		require.LessOrEqual(t, total, (maxIndent+16)*(len(payload)+16))
	})
}

// Deep nesting does not make long output.
func TestPayloadDeepNesting(t *testing.T) {
	const depth = 5000
	total := 0
	for _, line := range payloadLines([]byte(strings.Repeat("[", depth)+strings.Repeat("]", depth)), JSON) {
		total += len(line)
	}
	require.Less(t, total, 2*depth*(maxIndent+4))
}
