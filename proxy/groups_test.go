package proxy

import (
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/wire"
)

// GC-80, GC-82: what waits for its turn may share a multicast with others;
// every client gets the responses with its own Token, type and dialect, until
// its own T'. One whose T' runs out while it waits gets 5.03.
func TestSharedRequest(t *testing.T) {
	inGateway(t, func(s *setup) {
		for i := range s.groups {
			s.groups[i].NStart = 1
		}
		old := s.access.Clients[0]
		old.Identity.Dialect, old.Networks = 1, prefixes("203.0.114.0/24")
		s.access.Clients = append(s.access.Clients, old)
	}, func(g *gateway) {
		a := g.peer(member1, "224.0.1.187")
		first, c, d, late := g.peer(userAddr), g.peer("203.0.113.6:1"), g.peer("203.0.114.6:1"), g.peer("203.0.113.7:1")
		first.ask(msg(non, codes.GET, "t", timeout(60), uri("coap://224.0.1.187/other")))
		busy := a.request()
		c.ask(groupGet(con, "c", 60))
		d.ask(groupGet(non, "d", 10))
		late.ask(groupGet(con, "e", 2))
		g.after(2 * time.Second)
		late.react(late.expect("ACK", "CON 5.03 14=05 |the group was busy for the whole timeout")[1], ack)

		a.answer(busy, non, "busy")
		q := a.expect("NON 0.01 11=72 16=10")[0]
		a.answer(q, non, "shared")
		got := c.expect("ACK", "CON 2.05 "+from1+" |shared")
		require.Equal(t, "c", string(got[1].Token))
		c.react(got[1], ack)
		got = d.expect("NON 2.05 " + forwarding1 + " |shared")
		require.Equal(t, "d", string(got[0].Token))
		first.expect("NON 2.05 " + from1 + " |busy")

		d.ask(earlyStop(con, "d")) // GP-41: the other client goes on
		d.expect("ACK")
		a.answer(q, non, "more")
		d.expect()
		c.react(c.expect("CON 2.05 " + from1 + " |more")[0], ack)
	})
}

// GC-80: the queue is bounded.
func TestBusyGroup(t *testing.T) {
	inGateway(t, func(s *setup) {
		for i := range s.groups {
			s.groups[i].NStart, s.groups[i].Queue = 1, 1
		}
	}, func(g *gateway) {
		c := g.peer(userAddr)
		for _, query := range []string{"1", "2", "3"} {
			c.ask(msg(con, codes.GET, query, timeout(60), uri(nodesURI+"?"+query)))
		}
		c.expect("ACK", "ACK", "ACK 5.03 14=05 |too many requests wait for this group")
	})
}

// GC-76: a server's Echo challenge is relayed with its address; the client
// repeats its request to that server.
func TestEchoChallenge(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(groupGet(non, "t", 10))
		a.respond(a.request(), non, codes.Unauthorized, "", opt(wire.Echo, "e"))
		c.expect("NON 4.01 " + from1 + " 252=65")
		c.ask(msg(con, codes.GET, "u", uri(serverURI), opt(wire.Echo, "e")))
		a.answer(a.expect("CON 0.01 11=72 16=10 252=65")[0], ack, "")
		c.expect("ACK 2.05")
	})
}

// A group request whose FETCH body and Content-Format reach the group as they
// are (GC-70), and a protected one where it is permitted (GC-92).
func TestGroupMethods(t *testing.T) {
	inGateway(t, func(s *setup) {
		for i := range s.access.Groups {
			s.access.Groups[i].Protected = true
		}
	}, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		m := msg(non, wire.FETCH, "t", timeout(10), uri(nodesURI), opt(wire.ContentFormat, "c"))
		m.Payload = []byte("query")
		c.ask(m)
		a.expect("NON 0.05 11=72 12=63 16=10 |query")
		c.ask(msg(non, codes.POST, "u", timeout(10), uri(nodesURI), opt(wire.OSCORE, "o")))
		a.expect("NON 0.02 9=6f 11=72 16=10")
	})
}
