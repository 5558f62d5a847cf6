package access

import (
	"slices"
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

// observation counts a registration against what its client may observe, or
// makes it a plain request, whose one response tells the client that it does not
// observe (RFC 7641 §4.1). It returns the sink to go on with.
func (p *Policy) observation(r *exchange.Request, w exchange.Sink, c *client) exchange.Sink {
	if !wire.IsRegistration(r.Method, r.Options) {
		return w
	}
	silent := r.Timeout.Present && r.Timeout.Seconds == 0 // GP-36
	if !silent && (c.observing.Add(1) <= int64(c.MaxObservations) || r.Replaces) {
		return &observing{sink: w, client: c}
	}
	if !silent {
		c.observing.Add(-1)
		p.config.Stats.ObservationsRefused.Add(1)
	}
	r.Options = slices.DeleteFunc(slices.Clone(r.Options), func(o message.Option) bool { return o.ID == wire.Observe })
	return w
}

// observing is the sink of an observation.
type observing struct {
	sink   exchange.Sink
	client *client
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
	s.client.observing.Add(-1)
	s.sink.End(err)
}
