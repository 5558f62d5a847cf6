package exchange_test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
)

func TestHistogram(t *testing.T) {
	var h exchange.Histogram
	for _, d := range []time.Duration{-time.Second, 0, 128 * time.Microsecond, 128*time.Microsecond + 1, time.Second, time.Hour} {
		h.Observe(d)
	}
	buckets, count, sum := h.Read()
	require.Len(t, buckets, 20)
	require.EqualValues(t, 6, count)
	require.Equal(t, 256*time.Microsecond+1+time.Second+time.Hour, sum)
	for _, tt := range []struct {
		limit time.Duration
		count uint64
	}{{128 * time.Microsecond, 3}, {256 * time.Microsecond, 4}, {524288 * time.Microsecond, 4}, {1048576 * time.Microsecond, 5}, {67108864 * time.Microsecond, 5}} {
		found := false
		for _, b := range buckets {
			if b.Limit == tt.limit {
				found = true
				require.Equal(t, tt.count, b.Count, "%v", tt.limit)
			}
		}
		require.True(t, found, "%v", tt.limit)
	}
	require.Zero(t, testing.AllocsPerRun(100, func() { h.Observe(time.Second) }))
}
