package httpbridge

import "sync/atomic"

// budget bounds the bytes that all requests together keep: their bodies and the
// responses that wait for their clients (HC-97). Safe for concurrent use.
type budget struct{ left atomic.Int64 }

func newBudget(bytes int) *budget {
	b := new(budget)
	b.left.Store(int64(bytes))
	return b
}

// take reports whether there were n bytes left, and takes them. A negative n
// gives some back.
func (b *budget) take(n int) bool {
	if b.left.Add(-int64(n)) < 0 && n > 0 {
		b.left.Add(int64(n))
		return false
	}
	return true
}

func (b *budget) give(n int) { b.left.Add(int64(n)) }
