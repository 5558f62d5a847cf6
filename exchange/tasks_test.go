package exchange

import (
	"runtime"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestTasks(t *testing.T) {
	var tasks Tasks
	var begun, done atomic.Int32
	var callers sync.WaitGroup
	for range 8 {
		callers.Go(func() {
			for tasks.Go(func() { done.Add(1) }) {
				begun.Add(1)
			}
		})
	}
	for done.Load() < 100 { // they come while the part ends
		runtime.Gosched()
	}
	tasks.Wait()
	all := done.Load()
	callers.Wait()
	require.Equal(t, all, begun.Load())
	require.Equal(t, all, done.Load(), "nothing ran after Wait")
	require.False(t, tasks.Go(func() { t.Error("ran") }))
}
