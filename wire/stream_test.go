package wire

import (
	"bytes"
	"encoding/hex"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/message/pool"
	tcpcoder "github.com/plgd-dev/go-coap/v3/tcp/coder"
	"github.com/stretchr/testify/require"
)

// The two examples of RFC 8323 (§3.2 and §5.7) and each length of the length
// field, at its limits.
func TestFrame(t *testing.T) {
	payload := func(n int) []byte { return bytes.Repeat([]byte{'p'}, n) }
	for _, v := range []struct {
		name   string
		m      Message
		header string
		length int
	}{
		{"2.03", Message{Code: codes.Valid, Token: []byte{0x7f}}, "01437f", 3},
		{"ping", Message{Code: codes.Ping, Token: []byte{0x42}}, "01e242", 3},
		{"empty", Message{}, "0000", 2},
		{"csm", Message{Code: codes.CSM, Options: message.Options{{ID: CSMMaxMessageSize, Value: []byte{0x10, 0, 0}}, {ID: CSMBlockWiseTransfer}}}, "50e12310000020", 7},
		{"length 12", Message{Code: codes.Content, Payload: payload(11)}, "c045ff7070", 14},
		{"length 13", Message{Code: codes.Content, Payload: payload(12)}, "d00045ff70", 16},
		{"length 268", Message{Code: codes.Content, Payload: payload(267)}, "d0ff45ff70", 271},
		{"length 269", Message{Code: codes.Content, Payload: payload(268)}, "e0000045ff70", 273},
		{"length 65804", Message{Code: codes.Content, Payload: payload(65803)}, "e0ffff45ff70", 65808},
		{"length 65805", Message{Code: codes.Content, Payload: payload(65804)}, "f00000000045ff70", 65811},
		{"token 12", Message{Code: codes.GET, Token: payload(12)}, "0c0170", 14},
		{"token 13", Message{Code: codes.GET, Token: payload(13)}, "0d010070", 16},
		{"token 269", Message{Code: codes.GET, Token: payload(269), Payload: payload(1)}, "2e01000070", 275},
	} {
		t.Run(v.name, func(t *testing.T) {
			prefix := []byte("before")
			encoded, err := v.m.AppendFrame(prefix)
			require.NoError(t, err)
			require.Equal(t, "before", string(encoded[:6]))
			encoded = encoded[6:]
			require.Equal(t, v.header, hex.EncodeToString(encoded)[:len(v.header)])
			n, err := FrameLen(append(bytes.Clone(encoded), 0xaa))
			require.NoError(t, err)
			require.EqualValues(t, v.length, n)
			require.Len(t, encoded, v.length)

			var got Message
			require.NoError(t, got.DecodeFrame(encoded))
			want := v.m
			want.Type = message.Confirmable
			requireSameMessage(t, &want, &got)

			encoded, err = v.m.AppendWebSocket(prefix)
			require.NoError(t, err)
			require.Zero(t, encoded[6]>>4)
			require.NoError(t, got.DecodeWebSocket(encoded[6:]))
			requireSameMessage(t, &want, &got)
		})
	}
}

func requireSameMessage(t *testing.T, want, got *Message) {
	t.Helper()
	require.Equal(t, optionStrings(want.Options), optionStrings(got.Options))
	a, b := *want, *got
	a.Options, b.Options = nil, nil
	require.Equal(t, a, b)
}

// A header is complete after at most eight bytes, and nothing shorter than it
// passes for one.
func TestFrameLenIncomplete(t *testing.T) {
	for _, v := range []string{"00" + "01", "d00001", "e0000001", "f00000000001", "0d0100", "0e010000", "fe00000000010000"} {
		header := unhex(t, v)
		for i := range header {
			_, err := FrameLen(header[:i])
			require.ErrorIs(t, err, ErrIncomplete, "%s, %d bytes", v, i)
		}
		_, err := FrameLen(header)
		require.NoError(t, err, v)
	}
	n, err := FrameLen(unhex(t, "fe"+"ffffffff"+"01"+"ffff"))
	require.NoError(t, err)
	require.EqualValues(t, 1+4+1+2+65535+269+1<<32-1+65805, n, "the longest frame there is")
}

