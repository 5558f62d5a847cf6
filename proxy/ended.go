package proxy

import (
	"hash/maphash"
	"time"

	"coapproxy/endpoint"
)

// endedTokens remembers the Tokens of group exchanges that ended less than
// EXCHANGE_LIFETIME ago (GP-43): at most limit of them, the oldest goes first. It
// knows them by a hash of 64 bits, so that thousands cost little memory and the
// garbage collector nothing; to take another Token for one of them would do no more
// than leave a request to stop what does not run without an answer. Its owner guards
// it.
type endedTokens struct {
	limit int
	seed  maphash.Seed
	epoch time.Time
	when  map[uint64]time.Duration // since the epoch
	order []uint64                 // a queue; first is its head
	first int
}

func newEndedTokens(limit int) *endedTokens {
	return &endedTokens{limit: limit, seed: maphash.MakeSeed(), epoch: time.Now(), when: make(map[uint64]time.Duration)}
}

func (t *endedTokens) hash(key *clientToken) uint64 {
	const odd = 0x9e3779b97f4a7c15 // so that Token and context are not taken for each other
	return maphash.Comparable(t.seed, key.origin) ^ maphash.String(t.seed, key.token)*odd ^ maphash.String(t.seed, key.context)
}

func (t *endedTokens) add(key *clientToken, now time.Time) {
	at := now.Sub(t.epoch)
	for t.first < len(t.order) {
		oldest := t.order[t.first]
		if len(t.order)-t.first < t.limit && at-t.when[oldest] < endpoint.ExchangeLifetime {
			break
		}
		t.first++
		delete(t.when, oldest)
	}
	if t.first > len(t.order)/2 {
		t.order = append(t.order[:0], t.order[t.first:]...)
		t.first = 0
	}
	hash := t.hash(key)
	if _, known := t.when[hash]; !known {
		t.order = append(t.order, hash)
	}
	t.when[hash] = at
}

func (t *endedTokens) has(key *clientToken, now time.Time) bool {
	when, ok := t.when[t.hash(key)]
	return ok && now.Sub(t.epoch)-when < endpoint.ExchangeLifetime
}
