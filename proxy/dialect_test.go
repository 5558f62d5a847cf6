package proxy

import (
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

const forwarding1 = "96=8201d9010444c000020b" // Response-Forwarding of member1

func dialect(d exchange.Dialect, more ...func(*setup)) func(*setup) {
	return func(s *setup) {
		s.access.Clients[0].Identity.Dialect = d
		for _, f := range more {
			f(s)
		}
	}
}

// GP-127, GP-129: the client entry alone decides which response options there
// are; `both` always sends both, 96 before 248.
func TestDialectOfResponses(t *testing.T) {
	for d, want := range map[exchange.Dialect]string{
		exchange.Draft07: from1,
		exchange.Legacy:  forwarding1,
		exchange.Both:    forwarding1 + " 248=82208144c000020b",
	} {
		t.Run(d.String(), func(t *testing.T) {
			inGateway(t, dialect(d, func(s *setup) { s.numbers.LegacyTimeout = 65002 }), func(g *gateway) {
				c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
				c.ask(groupGet(non, "t", 10))
				a.answer(a.request(), non, "")
				c.expect("NON 2.05 " + want)
				if d == exchange.Draft07 {
					return
				}
				c.ask(msg(non, codes.GET, "u", opt(65002, "\x0a"), uri(nodesURI)))
				a.answer(a.request(), non, "")
				c.expect("NON 2.05 " + want)
			})
		})
	}
}

// GP-127: the second number of Multicast-Timeout is for clients of the old
// dialect; to another client it is an unknown option, which is unsafe here.
func TestSecondTimeoutNumber(t *testing.T) {
	second := func(s *setup) { s.numbers.LegacyTimeout = 65002 }
	m := msg(con, codes.GET, "t", opt(65002, "\x0a"), uri(nodesURI))
	inGateway(t, dialect(exchange.Draft07, second), func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(m)
		c.expect("ACK 4.02 |option 65002 is not supported")
		a.expect()
	})
	inGateway(t, dialect(exchange.Legacy, second), func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(m)
		c.expect("ACK")
		q := a.expect("NON 0.01 11=72 16=10")[0]
		c.ask(msg(con, codes.GET, "t", opt(65002, ""))) // an Early Stop (GP-40)
		c.expect("ACK")
		a.answer(q, non, "")
		c.expect()

		c.ask(msg(con, codes.GET, "u", timeout(10), opt(65002, "\x0a"), uri(nodesURI))) // both: one too many (GP-3)
		c.expect("ACK 4.02 |option 65002 (Multicast-Timeout) is malformed or repeated")
	})
	inGateway(t, dialect(exchange.Legacy), func(g *gateway) { // no second number is configured
		c := g.peer(userAddr)
		c.ask(m)
		c.expect("ACK 4.02 |option 65002 is not supported")
	})
}

// GP-125, GP-127: a preset T' stands in for a missing option of a legacy
// client, and of no other.
func TestPresetTimeout(t *testing.T) {
	preset := func(s *setup) { s.access.Clients[0].Identity.PresetTimeout = 20 * time.Second }
	m := msg(con, codes.GET, "t", uri(nodesURI))
	inGateway(t, dialect(exchange.Legacy, preset), func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(m)
		c.expect("ACK")
		q := a.request()
		g.after(20*time.Second - 1)
		a.answer(q, non, "in time")
		c.react(c.expect("CON 2.05 " + forwarding1 + " |in time")[0], ack)
		g.after(1)
		a.answer(q, non, "late")
		c.expect()

		// A request to one server stays what it is.
		c.ask(msg(con, codes.GET, "u", uri("coap://192.0.2.11/r")))
		a.answer(a.request(), ack, "one")
		c.expect("ACK 2.05 |one")
	})
	for _, d := range []exchange.Dialect{exchange.Draft07, exchange.Both} {
		inGateway(t, dialect(d, preset), func(g *gateway) {
			c := g.peer(userAddr)
			c.ask(m)
			c.expect("ACK 4.00 2= |Please use Multicast-Timeout")
		})
	}
}

// GP-51: whatever address option a server sends is replaced. GP-129: option 96
// is an unknown safe option to a client of the new dialect.
func TestForeignAddressOptions(t *testing.T) {
	reply := opt(wire.ReplyFrom, "\x82\x20\x81\x44\x01\x02\x03\x04")
	old := opt(wire.ResponseForwarding, "anything")
	for d, want := range map[exchange.Dialect]string{
		exchange.Draft07: "96=616e797468696e67 " + from1,
		exchange.Legacy:  forwarding1,
		exchange.Both:    forwarding1 + " " + from1,
	} {
		t.Run(d.String(), func(t *testing.T) {
			inGateway(t, dialect(d), func(g *gateway) {
				c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
				c.ask(groupGet(non, "t", 10))
				a.answer(a.request(), non, "", old, reply, reply, opt(60000, "x"))
				c.expect("NON 2.05 " + want + " 60000=78")
			})
		})
	}
}

// GP-1: all numbers can be moved. The default ones mean nothing then: 2 is an
// unknown unsafe option, 248 passes through.
func TestMovedNumbers(t *testing.T) {
	inGateway(t, dialect(exchange.Both, func(s *setup) {
		s.numbers = wire.Numbers{MulticastTimeout: 65002, ReplyFrom: 65004, GroupETag: 65008, ResponseForwarding: 65012}
	}), func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(msg(non, codes.GET, "t", opt(65002, "\x0a"), opt(65008, "e"), uri(nodesURI)))
		a.answer(a.expect("NON 0.01 11=72 16=10")[0], non, "", opt(wire.ReplyFrom, "x"))
		c.expect("NON 2.05 248=78 65004=82208144c000020b 65012=8201d9010444c000020b")
		c.ask(msg(non, codes.GET, "u", timeout(10), uri(nodesURI)))
		c.expect("NON 4.02 |option 2 is not supported")
		c.ask(msg(non, codes.GET, "v", uri(nodesURI)))
		c.expect("NON 4.00 65002= |Please use Multicast-Timeout")
	})
}

// GP-30: Group-ETag is the proxy's own business.
func TestGroupETagIsRemoved(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(groupGet(non, "t", 10, opt(wire.GroupETag, "e"), opt(wire.ETag, "f")))
		a.expect("NON 0.01 4=66 11=72 16=10")
	})
}
