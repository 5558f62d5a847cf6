package chain

import (
	"math"
	"time"
)

// seconds is how much whole seconds a round trip takes, at least one: the
// resolution of Multicast-Timeout (GP-95).
func seconds(roundTrip time.Duration) uint32 {
	s := (roundTrip + time.Second - 1) / time.Second
	return uint32(min(max(s, 1), math.MaxInt32))
}

// window is what is known of the time of a group request: all in seconds.
type window struct {
	// asked is T', told T'', what the next proxy is told (GP-94).
	asked, told uint32
	// difference is what GP-94 asks for between them.
	difference uint32
	// lowered says that told is less than it could be (GP-97).
	lowered bool
}

// window computes T” from T', which is not 0 (GP-95). ok is false if there is
// none: T” must be at least 1, because 0 asks for no responses (GP-96).
func (h *Hop) window(asked uint32, previousHop time.Duration) (w window, ok bool) {
	w = window{asked: asked, difference: seconds(previousHop)}
	if asked <= w.difference {
		return w, false
	}
	best := asked - w.difference
	w.told = best
	if h.Margin > 0 {
		w.told -= min(h.Margin, w.told-1)
	}
	if h.MaxTimeout > 0 {
		w.told = min(w.told, h.MaxTimeout)
	}
	w.lowered = w.told < best
	return w, true
}

// least is the smallest T' for which there is a T” (GP-96).
func (w *window) least() uint32 { return w.difference + 1 }

// raise sets told to what the next proxy asked for, m, if GP-97 allows that:
// told had been lowered, and there is a value that is greater, at least m, and
// leaves the client its time, of which spent has passed already.
func (w *window) raise(m uint32, spent time.Duration) bool {
	if !w.lowered {
		return false
	}
	value := max(uint64(m), uint64(w.told)+1)
	if value+uint64(w.difference) > uint64(w.left(spent)) {
		return false
	}
	w.told, w.lowered = uint32(value), false
	return true
}

// again sets told for another attempt when some time has passed; ok is false if
// there is too little left.
func (w *window) again(spent time.Duration) bool {
	left := w.left(spent)
	if left <= w.difference {
		return false
	}
	w.told = min(w.told, left-w.difference)
	return true
}

// grace is how late the sending of a request may be without a second of the
// client's time being counted as spent.
const grace = 100 * time.Millisecond

// left is what remains of T', in whole seconds.
func (w *window) left(spent time.Duration) uint32 {
	if spent <= grace {
		return w.asked
	}
	s := uint64((spent + time.Second - 1) / time.Second)
	if s >= uint64(w.asked) {
		return 0
	}
	return w.asked - uint32(s)
}

// upwards is the T' that the client has to ask for when the next proxy asks for
// m (GP-98); ok is false if there is no such number.
func (w *window) upwards(m uint32) (uint32, bool) {
	sum := uint64(m) + uint64(w.difference)
	return uint32(sum), sum <= math.MaxUint32
}

// token is how long the Token towards the next proxy is kept, from the arrival
// of the request: T, which is longer than T' (GP-93) and leaves time for a round
// trip to the next hop after T” (GP-94).
func (w *window) token(nextHop time.Duration) uint32 {
	return uint32(min(uint64(w.asked)+uint64(seconds(nextHop)), math.MaxUint32))
}
