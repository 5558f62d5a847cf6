package proxy

import (
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// The main job: one request in, T' removed (GP-28), one NON request out
// (GP-31), and every response relayed as it comes with the address of its
// server (GP-51, GP-52, GP-58, GC-31, GC-84) until T' is over (GP-32); then
// nothing more is said (GP-38). A CON request is acknowledged at once, and its
// responses are confirmable (GP-33).
func TestGroupRequest(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c := g.peer(userAddr)
		g.prove(userAddr)
		a, b := g.peer(member1, "224.0.1.187"), g.peer("192.0.2.12:61616", "224.0.1.187")
		// The second member answers from another port than the one it hears on.
		listens := g.peer("192.0.2.12:5683", "224.0.1.187")
		c.ask(groupGet(con, "tok", 60))
		c.expect("ACK")
		q := a.expect("NON 0.01 11=72 16=10")[0]
		listens.expect("NON 0.01 11=72 16=10")

		a.answer(q, non, "one")
		b.answer(q, non, "two", opt(wire.ETag, "e"))
		got := c.expect("CON 2.05 "+from1+" |one", "CON 2.05 4=65 248=82208244c000020c19f0b0 |two")
		for _, m := range got {
			require.Equal(t, "tok", string(m.Token))
			c.react(m, ack)
		}
		g.after(time.Minute - 1)
		a.answer(q, con, "one more")
		a.expect("ACK")
		got = c.expect("CON 2.05 " + from1 + " |one more")
		c.react(got[0], ack)

		g.after(1)
		a.answer(q, non, "late")
		a.expect()
		a.answer(q, con, "late") // GP-59
		a.expect("RST")
		c.expect()
		require.EqualValues(t, 2, g.groups.Late.Load())
		require.EqualValues(t, 3, g.stats.Relayed.Load())
	})
}

// GP-33: NON requests get NON responses and no ACK; an entry may say otherwise.
func TestResponseTypes(t *testing.T) {
	for name, tt := range map[string]struct {
		request byte
		entry   exchange.ResponseType
		want    []string
	}{
		"NON":           {1, exchange.Same, []string{"NON 2.05 " + from1}},
		"CON for NON":   {1, exchange.Confirmable, []string{"CON 2.05 " + from1}},
		"NON for CON":   {0, exchange.NonConfirmable, []string{"ACK", "NON 2.05 " + from1}},
		"CON, the same": {0, exchange.Same, []string{"ACK", "CON 2.05 " + from1}},
	} {
		t.Run(name, func(t *testing.T) {
			inGateway(t, func(s *setup) { s.access.Clients[0].Identity.Delivery.Type = tt.entry }, func(g *gateway) {
				c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
				typ := con
				if tt.request == 1 {
					typ = non
				}
				c.ask(groupGet(typ, "tok", 10))
				a.answer(a.request(), non, "")
				c.expect(tt.want...)
			})
		})
	}
}

// GP-34, GP-35, GP-37: with T' = 0 the client gets an ACK for a CON request and
// nothing else, and the servers are asked to say nothing (GC-32).
func TestNoResponsesWanted(t *testing.T) {
	for name, tt := range map[string]struct {
		m    wire.Message
		want []string // at the client
		out  string   // at the server
	}{
		"CON":                {groupGet(con, "t", 0), []string{"ACK"}, "NON 0.01 11=72 16=10 258=1a"},
		"NON":                {groupGet(non, "t", 0), nil, "NON 0.01 11=72 16=10 258=1a"},
		"own No-Response":    {groupGet(con, "t", 0, opt(wire.NoResponse, "\x08")), []string{"ACK"}, "NON 0.01 11=72 16=10 258=08"},
		"No-Response 0":      {groupGet(con, "t", 0, opt(wire.NoResponse, "")), []string{"ACK"}, "NON 0.01 11=72 16=10 258=1a"}, // GC-33
		"leading zeros":      {msg(con, codes.GET, "t", opt(wire.MulticastTimeout, "\x00\x00"), uri(nodesURI)), []string{"ACK"}, "NON 0.01 11=72 16=10 258=1a"},
		"Observe (GP-36)":    {groupGet(con, "t", 0, opt(wire.Observe, "")), []string{"ACK"}, "NON 0.01 11=72 16=10 258=1a"},
		"T' > 0":             {groupGet(non, "t", 1), nil, "NON 0.01 11=72 16=10"},
		"T' > 0, suppresses": {groupGet(non, "t", 1, opt(wire.NoResponse, "\x02")), nil, "NON 0.01 11=72 16=10 258=02"},
	} {
		t.Run(name, func(t *testing.T) {
			inGateway(t, nil, func(g *gateway) {
				c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
				c.ask(tt.m)
				c.expect(tt.want...)
				q := a.expect(tt.out)[0]
				if name == "T' > 0" {
					return
				}
				a.answer(q, con, "unwanted")
				a.answer(q, non, "unwanted")
				c.expect()
				g.after(time.Minute)
				c.expect()
			})
		})
	}
}

