package oscorehop

import (
	"bytes"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"coapproxy/wire"
)

// OC-14, OC-15, OC-60
func TestParseOptionMalformed(t *testing.T) {
	for name, v := range map[string]struct {
		value []byte
		want  error
	}{
		"zero byte":                   {[]byte{0x00}, errZeroFlags},
		"second flag byte":            {[]byte{0x89, 0x01, 0x20}, errFlags},
		"unassigned flag":             {[]byte{0x49, 0x01, 0x20}, errFlags},
		"Partial IV of 6":             {[]byte{0x0e, 1, 2, 3, 4, 5, 6}, errIVLength},
		"Partial IV of 7":             {[]byte{0x0f, 1, 2, 3, 4, 5, 6, 7}, errIVLength},
		"Partial IV truncated":        {[]byte{0x03, 1, 2}, errTruncated},
		"Partial IV with a zero":      {[]byte{0x0a, 0, 1}, errNotShortest},
		"kid context without length":  {[]byte{0x11, 1}, errTruncated},
		"kid context truncated":       {[]byte{0x11, 1, 3, 1, 2}, errTruncated},
		"bytes left without kid flag": {[]byte{0x01, 1, 2}, errLeftover},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := ParseOption(v.value)
			require.ErrorIs(t, err, v.want)
		})
	}
}

func TestOptionAppendTooLong(t *testing.T) {
	for _, o := range []Option{
		{PartialIV: make([]byte, 6)},
		{KIDContext: make([]byte, 256)},
		{KID: make([]byte, 200), KIDContext: make([]byte, 60)},
	} {
		buf, err := o.Append([]byte("kept"))
		require.ErrorIs(t, err, errFieldLength)
		require.Equal(t, "kept", string(buf))
	}
}

// OC-14, OC-15, OH-50
func TestRequestOption(t *testing.T) {
	value := []byte{0x09, 0x14, 0x01}
	with := func(payload string, values ...[]byte) Message {
		m := Message{Payload: []byte(payload)}
		for _, v := range values {
			m.Options = append(m.Options, message.Option{ID: wire.OSCORE, Value: v})
		}
		return m
	}
	o, err := RequestOption(with("c", value))
	require.NoError(t, err)
	require.Equal(t, Option{PartialIV: []byte{0x14}, KID: []byte{1}}, o)
	for name, v := range map[string]struct {
		m    Message
		want error
	}{
		"no option":     {with("c"), errNoOption},
		"two options":   {with("c", value, value), errTwoOptions},
		"no payload":    {with("", value), errNoPayload},
		"no kid":        {with("c", []byte{0x01, 0x14}), errNoKID},
		"no Partial IV": {with("c", []byte{0x08, 0x01}), errNoIV},
		"empty":         {with("c", nil), errNoKID},
		"malformed":     {with("c", []byte{0x06}), errIVLength},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := RequestOption(v.m)
			require.ErrorIs(t, err, v.want)
			requireRefused(t, Malformed, err)
		})
	}
}

func TestOptionRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var want Option
		if rapid.Bool().Draw(t, "has Partial IV") {
			want.PartialIV = partialIV(rapid.Uint64Range(0, maxSequence).Draw(t, "sequence"))
		}
		if rapid.Bool().Draw(t, "has kid context") {
			want.KIDContext = rapid.SliceOfN(rapid.Byte(), 0, 200).Draw(t, "kid context")
		}
		if rapid.Bool().Draw(t, "has kid") {
			want.KID = rapid.SliceOfN(rapid.Byte(), 0, 7).Draw(t, "kid")
		}
		want.Group = rapid.Bool().Draw(t, "group")
		value, err := want.Append(nil)
		require.NoError(t, err)
		got, err := ParseOption(value)
		require.NoError(t, err)
		require.Equal(t, want, got)
	})
}

// Whatever is accepted is encoded to the same bytes: there are no two forms of
// one option.
// OC-14
func FuzzParseOption(f *testing.F) {
	for _, v := range rfc8613(f).Compression {
		f.Add([]byte(v.OSCOREOption))
	}
	f.Add([]byte{0x39, 0x05, 0x03, 0x44, 0x61, 0x6c, 0x25})
	f.Add([]byte{0x89, 0x01, 0x20})
	f.Fuzz(func(t *testing.T, value []byte) {
		o, err := ParseOption(value)
		if err != nil || len(value) > 255 {
			return
		}
		encoded, err := o.Append(nil)
		require.NoError(t, err)
		require.True(t, bytes.Equal(value, encoded))
	})
}
