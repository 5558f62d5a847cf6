package exchange

import (
	"cmp"
	"context"
	"maps"
	"math/rand/v2"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// inBubble keeps rapid from asking for the real deadline of the test, which
// testing/synctest does not allow.
type inBubble struct{ testing.TB }

// running starts an engine that ends with the test's bubble.
func running(t *testing.T) *Engine {
	e := NewEngine()
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); e.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-ended })
	return e
}

// The heap gives its items in order whatever is done to it, and its items know
// their places.
func TestHeapAgainstSort(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var h deadlineHeap
		all := make([]Deadline, 40)
		pick := rapid.IntRange(0, len(all)-1)
		times := make(map[*Deadline]time.Duration) // of those that are scheduled
		t.Repeat(map[string]func(*rapid.T){
			"set": func(t *rapid.T) {
				d := &all[pick.Draw(t, "which")]
				times[d] = time.Duration(rapid.IntRange(-20, 20).Draw(t, "at"))
				h.set(d, times[d])
			},
			"remove": func(t *rapid.T) {
				if d := &all[pick.Draw(t, "which")]; d.index != 0 {
					h.remove(d)
					delete(times, d)
				}
			},
			"": func(t *rapid.T) {
				require.Len(t, h.items, len(times))
				for i, item := range h.items {
					require.Equal(t, i+1, item.deadline.index)
					require.Equal(t, times[item.deadline], item.at)
					require.LessOrEqual(t, h.items[max(i-1, 0)/4].at, item.at, "parent of %d", i)
				}
			},
		})
		for _, want := range slices.Sorted(maps.Values(times)) {
			first := h.items[0]
			require.Equal(t, want, first.at)
			h.remove(first.deadline)
			require.Zero(t, first.deadline.index)
		}
		require.Empty(t, h.items)
	})
}

// Times that are close to each other become one, which is never earlier and less than
// 8 ms later.
func TestCoalesce(t *testing.T) {
	e := NewEngine()
	rapid.Check(t, func(t *rapid.T) {
		at := e.epoch.Add(time.Duration(rapid.Int64Range(0, int64(time.Hour)).Draw(t, "at")))
		together := e.Coalesce(at)
		require.False(t, together.Before(at))
		require.Less(t, together.Sub(at), 8*time.Millisecond)
		require.Equal(t, together, e.Coalesce(together))
		require.Equal(t, together, e.Coalesce(at.Add(together.Sub(at)/2)))
	})
}

// Every deadline fires once, at the time it was last scheduled for, unless it
// was unscheduled before.
func TestDeadlinesAgainstModel(t *testing.T) {
	type event struct {
		which int
		at    time.Duration
	}
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(inBubble{t}, func(t *rapid.T) {
			e := NewEngine()
			ctx, cancel := context.WithCancel(context.Background())
			defer synctest.Wait()
			defer cancel()
			go e.Run(ctx)

			events := make(chan event, 64)
			fired := func() (all []event) {
				for synctest.Wait(); len(events) > 0; {
					all = append(all, <-events)
				}
				return all
			}
			model := make(map[int]time.Duration)
			deadlines := make([]Deadline, 8)
			for i := range deadlines {
				deadlines[i].Fire = FireFunc(func(time.Time) { events <- event{i, time.Since(e.epoch)} })
			}
			which := rapid.IntRange(0, len(deadlines)-1)
			t.Repeat(map[string]func(*rapid.T){
				"schedule": func(t *rapid.T) {
					i := which.Draw(t, "which")
					at := time.Now().Add(time.Duration(rapid.IntRange(1, 30).Draw(t, "in")) * time.Second)
					e.Schedule(&deadlines[i], at)
					model[i] = at.Sub(e.epoch)
				},
				"schedule in the past": func(t *rapid.T) {
					i := which.Draw(t, "which")
					e.Schedule(&deadlines[i], time.Now().Add(-time.Duration(rapid.IntRange(0, 2).Draw(t, "ago"))*time.Hour))
					delete(model, i)
					require.Equal(t, []event{{i, time.Since(e.epoch)}}, fired())
				},
				"unschedule": func(t *rapid.T) {
					i := which.Draw(t, "which")
					_, scheduled := model[i]
					require.Equal(t, scheduled, e.Unschedule(&deadlines[i]))
					delete(model, i)
				},
				"wait": func(t *rapid.T) {
					time.Sleep(time.Duration(rapid.IntRange(0, 20).Draw(t, "for")) * time.Second)
					got := fired()
					var want []event
					for i, at := range model {
						if at <= time.Since(e.epoch) {
							want = append(want, event{i, at})
							delete(model, i)
						}
					}
					require.True(t, slices.IsSortedFunc(got, func(a, b event) int { return cmp.Compare(a.at, b.at) }))
					byTime := func(a, b event) int { return cmp.Or(cmp.Compare(a.at, b.at), a.which-b.which) }
					slices.SortFunc(got, byTime)
					slices.SortFunc(want, byTime)
					require.Equal(t, want, got)
				},
			})
		})
	})
}

