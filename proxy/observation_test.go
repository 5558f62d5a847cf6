package proxy

import (
	"fmt"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/wire"
)

// observeGet registers at the one server.
func observeGet(typ message.Type, token string, options ...message.Option) wire.Message {
	return msg(typ, codes.GET, token, append([]message.Option{uri(serverURI), opt(wire.Observe, "")}, options...)...)
}

// notify sends a notification to the observation of q.
func (c *peer) notify(q received, typ message.Type, n byte, body string, options ...message.Option) {
	c.t.Helper()
	m := msg(typ, codes.Content, "", append([]message.Option{opt(wire.Observe, string([]byte{n}))}, options...)...)
	c.respond(q, typ, codes.Content, body, m.Options...)
}

// notified requires exactly these notifications, in words without the number,
// and returns them.
func (c *peer) notified(want ...string) []received {
	c.t.Helper()
	got := c.take()
	texts := []string{}
	for i := range got {
		m := got[i].Message
		if n, ok := wire.ObserveOf(m.Options); ok {
			m.Options = nil
			for _, o := range got[i].Options {
				if o.ID != wire.Observe {
					m.Options = append(m.Options, o)
				}
			}
			texts = append(texts, describe(&m)+" #")
			require.Less(c.t, n, uint32(1<<24)) // FP-63
			continue
		}
		texts = append(texts, describe(&m))
	}
	require.Equal(c.t, append([]string{}, want...), texts)
	return got
}

func numberOf(t *testing.T, r received) uint32 {
	t.Helper()
	n, ok := wire.ObserveOf(r.Options)
	require.True(t, ok)
	return n
}

// FP-60, FP-62, FP-63, FP-67, FP-71: one registration for all clients, a number
// of its own for each, and the end from every cause.
func TestObservation(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		one, two, a := g.peer(userAddr), g.peer("203.0.113.6:40000"), g.peer(member1)
		one.ask(observeGet(con, "one"))
		q := a.expect("CON 0.01 6= 11=72 16=10")[0]
		a.notify(q, ack, 9, "a", opt(wire.MaxAge, "\x28"))
		first := numberOf(t, one.notified("ACK 2.05 14=28 |a #")[0])

		g.after(10 * time.Second)
		two.ask(observeGet(con, "two")) // FP-62: from the latest, as old as it is
		require.NotEqual(t, first, numberOf(t, two.notified("ACK 2.05 14=1e |a #")[0]))
		a.expect()

		a.notify(q, con, 10, "b")
		a.expect("ACK")
		m := one.notified("CON 2.05 |b #")[0]
		require.Equal(t, first+1, numberOf(t, m))
		require.Equal(t, "one", string(m.Token))
		one.react(m, ack)
		two.react(two.notified("CON 2.05 |b #")[0], ack)
		a.notify(q, non, 11, "b") // FP-71
		two.react(two.notified("CON 2.05 |b #")[0], ack)
		m = one.notified("CON 2.05 |b #")[0]
		require.Equal(t, first+2, numberOf(t, m))
		one.react(m, rst)
		require.EqualValues(t, 1, g.stats.ObserversReset.Load())
		a.notify(q, non, 12, "c")
		one.expect()
		two.react(two.notified("CON 2.05 |c #")[0], ack)

		two.ask(observeGet(con, "other", opt(wire.URIQuery, "c.pmin=5"))) // Proxy-Uri overrides that
		require.EqualValues(t, 2, g.stats.Observers.Load())
		two.notified("ACK 2.05 14=3c |c #")
		two.ask(msg(con, codes.GET, "two", uri(serverURI), opt(wire.Observe, "\x01")))
		plain := a.expect("CON 0.01 11=72 16=10")[0]
		a.answer(plain, ack, "d")
		two.expect("ACK 2.05 |d")
		two.ask(msg(con, codes.GET, "other", uri(serverURI), opt(wire.Observe, "\x01")))
		all := a.expect("CON 0.01 6=01 11=72 16=10", "CON 0.01 11=72 16=10")
		require.Equal(t, q.Token, all[0].Token) // FP-67
		a.answer(all[0], ack, "e")
		a.answer(all[1], ack, "e")
		two.expect("ACK 2.05 |e")
		a.notify(q, non, 13, "f")
		a.expect("RST")
	})
}

