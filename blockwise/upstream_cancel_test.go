package blockwise

import (
	"math/rand/v2"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// stages is a request with six requests to the server: three blocks up, three
// more blocks down.
func stages(t tester) (*modelServer, *exchange.Request) {
	s := &modelServer{t: t, szx1: 6, szx2: 4, respond: func(*exchange.Request, []byte) *exchange.Response { return content(bodyOf(1000)) }}
	return s, request(codes.POST, bodyOf(3000))
}

const numStages = 6

func requireCanceled(t tester, w *checkingSink) {
	t.Helper()
	ends, err := w.ended()
	require.Equal(t, 1, ends)
	require.ErrorIs(t, err, exchange.ErrCanceled)
	require.Empty(t, w.responses())
}

// A Cancel at any stage cancels the request under way, begins no other, and
// ends the exchange once.
func TestUpstreamCancelWhileWaiting(t *testing.T) {
	for stage := range numStages {
		s, r := stages(t)
		leg := &fakeLeg{t: t}
		w := &checkingSink{t: t}
		c := ask(NewUpstream(leg, testLimit), r, w)
		for range stage {
			leg.last().answer(s.answer(leg.last().Request))
		}
		c.Cancel()
		requireCanceled(t, w)
		require.Len(t, leg.requests(), stage+1)
		require.EqualValues(t, 1, leg.last().canceled.Load())
		c.Cancel()
		leg.last().answer(s.answer(leg.last().Request)) // too late
		requireCanceled(t, w)
	}
}

// The same while the leg is still busy beginning the request.
func TestUpstreamCancelWhileBeginning(t *testing.T) {
	for stage := 1; stage < numStages; stage++ {
		for _, quick := range []bool{false, true} {
			s, r := stages(t)
			leg := &fakeLeg{t: t}
			w := &checkingSink{t: t}
			var c exchange.Canceler
			leg.before = func(n int) {
				if n == stage+1 {
					c.Cancel()
				}
				if n == stage+1 && quick {
					leg.answer = s.answer // it answers before it notices
				}
			}
			c = ask(NewUpstream(leg, testLimit), r, w)
			for range stage {
				leg.last().answer(s.answer(leg.last().Request))
			}
			if quick && stage == numStages-1 {
				w.one()
				continue
			}
			requireCanceled(t, w)
			require.Len(t, leg.requests(), stage+1)
		}
	}
}

// The same between a response and the end of its request.
func TestUpstreamCancelBetween(t *testing.T) {
	for stage := range numStages - 1 {
		s, r := stages(t)
		leg := &fakeLeg{t: t}
		w := &checkingSink{t: t}
		c := ask(NewUpstream(leg, testLimit), r, w)
		for range stage {
			leg.last().answer(s.answer(leg.last().Request))
		}
		a := leg.last()
		a.respond(s.answer(a.Request))
		c.Cancel()
		requireCanceled(t, w)
		require.Len(t, leg.requests(), stage+1)
	}
}

// A plain exchange, and one whose response is the first of several blocks.
func TestUpstreamCancelPlain(t *testing.T) {
	leg := &fakeLeg{t: t}
	u := NewUpstream(leg, testLimit)
	w := &checkingSink{t: t}
	ask(u, request(codes.GET, nil), w).Cancel()
	requireCanceled(t, w)

	w = &checkingSink{t: t}
	c := ask(u, request(codes.GET, nil), w)
	leg.last().respond(content(bodyOf(64), blockOption(wire.Block2, 0, true, 2)))
	c.Cancel()
	requireCanceled(t, w)
	require.Len(t, leg.requests(), 2)

	w = &checkingSink{t: t}
	c = ask(u, request(codes.GET, nil), w)
	first := leg.last()
	first.answer(content(bodyOf(64), blockOption(wire.Block2, 0, true, 2)))
	c.Cancel()
	requireCanceled(t, w)
	require.EqualValues(t, 1, leg.last().canceled.Load())
	require.Zero(t, first.canceled.Load(), "that one was over")

	w = &checkingSink{t: t}
	c = ask(u, request(codes.GET, nil), w)
	leg.last().answer(content(nil))
	c.Cancel() // after End it does nothing
	w.one()
	require.Zero(t, leg.last().canceled.Load())

	leg.answer = func(*exchange.Request) *exchange.Response { return content(nil) }
	ask(u, request(codes.GET, nil), &checkingSink{t: t}).Cancel()
	require.Zero(t, leg.last().canceled.Load())
}

// A leg that ends regularly in spite of the Cancel does not bring on the next
// request.
func TestUpstreamCancelUnheard(t *testing.T) {
	var sink exchange.Sink
	asked := 0
	u := NewUpstream(exchange.HandlerFunc(func(_ *exchange.Request, w exchange.Sink) exchange.Canceler {
		sink = w
		asked++
		return exchange.Ended{}
	}), testLimit)
	w := &checkingSink{t: t}
	c := ask(u, request(codes.GET, nil), w)
	sink.Respond(content(bodyOf(64), blockOption(wire.Block2, 0, true, 2)))
	c.Cancel()
	sink.End(nil)
	requireCanceled(t, w)
	require.Equal(t, 1, asked)
	require.Zero(t, u.bytes.Load())
}

// Cancel may be called from inside Respond, and the sink may say Stop.
func TestUpstreamCancelFromRespond(t *testing.T) {
	for _, size := range []int{10, 1000} {
		s, r := stages(t)
		s.respond = func(*exchange.Request, []byte) *exchange.Response { return content(bodyOf(size)) }
		for _, r := range []*exchange.Request{request(codes.GET, nil), r} {
			leg := &fakeLeg{t: t}
			var c exchange.Canceler
			w := &checkingSink{t: t, during: func(int) { c.Cancel() }, verdict: func(int) exchange.Verdict { return exchange.Stop }}
			c = ask(NewUpstream(leg, testLimit), r, w)
			for i := 0; i < len(leg.requests()); i++ {
				leg.last().answer(s.answer(leg.last().Request))
			}
			ends, _ := w.ended()
			require.Equal(t, 1, ends)
			require.Len(t, w.responses(), 1)
		}
	}
}

// A leg may answer on another goroutine before its Exchange returns: what is
// canceled then is what is under way, not what is over.
func TestUpstreamCancelAfterQuickAnswer(t *testing.T) {
	leg := &fakeLeg{t: t}
	w := &checkingSink{t: t}
	leg.answer = func(r *exchange.Request) *exchange.Response {
		if !wire.Has(r.Options, wire.Block2) {
			return content(bodyOf(64), blockOption(wire.Block2, 0, true, 2))
		}
		return nil
	}
	c := ask(NewUpstream(leg, testLimit), request(codes.GET, nil), w)
	require.Len(t, leg.requests(), 2)
	c.Cancel()
	requireCanceled(t, w)
	require.EqualValues(t, 1, leg.last().canceled.Load())
}

// Cancels and answers from many goroutines at any time: one End, calls one
// after the other, nothing left behind.
func TestUpstreamCancelAnytime(t *testing.T) {
	for seed := range uint64(300) {
		synctest.Test(t, func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			var mu sync.Mutex
			milliseconds := func(n int) time.Duration {
				mu.Lock()
				defer mu.Unlock()
				return time.Duration(random.IntN(n)) * time.Millisecond
			}
			s, r := stages(t)
			if seed%2 == 0 {
				r = request(codes.GET, nil)
			}
			leg := s.leg()
			leg.delay = func() time.Duration { return milliseconds(4) }
			w := &checkingSink{t: t}
			u := NewUpstream(leg, testLimit)
			c := ask(u, r, w)
			var wg sync.WaitGroup
			for range 3 {
				wg.Go(func() { time.Sleep(milliseconds(20)); c.Cancel() })
			}
			wg.Wait()
			leg.wg.Wait()
			ends, err := w.ended()
			require.Equal(t, 1, ends)
			require.Zero(t, u.bytes.Load())
			if err == nil {
				require.Equal(t, bodyOf(1000), w.one().Payload)
				return
			}
			requireCanceled(t, w)
		})
	}
}
