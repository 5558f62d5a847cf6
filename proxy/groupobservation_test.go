package proxy

import (
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/wire"
)

const (
	from2 = "248=82208144c000020c"
)

func observeGroup(typ message.Type, token string, seconds uint32) wire.Message {
	return groupGet(typ, token, seconds, opt(wire.Observe, ""))
}

// GP-62, GP-63, GP-64, GP-66, GP-67, GP-68, GC-42, GC-43, GC-44, GC-48: the Token
// is kept after T', each client has one sequence over all servers, a late one gets
// the latest of each, and the last one gone ends it at the members.
func TestGroupObservation(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, late := g.peer(userAddr), g.peer("203.0.113.6:40000")
		a, b := g.peer(member1, "224.0.1.187"), g.peer(member2, "224.0.1.187")
		c.ask(observeGroup(non, "t", 10))
		q := a.expect("NON 0.01 6= 11=72 16=10")[0]
		q2 := b.request()
		a.notify(q, non, 5, "a1")
		b.notify(q2, non, 200, "b1")
		got := c.notified("NON 2.05 "+from1+" |a1 #", "NON 2.05 "+from2+" |b1 #")
		require.Equal(t, numberOf(t, got[0])+1, numberOf(t, got[1]))
		g.after(20 * time.Second) // T' is over
		a.notify(q, non, 6, "a2")
		a.notify(q, non, 5, "overtaken") // GC-43
		b.notify(q2, non, 201, "b2")
		got2 := c.notified("NON 2.05 "+from1+" |a2 #", "NON 2.05 "+from2+" |b2 #")
		require.Equal(t, numberOf(t, got[1])+1, numberOf(t, got2[0]))

		late.ask(observeGroup(non, "late", 10)) // GP-68
		require.Len(t, late.take(), 2)
		a.expect()
		b.notify(q2, non, 202, "b3")
		late.notified("NON 2.05 " + from2 + " |b3 #")
		c.notified("NON 2.05 " + from2 + " |b3 #")

		m := wire.Message{Type: non, Code: codes.NotFound, Token: q2.Token, ID: 999}
		b.transmit(q2.from, &m) // GP-63
		c.expect("NON 4.04 " + from2)
		late.expect("NON 4.04 " + from2)

		c.ask(msg(non, codes.GET, "t", timeout(0))) // Early Stop (GP-45)
		a.notify(q, non, 7, "a3")
		c.expect()
		late.react(late.notified("NON 2.05 " + from1 + " |a3 #")[0], rst) // GP-45
		off := a.expect("NON 0.01 6=01 11=72 16=10")[0]                   // GP-66
		require.Equal(t, q.Token, off.Token)
		a.notify(q, non, 8, "a4")
		a.expect("RST") // GP-66
		require.Zero(t, g.groups.Observations.Load())
	})
}

// GP-64: at T' the Token is freed when nobody has registered.
func TestGroupObservationOfNobody(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(observeGroup(non, "t", 10))
		q := a.request()
		a.answer(q, non, "plain")
		c.expect("NON 2.05 " + from1 + " |plain")
		g.after(10 * time.Second)
		require.Zero(t, g.stats.Observers.Load())
		a.take()
		a.notify(q, non, 1, "late")
		c.expect()
	})
}

// GC-46: when a member's Max-Age is over, the registration is multicast again; one
// that does not answer to that is forgotten, and with the last one the observation
// ends.
func TestGroupObservationIsRenewed(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(observeGroup(non, "t", 5))
		q := a.request()
		a.notify(q, non, 9, "a1", opt(wire.MaxAge, "\x14"))
		c.notified("NON 2.05 14=14 " + from1 + " |a1 #")
		g.after(25*time.Second - 1)
		a.expect()
		g.after(10*time.Second + 1)
		again := a.expect("NON 0.01 6= 11=72 16=10")[0]
		require.Equal(t, q.Token, again.Token)
		require.NotEqual(t, q.ID, again.ID)
		a.notify(again, non, 1, "a2", opt(wire.MaxAge, "\x14")) // it has started anew
		c.notified("NON 2.05 14=14 " + from1 + " |a2 #")
		g.after(2 * time.Minute)
		require.EqualValues(t, 1, g.groups.MembersLost.Load())
		c.expect("NON 5.04 |no member of the group answers any more")
		require.Zero(t, g.stats.Observers.Load())
	})
}

// GP-63: a member whose response is no notification observes no more, and nobody
// registers with it again when the Max-Age of what it sent before is over.
func TestGroupObservationWithoutAMember(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a, b := g.peer(userAddr), g.peer(member1, "224.0.1.187"), g.peer(member2, "224.0.1.187")
		c.ask(observeGroup(non, "t", 5))
		q, q2 := a.request(), b.request()
		a.notify(q, non, 1, "a1", opt(wire.MaxAge, "\x0a"))
		b.notify(q2, non, 1, "b1", opt(wire.MaxAge, "\x78"))
		require.Len(t, c.take(), 2)
		end := wire.Message{Type: non, Code: codes.NotFound, Token: q.Token, ID: 999}
		a.transmit(q.from, &end)
		c.expect("NON 4.04 " + from1)
		g.after(time.Minute) // long after the ten seconds of the first one
		a.expect()
		require.Zero(t, g.groups.ObservationsRenewed.Load())
		require.Zero(t, g.groups.MembersLost.Load())
	})
}
