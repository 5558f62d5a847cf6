package cache

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// fill makes entries by a group request.
func (x *fixture) fill(r *exchange.Request, answers ...*exchange.Response) *client {
	x.t.Helper()
	before := len(x.origin.calls)
	c := x.ask(r)
	require.Len(x.t, x.origin.calls, before+1, "the group was not asked")
	for _, p := range answers {
		x.last().sink.Respond(p)
	}
	x.last().end(nil)
	return c
}

func groupTagOf(p *exchange.Response) string {
	v, _ := wire.First(p.Options, wire.GroupETag)
	return string(v)
}

func a(body string, options ...message.Option) *exchange.Response {
	return groupFrom(serverA, content(body, options...))
}

func b(body string, options ...message.Option) *exchange.Response {
	return groupFrom(serverB, content(body, options...))
}

func TestEntriesOfGroupAndServerAreTheSame(t *testing.T) { // GP-70, GP-71, GC-62
	_, change := members(serverA, serverB)
	run(t, change, func(x *fixture) {
		x.fill(groupGet(10, "t"), a("a1"), b("b1"))
		require.Equal(t, "a1", string(x.hit(get("t")).Payload))
		p := x.hit(to(serverB, get("t")))
		require.Equal(t, "b1", string(p.Payload))
		require.Equal(t, serverB, p.From)
		require.Zero(t, p.GroupPort)

		// The other way round: one response of each server by unicast.
		x.miss(get("u"), content("a2"))
		x.miss(to(serverB, get("u")), from(serverB, content("b2")))
		c := x.ask(groupGet(10, "u"))
		require.Len(t, x.origin.calls, 3)
		require.Equal(t, []string{"a2", "b2"}, c.bodies()) // GP-75
		require.Equal(t, []error{nil}, c.ends)
		require.Equal(t, serverB, c.got[1].From) // GP-51, GP-74
		require.EqualValues(t, 5683, c.got[1].GroupPort)

		// By name, the group is the same one (GC-2); a virtual host is not the same server.
		named := groupGet(10, "u")
		named.Target.Host = "group.example"
		require.Equal(t, []string{"a2", "b2"}, x.ask(named).bodies())
		virtual := get("u")
		virtual.Target.Host = "a.example"
		x.miss(virtual, content("other"))
	})
}

func TestGroupKeyAndReplacement(t *testing.T) { // GP-72, GP-73, GC-60
	_, change := members(serverA)
	run(t, change, func(x *fixture) {
		x.fill(groupGet(10, "t"), a("one", maxAge(100)), a("two"))
		require.Equal(t, "two", string(x.hit(get("t")).Payload))
		c := x.ask(groupGet(300, "t")) // T' is not in the key
		require.Equal(t, []string{"two"}, c.bodies())
		x.fill(groupGet(10, "t", uintOption(wire.Accept, 50)), a("three"))
		post := groupGet(10, "p")
		post.Method = codes.POST
		x.fill(post, a("not stored"))
		require.EqualValues(t, 2, x.stats.Entries.Load())
	})
}

func TestCompleteOnlyWithAllMembers(t *testing.T) { // GP-75, GC-61
	m, change := members()
	run(t, change, func(x *fixture) {
		ask := func() *client {
			x.t.Helper()
			return x.fill(groupGet(1, "t"), a("a", maxAge(600)), b("b", maxAge(600)))
		}
		ask()
		ask() // nobody knows the members
		m.set(serverA, serverB)
		hit := func() *client {
			x.t.Helper()
			before := len(x.origin.calls)
			c := x.ask(groupGet(1, "t"))
			require.Len(t, x.origin.calls, before)
			return c
		}
		require.Len(t, hit().got, 2)
		m.set(serverA) // one has left: its entry answers no more
		require.Equal(t, []string{"a"}, hit().bodies())
		m.set(serverA, serverB, serverC) // one has joined
		ask()
		m.set()
		m.complete = true
		ask() // an empty group proves nothing
		m.set(serverA, serverB)
		hit()
		m.complete = false
		ask()
	})
}

