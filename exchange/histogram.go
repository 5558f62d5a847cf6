package exchange

import (
	"math/bits"
	"sync/atomic"
	"time"
)

// Histogram counts durations by their size, cheaply: two atomic additions per
// observation. The upper limits of its buckets double from 128 µs to 67 s. The
// zero value is empty; safe for concurrent use.
type Histogram struct {
	counts [histogramBounds + 1]atomic.Uint64 // the last one: longer than all
	sum    atomic.Int64                       // nanoseconds
}

const (
	histogramBounds = 20
	firstBoundBits  = 7 // 2^7 µs
)

// Observe counts one duration; a negative one counts as 0.
func (h *Histogram) Observe(d time.Duration) {
	d = max(d, 0)
	i := 0
	if d > 0 {
		i = bits.Len64(uint64(d-1) / uint64(time.Microsecond) >> firstBoundBits)
	}
	h.counts[min(i, histogramBounds)].Add(1)
	h.sum.Add(int64(d))
}

// Bucket is how many durations were at most Limit.
type Bucket struct {
	Limit time.Duration
	Count uint64
}

// Read returns the buckets, each with those below it, the number of all
// durations, and their sum.
func (h *Histogram) Read() (buckets []Bucket, count uint64, sum time.Duration) {
	sum = time.Duration(h.sum.Load())
	for i := range h.counts {
		count += h.counts[i].Load()
		if i < histogramBounds {
			buckets = append(buckets, Bucket{time.Microsecond << (firstBoundBits + i), count})
		}
	}
	return buckets, count, sum
}
