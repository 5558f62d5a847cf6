package multicast

import "time"

// tokenHold is how long a Token waits before it may be used again with the same
// source port: MIN_TOKEN_REUSE_TIME for servers whose delay, with the longest
// Leisure in it, is not known (GC-21, GC-37).
const tokenHold = 501 * time.Second

// freedTokens holds Tokens that may not be used again yet (GC-24). Its owner
// guards it.
type freedTokens struct {
	limit int
	epoch time.Time
	held  map[uint64]struct{}
	order []freedToken
	first int
}

type freedToken struct {
	token uint64
	until time.Duration // since the epoch
}

func newFreedTokens(limit int) *freedTokens {
	return &freedTokens{limit: limit, epoch: time.Now(), held: make(map[uint64]struct{})}
}

// add frees a Token. It reports false when the list is full and the Token
// therefore not on it.
func (f *freedTokens) add(token uint64, now time.Time) bool {
	at := now.Sub(f.epoch)
	for f.first < len(f.order) && f.order[f.first].until <= at {
		delete(f.held, f.order[f.first].token)
		f.first++
	}
	if f.first > len(f.order)/2 {
		f.order = append(f.order[:0], f.order[f.first:]...)
		f.first = 0
	}
	if len(f.order)-f.first >= f.limit {
		return false
	}
	f.held[token] = struct{}{}
	f.order = append(f.order, freedToken{token, at + tokenHold})
	return true
}

func (f *freedTokens) has(token uint64) bool {
	_, ok := f.held[token]
	return ok
}
