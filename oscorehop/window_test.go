package oscorehop

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// OC-25, OH-110
func TestWindow(t *testing.T) {
	w := newWindow(32)
	require.False(t, w.seen(0))
	require.True(t, w.add(100))
	require.False(t, w.add(100))
	require.True(t, w.add(69), "the oldest that the window holds")
	require.False(t, w.add(68), "too old to know")
	require.True(t, w.add(101))
	require.False(t, w.add(69), "has left the window")
	require.True(t, w.add(maxSequence))
	require.False(t, w.add(101))
	require.True(t, w.add(maxSequence-31))
}

// The bitmap agrees with a set, for windows of any width.
// OH-110
func TestWindowModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		size := rapid.IntRange(1, 200).Draw(t, "size")
		w := newWindow(size)
		var highest uint64
		received := make(map[uint64]bool)
		at := rapid.Uint64Range(0, 1<<20).Draw(t, "start")
		if rapid.Bool().Draw(t, "lower limit") {
			w.startAt(at) // OH-113
			highest = at
			for n := range uint64(size) {
				if n <= at {
					received[at-n] = true
				}
			}
		}
		for range 100 {
			step := rapid.Int64Range(-250, 250).Draw(t, "step")
			if rapid.IntRange(0, 9).Draw(t, "leap") == 0 {
				step *= 1000
			}
			n := uint64(max(0, int64(at)+step))
			want := !received[n] && (len(received) == 0 || n > highest || highest-n < uint64(size))
			require.Equal(t, !want, w.seen(n))
			require.Equal(t, want, w.add(n), "%d with highest %d", n, highest)
			if want {
				received[n] = true
				highest = max(highest, n)
				at = n
			}
		}
	})
}
