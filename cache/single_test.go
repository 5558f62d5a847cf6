package cache

import (
	"strings"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

func TestFreshness(t *testing.T) {
	run(t, nil, func(x *fixture) {
		x.miss(get("a"), content("one", maxAge(30))).one()
		wait(10*time.Second + 500*time.Millisecond)
		p := x.hit(get("a"))
		require.Equal(t, "one", string(p.Payload))
		require.Equal(t, codes.Content, p.Code)
		require.Equal(t, serverA, p.From)
		require.EqualValues(t, 19, maxAgeOf(t, p)) // FP-42, FP-43
		wait(19*time.Second + 499*time.Millisecond)
		require.EqualValues(t, 0, maxAgeOf(t, x.hit(get("a"))))
		wait(time.Millisecond)
		x.miss(get("a"), content("two")) // FP-44
		require.Equal(t, "two", string(x.hit(get("a")).Payload))
		wait(59 * time.Second) // FP-42: the default
		require.EqualValues(t, 1, maxAgeOf(t, x.hit(get("a"))))
		wait(time.Second)
		x.miss(get("a"), content("three", maxAge(0)))
		x.miss(get("a"), content("four")) // FP-42: 0 is not reusable
		require.EqualValues(t, 4, x.stats.Hits.Load())
		require.EqualValues(t, 4, x.stats.Misses.Load())
		require.EqualValues(t, 1, x.stats.Entries.Load())
	})
}

func TestMaxAgeIsCapped(t *testing.T) {
	run(t, func(c *Config) { c.MaxAge = 100 }, func(x *fixture) {
		x.miss(get("a"), content("one", maxAge(1<<32-1)))
		require.EqualValues(t, 100, maxAgeOf(t, x.hit(get("a"))))
		wait(100 * time.Second)
		x.miss(get("a"), content("two"))
	})
}

func TestCacheableCodes(t *testing.T) { // FP-40
	stored := []codes.Code{codes.Content, codes.BadRequest, codes.NotFound, wire.Conflict, wire.UnprocessableEntity,
		codes.InternalServerError, codes.ServiceUnavailable, codes.GatewayTimeout}
	passed := []codes.Code{codes.Created, codes.Deleted, codes.Changed, codes.Continue, 2<<5 | 30, 4<<5 | 30, 5<<5 | 30, codes.TooManyRequests}
	for i, code := range append(stored, passed...) {
		run(t, nil, func(x *fixture) {
			p := content("x")
			p.Code = code
			require.Equal(t, code, x.miss(get("a"), p).one().Code)
			if i < len(stored) {
				require.Equal(t, code, x.hit(get("a")).Code)
			} else {
				x.miss(get("a"), p)
			}
		})
	}
}

func TestKey(t *testing.T) { // FP-41, FP-24, GP-72
	base := func(options ...message.Option) *exchange.Request { return get("a", options...) }
	fetch := func(body string, options ...message.Option) *exchange.Request {
		r := get("a", options...)
		r.Method, r.Payload = wire.FETCH, []byte(body)
		return r
	}
	behind := func(hop string) *exchange.Request { r := get("a"); r.Target.NextHop = hop; return r }
	named := func(host string) *exchange.Request { r := get("a"); r.Target.Host = host; return r }
	tests := []struct {
		name  string
		a, b  *exchange.Request
		equal bool
	}{
		{"another server of that address, behind a next proxy", base(), behind("north"), false},
		{"behind different next proxies", behind("south"), behind("north"), false},
		{"behind the same next proxy", behind("north"), behind("north"), true},
		{"method", base(), fetch(""), false},
		{"path", base(), get("b"), false},
		{"path cut elsewhere", get("a", option(wire.URIPath, "b")), get("ab"), false},
		{"path or query", get("a", option(wire.URIPath, "b")), get("a", option(wire.URIQuery, "b")), false},
		{"empty path", get(""), &exchange.Request{Method: codes.GET, Target: base().Target, Confirmable: true}, true},
		{"abbreviated path", &exchange.Request{Method: codes.GET, Target: base().Target, Options: message.Options{{ID: wire.URIPathAbbrev}}},
			get(".well-known", option(wire.URIPath, "core")), true}, // FP-9
		{"unknown abbreviation", &exchange.Request{Method: codes.GET, Target: base().Target, Options: message.Options{uintOption(wire.URIPathAbbrev, 9999)}},
			&exchange.Request{Method: codes.GET, Target: base().Target}, false},
		{"server", base(), to(serverB, get("a")), false},
		{"port", base(), to(serverC, get("a")), false},
		{"virtual host", base(), named("a.example"), false},
		{"virtual hosts", named("b.example"), named("a.example"), false},
		{"Accept", base(uintOption(wire.Accept, 50)), base(uintOption(wire.Accept, 60)), false},
		{"Content-Format", fetch("x", uintOption(wire.ContentFormat, 50)), fetch("x", uintOption(wire.ContentFormat, 60)), false}, // GC-71
		{"FETCH body", fetch("x"), fetch("y"), false},
		{"same FETCH", fetch("x"), fetch("x"), true},
		{"unknown safe option", base(option(2100, "x")), base(option(2100, "y")), false},
		{"order of repeated options", base(option(2100, "x"), option(2100, "y")), base(option(2100, "y"), option(2100, "x")), false},
		{"NoCacheKey option", base(option(0x11c, "x")), base(option(0x11c, "y")), true},
		{"ETag", base(etag("x")), base(), true},
		{"Max-Age", base(maxAge(1)), base(), true},
		{"Size", base(uintOption(wire.Size2, 0)), base(), true},
		{"Hop-Limit", base(uintOption(wire.HopLimit, 7)), base(), true},
		{"No-Response", base(uintOption(wire.NoResponse, 8)), base(), true},
		{"Echo", base(option(wire.Echo, "x")), base(), true},
		{"Request-Tag", base(option(wire.RequestTag, "x")), base(), true},
		{"Group-ETag", base(option(wire.GroupETag, "x")), base(), true},
		{"Observe", base(option(wire.Observe, "")), base(), true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			run(t, nil, func(x *fixture) {
				x.miss(tt.a, content("one"))
				if tt.equal {
					x.hit(tt.b)
					x.hit(tt.a)
				} else {
					x.miss(tt.b, content("two"))
					require.Equal(t, "one", string(x.hit(tt.a).Payload))
					require.Equal(t, "two", string(x.hit(tt.b).Payload))
				}
			})
		})
	}
}

