package service

import (
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

// ownAddresses tells which destinations are this proxy (FP-8).
type ownAddresses struct {
	// ports has a bit for every port in use here, now or before: most destinations
	// need no closer look.
	ports [1 << 16 / 64]atomic.Uint64

	mu        sync.Mutex
	exact     map[ownAddress]bool
	wildcards map[ownAddress]bool // without address
	pool      map[ownAddress]bool // see add
	local     map[netip.Addr]bool // addresses of this host, for the wildcards
	asked     time.Time
}

// localAge is how old the list of the host's addresses may be.
const localAge = 10 * time.Second

// ownAddress is where a listener is: the same port is another one under another
// scheme.
type ownAddress struct {
	scheme string
	at     netip.AddrPort
}

// set says where the proxy listens.
func (o *ownAddresses) set(listeners []*listener) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.exact, o.wildcards = make(map[ownAddress]bool), make(map[ownAddress]bool)
	for _, l := range listeners {
		o.note(l.addr.Port())
		if l.addr.Addr().IsUnspecified() {
			o.wildcards[ownAddress{l.scheme, netip.AddrPortFrom(netip.Addr{}, l.addr.Port())}] = true
		} else {
			o.exact[ownAddress{l.scheme, l.addr}] = true
		}
	}
}

// add adds an address for good; an unspecified one is every address of the host.
func (o *ownAddresses) add(scheme string, a netip.AddrPort) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.note(a.Port())
	if o.pool == nil {
		o.pool = make(map[ownAddress]bool)
	}
	if a.Addr().IsUnspecified() {
		a = netip.AddrPortFrom(netip.Addr{}, a.Port())
	}
	o.pool[ownAddress{scheme, a}] = true
}

func (o *ownAddresses) note(port uint16) { o.ports[port/64].Or(1 << (port % 64)) }

func (o *ownAddresses) is(scheme string, a netip.AddrPort) bool {
	if port := a.Port(); o.ports[port/64].Load()&(1<<(port%64)) == 0 {
		return false
	}
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.exact[ownAddress{scheme, a}] || o.pool[ownAddress{scheme, a}] {
		return true
	}
	if everywhere := (ownAddress{scheme, netip.AddrPortFrom(netip.Addr{}, a.Port())}); !o.wildcards[everywhere] && !o.pool[everywhere] {
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
