package proxy

import (
	"time"

	"coapproxy/endpoint"
)

// endedTokens remembers the Tokens of group exchanges that ended less than
// EXCHANGE_LIFETIME ago (GP-43): at most limit of them, the oldest goes first.
// Its owner guards it.
type endedTokens struct {
	limit int
	when  map[clientToken]time.Time
	order []clientToken // a queue; first is its head
	first int
}

func newEndedTokens(limit int) *endedTokens {
	return &endedTokens{limit: limit, when: make(map[clientToken]time.Time)}
}

func (t *endedTokens) add(key clientToken, now time.Time) {
	for t.first < len(t.order) {
		oldest := t.order[t.first]
		if len(t.order)-t.first < t.limit && now.Sub(t.when[oldest]) < endpoint.ExchangeLifetime {
			break
		}
		t.order[t.first] = clientToken{}
		t.first++
		delete(t.when, oldest)
	}
	if t.first > len(t.order)/2 {
		t.order = append(t.order[:0], t.order[t.first:]...)
		t.first = 0
	}
	if _, known := t.when[key]; !known {
		t.order = append(t.order, key)
	}
	t.when[key] = now
}

func (t *endedTokens) has(key clientToken, now time.Time) bool {
	when, ok := t.when[key]
	return ok && now.Sub(when) < endpoint.ExchangeLifetime
}