func TestSilentGroupRequestPasses(t *testing.T) { // GP-37
	_, change := members(serverA)
	run(t, change, func(x *fixture) {
		x.fill(groupGet(1, "t"), a("a"))
		c := x.ask(groupGet(0, "t"))
		require.Len(t, x.origin.calls, 2)
		require.Empty(t, c.got)
		x.last().end(nil)
	})
}

func TestStoredResponsesBesideLiveOnes(t *testing.T) { // GP-76, GP-77, GP-78, GP-79
	run(t, nil, func(x *fixture) {
		x.fill(groupGet(10, "t"), a("a", maxAge(15)), b("b", maxAge(100)), groupFrom(serverC, content("c", maxAge(100))))
		wait(10 * time.Second)
		start := time.Now()
		c := x.ask(groupGet(40, "t"))
		require.Equal(t, []string{"a"}, c.bodies()) // L = 5 s < T'
		require.EqualValues(t, 5, maxAgeOf(t, c.got[0]))
		wait(20 * time.Second)
		x.last().sink.Respond(a("a live"))
		x.last().sink.Respond(b("b live"))
		wait(19*time.Second - time.Millisecond)
		require.Equal(t, []string{"a", "a live", "b live"}, c.bodies())
		wait(time.Millisecond)   // T' - g
		require.Len(t, c.got, 3) // b is first of two over g, and overtaken
		wait(500 * time.Millisecond)
		require.Equal(t, []string{"a", "a live", "b live", "c"}, c.bodies())
		require.Equal(t, 39500*time.Millisecond, c.at[3].Sub(start))
		require.EqualValues(t, 50, maxAgeOf(t, c.got[3]))
		require.Equal(t, serverC, c.got[3].From)
		require.Empty(t, c.ends)
		x.last().end(nil)
		require.Equal(t, []error{nil}, c.ends)
		require.EqualValues(t, 2, x.stats.Deferred.Load())
		require.EqualValues(t, 1, x.stats.Overtaken.Load())
	})
}

func TestMargin(t *testing.T) { // GP-79
	for timeout, want := range map[time.Duration]time.Duration{time.Second: 100 * time.Millisecond, 2 * time.Second: 100 * time.Millisecond,
		10 * time.Second: 500 * time.Millisecond, 20 * time.Second: time.Second, time.Hour: time.Second} {
		require.Equal(t, want, margin(timeout), timeout)
	}
}

func TestHeldBackResponsesAreGivenUp(t *testing.T) {
	prepare := func(x *fixture) *client {
		x.fill(groupGet(10, "t"), a("a", maxAge(100)))
		return x.ask(groupGet(10, "t"))
	}
	t.Run("early stop", func(t *testing.T) { // GP-46
		run(t, nil, func(x *fixture) {
			c := prepare(x)
			c.cancel.Cancel()
			require.Equal(t, []error{exchange.ErrCanceled}, c.ends)
			require.True(t, x.last().canceled)
			wait(20 * time.Second)
			require.Empty(t, c.got)
		})
	})
	t.Run("changed meanwhile", func(t *testing.T) {
		run(t, nil, func(x *fixture) {
			c := prepare(x)
			running := x.last()
			put := get("t")
			put.Method = codes.PUT
			x.miss(put, &exchange.Response{Code: codes.Changed})
			wait(10 * time.Second)
			require.Empty(t, c.got)
			running.end(nil)
		})
	})
	t.Run("asked meanwhile", func(t *testing.T) {
		run(t, nil, func(x *fixture) {
			c := prepare(x)
			running := x.last()
			x.fill(groupGet(10, "t", etag("other")), a("newer"))
			wait(10 * time.Second)
			require.Equal(t, []string{"newer"}, c.bodies())
			running.end(nil)
		})
	})
	t.Run("no way to the group", func(t *testing.T) {
		run(t, nil, func(x *fixture) {
			failure := exchange.Failf(exchange.Unreachable, "no way")
			x.fill(groupGet(10, "t"), a("a", maxAge(5)))
			x.origin.answer = func(k *call) { k.end(failure) }
			c := x.ask(groupGet(10, "t"))
			require.Empty(t, c.got)
			require.Equal(t, []error{failure}, c.ends)
		})
	})
	t.Run("upstream ends early", func(t *testing.T) {
		run(t, nil, func(x *fixture) {
			c := prepare(x)
			x.last().end(nil)
			require.Equal(t, []string{"a"}, c.bodies())
			require.Equal(t, []error{nil}, c.ends)
		})
	})
}

