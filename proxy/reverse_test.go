package proxy

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

const (
	member2 = "192.0.2.12:5683"
	item1   = "248=82208144c6336401" // the proxy itself
	behind1 = item1 + "82f68144c000020b"
	behind2 = item1 + "82f68144c000020c"
)

// standingIn has the proxy stand in for the group "nodes" at the path /n and for
// member1 at the name boiler.
func standingIn(servers ServersAs, more ...func(*setup)) func(*setup) {
	return func(s *setup) {
		s.access.Clients[0].Forward = nil // only what was announced may be reached
		s.reverse = &Reverse{ServersPath: []string{"servers"}, Routes: []ReverseRoute{
			{Name: "nodes", Path: []string{"n"}, Scheme: "coap", Addr: netip.MustParseAddr("224.0.1.187"), Port: 5683, Group: true,
				Groups: []string{"nodes"}, Servers: servers},
			{Name: "loop", Hosts: []string{"loop.example"}, Scheme: "coap", Addr: netip.MustParseAddr(proxy4), Port: 5683},
		}}
		for _, f := range more {
			f(s)
		}
	}
}

func segments(texts ...string) []message.Option {
	var out []message.Option
	for _, s := range texts {
		out = append(out, opt(wire.URIPath, s))
	}
	return out
}

// askGroup asks the group by the reverse side and has the members answer.
func askGroup(c *peer, members ...*peer) {
	c.ask(msg(non, codes.GET, "t", append(segments("n", "r"), timeout(2))...))
	for _, m := range members {
		m.answer(m.request(), non, "")
	}
}

// GP-102: a mapping lasts for its lifetime after its last use, and a follow-up is
// a use. GP-56, GP-112: it needs no other permission than that of the group.
func TestMappingLifetime(t *testing.T) {
	inGateway(t, standingIn(ByHost), func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		askGroup(c, a)
		c.expect("NON 2.05 " + behind1)
		follow := func() { c.ask(msg(non, codes.GET, "u", append(segments("x"), opt(wire.URIHost, "192.0.2.11"))...)) }
		for range 3 {
			g.after(24*time.Hour - 10*time.Second) // longer than a server counts as heard (FP-11)
			follow()
			a.answer(a.expect("CON 0.01 11=78 16=10")[0], ack, "followed")
			c.expect("NON 2.05 |followed")
		}
		g.after(24 * time.Hour)
		require.Equal(t, 1, g.mappings.Len())
		follow()
		c.expect("NON 4.04 |this is a proxy; name a target with Proxy-Uri or Proxy-Scheme")
		require.Zero(t, g.mappings.Len())
	})
}

// The table is bounded: what was not used for the longest time goes.
func TestMappingsBounded(t *testing.T) {
	inGateway(t, standingIn(ByHost, func(s *setup) { s.mappings.Max = 1 }), func(g *gateway) {
		c, a, b := g.peer(userAddr), g.peer(member1, "224.0.1.187"), g.peer(member2, "224.0.1.187")
		askGroup(c, a, b)
		c.expect("NON 2.05 "+behind1, "NON 2.05 "+behind2)
		c.ask(msg(non, codes.GET, "u", opt(wire.URIHost, "192.0.2.11")))
		c.expect("NON 4.04 |this is a proxy; name a target with Proxy-Uri or Proxy-Scheme")
		c.ask(msg(non, codes.GET, "v", opt(wire.URIHost, "192.0.2.12")))
		b.request()
		require.EqualValues(t, 1, g.stats.MappingsEvicted.Load())
	})
}

// GP-112: a client that may not follow up does not reach an announced server.
func TestAnnouncedAndDenied(t *testing.T) {
	inGateway(t, standingIn(ByHost, func(s *setup) {
		other := s.access.Clients[0]
		other.FollowUp, other.Networks = false, prefixes("203.0.114.0/24")
		s.access.Clients = append(s.access.Clients, other)
	}), func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		askGroup(c, a)
		c.expect("NON 2.05 " + behind1)
		other := g.peer("203.0.114.1:1")
		other.ask(msg(non, codes.GET, "u", opt(wire.URIHost, "192.0.2.11")))
		other.expect("NON 4.01 14= |target not allowed")
		stranger := g.peer("198.51.100.77:1")
		stranger.ask(msg(non, codes.GET, "u", opt(wire.URIHost, "192.0.2.11")))
		stranger.expect("NON 4.01 14= |client not identified")
		a.expect()
	})
}