func TestBypass(t *testing.T) {
	post := get("a")
	post.Method = codes.POST
	silent := get("a")
	silent.Timeout.Present = true
	fetch := get("a")
	fetch.Method, fetch.Payload = wire.FETCH, []byte(strings.Repeat("x", 5000))
	nobody := get("a")
	nobody.Target.Scheme = "coaps"
	for _, tt := range []struct {
		why Bypass
		r   *exchange.Request
	}{
		{BypassMethod, post},
		{BypassCondition, get("a", option(wire.IfMatch, "x"))}, // FP-24
		{BypassCondition, get("a", option(wire.IfNoneMatch, ""))},
		{BypassProtected, get("a", option(wire.OSCORE, "x"))},
		{BypassSilent, silent}, // GP-37
		{BypassBlock, get("a", uintOption(wire.Block2, 0x16))},
		{BypassNobody, nobody},
		{BypassLongKey, fetch}, // FP-51
		{BypassLongKey, get("a", option(wire.URIQuery, strings.Repeat("x", 5000)))},
	} {
		t.Run(tt.why.String(), func(t *testing.T) {
			run(t, nil, func(x *fixture) {
				x.miss(tt.r, content("one"))
				x.miss(tt.r, content("two")).one()
				require.EqualValues(t, 2, x.stats.Bypassed[tt.why].Load())
				require.Zero(t, x.stats.Entries.Load())
			})
		})
	}
}

func TestNotStored(t *testing.T) {
	for name, p := range map[string]*exchange.Response{
		"protected":         content("x", option(wire.OSCORE, "")), // GP-81
		"challenge":         {Code: codes.Unauthorized, Options: message.Options{option(wire.Echo, "e")}},
		"one block":         content("x", uintOption(wire.Block2, 0x0e)),
		"long body":         content(strings.Repeat("x", 101)), // FP-51
		"Max-Age 0":         content("x", maxAge(0)),
		"malformed Max-Age": content("x", option(wire.MaxAge, "12345")),
	} {
		t.Run(name, func(t *testing.T) {
			run(t, func(c *Config) { c.MaxBody = 100 }, func(x *fixture) {
				x.miss(get("a"), p)
				x.miss(get("a"), p).one()
				require.EqualValues(t, 2, x.stats.NotStored.Load())
			})
		})
	}
}

