package exchange

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// gathering is a Flusher that counts: what is added waits until a flush.
type gathering struct {
	engine *Engine

	mu      sync.Mutex
	waiting int64

	sent, flushes atomic.Int64
}

func (g *gathering) add(n int64) {
	g.mu.Lock()
	first := g.waiting == 0
	g.waiting += n
	g.mu.Unlock()
	if first {
		g.engine.MarkDirty(g)
	}
}

func (g *gathering) Flush() {
	g.flushes.Add(1)
	g.mu.Lock()
	n := g.waiting
	g.waiting = 0
	g.mu.Unlock()
	g.sent.Add(n)
}

func TestFlush(t *testing.T) {
	e := NewEngine()
	a, b := &gathering{engine: e}, &gathering{engine: e}
	e.Flush()
	require.Zero(t, a.flushes.Load())
	a.add(2)
	a.add(3)
	b.add(1)
	e.Flush()
	require.EqualValues(t, 5, a.sent.Load())
	require.EqualValues(t, 1, b.sent.Load())
	e.Flush()
	require.EqualValues(t, 1, a.flushes.Load(), "nothing was added since")
}

// A flush that makes others send flushes those too.
func TestFlushOfFlush(t *testing.T) {
	e := NewEngine()
	g := &gathering{engine: e}
	e.MarkDirty(flusherFunc(func() { g.add(7) }))
	e.Flush()
	require.EqualValues(t, 7, g.sent.Load())
}

type flusherFunc func()

func (f flusherFunc) Flush() { f() }

// Nothing is lost when many goroutines gather and flush at once: as soon as
// everyone has flushed after adding, everything has left.
func TestFlushConcurrently(t *testing.T) {
	const writers, rounds, flushers = 8, 2000, 3
	e := NewEngine()
	var all [flushers]*gathering
	for i := range all {
		all[i] = &gathering{engine: e}
	}
	var wg sync.WaitGroup
	for w := range writers {
		wg.Go(func() {
			for r := range rounds {
				all[(w+r)%flushers].add(1)
				if r%3 == 0 || r == rounds-1 {
					e.Flush()
				}
			}
		})
	}
	wg.Wait()
	total := int64(0)
	for _, g := range all {
		total += g.sent.Load()
		require.Zero(t, g.waiting)
	}
	require.EqualValues(t, writers*rounds, total)
	e.dirtMu.Lock()
	defer e.dirtMu.Unlock()
	require.Empty(t, e.dirty)
	for _, f := range e.spare[:cap(e.spare)] {
		require.Nil(t, f, "a flushed one is kept alive")
	}
}

// Deadlines are scheduled, unscheduled and fired by many goroutines at once.
func TestScheduleConcurrently(t *testing.T) {
	const goroutines, each = 4, 300
	e := running(t)
	var fired, recalled atomic.Int64
	var wg sync.WaitGroup
	all := make(chan struct{}, goroutines*each)
	for range goroutines {
		wg.Go(func() {
			for i := range each {
				d := &Deadline{Fire: FireFunc(func(time.Time) { fired.Add(1); all <- struct{}{} })}
				e.Schedule(d, time.Now().Add(time.Duration(i%7)*100*time.Microsecond))
				if i%5 == 0 && e.Unschedule(d) {
					recalled.Add(1)
					all <- struct{}{}
				}
			}
		})
	}
	wg.Wait()
	for range goroutines * each {
		<-all
	}
	require.EqualValues(t, goroutines*each, fired.Load()+recalled.Load())
}

func BenchmarkFlush(b *testing.B) {
	e := NewEngine()
	g := &gathering{engine: e}
	b.ReportAllocs()
	for b.Loop() {
		g.add(1)
		e.Flush()
	}
}
