package blockwise

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// groupTest is a group exchange in virtual time.
type groupTest struct {
	*testing.T
	group, unicast *fakeLeg
	stats          *Stats
	layer          *Continuation
	began          time.Time
}

// member is the nth server of the group.
func member(n int) netip.AddrPort {
	return netip.AddrPortFrom(netip.MustParseAddr("fe80::1%lo").Next().WithZone("lo"), uint16(5683+n))
}

func inGroup(t *testing.T, f func(g *groupTest)) {
	synctest.Test(t, func(t *testing.T) {
		g := &groupTest{T: t, group: &fakeLeg{t: t}, unicast: &fakeLeg{t: t}, stats: &Stats{}, began: time.Now()}
		g.layer = &Continuation{Group: g.group, Unicast: g.unicast, Engine: exchange.NewEngine(), Stats: g.stats, Log: zap.NewNop()}
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { g.layer.Engine.Run(ctx) })
		f(g)
		cancel()
		wg.Wait()
	})
}

// ask begins a group request with T' = 5 s.
func (g *groupTest) ask(w exchange.Sink, options ...message.Option) exchange.Canceler {
	r := request(codes.GET, nil, options...)
	r.Target = exchange.Target{Scheme: "coap", Addr: netip.MustParseAddrPort("[ff02::fd]:5683"), Group: true, GroupName: "all",
		Also: []exchange.GroupAddr{{Name: "more"}}}
	r.Timeout = exchange.Timeout{Seconds: 5, Present: true}
	r.BodyLimit = 2000
	return ask(g.layer, r, w)
}

// first is the first block of member n's body.
func (g *groupTest) first(n int, body []byte, szx uint8, options ...message.Option) *exchange.Response {
	p := slice(g, body, nil, szx, options...)
	p.From, p.GroupPort = member(n), 5683
	return p
}

// rest answers a request for a further block.
func (g *groupTest) rest(a *asked, body []byte, szx uint8, options ...message.Option) {
	a.answer(slice(g, body, a.Options, szx, options...))
}

func (g *groupTest) sleepUntil(after time.Duration) {
	time.Sleep(time.Until(g.began.Add(after)))
	synctest.Wait()
}

// GC-54, GC-55: what several servers send in blocks is completed by unicast from
// each, and relayed as one.
func TestContinuation(t *testing.T) {
	inGroup(t, func(g *groupTest) {
		w := &checkingSink{t: g}
		g.ask(w, option(wire.URIQuery, []byte("q")), uintOption(wire.NoResponse, 2), uintOption(wire.Observe, 0))
		bodies := make(map[netip.AddrPort][]byte)
		for n := range 5 {
			bodies[member(n)] = bodyOf(100 * (n + 1))
			g.group.last().respond(g.first(n, bodies[member(n)], 2, option(wire.ETag, []byte{byte(n)}), uintOption(wire.Size2, 1)))
		}
		require.Empty(g, w.responses())
		for i := 0; i < len(g.unicast.requests()); i++ { // each in its turn
			a := g.unicast.requests()[i]
			require.Equal(g, exchange.Target{Scheme: "coap", Addr: a.Target.Addr}, a.Target) // GC-51, GC-55
			require.Equal(g, codes.GET, a.Method)
			require.True(g, a.Confirmable)
			require.Zero(g, a.Timeout)
			b, _ := a.block(wire.Block2)
			require.EqualValues(g, 2, b.SZX) // GC-55
			require.Equal(g, message.Options{option(wire.URIPath, []byte("r")), option(wire.URIQuery, []byte("q")),
				blockOption(wire.Block2, int(b.Num), false, 2)}, a.Options) // GC-55
			g.rest(a, bodies[a.Target.Addr], 2, option(wire.ETag, []byte{byte(a.Target.Addr.Port() - 5683)}))
		}
		g.group.last().end(nil)
		require.Len(g, w.responses(), 5)
		for _, p := range w.responses() {
			require.Equal(g, bodies[p.From], p.Payload)
			require.Equal(g, message.Options{option(wire.ETag, []byte{byte(p.From.Port() - 5683)})}, p.Options)
			require.EqualValues(g, 5683, p.GroupPort)
		}
		ends, err := w.ended()
		require.Equal(g, 1, ends)
		require.NoError(g, err)
		require.EqualValues(g, 5, g.stats.Completed.Load())
		require.Zero(g, g.stats.Incomplete.Load())
	})
}

