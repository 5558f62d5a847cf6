package proxy

import (
	"net"
	"net/netip"
	"strconv"
	"sync"
)

// canonicalZone turns a numeric zone into the interface's name, the form used
// inside the proxy, and leaves everything else as it is.
func canonicalZone(zone string) string {
	index, err := strconv.Atoi(zone)
	if err != nil {
		return zone
	}
	if i, err := net.InterfaceByIndex(index); err == nil {
		return i.Name
	}
	return zone
}

// zoneText writes zones as numeric interface indexes (GP-57) and remembers
// them: interfaces are few and asking the kernel is slow. Safe for concurrent
// use.
type zoneText struct {
	mu    sync.Mutex
	index map[string]string
}

const maxZones = 1024

func (z *zoneText) of(addr netip.Addr) netip.Addr {
	zone := addr.Zone()
	if zone == "" {
		return addr
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	text, ok := z.index[zone]
	if !ok {
		text = zone
		if i, err := net.InterfaceByName(zone); err == nil {
			text = strconv.Itoa(i.Index)
		}
		if z.index == nil || len(z.index) >= maxZones {
			z.index = make(map[string]string)
		}
		z.index[zone] = text
	}
	return addr.WithZone(text)
}
