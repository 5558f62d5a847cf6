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

func TestGroupETag(t *testing.T) { // GP-82, GP-83, GP-84, GP-85, GP-86
	m, change := members(serverA, serverB)
	run(t, change, func(x *fixture) {
		c := x.fill(groupGet(1, "t"), a("a", maxAge(30)), b("b", maxAge(20)))
		require.Empty(t, groupTagOf(c.got[0]), "the set is not complete yet")
		first := groupTagOf(c.got[1])
		require.Len(t, first, 8)
		wait(time.Second)

		ask := func(tags ...string) *client {
			r := groupGet(1, "t")
			for _, v := range tags {
				r.Options = append(r.Options, option(wire.GroupETag, v))
			}
			return x.ask(r)
		}
		c = ask()
		require.Len(t, c.got, 2)
		require.Equal(t, first, groupTagOf(c.got[0]))
		require.Equal(t, first, groupTagOf(c.got[1]))

		c = ask("other", first) // GP-85
		p := c.one()
		require.Equal(t, codes.Valid, p.Code)
		require.Empty(t, p.Payload)
		require.False(t, p.From.IsValid())
		require.Equal(t, message.Options{maxAge(19), option(wire.GroupETag, first)}, p.Options)
		require.Len(t, x.origin.calls, 1)
		require.Len(t, ask("other").got, 2) // GP-86

		// A member's entry is updated by unicast.
		put := get("t")
		put.Method = codes.PUT
		x.miss(put, &exchange.Response{Code: codes.Changed})
		x.miss(get("t"), content("a2", maxAge(30)))
		c = ask(first)
		require.Len(t, c.got, 2)
		second := groupTagOf(c.got[0])
		require.NotEqual(t, first, second)

		// Members leave and join.
		m.set(serverA)
		third := groupTagOf(ask(second).got[0])
		m.set(serverA, serverB)
		fourth := groupTagOf(ask(second, third).got[0])
		require.Len(t, map[string]bool{first: true, second: true, third: true, fourth: true}, 4)

		// Expired: no longer complete, and never the old tag again.
		wait(20 * time.Second)
		c = ask(fourth)
		x.last().sink.Respond(b("b"))
		x.last().end(nil)
		fifth := groupTagOf(c.got[len(c.got)-1])
		require.NotContains(t, []string{"", first, second, third, fourth}, fifth)
	})
}

// GP-83: a tag is gone once the set was not complete, even if nothing has changed
// when it is again.
func TestGroupETagDroppedWithCompleteness(t *testing.T) {
	m, change := members(serverA)
	run(t, change, func(x *fixture) {
		first := groupTagOf(x.fill(groupGet(1, "t"), a("a", maxAge(30))).got[0])
		require.Len(t, first, 8)
		wait(2 * time.Second)
		require.Equal(t, first, groupTagOf(x.ask(groupGet(1, "t")).got[0]), "nothing has changed")
		m.complete = false // as when the directory does not answer
		x.ask(groupGet(1, "t"))
		x.last().end(nil)
		wait(2 * time.Second)
		m.complete = true
		second := groupTagOf(x.ask(groupGet(1, "t")).got[0])
		require.Len(t, second, 8)
		require.NotEqual(t, first, second)
	})
}

func TestNoGroupETagWithoutKnownMembers(t *testing.T) { // GP-82
	m, change := members(serverA)
	m.complete = false
	run(t, change, func(x *fixture) {
		for range 2 {
			c := x.fill(groupGet(1, "t"), a("a"))
			for _, p := range c.got {
				require.Empty(t, groupTagOf(p))
			}
		}
	})
}

func TestGroupETagOnlyOn205(t *testing.T) { // GP-84
	_, change := members(serverA, serverB)
	run(t, change, func(x *fixture) {
		missing := groupFrom(serverA, &exchange.Response{Code: codes.NotFound})
		c := x.fill(groupGet(1, "t"), b("b"), missing)
		require.Empty(t, groupTagOf(c.got[1]))
		c = x.ask(groupGet(1, "t"))
		require.Len(t, c.got, 2)
		require.Empty(t, groupTagOf(c.got[0]))
		require.NotEmpty(t, groupTagOf(c.got[1]))
	})
}

func TestGroupETagOfANextHop(t *testing.T) { // GP-104
	m, change := members()
	run(t, change, func(x *fixture) {
		theirs := option(wire.GroupETag, "theirs")
		c := x.fill(groupGet(1, "t"), a("a", theirs))
		require.Equal(t, "theirs", groupTagOf(c.got[0]))
		m.set(serverA)
		c = x.fill(groupGet(1, "u"), a("a", theirs))
		require.NotEqual(t, "theirs", groupTagOf(c.got[0]))
		require.NotEmpty(t, groupTagOf(c.got[0]))
	})
}

// GP-104: a next proxy may confirm a tag that a request lists, so that two requests
// which list others do not share an exchange with it: one of them would get a 2.03
// for what it does not have.
func TestGroupETagsThroughANextHopAreNotShared(t *testing.T) {
	run(t, nil, func(x *fixture) {
		ask := func(tag string) {
			r := groupGet(10, "t", option(wire.GroupETag, tag))
			r.Target.NextHop = "next"
			x.ask(r)
		}
		ask("one")
		ask("one")
		require.Len(t, x.origin.calls, 1, "the same is shared")
		ask("two")
		require.Len(t, x.origin.calls, 2)
		for _, k := range x.origin.calls {
			k.end(nil)
		}
	})
}