func TestFrameErrors(t *testing.T) {
	var m Message
	var f *FormatError
	for _, v := range []string{"", "01", "0f01", "0001ff", "2001ff", "1001ff", "1001b2", "2001", "0141", "e000"} {
		require.ErrorAs(t, m.DecodeFrame(unhex(t, v)), &f, v)
	}
	for _, v := range []string{"", "00", "0f01", "1001ff70", "0001ff", "0141", "0001b2"} {
		require.ErrorAs(t, m.DecodeWebSocket(unhex(t, v)), &f, v)
	}
	_, err := FrameLen([]byte{0x0f, 1})
	require.ErrorAs(t, err, &f)

	unsorted := Message{Code: codes.GET, Options: message.Options{{ID: URIPath}, {ID: URIHost}}}
	buf, err := unsorted.AppendFrame([]byte{1})
	require.ErrorIs(t, err, ErrUnsorted)
	require.Equal(t, []byte{1}, buf)
	buf, err = unsorted.AppendWebSocket([]byte{1})
	require.ErrorIs(t, err, ErrUnsorted)
	require.Equal(t, []byte{1}, buf)
	for _, bad := range []Message{{Code: 256}, {Token: make([]byte, maxToken+1)}} {
		_, err = bad.AppendFrame(nil)
		require.Error(t, err)
	}
}

// FuzzFrame reads arbitrary bytes as frames, and what is a message must come
// out the same after encoding it, read by us and by go-coap.
func FuzzFrame(f *testing.F) {
	for _, v := range []string{"01437f", "01e242", "50e12310000020", "d0ff45ff70", "f00000000045ff70", "0d010070", "2e01000070", "0f01", "40018161" + "ff01"} {
		f.Add(unhex(f, v))
	}
	for _, v := range readOptionVectors(f).Messages {
		var m Message
		require.NoError(f, m.Decode(unhex(f, v.Hex)))
		frame, err := m.AppendFrame(nil)
		require.NoError(f, err)
		f.Add(frame)
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		original := bytes.Clone(data)
		n, err := FrameLen(data)
		var first, second Message
		if ws := first.DecodeWebSocket(data); ws == nil {
			encoded, err := first.AppendWebSocket(nil)
			require.NoError(t, err)
			require.NoError(t, second.DecodeWebSocket(encoded))
			requireSameMessage(t, &first, &second)
		}
		if err != nil || n > uint64(len(data)) {
			require.Error(t, first.DecodeFrame(data))
			return
		}
		if err := first.DecodeFrame(data[:n]); err != nil {
			return
		}
		encoded, err := first.AppendFrame(nil)
		require.NoError(t, err)
		length, err := FrameLen(encoded)
		require.NoError(t, err)
		require.EqualValues(t, len(encoded), length)
		require.NoError(t, second.DecodeFrame(encoded))
		requireSameMessage(t, &first, &second)
		require.Equal(t, original, data)
		compareWithGoCoAP(t, &first, encoded)
	})
}

// compareWithGoCoAP has another implementation read what we encoded. It refuses
// extended tokens and drops values of unregistered lengths, so that only token
// and payload can be compared.
func compareWithGoCoAP(t *testing.T, m *Message, encoded []byte) {
	if len(m.Token) > 8 || len(encoded) > 1<<16 {
		return
	}
	other := pool.NewMessage(t.Context())
	if _, err := other.UnmarshalWithDecoder(tcpcoder.DefaultCoder, encoded); err != nil {
		return
	}
	require.Equal(t, m.Code, other.Code())
	require.Equal(t, hex.EncodeToString(m.Token), hex.EncodeToString(other.Token()))
	body, err := other.ReadBody()
	require.NoError(t, err)
	require.Equal(t, string(m.Payload), string(body))
}
