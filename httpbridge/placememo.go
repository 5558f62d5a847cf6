package httpbridge

import (
	"hash/maphash"
	"sync/atomic"
)

// placeMemo remembers what request targets mean: clients ask for the same ones again
// and again. One is remembered when it comes a second time before another one with
// its slot, so that those that come once cost a hash and nothing more. Safe for
// concurrent use.
type placeMemo struct {
	seed  maphash.Seed
	slots [memoSlots]placeSlot
}

type placeSlot struct {
	known atomic.Pointer[knownPlace]
	seen  atomic.Uint64 // hash of the last target that was not found
}

// knownPlace is never changed.
type knownPlace struct {
	target string
	place  *place
}

const (
	memoSlots  = 512
	memoLength = 256 // longest target remembered, in bytes
)

// look returns the place of a target, nil if it is not known; then the slot is where
// it can be remembered.
func (m *placeMemo) look(target string) (slot *placeSlot, hash uint64, _ *place) {
	hash = maphash.String(m.seed, target)
	slot = &m.slots[hash%memoSlots]
	if known := slot.known.Load(); known != nil && known.target == target {
		return slot, hash, known.place
	}
	return slot, hash, nil
}

func (s *placeSlot) remember(target string, hash uint64, p *place) {
	if s.seen.Swap(hash) == hash {
		s.known.Store(&knownPlace{target, p})
	}
}
