package httpbridge

import (
	"slices"
	"sync"

	"github.com/plgd-dev/go-coap/v3/message"

	"coapproxy/exchange"
)

// single is the sink of an exchange with one response, and what came of it. Two
// hold it: the exchange until its End, and the goroutine of the HTTP request until
// it calls leave. Who lets go last gives it back to be used again.
type single struct {
	load  *load
	ready chan struct{} // holds one when there is something new

	mu       sync.Mutex
	holders  int
	came     bool // response is there
	full     bool // it came and did not fit
	left     bool
	ended    bool
	err      error // of the End
	response exchange.Response
	options  message.Options // room for those of the response
	bytes    []byte          // room for what the response refers to
	size     int             // bytes of the budget
}

// singleKept is the room for the bytes of a response that is kept for the next one.
const singleKept = 4 << 10

var singles = sync.Pool{New: func() any { return &single{ready: make(chan struct{}, 1)} }}

// newSingle counts an exchange as begun.
func (l *load) newSingle() *single {
	b := singles.Get().(*single)
	b.load, b.holders = l, 2
	l.exchanges.Add(1)
	return b
}

// Respond implements exchange.Sink.
func (b *single) Respond(p *exchange.Response) exchange.Verdict {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.left || b.came || b.full {
		return exchange.Stop
	}
	if size := weight(p); b.load.budget.take(size) {
		b.keep(p)
		b.came, b.size = true, size
	} else {
		b.full = true
	}
	b.signal()
	return exchange.Stop
}

// keep copies a response into the room that there is. Called under the lock.
func (b *single) keep(p *exchange.Response) {
	n := len(p.Payload)
	for _, o := range p.Options {
		n += len(o.Value)
	}
	b.response, b.options, b.bytes = *p, b.options[:0], slices.Grow(b.bytes[:0], n)
	for _, o := range p.Options {
		b.options = append(b.options, message.Option{ID: o.ID, Value: b.own(o.Value)})
	}
	b.response.Options, b.response.Payload = b.options, b.own(p.Payload)
	b.response.ReplyFrom = slices.Clone(p.ReplyFrom)
}

func (b *single) own(value []byte) []byte {
	start := len(b.bytes)
	b.bytes = append(b.bytes, value...)
	return b.bytes[start:len(b.bytes):len(b.bytes)]
}

// End implements exchange.Sink.
func (b *single) End(err error) {
	b.mu.Lock()
	b.ended, b.err = true, err
	if !b.came {
		b.signal()
	}
	b.mu.Unlock()
	b.load.exchangeEnded()
	b.release()
}

// signal is called under the lock.
func (b *single) signal() {
	select {
	case b.ready <- struct{}{}:
	default:
	}
}

// wait waits for the response, which is valid until leave. Nil: the exchange has ended
// without one, with this error. ok is false when gone was closed before.
func (b *single) wait(gone <-chan struct{}) (p *exchange.Response, ok bool, err error) {
	for {
		b.mu.Lock()
		came, full, ended, err := b.came, b.full, b.ended, b.err
		b.mu.Unlock()
		switch {
		case came:
			return &b.response, true, nil
		case full:
			return nil, true, errSlowReader{}
		case ended:
			return nil, true, err
		}
		select {
		case <-b.ready:
		case <-gone:
			return nil, false, nil
		}
	}
}

// leave drops the response, or the one that may still come.
func (b *single) leave() {
	b.mu.Lock()
	b.left = true
	b.load.budget.give(b.size)
	b.size = 0
	b.mu.Unlock()
	b.release()
}

// release is called once by each holder, at its end.
func (b *single) release() {
	b.mu.Lock()
	b.holders--
	last := b.holders == 0
	b.mu.Unlock()
	if !last {
		return
	}
	select {
	case <-b.ready:
	default:
	}
	clear(b.options)
	if cap(b.bytes) > singleKept {
		b.bytes = nil
	}
	*b = single{ready: b.ready, options: b.options[:0], bytes: b.bytes}
	singles.Put(b)
}
