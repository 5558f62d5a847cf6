package proxy

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

// budget gives every source so many tokens a second, at most burst at once. It has
// a fixed size: sources that share a slot share its tokens, so that no number of
// sources costs memory. The zero value gives nothing; see newBudget.
type budget struct {
	rate, burst float64
	seed        maphash.Seed

	mu    sync.Mutex
	slots *[budgetSlots]budgetSlot // nil before the first source
}

const budgetSlots = 4096

type budgetSlot struct {
	tokens float64
	at     time.Time
}

func newBudget(rate, burst float64) *budget {
	return &budget{rate: rate, burst: burst, seed: maphash.MakeSeed()}
}

// take takes a token and reports false if there was none.
func (b *budget) take(source netip.AddrPort, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	s := b.slot(source, now)
	if s.tokens < 1 {
		return false
	}
	s.tokens--
	return true
}

// empty reports whether there is no token.
func (b *budget) empty(source netip.AddrPort, now time.Time) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.slot(source, now).tokens < 1
}

// sourceOf is what of a peer's address is one source for a budget: without the port, and
// of IPv6 a network of 64 bits: whoever has one address of it has all.
func sourceOf(peer netip.AddrPort) netip.AddrPort {
	source := peer.Addr().Unmap().WithZone("")
	if source.Is6() {
		p, _ := source.Prefix(64) // no error: an IPv6 address has 64 bits
		source = p.Addr()
	}
	return netip.AddrPortFrom(source, 0)
}

// slot returns the slot of a source as it is now.
func (b *budget) slot(source netip.AddrPort, now time.Time) *budgetSlot {
	if b.slots == nil {
		b.slots = new([budgetSlots]budgetSlot)
	}
	s := &b.slots[maphash.Comparable(b.seed, source)%budgetSlots]
	if s.at.IsZero() {
		s.tokens = b.burst
	} else {
		s.tokens = min(b.burst, s.tokens+b.rate*now.Sub(s.at).Seconds())
	}
	s.at = now
	return s
}
