package endpoint

import (
	"math/rand/v2"
	"time"
)

// idSpace hands out the Message IDs of one source port towards one server. An
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

func newIDSpace() *idSpace { return &idSpace{next: uint16(rand.Uint32())} }

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