// FP-62: what is no notification is the answer to a plain request.
func TestRegistrationNotAccepted(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1)
		c.ask(observeGet(con, "t"))
		a.answer(a.request(), ack, "plain")
		c.expect("ACK 2.05 |plain")
		c.ask(observeGet(non, "t"))
		a.respond(a.request(), ack, codes.NotFound, "", opt(wire.Observe, "\x05"))
		c.notified("NON 4.04")
		c.ask(observeGet(con, "t"))
		a.react(a.request(), rst)
		c.expect("ACK 5.02 |the server rejected the message")
		require.Zero(t, g.stats.Observers.Load())
	})
}

// FP-68: towards a client that asked with NON at most one notification per 3 s,
// or per round trip once that is known; the newest takes the place of what waits
// and its Max-Age is as old as it is. Every so often one is confirmable (GP-65).
func TestNotificationsArePaced(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1)
		c.ask(observeGet(non, "t"))
		q := a.request()
		a.notify(q, ack, 1, "a")
		c.notified("NON 2.05 |a #")
		g.after(time.Second)
		a.notify(q, non, 2, "b")
		a.notify(q, non, 3, "c")
		g.after(2*time.Second - 1)
		c.expect()
		g.after(1)
		c.notified("NON 2.05 14=3a |c #")
		require.EqualValues(t, 1, g.stats.NotificationsReplaced.Load())
		g.after(10 * time.Second)
		a.notify(q, non, 4, "d", opt(wire.MaxAge, "\x07"))
		c.notified("NON 2.05 14=07 |d #") // at once

		for n := range byte(14) {
			g.after(3 * time.Second)
			a.notify(q, non, 5+n, fmt.Sprint(n))
			c.notified(fmt.Sprintf("NON 2.05 |%d #", n))
		}
		g.after(3 * time.Second)
		a.notify(q, non, 19, "sure?")
		m := c.notified("CON 2.05 |sure? #")[0]
		g.after(300 * time.Millisecond)
		c.react(m, ack)
		a.notify(q, non, 20, "x")
		c.notified("NON 2.05 |x #")
		g.after(299 * time.Millisecond)
		a.notify(q, non, 21, "y")
		c.expect()
		g.after(1 * time.Millisecond)
		m = c.notified("NON 2.05 |y #")[0]
		c.react(m, rst) // FP-67
		a.expect("CON 0.01 6=01 11=72 16=10")
		require.EqualValues(t, 1, g.stats.ObserversReset.Load())
	})
}

// FP-68: at most one unacknowledged notification per client, and the newest next.
// A client that acknowledges nothing is gone, and the last one gone ends the
// observation at the server (FP-67).
func TestNotificationsAreAcknowledged(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1)
		c.ask(observeGet(con, "t"))
		q := a.request()
		a.notify(q, ack, 1, "a", opt(wire.MaxAge, "\xff"))
		c.notified("ACK 2.05 14=ff |a #")
		for n, body := range []string{"b", "c", "d"} {
			a.notify(q, non, 2+byte(n), body, opt(wire.MaxAge, "\xff"))
		}
		m := c.notified("CON 2.05 14=ff |b #")[0]
		g.after(time.Second)
		c.react(m, ack)
		c.notified("CON 2.05 14=fe |d #")
		require.EqualValues(t, 1, g.stats.NotificationsReplaced.Load())
		a.expect()
		g.after(100 * time.Second)
		require.EqualValues(t, 1, g.stats.ObserversLost.Load())
		require.Equal(t, "CON 0.01 6=01 11=72 16=10", describe(&a.take()[0].Message))
		c.take()
	})
}

