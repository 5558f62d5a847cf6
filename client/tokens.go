package client

import "time"

// tokenHold is how long a Token waits before it may be used again: above
// MIN_TOKEN_REUSE_TIME for servers whose delay is not known (GC-21, GP-114).
const tokenHold = 501 * time.Second

// maxHeldTokens bounds the Tokens that wait. When there are more, the oldest is
// forgotten early, and only chance keeps it from being drawn again.
const maxHeldTokens = 1 << 16

// tokens draws Tokens at random and remembers those that must not be drawn
// again yet. Its owner guards it.
type tokens struct {
	draw  func() uint64
	held  map[uint64]struct{}
	order []heldToken // in the order of until
}

type heldToken struct {
	token uint64
	until time.Time
}

func newTokens(draw func() uint64) *tokens {
	return &tokens{draw: draw, held: make(map[uint64]struct{})}
}

// take returns a Token that is neither held nor in use.
func (t *tokens) take(now time.Time, inUse func(uint64) bool) uint64 {
	for len(t.order) > 0 && !t.order[0].until.After(now) {
		t.forget()
	}
	for {
		token := t.draw()
		if _, held := t.held[token]; !held && !inUse(token) {
			return token
		}
	}
}

// free holds a Token that is not in use any more.
func (t *tokens) free(token uint64, now time.Time) {
	if len(t.order) >= maxHeldTokens {
		t.forget()
	}
	t.held[token] = struct{}{}
	t.order = append(t.order, heldToken{token, now.Add(tokenHold)})
}

// forget drops the Token that has been held longest.
func (t *tokens) forget() {
	delete(t.held, t.order[0].token)
	t.order = t.order[1:]
}
