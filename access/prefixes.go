package access

import (
	"net/netip"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/time/rate"
)

// prefixes limits the requests of each source network, of clients that have
// proven nothing but their address: one host of a trusted network cannot use up
// what all of its hosts share, and strangers cannot keep the proxy busy with
// refusals (FP-37, HC-105). An IPv4 network is one address, an IPv6 network 64
// bits, which is what one host can choose from. Bounded: the network heard
// longest ago is forgotten first, and gets a new burst when it comes back. Safe
// for concurrent use.
type prefixes struct {
	rate  rate.Limit
	burst int

	mu    sync.Mutex
	known *lru.LRU[netip.Prefix, *rate.Limiter]
}

// maxPrefixes bounds the networks that are remembered.
const maxPrefixes = 16384

// newPrefixes returns nil for a rate of 0, which is no limit.
func newPrefixes(perSecond float64, burst int) *prefixes {
	if perSecond <= 0 {
		return nil
	}
	known, err := lru.NewLRU[netip.Prefix, *rate.Limiter](maxPrefixes, nil)
	if err != nil {
		panic(err) // the size is a positive constant
	}
	return &prefixes{rate: rate.Limit(perSecond), burst: burst, known: known}
}

// exceeded takes one from the network of an address. It returns its limiter if
// there was none, else nil.
func (p *prefixes) exceeded(peer netip.Addr, now time.Time) *rate.Limiter {
	if p == nil {
		return nil
	}
	bits := 32
	if peer = peer.Unmap().WithZone(""); peer.Is6() {
		bits = 64
	}
	network, err := peer.Prefix(bits)
	if err != nil {
		return nil // no address: a client that is known in another way
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	l, ok := p.known.Get(network)
	if !ok {
		l = rate.NewLimiter(p.rate, p.burst)
		p.known.Add(network, l)
	}
	if l.AllowN(now, 1) {
		return nil
	}
	return l
}
