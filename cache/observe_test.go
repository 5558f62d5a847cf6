package cache

import (
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

var register = option(wire.Observe, "")

func observing(c *Config) { c.Observe = true }

func isNotification(p *exchange.Response) bool { return wire.Has(p.Options, wire.Observe) }

func TestObservationIsShared(t *testing.T) { // FP-60, FP-61, FP-62, FP-63, FP-70
	run(t, observing, func(x *fixture) {
		x.miss(get("a"), content("old", etag("v0"), maxAge(60)))
		first := x.ask(get("a", register, etag("v7")))
		require.Len(t, x.origin.calls, 2, "a fresh entry does not replace the registration")
		leg := x.last()
		require.True(t, wire.Has(leg.Options, wire.Observe))
		require.Empty(t, leg.etags(), "an ETag of one client is of no use to the others")
		leg.sink.Respond(content("one", option(wire.Observe, "\x05"), maxAge(60)))
		require.Equal(t, []string{"one"}, first.bodies())

		wait(10 * time.Second)
		second := x.ask(get("a", register)) // FP-62
		require.Len(t, x.origin.calls, 2)
		require.Equal(t, []string{"one"}, second.bodies())
		require.True(t, isNotification(second.got[0]))
		require.EqualValues(t, 50, maxAgeOf(t, second.got[0]))
		require.Equal(t, "one", string(x.hit(get("a")).Payload))              // FP-70
		other := x.ask(get("a", register, option(wire.URIQuery, "c.pmin=5"))) // FP-61
		require.Len(t, x.origin.calls, 3)
		other.cancel.Cancel()

		leg.sink.Respond(content("two", option(wire.Observe, "\x06")))
		leg.sink.Respond(content("two", option(wire.Observe, "\x07"))) // FP-71
		require.Equal(t, []string{"one", "two", "two"}, first.bodies())
		require.Equal(t, []string{"one", "two", "two"}, second.bodies())
		require.Equal(t, "two", string(x.hit(get("a")).Payload))

		first.cancel.Cancel()
		require.False(t, leg.canceled)
		second.cancel.Cancel()
		require.True(t, leg.canceled) // FP-67
	})
}

func TestObservationNotAccepted(t *testing.T) { // FP-62
	run(t, observing, func(x *fixture) {
		c := x.ask(get("a", register))
		x.last().respond(content("plain"))
		require.False(t, isNotification(c.one()))
		require.Empty(t, x.flights)
	})
}

func TestObservationEnds(t *testing.T) { // FP-66
	run(t, observing, func(x *fixture) {
		c := []*client{x.ask(get("a", register)), x.ask(get("a", register))}
		require.Len(t, x.origin.calls, 1)
		x.last().sink.Respond(content("one", option(wire.Observe, "")))
		x.last().respond(&exchange.Response{Code: codes.NotFound, From: serverA})
		for _, k := range c {
			require.Len(t, k.got, 2)
			require.Equal(t, codes.NotFound, k.got[1].Code)
			require.Equal(t, []error{nil}, k.ends)
		}
	})
}

func TestObservationWhoseLatestIsStale(t *testing.T) {
	run(t, observing, func(x *fixture) {
		first := x.ask(get("a", register))
		x.last().sink.Respond(content("one", option(wire.Observe, ""), maxAge(5)))
		wait(5 * time.Second)
		second := x.ask(get("a", register))
		require.Len(t, x.origin.calls, 2)
		require.Empty(t, second.got)
		first.cancel.Cancel()
		second.cancel.Cancel()
		for _, k := range x.origin.calls {
			require.True(t, k.canceled)
		}
	})
}

func TestNotificationsInShortForm(t *testing.T) { // FP-69
	run(t, observing, func(x *fixture) {
		x.miss(get("a"), content("body", etag("v1"), maxAge(5)))
		wait(5 * time.Second)
		listed, not := x.ask(get("a", register, etag("v1"))), x.ask(get("a", register))
		require.Equal(t, []string{"v1"}, x.last().etags())
		x.last().sink.Respond(&exchange.Response{Code: codes.Valid, From: serverA, Options: sorted(message.Options{etag("v1"), option(wire.Observe, "")})})
		require.Equal(t, codes.Valid, listed.got[0].Code)
		require.Equal(t, codes.Content, not.got[0].Code)
		require.Equal(t, "body", string(not.got[0].Payload))
		require.True(t, isNotification(not.got[0]))
		x.last().end(nil)
	})
}

func TestGroupObservationIsShared(t *testing.T) { // GP-64, GP-68
	run(t, observing, func(x *fixture) {
		first := x.ask(groupGet(10, "t", register))
		leg := x.last()
		leg.sink.Respond(a("a1", option(wire.Observe, "\x01")))
		leg.sink.Respond(b("b1", option(wire.Observe, "\x01")))
		wait(20 * time.Second)
		leg.sink.Respond(a("a2", option(wire.Observe, "\x02")))
		require.Equal(t, []string{"a1", "b1", "a2"}, first.bodies())
		second := x.ask(groupGet(10, "t", register))
		require.Len(t, x.origin.calls, 1)
		require.ElementsMatch(t, []string{"a2", "b1"}, second.bodies())
		require.Equal(t, second.got[0].GroupPort, allCoAP.Port())
		wait(20 * time.Second) // T' is over; who got a notification goes on
		require.Empty(t, second.ends)
		leg.sink.Respond(b("b2", option(wire.Observe, "\x02")))
		require.Len(t, second.got, 3)
		first.cancel.Cancel()
		second.cancel.Cancel()
		require.True(t, leg.canceled)
	})
}

// renewing is an origin whose exchanges can be renewed.
type renewing struct {
	*origin
	renewed int
}

func (o *renewing) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	return &renewable{o.origin.Exchange(r, w).(*call), o}
}

