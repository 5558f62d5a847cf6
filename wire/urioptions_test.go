package wire

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/stretchr/testify/require"
)

func TestAppendOptions(t *testing.T) {
	for _, tt := range []struct {
		name, uri, dst string
		want           []string
	}{
		// GC-72
		{"group by address", "coap://[ff05::fd]/r", "[ff05::fd]:5683", []string{"Uri-Path(11)=72"}},
		{"group by name", "coap://all.example/r", "[ff05::fd]:5683", []string{"Uri-Host(3)=616c6c2e6578616d706c65", "Uri-Path(11)=72"}},
		{"group on another port", "coap://224.0.1.187:61616/", "224.0.1.187:61616", nil},
		// GP-57
		{"zones never", "coap://[fe80::1%25eth0]/", "[fe80::1%eth0]:5683", nil},
		{"zones never, to a proxy", "coap://[fe80::1%25eth0]/", "192.0.2.1:5683", []string{"Uri-Host(3)=5b666538303a3a315d"}},
		// FP-4, FP-5
		{"through a proxy", "coap://192.0.2.7/a//?x&", "192.0.2.1:5684", []string{
			"Uri-Host(3)=3139322e302e322e37", "Uri-Port(7)=1633",
			"Uri-Path(11)=61", "Uri-Path(11)=", "Uri-Path(11)=", "Uri-Query(15)=78", "Uri-Query(15)=",
		}},
		{"mapped destination", "coap://192.0.2.7/", "[::ffff:192.0.2.7]:5683", nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u, err := ParseURI(tt.uri)
			require.NoError(t, err)
			dst := netip.MustParseAddrPort(tt.dst)
			opts := u.AppendOptions(message.Options{{ID: MulticastTimeout}}, dst)
			require.Equal(t, MulticastTimeout, opts[0].ID)
			require.Equal(t, tt.want, optionStrings(opts[1:]))
		})
	}
}

// FP-9, GC-73
func TestExpandPathAbbrev(t *testing.T) {
	for value, want := range map[uint32]string{
		0: "/.well-known/core", 1: "/.well-known/rd", 2: "/.well-known/edhoc",
		301: "/.well-known/est/crts", 302: "/.well-known/est/sen", 303: "/.well-known/est/sren",
		304: "/.well-known/est/skg", 305: "/.well-known/est/skc", 306: "/.well-known/est/att",
		401: "/.well-known/brski/es", 402: "/.well-known/brski/rv", 403: "/.well-known/brski/vs",
	} {
		path, ok := ExpandPathAbbrev(value)
		require.True(t, ok)
		require.Equal(t, want, "/"+strings.Join(path, "/"))
	}
	_, ok := ExpandPathAbbrev(3)
	require.False(t, ok)
}
