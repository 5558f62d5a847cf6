package proxy

import (
	"net/netip"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/endpoint"
	"coapproxy/wire"
)

const serverURI = "coap://192.0.2.11/r"

// FP-30: type, Message ID and Token belong to one leg each. A response that is
// there soon comes with the ACK; otherwise the ACK comes first, and the response
// as a message of its own (RFC 7252 §5.2).
func TestUnicast(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1)
		c.ask(msg(con, codes.POST, "tok", uri(serverURI), opt(wire.ContentFormat, "")))
		q := a.expect("CON 0.02 11=72 12= 16=10")[0]
		require.NotEqual(t, "tok", string(q.Token))
		require.GreaterOrEqual(t, len(q.Token), 4) // FP-31
		a.answer(q, ack, "soon", opt(wire.ETag, "e"), opt(wire.MaxAge, "\x05"))
		got := c.expect("ACK 2.05 4=65 14=05 |soon")
		require.Equal(t, "tok", string(got[0].Token))
		require.Equal(t, c.id, got[0].ID)

		c.ask(msg(con, codes.GET, "tok", uri(serverURI)))
		q = a.request()
		g.after(endpoint.DefaultParams().ProcessingDelay - 1)
		c.expect()
		g.after(1)
		c.expect("ACK")
		a.answer(q, ack, "later")
		c.react(c.expect("CON 2.05 |later")[0], ack)

		c.ask(msg(non, codes.GET, "tok", uri(serverURI)))
		q = a.request()
		require.Equal(t, con, q.Type)
		a.react(q, ack)
		a.answer(q, con, "separate")
		a.expect("ACK")
		c.expect("NON 2.05 |separate")
	})
}

// FP-32, FP-33, FP-34: what the client gets when the server does not answer, or
// in the wrong way.
func TestUnicastFailures(t *testing.T) {
	for name, tt := range map[string]struct {
		answer func(a *peer, q received)
		wait   time.Duration
		want   string
	}{
		"reset":                  {func(a *peer, q received) { a.react(q, rst) }, 0, "ACK 5.02 |the server rejected the message"},
		"unsafe option":          {func(a *peer, q received) { a.answer(q, ack, "", opt(60002, "")) }, 0, "ACK 5.02 |the server's response has option 60002, which cannot be processed"},
		"code of class 3":        {func(a *peer, q received) { a.respond(q, ack, 0x60, "") }, 0, "ACK 5.02 |the server answered with code 3.00"},
		"never acknowledged":     {func(*peer, received) {}, 93 * time.Second, "CON 5.04 |no response from the server in time"},
		"acknowledged, no more":  {func(a *peer, q received) { a.react(q, ack) }, 93 * time.Second, "CON 5.04 |no response from the server in time"},
		"an answer of its own":   {func(a *peer, q received) { a.respond(q, ack, codes.NotFound, "no") }, 0, "ACK 4.04 |no"},
		"an error of the server": {func(a *peer, q received) { a.respond(q, ack, codes.GatewayTimeout, "chain") }, 0, "ACK 5.04 |chain"},
	} {
		t.Run(name, func(t *testing.T) {
			inGateway(t, nil, func(g *gateway) {
				c, a := g.peer(userAddr), g.peer(member1)
				c.ask(msg(con, codes.GET, "t", uri(serverURI)))
				tt.answer(a, a.request())
				if tt.wait > 0 {
					g.after(time.Second)
					c.expect("ACK")
					g.after(tt.wait)
				}
				got := c.take()
				require.NotEmpty(t, got)
				require.Equal(t, tt.want, describe(&got[0].Message))
				if got[0].Type == con {
					c.react(got[0], ack)
				}
			})
		})
	}
	inGateway(t, nil, func(g *gateway) { // nobody listens there
		g.peer("192.0.2.11:1")
		c := g.peer(userAddr)
		c.ask(msg(con, codes.GET, "t", uri(serverURI)))
		c.expect("ACK 5.02 |the server cannot be reached")
	})
}

// FP-34, FP-35: what the proxy has no room for gets 5.03 with the time to wait.
func TestUnicastOverload(t *testing.T) {
	inGateway(t, func(s *setup) {
		s.client.NStart = func(netip.AddrPort) int { return 1 }
		s.client.Queue = 1
	}, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1)
		for _, token := range []string{"a", "b", "c"} {
			c.ask(msg(con, codes.GET, token, uri(serverURI)))
		}
		c.expect("ACK 5.03 14=01 |too many requests wait for this server")
		a.answer(a.request(), ack, "a")
		c.expect("ACK 2.05 |a")
		a.answer(a.request(), ack, "b")
		c.expect("ACK 2.05 |b")
	})
}

