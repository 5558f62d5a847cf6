package proxy

import (
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/wire"
)

// earlyStop is an Early Stop Request for the exchange with the Token.
func earlyStop(typ message.Type, token string) wire.Message {
	return msg(typ, codes.GET, token, timeout(0))
}

// GP-40, GP-41, GP-42: an Early Stop Request for a running exchange ends it.
// Nothing is sent to the group; the client gets an ACK for a CON request, and
// nothing for a NON one. Later responses are late.
func TestEarlyStop(t *testing.T) {
	for name, tt := range map[string]struct {
		typ  message.Type
		want []string
	}{"CON": {con, []string{"ACK"}}, "NON": {non, nil}} {
		t.Run(name, func(t *testing.T) {
			inGateway(t, nil, func(g *gateway) {
				c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
				c.ask(groupGet(non, "t", 60))
				q := a.request()
				a.answer(q, non, "one")
				c.expect("NON 2.05 " + from1 + " |one")
				c.ask(earlyStop(tt.typ, "t"))
				c.expect(tt.want...)
				a.answer(q, non, "two")
				a.answer(q, con, "three")
				a.expect("RST")
				c.expect()
				require.EqualValues(t, 1, g.stats.EarlyStops.Load())
				require.EqualValues(t, 2, g.groups.Late.Load())

				// GP-43: as long as a repeated stop may be on its way, it is
				// answered as the first.
				g.after(endpoint.ExchangeLifetime - 1)
				c.ask(earlyStop(tt.typ, "t"))
				c.expect(tt.want...)
				g.after(1)
				c.ask(earlyStop(con, "t"))
				c.expect("ACK 4.04 |this is a proxy; name a target with Proxy-Uri or Proxy-Scheme")
			})
		})
	}
}

// GP-43: an exchange that T' has ended, and one that never was.
func TestEarlyStopTooLate(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c := g.peer(userAddr)
		c.ask(groupGet(non, "t", 5))
		g.after(5 * time.Second)
		c.ask(earlyStop(con, "t"))
		c.expect("ACK")
		c.ask(earlyStop(con, "u"))
		c.expect("ACK 4.04 |this is a proxy; name a target with Proxy-Uri or Proxy-Scheme")

		// One that was refused was no exchange.
		c.ask(msg(con, codes.GET, "v", timeout(5), uri("coap://239.1.1.1/r")))
		c.expect("ACK 4.01 14= |group not allowed")
		c.ask(earlyStop(con, "v"))
		c.expect("ACK 4.04 |this is a proxy; name a target with Proxy-Uri or Proxy-Scheme")
	})
}

// GP-40: what is not an Early Stop Request, or one for another exchange. The
// exchange goes on, unless the request reuses its Token (GP-25).
func TestNoEarlyStop(t *testing.T) {
	for name, tt := range map[string]struct {
		m     wire.Message
		from  string
		stops bool
	}{
		"other Token":     {earlyStop(con, "u"), userAddr, false},
		"longer Token":    {earlyStop(con, "tt"), userAddr, false},
		"other port":      {earlyStop(con, "t"), "203.0.113.5:40001", false},
		"other address":   {earlyStop(con, "t"), "203.0.113.6:40000", false},
		"T' above 0":      {msg(con, codes.GET, "t", timeout(1)), userAddr, true},
		"POST":            {msg(con, codes.POST, "t", timeout(0)), userAddr, true},
		"with a path":     {msg(con, codes.GET, "t", timeout(0), opt(wire.URIPath, "r")), userAddr, true},
		"with a query":    {msg(con, codes.GET, "t", timeout(0), opt(wire.URIQuery, "r")), userAddr, true},
		"with a host":     {msg(con, codes.GET, "t", timeout(0), opt(wire.URIHost, "r")), userAddr, true},
		"with a port":     {msg(con, codes.GET, "t", timeout(0), opt(wire.URIPort, "r")), userAddr, true},
		"abbreviated":     {msg(con, codes.GET, "t", timeout(0), opt(wire.URIPathAbbrev, "")), userAddr, true},
		"with Proxy-Uri":  {groupGet(con, "t", 0), userAddr, true},
		"with a scheme":   {msg(con, codes.GET, "t", timeout(0), opt(wire.ProxyScheme, "coap")), userAddr, true},
		"with Proxy-Cri":  {msg(con, codes.GET, "t", timeout(0), opt(wire.ProxyCRI, "x")), userAddr, true},
		"no timeout":      {msg(con, codes.GET, "t"), userAddr, true},
		"scheme number":   {msg(con, codes.GET, "t", timeout(0), opt(wire.ProxySchemeNumber, "")), userAddr, true},
		"malformed T'":    {msg(con, codes.GET, "t", opt(wire.MulticastTimeout, "\x00\x00\x00\x00\x00")), userAddr, true},
		"unknown options": {msg(con, codes.GET, "t", timeout(0), opt(60000, "x")), userAddr, false},
	} {
		t.Run(name, func(t *testing.T) {
			inGateway(t, nil, func(g *gateway) {
				c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
				c.ask(groupGet(non, "t", 60))
				q := a.request()
				other := c
				if tt.from != userAddr {
					other = g.peer(tt.from)
				}
				other.ask(tt.m)
				other.take()
				a.take()
				a.answer(q, non, "")
				if name == "unknown options" { // still an Early Stop Request
					require.EqualValues(t, 1, g.stats.EarlyStops.Load())
					c.expect()
					return
				}
				require.Zero(t, g.stats.EarlyStops.Load())
				if tt.stops {
					require.EqualValues(t, 1, g.stats.TokenReuses.Load())
					c.expect()
				} else {
					c.expect("NON 2.05 " + from1)
				}
			})
		})
	}
}

