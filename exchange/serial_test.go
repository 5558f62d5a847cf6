package exchange

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"
)

// unexpected is the second argument of a Do that must run at once.
func unexpected(t *testing.T) func() func() {
	return func() func() { t.Error("Serial was busy"); return func() {} }
}

func TestSerialRunsAtOnce(t *testing.T) {
	var s Serial
	ran := 0
	for range 3 {
		require.True(t, s.Do(func() { ran++ }, unexpected(t)))
	}
	s.DoAlways(func() { ran++ })
	require.Equal(t, 4, ran)
}

// What a function brings while it runs is run after it, in order, by the time
// the outermost call returns.
func TestSerialReentrancy(t *testing.T) {
	var s Serial
	var order []string
	run := func(name string, then ...func()) func() {
		return func() {
			order = append(order, name+" begins")
			for _, f := range then {
				f()
			}
			order = append(order, name+" ends")
		}
	}
	do := func(f func()) func() {
		return func() {
			borrowed := true
			require.True(t, s.Do(func() { t.Error("not its turn") }, func() func() {
				require.True(t, borrowed, "later must be called before Do returns")
				return f
			}))
			borrowed = false
		}
	}
	always := func(f func()) func() { return func() { s.DoAlways(f) } }
	s.DoAlways(run("a", do(run("b", do(run("d")))), always(run("c", always(run("e"))))))
	require.Equal(t, []string{"a begins", "a ends", "b begins", "b ends", "c begins", "c ends",
		"d begins", "d ends", "e begins", "e ends"}, order)
	s.Do(run("f"), unexpected(t))
	require.Len(t, order, 12)
}

// Nobody runs beside another, nobody is lost, and the functions of one
// goroutine keep their order.
func TestSerialConcurrently(t *testing.T) {
	const goroutines, each = 8, 100 // below the bound even if all have to wait
	var s Serial
	var wg sync.WaitGroup
	inside := false
	var seen [goroutines][]int
	for g := range goroutines {
		wg.Go(func() {
			for i := range each {
				f := func() {
					if inside {
						t.Error("two at a time")
					}
					inside = true
					seen[g] = append(seen[g], i)
					inside = false
				}
				if i%2 == 0 {
					s.DoAlways(f)
				} else if !s.Do(f, func() func() { return f }) {
					t.Error("refused below the bound")
				}
			}
		})
	}
	wg.Wait()
	for g := range seen {
		require.Len(t, seen[g], each)
		for i, v := range seen[g] {
			require.Equal(t, i, v)
		}
	}
}

// Beyond the bound Do refuses without having done anything, DoAlways never.
func TestSerialBound(t *testing.T) {
	var s Serial
	ran, last := 0, false
	s.DoAlways(func() {
		for range maxSerialQueue {
			require.True(t, s.Do(nil, func() func() { return func() { ran++ } }))
		}
		require.False(t, s.Do(func() { t.Error("ran") }, unexpected(t)))
		s.DoAlways(func() { last = ran == maxSerialQueue })
		require.False(t, s.Do(nil, unexpected(t)))
	})
	require.Equal(t, maxSerialQueue, ran)
	require.True(t, last)

	// The bound counts those that wait, not those that ever waited.
	s.DoAlways(func() {
		for range maxSerialQueue {
			require.True(t, s.Do(nil, func() func() { return func() {} }))
		}
	})
	require.Zero(t, s.queued)
	require.Nil(t, s.queue)
}

func BenchmarkSerialFree(b *testing.B) {
	var s Serial
	n := 0
	now, later := func() { n++ }, func() func() { return nil }
	b.ReportAllocs()
	for b.Loop() {
		s.Do(now, later)
	}
}
