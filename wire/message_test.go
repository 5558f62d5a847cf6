package wire

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
)

var typeNames = map[string]message.Type{
	"CON": message.Confirmable, "NON": message.NonConfirmable,
	"ACK": message.Acknowledgement, "RST": message.Reset,
}

// optionStrings writes options as the vectors do: "Uri-Path(11)=72".
func optionStrings(opts message.Options) []string {
	var out []string
	for _, o := range opts {
		d, _ := Lookup(o.ID)
		out = append(out, fmt.Sprintf("%s(%d)=%x", d.Name, o.ID, o.Value))
	}
	return out
}

func TestMessageVectors(t *testing.T) {
	var m Message // one for all: decoding must leave nothing behind
	for _, v := range readOptionVectors(t).Messages {
		t.Run(v.Name, func(t *testing.T) {
			datagram := unhex(t, v.Hex)
			require.NoError(t, m.Decode(datagram))
			require.Equal(t, typeNames[v.Type], m.Type)
			require.Equal(t, v.Code, strings.Fields(CodeString(m.Code))[0])
			require.Equal(t, v.MID, m.ID)
			require.Equal(t, v.Token, hex.EncodeToString(m.Token))
			require.Equal(t, v.Options, optionStrings(m.Options))
			require.Equal(t, v.Payload, string(m.Payload))

			encoded, err := m.Append(nil)
			require.NoError(t, err)
			require.Equal(t, v.Hex, hex.EncodeToString(encoded))
		})
	}
}

// Every value vector also shows the option as the first one of a message.
func TestOptionHeaderVectors(t *testing.T) {
	v := readOptionVectors(t)
	for _, list := range [][]optionVector{v.MulticastTimeout, v.ReplyFrom, v.ResponseForwarding, v.GroupETag} {
		for _, o := range list {
			t.Run(o.Name, func(t *testing.T) {
				value := unhex(t, o.ValueHex)
				require.Len(t, value, o.Length)
				m := Message{Code: codes.GET, Options: message.Options{{ID: message.OptionID(o.Option), Value: value}}}
				encoded, err := m.Append(nil)
				require.NoError(t, err)
				require.Equal(t, "40010000"+o.AsFirstOption, hex.EncodeToString(encoded))
				d, ok := Lookup(m.Options[0].ID)
				require.True(t, ok)
				require.True(t, d.Valid(value))
			})
		}
	}
}

// GP-2
func TestMulticastTimeoutVectors(t *testing.T) {
	for _, v := range readOptionVectors(t).MulticastTimeout {
		seconds, ok := Uint(unhex(t, v.ValueHex))
		require.True(t, ok)
		require.Equal(t, v.Name, fmt.Sprintf("timeout-%d", seconds))
		require.Equal(t, v.ValueHex, hex.EncodeToString(AppendUint(nil, seconds)))
	}
}

func TestDecodeErrors(t *testing.T) {
	var m Message
	for _, tt := range []struct {
		name, hex, reason string
	}{
		{"token truncated", "42010001aa", "token truncated"},
		{"token length 15", "4f010001" + strings.Repeat("00", 20), "reserved or truncated token length"},
		{"token length 13 without byte", "4d010001", "reserved or truncated token length"},
		{"token length 14 with one byte", "4e01000100", "reserved or truncated token length"},
		{"token length 13 truncated", "4d01000100" + strings.Repeat("00", 12), "token truncated"},
		{"option delta 15", "40010001f0", "option unexpected extend marker"},
		{"option length 15", "400100011f", "option unexpected extend marker"},
		{"option value truncated", "400100011201", "option truncated"},
		{"extended delta truncated", "40010001d0", "option truncated"},
		{"extended length truncated", "400100011e00", "option truncated"},
		{"option number above 65535", "40010001e0fff0e01000", "option not found"},
		{"marker without payload", "40010001ff", "payload marker without payload"},
		{"marker without payload after an option", "40010001b161ff", "payload marker without payload"},
		{"marker without payload after option 0", "4001000100ff", "payload marker without payload"},
		{"Empty message with a token", "41000001aa", "Empty message with content"},
		{"Empty message with a token length only", "41000001", "Empty message with content"},
		{"Empty message with an option", "4000000110", "Empty message with content"},
		{"class 1", "40200001", "code of a reserved class"},
		{"class 6", "40c00001", "code of a reserved class"},
		{"class 7", "40e10001", "code of a reserved class"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			err := m.Decode(unhex(t, tt.hex))
			var format *FormatError
			require.ErrorAs(t, err, &format)
			require.Contains(t, format.Reason, tt.reason)
			require.Equal(t, message.Confirmable, format.Type)
			require.Equal(t, uint16(1), format.ID)
			require.ErrorContains(t, err, format.Reason)
		})
	}
	require.ErrorIs(t, m.Decode(nil), ErrShort)
	require.ErrorIs(t, m.Decode(unhex(t, "400100")), ErrShort)
	require.ErrorIs(t, m.Decode(unhex(t, "00010001")), ErrVersion)
	require.ErrorIs(t, m.Decode(unhex(t, "80010001")), ErrVersion)
}

// What looks like a payload marker without payload may be the end of a value.
func TestDecodeTrailingFF(t *testing.T) {
	for _, tt := range []struct {
		name, hex string
		options   []string
		payload   string
	}{
		{"value ends in ff", "40010001b2ffff", []string{"Uri-Path(11)=ffff"}, ""},
		{"value is ff", "40010001b1ff", []string{"Uri-Path(11)=ff"}, ""},
		{"extended number ends in ff", "40010001d0ff", []string{"(268)="}, ""},
		{"value of option 0 ends in ff", "4001000101ff", nil, ""},
		{"payload is ff", "40010001b0ffff", []string{"Uri-Path(11)="}, "ff"},
		{"payload ends in ff", "40010001ff61ff", nil, "61ff"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var m Message
			require.NoError(t, m.Decode(unhex(t, tt.hex)))
			require.Equal(t, tt.options, optionStrings(m.Options))
			require.Equal(t, tt.payload, hex.EncodeToString(m.Payload))
		})
	}
}