// FP-68: a client is asked at least once in 24 hours whether it is still
// interested, also when nothing happens.
func TestInterestIsVerifiedDaily(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1)
		c.ask(observeGet(non, "t"))
		q := a.request()
		week := opt(wire.MaxAge, "\x09\x3a\x80")
		a.notify(q, ack, 1, "a", week)
		c.notified("NON 2.05 14=093a80 |a #")
		g.after(23*time.Hour - 1)
		a.expect()
		g.after(1)
		again := a.expect("CON 0.01 6= 11=72 16=10")[0]
		require.Equal(t, q.Token, again.Token)
		a.notify(again, ack, 2, "a", week)
		c.react(c.notified("CON 2.05 14=093a80 |a #")[0], ack)
		g.after(22 * time.Hour)
		a.notify(q, non, 3, "b", week)
		c.notified("NON 2.05 14=093a80 |b #")
		g.after(time.Hour)
		again = a.expect("CON 0.01 6= 11=72 16=10")[0]
		a.notify(again, ack, 4, "b", week)
		c.notified("CON 2.05 14=093a80 |b #")
		g.after(100 * time.Second) // nobody is there
		require.EqualValues(t, 1, g.stats.ObserversLost.Load())
		c.take()
	})
}

// FP-66: an error ends the observation of every client, and reaches each of them,
// after what it has not yet acknowledged.
func TestNotificationOfTheEnd(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		one, two, a := g.peer(userAddr), g.peer("203.0.113.6:40000"), g.peer(member1)
		one.ask(observeGet(con, "one"))
		q := a.request()
		a.notify(q, ack, 1, "a")
		one.notified("ACK 2.05 |a #")
		two.ask(observeGet(non, "two"))
		two.notified("NON 2.05 14=3c |a #")
		a.notify(q, non, 2, "b")
		m := one.notified("CON 2.05 |b #")[0]
		a.respond(q, non, codes.NotFound, "gone")
		require.Zero(t, g.stats.Observers.Load())
		one.expect()
		one.react(m, ack)
		m = one.expect("CON 4.04 |gone")[0]
		two.react(two.expect("CON 4.04 |gone")[0], ack)
		one.react(m, ack)
		a.notify(q, non, 3, "c")
		a.expect("RST")
		one.expect()
	})
}

// A server that is lost ends the observation with the failure of the proxy
// (FP-32).
func TestObservedServerIsLost(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1)
		c.ask(observeGet(con, "t"))
		q := a.request()
		a.notify(q, ack, 1, "a")
		c.notified("ACK 2.05 |a #")
		g.after(20 * time.Minute)
		got := c.take()
		require.Equal(t, "CON 5.04 |no response from the server in time", describe(&got[0].Message))
		require.Zero(t, g.stats.Observers.Load())
	})
}

// FP-67: a registration with the same Token takes the place of the one before,
// with growing numbers, and the server hears nothing of it. So does any other
// request with that Token but one for a further block.
func TestRegistrationAnew(t *testing.T) {
	inGateway(t, func(s *setup) { s.front.MaxObservers, s.access.Clients[0].MaxObservations = 1, 1 }, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1)
		c.ask(observeGet(con, "t"))
		q := a.request()
		a.notify(q, ack, 1, "a")
		n := numberOf(t, c.notified("ACK 2.05 |a #")[0])
		c.ask(observeGet(con, "t"))
		require.Equal(t, n+1, numberOf(t, c.notified("ACK 2.05 14=3c |a #")[0]))
		a.notify(q, non, 2, "b")
		c.react(c.notified("CON 2.05 |b #")[0], ack)
		a.expect()
		require.EqualValues(t, 1, g.stats.Observers.Load())

		c.ask(msg(con, codes.GET, "t", uri(serverURI), opt(wire.Block2, "\x16")))
		a.answer(a.request(), ack, "block")
		c.take()
		require.EqualValues(t, 1, g.stats.Observers.Load())
		c.ask(msg(con, codes.GET, "t", uri("coap://192.0.2.11/other")))
		all := a.expect("CON 0.01 6=01 11=72 16=10", "CON 0.01 11=6f74686572 16=10")
		a.answer(all[0], ack, "")
		a.answer(all[1], ack, "plain")
		c.expect("ACK 2.05 |plain")
		require.Zero(t, g.stats.Observers.Load())
	})
}

