package httpbridge

import (
	"context"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"coapproxy/exchange"
)

// collection is the sink of an exchange whose responses are wanted together: it
// keeps the latest response of each server (HC-77) within bounds (HC-84).
type collection struct {
	maxParts, maxBytes int
	budget             *budget
	dropped            *atomic.Uint64
	done               func() // called when the exchange has ended

	mu       sync.Mutex
	items    []received
	byServer map[author]int
	bytes    int
	missed   int
	abandon  bool
	err      error
	over     chan struct{} // closed by End
}

// author tells the servers of a group apart: by address or, behind a next proxy, by
// what that one calls them.
type author struct {
	from  netip.AddrPort
	named string
}

func newCollection(maxParts, maxBytes int, total *budget, dropped *atomic.Uint64, done func()) *collection {
	return &collection{maxParts: maxParts, maxBytes: maxBytes, budget: total, dropped: dropped, done: done,
		byServer: make(map[author]int), over: make(chan struct{})}
}

// Respond implements exchange.Sink.
func (c *collection) Respond(p *exchange.Response) exchange.Verdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.abandon {
		return exchange.Continue // cancelled already
	}
	server := author{from: p.From}
	if !p.From.IsValid() {
		server.named = string(p.ReplyFrom)
	}
	i, known := c.byServer[server]
	size := weight(p)
	if known {
		size -= weight(c.items[i].Response)
	}
	if c.bytes+size > c.maxBytes || !known && len(c.items) >= c.maxParts || !c.budget.take(size) {
		c.missed++
		c.dropped.Add(1)
		return exchange.Continue // HC-84
	}
	c.bytes += size
	kept := received{p.Clone(), time.Now()}
	if known {
		c.items[i] = kept // HC-77
		return exchange.Continue
	}
	if server != (author{}) {
		c.byServer[server] = len(c.items)
	}
	c.items = append(c.items, kept)
	return exchange.Continue
}

// End implements exchange.Sink.
func (c *collection) End(err error) {
	c.mu.Lock()
	c.err = err
	c.mu.Unlock()
	close(c.over)
	c.done()
}

// wait waits for the end of the exchange and returns what was collected, how
// many responses did not fit, and the error of the exchange or of ctx.
func (c *collection) wait(ctx context.Context) (items []received, missed int, err error) {
	select {
	case <-c.over:
	case <-ctx.Done():
		return nil, 0, ctx.Err()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.items, c.missed, c.err
}

// leave drops what was collected and whatever may still come.
func (c *collection) leave() {
	c.mu.Lock()
	c.budget.give(c.bytes)
	c.abandon, c.items, c.bytes = true, nil, 0
	c.mu.Unlock()
}
