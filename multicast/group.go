package multicast

import (
	"net/netip"
	"time"

	"golang.org/x/time/rate"
)

// Group is how requests to one group are sent.
type Group struct {
	// Name is what exchange.Target refers to.
	Name string
	// Interfaces are the outgoing interfaces (GC-7).
	Interfaces []string
	// HopLimit returns the IP hop limit towards an address of the group (GC-6).
	HopLimit func(netip.Addr) int
	// Loopback delivers to members on this host as well (GC-6).
	Loopback bool
	// NStart bounds the outstanding requests, Queue those waiting (GC-80).
	NStart, Queue int
	// Leisure is the time over which servers spread their responses (GC-35).
	Leisure time.Duration
	// FireRate and FireBurst limit requests with T' = 0, per second (GC-80).
	FireRate  float64
	FireBurst int
	// ProbingRate is the average rate in byte/s towards a group that has never
	// answered; 0 for no limit (GC-81).
	ProbingRate int
	// Repeat is whether a request is sent twice (GC-40).
	Repeat Repeat
	// AllowedSources restricts who may answer; all if empty (GC-25).
	AllowedSources []netip.Prefix
	// MaxResponses and MaxBytes bound what is relayed per exchange (GP-61).
	MaxResponses int
	MaxBytes     int
}

// Repeat is the way a group request is repeated (GC-40).
type Repeat uint8

// A request is not repeated, repeated for those who missed it, or repeated for
// everybody.
const (
	NoRepeat Repeat = iota
	SameMessageID
	NewMessageID
)

// roundTrip is the network's share of the time in which a first response may
// be expected: no group tells its own.
const roundTrip = 2 * time.Second

// probingBurst lets the first few requests to a silent group through at once.
const probingBurst = 1280

// group is a Group with its running state, guarded by the leg's lock.
type group struct {
	Group
	outstanding int
	queue       []*transaction          // sorted by round
	round       uint64                  // of the last one that had its turn
	sharable    map[string]*transaction // those in queue that others may join
	heard       bool                    // something came back once
	fire        *rate.Limiter
	probing     *rate.Limiter // nil: no limit
}

func newGroup(g Group) *group {
	kept := &group{Group: g, sharable: make(map[string]*transaction), fire: rate.NewLimiter(rate.Limit(g.FireRate), g.FireBurst)}
	if g.ProbingRate > 0 {
		kept.probing = rate.NewLimiter(rate.Limit(g.ProbingRate), probingBurst)
	}
	return kept
}

func (g *group) allows(source netip.Addr) bool {
	if len(g.AllowedSources) == 0 {
		return true
	}
	source = source.WithZone("")
	for _, p := range g.AllowedSources {
		if p.Contains(source) {
			return true
		}
	}
	return false
}