func TestValidation(t *testing.T) { // FP-45
	run(t, nil, func(x *fixture) {
		x.miss(get("a"), content("one", etag("v1"), uintOption(wire.ContentFormat, 50), option(2052, "old")))
		wait(time.Minute)
		c := x.ask(get("a"))
		require.Equal(t, []string{"v1"}, x.last().etags())
		x.last().respond(&exchange.Response{Code: codes.Valid, Options: sorted(message.Options{etag("v1"), maxAge(20), option(2052, "new"), option(2056, "more")})})
		p := c.one()
		require.Equal(t, codes.Content, p.Code)
		require.Equal(t, "one", string(p.Payload))
		require.Equal(t, sorted(message.Options{etag("v1"), uintOption(wire.ContentFormat, 50), maxAge(20), option(2052, "new"), option(2056, "more")}), p.Options)
		wait(19 * time.Second)
		require.EqualValues(t, 1, maxAgeOf(t, x.hit(get("a"))))
		wait(time.Second)

		// A client that listed the ETag gets the 2.03.
		c = x.ask(get("a", etag("v1"), etag("v0")))
		require.Equal(t, []string{"v1", "v0"}, x.last().etags())
		x.last().respond(&exchange.Response{Code: codes.Valid, Options: message.Options{etag("v1")}})
		require.Equal(t, codes.Valid, c.one().Code)
		x.hit(get("a"))
		wait(time.Minute)

		// One that listed others has them sent beside the stored one.
		c = x.ask(get("a", etag("v2"), etag("v3")))
		require.Equal(t, []string{"v2", "v3", "v1"}, x.last().etags())
		x.last().respond(&exchange.Response{Code: codes.Valid, Options: message.Options{etag("v3")}})
		require.Equal(t, codes.Valid, c.one().Code)
		require.EqualValues(t, 2, x.stats.Validated.Load())
		require.EqualValues(t, 1, x.stats.Unmatched.Load())
		x.miss(get("a"), content("two", etag("v4")))
		require.Equal(t, "two", string(x.hit(get("a")).Payload))
	})
}

func TestFreshEntryForListedETag(t *testing.T) { // FP-46
	run(t, nil, func(x *fixture) {
		x.miss(get("a"), content("one", etag("v1"), uintOption(wire.ContentFormat, 50), maxAge(30)))
		wait(time.Second)
		p := x.hit(get("a", etag("v0"), etag("v1")))
		require.Equal(t, codes.Valid, p.Code)
		require.Empty(t, p.Payload)
		require.Equal(t, message.Options{etag("v1"), maxAge(29)}, p.Options)
		require.Equal(t, codes.Content, x.hit(get("a", etag("v0"))).Code)
	})
}

func TestMaxAgeZeroWithETagIsValidated(t *testing.T) {
	run(t, nil, func(x *fixture) {
		x.miss(get("a"), content("one", etag("v1"), maxAge(0)))
		for range 2 {
			c := x.ask(get("a"))
			require.Equal(t, []string{"v1"}, x.last().etags())
			x.last().respond(&exchange.Response{Code: codes.Valid, Options: message.Options{etag("v1"), maxAge(0)}})
			require.Equal(t, "one", string(c.one().Payload))
			require.EqualValues(t, 0, maxAgeOf(t, c.got[0]))
		}
	})
}

func TestBadETags(t *testing.T) { // FP-22
	for name, options := range map[string]message.Options{
		"nine bytes": {etag("123456789")},
		"empty":      {etag("")},
		"two":        {etag("a"), etag("b")},
	} {
		t.Run(name, func(t *testing.T) {
			run(t, nil, func(x *fixture) {
				x.miss(get("a"), content("one", options...))
				require.Equal(t, codes.Content, x.hit(get("a", options...)).Code)
				wait(time.Minute)
				x.ask(get("a"))
				require.Empty(t, x.last().etags())
				x.last().end(nil)
			})
		})
	}
}

