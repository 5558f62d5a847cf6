package access

import (
	"net/netip"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2/simplelru"
)

// Heard remembers which servers answered in which groups lately, so that
// follow-up requests to a Reply-From are allowed (FP-11) and link-local servers
// are found again (GP-57). Bounded; the server heard longest ago goes first.
// Safe for concurrent use.
type Heard struct {
	mu      sync.Mutex
	servers *lru.LRU[netip.AddrPort, *hearing]
	zones   *lru.LRU[netip.Addr, string]
}

type hearing struct {
	via    string   // the next proxy behind which the server is, empty for none
	groups []string // few: a server is in a handful of groups
	at     []time.Time
}

const (
	// heardFor is how long a server counts as heard (FP-11).
	heardFor   = time.Hour
	maxHeard   = 16384
	maxHeardIn = 16 // groups per server
)

// NewHeard returns an empty Heard.
func NewHeard() *Heard {
	servers, err := lru.NewLRU[netip.AddrPort, *hearing](maxHeard, nil)
	if err != nil {
		panic(err) // the size is a positive constant
	}
	zones, err := lru.NewLRU[netip.Addr, string](maxHeard, nil)
	if err != nil {
		panic(err)
	}
	return &Heard{servers: servers, zones: zones}
}

// note remembers that a server answered in a group, behind the next proxy via if
// that is not empty: its zone is no interface of this host then, and a client may
// leave it out, which leads to where the server was heard last.
func (h *Heard) note(server netip.AddrPort, group, via string) {
	now := time.Now()
	h.mu.Lock()
	defer h.mu.Unlock()
	if zone := server.Addr().Zone(); zone != "" {
		plain := unzoned(server)
		if via == "" {
			h.zones.Add(plain.Addr(), zone)
			h.servers.Remove(plain)
		} else {
			h.keep(plain, group, via, now)
		}
	}
	h.keep(server, group, via, now)
}

// keep is note under the lock, for the address as it is.
func (h *Heard) keep(server netip.AddrPort, group, via string, now time.Time) {
	known, ok := h.servers.Get(server)
	if !ok {
		known = &hearing{}
		h.servers.Add(server, known)
	}
	known.via = via
	oldest := 0
	for i, g := range known.groups {
		if g == group {
			known.at[i] = now
			return
		}
		if known.at[i].Before(known.at[oldest]) {
			oldest = i
		}
	}
	if len(known.groups) < maxHeardIn {
		known.groups, known.at = append(known.groups, group), append(known.at, now)
		return
	}
	known.groups[oldest], known.at[oldest] = group, now
}

// in reports whether the server was heard in a permitted group lately, and behind
// which next proxy.
func (h *Heard) in(server netip.AddrPort, now time.Time, permitted func(group string) bool) (via string, ok bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	known, ok := h.servers.Peek(server)
	if !ok {
		return "", false
	}
	for i, g := range known.groups {
		if now.Sub(known.at[i]) < heardFor && permitted(g) {
			return known.via, true
		}
	}
	return "", false
}

// Via is the next proxy behind which a server was last heard, "" if it was heard
// here or not at all. The zone of a link-local server is that proxy's.
func (h *Heard) Via(server netip.AddrPort) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	if known, ok := h.servers.Peek(server); ok {
		return known.via
	}
	return ""
}

// Zone is the interface on which a link-local server was last heard, "" if it
// was not (GP-57).
func (h *Heard) Zone(server netip.Addr) string {
	h.mu.Lock()
	defer h.mu.Unlock()
	zone, _ := h.zones.Peek(server.WithZone(""))
	return zone
}
