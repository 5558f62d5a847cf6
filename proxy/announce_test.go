package proxy

import (
	"encoding/hex"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// GP-53, GP-101: what a server is announced as takes the place of its address.
// GP-128: a legacy client is told an address, or nothing.
func TestAnnouncedServer(t *testing.T) {
	address := wire.ReplyFromValue{Server: wire.URI{Scheme: "coap+tcp", Addr: netip.MustParseAddr("192.0.2.7"), Port: 61616}}
	behind := wire.ReplyFromValue{Server: address.Server, Ref: &wire.ReplyFromRef{Path: []string{"s1"}}}
	named := wire.ReplyFromValue{Server: wire.URI{Scheme: "coap", Host: "lamp.example", Port: 5683}}
	forwarding := hex.EncodeToString(wire.AppendResponseForwarding(nil, wire.TransportTCP, netip.MustParseAddrPort("192.0.2.7:61616")))
	for _, test := range []struct {
		name       string
		announced  wire.ReplyFromValue
		forwarding string
	}{
		{"an address", address, forwarding},
		{"an address and a second item", behind, ""},
		{"a name", named, ""},
	} {
		for _, dialect := range []exchange.Dialect{exchange.Draft07, exchange.Legacy, exchange.Both} {
			t.Run(test.name+" "+dialect.String(), func(t *testing.T) {
				numbers := wire.DefaultNumbers()
				x := &groupRequest{front: &Front{FrontConfig: FrontConfig{Numbers: &numbers}}, dialect: dialect}
				value := test.announced.Append(nil)
				var s relayScratch
				options := s.relayOptions(x, &exchange.Response{From: netip.MustParseAddrPort("198.51.100.1:5683"), ReplyFrom: value, GroupPort: 5683})
				got, ok := wire.First(options, numbers.ReplyFrom)
				require.Equal(t, dialect != exchange.Legacy, ok)
				if ok {
					require.Equal(t, value, got)
				}
				got, ok = wire.First(options, numbers.ResponseForwarding)
				require.Equal(t, dialect != exchange.Draft07 && test.forwarding != "", ok)
				require.Equal(t, ok, len(got) > 0)
				if ok {
					require.Equal(t, test.forwarding, hex.EncodeToString(got))
				}
			})
		}
	}
}