// Where the bounds are reached, a registration is a plain request, and counted.
func TestObservationsAreBounded(t *testing.T) {
	for _, front := range []bool{true, false} {
		inGateway(t, func(s *setup) {
			if front {
				s.front.MaxObservers = 1
			} else {
				s.access.Clients[0].MaxObservations = 1
			}
		}, func(g *gateway) {
			c, a := g.peer(userAddr), g.peer(member1)
			c.ask(observeGet(con, "t"))
			q := a.request()
			a.notify(q, ack, 1, "a")
			c.notified("ACK 2.05 |a #")
			c.ask(observeGet(con, "u"))
			a.answer(a.expect("CON 0.01 11=72 16=10")[0], ack, "plain")
			c.expect("ACK 2.05 |plain")
			if front {
				require.EqualValues(t, 1, g.stats.ObserversRefused.Load())
			}
			c.ask(msg(con, codes.GET, "t", uri(serverURI), opt(wire.Observe, "\x01")))
			for _, q := range a.take() {
				a.answer(q, ack, "")
			}
			c.ask(observeGet(con, "u"))
			a.notify(a.expect("CON 0.01 6= 11=72 16=10")[0], ack, 1, "a")
			c.notified("ACK 2.05", "ACK 2.05 |a #")
			c.ask(msg(con, codes.GET, "u", uri(serverURI)))
		})
	}
}

// FP-63: the Content-Format stays the same throughout (RFC 7641 §4.2).
func TestNotificationOfAnotherFormat(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1)
		c.ask(observeGet(con, "t"))
		q := a.request()
		a.notify(q, ack, 1, "a", opt(wire.ContentFormat, "\x32"))
		c.notified("ACK 2.05 12=32 |a #")
		a.notify(q, non, 2, "b", opt(wire.ContentFormat, "\x3c"))
		c.react(c.expect("CON 4.06 |the Content-Format has changed")[0], ack)
		a.expect("CON 0.01 6=01 11=72 16=10")
	})
}

// FP-84: a client that wants no responses of success does not observe.
func TestObservationWithoutResponses(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1)
		c.ask(observeGet(con, "t", opt(wire.NoResponse, "\x02")))
		a.answer(a.expect("CON 0.01 11=72 16=10")[0], ack, "a")
		c.expect("ACK")
	})
}

// A repeated registration gets what the first one got.
func TestRegistrationIsRepeated(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1)
		c.ask(observeGet(con, "t"))
		a.notify(a.request(), ack, 1, "a")
		first := c.notified("ACK 2.05 |a #")[0]
		c.id--
		c.ask(observeGet(con, "t"))
		require.Equal(t, first.raw, c.notified("ACK 2.05 |a #")[0].raw)
		a.expect()
		require.EqualValues(t, 1, g.stats.Observers.Load())
	})
}

// At the end every observer is told, and every server.
func TestObservationsEndWithTheProxy(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		one, two, a := g.peer(userAddr), g.peer("203.0.113.6:40000"), g.peer(member1)
		one.ask(observeGet(con, "one"))
		q := a.request()
		a.notify(q, ack, 1, "a")
		one.notified("ACK 2.05 |a #")
		two.ask(observeGet(non, "two"))
		two.notified("NON 2.05 14=3c |a #")
		stop := make(chan struct{})
		close(stop)
		require.Zero(t, g.front.Drain(stop))
		one.expect("NON 5.03 14=0a |shutting down")
		two.expect("NON 5.03 14=0a |shutting down")
		a.answer(a.expect("CON 0.01 6=01 11=72 16=10")[0], ack, "")
		require.Zero(t, g.stats.Observers.Load())
	})
}

