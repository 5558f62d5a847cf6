package proxy

import (
	"hash/maphash"
	"net/netip"
	"sync"
	"time"
)

// forgers bounds how many messages of a source keys are tried on in vain (OC-54). A
// peer out of which something authentic came lately has a budget of its own beside that
// of its address, for its port: who forges its address without knowing the port does
// not keep it out. Safe for concurrent use.
type forgers struct {
	addresses, peers *budget
	seed             maphash.Seed

	mu     sync.Mutex
	lately *[latePeers]latePeer // nil before the first
}

// latePeer is a peer and when something authentic last came from it.
type latePeer struct {
	peer netip.AddrPort
	at   time.Time
}

const (
	// latePeers bounds the peers that are remembered; the later one takes the place of
	// the earlier where two share one.
	latePeers = 4096
	// lately is how long they are.
	lately = 10 * time.Minute
)

func newForgers() *forgers {
	return &forgers{addresses: newBudget(layerFailureRate, layerFailureBurst), peers: newBudget(layerFailureRate, layerFailureBurst), seed: maphash.MakeSeed()}
}

// barred reports whether no key is to be tried on a message of the peer.
func (g *forgers) barred(peer netip.AddrPort, now time.Time) bool {
	return g.addresses.empty(sourceOf(peer), now) && (!g.known(peer, now) || g.peers.empty(peer, now))
}

// failed notes a message that was a forgery.
func (g *forgers) failed(peer netip.AddrPort, now time.Time) {
	if !g.addresses.take(sourceOf(peer), now) {
		g.peers.take(peer, now)
	}
}

// authentic notes a message that was none.
func (g *forgers) authentic(peer netip.AddrPort, now time.Time) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.lately == nil {
		g.lately = new([latePeers]latePeer)
	}
	g.lately[maphash.Comparable(g.seed, peer)%latePeers] = latePeer{peer, now}
}

func (g *forgers) known(peer netip.AddrPort, now time.Time) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.lately == nil {
		return false
	}
	p := &g.lately[maphash.Comparable(g.seed, peer)%latePeers]
	return p.peer == peer && now.Sub(p.at) < lately
}
