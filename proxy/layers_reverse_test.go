package proxy

import (
	"net/netip"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/wire"
)

// OH-12, OH-18: a request whose outside names something the proxy stands in for is
// decrypted first or passed on as it is, as its route says; one that names nothing
// is the proxy's own (OH-10).
func TestLayerReverse(t *testing.T) {
	for name, through := range map[string]bool{"decrypt-first": false, "pass-through": true} {
		t.Run(name, func(t *testing.T) {
			inProtected(t, func(s *setup) {
				s.reverse = &Reverse{ServersPath: []string{"servers"}, Routes: []ReverseRoute{
					{Name: "boiler", Hosts: []string{"boiler"}, Scheme: "coap", Addr: netip.MustParseAddr("192.0.2.11"), Port: 5683, PassThrough: through},
					{Name: "nodes", Path: []string{"n"}, Scheme: "coap", Addr: netip.MustParseAddr("224.0.1.187"), Port: 5683, Group: true,
						Groups: []string{"nodes"}, PassThrough: through},
					{Name: "all", Scheme: "coap", Addr: netip.MustParseAddr("192.0.2.11"), Port: 5683, PassThrough: true},
				}}
				s.access.Clients[0].Networks = prefixes("198.18.0.0/16") // whom the pass-through needs
			}, func(g *gateway, p *pairs) {
				c, server := g.peer(phoneAddr), g.peer(member1, "224.0.1.187")
				m, open := p.seal(t, msg(con, codes.GET, "a", opt(wire.URIPath, "r")), "phone")
				m.Options = insertOption(m.Options, wire.URIHost, []byte("boiler"))
				c.ask(m)
				q := server.request()
				if through {
					require.Equal(t, codes.POST, q.Code)
					require.Equal(t, m.Payload, q.Payload)
					require.Zero(t, p.layers.tried)
					server.answer(q, ack, "x")
					c.expect("ACK 2.05 |x")
				} else {
					require.Equal(t, "CON 0.01 11=72 16=10", describe(&q.Message))
					server.answer(q, ack, "hello")
					c.expectProtected(p, open, "ACK 2.05 |hello")
				}

				// Nothing outside: the proxy's, whatever a route for everything says.
				open = c.askProtected(p, msg(con, codes.GET, "b", uri("coap://192.0.2.11/s")), "phone")
				server.answer(server.request(), ack, "hello")
				c.expectProtected(p, open, "ACK 2.05 |hello")

				// A server that a group's Reply-From has announced goes with its group.
				c.ask(msg(non, codes.GET, "c", opt(wire.URIPath, "n"), timeout(2)))
				server.answer(server.request(), non, "")
				announced := c.take()
				require.Len(t, announced, 1)
				m, open = p.seal(t, msg(con, codes.GET, "d", opt(wire.URIPath, "r")), "phone")
				m.Options = insertOption(m.Options, wire.URIHost, []byte("192.0.2.11"))
				c.ask(m)
				q = server.request()
				require.Equal(t, through, wire.Has(q.Options, wire.OSCORE))
				server.answer(q, ack, "x")
				if !through {
					c.expectProtected(p, open, "ACK 2.05 |x")
				}
			})
		})
	}
}