// Observers that have vanished give up their places sooner where these are scarce, of
// all or of their client: a registration has some asked that have shown no sign of life
// for a while (FP-68, GP-65). Those that are there lose nothing.
func TestVanishedObserversMakeRoom(t *testing.T) {
	for name, change := range map[string]func(s *setup){
		"of all":        func(s *setup) { s.front.MaxObservers = 2 },
		"of the client": func(s *setup) { s.access.Clients[0].MaxObservations = 2 },
	} {
		for _, group := range []bool{false, true} {
			t.Run(fmt.Sprint(name, " group ", group), func(t *testing.T) {
				inGateway(t, change, func(g *gateway) {
					a := g.peer(member1, "224.0.1.187")
					there, gone, late := g.peer(userAddr), g.peer("203.0.113.6:40000"), g.peer("203.0.113.7:40000")
					week := opt(wire.MaxAge, "\x09\x3a\x80")
					number := byte(1)
					answer := func() {
						t.Helper()
						for _, q := range a.take() {
							how := q.Type
							if how == con {
								how = ack
							}
							switch value, ok := wire.ObserveOf(q.Options); {
							case ok && value == 0:
								number++
								a.notify(q, how, number, "a", week)
							case !ok:
								a.answer(q, how, "plain")
							}
						}
					}
					register := func(c *peer) received {
						t.Helper()
						if group {
							c.ask(observeGroup(non, "t", 1))
						} else {
							c.ask(observeGet(non, "t"))
						}
						answer()
						got := c.take()
						require.NotEmpty(t, got)
						return got[0]
					}
					observed := func(m received) bool { return wire.Has(m.Options, wire.Observe) }
					require.True(t, observed(register(there)))
					require.True(t, observed(register(gone)))
					require.False(t, observed(register(late))) // and nobody is asked: they have just come
					require.Zero(t, g.stats.ObserversAsked.Load())
					g.after(attendAfter)
					require.False(t, observed(register(late)))
					require.EqualValues(t, 2, g.stats.ObserversAsked.Load())
					answer()
					var probe []received
					for _, m := range there.take() {
						if m.Type == con {
							probe = append(probe, m)
						}
					}
					require.Len(t, probe, 1)
					there.react(probe[0], ack)
					g.after(100 * time.Second)
					gone.take()
					require.EqualValues(t, 1, g.stats.Observers.Load())
					require.True(t, observed(register(late)))
					require.EqualValues(t, 2, g.stats.ObserversAsked.Load())
					for _, c := range []*peer{there, late} { // end it
						if group {
							c.ask(msg(non, codes.GET, "t", timeout(0)))
						} else {
							c.ask(msg(non, codes.GET, "t", uri(serverURI), opt(wire.Observe, "\x01")))
						}
						answer()
						answer()
						c.take()
					}
					require.Zero(t, g.stats.Observers.Load())
				})
			})
		}
	}
}

// Where places get scarce, few are asked for each registration, and nobody twice: more
// than three quarters have to be taken, and who was asked a moment ago is not asked
// again (FP-68, GP-65).
func TestAttendance(t *testing.T) {
	inGateway(t, func(s *setup) { s.front.MaxObservers = 8 }, func(g *gateway) {
		a := g.peer(member1)
		register := func(i int) {
			t.Helper()
			c := g.peer(fmt.Sprintf("203.0.113.%d:40000", 10+i))
			c.ask(observeGet(non, "t"))
			for _, q := range a.take() {
				if value, ok := wire.ObserveOf(q.Options); i == 0 && ok && value == 0 {
					a.notify(q, ack, 1, "a", opt(wire.MaxAge, "\x09\x3a\x80"))
				}
			}
			require.True(t, wire.Has(c.take()[0].Options, wire.Observe), i)
		}
		for i := range 5 {
			register(i)
		}
		g.after(attendAfter)
		register(5)
		require.Zero(t, g.stats.ObserversAsked.Load(), "a quarter of the places is free")
		register(6)
		require.EqualValues(t, attendAtOnce, g.stats.ObserversAsked.Load())
		register(7)
		require.EqualValues(t, 5, g.stats.ObserversAsked.Load(), "the others have just come, or were asked")
	})
}