// GC-54: with T' = 0, and when the client asked for blocks itself, everything
// passes.
func TestContinuationPasses(t *testing.T) {
	inGroup(t, func(g *groupTest) {
		w := &checkingSink{t: g}
		g.ask(w, blockOption(wire.Block2, 0, false, 2))
		p := g.first(1, bodyOf(100), 2)
		g.group.last().answer(p)
		require.Equal(g, p.Options, w.one().Options)
		require.Equal(g, bodyOf(64), w.one().Payload)

		r := request(codes.GET, nil)
		w = talk(g, g.layer, r)
		require.Equal(g, r.Options, g.group.last().Options)
		require.Same(g, w, g.group.last().sink)
		require.Empty(g, g.unicast.requests())
	})
}

// GC-54: a body that cannot become whole is relayed with its first block as
// received.
func TestContinuationFirstBlockAsReceived(t *testing.T) {
	for name, tt := range map[string]struct {
		size  int
		szx   uint8
		extra []message.Option
		limit int
		asked int // further blocks asked for
	}{
		"above the limit, said beforehand": {size: 3000, szx: 6, extra: []message.Option{uintOption(wire.Size2, 3000)}},
		"above the limit":                  {size: 3000, szx: 5, asked: 3},
		"more than the front can take":     {size: 1025, szx: 6, limit: 1024},
	} {
		t.Run(name, func(t *testing.T) {
			inGroup(t, func(g *groupTest) {
				w := &checkingSink{t: g}
				r := request(codes.GET, nil)
				r.Target.Group, r.Timeout, r.BodyLimit = true, exchange.Timeout{Seconds: 5, Present: true}, 2000
				if tt.limit > 0 {
					r.BodyLimit = tt.limit
				}
				ask(g.layer, r, w)
				p := g.first(1, bodyOf(tt.size), tt.szx, append(tt.extra, option(wire.ETag, []byte{1}))...)
				if len(tt.extra) > 0 {
					p.Options = message.Options{option(wire.ETag, []byte{1}), blockOption(wire.Block2, 0, true, 6), tt.extra[0]}
				}
				g.group.last().respond(p)
				for i := 0; i < len(g.unicast.requests()); i++ {
					g.rest(g.unicast.requests()[i], bodyOf(tt.size), tt.szx, option(wire.ETag, []byte{1}))
				}
				require.Len(g, g.unicast.requests(), tt.asked)
				g.group.last().end(nil)
				got := w.one()
				require.Equal(g, p, got)
				require.EqualValues(g, 1, g.stats.Incomplete.Load())
			})
		})
	}
}

// A response whose block option makes no sense, or is not the first of several,
// is relayed as received.
func TestContinuationRelaysOthers(t *testing.T) {
	inGroup(t, func(g *groupTest) {
		w := &checkingSink{t: g}
		g.ask(w)
		var want []*exchange.Response
		for n, options := range []message.Options{nil, {blockOption(wire.Block2, 0, false, 2)}, {blockOption(wire.Block2, 2, true, 2)},
			{blockOption(wire.Block2, 0, true, 3)}, {option(wire.Block2, []byte{0x0f})}} {
			p := content(bodyOf(64), options...)
			p.From = member(n)
			want = append(want, p)
			g.group.last().respond(p)
		}
		g.group.last().end(nil)
		require.Len(g, w.responses(), len(want))
		for i, p := range w.responses() {
			require.Equal(g, want[i].Payload, p.Payload)
			require.Len(g, p.Options, len(want[i].Options))
		}
		require.Empty(g, g.unicast.requests())
	})
}

