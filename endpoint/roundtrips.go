package endpoint

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"golang.org/x/sys/unix"

	"coapproxy/exchange"
)

// RoundTrips remembers how long the way to a peer and back takes, from the
// acknowledgements of messages that were sent once (RFC 6298 §3), smoothed as in
// RFC 6298 §2. It is what GP-94 asks for. Safe for concurrent use.
type RoundTrips struct {
	wanted atomic.Bool
	mu     sync.Mutex
	peers  *simplelru.LRU[netip.AddrPort, time.Duration]
}

// NewRoundTrips returns a table for so many peers; the one used longest ago is
// forgotten first.
func NewRoundTrips(peers int) (*RoundTrips, error) {
	table, err := simplelru.NewLRU[netip.AddrPort, time.Duration](peers, nil)
	if err != nil {
		return nil, err
	}
	return &RoundTrips{peers: table}, nil
}

// Measure says whether anybody wants to know round trips from now on; at first
// nobody does, and nothing is measured.
func (r *RoundTrips) Measure(wanted bool) { r.wanted.Store(wanted) }

// measures reports whether it is worth while to call Note.
func (r *RoundTrips) measures() bool { return r != nil && r.wanted.Load() }

// Note adds a measurement.
func (r *RoundTrips) Note(peer netip.AddrPort, sample time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if old, ok := r.peers.Get(peer); ok {
		sample = old + (sample-old)/8
	}
	r.peers.Add(peer, sample)
}

// Of is the smoothed round trip to a peer, 0 if it was never measured.
func (r *RoundTrips) Of(peer netip.AddrPort) time.Duration {
	if r == nil {
		return 0
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	d, _ := r.peers.Peek(peer)
	return d
}

// RoundTrip is the measured round trip to the client, 0 if it is not known
// (GP-94).
func (rx *Reception) RoundTrip() time.Duration {
	if rx.stream != nil {
		return rx.stream.measured()
	}
	return rx.endpoint.RoundTrips.Of(rx.Peer.key())
}

// measured is the round trip of a connection: what TCP knows or, if that is more,
// that of the last Ping: under a WebSocket there can be others between.
func (s *Stream) measured() time.Duration {
	s.mu.Lock()
	last := s.roundTrip
	s.mu.Unlock()
	return max(last, tcpRoundTrip(s.raw))
}

// RoundTrip is the round trip to a server that there is a connection to, else 0
// (GP-94).
func (c *StreamClient) RoundTrip(t *exchange.Target) time.Duration {
	c.mu.Lock()
	var s *Stream
	if l := c.links[serverKey{t.Scheme, t.Host, t.Addr}]; l != nil {
		s = l.stream
	}
	c.mu.Unlock()
	if s == nil {
		return 0
	}
	return s.measured()
}

// tcpRoundTrip asks the kernel for its smoothed round trip, which the handshake
// began (RFC 6298).
func tcpRoundTrip(conn net.Conn) time.Duration {
	c, ok := conn.(syscall.Conn)
	if !ok {
		return 0
	}
	raw, err := c.SyscallConn()
	if err != nil {
		return 0
	}
	var info *unix.TCPInfo
	err = raw.Control(func(fd uintptr) { info, _ = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO) })
	if err != nil || info == nil {
		return 0
	}
	return time.Duration(info.Rtt) * time.Microsecond
}
