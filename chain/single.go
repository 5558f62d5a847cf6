package chain

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// single carries out a request for one server.
func (h *hop) single(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	onward := *r
	onward.Options = options(r, h.Form)
	onward.Timeout = exchange.Timeout{} // a server has one response
	onward.Confirmable = true           // so that the next proxy shows that it is there
	asServer := r.Form == exchange.FormServer
	var p *peer
	var f *exchange.Failure
	if asServer {
		if p = h.at(&r.Target); p == nil { // an address of its own for that server (GP-54)
			return h.Whole.Exchange(&onward, w)
		}
		if !p.usable() {
			h.Stats.Refused.Add(1)
			f = p.failure()
		}
	} else {
		p, f = h.choose(nil)
	}
	if f != nil {
		return exchange.Fail(w, f)
	}
	s := &single{hop: h, sink: w, server: r.Target.Addr}
	if isSafe(r.Method) && !asServer && h.spare(p) {
		s.request = onward.Clone()
	}
	s.begin(p, &onward)
	return s
}

// at is the address of the hop that a target is, wherever a zone belongs; nil for
// another one.
func (h *hop) at(t *exchange.Target) *peer {
	for _, p := range h.peers {
		if to := p.to(); to.Scheme == t.Scheme && to.Addr.Port() == t.Addr.Port() && to.Addr.Addr().WithZone("") == t.Addr.Addr().WithZone("") {
			return p
		}
	}
	return nil
}

// isSafe reports whether a request can be carried out twice without effect: only
// such a one goes to the other address when nobody knows what became of it.
func isSafe(method codes.Code) bool { return method == codes.GET || method == wire.FETCH }

// single is a request for one server; it is its exchange.
type single struct {
	hop    *hop
	sink   exchange.Sink
	server netip.AddrPort

	// request is what goes to the other address if it has to; nil if it cannot.
	// Touched by the serialised calls of the leg.
	request *exchange.Request

	mu       sync.Mutex
	current  *try // the attempt that running belongs to
	running  exchange.Canceler
	canceled bool
}

// try is a request at one address; it is the sink of it.
type try struct {
	single *single
	peer   *peer
	sent   time.Time
	watch  exchange.Deadline
	// acked: there was a sign of life. silent: there was none in time.
	acked, silent atomic.Bool
	answered      bool // touched by the serialised calls of the leg
	ended         bool // guarded by single.mu
}

// begin sends the request to an address.
func (s *single) begin(p *peer, r *exchange.Request) {
	c := s.hop.chain
	t := &try{single: s, peer: p, sent: time.Now()}
	onward := *r
	onward.Target = p.to()
	t.watch.Fire = exchange.FireFunc(func(time.Time) { t.missing() })
	c.config.Engine.Schedule(&t.watch, t.sent.Add(s.hop.doubt()))
	running := s.hop.Whole.Exchange(&onward, t)
	s.mu.Lock()
	if !t.ended { // another attempt may have begun
		s.current, s.running = t, running
	}
	canceled := s.canceled
	s.mu.Unlock()
	if canceled {
		running.Cancel()
	}
}

// Cancel implements exchange.Canceler.
func (s *single) Cancel() {
	s.mu.Lock()
	s.canceled = true
	running := s.running
	s.mu.Unlock()
	if running != nil {
		running.Cancel()
	}
}

// doubt is when the silence of a next proxy becomes suspicious: early enough to
// ask whether it is there before its time is over.
func (h *hop) doubt() time.Duration { return max(h.Timeout-probeTimeout, h.Timeout/2) }

// missing looks at an attempt that has had no sign of life for long.
func (t *try) missing() {
	if t.acked.Load() {
		return
	}
	if t.peer.heardSince(t.sent) {
		t.look(true) // it is there, and perhaps has many blocks to take in
		return
	}
	t.peer.check(t.look)
}

// look goes on waiting, or gives the attempt up.
func (t *try) look(alive bool) {
	s := t.single
	s.mu.Lock()
	running, current := s.running, s.current
	s.mu.Unlock()
	switch {
	case current != t || t.acked.Load():
	case alive:
		c := s.hop.chain
		c.config.Engine.Schedule(&t.watch, time.Now().Add(s.hop.Timeout))
		s.mu.Lock()
		ended := t.ended
		s.mu.Unlock()
		if ended {
			c.config.Engine.Unschedule(&t.watch)
		}
	default:
		t.silent.Store(true)
		running.Cancel()
	}
}

// Acknowledge implements exchange.Acknowledged.
func (t *try) Acknowledge() {
	t.acked.Store(true)
	t.peer.alive()
}

// Respond implements exchange.Sink.
func (t *try) Respond(p *exchange.Response) exchange.Verdict {
	if !t.answered {
		t.answered = true
		t.Acknowledge()
	}
	t.single.hop.Stats.Responses.Add(1)
	q := *p
	q.From = t.single.server
	return t.single.sink.Respond(&q)
}

// End implements exchange.Sink.
func (t *try) End(err error) {
	s := t.single
	h := s.hop
	c := h.chain
	c.config.Engine.Unschedule(&t.watch)
	s.mu.Lock()
	t.ended = true
	canceled := s.canceled
	s.mu.Unlock()
	if err == nil || t.answered || canceled {
		s.sink.End(err)
		return
	}
	if !lost(err, t.acked.Load(), t.silent.Load()) {
		s.sink.End(err)
		return
	}
	f := unreachable(err)
	t.peer.failed(t.sent, f)
	if r := s.request; r != nil {
		if p, _ := h.choose(t.peer); p != nil {
			s.request = nil
			h.Stats.Failovers.Add(1)
			c.config.Log.Info("request sent again to the other next hop", zap.Uint64("exchange", r.ID), zap.String("hop", h.Name), zap.Stringer("uri", p.address))
			s.begin(p, r)
			return
		}
	}
	s.sink.End(f)
}

// lost reports whether the end of a request says that the next proxy is not
// there, rather than that it, or what is behind it, takes its time.
func lost(err error, acked, silent bool) bool {
	f := exchange.AsFailure(err)
	return f.Reason == exchange.Unreachable || !acked && (silent || f.Reason == exchange.NoAnswer)
}
