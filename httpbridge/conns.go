package httpbridge

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
)

// places bounds how many there are of something, in all and per peer (HC-97). An
// IPv6 peer is its /64: it has all of that to itself.
type places struct {
	max, maxPeer int
	open         *atomic.Int64  // of how many there are
	refused      *atomic.Uint64 // of how many were too many

	mu    sync.Mutex
	taken int
	peers map[netip.Addr]int
}

// take counts one in; release counts it out.
func (p *places) take(peer netip.Addr) (release func(), ok bool) {
	if peer.Is6() {
		if prefix, err := peer.WithZone("").Prefix(64); err == nil {
			peer = prefix.Addr()
		}
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.taken >= p.max || p.peers[peer] >= p.maxPeer {
		p.refused.Add(1)
		return nil, false
	}
	if p.peers == nil {
		p.peers = make(map[netip.Addr]int)
	}
	p.taken++
	p.peers[peer]++
	p.open.Add(1)
	return func() {
		p.mu.Lock()
		defer p.mu.Unlock()
		p.taken--
		p.open.Add(-1)
		if p.peers[peer]--; p.peers[peer] == 0 {
			delete(p.peers, peer)
		}
	}, true
}

// releasing is a connection that is counted out when it is closed.
type releasing struct {
	net.Conn
	release func()
}

// Close implements net.Conn.
func (r *releasing) Close() error {
	defer r.release()
	return r.Conn.Close()
}

// handOver is a net.Listener for connections that were accepted elsewhere.
type handOver struct {
	addr   net.Addr
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newHandOver(addr net.Addr) *handOver {
	return &handOver{addr: addr, conns: make(chan net.Conn), closed: make(chan struct{})}
}

// give hands a connection on, or closes it when nobody listens any more.
func (h *handOver) give(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.closed:
		_ = c.Close()
	}
}

// Accept implements net.Listener.
func (h *handOver) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.closed:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *handOver) Close() error {
	h.once.Do(func() { close(h.closed) })
	return nil
}

// Addr implements net.Listener.
func (h *handOver) Addr() net.Addr { return h.addr }
