package proxy

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/wire"
)

// GP-65: after a run of non-confirmable notifications, over all servers, one asks
// whether the client is still there. One that is goes on; one that is gone is
// removed, and with it the registration (GP-66).
func TestGroupInterestAfterNonConfirmable(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c := g.peer(userAddr)
		a, b := g.peer(member1, "224.0.1.187"), g.peer(member2, "224.0.1.187")
		c.ask(observeGroup(non, "t", 5))
		qa, qb := a.request(), b.request()
		number := byte(0)
		run := func() received {
			for n := 1; n <= maxNonConfirmable+1; n++ {
				number++
				if n%2 == 0 {
					a.notify(qa, non, number, "a")
				} else {
					b.notify(qb, non, number, "b")
				}
				got := c.take()
				require.Len(t, got, 1)
				if got[0].Type == con {
					require.Equal(t, maxNonConfirmable+1, n)
					return got[0]
				}
				g.after(time.Second)
			}
			require.Fail(t, "none was confirmable")
			return received{}
		}
		c.react(run(), ack)
		run()
		a.take()
		g.after(100 * time.Second) // nobody acknowledges it
		require.Zero(t, g.stats.Observers.Load())
		require.Zero(t, g.groups.Observations.Load())
		off := a.take()
		value, ok := wire.ObserveOf(off[len(off)-1].Options)
		require.True(t, ok)
		require.EqualValues(t, wire.ObserveDeregister, value)
	})
}

// GP-65: once in 24 hours a client is asked, also when nothing happens.
func TestGroupInterestIsVerifiedDaily(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(observeGroup(non, "t", 5))
		q := a.request()
		week := opt(wire.MaxAge, "\x09\x3a\x80")
		a.notify(q, non, 1, "a", week)
		require.Equal(t, non, c.take()[0].Type)
		g.after(23*time.Hour - 1)
		a.expect()
		g.after(1)
		again := a.expect("NON 0.01 6= 11=72 16=10")[0] // which brings something to ask with
		require.Equal(t, q.Token, again.Token)
		a.notify(again, non, 2, "a", week)
		got := c.take()
		require.Equal(t, con, got[0].Type)
		c.react(got[0], ack)
		g.after(23 * time.Hour)
		again = a.request()
		a.notify(again, non, 3, "b", week)
		got = c.take()
		require.Equal(t, con, got[0].Type)
		c.react(got[0], rst)
		require.Zero(t, g.stats.Observers.Load())
		require.Zero(t, g.groups.Observations.Load())
	})
}

// GC-47: a server's confirmable notification is acknowledged while somebody is
// interested, and reset when nobody is (GP-66: that ends it at a server that missed
// the deregistration).
func TestServerVerifiesInterest(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c := g.peer(userAddr)
		a, b := g.peer(member1, "224.0.1.187"), g.peer(member2, "224.0.1.187")
		c.ask(observeGroup(non, "t", 5))
		qa, qb := a.request(), b.request()
		a.notify(qa, non, 1, "a1")
		b.notify(qb, non, 1, "b1")
		g.after(10 * time.Second)
		a.notify(qa, con, 2, "a2")
		a.expect("ACK")
		b.notify(qb, con, 2, "b2")
		b.expect("ACK")
		got := c.take()
		c.react(got[len(got)-1], rst)
		a.request() // both get it, and b does as if it had not
		b.request()
		b.notify(qb, con, 3, "b3")
		b.expect("RST")
		b.notify(qb, non, 4, "b4")
		b.expect("RST")
		c.expect()
	})
}

// GC-45, GC-49: a member that missed the registration, or whose answer was lost, is
// heard as soon as it notifies, long after T', and gets the registration again with
// the next renewal for any member (GC-46): the proxy does not know who is missing.
func TestMemberThatIsMissing(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c := g.peer(userAddr)
		a, b := g.peer(member1, "224.0.1.187"), g.peer(member2, "224.0.1.187")
		c.ask(observeGroup(non, "t", 5))
		qa, qb := a.request(), b.request()
		a.notify(qa, non, 1, "a1", opt(wire.MaxAge, "\x78"))
		c.notified("NON 2.05 14=78 " + from1 + " |a1 #")
		g.after(time.Minute)
		b.notify(qb, non, 9, "its first answer was lost", opt(wire.MaxAge, "\x78"))
		c.notified("NON 2.05 14=78 " + from2 + " |its first answer was lost #")
		g.after(80 * time.Second)
		require.Equal(t, qb.Token, b.request().Token)
	})
}