// GP-37: with T' = 0 nothing is relayed, wherever it may come from.
func TestNoResponsesFromElsewhere(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		g.front.Serve(exchange.HandlerFunc(func(_ *exchange.Request, w exchange.Sink) exchange.Canceler {
			w.Respond(&exchange.Response{Code: codes.Content, From: addrPort(member1), GroupPort: 5683})
			w.End(nil)
			return exchange.Ended{}
		}), g.front.Clients, nil)
		c := g.peer(userAddr)
		c.ask(groupGet(con, "t", 0))
		c.expect("ACK")
		c.ask(groupGet(non, "t", 1))
		c.expect("NON 2.05 " + from1)
	})
}

// FP-84: No-Response holds for relayed responses by their class.
func TestNoResponseByClass(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(groupGet(non, "t", 10, opt(wire.NoResponse, "\x12"))) // 2.xx and 5.xx
		q := a.request()
		a.respond(q, non, codes.Content, "")
		a.respond(q, non, codes.NotFound, "")
		a.respond(q, non, codes.InternalServerError, "")
		c.expect("NON 4.04 " + from1)
	})
}

// GP-29: a T' above the limit is lowered, and the log tells, or refused.
func TestLongTimeout(t *testing.T) {
	for _, refuse := range []bool{false, true} {
		inGateway(t, func(s *setup) { s.access.MaxTimeout, s.window.RefuseAboveMax = 20*time.Second, refuse }, func(g *gateway) {
			c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
			c.ask(groupGet(non, "t", 4294967295))
			if refuse {
				c.expect("NON 4.00 14= |Multicast-Timeout above 20 s")
				return
			}
			q := a.request()
			require.Equal(t, 1, g.log.FilterMessage("Multicast-Timeout lowered").Len())
			g.after(20*time.Second - 1)
			a.answer(q, non, "in time")
			c.expect("NON 2.05 " + from1 + " |in time")
			g.after(1)
			a.answer(q, non, "late")
			c.expect()
		})
	}
}

// GP-61: the limits of an exchange, seen from outside.
func TestGroupLimits(t *testing.T) {
	inGateway(t, func(s *setup) {
		for i := range s.groups {
			s.groups[i].MaxResponses = 2
		}
	}, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(groupGet(non, "t", 10))
		q := a.request()
		for range 5 {
			a.answer(q, non, "")
		}
		require.Len(t, c.take(), 2)
		require.EqualValues(t, 3, g.groups.Excess.Load())
	})
}

// A retransmitted group request is not multicast again while it is remembered
// (FP-90); neither is it a reuse of the Token.
func TestRetransmittedRequest(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		for range 3 {
			c.id = 7
			c.ask(groupGet(con, "t", 600))
			c.expect("ACK")
		}
		a.answer(a.request(), non, "")
		c.react(c.expect("CON 2.05 " + from1)[0], ack)
		g.after(200 * time.Second)
		c.id = 7
		c.ask(groupGet(con, "t", 600))
		c.expect("ACK")
		a.expect()
		require.Zero(t, g.stats.TokenReuses.Load())
	})
}

// GP-60: an unusable response of one server becomes a 5.02 with its address and
// does not concern the others.
func TestUnusableGroupResponse(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(groupGet(non, "t", 10))
		q := a.request()
		a.answer(q, non, "", opt(65002, "unsafe and unknown"))
		a.respond(q, non, 0x60, "")
		a.answer(q, non, "fine")
		got := c.take()
		require.Len(t, got, 3)
		require.Equal(t, "NON 5.02 14= "+from1+" |the server's response has option 65002, which cannot be processed", describe(&got[0].Message))
		require.Equal(t, "NON 5.02 14= "+from1+" |the server answered with code 3.00", describe(&got[1].Message))
		require.Equal(t, "NON 2.05 "+from1+" |fine", describe(&got[2].Message))
	})
}
