package exchange

import "sync"

// Tasks are the goroutines of a part that waits for them at its end, begun by
// requests that may come while it ends. The zero value is ready for use.
type Tasks struct {
	mu    sync.Mutex
	over  bool
	group sync.WaitGroup
}

// Go runs f on a goroutine of its own. It reports false, having done nothing,
// when Wait has been called.
func (t *Tasks) Go(f func()) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.over {
		return false
	}
	t.group.Go(f)
	return true
}

// Wait waits for all goroutines; none begins any more.
func (t *Tasks) Wait() {
	t.mu.Lock()
	t.over = true
	t.mu.Unlock()
	t.group.Wait()
}
