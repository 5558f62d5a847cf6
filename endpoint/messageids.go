package endpoint

import (
	"hash/maphash"
	"math/rand/v2"
	"net/netip"
	"time"
)

// idSpace hands out the Message IDs of one source port towards some servers. An
// ID is not used again within EXCHANGE_LIFETIME (RFC 7252 §4.4): the space is
// watched in segments, and a segment may be entered when its last use is old
// enough.
type idSpace struct {
	next uint16
	used [idSegments]time.Time
}

const (
	idSegments    = 16
	idSegmentBits = 12
)

func newIDSpace() *idSpace {
	return &idSpace{next: uint16(rand.Uint32())} //nolint:gosec // Message IDs are no secret
}

// take returns the next ID, or false while the next segment is still in use.
func (s *idSpace) take(now time.Time) (uint16, bool) {
	id := s.next
	segment := id >> idSegmentBits
	if entering := id&(1<<idSegmentBits-1) == 0; entering {
		if used := s.used[segment]; !used.IsZero() && now.Sub(used) < ExchangeLifetime {
			return 0, false
		}
	}
	s.used[segment] = now
	s.next++
	return id, true
}

// idLane is the Message IDs towards all servers with the same hash, on every
// source port of the pool. It is never forgotten, however many servers there
// are, and to each of them the IDs only grow.
type idLane struct {
	port   int // the one in use
	spaces []*idSpace
}

// take returns the next ID of the lane and the source port it belongs to, going
// on to the next one of so many ports when one has used all its IDs (FP-91).
func (l *idLane) take(now time.Time, ports int) (port int, id uint16, ok bool) {
	for range ports {
		if l.port == len(l.spaces) {
			l.spaces = append(l.spaces, newIDSpace())
		}
		if id, ok := l.spaces[l.port].take(now); ok {
			return l.port, id, true
		}
		l.port = (l.port + 1) % ports
	}
	return 0, 0, false
}

// takeOn is take for a source port that is in use already.
func (l *idLane) takeOn(now time.Time, port int) (id uint16, ok bool) {
	if port < 0 || port >= len(l.spaces) {
		return 0, false
	}
	return l.spaces[port].take(now)
}

// idLanes chooses the lane of a server.
type idLanes struct {
	seed  maphash.Seed
	lanes [1024]idLane
}

func newIDLanes() *idLanes { return &idLanes{seed: maphash.MakeSeed()} }

func (l *idLanes) of(server netip.AddrPort) *idLane {
	return &l.lanes[maphash.Comparable(l.seed, server)%uint64(len(l.lanes))]
}
