package proxy

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2"

	"coapproxy/exchange"
)

// Resolver turns a host name into addresses; net.Resolver is one.
type Resolver interface {
	LookupNetIP(ctx context.Context, network, host string) ([]netip.Addr, error)
}

// Names resolves host names without holding up the goroutine that asks: the
// configuration's own names at once, others by a Resolver, with a short memory.
// Safe for concurrent use.
type Names struct {
	own      map[string][]netip.Addr
	resolver Resolver
	engine   *exchange.Engine
	ctx      context.Context
	slots    exchange.Shares
	known    *lru.Cache[string, resolved]
	lookups  exchange.Tasks
}

type resolved struct {
	addrs   []netip.Addr
	expires time.Time
}

const (
	maxLookups    = 64 // at a time; more get 5.03
	maxKnownNames = 1024
	lookupTimeout = 5 * time.Second
	// namesLifetime is how long an answer is used: the resolver does not tell
	// the TTL of the records.
	namesLifetime = 30 * time.Second
)

// NewNames returns a Names whose lookups end with ctx; Wait waits for them.
func NewNames(ctx context.Context, own map[string][]netip.Addr, resolver Resolver, engine *exchange.Engine) (*Names, error) {
	known, err := lru.New[string, resolved](maxKnownNames)
	if err != nil {
		return nil, err
	}
	return &Names{own: own, resolver: resolver, engine: engine, ctx: ctx, known: known}, nil
}

// Wait waits for the lookups under way, after the context has ended.
func (n *Names) Wait() { n.lookups.Wait() }

// Pending is the number of lookups under way.
func (n *Names) Pending() int { return n.slots.Total() }

type resumption func(r *exchange.Request, w exchange.Sink, addrs []netip.Addr) exchange.Canceler

// lookup calls then with the addresses of host, at least one; at once if they
// are known, else later on a goroutine of its own.
func (n *Names) lookup(r *exchange.Request, w exchange.Sink, host string, then resumption) exchange.Canceler {
	if addrs := n.own[host]; len(addrs) > 0 {
		return then(r, w, addrs)
	}
	if k, ok := n.known.Get(host); ok && k.expires.After(r.Arrival) {
		return then(r, w, k.addrs)
	}
	asker := r.Peer.Addr()
	if !n.slots.Take(asker, maxLookups) {
		return exchange.Fail(w, errTooManyLookups)
	}
	p := &postponed{sink: w}
	kept := r.Clone()
	if !n.lookups.Go(func() {
		addrs, err := n.resolve(n.ctx, host)
		n.slots.Give(asker)
		switch {
		case err != nil:
			p.fail(err)
		case kept.Timeout.Seconds > 0 && time.Since(kept.Arrival) >= kept.Timeout.Duration(): // GC-80
			p.fail(&exchange.Failure{Reason: exchange.Overloaded, Detail: "the name was resolved too late for the timeout", RetryAfter: time.Second})
		default:
			p.start(func() exchange.Canceler { return then(kept, w, addrs) })
		}
		n.engine.Flush()
	}) {
		n.slots.Give(asker)
		return exchange.Fail(w, &exchange.Failure{Reason: exchange.Overloaded, Detail: "shutting down", RetryAfter: time.Second})
	}
	return p
}

// errTooManyLookups is what a client gets whose names would hold up those of others.
var errTooManyLookups = &exchange.Failure{Reason: exchange.Overloaded, Detail: "too many names are being resolved", RetryAfter: time.Second}

// Resolve returns the addresses of host, at least one, for the client at an address,
// and takes its time. The error is a *exchange.Failure.
func (n *Names) Resolve(ctx context.Context, asker netip.Addr, host string) ([]netip.Addr, error) {
	if addrs := n.own[host]; len(addrs) > 0 {
		return addrs, nil
	}
	if k, ok := n.known.Get(host); ok && k.expires.After(time.Now()) {
		return k.addrs, nil
	}
	if !n.slots.Take(asker, maxLookups) {
		return nil, errTooManyLookups
	}
	defer n.slots.Give(asker)
	return n.resolve(ctx, host)
}

func (n *Names) resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, lookupTimeout)
	defer cancel()
	addrs, err := n.resolver.LookupNetIP(ctx, "ip", host)
	if err == nil && len(addrs) == 0 {
		err = errors.New("no addresses")
	}
	if err != nil {
		f := &exchange.Failure{Reason: exchange.Unreachable, Detail: "the name does not resolve", Err: err} // FP-34
		var dns *net.DNSError
		if errors.As(err, &dns) && dns.IsTimeout {
			f.Reason, f.Detail = exchange.NoAnswer, "the name server does not answer"
		}
		return nil, f
	}
	for i, a := range addrs {
		addrs[i] = a.Unmap()
	}
	n.known.Add(host, resolved{addrs: addrs, expires: time.Now().Add(namesLifetime)})
	return addrs, nil
}

// postponed is an exchange that begins later, on another goroutine.
type postponed struct {
	sink exchange.Sink

	mu       sync.Mutex
	started  bool
	canceled bool
	inner    exchange.Canceler
}

// start begins the exchange unless it has been canceled.
func (p *postponed) start(begin func() exchange.Canceler) {
	p.mu.Lock()
	if p.canceled {
		p.mu.Unlock()
		return
	}
	p.started = true
	p.mu.Unlock()
	inner := begin()
	p.mu.Lock()
	p.inner = inner
	canceled := p.canceled
	p.mu.Unlock()
	if canceled {
		inner.Cancel()
	}
}

func (p *postponed) fail(err error) {
	p.mu.Lock()
	canceled := p.canceled
	p.started = true
	p.mu.Unlock()
	if !canceled {
		p.sink.End(err)
	}
}

// Renew implements exchange.Renewer.
func (p *postponed) Renew() {
	p.mu.Lock()
	inner, ok := p.inner.(exchange.Renewer)
	p.mu.Unlock()
	if ok {
		inner.Renew()
	}
}

// Cancel implements exchange.Canceler.
func (p *postponed) Cancel() {
	p.mu.Lock()
	first := !p.canceled
	p.canceled = true
	started, inner := p.started, p.inner
	p.mu.Unlock()
	switch {
	case !first:
	case inner != nil:
		inner.Cancel()
	case !started:
		p.sink.End(exchange.ErrCanceled)
	}
}