func TestOnlyServersOfTheGroup(t *testing.T) {
	run(t, nil, func(x *fixture) {
		x.miss(get("t"), content("stranger", maxAge(5)))
		c := x.fill(groupGet(10, "t"))
		require.Empty(t, c.got) // nobody knows that A is a member
		x.fill(groupGet(10, "other"), a("x"))
		c = x.ask(groupGet(10, "t"))
		require.Equal(t, []string{"stranger"}, c.bodies())
		x.last().end(nil)
	})
}

func TestGroupValidation(t *testing.T) { // GP-80, GC-63
	run(t, nil, func(x *fixture) {
		x.fill(groupGet(1, "t"), a("a", etag("a1"), maxAge(5)), b("b", etag("b1"), maxAge(5)))
		wait(5 * time.Second)
		c := x.ask(groupGet(10, "t", etag("a1")))
		require.Equal(t, []string{"a1", "b1"}, x.last().etags())
		valid := func(server netip.AddrPort, tag string) *exchange.Response {
			return groupFrom(server, &exchange.Response{Code: codes.Valid, Options: message.Options{etag(tag), maxAge(50)}})
		}
		x.last().sink.Respond(valid(serverA, "a1"))
		x.last().sink.Respond(valid(serverB, "b1"))
		require.Equal(t, codes.Valid, c.got[0].Code) // the client listed it
		require.Equal(t, codes.Content, c.got[1].Code)
		require.Equal(t, "b", string(c.got[1].Payload))
		require.Equal(t, serverB, c.got[1].From)
		require.EqualValues(t, 50, maxAgeOf(t, c.got[1]))
		x.last().end(nil)
		x.hit(get("t"))
		x.hit(to(serverB, get("t")))
	})
}

func TestAlienETagInAGroup(t *testing.T) { // GP-80, GC-64, GC-65
	run(t, nil, func(x *fixture) {
		x.fill(groupGet(1, "t"), a("a", etag("a1"), maxAge(5)), b("b", etag("b1"), maxAge(5)))
		wait(5 * time.Second)
		c := x.ask(groupGet(10, "t"))
		group := x.last()
		group.sink.Respond(groupFrom(serverA, &exchange.Response{Code: codes.Valid, Options: message.Options{etag("b1")}}))
		require.Empty(t, c.got)
		require.Len(t, x.origin.calls, 3)
		again := x.last()
		require.False(t, again.Target.Group)
		require.Equal(t, serverA, again.Target.Addr)
		require.Equal(t, []string{"a1"}, again.etags()) // its own may be sent
		require.False(t, again.Timeout.Present)
		again.respond(content("a2", etag("b1")))
		require.Equal(t, []string{"a2"}, c.bodies())
		require.EqualValues(t, 5683, c.got[0].GroupPort)
		group.end(nil)

		// b1 was seen from two servers.
		wait(time.Minute)
		x.fill(groupGet(1, "t"), a("a", etag("b1"), maxAge(5)))
		wait(5 * time.Second)
		x.fill(groupGet(1, "t"))
		require.Empty(t, x.last().etags())

		// T' ends before the answer.
		c = x.ask(groupGet(10, "t"))
		group = x.last()
		group.sink.Respond(groupFrom(serverA, &exchange.Response{Code: codes.Valid, Options: message.Options{etag("zz")}}))
		again = x.last()
		group.end(nil)
		require.True(t, again.canceled)
		require.Empty(t, c.got)
	})
}

