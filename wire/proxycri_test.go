package wire

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// FP-3, FP-39: what is written is read again as the same target.
func TestAppendProxyCRI(t *testing.T) {
	for _, s := range []string{"coap://[2001:db8::1]/", "coap://192.0.2.7:61616/a/b%20c?x=1&y", "coap://boiler.example/t", "coaps+tcp://[fe80::1%253]/x",
		"coap://h.example:7/?q", "http://www.example:8080/a"} {
		want, err := ParseURI(s)
		require.NoError(t, err)
		value, ok := want.AppendProxyCRI([]byte{1})
		require.True(t, ok)
		got, err := ParseProxyCRI(value[1:])
		require.NoError(t, err, s)
		require.Equal(t, want.String(), got.String())
	}
	long := URI{Scheme: "coap", Addr: netip.MustParseAddr("192.0.2.7"), Path: []string{strings.Repeat("a", 255), strings.Repeat("a", 255), strings.Repeat("a", 255), strings.Repeat("a", 255)}}
	value, ok := long.AppendProxyCRI([]byte{1})
	require.False(t, ok)
	require.Equal(t, []byte{1}, value)
}
