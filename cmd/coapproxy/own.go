package main

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// ownAddresses tells which destinations are this proxy (FP-8).
type ownAddresses struct {
	mu        sync.Mutex
	exact     map[netip.AddrPort]bool
	wildcards map[uint16]bool
	local     map[netip.Addr]bool // addresses of this host, for the wildcards
	asked     time.Time
}

// localAge is how old the list of the host's addresses may be.
const localAge = 10 * time.Second

// set says where the proxy listens.
func (o *ownAddresses) set(listeners []*listener) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.exact, o.wildcards = make(map[netip.AddrPort]bool), make(map[uint16]bool)
	for _, l := range listeners {
		if l.addr.Addr().IsUnspecified() {
			o.wildcards[l.addr.Port()] = true
		} else {
			o.exact[l.addr] = true
		}
	}
}

func (o *ownAddresses) is(a netip.AddrPort) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.exact[a] {
		return true
	}
	if !o.wildcards[a.Port()] {
		return false
	}
	if now := time.Now(); now.Sub(o.asked) > localAge {
		o.asked, o.local = now, make(map[netip.Addr]bool)
		addrs, _ := net.InterfaceAddrs()
		for _, known := range addrs {
			if n, ok := known.(*net.IPNet); ok {
				ip, _ := netip.AddrFromSlice(n.IP)
				o.local[ip.Unmap()] = true
			}
		}
	}
	addr := a.Addr().WithZone("")
	return addr.IsLoopback() || o.local[addr]
}