// GP-54: each server has a port of its own, also for others who ask the group;
// when there is none left, a path stands for the server. An unused one leads
// nowhere, and one whose time is over is given to another server.
func TestOwnAddresses(t *testing.T) {
	pool := func(s *setup) { s.mappings.Pool = []netip.AddrPort{addrPort(proxy4 + ":6000")} }
	inGateway(t, standingIn(OwnAddress, pool), func(g *gateway) {
		c, a, b := g.peer(userAddr), g.peer(member1, "224.0.1.187"), g.peer(member2, "224.0.1.187")
		askGroup(c, a, b)
		got := c.take()
		require.Len(t, got, 2)
		require.Equal(t, "NON 2.05 248=82208244c6336401191770", describe(&got[0].Message))
		value, _ := wire.First(got[1].Options, wire.ReplyFrom)
		v, err := wire.ParseReplyFrom(value)
		require.NoError(t, err)
		require.Len(t, v.Ref.Path, 2)
		require.EqualValues(t, 1, g.stats.PoolExhausted.Load())

		m := msg(con, codes.GET, "u", segments("deep", "x")...)
		m.ID = 1
		c.transmit(addrPort(proxy4+":6000"), &m)
		a.answer(a.expect("CON 0.01 11=64656570 11=78 16=10")[0], ack, "a")
		require.Equal(t, addrPort(proxy4+":6000"), c.expect("ACK 2.05 |a")[0].from)
		c.ask(msg(con, codes.GET, "v", segments(v.Ref.Path...)...))
		b.answer(b.expect("CON 0.01 16=10")[0], ack, "b")
		c.expect("ACK 2.05 |b")

		g.after(24*time.Hour + time.Second)
		m.ID = 2
		c.transmit(addrPort(proxy4+":6000"), &m)
		c.expect("ACK 4.04 |no server is behind this address")
		askGroup(c, b)
		c.expect("NON 2.05 248=82208244c6336401191770")
		a.take()
		m.ID = 3
		c.transmit(addrPort(proxy4+":6000"), &m)
		b.answer(b.expect("CON 0.01 11=64656570 11=78 16=10")[0], ack, "b")
		c.expect("ACK 2.05 |b")
	})
}

// GP-128: a client of the older generation gets an address of its own for each
// server if there is one, and none at all otherwise.
func TestReverseForLegacyClients(t *testing.T) {
	old := func(s *setup) { s.access.Clients[0].Identity.Dialect = exchange.Legacy }
	inGateway(t, standingIn(ByHost, old, func(s *setup) { s.mappings.Pool = []netip.AddrPort{addrPort(proxy4 + ":6000")} }), func(g *gateway) {
		c, a, b := g.peer(userAddr), g.peer(member1, "224.0.1.187"), g.peer(member2, "224.0.1.187")
		askGroup(c, a, b)
		c.expect("NON 2.05 96=8301d9010444c6336401191770", "NON 2.05")
	})
}

// GP-9: a port is written when it is not that of the proxy.
func TestAnnouncedPort(t *testing.T) {
	inGateway(t, standingIn(ByHost, func(s *setup) {
		s.reverse.Routes[0].Announce, s.reverse.Routes[0].AnnouncePort = netip.MustParseAddr("192.0.2.200"), 7000
	}), func(g *gateway) {
		c, a, b := g.peer(userAddr), g.peer(member1, "224.0.1.187"), g.peer("192.0.2.12:7000")
		askGroup(c, a)
		c.expect("NON 2.05 248=82208244c00002c8191b5882f68244c000020b191633")
		g.after(3 * time.Second)
		c.ask(msg(non, codes.GET, "t", append(segments("n", "r"), timeout(2))...))
		b.answer(a.request(), non, "") // from another port than that of the group
		c.expect("NON 2.05 248=82208244c00002c8191b5882f68144c000020c")
		for token, option := range map[string][]message.Option{"1": nil, "2": {opt(wire.URIPort, "\x1b\x58")}} {
			c.ask(msg(con, codes.GET, token, append(option, opt(wire.URIHost, "192.0.2.12"))...))
			b.answer(b.request(), ack, token)
			c.expect("ACK 2.05 |" + token)
		}
		c.ask(msg(con, codes.GET, "3", opt(wire.URIHost, "192.0.2.11"))) // at the port of the proxy nobody was announced
		c.expect("ACK 4.04 |this is a proxy; name a target with Proxy-Uri or Proxy-Scheme")
	})
}

