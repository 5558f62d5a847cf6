package httpbridge

import (
	"context"
	"errors"
	"sync"
	"time"

	"coapproxy/exchange"
)

// received is a response that the proxy keeps, and when it came.
type received struct {
	*exchange.Response
	at time.Time
}

// inbox is the sink of an exchange whose responses are pulled one by one: a
// bounded queue. A response that does not fit ends the exchange.
type inbox struct {
	maxParts, maxBytes int
	budget             *budget
	// done is called when the exchange has ended.
	done func()

	mu       sync.Mutex
	queue    []received
	bytes    int
	abandon  bool
	overflow bool
	ended    bool
	err      error
	ready    chan struct{} // holds one when there is something new
}

func newInbox(maxParts, maxBytes int, total *budget, done func()) *inbox {
	return &inbox{maxParts: maxParts, maxBytes: maxBytes, budget: total, done: done, ready: make(chan struct{}, 1)}
}

// weight is what a kept response is counted as.
func weight(p *exchange.Response) int {
	n := len(p.Payload) + len(p.ReplyFrom) + 64
	for _, o := range p.Options {
		n += len(o.Value) + 16
	}
	return n
}

// Respond implements exchange.Sink.
func (b *inbox) Respond(p *exchange.Response) exchange.Verdict {
	b.mu.Lock()
	defer b.mu.Unlock()
	size := weight(p)
	switch {
	case b.abandon:
		return exchange.Continue // cancelled already, or of use to a cache (HC-60)
	case len(b.queue) >= b.maxParts, b.bytes+size > b.maxBytes && len(b.queue) > 0, !b.budget.take(size):
		b.overflow = true
		b.signal()
		return exchange.Stop
	}
	b.queue, b.bytes = append(b.queue, received{p.Clone(), time.Now()}), b.bytes+size
	b.signal()
	return exchange.Continue
}

// End implements exchange.Sink.
func (b *inbox) End(err error) {
	b.mu.Lock()
	b.ended, b.err = true, err
	b.signal()
	b.mu.Unlock()
	b.done()
}

// signal is called under the lock.
func (b *inbox) signal() {
	select {
	case b.ready <- struct{}{}:
	default:
	}
}

// errSlowReader ends a stream whose client does not keep up.
type errSlowReader struct{}

func (errSlowReader) Error() string { return "the client does not take its responses" }

// errQuiet says that the alarm came before a response.
var errQuiet = errors.New("nothing has come")

// next waits for a response. It returns ok = false at the end of the exchange,
// with its error, with that of ctx, with errSlowReader when the queue ran full, or
// with errQuiet when the alarm, which may be nil, came first.
func (b *inbox) next(ctx context.Context, alarm <-chan time.Time) (r received, ok bool, _ error) {
	for {
		b.mu.Lock()
		switch {
		case b.overflow:
			b.mu.Unlock()
			return r, false, errSlowReader{}
		case len(b.queue) > 0:
			r = b.queue[0]
			b.queue[0] = received{}
			b.queue = b.queue[1:]
			b.bytes -= weight(r.Response)
			b.budget.give(weight(r.Response))
			b.mu.Unlock()
			return r, true, nil
		case b.ended:
			err := b.err
			b.mu.Unlock()
			return r, false, err
		}
		b.mu.Unlock()
		select {
		case <-b.ready:
		case <-ctx.Done():
			return r, false, ctx.Err()
		case <-alarm:
			return r, false, errQuiet
		}
	}
}

// state tells, without waiting, whether a response waits and whether the
// exchange has ended.
func (b *inbox) state() (waiting, ended bool, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return len(b.queue) > 0, b.ended, b.err
}

// leave drops what waits and whatever may still come.
func (b *inbox) leave() {
	b.mu.Lock()
	b.budget.give(b.bytes)
	b.abandon, b.queue, b.bytes = true, nil, 0
	b.mu.Unlock()
}
