package endpoint

import "time"

// backoff is for the loop of whoever reads a socket. One that fails does not heal by
// being asked again at once, and does not have to be given up either: a lack of
// memory or of file descriptors passes. The zero value has seen no failure.
type backoff struct {
	pause time.Duration
}

// succeeded ends a row of failures.
func (b *backoff) succeeded() { b.pause = 0 }

// wait waits after a failure, longer after each in a row; it reports false as soon as
// done is closed.
func (b *backoff) wait(done <-chan struct{}) bool {
	b.pause = min(max(2*b.pause, time.Millisecond), time.Second)
	select {
	case <-done:
		return false
	case <-time.After(b.pause):
		return true
	}
}
