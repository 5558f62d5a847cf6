package measure

import (
	"math"
	"os"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

func TestMedian(t *testing.T) {
	v := []float64{9, 1, 5}
	require.InDelta(t, 5, Median(v), 0)
	require.Equal(t, []float64{9, 1, 5}, v)
	require.InDelta(t, 3, Median([]float64{1, 5, 2, 4}), 0)
	require.True(t, math.IsNaN(Median(nil)))
}

func TestBucketsMeet(t *testing.T) {
	require.Zero(t, bucket(0))
	require.Less(t, bucket(math.MaxUint64), len(Histogram{}.buckets))
	next := uint64(0)
	for i := range bucket(uint64(24 * time.Hour)) {
		lo, hi := bounds(i)
		require.Equal(t, next, lo, "bucket %d", i)
		require.Equal(t, i, bucket(lo))
		require.Equal(t, i, bucket(hi))
		next = hi + 1
	}
}

func TestQuantile(t *testing.T) {
	var h Histogram
	require.Zero(t, h.Quantile(0.5))

	rapid.Check(t, func(t *rapid.T) {
		v := rapid.SliceOfN(rapid.Int64Range(0, int64(time.Minute)), 1, 500).Draw(t, "durations")
		q := rapid.Float64Range(0, 1).Draw(t, "q")
		var h, part Histogram
		for i, d := range v {
			if i%2 == 0 {
				h.Add(time.Duration(d))
			} else {
				part.Add(time.Duration(d))
			}
		}
		h.Merge(&part)
		require.EqualValues(t, len(v), h.Count())
		slices.Sort(v)
		want := float64(v[min(int(q*float64(len(v))), len(v)-1)])
		require.InDelta(t, want, float64(h.Quantile(q)), want/64+1)
	})
}

func TestNegativeCountsAsZero(t *testing.T) {
	var h Histogram
	h.Add(-time.Second)
	require.Zero(t, h.Quantile(1))
	require.EqualValues(t, 1, h.Count())
}

func TestGroupLost(t *testing.T) {
	require.EqualValues(t, 3, Group{Members: 10, Exchanges: 2, Responses: 17}.Lost())
}

func TestParseStat(t *testing.T) {
	const stat = "4242 (a) b (c) S 1 4242 4242 0 -1 4194560 900 0 0 0 123 77 0 0 20 0 5 0 100 1000000 300 18446744073709551615"
	got, err := parseStat([]byte(stat))
	require.NoError(t, err)
	require.Equal(t, 2*time.Second, got)

	for _, bad := range []string{"", "4242 (x) S 1 2", "4242 (x) S 1 4242 4242 0 -1 4194560 900 0 0 0 x 77 0"} {
		_, err := parseStat([]byte(bad))
		require.ErrorIs(t, err, errStat, bad)
	}
}

func TestParseStatus(t *testing.T) {
	got, err := parseStatus([]byte("Name:\tx\nVmPeak:\t  900 kB\nVmHWM:\t  2048 kB\nVmRSS:\t 100 kB\n"), "VmHWM:")
	require.NoError(t, err)
	require.EqualValues(t, 2<<20, got)

	for _, bad := range []string{"", "VmRSS:\t 100 kB\n", "VmHWM:\t 1 MB\n", "VmHWM:\t x kB\n"} {
		_, err := parseStatus([]byte(bad), "VmHWM:")
		require.ErrorIs(t, err, errStatus, bad)
	}
}

func TestOwnProcess(t *testing.T) {
	before, err := CPU(os.Getpid())
	require.NoError(t, err)
	now, peak, err := RSS(os.Getpid())
	require.NoError(t, err)
	require.Greater(t, now, int64(1<<20))
	require.GreaterOrEqual(t, peak, now)
	after, err := CPU(os.Getpid())
	require.NoError(t, err)
	require.GreaterOrEqual(t, after, before)
}
