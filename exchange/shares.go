package exchange

import (
	"net/netip"
	"sync"
)

// Shares hands out a bounded number of something that requests hold while others
// make them wait: slots, connections. The last quarter is for clients that have less
// than a quarter themselves, so that none alone keeps the others out. Clients are
// told apart as by Enqueue; an invalid address stands for the proxy itself. The zero
// value is ready for use. Safe for concurrent use.
type Shares struct {
	mu    sync.Mutex
	total int
	of    map[netip.Addr]int // bounded by the limit
}

// Take takes one of limit for a client; it reports false where there is none for it.
func (s *Shares) Take(client netip.Addr, limit int) bool {
	client = fairClient(client)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.total >= limit || s.total >= limit-limit/4 && !s.modest(client, limit) {
		return false
	}
	s.total++
	if s.of == nil {
		s.of = make(map[netip.Addr]int)
	}
	s.of[client]++
	return true
}

// Modest reports whether a client has less than a quarter of limit.
func (s *Shares) Modest(client netip.Addr, limit int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.modest(fairClient(client), limit)
}

func (s *Shares) modest(client netip.Addr, limit int) bool {
	return !client.IsValid() || s.of[client] < limit/4
}

// Give gives back one that the client had taken.
func (s *Shares) Give(client netip.Addr) {
	client = fairClient(client)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.total--
	if s.of[client]--; s.of[client] == 0 {
		delete(s.of, client)
	}
}

// Total is how many are taken.
func (s *Shares) Total() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.total
}

// fairClient is what of an address stands for one client.
func fairClient(a netip.Addr) netip.Addr {
	a = a.Unmap()
	if !a.Is6() {
		return a
	}
	p, err := a.WithZone("").Prefix(64)
	if err != nil {
		return a
	}
	return p.Addr()
}
