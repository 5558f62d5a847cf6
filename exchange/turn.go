package exchange

import (
	"net/netip"
	"slices"
)

// Turn is the place of a request in a queue in which clients take turns: in each
// round there is one request of every client that has any. It is embedded in what
// waits. The zero value is ready for use.
type Turn struct {
	client netip.Addr
	round  uint64
}

// Place returns the turn itself: it makes what embeds one a Waiter.
func (t *Turn) Place() *Turn { return t }

// Round is the round that the request waits for.
func (t *Turn) Round() uint64 { return t.round }

// Waiter is something that waits for its turn.
type Waiter interface {
	comparable
	Place() *Turn
}

// Enqueue puts w into a queue that is sorted by round, where served is the round of
// the last one that had its turn; the first one is next. Clients are told apart by
// their address, an IPv6 one by its first 64 bits; an invalid one stands for nobody
// and waits for one round at most.
//
// Where limit others wait already, the last one makes room if it waits for a later
// round than w would: it is displaced, which is never the only request of a client
// while another has several, but where its earlier ones were taken back: they do not
// give their turns to the later ones. Otherwise ok is false and w is not in the queue.
func Enqueue[W Waiter](queue []W, w W, client netip.Addr, served uint64, limit int) (out []W, displaced W, ok bool) {
	t := w.Place()
	t.client, t.round = fairClient(client), served+1
	at := len(queue)
	if t.client.IsValid() {
		for _, other := range slices.Backward(queue) {
			if o := other.Place(); o.client == t.client {
				t.round = max(t.round, o.round+1)
				break
			}
		}
	}
	for at > 0 && queue[at-1].Place().round > t.round {
		at--
	}
	if len(queue) >= limit {
		if at == len(queue) {
			return queue, displaced, false
		}
		last := len(queue) - 1
		displaced = queue[last]
		queue = slices.Delete(queue, last, len(queue))
	}
	return slices.Insert(queue, at, w), displaced, true
}
