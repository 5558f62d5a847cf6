package exchange

import (
	"context"
	"sync"
	"sync/atomic"
	"time"
)

// Engine is what all exchanges of a proxy share: the one deadline queue and
// the list of packet connections that have something to send. Safe for
// concurrent use.
type Engine struct {
	mu     sync.Mutex
	heap   deadlineHeap
	armed  time.Time // when Run wakes up; zero: not before it is told
	wake   chan struct{}
	epoch  time.Time
	dirtMu sync.Mutex
	dirty  []Flusher
	spare  []Flusher
	any    atomic.Bool
	ids    atomic.Uint64
}

// Flusher sends what it has gathered.
type Flusher interface {
	// Flush sends everything gathered so far. It may be called by several
	// goroutines at once.
	Flush()
}

// NewEngine returns an Engine; its deadlines fire while Run runs.
func NewEngine() *Engine {
	return &Engine{wake: make(chan struct{}, 1), epoch: time.Now()}
}

// NextID returns a new exchange number.
func (e *Engine) NextID() uint64 { return e.ids.Add(1) }

// MarkDirty notes that f has something to send at the next Flush. A Flusher
// calls it when its queue stops being empty, never while holding a lock that
// its Flush takes.
func (e *Engine) MarkDirty(f Flusher) {
	e.dirtMu.Lock()
	e.dirty = append(e.dirty, f)
	e.any.Store(true)
	e.dirtMu.Unlock()
}

// Flush makes everything leave that was gathered before the call, by whoever.
// What another goroutine has begun to flush may leave after the return.
func (e *Engine) Flush() {
	for e.any.Load() {
		e.dirtMu.Lock()
		batch := e.dirty
		e.dirty, e.spare = e.spare[:0], nil
		e.any.Store(false)
		e.dirtMu.Unlock()
		for i, f := range batch {
			f.Flush()
			batch[i] = nil
		}
		e.dirtMu.Lock()
		if cap(e.spare) < cap(batch) {
			e.spare = batch[:0]
		}
		e.dirtMu.Unlock()
	}
}

// Deadline is a point in time at which something is to be done. It is embedded
// in what waits for it. The zero value is not scheduled.
type Deadline struct {
	// Fire is told when the time has come.
	Fire  Firer
	index int // in the heap, from 1; 0: not scheduled
}

// Firer is told that a Deadline has come: who waits for it, or a FireFunc.
type Firer interface {
	// Fire is called on the engine's goroutine, under no lock. It must not block.
	// Because neither Unschedule nor another Schedule can recall a deadline that is
	// being fired, Fire checks under its owner's lock whether it still matters.
	Fire(now time.Time)
}

// FireFunc is a Firer made of a function; it costs an allocation where the
// function is a closure or a method.
type FireFunc func(now time.Time)

// Fire calls f.
func (f FireFunc) Fire(now time.Time) { f(now) }

// Schedule makes d fire at the given time; an earlier plan of d is replaced.
func (e *Engine) Schedule(d *Deadline, at time.Time) {
	e.mu.Lock()
	e.heap.set(d, at.Sub(e.epoch))
	ring := e.heap.items[0].deadline == d && (e.armed.IsZero() || at.Before(e.armed))
	if ring {
		e.armed = at
	}
	e.mu.Unlock()
	if ring {
		select {
		case e.wake <- struct{}{}:
		default:
		}
	}
}

// Coalesce returns a time less than 8 ms after at: the same for deadlines that come
// close to each other, which then fire together. To wake for each of a thousand in a
// second costs more than what most of them do.
func (e *Engine) Coalesce(at time.Time) time.Time {
	const tick = 8 * time.Millisecond
	if over := at.Sub(e.epoch) % tick; over > 0 {
		return at.Add(tick - over)
	}
	return at
}

// Unschedule takes d off the queue. It reports false when d was not there: it
// never was, or it is being fired right now.
func (e *Engine) Unschedule(d *Deadline) bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	if d.index == 0 {
		return false
	}
	e.heap.remove(d)
	return true
}

// Scheduled is the number of deadlines in the queue.
func (e *Engine) Scheduled() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.heap.items)
}

// Run fires deadlines until ctx ends. Exactly one Run may be active.
func (e *Engine) Run(ctx context.Context) {
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	var due []*Deadline
	for ctx.Err() == nil {
		due = e.fire(ctx, due[:0])
		e.mu.Lock()
		e.armed = time.Time{}
		if len(e.heap.items) > 0 {
			e.armed = e.epoch.Add(e.heap.items[0].at)
		}
		armed := e.armed
		e.mu.Unlock()
		if armed.IsZero() {
			timer.Stop()
		} else {
			timer.Reset(time.Until(armed))
		}
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		case <-e.wake:
		}
	}
}

// fire runs everything that is due, in the order of time, as long as ctx lasts.
func (e *Engine) fire(ctx context.Context, due []*Deadline) []*Deadline {
	const batch = 64 // so that a crowd of deadlines does not delay what they send
	for ctx.Err() == nil {
		now := time.Now()
		since := now.Sub(e.epoch)
		e.mu.Lock()
		for len(due) < batch && len(e.heap.items) > 0 && e.heap.items[0].at <= since {
			d := e.heap.items[0].deadline
			e.heap.remove(d)
			due = append(due, d)
		}
		e.mu.Unlock()
		if len(due) == 0 {
			return due
		}
		for i, d := range due {
			d.Fire.Fire(now)
			due[i] = nil
		}
		e.Flush()
		due = due[:0]
	}
	return due
}

// deadlineHeap is a 4-ary min-heap of deadlines that know their place. Their times
// are kept in it, so that to compare them takes one cache line for four.
type deadlineHeap struct{ items []heapItem }

type heapItem struct {
	at       time.Duration // since the engine's epoch
	deadline *Deadline
}

func (h *deadlineHeap) set(d *Deadline, at time.Duration) {
	if d.index == 0 {
		h.items = append(h.items, heapItem{})
		d.index = len(h.items)
	}
	h.settle(d.index-1, heapItem{at, d})
}

func (h *deadlineHeap) remove(d *Deadline) {
	i := d.index - 1
	last := len(h.items) - 1
	moved := h.items[last]
	h.items[last] = heapItem{}
	h.items = h.items[:last]
	d.index = 0
	if i < last {
		h.settle(i, moved)
	}
}

// settle puts an item where it belongs, starting at place i, which is free.
func (h *deadlineHeap) settle(i int, item heapItem) {
	start := i
	for i > 0 {
		parent := (i - 1) / 4
		if h.items[parent].at <= item.at {
			break
		}
		h.place(i, h.items[parent])
		i = parent
	}
	for i == start {
		least, first := -1, 4*i+1
		for c := first; c < first+4 && c < len(h.items); c++ {
			if least < 0 || h.items[c].at < h.items[least].at {
				least = c
			}
		}
		if least < 0 || h.items[least].at >= item.at {
			break
		}
		h.place(i, h.items[least])
		i, start = least, least
	}
	h.place(i, item)
}

func (h *deadlineHeap) place(i int, item heapItem) {
	h.items[i] = item
	item.deadline.index = i + 1
}
