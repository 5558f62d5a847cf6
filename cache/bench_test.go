package cache

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// discard is a client that looks at nothing.
type discard struct{ responses, ends int }

func (d *discard) Respond(*exchange.Response) exchange.Verdict { d.responses++; return exchange.Stop }
func (d *discard) End(error)                                   { d.ends++ }

// answering is an origin that answers every request at once.
func answering(p *exchange.Response) exchange.Handler {
	return exchange.HandlerFunc(func(_ *exchange.Request, w exchange.Sink) exchange.Canceler {
		w.Respond(p)
		w.End(nil)
		return exchange.Ended{}
	})
}

func benchCache(tb testing.TB, next exchange.Handler, m Membership) *Cache {
	config := Defaults()
	numbers := wire.DefaultNumbers()
	config.Next, config.Engine, config.Numbers, config.Members = next, exchange.NewEngine(), &numbers, m
	c, err := New(config)
	require.NoError(tb, err)
	return c
}

var benchResponse = content("22.5 C", etag("v1"), maxAge(1<<20), message.Option{ID: wire.ContentFormat})

func benchRequest() *exchange.Request {
	r := get("sensors", option(wire.URIPath, "temperature"), uintOption(wire.Accept, 50))
	r.Arrival = time.Now()
	return r
}

func BenchmarkHit(b *testing.B) {
	c, r, w := benchCache(b, answering(benchResponse), nil), benchRequest(), &discard{}
	c.Exchange(r, w)
	b.ReportAllocs()
	for b.Loop() {
		c.Exchange(r, w)
	}
	require.EqualValues(b, 1, c.config.Stats.Misses.Load())
}

func BenchmarkHitParallel(b *testing.B) {
	c, r := benchCache(b, answering(benchResponse), nil), benchRequest()
	c.Exchange(r, &discard{})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		w, own := &discard{}, r.Clone()
		for pb.Next() {
			c.Exchange(own, w)
		}
	})
}

func BenchmarkBypass(b *testing.B) { // what the layer costs by itself
	c, r, w := benchCache(b, answering(benchResponse), nil), benchRequest(), &discard{}
	r.Options = append(message.Options{option(wire.IfMatch, "x")}, r.Options...)
	b.ReportAllocs()
	for b.Loop() {
		c.Exchange(r, w)
	}
}

func BenchmarkMiss(b *testing.B) { // nothing is stored
	c, r, w := benchCache(b, answering(content("22.5 C", maxAge(0))), nil), benchRequest(), &discard{}
	b.ReportAllocs()
	for b.Loop() {
		c.Exchange(r, w)
	}
}

func BenchmarkStore(b *testing.B) { // a miss that is stored, with eviction
	c, r, w := benchCache(b, answering(benchResponse), nil), benchRequest(), &discard{}
	var query [8]byte
	r.Options = append(r.Options[:2:2], message.Option{ID: wire.URIQuery, Value: query[:]}, r.Options[2])
	i := 0
	b.ReportAllocs()
	for b.Loop() {
		i++
		copy(query[:], fmt.Sprintf("%08d", i))
		c.Exchange(r, w)
	}
}

func BenchmarkGroupHit(b *testing.B) { // a complete set of 10
	m := &roster{}
	var servers []netip.AddrPort
	for i := range 10 {
		servers = append(servers, netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 5683))
	}
	m.set(servers...)
	all := exchange.HandlerFunc(func(_ *exchange.Request, w exchange.Sink) exchange.Canceler {
		for _, s := range servers {
			w.Respond(groupFrom(s, benchResponse.Clone()))
		}
		w.End(nil)
		return exchange.Ended{}
	})
	c, w := benchCache(b, all, m), &everything{}
	r := groupGet(10, "temperature")
	r.Arrival = time.Now()
	c.Exchange(r, w)
	b.ReportAllocs()
	for b.Loop() {
		c.Exchange(r, w)
	}
	require.EqualValues(b, 1, c.config.Stats.Misses.Load())
}

type everything struct{ responses int }

func (d *everything) Respond(*exchange.Response) exchange.Verdict {
	d.responses++
	return exchange.Continue
}
func (d *everything) End(error) {}