// The one server asked again has to answer, whatever the client said of a group's.
func TestAskedAgainWithoutNoResponse(t *testing.T) { // GP-80, GC-32
	run(t, nil, func(x *fixture) {
		x.fill(groupGet(1, "t"), a("a", etag("a1"), maxAge(5)))
		wait(5 * time.Second)
		c := x.ask(groupGet(10, "t", option(wire.NoResponse, "\x08")))
		group := x.last()
		require.True(t, wire.Has(group.Options, wire.NoResponse))
		group.sink.Respond(groupFrom(serverA, &exchange.Response{Code: codes.Valid, Options: message.Options{etag("zz")}}))
		again := x.last()
		require.False(t, again.Target.Group)
		require.False(t, wire.Has(again.Options, wire.NoResponse))
		again.respond(content("a2"))
		require.Equal(t, []string{"a2"}, c.bodies())
		group.end(nil)
	})
}

func TestETagsInAGroupAreBounded(t *testing.T) { // GP-80
	run(t, nil, func(x *fixture) {
		var answers []*exchange.Response
		for i := range 20 {
			server := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 5683)
			answers = append(answers, groupFrom(server, content("x", etag(fmt.Sprint("e", i)))))
		}
		x.fill(groupGet(1, "t"), answers...)
		x.fill(groupGet(1, "t", etag("own")))
		require.Len(t, x.last().etags(), 8)
		require.Equal(t, "own", x.last().etags()[0])
	})
}

func TestJoiningARunningGroupExchange(t *testing.T) { // GC-82
	run(t, nil, func(x *fixture) {
		first := x.ask(groupGet(10, "t"))
		leg := x.last()
		leg.sink.Respond(a("a", maxAge(100)))
		wait(4 * time.Second)
		second := x.ask(groupGet(10, "t"))
		require.Len(t, x.origin.calls, 1)
		require.Equal(t, []string{"a"}, second.bodies())
		require.EqualValues(t, 96, maxAgeOf(t, second.got[0]))
		require.Equal(t, second.at[0].Add(10*time.Second), leg.until) // lives until the largest T'
		leg.sink.Respond(b("b"))
		require.Equal(t, []string{"a", "b"}, first.bodies())
		require.Equal(t, []string{"a", "b"}, second.bodies())
		wait(6 * time.Second)
		require.Equal(t, []error{nil}, first.ends) // its own T'
		require.Empty(t, second.ends)
		leg.sink.Respond(groupFrom(serverC, content("c")))
		require.Len(t, first.got, 2)
		require.Len(t, second.got, 3)
		leg.end(nil)
		require.Equal(t, []error{nil}, second.ends)
	})
}

func TestNotJoiningARunningGroupExchange(t *testing.T) { // GC-82
	relayed := func(answers ...*exchange.Response) func(*fixture) {
		return func(x *fixture) {
			for _, p := range answers {
				x.last().sink.Respond(p)
			}
		}
	}
	nothing := relayed()
	for name, tt := range map[string]struct {
		between func(*fixture)
		second  *exchange.Request
	}{
		"a response is not stored":   {relayed(a("a", maxAge(0))), groupGet(10, "t")},
		"a response is stale":        {func(x *fixture) { relayed(a("a", maxAge(1)))(x); wait(time.Second) }, groupGet(10, "t")},
		"a server answered twice":    {relayed(a("one"), a("two")), groupGet(10, "t")},
		"the proxy's own response":   {relayed(groupFrom(netip.AddrPort{}, content("x"))), groupGet(10, "t")},
		"other ETags":                {nothing, groupGet(10, "t", etag("x"))},
		"other No-Response":          {nothing, groupGet(10, "t", uintOption(wire.NoResponse, 8))},
		"other path":                 {nothing, groupGet(10, "u")},
		"T' = 0":                     {nothing, groupGet(0, "t")},
		"the leg cannot be extended": {func(x *fixture) { x.last().cannot = true }, groupGet(100, "t")},
		"changed since": {func(x *fixture) {
			put := get("t")
			put.Method = codes.PUT
			leg := x.last()
			x.miss(put, &exchange.Response{Code: codes.Changed})
			x.origin.calls = []*call{leg}
		}, groupGet(10, "t")},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, nil, func(x *fixture) {
				first := x.ask(groupGet(10, "t"))
				tt.between(x)
				second := x.ask(tt.second)
				require.Len(t, x.origin.calls, 2)
				for _, k := range x.origin.calls {
					k.end(nil)
				}
				require.Len(t, first.ends, 1)
				require.Len(t, second.ends, 1)
			})
		})
	}
}

