package access

import (
	"slices"
	"sync"
	"sync/atomic"

	"github.com/plgd-dev/go-coap/v3/message"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// Stats counts the requests of those who asked too much.
type Stats struct {
	Limited             [limits]atomic.Uint64 `metric:"limited_total" help:"Requests refused by a limit, by whose it is." label:"by"`
	ObservationsRefused atomic.Uint64         `metric:"observations_refused_total" help:"Registrations made plain requests because their client had its max_observations."`
}

// observations are those of one client. They outlast a configuration, and so does
// this.
type observations struct {
	count atomic.Int64

	mu  sync.Mutex
	all map[*observing]struct{} // those that a layer below has got
}

// observation counts a registration against what its client may observe, or
// makes it a plain request, whose one response tells the client that it does not
// observe (RFC 7641 §4.1). It returns the sink to go on with; nil: none of its own.
func (p *Policy) observation(r *exchange.Request, w exchange.Sink, c *client) *observing {
	if !wire.IsRegistration(r.Method, r.Options) {
		return nil
	}
	silent := r.Timeout.Present && r.Timeout.Seconds == 0 // GP-36
	if !silent {
		taken := c.observations.count.Add(1)
		if taken > int64(c.MaxObservations)*3/4 {
			c.observations.attend()
		}
		if taken <= int64(c.MaxObservations) || r.Replaces {
			return &observing{sink: w, of: c.observations}
		}
		c.observations.count.Add(-1)
		p.config.Stats.ObservationsRefused.Add(1)
	}
	r.Options = slices.DeleteFunc(slices.Clone(r.Options), func(o message.Option) bool { return o.ID == wire.Observe })
	return nil
}

// attend has some of the observers asked whether they are still there: those that have
// vanished hold the places of others. It is called under no lock.
func (o *observations) attend() {
	const some = 8
	var sinks []exchange.Sink
	o.mu.Lock()
	for s := range o.all { // in no order
		if sinks = append(sinks, s.sink); len(sinks) == some {
			break
		}
	}
	o.mu.Unlock()
	for _, w := range sinks {
		if a, ok := w.(exchange.Attended); ok {
			a.Attend()
		}
	}
}

// Inherit takes over the observations of those clients that were there before.
// It is called before p is asked anything.
func (p *Policy) Inherit(before *Policy) {
	for name, c := range p.byName {
		if old := before.byName[name]; old != nil {
			c.observations = old.observations
		}
	}
}

// Knows reports whether there is a client of this name.
func (p *Policy) Knows(client string) bool { return p.byName[client] != nil }

// EndObservations ends the observations of the clients of these names with a
// failure: what they may do has changed, and whoever still may registers again. The
// caller flushes.
func (p *Policy) EndObservations(ends func(client string) bool, f *exchange.Failure) {
	for name, c := range p.byName {
		if !ends(name) {
			continue
		}
		c.observations.mu.Lock()
		all := make([]*observing, 0, len(c.observations.all))
		for s := range c.observations.all {
			all = append(all, s)
		}
		c.observations.mu.Unlock()
		for _, s := range all {
			s.end(f)
		}
	}
}

// observing is the sink of an observation.
type observing struct {
	sink exchange.Sink
	of   *observations

	// Guarded by the lock of the observations.
	cancel exchange.Canceler
	ended  bool
	reason *exchange.Failure // replaces what the end is for
}

// begun notes how to end it.
func (s *observing) begun(cancel exchange.Canceler) exchange.Canceler {
	s.of.mu.Lock()
	defer s.of.mu.Unlock()
	if !s.ended {
		if s.of.all == nil {
			s.of.all = make(map[*observing]struct{})
		}
		s.cancel = cancel
		s.of.all[s] = struct{}{}
	}
	return cancel
}

// end ends it for a reason on the proxy's side.
func (s *observing) end(f *exchange.Failure) {
	s.of.mu.Lock()
	s.reason = f
	s.of.mu.Unlock()
	s.cancel.Cancel()
}

// Locate implements exchange.Locator.
func (s *observing) Locate(t *exchange.Target) {
	if l, ok := s.sink.(exchange.Locator); ok {
		l.Locate(t)
	}
}

// Respond implements exchange.Sink.
func (s *observing) Respond(p *exchange.Response) exchange.Verdict { return s.sink.Respond(p) }

// End implements exchange.Sink.
func (s *observing) End(err error) {
	s.of.count.Add(-1)
	s.of.mu.Lock()
	delete(s.of.all, s)
	s.ended = true
	if s.reason != nil {
		err = s.reason
	}
	s.of.mu.Unlock()
	s.sink.End(err)
}