// An error with one server does not touch the others.
func TestContinuationErrorOfOne(t *testing.T) {
	for name, spoil := range map[string]func(g *groupTest, a *asked){
		"silence":       func(_ *groupTest, a *asked) { a.end(&exchange.Failure{Reason: exchange.NoAnswer}) },
		"no response":   func(_ *groupTest, a *asked) { a.end(nil) },
		"an error code": func(_ *groupTest, a *asked) { a.answer(&exchange.Response{Code: codes.NotFound}) },
		"another ETag": func(g *groupTest, a *asked) { // GC-55
			a.answer(slice(g, bodyOf(150), a.Options, 2, option(wire.ETag, []byte{9})))
		},
		"no Block2": func(_ *groupTest, a *asked) { a.answer(content(bodyOf(64), option(wire.ETag, []byte{1}))) },
	} {
		t.Run(name, func(t *testing.T) {
			inGroup(t, func(g *groupTest) {
				w := &checkingSink{t: g}
				g.ask(w)
				for n := range 3 {
					g.group.last().respond(g.first(n, bodyOf(150), 2, option(wire.ETag, []byte{1})))
				}
				for i := 0; i < len(g.unicast.requests()); i++ {
					a := g.unicast.requests()[i]
					if a.Target.Addr == member(1) {
						spoil(g, a)
						continue
					}
					g.rest(a, bodyOf(150), 2, option(wire.ETag, []byte{1}))
				}
				g.group.last().end(nil)
				require.Len(g, w.responses(), 3)
				for _, p := range w.responses() {
					want := bodyOf(150)
					if p.From == member(1) {
						want = want[:64]
					}
					require.Equal(g, want, p.Payload)
					require.Equal(g, p.From == member(1), wire.Has(p.Options, wire.Block2))
				}
				require.EqualValues(g, 2, g.stats.Completed.Load())
				require.EqualValues(g, 1, g.stats.Incomplete.Load())
			})
		})
	}
}

// GC-54: what is not complete shortly before T' is relayed with its first block
// while there is time, and so is what comes after that.
func TestContinuationHurries(t *testing.T) {
	inGroup(t, func(g *groupTest) {
		const last = 5*time.Second - 250*time.Millisecond
		w := &checkingSink{t: g}
		var times []time.Duration
		w.during = func(int) { times = append(times, time.Since(g.began)) }
		g.ask(w)
		for n := range 3 {
			g.group.last().respond(g.first(n, bodyOf(100), 2))
		}
		g.rest(g.unicast.requests()[1], bodyOf(100), 2)
		g.sleepUntil(last - 1)
		require.Len(g, w.responses(), 1)
		g.sleepUntil(last)
		require.Len(g, w.responses(), 3)
		for i, p := range w.responses()[1:] {
			require.Equal(g, bodyOf(64), p.Payload)
			require.True(g, wire.Has(p.Options, wire.Block2))
			require.Equal(g, last, times[i+1])
		}
		for _, a := range g.unicast.requests() {
			require.True(g, a.over.Load())
		}
		g.rest(g.unicast.requests()[0], bodyOf(100), 2) // too late
		require.Len(g, w.responses(), 3)

		g.group.last().respond(g.first(7, bodyOf(100), 2))
		require.Len(g, w.responses(), 4)
		require.Len(g, g.unicast.requests(), 3)
		g.sleepUntil(5 * time.Second)
		g.group.last().end(nil)
		ends, err := w.ended()
		require.Equal(g, 1, ends)
		require.NoError(g, err)
		require.EqualValues(g, 3, g.stats.Incomplete.Load())
		require.EqualValues(g, 1, g.stats.Completed.Load())
	})
}

func TestMargin(t *testing.T) { // GP-79
	require.Equal(t, 100*time.Millisecond, margin(time.Second))
	require.Equal(t, 250*time.Millisecond, margin(5*time.Second))
	require.Equal(t, time.Second, margin(time.Hour))
}

