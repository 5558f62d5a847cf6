package cache

import (
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
)

func stored(r *exchange.Request, s exchange.Stored) *exchange.Request {
	r.Stored = s
	return r
}

// What a client says about stored responses (HC-57).
func TestStored(t *testing.T) {
	run(t, nil, func(x *fixture) {
		only := exchange.Stored{Only: true}
		failed := func(r *exchange.Request) {
			t.Helper()
			calls := len(x.origin.calls)
			c := x.ask(r)
			require.Empty(t, c.got)
			require.Equal(t, exchange.NoAnswer, exchange.AsFailure(c.ends[0]).Reason)
			require.Len(t, x.origin.calls, calls, "nobody is asked")
		}
		failed(stored(get("a"), only))
		x.miss(stored(get("a"), exchange.Stored{Unkept: true}), content("one", maxAge(30)))
		failed(stored(get("a"), only))
		x.miss(get("a"), content("two", maxAge(30), etag("e")))
		require.Equal(t, "two", string(x.hit(stored(get("a"), only)).Payload))

		wait(10 * time.Second)
		limited := func(d time.Duration) exchange.Stored { return exchange.Stored{Limited: true, MaxAge: d} }
		require.Equal(t, "two", string(x.hit(stored(get("a"), limited(10*time.Second))).Payload))
		failed(stored(get("a"), exchange.Stored{Limited: true, MaxAge: 9 * time.Second, Only: true}))
		x.miss(stored(get("a"), limited(9*time.Second)), content("three", maxAge(30), etag("f")))
		require.Equal(t, "three", string(x.hit(get("a")).Payload))

		// A fresh response is confirmed, by its tag if it has one.
		valid := content("", maxAge(40), etag("f"))
		valid.Code = codes.Valid
		p := x.miss(stored(get("a"), exchange.Stored{Confirmed: true}), valid).one()
		require.Equal(t, []string{"f"}, x.last().etags())
		require.Equal(t, codes.Content, p.Code)
		require.Equal(t, "three", string(p.Payload))
		require.EqualValues(t, 40, maxAgeOf(t, x.hit(get("a"))))
	})
}

func TestStoredOfGroups(t *testing.T) { // HC-57
	_, config := members(serverA)
	run(t, config, func(x *fixture) {
		c := x.ask(groupGet(1, "a"))
		x.last().respond(groupFrom(serverA, content("one", maxAge(30))))
		wait(2 * time.Second)
		x.last().end(nil)
		require.Equal(t, []string{"one"}, c.bodies())

		calls := len(x.origin.calls)
		require.Equal(t, []string{"one"}, x.ask(stored(groupGet(1, "a"), exchange.Stored{Only: true})).bodies())
		require.Len(t, x.origin.calls, calls)
		failed := x.ask(stored(groupGet(1, "b"), exchange.Stored{Only: true}))
		require.Equal(t, exchange.NoAnswer, exchange.AsFailure(failed.ends[0]).Reason)
		require.Len(t, x.origin.calls, calls)

		c = x.ask(stored(groupGet(1, "a"), exchange.Stored{Confirmed: true}))
		require.Len(t, x.origin.calls, calls+1, "the group is asked")
		x.last().respond(groupFrom(serverA, content("two", maxAge(30))))
		wait(2 * time.Second)
		x.last().end(nil)
		require.Equal(t, []string{"two"}, c.bodies())
	})
}
