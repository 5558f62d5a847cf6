package proxy

import (
	"net/netip"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// What the proxy offers itself: an empty list of links.
func TestLocal(t *testing.T) {
	core := []message.Option{opt(wire.URIPath, ".well-known"), opt(wire.URIPath, "core")}
	for name, tt := range map[string]struct {
		method  codes.Code
		options []message.Option
		want    string
	}{
		"links":          {codes.GET, core, "2.05 12=28"},
		"wanted":         {codes.GET, append(core, opt(wire.Accept, "\x28")), "2.05 12=28"},
		"not acceptable": {codes.GET, append(core, opt(wire.Accept, "\x32")), "4.06 |only application/link-format"},
		"malformed T'":   {codes.GET, append(core, opt(wire.MulticastTimeout, "12345")), "2.05 12=28"}, // elective, and not ours here
		"method":         {codes.PUT, core, "4.05 14= |only GET"},
		"other path":     {codes.GET, core[1:], "4.04 |this is a proxy; name a target with Proxy-Uri or Proxy-Scheme"},
		"no path":        {codes.GET, nil, "4.04 |this is a proxy; name a target with Proxy-Uri or Proxy-Scheme"},
	} {
		t.Run(name, func(t *testing.T) {
			inGateway(t, nil, func(g *gateway) {
				for _, from := range []string{userAddr, "[2001:db8:5::1]:40000", "203.0.200.1:1"} {
					c := g.peer(from)
					c.ask(msg(con, tt.method, "t", append([]message.Option{}, tt.options...)...))
					c.expect("ACK " + tt.want)
				}
			})
		})
	}
	e := &end{}
	Local{}.Exchange(&exchange.Request{Method: codes.GET, Options: core}, e)
	require.Equal(t, 1, e.ends)
}

// A request that names no host with Proxy-Scheme is for the address it was sent
// to: the proxy itself, on every one of its addresses (FP-4, FP-8).
func TestProxySchemeWithoutHost(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		for from, to := range map[string]string{userAddr: proxy4, "[2001:db8:5::1]:40000": proxy6, "[fe80::5%lo]:40000": "fe80::100"} {
			c := g.peer(from)
			m := msg(con, codes.GET, "t", opt(wire.ProxyScheme, "coap"), opt(wire.URIPath, ".well-known"), opt(wire.URIPath, "core"))
			c.transmit(netip.AddrPortFrom(netip.MustParseAddr(to), 5683), &m)
			c.expect("ACK 2.05 12=28")
		}
	})
}