// A Cancel ends everything that is under way; nothing is relayed any more.
func TestContinuationCancel(t *testing.T) {
	inGroup(t, func(g *groupTest) {
		w := &checkingSink{t: g}
		c := g.ask(w)
		for n := range 2 {
			g.group.last().respond(g.first(n, bodyOf(200), 2))
		}
		g.rest(g.unicast.last(), bodyOf(200), 2)
		c.Cancel()
		requireCanceled(g, w)
		for _, a := range g.unicast.requests() {
			require.True(g, a.over.Load())
		}
		g.rest(g.unicast.last(), bodyOf(200), 2)
		g.sleepUntil(10 * time.Second)
		requireCanceled(g, w)
		require.Len(g, g.unicast.requests(), 3)
	})
}

// A failure of the group leg passes; so does its end before T', with the first
// blocks of what is not complete.
func TestContinuationEnds(t *testing.T) {
	inGroup(t, func(g *groupTest) {
		w := &checkingSink{t: g}
		g.ask(w)
		g.group.last().end(errTest)
		ends, err := w.ended()
		require.Equal(g, 1, ends)
		require.ErrorIs(g, err, errTest)

		w = &checkingSink{t: g}
		g.ask(w)
		g.group.last().respond(g.first(1, bodyOf(100), 2))
		g.group.last().end(nil)
		require.Equal(g, bodyOf(64), w.one().Payload)
		require.True(g, g.unicast.last().over.Load())

		w = &checkingSink{t: g}
		g.group.answer = func(*exchange.Request) *exchange.Response { return g.first(2, bodyOf(100), 2) } // before Exchange returns
		g.ask(w)
		require.Equal(g, bodyOf(64), w.one().Payload)
	})
}

// GP-33: nothing is said after T', should the end come late.
func TestContinuationEndsLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := &groupTest{T: t, group: &fakeLeg{t: t}, unicast: &fakeLeg{t: t}, stats: &Stats{}, began: time.Now()}
		g.layer = &Continuation{Group: g.group, Unicast: g.unicast, Engine: exchange.NewEngine(), Stats: g.stats, Log: zap.NewNop()} // not run
		w := &checkingSink{t: t}
		g.ask(w)
		g.group.last().respond(g.first(1, bodyOf(100), 2))
		g.sleepUntil(5 * time.Second)
		g.group.last().end(nil)
		require.Empty(t, w.responses())
		ends, err := w.ended()
		require.Equal(t, 1, ends)
		require.NoError(t, err)
	})
}

// A sink that wants no more ends the exchange, whoever brought the response.
func TestContinuationStop(t *testing.T) {
	stop := func(int) exchange.Verdict { return exchange.Stop }
	t.Run("of the group leg", func(t *testing.T) {
		inGroup(t, func(g *groupTest) {
			w := &checkingSink{t: g, verdict: stop}
			g.ask(w)
			g.group.last().respond(g.first(1, bodyOf(100), 2))
			g.group.last().respond(&exchange.Response{Code: codes.Content, From: member(2)})
			require.True(g, g.group.last().over.Load())
			require.True(g, g.unicast.last().over.Load())
			require.Equal(g, member(2), w.one().From)
		})
	})
	t.Run("of a completed body", func(t *testing.T) {
		inGroup(t, func(g *groupTest) {
			w := &checkingSink{t: g, verdict: stop}
			g.ask(w)
			for n := range 3 {
				g.group.last().respond(g.first(n, bodyOf(100), 2))
			}
			g.rest(g.unicast.requests()[1], bodyOf(100), 2)
			require.Equal(g, bodyOf(100), w.one().Payload)
			require.True(g, g.group.last().over.Load())
			for _, a := range g.unicast.requests() {
				require.True(g, a.over.Load())
			}
		})
	})
	t.Run("of a first block in a hurry", func(t *testing.T) {
		inGroup(t, func(g *groupTest) {
			w := &checkingSink{t: g, verdict: stop}
			g.ask(w)
			for n := range 3 {
				g.group.last().respond(g.first(n, bodyOf(100), 2))
			}
			g.sleepUntil(5 * time.Second)
			w.one()
		})
	})
	t.Run("before the leg has returned", func(t *testing.T) {
		inGroup(t, func(g *groupTest) {
			w := &checkingSink{t: g, verdict: stop}
			g.unicast.answer = func(r *exchange.Request) *exchange.Response { return slice(g, bodyOf(100), r.Options, 2) }
			begun := &asked{leg: g.group}
			g.layer.Group = exchange.HandlerFunc(func(_ *exchange.Request, w exchange.Sink) exchange.Canceler {
				begun.sink = w
				require.Equal(g, exchange.Stop, w.Respond(g.first(1, bodyOf(100), 2)))
				return begun
			})
			g.ask(w)
			require.Equal(g, bodyOf(100), w.one().Payload)
			require.True(g, begun.over.Load())
		})
	})
}

