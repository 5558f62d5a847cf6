package cache

import (
	"bytes"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// What a server sends that means no good costs bounded memory, gets a counter,
// and the client the response.
func TestHostileServers(t *testing.T) {
	run(t, func(c *Config) { c.MaxAge = 3600 }, func(x *fixture) { // absurd Max-Age
		p := x.miss(get("a"), content("body", maxAge(math.MaxUint32))).one()
		require.EqualValues(t, math.MaxUint32, maxAgeOf(t, p), "what the server said")
		require.EqualValues(t, 3600, maxAgeOf(t, x.hit(get("a"))))
		require.EqualValues(t, 1, x.stats.Capped.Load())
		wait(time.Hour)
		x.miss(get("a"), content("body", option(wire.MaxAge, "\x01\x00\x00\x00\x00"))) // no uint of Max-Age's length
		x.miss(get("a"), content("body"))
	})
	run(t, nil, func(x *fixture) { // an ETag of nine bytes is none
		for i, tags := range []message.Options{{etag("123456789")}, {etag("")}, {etag("v1"), etag("v2")}} {
			path := string(rune('a' + i))
			p := x.miss(get(path), content("body", tags...)).one()
			require.Equal(t, tags, p.Options, "as the server sent it")
			require.Equal(t, "body", string(x.hit(get(path, etag("v1"), etag("123456789"))).Payload))
			require.EqualValues(t, i+1, x.stats.BadETag.Load())
			wait(time.Minute)
			x.miss(get(path), content("body"))
			require.Empty(t, x.last().etags(), "nothing to validate with")
		}
	})
	run(t, nil, func(x *fixture) { // another ETag each time, and never fresh
		for i := range 100 {
			x.miss(get("a"), content(fmt.Sprint(i), etag(fmt.Sprint(i)), maxAge(0)))
			require.LessOrEqual(t, len(x.last().etags()), 1)
			require.EqualValues(t, 1, x.stats.Entries.Load())
		}
		require.EqualValues(t, 99, x.stats.Stale.Load())
		require.Zero(t, x.stats.Validated.Load())
	})
	run(t, nil, func(x *fixture) { // 2.03 to somebody who listed nothing, again and again
		c := x.ask(get("a"))
		x.last().respond(&exchange.Response{Code: codes.Valid, From: serverA, Options: message.Options{etag("v1")}})
		require.Empty(t, c.got)
		require.Equal(t, exchange.BadResponse, exchange.AsFailure(c.ends[0]).Reason)
		require.EqualValues(t, 1, x.stats.Unmatched.Load())
		require.Len(t, x.origin.calls, 1)
	})
	_, change := members(serverA, serverB)
	run(t, change, func(x *fixture) { // two servers with one ETag
		x.fill(groupGet(1, "t"), groupFrom(serverA, content("a", etag("1"), maxAge(0))), groupFrom(serverB, content("b", etag("1"), maxAge(0))))
		require.EqualValues(t, 1, x.stats.SharedETag.Load())
		c := x.ask(groupGet(1, "t"))
		require.Empty(t, x.last().etags(), "validates nothing in a group any more") // GC-64
		x.last().sink.Respond(groupFrom(serverA, content("a2", etag("1"))))
		x.last().end(nil)
		require.Equal(t, []string{"a2"}, c.bodies())
	})
}

// Thousands of URIs, groups and servers: what is kept stays within its bounds.
func TestMemoryIsBounded(t *testing.T) {
	_, change := members(serverA)
	run(t, func(c *Config) {
		change(c)
		c.MaxEntries, c.MaxBytes, c.MaxSets, c.MaxHeard, c.MaxVariants = 50, 40_000, 8, 16, 4
	}, func(x *fixture) {
		x.origin.answer = func(k *call) {
			p := content(strings.Repeat("x", 500), etag("v"))
			if k.Target.Group {
				k.sink.Respond(groupFrom(serverA, p))
				k.end(nil)
				return
			}
			p.From = k.Target.Addr
			k.respond(p)
		}
		for i := range 5000 {
			r := get("a", option(wire.URIQuery, fmt.Sprint(i)), uintOption(wire.Accept, uint32(i)))
			if i%2 == 0 {
				r = get("a", uintOption(wire.Accept, uint32(i)))
			}
			x.ask(to(netip.AddrPortFrom(serverA.Addr(), uint16(i%3+1)), r))
			group := groupGet(1, "t", option(wire.URIQuery, fmt.Sprint(i)))
			group.Target.Addr = netip.AddrPortFrom(allCoAP.Addr(), uint16(i+1))
			x.ask(group)
			put := get("a", option(wire.URIQuery, fmt.Sprint(i)))
			put.Method = codes.PUT
			x.ask(put)
			require.LessOrEqual(t, x.stats.Entries.Load(), int64(50))
			require.LessOrEqual(t, x.stats.Bytes.Load(), int64(40_000))
		}
		require.LessOrEqual(t, x.store.entries.Len(), 50)
		require.LessOrEqual(t, len(x.store.places), 50)
		require.LessOrEqual(t, x.store.outdate.Len(), maxOutdated)
		require.LessOrEqual(t, x.sets.known.Len(), 8)
		require.LessOrEqual(t, x.heard.Len(), maxGroups)
		require.Greater(t, x.stats.Evicted.Load(), uint64(1000))
		for _, siblings := range x.store.places {
			require.LessOrEqual(t, len(siblings), 4)
		}
	})
	run(t, func(c *Config) { c.MaxKey = 100 }, func(x *fixture) { // a long URI is nobody's key
		for range 2 {
			x.miss(get(strings.Repeat("a", 101)), content("body"))
		}
		require.EqualValues(t, 2, x.stats.Bypassed[BypassLongKey].Load())
		require.Zero(t, x.stats.Entries.Load())
	})
}

// Whatever somebody else asks, and however: never what was answered to alice
// (FP-48). The attacker chooses host, path, options and payload.
func TestPrivateEntriesUnderAttack(t *testing.T) {
	alice := &exchange.Identity{Name: "alice", Authenticated: true}
	run(t, nil, func(x *fixture) {
		rapid.Check(struct{ rapid.TB }{t}, func(rt *rapid.T) {
			x.Flush(Filter{})
			scheme := rapid.SampledFrom([]string{"coaps", "coaps+tcp", "coaps+ws", "https"}).Draw(rt, "scheme")
			secret := get("secret")
			secret.Target.Scheme, secret.Client = scheme, alice
			secret.Target.Host = rapid.SampledFrom([]string{"", "h"}).Draw(rt, "host")
			x.origin.answer = func(k *call) { k.respond(content("for " + k.Client.Name)) }
			x.ask(secret)

			attack := get("secret")
			attack.Target.Scheme = rapid.SampledFrom([]string{scheme, "coap", "coaps", "coaps+tcp"}).Draw(rt, "attacked scheme")
			attack.Target.Host = rapid.SampledFrom([]string{"", "h", "h\x00Salice", "\x00Salice", "h\x00", "Salice"}).Draw(rt, "attacked host")
			attack.Client = rapid.SampledFrom([]*exchange.Identity{
				{Name: "bob", Authenticated: true}, {Name: "alice"}, {Name: "", Authenticated: true}, {Name: "alice\x00"}, {Name: "Alice"}, {Name: "Salice", Authenticated: true},
			}).Draw(rt, "client")
			for _, piece := range rapid.SliceOfN(rapid.SampledFrom([]string{"\x00\x00\x00\x00coaps\x00", "Salice", "\x00"}), 0, 3).Draw(rt, "pieces") {
				attack.Options = append(attack.Options, option(wire.URIQuery, piece))
			}
			attack.Payload = rapid.SampledFrom([][]byte{nil, []byte("\x00\x00\x00\x00coaps\x00"), []byte("Salice")}).Draw(rt, "payload")
			c := x.ask(attack)
			if len(c.got) != 1 || string(c.got[0].Payload) != "for "+attack.Client.Name || attack.Client.Name == "alice" && !slices.Equal([]error{nil}, c.ends) {
				rt.Fatalf("%v", c.bodies())
			}
			if attack.Client.Name == "alice" && x.origin.calls[len(x.origin.calls)-1].Client == alice {
				rt.Fatalf("an unauthenticated namesake was given the entry")
			}
		})
	})
	run(t, nil, func(x *fixture) { // nor does he join alice's exchange under way
		secret, attack := get("secret"), get("secret")
		secret.Target.Scheme, secret.Client = "coaps", alice
		attack.Target.Scheme, attack.Client = "coaps", &exchange.Identity{Name: "bob", Authenticated: true}
		x.ask(secret)
		x.ask(attack)
		require.Len(t, x.origin.calls, 2)
		x.origin.calls[0].respond(content("for alice"))
		x.origin.calls[1].respond(content("for bob"))
	})
}

// Two requests share a key only if they are the same.
func TestKeysAreUnique(t *testing.T) {
	config := Defaults()
	numbers := wire.DefaultNumbers()
	config.Numbers = &numbers
	key := func(r *exchange.Request) []byte {
		var a asked
		if a.read(r, &config) != NoBypass {
			return nil
		}
		a.server(r.Target.Scheme, r.Target.Addr, r.Target.Host, r.Client)
		return a.key
	}
	rapid.Check(t, func(rt *rapid.T) {
		value := rapid.StringOfN(rapid.RuneFrom([]rune("\x00\x01\x02\x03\x04ab")), 0, 6, -1)
		draw := func() *exchange.Request {
			r := &exchange.Request{Method: codes.GET, Target: exchange.Target{Scheme: "coap", Addr: serverA}}
			for _, id := range rapid.SliceOfN(rapid.SampledFrom([]message.OptionID{wire.URIPath, wire.URIQuery, wire.Accept, 2052}), 0, 4).Draw(rt, "ids") {
				r.Options = append(r.Options, option(id, value.Draw(rt, "value")))
			}
			r.Options = sorted(r.Options)
			r.Payload = []byte(value.Draw(rt, "payload"))
			return r
		}
		a, b := draw(), draw()
		same := bytes.Equal(a.Payload, b.Payload) && slices.EqualFunc(a.Options, b.Options, func(x, y message.Option) bool {
			return x.ID == y.ID && bytes.Equal(x.Value, y.Value)
		})
		if equal := bytes.Equal(key(a), key(b)); equal && !same && !slashed(a) && !slashed(b) || same && !equal {
			rt.Fatalf("%v and %v: keys equal %v", a, b, equal)
		}
	})
}

// slashed: a path of one empty segment is the same as none.
func slashed(r *exchange.Request) bool {
	paths := 0
	empty := false
	for v := range wire.All(r.Options, wire.URIPath) {
		paths++
		empty = len(v) == 0
	}
	return paths == 1 && empty
}

// A request that was perhaps carried out makes stale what is stored (FP-47).
func TestUnsafeRequestWithoutAnswer(t *testing.T) {
	put := get("a")
	put.Method = codes.PUT
	run(t, nil, func(x *fixture) {
		x.miss(get("a"), content("one"))
		x.ask(put)
		x.last().respond(&exchange.Response{Code: codes.Forbidden, From: serverA})
		x.hit(get("a")) // it was refused
		x.ask(put)
		x.last().end(exchange.Failf(exchange.Overloaded, "not sent"))
		x.hit(get("a"))
		x.ask(put)
		x.last().end(exchange.Failf(exchange.NoAnswer, "no answer"))
		x.miss(get("a"), content("two"))
	})
}

// What a server is announced as is kept with its entry (GP-53, GP-73).
func TestAnnouncedServer(t *testing.T) {
	_, change := members(serverA)
	run(t, change, func(x *fixture) {
		p := groupFrom(serverA, content("a", etag("1"), maxAge(1)))
		p.ReplyFrom = []byte{0x81, 0x19}
		x.fill(groupGet(1, "t"), p)
		require.Equal(t, []byte{0x81, 0x19}, x.ask(groupGet(1, "t")).got[0].ReplyFrom)
		wait(time.Second)
		c := x.ask(groupGet(1, "t"))
		x.last().sink.Respond(groupFrom(serverA, &exchange.Response{Code: codes.Valid, Options: message.Options{etag("1")}}))
		x.last().end(nil)
		require.Equal(t, []byte{0x81, 0x19}, c.got[0].ReplyFrom)
	})
}
