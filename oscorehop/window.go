package oscorehop

// window remembers which of the last Partial IVs were received (OH-110). It is a
// sliding bitmap: bit i stands for highest−i. The zero window has received
// nothing. It is not safe for concurrent use.
type window struct {
	size    int // how many numbers it covers, at most 64*len(bits)
	started bool
	highest uint64
	bits    []uint64
}

func newWindow(size int) window {
	return window{size: size, bits: make([]uint64, (size+63)/64)}
}

// seen reports whether n was received, or is so old that nobody knows.
func (w *window) seen(n uint64) bool {
	if !w.started || n > w.highest {
		return false
	}
	distance := w.highest - n
	return distance >= uint64(w.size) || w.bits[distance/64]>>(distance%64)&1 == 1
}

// add marks n as received and reports whether it was new.
func (w *window) add(n uint64) bool {
	if w.seen(n) {
		return false
	}
	if !w.started {
		w.started, w.highest = true, n
	} else if n > w.highest {
		w.shift(n - w.highest)
		w.highest = n
	}
	distance := w.highest - n
	w.bits[distance/64] |= 1 << (distance % 64)
	return true
}

// startAt makes n the lower limit: it and everything below count as received.
func (w *window) startAt(n uint64) {
	w.started, w.highest = true, n
	for i := range w.bits {
		w.bits[i] = ^uint64(0)
	}
}

// shift moves every bit away from the highest number by n.
func (w *window) shift(n uint64) {
	words, rest := n/64, n%64
	for i := len(w.bits) - 1; i >= 0; i-- {
		var v uint64
		if from := i - int(min(words, uint64(len(w.bits)))); from >= 0 {
			v = w.bits[from] << rest
			if rest > 0 && from > 0 {
				v |= w.bits[from-1] >> (64 - rest)
			}
		}
		w.bits[i] = v
	}
}