func TestValidNobodyAskedFor(t *testing.T) {
	valid := func(tag string) *exchange.Response {
		return &exchange.Response{Code: codes.Valid, Options: message.Options{etag(tag)}}
	}
	run(t, nil, func(x *fixture) {
		// No ETag was sent at all.
		c := x.ask(get("a"))
		x.last().respond(valid("x"))
		require.Empty(t, c.got)
		require.Equal(t, exchange.BadResponse, exchange.AsFailure(c.ends[0]).Reason)

		// The server confirms another ETag than the stored one: it is asked for the
		// body, once.
		x.miss(get("a"), content("one", etag("v1")))
		wait(time.Minute)
		c = x.ask(get("a"))
		x.last().respond(valid("v2"))
		require.Empty(t, c.ends)
		require.Len(t, x.origin.calls, 4)
		require.Empty(t, x.last().etags())
		other := x.ask(get("a")) // FP-49: joins the second try too
		require.Len(t, x.origin.calls, 4)
		x.last().respond(content("two", etag("v2")))
		require.Equal(t, "two", string(c.one().Payload))
		require.Equal(t, "two", string(other.one().Payload))

		wait(time.Minute)
		c = x.ask(get("a"))
		x.last().respond(valid("v3"))
		x.last().respond(valid("v3"))
		require.Equal(t, exchange.BadResponse, exchange.AsFailure(c.ends[0]).Reason)
	})
}

func TestInvalidation(t *testing.T) { // FP-47
	variants := []*exchange.Request{get("a"), get("a", uintOption(wire.Accept, 50)), get("a")}
	variants[2].Target.Host = "a.example"
	private := get("a")
	private.Target.Scheme, private.Client = "coaps", &exchange.Identity{Name: "alice"}
	variants = append(variants, private)
	for _, tt := range []struct {
		method, code codes.Code
		stale        bool
	}{
		{codes.PUT, codes.Changed, true}, {codes.PUT, codes.Created, true}, {codes.DELETE, codes.Deleted, true},
		{codes.POST, codes.Changed, true}, {wire.PATCH, codes.Changed, true}, {wire.IPATCH, codes.Created, true}, // GC-71
		{20, codes.Changed, true}, // FP-26
		{codes.PUT, codes.BadRequest, false}, {codes.POST, codes.InternalServerError, false},
	} {
		run(t, nil, func(x *fixture) {
			for _, v := range variants {
				x.miss(v, content("old"))
			}
			other := get("b")
			x.miss(other, content("other"))
			change := get("a")
			change.Method = tt.method
			x.miss(change, &exchange.Response{Code: tt.code}).one()
			for _, v := range variants {
				if tt.stale {
					x.miss(v, content("new"))
				} else {
					x.hit(v)
				}
			}
			x.hit(other)
		})
	}
}

func TestInvalidationOfALocation(t *testing.T) { // FP-47, GC-66
	run(t, nil, func(x *fixture) {
		created := get("list", option(wire.URIPath, "7"), option(wire.URIQuery, "q"))
		x.miss(created, content("old", etag("v1")))
		post := get("list")
		post.Method = codes.POST
		x.miss(post, &exchange.Response{Code: codes.Created, Options: message.Options{option(wire.LocationPath, "list"),
			option(wire.LocationPath, "7"), option(wire.LocationQuery, "q")}})
		x.miss(created, content("new"))
		require.Equal(t, []string{"v1"}, x.last().etags()) // stale, and still good for validation
	})
}

func TestChangeOvertakesAnExchangeUnderWay(t *testing.T) { // FP-47
	run(t, nil, func(x *fixture) {
		c := x.ask(get("a"))
		old := x.last()
		put := get("a")
		put.Method = codes.PUT
		x.miss(put, &exchange.Response{Code: codes.Changed})
		later := x.miss(get("a"), content("new")) // does not join
		require.Equal(t, "new", string(later.one().Payload))
		old.respond(content("old"))
		require.Equal(t, "old", string(c.one().Payload))
		x.miss(get("a"), content("newer")) // what was old replaced the entry and is not fresh
	})
}