// FP-84: No-Response is obeyed towards the client, by class and for errors of
// the proxy, and not forwarded.
func TestUnicastNoResponse(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1)
		ask := func(value string) {
			c.ask(msg(con, codes.POST, "t", uri(serverURI), opt(wire.NoResponse, value)))
			a.answer(a.expect("CON 0.02 11=72 16=10")[0], ack, "done")
		}
		ask("\x02")
		c.expect("ACK")
		ask("\x18")
		c.expect("ACK 2.05 |done")
		ask("")
		c.expect("ACK 2.05 |done")
		c.ask(msg(con, codes.POST, "t", uri("http://192.0.2.11/r"), opt(wire.NoResponse, "\x10")))
		c.expect("ACK")
		c.ask(msg(non, codes.POST, "t", uri("http://192.0.2.11/r"), opt(wire.NoResponse, "\x10")))
		c.expect()
	})
}

// FP-84: a server that is told of No-Response and says nothing has done what the
// client wants, if it has the request at all; what it says all the same counts.
func TestForwardedNoResponse(t *testing.T) {
	inGateway(t, func(s *setup) { s.route.ForwardNoResponse, s.client.KeepType = true, true }, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1)
		ask := func(typ message.Type) received {
			c.ask(msg(typ, codes.POST, "t", uri(serverURI), opt(wire.NoResponse, "\x02")))
			return a.take()[0]
		}
		q := ask(con)
		require.Equal(t, " 11=72 16=10 258=02", optionsOf(q.Options))
		a.react(q, ack)
		g.after(2 * time.Minute)
		c.expect("ACK")
		ask(non)
		g.after(2 * time.Minute)
		c.expect()
		ask(con) // not even an ACK
		g.after(2 * time.Minute)
		require.Equal(t, codes.GatewayTimeout, lastOf(c.take()).Code)
		a.take()
		a.answer(ask(con), ack, "done")
		c.expect("ACK")
	})
}

func lastOf(got []received) received { return got[len(got)-1] }

// A request to one server with a Multicast-Timeout is a plain one: the option is
// taken away, and there is one response without an address, also for T' = 0.
func TestTimeoutToOneServer(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1)
		for _, seconds := range []uint32{0, 60} {
			c.ask(msg(con, codes.GET, "t", timeout(seconds), uri(serverURI)))
			q := a.expect("CON 0.01 11=72 16=10")[0]
			a.answer(q, ack, "one", opt(wire.ReplyFrom, "kept"))
			c.expect("ACK 2.05 248=6b657074 |one")

			c.ask(msg(non, codes.GET, "t", timeout(seconds), uri(serverURI)))
			a.answer(a.request(), ack, "two")
			c.expect("NON 2.05 |two")

			c.ask(msg(con, codes.GET, "t", timeout(seconds), uri(serverURI)))
			q = a.request()
			g.after(time.Second)
			c.expect("ACK")
			a.react(q, rst)
			c.react(c.expect("CON 5.02 |the server rejected the message")[0], ack)

			c.ask(msg(non, codes.GET, "t", timeout(seconds), uri(serverURI), opt(wire.NoResponse, "\x02")))
			a.answer(a.request(), ack, "three")
			c.expect()

			c.ask(msg(con, codes.GET, "t", timeout(seconds), uri("coap://"+proxy4+"/.well-known/core")))
			c.expect("ACK 2.05 4=e3b0c44298fc1c14 12=28")
		}
	})
}

// An Early Stop Request ends such a request, too.
func TestStopOneServer(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1)
		c.ask(msg(non, codes.GET, "t", timeout(60), uri(serverURI)))
		q := a.request()
		c.ask(earlyStop(con, "t"))
		c.expect("ACK")
		a.answer(q, ack, "unwanted")
		c.expect()
	})
}

// What is sent to the proxy by multicast is not its business: it neither
// proxies (GC-94) nor answers with an error (GC-95).
func TestMulticastToProxy(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1)
		group := addrPort("224.0.1.187:5683")
		g.outer.Join(group.Addr())
		for _, m := range []wire.Message{
			msg(non, codes.GET, "t", uri(serverURI)),
			msg(con, codes.GET, "t", uri(serverURI)),
			msg(non, codes.GET, "t", timeout(1), uri(nodesURI)),
			msg(non, codes.GET, "t", opt(wire.URIPath, "r")),
			msg(non, codes.GET, "t", opt(wire.URIPath, ".well-known"), opt(wire.URIPath, "core")),
			msg(con, codes.GET, "t"),
			msg(non, codes.GET, "t", opt(60001, "critical")),
			{Type: con},
		} {
			c.id++
			m.ID = c.id
			c.transmit(group, &m)
			c.expect()
			a.expect()
		}
	})
}
