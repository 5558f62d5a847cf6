// Package chain is the leg to the next proxies: it hands a request on to another
// proxy instead of its target (FP-39), and makes a group request one that the
// proxies behind can keep (GP-91 to GP-105).
//
// A next proxy, or hop, has one or two addresses. Its health is known: while none
// of them can be reached, requests end at once, and what is down is looked for
// again with growing pauses.
package chain

import (
	"context"
	"iter"
	"net/netip"
	"time"

	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// Config says what a Chain is made of.
type Config struct {
	Engine  *exchange.Engine
	Numbers *wire.Numbers
	Hops    []Hop
	// Leg carries a request to a server of any of the schemes of the hops; a group
	// request stays open there until its T has passed (GP-93). Whole is Leg with
	// the layer for bodies in blocks before it.
	Leg, Whole exchange.Handler
	// Resolve turns the name of a next proxy into addresses; it may block.
	Resolve func(ctx context.Context, host string) ([]netip.Addr, error)
	// RoundTrip is the measured round trip to where a request goes, 0 if unknown
	// (GP-94). It may be nil.
	RoundTrip func(*exchange.Target) time.Duration
	// Zones tells clients the zones of link-local servers, which are those of a proxy
	// behind (GP-57).
	Zones bool
	Log   *zap.Logger
}

// Hop is a next proxy as it is configured.
type Hop struct {
	Name string
	// Addresses are those of the next proxy, the preferred one first.
	Addresses []Address
	// Dialect is the generation of the group options it speaks (GP-127).
	Dialect exchange.Dialect
	// Form is how it is told the target of a request; NoForm: as the client did.
	Form exchange.Form
	// MaxTimeout bounds the T” it is told at first, Margin is taken off it, both
	// in seconds; 0: no (GP-97).
	MaxTimeout, Margin uint32
	// Timeout is how long it may give no sign of life.
	Timeout time.Duration
	// RetryMax is the longest pause between attempts to find it again.
	RetryMax time.Duration
	// NStart is how many requests may be outstanding there (FP-92).
	NStart int
	// Leg and Whole carry the requests for this hop in place of those of the
	// Config, unless they are nil; what looks for the hop uses those.
	Leg, Whole exchange.Handler
	// Stats counts; never nil.
	Stats *Stats
}

// Address is where a next proxy is.
type Address struct {
	Scheme string
	// Host is its name, empty if it is known by Addr alone.
	Host string
	// Addr has the port in any case, and an address unless Host is to be resolved.
	Addr netip.AddrPort
}

// String returns the URI of the next proxy.
func (a Address) String() string {
	t := exchange.Target{Scheme: a.Scheme, Host: a.Host, Addr: a.Addr}
	return t.String()
}

// Chain is the leg to all next proxies. It implements exchange.Handler for
// requests whose target names one, and is safe for concurrent use.
type Chain struct {
	config  Config
	ctx     context.Context
	hops    map[string]*hop
	lookups exchange.Tasks
}

// hop is a next proxy at work.
type hop struct {
	Hop
	chain *Chain
	peers []*peer

	complaints complaints
}

// New returns a Chain that looks for its next proxies from when HandOver has given
// it the requests until ctx ends; Wait waits for it.
func New(ctx context.Context, config Config) *Chain {
	c := &Chain{config: config, ctx: ctx, hops: make(map[string]*hop)}
	for _, h := range config.Hops {
		kept := &hop{Hop: h, chain: c}
		if kept.Leg == nil {
			kept.Leg = config.Leg
		}
		if kept.Whole == nil {
			kept.Whole = config.Whole
		}
		for i, a := range h.Addresses {
			kept.peers = append(kept.peers, newPeer(kept, i, a))
		}
		c.hops[h.Name] = kept
	}
	return c
}

// HandOver has one Chain take the place of another; either may be nil. What is
// known of an address that both have stays known, and from is not asked about
// health any more: it only finishes what it has begun.
func HandOver(from, to *Chain) {
	left := make(map[peerKey]*peer)
	for p := range from.all() {
		left[p.identity()] = p
	}
	for p := range to.all() {
		old := left[p.identity()]
		delete(left, p.identity())
		p.takeOver(old)
	}
	for _, p := range left {
		p.retire()
	}
	for p := range to.all() { // it may be reached in another way now
		to.config.Engine.Schedule(&p.retry, time.Now())
	}
}

// all are the addresses of all next proxies.
func (c *Chain) all() iter.Seq[*peer] {
	return func(yield func(*peer) bool) {
		if c == nil {
			return
		}
		for _, h := range c.hops {
			for _, p := range h.peers {
				if !yield(p) {
					return
				}
			}
		}
	}
}

// Wait waits for the lookups under way, after the context has ended.
func (c *Chain) Wait() {
	c.lookups.Wait()
	for p := range c.all() {
		p.retire()
	}
}

var _ exchange.Handler = (*Chain)(nil)

// Exchange implements exchange.Handler.
func (c *Chain) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	h := c.hops[r.Target.NextHop]
	if h == nil {
		// It was one when the server was announced, or heard.
		return exchange.Fail(w, exchange.Failf(exchange.Unreachable, "the next proxy that leads there is not configured any more"))
	}
	h.Stats.Requests.Add(1)
	if r.Target.Group {
		return h.group(r, w)
	}
	return h.single(r, w)
}

// choose returns the preferred one of the addresses that can be used, other than
// not.
func (h *hop) choose(not *peer) (*peer, *exchange.Failure) {
	for _, p := range h.peers {
		if p != not && p.usable() {
			return p, nil
		}
	}
	h.Stats.Refused.Add(1)
	return nil, h.peers[0].failure()
}

// NStart is how many requests may be outstanding at an address if that is a next
// proxy's, else 0 (FP-92).
func (c *Chain) NStart(to netip.AddrPort) int {
	for p := range c.all() {
		if addr := p.addr.Load(); addr != nil && *addr == to {
			return p.hop.NStart
		}
	}
	return 0
}

// RoundTrip is how long the way to the address of a next proxy takes that requests
// go to now, and back: measured, or what it takes at most; 0 if it is not known.
func (c *Chain) RoundTrip(name string) time.Duration {
	h := c.hops[name]
	if h == nil {
		return 0
	}
	for _, p := range h.peers {
		if p.usable() {
			return p.roundTrip()
		}
	}
	return 0
}

// spare reports whether there is another address than that of p to try.
func (h *hop) spare(p *peer) bool {
	for _, o := range h.peers {
		if o != p && o.usable() {
			return true
		}
	}
	return false
}