func TestPrivateEntries(t *testing.T) { // FP-48
	of := func(name string, authenticated bool) *exchange.Request {
		r := get("a")
		r.Target.Scheme, r.Client = "coaps", &exchange.Identity{Name: name, Authenticated: authenticated}
		return r
	}
	run(t, nil, func(x *fixture) {
		x.miss(of("alice", true), content("alice"))
		x.miss(of("bob", true), content("bob"))
		x.miss(of("alice", false), content("weaker"))
		x.miss(get("a"), content("public"))
		require.Equal(t, "alice", string(x.hit(of("alice", true)).Payload))
		require.Equal(t, "bob", string(x.hit(of("bob", true)).Payload))
		require.Equal(t, "public", string(x.hit(get("a")).Payload))
		x.ask(of("carol", true))
		x.ask(of("dave", true)) // nor do they share an exchange
		require.Len(t, x.origin.calls, 6)
		x.origin.calls[4].end(nil)
		x.origin.calls[5].end(nil)
	})
}

func TestHopLimitReached(t *testing.T) { // FP-50
	run(t, nil, func(x *fixture) {
		reached := &exchange.Response{Code: wire.HopLimitReached}
		x.miss(get("a", uintOption(wire.HopLimit, 5)), reached)
		require.Equal(t, wire.HopLimitReached, x.hit(get("a", uintOption(wire.HopLimit, 5))).Code)
		x.hit(get("a", uintOption(wire.HopLimit, 4)))
		x.miss(get("a", uintOption(wire.HopLimit, 6)), content("one"))
		x.hit(get("a", uintOption(wire.HopLimit, 1)))
	})
}

func TestBounds(t *testing.T) { // FP-51
	names := []string{"a", "b", "c", "d", "e"}
	run(t, func(c *Config) { c.MaxEntries = 3 }, func(x *fixture) {
		for _, n := range names[:3] {
			x.miss(get(n), content(n))
		}
		x.hit(get("a"))
		x.miss(get("d"), content("d")) // b was used longest ago
		for _, n := range []string{"a", "c", "d"} {
			x.hit(get(n))
		}
		require.EqualValues(t, 3, x.stats.Entries.Load())
		require.EqualValues(t, 1, x.stats.Evicted.Load())
	})
	run(t, func(c *Config) { c.MaxBytes = 4000 }, func(x *fixture) {
		for _, n := range names {
			x.miss(get(n), content(strings.Repeat(n, 1000)))
			require.LessOrEqual(t, x.stats.Bytes.Load(), int64(4000))
		}
		require.EqualValues(t, 2, x.stats.Entries.Load())
		x.hit(get("e"))
		x.miss(get("f"), content(strings.Repeat("f", 5000)))
		require.EqualValues(t, 1, x.stats.TooLarge.Load())
		x.hit(get("e")) // nothing makes way for what does not fit
		wait(time.Minute)
		x.miss(get("e"), content(strings.Repeat("e", 5000)))
		require.EqualValues(t, 1, x.stats.Entries.Load(), "d, which is stale")
	})
	run(t, func(c *Config) { c.MaxVariants = 2 }, func(x *fixture) {
		x.miss(get("b"), content("other"))
		for i := range uint32(3) {
			x.miss(get("a", uintOption(wire.Accept, i)), content("x"))
		}
		x.hit(get("b"))
		x.hit(get("a", uintOption(wire.Accept, 2)))
		x.hit(get("a", uintOption(wire.Accept, 1)))
		require.EqualValues(t, 3, x.stats.Entries.Load())
	})
}

func TestResponsesBecomeTheirOwn(t *testing.T) {
	run(t, nil, func(x *fixture) {
		p := content("body", etag("v1"))
		x.ask(get("a"))
		x.last().respond(p)
		copy(p.Payload, "XXXX")
		copy(p.Options[0].Value, "XX")
		got := x.hit(get("a"))
		require.Equal(t, "body", string(got.Payload))
		require.Equal(t, etag("v1"), got.Options[0])
	})
}

func TestBoundsArePositive(t *testing.T) {
	for _, change := range []func(*Config){
		func(c *Config) { c.MaxEntries = 0 }, func(c *Config) { c.MaxBytes = 0 }, func(c *Config) { c.MaxBody = 0 },
		func(c *Config) { c.MaxVariants = 0 }, func(c *Config) { c.MaxKey = -1 }, func(c *Config) { c.MaxSets = 0 }, func(c *Config) { c.MaxHeard = 0 },
	} {
		config := Defaults()
		change(&config)
		_, err := New(config)
		require.Error(t, err)
	}
}
