package wire

import (
	"fmt"
	"net/netip"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/stretchr/testify/require"
)

// GP-118: what the second item says goes in front of what is asked for, in order, and a
// zone nowhere (GP-57).
func TestFollowUp(t *testing.T) {
	server := URI{Scheme: "coap", Addr: netip.MustParseAddr("192.0.2.9"), Port: 5683}
	asked := message.Options{{ID: IfMatch, Value: []byte("m")}, {ID: URIPath, Value: []byte("r")}, {ID: URIQuery, Value: []byte("q")}}
	for name, tt := range map[string]struct {
		ref  *ReplyFromRef
		want string
	}{
		"none":      {nil, " 1=m 11=r 15=q"},
		"path":      {&ReplyFromRef{Path: []string{"s", "1"}}, " 1=m 11=s 11=1 11=r 15=q"},
		"name":      {&ReplyFromRef{Host: "h.example"}, " 1=m 3=h.example 11=r 15=q"},
		"addr":      {&ReplyFromRef{Addr: netip.MustParseAddr("fe80::1%eth0"), Port: 49, Path: []string{"s"}}, " 1=m 3=[fe80::1] 7=1 11=s 11=r 15=q"},
		"port only": {&ReplyFromRef{Port: 49, Path: []string{"s"}}, " 1=m 11=s 11=r 15=q"},
	} {
		t.Run(name, func(t *testing.T) {
			options, ok := ReplyFromValue{Server: server, Ref: tt.ref}.FollowUp(asked)
			require.True(t, ok)
			got := ""
			for _, o := range options {
				got += fmt.Sprintf(" %d=%s", o.ID, o.Value)
			}
			require.Equal(t, tt.want, got)
		})
	}
	for _, server := range []URI{{}, {Scheme: "coap", Host: "h"}, {Scheme: "https", Addr: server.Addr}, {Scheme: "coap", Addr: netip.MustParseAddr("ff02::1")}, {Scheme: "coap", Addr: netip.IPv6Unspecified()}} {
		_, ok := ReplyFromValue{Server: server}.FollowUp(asked)
		require.False(t, ok)
	}
}