// After a Stop, what waits is not relayed, and nothing is fetched for it.
func TestContinuationStopWhileBusy(t *testing.T) {
	inGroup(t, func(g *groupTest) {
		w := &checkingSink{t: g, verdict: func(int) exchange.Verdict { return exchange.Stop }}
		w.during = func(int) {
			g.group.last().respond(g.first(2, bodyOf(100), 2))
			g.group.last().respond(&exchange.Response{Code: codes.Content, From: member(3)})
		}
		g.ask(w)
		g.group.last().respond(g.first(1, bodyOf(100), 2))
		g.rest(g.unicast.last(), bodyOf(100), 2)
		require.Equal(g, member(1), w.one().From)
		require.Len(g, g.unicast.requests(), 1)
	})
}

// The bodies completed at a time are bounded.
func TestContinuationBounded(t *testing.T) {
	inGroup(t, func(g *groupTest) {
		w := &checkingSink{t: g}
		g.ask(w)
		for n := range maxFetches + 3 {
			g.group.last().respond(g.first(n, bodyOf(100), 2))
		}
		require.Len(g, g.unicast.requests(), maxFetches)
		require.Len(g, w.responses(), 3)
		g.rest(g.unicast.last(), bodyOf(100), 2)
		g.group.last().respond(g.first(99, bodyOf(100), 2))
		require.Len(g, g.unicast.requests(), maxFetches+1)
		g.group.last().end(nil)
		require.EqualValues(g, maxFetches+3, g.stats.Incomplete.Load())
	})
}

// Responses that come while the sink is busy with a completed body wait, and are
// dropped and counted when they are too many.
func TestContinuationBusy(t *testing.T) {
	inGroup(t, func(g *groupTest) {
		w := &checkingSink{t: g}
		w.during = func(n int) {
			for i := 0; n == 1 && i < 2000; i++ {
				g.group.last().respond(&exchange.Response{Code: codes.Content, From: member(i), Payload: []byte("waits")})
			}
		}
		g.ask(w)
		g.group.last().respond(g.first(1, bodyOf(100), 2))
		g.rest(g.unicast.last(), bodyOf(100), 2)
		dropped := int(g.stats.Dropped.Load())
		require.Positive(g, dropped)
		require.Len(g, w.responses(), 1+2000-dropped)
		for _, p := range w.responses()[1:] {
			require.Equal(g, "waits", string(p.Payload))
		}
		g.group.last().end(nil)
	})
}

// Many servers answer at any time, on goroutines of their own.
func TestContinuationManyServers(t *testing.T) {
	inGroup(t, func(g *groupTest) {
		w := &checkingSink{t: g}
		g.unicast.delay = func() time.Duration { return 30 * time.Millisecond }
		g.unicast.answer = func(r *exchange.Request) *exchange.Response {
			return slice(g, bytes.Repeat([]byte{byte(r.Target.Addr.Port())}, 1500), r.Options, 4)
		}
		g.ask(w)
		var wg sync.WaitGroup
		for n := range 50 {
			wg.Go(func() {
				time.Sleep(time.Duration(n/10) * 10 * time.Millisecond)
				g.group.last().respond(g.first(n, bytes.Repeat([]byte{byte(member(n).Port())}, 1500), 4))
			})
		}
		wg.Wait()
		g.unicast.wg.Wait()
		require.Len(g, w.responses(), 50)
		for _, p := range w.responses() {
			require.Equal(g, bytes.Repeat([]byte{byte(p.From.Port())}, 1500), p.Payload)
		}
		g.group.last().end(nil)
	})
}

