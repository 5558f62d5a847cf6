package cache

import (
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

func TestSingleFlight(t *testing.T) { // FP-49
	run(t, nil, func(x *fixture) {
		c := []*client{x.ask(get("a")), x.ask(get("a")), x.ask(get("a"))}
		require.Len(t, x.origin.calls, 1)
		c[1].cancel.Cancel()
		c[1].cancel.Cancel()
		require.Equal(t, []error{exchange.ErrCanceled}, c[1].ends)
		x.ask(get("a", etag("x"))) // GC-82: other ETags, another exchange
		require.Len(t, x.origin.calls, 2)
		x.last().end(nil)
		x.origin.calls[0].respond(content("one"))
		require.Equal(t, "one", string(c[0].one().Payload))
		require.Equal(t, "one", string(c[2].one().Payload))
		require.Empty(t, c[1].got)
		require.EqualValues(t, 2, x.stats.Coalesced.Load())
		for _, k := range c {
			k.cancel.Cancel() // harmless
		}
	})
}

func TestSingleFlightEnds(t *testing.T) {
	failure := exchange.Failf(exchange.NoAnswer, "no answer")
	run(t, nil, func(x *fixture) {
		c := []*client{x.ask(get("a")), x.ask(get("a"))}
		x.last().end(failure)
		for _, k := range c {
			require.Equal(t, []error{failure}, k.ends)
		}
		c = []*client{x.ask(get("a")), x.ask(get("a"))}
		c[0].cancel.Cancel()
		require.False(t, x.last().canceled)
		c[1].cancel.Cancel()
		require.True(t, x.last().canceled)
		x.miss(get("a"), content("one")) // an abandoned exchange takes nobody
	})
}

func TestSingleFlightAdmits(t *testing.T) {
	for name, tt := range map[string]struct {
		first, second *exchange.Request
	}{
		"a higher Hop-Limit": {get("a", uintOption(wire.HopLimit, 3)), get("a")}, // FP-50
		"reliability":        {func() *exchange.Request { r := get("a"); r.Confirmable = false; return r }(), get("a")},
		"the answer to Echo": {get("a"), get("a", option(wire.Echo, "x"))},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, nil, func(x *fixture) {
				x.ask(tt.first)
				x.ask(tt.second)
				require.Len(t, x.origin.calls, 2)
				x.origin.calls[0].respond(content("one"))
				x.origin.calls[1].respond(content("two"))
			})
		})
	}
}

func TestCancelFromInsideRespond(t *testing.T) {
	run(t, nil, func(x *fixture) {
		c := &client{t: t}
		c.onAnswer = func() { c.cancel.Cancel() }
		x.askWith(get("a"), c)
		x.last().respond(content("one"))
		require.Len(t, c.ends, 1)
	})
	run(t, nil, func(x *fixture) {
		x.origin.answer = func(k *call) { k.respond(content("at once")) }
		require.Equal(t, "at once", string(x.ask(get("a")).one().Payload))
	})
}

// FP-52: what comes with another Hop-Limit and goes to a next proxy may be the same
// request that has come round, and would wait for itself.
func TestRequestsThatCameRoundAreNotShared(t *testing.T) {
	run(t, nil, func(x *fixture) {
		ask := func(hops byte) {
			r := get("t", option(wire.HopLimit, string([]byte{hops})))
			r.Target.NextHop = "next"
			x.ask(r)
		}
		ask(9)
		ask(9)
		require.Len(t, x.origin.calls, 1, "the same is shared")
		ask(7)
		require.Len(t, x.origin.calls, 2)
		for _, k := range x.origin.calls {
			k.end(nil)
		}
	})
}