type renewable struct {
	*call
	origin *renewing
}

func (k *renewable) Renew() { k.origin.renewed++ }

// FP-60: one who joins when the latest notification is no longer fresh makes the
// one observation bring the current state.
func TestObservationIsRenewedForALateClient(t *testing.T) {
	var o *renewing
	run(t, observing, func(x *fixture) {
		o = &renewing{origin: x.origin}
		x.config.Next = o
		first := x.ask(get("a", register))
		leg := x.last()
		leg.sink.Respond(content("one", option(wire.Observe, ""), maxAge(5)))
		wait(5 * time.Second)
		second := x.ask(get("a", register))
		require.Len(t, x.origin.calls, 1)
		require.Empty(t, second.got)
		require.Equal(t, 1, o.renewed)
		leg.sink.Respond(content("two", option(wire.Observe, ""), maxAge(0), etag("v2")))
		require.Equal(t, []string{"two"}, second.bodies())
		require.Equal(t, []string{"one", "two"}, first.bodies())
		first.cancel.(exchange.Renewer).Renew()
		require.Equal(t, 2, o.renewed)
		first.cancel.Cancel()
		second.cancel.Cancel()
	})
}

// Where nothing is to be stored, observations are shared all the same (FP-60),
// and nobody but the server answers other requests.
func TestObserveOnly(t *testing.T) {
	run(t, func(c *Config) { c.Observe, c.ObserveOnly = true, true }, func(x *fixture) {
		first := x.ask(get("a", register))
		leg := x.last()
		leg.sink.Respond(content("one", option(wire.Observe, ""), etag("v1"), maxAge(60)))
		wait(10 * time.Second)
		second := x.ask(get("a", register))
		require.Equal(t, []string{"one"}, second.bodies()) // FP-62
		require.EqualValues(t, 50, maxAgeOf(t, second.got[0]))
		require.Len(t, x.origin.calls, 1)
		x.miss(get("a"), content("fresh", maxAge(60)))
		x.miss(get("a"), content("fresh", maxAge(60)))
		require.Zero(t, x.stats.Stored.Load())
		require.Zero(t, x.store.entries.Len())
		first.cancel.Cancel()
		require.False(t, leg.canceled)
		second.cancel.Cancel()
		require.True(t, leg.canceled)
		require.Empty(t, x.flights)
	})
}

// A 2.03 to the ETag in the registration stands for what had that ETag, whatever
// came in between.
func TestObservationReturnsToAnOldState(t *testing.T) {
	run(t, observing, func(x *fixture) {
		x.miss(get("a"), content("old", etag("v1"), maxAge(5)))
		wait(5 * time.Second)
		c := x.ask(get("a", register))
		x.last().sink.Respond(content("new", etag("v2"), option(wire.Observe, "\x01")))
		x.last().sink.Respond(&exchange.Response{Code: codes.Valid, From: serverA, Options: sorted(message.Options{etag("v1"), option(wire.Observe, "\x02")})})
		require.Equal(t, []string{"new", "old"}, c.bodies())
		require.Equal(t, "old", string(x.hit(get("a")).Payload)) // FP-70
		c.cancel.Cancel()
	})
}

// A new configuration: the observation is ended upstream and registered anew; its
// clients go on with what that brings, and end as ever.
func TestObservationIsMoved(t *testing.T) {
	run(t, observing, func(x *fixture) {
		c := []*client{x.ask(get("a", register)), x.ask(get("a", register))}
		before := x.last()
		before.sink.Respond(content("one", option(wire.Observe, "\x05"), maxAge(60)))
		x.Cache.Reregister()
		require.True(t, before.canceled)
		require.Len(t, x.origin.calls, 2)
		after := x.last()
		require.True(t, wire.Has(after.Options, wire.Observe))
		after.sink.Respond(content("two", option(wire.Observe, "\x01"), maxAge(60)))
		for _, k := range c {
			require.Equal(t, []string{"one", "two"}, k.bodies())
			require.Empty(t, k.ends)
		}
		c[0].cancel.Cancel()
		x.Cache.Reregister()
		require.True(t, after.canceled)
		after = x.last()
		after.respond(&exchange.Response{Code: codes.NotFound, From: serverA})
		require.Equal(t, codes.NotFound, c[1].got[2].Code)
		require.Equal(t, []error{nil}, c[1].ends)
		require.Len(t, c[0].got, 2)
		x.Cache.Reregister()
		require.Len(t, x.origin.calls, 3, "nothing is left")
	})
}