// The bodies being completed are bounded over all exchanges; beyond it the first
// block is relayed, and what an exchange had is free after it.
func TestContinuationBytesBounded(t *testing.T) {
	inGroup(t, func(g *groupTest) {
		w := &checkingSink{t: g}
		g.ask(w)
		g.layer.bytes.Add(maxCompleting - 2000)
		g.group.last().respond(g.first(1, bodyOf(100), 2))
		require.Empty(g, w.responses())
		g.group.last().respond(g.first(2, bodyOf(100), 2)) // no room for another one
		require.Len(g, w.responses(), 1)
		require.Len(g, w.responses()[0].Payload, 64)
		g.rest(g.unicast.last(), bodyOf(100), 2)
		require.Len(g, w.responses(), 2)
		g.group.last().respond(g.first(3, bodyOf(100), 2)) // there is again
		require.Len(g, w.responses(), 2)
		g.group.last().end(nil)
		require.EqualValues(g, maxCompleting-2000, g.layer.bytes.Load())
	})
}

// GP-64, GC-54: a notification in blocks is completed also when T' is over; whoever
// ends the observation meanwhile ends that, too. Without an observation nothing is
// completed after T'.
func TestContinuationOfNotifications(t *testing.T) {
	for _, observes := range []bool{true, false} {
		inGroup(t, func(g *groupTest) {
			w := &checkingSink{t: g}
			var options []message.Option
			if observes {
				options = append(options, uintOption(wire.Observe, 0))
			}
			cancel := g.ask(w, options...)
			g.sleepUntil(6 * time.Second)
			body := bodyOf(150)
			g.group.last().respond(g.first(1, body, 2, option(wire.ETag, []byte("e")), uintOption(wire.Observe, 7)))
			if !observes {
				require.Empty(g, g.unicast.requests())
				g.group.last().end(nil)
				require.Equal(g, body[:64], w.one().Payload)
				return
			}
			for i := 0; i < len(g.unicast.requests()); i++ {
				a := g.unicast.requests()[i]
				require.False(g, wire.Has(a.Options, wire.Observe)) // RFC 7959 §2.6
				g.rest(a, body, 2, option(wire.ETag, []byte("e")))
			}
			require.Len(g, w.responses(), 1)
			require.Equal(g, body, w.responses()[0].Payload)
			require.True(g, wire.Has(w.responses()[0].Options, wire.Observe))

			g.group.last().respond(g.first(2, body, 2, option(wire.ETag, []byte("f")), uintOption(wire.Observe, 8)))
			require.Len(g, w.responses(), 1)
			cancel.Cancel()
			g.group.last().end(exchange.ErrCanceled)
			require.Len(g, w.responses(), 1)
			ends, _ := w.ended()
			require.Equal(g, 1, ends)
		})
	}
}