// RFC 8974 §2.1
func TestTokenLengths(t *testing.T) {
	for _, n := range []int{0, 1, 8, 9, 12, 13, 14, 268, 269, 270, 1000, maxToken} {
		m := Message{Type: message.NonConfirmable, Code: codes.GET, ID: 7, Token: bytes.Repeat([]byte{0xff}, n), Payload: []byte("p")}
		encoded, err := m.Append(nil)
		require.NoError(t, err)
		var got Message
		require.NoError(t, got.Decode(encoded))
		require.Len(t, got.Token, n)
		require.Equal(t, "p", string(got.Payload))
	}
}

func TestAppendErrors(t *testing.T) {
	prefix := []byte("prefix")
	for name, tt := range map[string]struct {
		m    Message
		want error
	}{
		"unsorted": {Message{Code: codes.GET, Options: message.Options{{ID: URIPath}, {ID: URIHost}}}, ErrUnsorted},
		"value":    {Message{Code: codes.GET, Options: message.Options{{ID: URIPath, Value: make([]byte, maxOptionValue+1)}}}, errValue},
		"token":    {Message{Code: codes.GET, Token: make([]byte, maxToken+1)}, errToken},
		"type":     {Message{Type: message.Unset, Code: codes.GET}, errType},
		"code":     {Message{Code: 256}, errCode},
		"empty":    {Message{Code: codes.Empty, Payload: []byte("x")}, errEmptyCode},
	} {
		t.Run(name, func(t *testing.T) {
			out, err := tt.m.Append(prefix)
			require.ErrorIs(t, err, tt.want)
			require.Equal(t, prefix, out)
		})
	}
}

func TestAppendKeepsPrefixAndGrows(t *testing.T) {
	long := bytes.Repeat([]byte("x"), maxOptionValue)
	m := Message{
		Type: message.Acknowledgement, Code: codes.Content, ID: 0xfffe, Token: []byte{1, 2},
		Options: message.Options{{ID: ETag, Value: []byte("e")}, {ID: ETag, Value: []byte("f")}, {ID: 65535, Value: long}},
		Payload: []byte{0xff},
	}
	want, err := m.Append(nil)
	require.NoError(t, err)
	for capacity := range 64 {
		out, err := m.Append(append(make([]byte, 0, capacity), "ab"...))
		require.NoError(t, err)
		require.Equal(t, "ab", string(out[:2]))
		require.Equal(t, want, out[2:])
	}
	var got Message
	require.NoError(t, got.Decode(want))
	require.Equal(t, m, got)
}

// Decoding into the same Message must not keep what a hostile datagram needed.
func TestDecodeManyOptions(t *testing.T) {
	datagram := append(unhex(t, "40010001b0"), make([]byte, 60000)...)
	var m Message
	require.NoError(t, m.Decode(datagram))
	require.Len(t, m.Options, 60001)
	require.NoError(t, m.Decode(unhex(t, "40010001b161")))
	require.Equal(t, []string{"Uri-Path(11)=61"}, optionStrings(m.Options))
	require.LessOrEqual(t, cap(m.Options), keptOptions)
}

func TestMessageAllocations(t *testing.T) {
	datagram := unhex(t, benchRequest)
	var m Message
	buf := make([]byte, 0, 256)
	require.NoError(t, m.Decode(datagram))
	require.Zero(t, testing.AllocsPerRun(100, func() {
		if m.Decode(datagram) != nil {
			t.Fatal("decode")
		}
		var err error
		if buf, err = m.Append(buf[:0]); err != nil {
			t.Fatal(err)
		}
	}))
}

func FuzzMessage(f *testing.F) {
	for _, v := range readOptionVectors(f).Messages {
		f.Add(unhex(f, v.Hex))
	}
	for _, s := range []string{"40010001b2ffff", "40010001b1ff", "4001000100ff", "4d01000100" + strings.Repeat("ff", 13), "60000001", "40010001e0fff0e01000"} {
		f.Add(unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, datagram []byte) {
		original := bytes.Clone(datagram)
		var first, second Message
		if err := first.Decode(datagram); err != nil {
			return
		}
		encoded, err := first.Append(nil)
		require.NoError(t, err)
		require.NoError(t, second.Decode(encoded))
		require.Equal(t, optionStrings(first.Options), optionStrings(second.Options))
		first.Options, second.Options = nil, nil
		require.Equal(t, first, second)
		require.Equal(t, original, datagram)
	})
}

// benchRequest is a group request through the proxy: Multicast-Timeout, Uri-Host,
// Uri-Port, two Uri-Path, Accept, Proxy-Scheme.
const benchRequest = "44017d34a1b2c3d4213c1a5b666630353a3a66645d4216334773656e736f72730474656d70613cd409636f6170"

func BenchmarkMessageDecode(b *testing.B) {
	datagram := unhex(b, benchRequest)
	var m Message
	require.NoError(b, m.Decode(datagram))
	b.ReportAllocs()
	for b.Loop() {
		if err := m.Decode(datagram); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkMessageAppend(b *testing.B) {
	var m Message
	require.NoError(b, m.Decode(unhex(b, benchRequest)))
	buf := make([]byte, 0, 256)
	b.ReportAllocs()
	for b.Loop() {
		var err error
		if buf, err = m.Append(buf[:0]); err != nil {
			b.Fatal(err)
		}
	}
}
