package endpoint

import (
	"sync"

	"coapproxy/exchange"
)

// openRequests are the requests of one connection or session that are not
// finished, with what is to be canceled when it ends (GP-44). Safe for concurrent
// use.
type openRequests struct {
	mu    sync.Mutex
	gone  bool
	table map[*Incoming]exchange.Canceler
	// standing are those in table that have had a response and may stay for ever:
	// observations.
	standing int
}

// count is the number of requests whose clients wait for an answer.
func (o *openRequests) count() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.table) - o.standing
}

// stand notes that nobody waits for an answer to in any more; it reports whether
// nobody does to any other.
func (o *openRequests) stand(in *Incoming) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, open := o.table[in]; open && !in.stands {
		in.stands = true
		o.standing++
	}
	return len(o.table) == o.standing
}

// enter notes a request that a handler has accepted.
func (o *openRequests) enter(in *Incoming) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.gone {
		return
	}
	if o.table == nil {
		o.table = make(map[*Incoming]exchange.Canceler)
	}
	o.table[in] = nil
}

// bind notes what carries out an entered request. It cancels c at once when the
// other side has gone.
func (o *openRequests) bind(in *Incoming, c exchange.Canceler) {
	o.mu.Lock()
	gone := o.gone
	if _, open := o.table[in]; open {
		o.table[in] = c
	}
	o.mu.Unlock()
	if gone {
		c.Cancel()
	}
}

// leave takes a finished request out; it reports whether nobody waits for an
// answer.
func (o *openRequests) leave(in *Incoming) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if _, open := o.table[in]; open && in.stands {
		o.standing--
	}
	delete(o.table, in)
	return len(o.table) == o.standing
}

// cancelAll ends everything: the other side has gone.
func (o *openRequests) cancelAll() {
	o.mu.Lock()
	o.gone = true
	canceled := make([]exchange.Canceler, 0, len(o.table))
	for _, c := range o.table {
		if c != nil {
			canceled = append(canceled, c)
		}
	}
	o.table, o.standing = nil, 0
	o.mu.Unlock()
	for _, c := range canceled {
		c.Cancel()
	}
}