// A group request by the reverse side is one like any other: GP-3, GP-25, GP-26,
// GP-41. FP-8: a proxy request that names the proxy takes the same way, and no
// way leads in a circle.
func TestReverseGroupRules(t *testing.T) {
	inGateway(t, standingIn(Direct), func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		n := segments("n", "r")
		c.ask(msg(con, codes.GET, "t", n...))
		c.expect("ACK 4.00 2= |Please use Multicast-Timeout")
		c.ask(msg(con, codes.GET, "t", append(n, timeout(1), timeout(1))...))
		c.expect("ACK 4.02 |option 2 (Multicast-Timeout) is repeated")
		c.ask(msg(con, codes.GET, "t", append(n, timeout(60))...))
		q := a.expect("NON 0.01 11=72 16=10")[0]
		a.answer(q, non, "")
		c.react(c.expect("ACK", "CON 2.05 "+from1)[1], ack)
		c.ask(msg(con, codes.GET, "t", append(n, timeout(60))...))
		c.expect("ACK 4.00 14= |Token reuse: the exchange with this Token was running and is stopped")
		c.ask(msg(con, codes.GET, "u", append(n, timeout(60))...))
		q = a.request()
		c.ask(earlyStop(con, "u"))
		a.answer(q, non, "")
		c.expect("ACK", "ACK")
		c.ask(msg(con, codes.GET, "v", uri("coap://"+proxy4+"/n/r"), timeout(2)))
		a.answer(a.request(), non, "")
		c.react(c.expect("ACK", "CON 2.05 "+from1)[1], ack)
		c.ask(msg(con, codes.GET, "w", opt(wire.URIHost, "loop.example")))
		c.expect("ACK 4.04 |this is a proxy; name a target with Proxy-Uri or Proxy-Scheme")
	})
}

// GP-102: what a next reverse-proxy announced is replaced by a target here that
// leads there.
func TestMappingToAnnouncedTarget(t *testing.T) {
	for name, tt := range map[string]struct{ announced, want string }{
		"one address":  {"82208144c0000209" + "82f68244c0000207190400", "coap 192.0.2.9:5683 3=3139322e302e322e37 7=0400 11=61"},
		"by path":      {"82208244c0000209190400" + "82f582617361" + "31", "coap 192.0.2.9:1024 11=73 11=31 11=61"},
		"own address":  {"82268144c0000209", "coap+tcp 192.0.2.9:5683 11=61"},
		"a host, IPv6": {"82208144c0000209" + "82f681" + "5020010db8000000000000000000000001", "coap 192.0.2.9:5683 3=5b323030313a6462383a3a315d 11=61"},
	} {
		t.Run(name, func(t *testing.T) {
			var stats Stats
			numbers := wire.DefaultNumbers()
			v := &Reverse{ServersPath: []string{"servers"}, Mappings: NewMappings(MappingsConfig{Lifetime: time.Hour, Max: 9, Stats: &stats, Log: zap.NewNop()})}
			a := &announcing{reverse: v, scheme: "coap+tcp", local: addrPort("198.51.100.1:5683"), found: &found{route: &ReverseRoute{Groups: []string{"g"}}}}
			value, _ := a.announce(&exchange.Response{ReplyFrom: unhex(t, tt.announced), GroupPort: 1})
			got, err := wire.ParseReplyFrom(value)
			require.NoError(t, err)
			require.Equal(t, "coap+tcp://198.51.100.1", got.ServerURI())

			r := &exchange.Request{Method: codes.GET, Local: a.local, Options: segments(append(got.Ref.Path, "a")...)}
			p, ok := place(r, nil)
			require.True(t, ok)
			h, ok := v.find(&p, time.Now())
			require.True(t, ok)
			require.Equal(t, []string{"g"}, h.to.groups)
			options, f := h.forward(r, &numbers, nil)
			require.Nil(t, f)
			text := h.to.scheme + " " + netip.AddrPortFrom(h.to.addr, h.to.port).String()
			for _, o := range options {
				text += fmt.Sprintf(" %d=%x", o.ID, o.Value)
			}
			require.Equal(t, tt.want, text)
		})
	}
}

// What cannot be announced is not: neither garbage of a next hop, nor what is no server
// of CoAP's, nor the address that stands for all of them, and least of all the server's.
func TestNothingToAnnounce(t *testing.T) {
	v := &Reverse{Mappings: NewMappings(MappingsConfig{Lifetime: time.Hour, Max: 9, Stats: &Stats{}, Log: zap.NewNop()})}
	a := &announcing{reverse: v, scheme: "coap", local: addrPort("0.0.0.0:5683"), found: &found{route: &ReverseRoute{}}}
	group := wire.ReplyFromValue{Server: wire.URI{Scheme: "coap", Addr: netip.MustParseAddr("224.0.1.187"), Port: 5683}}.Append(nil)
	web := wire.ReplyFromValue{Server: wire.URI{Scheme: "http", Addr: netip.MustParseAddr("192.0.2.9"), Port: 80}}.Append(nil)
	for _, p := range []exchange.Response{{From: addrPort("192.0.2.9:5683")}, {ReplyFrom: []byte("garbage")}, {ReplyFrom: group}, {ReplyFrom: web}} {
		value, _ := a.announce(&p)
		require.NotNil(t, value)
		require.Empty(t, value)
	}
}

