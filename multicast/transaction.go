package multicast

import (
	"slices"
	"sync/atomic"
	"time"

	"coapproxy/endpoint"
	"coapproxy/exchange"
)

// transaction is one multicast request and its responses, for one client or for
// several that asked the same.
//
// Nothing of it is in the processor's caches when a response comes: what each
// response touches is at its beginning, the first subscriber with it.
type transaction struct {
	leg    *Leg
	group  *group
	serial exchange.Serial
	// Appended to under the leg's lock until the transaction leaves the queue;
	// after that touched by what serial runs.
	subscribers []*subscriber

	asking      [1]*subscriber // room for subscribers: nearly always there is one,
	first       subscriber
	observation *groupObservation // nil where nothing is observed

	// Guarded by the leg's lock.
	sendings  []sending
	begun     time.Time  // when it was sent
	oneWay    [1]sending // room for sendings: and one datagram
	groupPort uint16
	holdsSlot bool
	sent      bool // by at least one way
	done      bool // nobody waits for responses any more
	token     uint64
	lastSent  time.Time
	key       string            // for sharing while waiting
	request   *exchange.Request // kept while it waits, and for the repeat

	again exchange.Deadline // when the request is repeated
	slot  exchange.Deadline // end of the wait for a first response

	exchange.Turn // while it waits
}

// newTransaction returns one with its first subscriber.
func newTransaction(l *Leg, g *group, w exchange.Sink, until time.Time) *transaction {
	t := &transaction{leg: l, group: g}
	t.first.begin(t, w, until)
	t.asking[0] = &t.first
	t.subscribers = t.asking[:]
	return t
}

// sending is one datagram of a transaction: a way and a group address.
type sending struct {
	endpoint *endpoint.Endpoint // of egress
	egress   *egress
	to       endpoint.Peer
	id       uint16
}

// over reports whether T' was over for everybody at a time since the leg's epoch.
// Called under the lock.
func (t *transaction) over(at time.Duration) bool {
	return !slices.ContainsFunc(t.subscribers, func(s *subscriber) bool { return !s.over(at) })
}

func (t *transaction) sentBy(e *endpoint.Endpoint) bool {
	return slices.ContainsFunc(t.sendings, func(s sending) bool { return s.endpoint == e })
}

// subscriber is one client's share in a transaction; its exchange.
type subscriber struct {
	sink exchange.Sink
	// Touched by what the transaction's serial runs.
	responses int
	bytes     int
	ended     bool
	open      bool // T' is over and it observes

	begins      bool
	until       atomic.Int64 // end of T', nanoseconds since the leg's epoch
	transaction *transaction
	deadline    exchange.Deadline
}

func (s *subscriber) begin(t *transaction, w exchange.Sink, until time.Time) {
	s.transaction, s.sink = t, w
	s.deadline.Fire = s
	s.until.Store(int64(until.Sub(t.leg.epoch)))
}

// schedule plans the end of T'. It may come a little late, and what comes after T'
// does not count even so.
func (s *subscriber) schedule(until time.Time) {
	engine := s.transaction.leg.config.Engine
	if s.transaction.observation == nil {
		until = engine.Coalesce(until)
	}
	engine.Schedule(&s.deadline, until)
}

// over reports whether T' was over at a time since the leg's epoch.
func (s *subscriber) over(at time.Duration) bool {
	return int64(at) >= s.until.Load() && s.transaction.observation == nil
}

// Cancel implements exchange.Canceler.
func (s *subscriber) Cancel() { s.post(exchange.ErrCanceled) }

// Extend implements exchange.Extender (GC-82).
func (s *subscriber) Extend(until time.Time) bool {
	l := s.transaction.leg
	if !l.config.Engine.Unschedule(&s.deadline) {
		return false
	}
	s.until.Store(int64(until.Sub(l.epoch)))
	s.schedule(until)
	return true
}

// Fire implements exchange.Firer. It ends the exchange at T' (GP-32, GP-38): nothing
// more is said. One that never had its turn is told so (GC-80).
func (s *subscriber) Fire(time.Time) {
	t := s.transaction
	t.serial.DoAlways(func() {
		if o := t.observation; o != nil && o.established {
			s.open = true // GP-64
			return
		}
		t.end(s, nil)
	})
}

func (s *subscriber) post(err error) {
	t := s.transaction
	t.serial.DoAlways(func() { t.end(s, err) })
}

// respond hands a response to every subscriber, as it comes (GC-84): an error
// like a success (GC-31), and one after the other from the same server (GC-34,
// GP-58). at is when it came, since the leg's epoch. Run by serial.
func (t *transaction) respond(p *exchange.Response, at time.Duration) {
	registered := false
	if o := t.observation; o != nil {
		var ok bool
		if registered, ok = o.take(p); !ok {
			return
		}
	}
	for _, s := range t.subscribers {
		if s.ended {
			continue
		}
		if s.over(at) { // GP-38
			t.leg.config.Stats.Late.Add(1)
			continue
		}
		if s.open { // the servers are bounded, and the newest is what counts
			if !registered { // GP-64
				t.leg.config.Stats.Late.Add(1)
				continue
			}
			if s.sink.Respond(p) == exchange.Stop {
				t.end(s, nil)
			}
			continue
		}
		if s.responses >= t.group.MaxResponses || s.bytes+len(p.Payload) > t.group.MaxBytes {
			t.leg.config.Stats.Excess.Add(1) // GP-61
			continue
		}
		s.responses++
		s.bytes += len(p.Payload)
		if s.sink.Respond(p) == exchange.Stop {
			t.end(s, nil)
		}
	}
}

// end ends one subscriber, and with the last one the transaction. Run by
// serial.
func (t *transaction) end(s *subscriber, err error) {
	if s.ended {
		return
	}
	s.ended = true
	l := t.leg
	l.config.Engine.Unschedule(&s.deadline)
	l.mu.Lock()
	queued := slices.Index(t.group.queue, t)
	last := !slices.ContainsFunc(t.subscribers, func(o *subscriber) bool { return !o.ended })
	var next *transaction
	if last {
		if queued >= 0 {
			t.group.queue = slices.Delete(t.group.queue, queued, queued+1)
			l.dequeued(t)
		}
		next = l.retire(t)
		t.subscribers = nil
	}
	l.mu.Unlock()
	if err == nil && queued >= 0 {
		err = overloaded("the group was busy for the whole timeout", t.group.Leisure)
	}
	s.sink.End(err)
	if next != nil {
		l.begin(next, next.request)
	}
}

// endAll ends every subscriber. Run by serial.
func (t *transaction) endAll(err error) {
	for _, s := range t.subscribers {
		t.end(s, err)
	}
}

// slotEnd is a transaction as the owner of its deadline slot.
type slotEnd transaction

// Fire implements exchange.Firer. It ends the wait for a first response (GC-80).
func (e *slotEnd) Fire(time.Time) {
	l := e.leg
	l.mu.Lock()
	next := l.freeSlot((*transaction)(e))
	l.mu.Unlock()
	if next != nil {
		l.begin(next, next.request)
	}
}

// repeat sends the request once more (GC-40).
func (t *transaction) repeat(time.Time) {
	l := t.leg
	l.mu.Lock()
	defer l.mu.Unlock()
	if !t.done {
		l.config.Stats.Repeats.Add(1)
		l.transmit(t, t.request, true)
	}
}
