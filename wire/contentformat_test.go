package wire

import (
	"cmp"
	"slices"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/stretchr/testify/require"
)

func TestContentFormats(t *testing.T) {
	require.True(t, slices.IsSortedFunc(contentFormats, func(a, b contentFormat) int { return cmp.Compare(a.number, b.number) }))
	for _, f := range contentFormats {
		name, ok := ContentFormatName(f.number)
		require.True(t, ok)
		require.Equal(t, f.name, name)
		n, err := ParseContentFormat(name)
		require.NoError(t, err)
		require.Equal(t, f.number, n)
		// Where another table has an entry it has the same one.
		if m, err := message.MediaTypeFromNumber(f.number); err == nil && m != message.AppCoapGroup {
			require.Equal(t, m.String(), name)
		}
	}
	for s, want := range map[string]uint16{
		"0": 0, "text/plain": 0, "TEXT/plain;charset=UTF-8": 0, "60": 60, "application/cbor": 60,
		"application/JSON": 50, "64999": 64999, "application/json (deflate)": 11050,
	} {
		n, err := ParseContentFormat(s)
		require.NoError(t, err)
		require.Equal(t, want, n)
	}
	for _, s := range []string{"", "-1", "65536", "application/x-unknown"} {
		_, err := ParseContentFormat(s)
		require.Error(t, err)
	}
	_, ok := ContentFormatName(1)
	require.False(t, ok)
}