// GC-54, GP-102, GP-118: behind a next proxy the whole body is asked for, from the server
// as it is called there, and counts if it is the one that the group request has begun.
func TestContinuationBehindNextProxy(t *testing.T) {
	item1 := wire.URI{Scheme: "coap+tcp", Addr: netip.MustParseAddr("192.0.2.9"), Port: 7000}
	body := bodyOf(300)
	other := append([]byte("other"), body...)
	for name, tt := range map[string]struct {
		announced wire.ReplyFromValue
		raw       []byte
		from      netip.AddrPort
		asked     string // target, form and options; empty: nothing is asked for
		answer    *exchange.Response
		whole     bool
	}{
		"by host":     {announced: wire.ReplyFromValue{Server: item1, Ref: &wire.ReplyFromRef{Addr: netip.MustParseAddr("2001:db8::1"), Port: 61616}}, asked: "coap+tcp://192.0.2.9:7000 server 3=[2001:db8::1] 7=\xf0\xb0 11=r 15=q", answer: content(body), whole: true},
		"by path":     {announced: wire.ReplyFromValue{Server: item1, Ref: &wire.ReplyFromRef{Path: []string{"s", "1"}}}, asked: "coap+tcp://192.0.2.9:7000 server 11=s 11=1 11=r 15=q", answer: content(body), whole: true},
		"own address": {announced: wire.ReplyFromValue{Server: item1}, asked: "coap+tcp://192.0.2.9:7000 server 11=r 15=q", answer: content(body), whole: true},
		"itself":      {from: member(1), asked: "coap://" + member(1).String() + " 11=r 15=q", answer: content(body), whole: true},

		"something else":   {announced: wire.ReplyFromValue{Server: item1}, asked: "coap+tcp://192.0.2.9:7000 server 11=r 15=q", answer: content(other)},
		"its first block":  {announced: wire.ReplyFromValue{Server: item1}, asked: "coap+tcp://192.0.2.9:7000 server 11=r 15=q", answer: content(body[:64], blockOption(wire.Block2, 0, true, 2))},
		"another ETag":     {announced: wire.ReplyFromValue{Server: item1}, asked: "coap+tcp://192.0.2.9:7000 server 11=r 15=q", answer: content(body, option(wire.ETag, []byte{1}))},
		"too much":         {announced: wire.ReplyFromValue{Server: item1}, asked: "coap+tcp://192.0.2.9:7000 server 11=r 15=q", answer: content(append(body[:300:300], bodyOf(2000)...))},
		"not there":        {announced: wire.ReplyFromValue{Server: item1}, asked: "coap+tcp://192.0.2.9:7000 server 11=r 15=q", answer: &exchange.Response{Code: codes.NotFound}},
		"no address":       {announced: wire.ReplyFromValue{Server: wire.URI{Scheme: "coap", Host: "h.example"}}},
		"no single server": {announced: wire.ReplyFromValue{Server: wire.URI{Scheme: "coap", Addr: netip.MustParseAddr("224.0.1.187")}}},
		"not by CoAP":      {announced: wire.ReplyFromValue{Server: wire.URI{Scheme: "http", Addr: netip.MustParseAddr("192.0.2.9")}}},
		"nonsense":         {raw: []byte("nonsense")},
	} {
		t.Run(name, func(t *testing.T) {
			inGroup(t, func(g *groupTest) {
				w := &checkingSink{t: g}
				r := request(codes.GET, nil, option(wire.URIQuery, []byte("q")))
				r.Target = exchange.Target{Scheme: "coap", Host: "group.example", Group: true, NextHop: "up"}
				r.Timeout, r.BodyLimit = exchange.Timeout{Seconds: 5, Present: true}, 2000
				ask(g.layer, r, w)
				p := g.first(1, body, 2)
				if p.From = tt.from; !p.From.IsValid() {
					if p.ReplyFrom = tt.raw; tt.raw == nil {
						p.ReplyFrom = tt.announced.Append([]byte{})
					}
				}
				g.group.last().respond(p)
				if tt.asked == "" {
					require.Empty(g, g.unicast.requests())
				} else {
					require.Len(g, g.unicast.requests(), 1)
					a := g.unicast.last()
					got := a.Target.Scheme + "://" + a.Target.Addr.String()
					if a.Form == exchange.FormServer {
						got += " server"
					}
					for _, o := range a.Options {
						got += fmt.Sprintf(" %d=%s", o.ID, o.Value)
					}
					require.Equal(g, tt.asked, got)
					require.Equal(g, "up", a.Target.NextHop)
					a.answer(tt.answer)
				}
				g.group.last().end(nil)
				got := w.one()
				require.Equal(g, p.ReplyFrom, got.ReplyFrom)
				require.Equal(g, p.From, got.From)
				require.EqualValues(g, 5683, got.GroupPort)
				if tt.whole {
					require.Equal(g, body, got.Payload)
					require.Empty(g, got.Options)
					require.EqualValues(g, 1, g.stats.Completed.Load())
					return
				}
				require.Equal(g, p, got)
				require.EqualValues(g, 1, g.stats.Incomplete.Load())
				require.Zero(g, g.layer.bytes.Load())
			})
		})
	}
}