// The vectors of the reverse cases are what announce writes.
func TestReverseVectors(t *testing.T) {
	for _, tt := range []struct {
		servers       ServersAs
		local, server string
		value         string
	}{
		{ByHost, "[2001:db8:f::2]:5683", "[2001:db8::1]:5683", "8226815020010db8000f0000000000000000000282f6815020010db8000000000000000000000001"},
		{ByHost, "[2001:db8:f::2]:5683", "[2001:db8::1]:61616", "8226815020010db8000f0000000000000000000282f6825020010db800000000000000000000000119f0b0"},
		{ByHost, "[2001:db8:f::2]:7683", "[2001:db8::1]:5683", "8226825020010db8000f00000000000000000002191e0382f6825020010db8000000000000000000000001191633"},
	} {
		v := &Reverse{Mappings: NewMappings(MappingsConfig{Lifetime: time.Hour, Max: 9, Stats: &Stats{}, Log: zap.NewNop()})}
		a := &announcing{reverse: v, scheme: "coap+tcp", local: addrPort(tt.local), found: &found{route: &ReverseRoute{Servers: tt.servers}}}
		value, _ := a.announce(&exchange.Response{From: addrPort(tt.server)})
		require.Equal(t, tt.value, hex.EncodeToString(value))
	}
}

// HC-85: HTTP clients learn of servers by path, whatever the route says for CoAP clients
// and whatever the listener is bound to; it is the path that CoAP clients know. GP-102:
// it is announced as long as the mapping lasts, and looking does not prolong that.
func TestAnnouncedToHTTPClients(t *testing.T) {
	m := NewMappings(MappingsConfig{Lifetime: time.Hour, Max: 9, Stats: &Stats{}, Log: zap.NewNop(), Pool: []netip.AddrPort{addrPort("192.0.2.1:6000")}})
	v := &Reverse{Mappings: m, ServersPath: []string{"servers"}}
	server := &exchange.Response{From: addrPort("192.0.2.9:5683"), GroupPort: 5683}
	var values []string
	for _, kind := range []ServersAs{ByHost, ByPath, OwnAddress} {
		a := &announcing{reverse: v, scheme: "https", local: addrPort("[::]:443"), legacy: true, found: &found{route: &ReverseRoute{Servers: kind}}}
		value, path := a.announce(server)
		values = append(values, hex.EncodeToString(value))
		require.Len(t, path, 2)
		require.Equal(t, "servers", path[0])
	}
	require.Equal(t, values[0], values[1])
	require.Equal(t, values[0], values[2])
	a := &announcing{reverse: v, scheme: "coap", local: addrPort("192.0.2.1:5683"), found: &found{route: &ReverseRoute{Servers: ByPath}}}
	_, path := a.announce(server)
	now := time.Now()
	for range 2 {
		require.True(t, m.Announced(path[1], now.Add(59*time.Minute)))
	}
	require.False(t, m.Announced(path[1], now.Add(2*time.Hour)))
	require.False(t, m.Announced("", now))
	require.False(t, m.Announced("servers", now))
}

// What a member has created is where it is announced, if that is a path.
func TestAnnouncedLocation(t *testing.T) {
	for servers, want := range map[ServersAs]string{ByHost: "n/made", ByPath: "servers/*/base/made"} {
		inGateway(t, standingIn(servers, func(s *setup) { s.reverse.Routes[0].Base = []string{"base"} }), func(g *gateway) {
			c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
			c.ask(msg(non, codes.GET, "t", append(segments("n", "r"), timeout(2))...))
			q := a.request()
			m := msg(non, codes.Created, string(q.Token), opt(wire.LocationPath, "base"), opt(wire.LocationPath, "made"))
			m.ID = 77
			a.transmit(q.from, &m)
			got := c.take()
			require.Len(t, got, 1)
			var path []string
			for s := range wire.All(got[0].Options, wire.LocationPath) {
				if len(s) == 10 {
					s = []byte("*")
				}
				path = append(path, string(s))
			}
			require.Equal(t, want, strings.Join(path, "/"))
		})
	}
}
