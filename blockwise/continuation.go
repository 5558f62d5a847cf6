package blockwise

import (
	"bytes"
	"errors"
	"net/netip"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// Stats counts what happens to the bodies of group responses in blocks.
type Stats struct {
	Completed  atomic.Uint64 `metric:"group_bodies_completed_total" help:"Group responses whose further blocks were fetched from their server."`
	Incomplete atomic.Uint64 `metric:"group_bodies_incomplete_total" help:"Group responses whose first block alone was relayed."`
	Dropped    atomic.Uint64 `metric:"group_responses_dropped_total" help:"Group responses dropped because too many came at once."`
}

// Continuation is the layer above the group leg for GC-54: where the client
// did not ask for blocks and a server answers with the first of several, the
// rest is fetched by unicast from that server, and the whole is relayed if it
// is complete in time and the front can hand it on in one piece; otherwise the
// first block is relayed as received. It is safe for concurrent use.
//
// Behind a next proxy that stands in for its servers it is fetched from the target that
// the proxy has announced (GP-102, GP-118). No next proxy says which path of a server
// that of the group is, if it stands in for the group. So the whole of the same one is
// asked for, and what comes counts if it begins with what the group request brought.
type Continuation struct {
	// Group is the group leg, Unicast the leg for the further blocks; one to next proxies
	// puts bodies together itself.
	Group, Unicast exchange.Handler
	Engine         *exchange.Engine
	Stats          *Stats
	Log            *zap.Logger

	bytes atomic.Int64 // that the bodies under way can have, over all exchanges
}

// maxCompleting bounds the bodies being completed over all exchanges, in bytes;
// beyond it responses are relayed with their first block.
const maxCompleting = 64 << 20

// reserve counts a body that can have so many bytes, and reports false when there
// is no room.
func (c *Continuation) reserve(n int) bool {
	if c.bytes.Add(int64(n)) > maxCompleting {
		c.bytes.Add(-int64(n))
		return false
	}
	return true
}

// maxFetches bounds the bodies one exchange completes at a time; the responses
// of further servers are relayed with their first block.
const maxFetches = 64

// Exchange implements exchange.Handler.
func (c *Continuation) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	if r.Timeout.Seconds == 0 || wire.Has(r.Options, wire.Block2) {
		return c.Group.Exchange(r, w)
	}
	s := &continued{layer: c, sink: w}
	s.observes = wire.IsRegistration(r.Method, r.Options)
	s.kept.keep(r)
	s.deadline.Fire = s
	s.until = r.Arrival.Add(r.Timeout.Duration())
	s.last = s.until.Add(-margin(r.Timeout.Duration()))
	group := c.Group.Exchange(r, s)
	s.serial.DoAlways(func() {
		s.group = group
		if s.stopped.Load() {
			group.Cancel()
		}
	})
	return group
}

// margin is how long before T' a response must be on its way: the same figure
// as for cached responses (GP-79).
func margin(timeout time.Duration) time.Duration {
	return min(time.Second, max(100*time.Millisecond, timeout/20))
}

// continued is the sink between the group leg and the client. Its fields are
// touched by what serial runs, but for those that never change.
//
// Nothing of it is in the processor's caches when a response comes: what each
// response touches is at its beginning.
type continued struct {
	sink     exchange.Sink
	stopped  atomic.Bool // the sink said Stop
	observes bool
	serial   exchange.Serial

	layer     *Continuation
	until     time.Time         // end of T'
	last      time.Time         // after it no body is completed any more, unless it observes
	group     exchange.Canceler // nil until the group leg has returned it
	deadline  exchange.Deadline
	scheduled bool
	request   *exchange.Request // for further blocks; nil until the first is needed
	fetches   map[*completion]bool

	kept kept
}

// completion is the body of one server being completed.
type completion struct {
	steps steps
	block *exchange.Response // the first block as received; owned
}

// Respond implements exchange.Sink.
func (s *continued) Respond(p *exchange.Response) exchange.Verdict {
	if !s.serial.Do(func() { s.take(p) }, func() func() { q := p.Clone(); return func() { s.take(q) } }) {
		s.layer.Stats.Dropped.Add(1)
	}
	if s.stopped.Load() {
		return exchange.Stop
	}
	return exchange.Continue
}

