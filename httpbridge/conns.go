package httpbridge

import (
	"net"
	"net/netip"
	"sync"
)

// connLimit bounds the open connections, all of them and per peer (HC-97). An
// IPv6 peer is its /64: it has all of that to itself.
type connLimit struct {
	max, maxPeer int
	stats        *Stats

	mu    sync.Mutex
	open  int
	peers map[netip.Addr]int
}

// take counts a connection in; release counts it out.
func (c *connLimit) take(peer netip.Addr) (release func(), ok bool) {
	if peer.Is6() {
		if p, err := peer.WithZone("").Prefix(64); err == nil {
			peer = p.Addr()
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.open >= c.max || c.peers[peer] >= c.maxPeer {
		c.stats.RefusedConns.Add(1)
		return nil, false
	}
	c.open++
	c.peers[peer]++
	c.stats.Connections.Add(1)
	return func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.open--
		c.stats.Connections.Add(-1)
		if c.peers[peer]--; c.peers[peer] == 0 {
			delete(c.peers, peer)
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