func TestLastClientGone(t *testing.T) { // GP-41
	run(t, nil, func(x *fixture) {
		first, second := x.ask(groupGet(10, "t")), x.ask(groupGet(10, "t"))
		first.cancel.Cancel()
		require.False(t, x.last().canceled)
		x.last().sink.Respond(a("a"))
		require.Empty(t, first.got)
		require.Len(t, second.got, 1)
		second.cancel.Cancel()
		require.True(t, x.last().canceled)
	})
	run(t, nil, func(x *fixture) {
		c := &client{t: t, stopAt: 1}
		x.askWith(groupGet(10, "t"), c)
		x.last().sink.Respond(a("a"))
		require.Equal(t, []error{nil}, c.ends)
		require.True(t, x.last().canceled)
	})
}

func TestUnsafeGroupRequests(t *testing.T) { // FP-47, GC-71
	post := func(seconds uint32, options ...message.Option) *exchange.Request {
		r := groupGet(seconds, "t", options...)
		r.Method = codes.POST
		return r
	}
	run(t, nil, func(x *fixture) {
		x.fill(groupGet(1, "t"), a("a"), b("b"))
		x.miss(to(serverC, get("t")), from(serverC, content("c")))
		c := x.ask(post(1))
		x.miss(get("t"), content("a1")) // it may have been carried out already
		x.last().Cancel()
		x.origin.calls[2].sink.Respond(groupFrom(serverB, &exchange.Response{Code: codes.Changed}))
		x.miss(to(serverB, get("t")), from(serverB, content("b1")))
		x.hit(to(serverB, get("t")))
		x.origin.calls[2].end(nil)
		require.Len(t, c.got, 1)
		x.miss(get("t"), content("a2")) // whose silence tells nothing (GC-30)
		x.miss(to(serverB, get("t")), from(serverB, content("b2")))
		x.hit(to(serverC, get("t"))) // not in the group
	})
	for _, r := range []*exchange.Request{post(0), post(1, uintOption(wire.NoResponse, 2))} {
		run(t, nil, func(x *fixture) {
			x.fill(groupGet(1, "t"), a("a"))
			x.fill(r) // nobody will tell
			x.miss(get("t"), content("a2"))
		})
	}
}

func TestSeveralGroups(t *testing.T) { // GC-2
	other := netip.MustParseAddrPort("[ff05::1:2]:5683")
	m, change := members(serverA, serverB)
	_ = m
	run(t, change, func(x *fixture) {
		r := groupGet(1, "t")
		r.Target.Also = []exchange.GroupAddr{{Addr: other, Name: "other"}}
		x.fill(r, a("a"), b("b"))
		c := x.ask(r)
		require.Len(t, x.origin.calls, 1)
		require.Len(t, c.got, 2)
		require.NotEqual(t, groupTagOf(c.got[0]), groupTagOf(x.ask(groupGet(1, "t")).got[0]))
	})
}

func TestBodyTooLongForTheClient(t *testing.T) { // GC-54
	_, change := members(serverA)
	run(t, change, func(x *fixture) {
		r := groupGet(1, "t")
		r.BodyLimit = 5
		x.fill(groupGet(1, "t"), a("too long"))
		c := x.fill(r)
		require.Empty(t, c.got)
	})
}