// GP-25, GC-41: a group request with the Token of a running exchange stops that
// one and gets 4.00; nothing is forwarded. The repetition of a request with a
// new Message ID is one.
func TestTokenReuse(t *testing.T) {
	const refused = "4.00 14= |Token reuse: the exchange with this Token was running and is stopped"
	for name, tt := range map[string]struct {
		m    wire.Message
		want []string
	}{
		"repetition":    {groupGet(con, "t", 60), []string{"ACK " + refused}},
		"NON":           {groupGet(non, "t", 60), []string{"NON " + refused}},
		"other request": {msg(con, codes.POST, "t", timeout(1), uri("coap://[ff05::fd]/s")), []string{"ACK " + refused}},
		"T' = 0":        {groupGet(con, "t", 0), []string{"ACK " + refused}},
		"suppressed":    {groupGet(con, "t", 0, opt(wire.NoResponse, "\x1a")), []string{"ACK"}},
	} {
		t.Run(name, func(t *testing.T) {
			inGateway(t, nil, func(g *gateway) {
				c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
				c.ask(groupGet(non, "t", 60))
				q := a.request()
				c.ask(tt.m)
				c.expect(tt.want...)
				a.expect()
				a.answer(q, non, "")
				c.expect()
				require.EqualValues(t, 1, g.stats.TokenReuses.Load())
				require.EqualValues(t, 1, g.stats.Failures[exchange.TokenReused].Load())

				c.ask(groupGet(non, "t", 60)) // now it is free
				a.answer(a.request(), non, "")
				c.expect("NON 2.05 " + from1)
			})
		})
	}
}

// A request that is none to a group and reuses the Token stops the exchange,
// because its client could not tell the responses apart, and is carried out.
func TestTokenReuseByUnicast(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(groupGet(non, "t", 60))
		q := a.request()
		c.ask(msg(con, codes.GET, "t", uri("coap://192.0.2.11/s")))
		a.answer(q, non, "to the group")
		a.answer(a.request(), ack, "to the second")
		c.expect("ACK 2.05 |to the second")
	})
}

// GP-44: a RST for any relayed response ends the exchange.
func TestReset(t *testing.T) {
	for name, typ := range map[string]message.Type{"CON": con, "NON": non} {
		t.Run(name, func(t *testing.T) {
			inGateway(t, nil, func(g *gateway) {
				c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
				g.prove(userAddr)
				c.ask(groupGet(typ, "t", 60))
				q := a.request()
				for range 3 {
					a.answer(q, non, "")
				}
				got := c.take()
				second := got[len(got)-2]

				stranger := g.peer("203.0.113.6:40000")
				stranger.react(second, rst)
				wrong := second
				wrong.ID += 100
				c.react(wrong, rst)
				require.Zero(t, g.stats.ResetStops.Load())

				c.react(second, rst)
				require.EqualValues(t, 1, g.stats.ResetStops.Load())
				a.answer(q, non, "")
				c.expect()
				require.EqualValues(t, 1, g.groups.Late.Load())
				c.react(got[len(got)-1], rst)
				require.EqualValues(t, 1, g.stats.ResetStops.Load())
				if typ == non { // nobody waits for it any more
					require.EqualValues(t, 1, g.messages.ResetsReceived.Load())
				}

				// As after an Early Stop, the Token is known for a while.
				c.ask(earlyStop(con, "t"))
				c.expect("ACK")
			})
		})
	}
}

// A client that never acknowledges a response has gone: the exchange ends.
func TestVanishedClient(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(groupGet(con, "t", 600))
		q := a.request()
		a.answer(q, non, "")
		g.after(93 * time.Second)
		require.EqualValues(t, 1, g.stats.ResetStops.Load())
		require.Len(t, c.take(), 1+1+4) // the ACK, the response and its repetitions
		a.answer(q, non, "")
		c.expect()
	})
}

// Two exchanges of one client do not concern each other, nor do those of two
// clients with the same Token.
func TestExchangesAreApart(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, d := g.peer(userAddr), g.peer("203.0.113.6:40000")
		a := g.peer(member1, "224.0.1.187")
		c.ask(groupGet(non, "t", 60))
		c.ask(groupGet(non, "u", 60))
		d.ask(groupGet(non, "t", 60))
		q := a.take()
		require.Len(t, q, 3)
		c.ask(earlyStop(non, "t"))
		for i, payload := range []string{"c t", "c u", "d t"} {
			a.answer(q[i], non, payload)
		}
		c.expect("NON 2.05 " + from1 + " |c u")
		d.expect("NON 2.05 " + from1 + " |d t")
	})
}
