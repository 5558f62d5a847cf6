package proxy

import (
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"
)

// canonicalZone turns a numeric zone into the interface's name, the form used
// inside the proxy, and leaves everything else as it is.
func canonicalZone(zone string) string {
	if zone == "" {
		return ""
	}
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
// them for a while: asking the kernel is slow, and an interface that is made
// anew gets another index. Safe for concurrent use.
type zoneText struct {
	mu    sync.Mutex
	index map[string]string
	asked time.Time // when index was begun
}

const (
	maxZones = 1024
	zoneAge  = 10 * time.Second
)

func (z *zoneText) of(addr netip.Addr) netip.Addr {
	zone := addr.Zone()
	if zone == "" {
		return addr
	}
	z.mu.Lock()
	defer z.mu.Unlock()
	if now := time.Now(); len(z.index) >= maxZones || now.Sub(z.asked) > zoneAge {
		z.index, z.asked = make(map[string]string), now
	}
	text, ok := z.index[zone]
	if !ok {
		text = zone
		if i, err := net.InterfaceByName(zone); err == nil {
			text = strconv.Itoa(i.Index)
		}
		z.index[zone] = text
	}
	return addr.WithZone(text)
}
