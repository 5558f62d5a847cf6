// Package measure holds what the benchmark's programs count with: latencies, medians, and what the kernel
// says of a process; and the results they hand to the program that runs them, as JSON.
package measure

import (
	"math"
	"slices"
	"time"
)

// Load is the result of one run of the load generator.
type Load struct {
	Exchanges uint64            `json:"exchanges"`       // completed with 2.05
	Errors    map[string]uint64 `json:"errors"`          // other response codes, such as "5.04", and "RST"
	Losses    uint64            `json:"losses"`          // no response within the timeout
	Strays    uint64            `json:"strays"`          // datagrams that answer nothing (any more)
	Elapsed   time.Duration     `json:"elapsed"`         // of the measured interval
	P50       time.Duration     `json:"p50"`             // latency of completed exchanges
	P99       time.Duration     `json:"p99"`             //
	CPU       time.Duration     `json:"cpu"`             // of the load generator itself
	WarmLost  uint64            `json:"warm_lost"`       // endpoints of the warm-up that got no response
	Burst     uint64            `json:"burst,omitempty"` // requests of the burst, when one was asked for
}

// Group is the result of one run against the simulated group.
type Group struct {
	Members    int           `json:"members"`
	Exchanges  uint64        `json:"exchanges"`  // group requests that ran to their end
	Complete   uint64        `json:"complete"`   // of these, with a response of every member
	Responses  uint64        `json:"responses"`  // relayed to the clients, duplicates not counted
	Duplicates uint64        `json:"duplicates"` // second responses of one member in one exchange
	Late       uint64        `json:"late"`       // arrived more than T' after the request was sent
	Errors     uint64        `json:"errors"`     // responses of the proxy itself
	Behind     time.Duration `json:"behind"`     // the longest time a member answered after it meant to
	Elapsed    time.Duration `json:"elapsed"`
	P50        time.Duration `json:"p50"` // from the member's sending to the client's receiving
	P99        time.Duration `json:"p99"`
}

// Lost is the number of responses that should have come and did not.
func (g Group) Lost() uint64 { return g.Exchanges*uint64(g.Members) - g.Responses }

// Median returns the middle of v, the mean of the two middle ones for an even number, NaN for none.
// It leaves v as it is.
func Median(v []float64) float64 {
	if len(v) == 0 {
		return math.NaN()
	}
	s := slices.Sorted(slices.Values(v))
	mid := len(s) / 2
	if len(s)%2 == 1 {
		return s[mid]
	}
	return (s[mid-1] + s[mid]) / 2
}

// subBits gives 2^subBits buckets per power of two: a relative error below 1/64.
const subBits = 5

// Histogram counts durations from 0 to some hours in buckets of about 3 % width. The zero value is ready.
type Histogram struct {
	buckets [(65 - subBits) << subBits]uint64
	n       uint64
}

// Add counts d; a negative one counts as 0.
func (h *Histogram) Add(d time.Duration) {
	h.buckets[bucket(uint64(max(d, 0)))]++
	h.n++
}

// Merge adds the counts of o.
func (h *Histogram) Merge(o *Histogram) {
	for i, n := range &o.buckets {
		h.buckets[i] += n
	}
	h.n += o.n
}

// Count is the number of durations added.
func (h *Histogram) Count() uint64 { return h.n }

// Quantile returns the middle of the bucket that holds the q-th part of all durations, 0 <= q <= 1; 0 when
// there are none.
func (h *Histogram) Quantile(q float64) time.Duration {
	if h.n == 0 {
		return 0
	}
	rank := min(uint64(q*float64(h.n)), h.n-1)
	var seen uint64
	for i, n := range &h.buckets {
		seen += n
		if seen > rank {
			lo, hi := bounds(i)
			return time.Duration(lo + (hi-lo)/2)
		}
	}
	return 0
}
