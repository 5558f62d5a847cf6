package access

import (
	"hash/maphash"
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
	seed  maphash.Seed
	epoch time.Time

	mu sync.Mutex
	// latest is what was noted of servers last, by a hash of the server: members of a
	// group answer again and again, and what is the same within noteEvery is not
	// noted anew.
	latest  [512]noted
	servers *lru.LRU[netip.AddrPort, *hearing]
	zones   *lru.LRU[netip.Addr, string]
}

type hearing struct {
	via    string   // the next proxy behind which the server is, empty for none
	groups []string // few: a server is in a handful of groups
	at     []time.Time
}

// noted is a hash of a server, a group and a next proxy, and when they were noted.
type noted struct {
	hash uint64
	at   time.Duration // since the epoch
}

// same reports whether that was noted within noteEvery, and notes it otherwise.
func (h *Heard) same(server netip.AddrPort, group, via string, now time.Duration) bool {
	const odd = 0x9e3779b97f4a7c15 // so that group and next proxy are not taken for each other
	hash := maphash.Comparable(h.seed, server)
	n := &h.latest[hash%uint64(len(h.latest))]
	hash ^= maphash.String(h.seed, group)*odd ^ maphash.String(h.seed, via)
	if n.hash == hash && now-n.at < noteEvery {
		return true
	}
	*n = noted{hash, now}
	return false
}

const (
	// noteEvery is how exact the times are, and the order in which servers go.
	noteEvery = 10 * time.Second
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
	return &Heard{seed: maphash.MakeSeed(), epoch: time.Now(), servers: servers, zones: zones}
}

// note remembers that a server answered in a group, behind the next proxy via if
// that is not empty: the zone of a link-local one is no interface of this host then,
// and a client may leave it out, which leads to where the server was heard last.
func (h *Heard) note(server netip.AddrPort, group, via string) {
	since := time.Since(h.epoch)
	h.mu.Lock()
	defer h.mu.Unlock()
	if !server.Addr().IsLinkLocalUnicast() && h.same(server, group, via, since) {
		return
	}
	now := h.epoch.Add(since)
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