// take relays a response, or starts to complete its body. p is borrowed.
func (s *continued) take(p *exchange.Response) {
	if s.stopped.Load() {
		return
	}
	b, more, err := opening(p, wire.ParseBlock)
	if err != nil || !more {
		s.relay(p)
		return
	}
	limit := s.kept.Bare().BodyLimit
	if !p.From.IsValid() && p.ReplyFrom == nil || b.Size() >= limit || announced(p) > int64(limit) || len(s.fetches) >= maxFetches ||
		!time.Now().Before(s.last) && !s.observes ||
		!s.layer.reserve(limit) {
		s.incomplete(p)
		return
	}
	if !s.scheduled && time.Now().Before(s.last) {
		s.scheduled = true
		s.layer.Engine.Schedule(&s.deadline, s.last)
	}
	if s.request == nil {
		s.request, s.fetches = continuing(s.kept.Request(), true), make(map[*completion]bool)
	}
	request := *s.request
	request.Target = exchange.Target{Scheme: "coap", Addr: p.From, NextHop: request.Target.NextHop} // GC-51, GC-55
	if !p.From.IsValid() && !toAnnounced(&request, p.ReplyFrom) {
		s.layer.bytes.Add(-int64(limit))
		s.incomplete(p)
		return
	}
	c := &completion{steps: steps{leg: s.layer.Unicast}, block: p.Clone()}
	s.fetches[c] = true
	if request.Target.NextHop != "" {
		w := &wholeBody{completion: c, limit: limit, err: errBlock}
		w.done = func(err error) { s.serial.DoAlways(func() { s.completed(c, w.whole, err) }) }
		c.steps.serial.DoAlways(func() { c.steps.begin(&request, w) })
		return
	}
	first := *c.block
	first.Payload = append(make([]byte, 0, 2*len(p.Payload)), p.Payload...)
	f := &fetch{steps: &c.steps, request: &request, first: &first, limit: limit, read: wire.ParseBlock}
	f.done = func(err error) { s.serial.DoAlways(func() { s.completed(c, f.first, err) }) }
	c.steps.serial.DoAlways(func() { f.next(b.SZX) })
}

// wholeBody is the sink of a request for the whole of a body of which the first block is
// there.
type wholeBody struct {
	completion *completion
	limit      int
	whole      *exchange.Response
	err        error
	done       func(error)
}

// Respond implements exchange.Sink.
func (b *wholeBody) Respond(p *exchange.Response) exchange.Verdict {
	first := b.completion.block
	switch {
	case p.Code>>5 != first.Code>>5:
		b.err = &refusal{p.Clone()}
	case wire.Has(p.Options, wire.Block2):
	case p.Code != first.Code, !sameETag(first, p), !bytes.HasPrefix(p.Payload, first.Payload):
		b.err = errChanged // or it is another resource
	case len(p.Payload) > b.limit:
		b.err = errTooLarge
	default:
		whole := *first
		whole.Payload = bytes.Clone(p.Payload)
		b.whole, b.err = &whole, nil
	}
	return exchange.Stop
}

// End implements exchange.Sink.
func (b *wholeBody) End(err error) {
	if b.whole != nil || err == nil { // else it did not get as far
		err = b.err
	}
	b.done(err)
}

// toAnnounced makes of a request for a group one for a server that a next proxy calls
// by a target of its own. It reports false if that is none to send requests to.
func toAnnounced(r *exchange.Request, replyFrom []byte) bool {
	v, err := wire.ParseReplyFrom(replyFrom)
	if err != nil {
		return false
	}
	var ok bool
	if r.Options, ok = v.FollowUp(r.Options); !ok {
		return false
	}
	r.Target = exchange.Target{Scheme: v.Server.Scheme, Addr: netip.AddrPortFrom(v.Server.Addr.WithZone(""), v.Server.Port), NextHop: r.Target.NextHop}
	r.Form = exchange.FormServer
	return true
}

// completed relays a completed body, or its first block.
func (s *continued) completed(c *completion, whole *exchange.Response, err error) {
	if !s.fetches[c] {
		return
	}
	delete(s.fetches, c)
	s.layer.bytes.Add(-int64(s.kept.Bare().BodyLimit))
	if err != nil {
		s.layer.Log.Debug("body not completed", zap.Uint64("exchange", s.kept.Bare().ID), zap.Stringer("server", c.block.From), zap.Error(err))
		s.incomplete(c.block)
		return
	}
	s.layer.Stats.Completed.Add(1)
	s.relay(withoutBlocks(whole))
}

func (s *continued) incomplete(p *exchange.Response) {
	s.layer.Stats.Incomplete.Add(1)
	s.relay(p)
}

func (s *continued) relay(p *exchange.Response) {
	if s.stopped.Load() || s.sink.Respond(p) == exchange.Continue {
		return
	}
	s.stopped.Store(true)
	if s.group != nil {
		s.group.Cancel() // the response may not have come from its Respond
	}
}

// Fire implements exchange.Firer. It relays what has not been completed while there
// is time.
func (s *continued) Fire(time.Time) { s.serial.DoAlways(func() { s.abandon(true) }) }

// abandon gives up all completions, and relays their first blocks if wanted.
func (s *continued) abandon(relay bool) {
	for c := range s.fetches {
		delete(s.fetches, c)
		s.layer.bytes.Add(-int64(s.kept.Bare().BodyLimit))
		c.steps.Cancel()
		if relay {
			s.incomplete(c.block)
		}
	}
}

// End implements exchange.Sink.
func (s *continued) End(err error) {
	s.serial.DoAlways(func() {
		err := err
		if s.stopped.Load() && errors.Is(err, exchange.ErrCanceled) {
			err = nil // it is the sink that wanted no more
		}
		s.layer.Engine.Unschedule(&s.deadline)
		// A leg may know before T' that no more will come; after it nothing is
		// sent any more (GP-33).
		s.abandon(err == nil && time.Now().Before(s.until))
		s.sink.End(err)
	})
}