// Run, asleep until a far deadline, wakes up for an earlier one.
func TestEarlierDeadlineWakesRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := running(t)
		start := time.Now()
		fired := make(chan time.Duration, 3)
		for _, in := range []time.Duration{time.Hour, time.Minute, time.Second} {
			synctest.Wait() // Run sleeps
			e.Schedule(&Deadline{Fire: FireFunc(func(now time.Time) { fired <- now.Sub(start) })}, start.Add(in))
		}
		require.Equal(t, time.Second, <-fired)
		require.Equal(t, time.Minute, <-fired)
		require.Equal(t, time.Hour, <-fired)
	})
}

// A deadline may schedule itself and others, and what it causes to be sent
// leaves with the run of deadlines it belongs to.
func TestFireMaySchedule(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := running(t)
		start := time.Now()
		f := &gathering{engine: e}
		var ticks []time.Duration
		var tick Deadline
		tick.Fire = FireFunc(func(now time.Time) {
			ticks = append(ticks, now.Sub(start))
			f.add(1)
			if len(ticks) < 3 {
				e.Schedule(&tick, now.Add(time.Second))
			}
		})
		e.Schedule(&tick, start.Add(time.Second))
		for i := range 3 {
			time.Sleep(time.Second)
			synctest.Wait()
			require.Equal(t, int64(i+1), f.sent.Load())
		}
		require.Equal(t, []time.Duration{time.Second, 2 * time.Second, 3 * time.Second}, ticks)
		require.False(t, e.Unschedule(&tick))
	})
}

// A crowd of due deadlines fires without waiting, in order, flushed in batches.
func TestCrowdOfDeadlines(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := NewEngine()
		f := &gathering{engine: e}
		const crowd = 1000
		var order []int
		now := time.Now()
		for _, i := range rand.Perm(crowd) {
			e.Schedule(&Deadline{Fire: FireFunc(func(time.Time) { order = append(order, i); f.add(1) })}, now.Add(time.Duration(i-crowd)))
		}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		go e.Run(ctx)
		synctest.Wait()
		require.Len(t, order, crowd)
		require.True(t, slices.IsSorted(order))
		require.EqualValues(t, crowd, f.sent.Load())
		require.Greater(t, f.flushes.Load(), int64(10), "what the first ones sent must not wait for the last ones")
	})
}

// Run ends with its context, also when there is always something due.
func TestRunEndsWithContext(t *testing.T) {
	for _, tt := range []struct {
		name     string
		schedule func(e *Engine)
	}{
		{"idle", func(*Engine) {}},
		{"waiting", func(e *Engine) { e.Schedule(&Deadline{Fire: FireFunc(func(time.Time) {})}, time.Now().Add(time.Hour)) }},
		{"busy", func(e *Engine) {
			var d Deadline
			d.Fire = FireFunc(func(now time.Time) { e.Schedule(&d, now) })
			e.Schedule(&d, time.Now())
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			e := NewEngine()
			tt.schedule(e)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Millisecond)
			defer cancel()
			ended := make(chan struct{})
			go func() { e.Run(ctx); close(ended) }()
			select {
			case <-ended:
			case <-time.After(10 * time.Second):
				t.Fatal("Run goes on after its context has ended")
			}
		})
	}
}

// An engine with nothing to do sleeps: a bubble in which only Run is left
// makes no progress in virtual time.
func TestIdleRunSleeps(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		e := running(t)
		fired := make(chan struct{})
		e.Schedule(&Deadline{Fire: FireFunc(func(time.Time) { close(fired) })}, time.Now().Add(time.Second))
		require.Equal(t, 1, e.Scheduled())
		<-fired
		synctest.Wait()
		require.Zero(t, e.Scheduled())
		e.mu.Lock()
		defer e.mu.Unlock()
		require.Zero(t, e.armed)
	})
}

func TestNextIDIsUnique(t *testing.T) {
	e := NewEngine()
	ids := make(chan uint64)
	for range 4 {
		go func() {
			for range 1000 {
				ids <- e.NextID()
			}
		}()
	}
	seen := make(map[uint64]bool)
	for range 4000 {
		id := <-ids
		require.NotZero(t, id)
		require.False(t, seen[id])
		seen[id] = true
	}
}

func BenchmarkSchedule(b *testing.B) {
	e := NewEngine()
	deadlines := make([]Deadline, 1024)
	start := time.Now()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		d := &deadlines[i%len(deadlines)]
		e.Unschedule(d)
		e.Schedule(d, start.Add(time.Duration(i)))
	}
}
