package proxy

import (
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
	"unsafe"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"go.uber.org/zap"

	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/wire"
)

// clientToken tells group exchanges apart: client endpoint and Token (GP-40), and
// the OSCORE contexts of the layers the request came in: what is not protected in
// the same way says nothing about it (OH-103).
type clientToken struct {
	origin  endpoint.Origin
	token   string
	context string
}

// groupRequest is a request that may get many responses: one with a
// Multicast-Timeout. It is the sink of its exchange. Where its target turns out
// to be a single server, T' means nothing and it gets one plain response.
//
// Nothing of it is in the processor's caches when a response comes: what each
// response touches is at its beginning.
type groupRequest struct {
	front      *Front
	noResponse uint32
	silent     bool // T' = 0: no responses (GP-34)
	observes   bool // it is in Stats.Observers
	counted    bool // in Stats.Running
	problem    bool
	dialect    exchange.Dialect
	relayType  message.Type
	delivery   exchange.Delivery
	relayed    int        // touched by the serialised calls of the sink alone
	watched    relayedIDs // NON responses that a RST may name
	in         endpoint.Incoming

	id          uint64
	key         clientToken
	allowance   *allowance
	target      located // for the log
	client      *exchange.Identity
	observation *groupObservation // nil unless it observes

	// stopped: nothing is sent any more, even if the layers below have not yet heard of
	// the cancellation.
	stopped atomic.Bool

	cancel exchange.Canceler // set while in front.running; guarded by front.mu
	ended  bool              // guarded by front.mu
	paced  int               // responses in a pacer; guarded by front.mu
	until  time.Time         // end of T'
}

// Locate implements exchange.Locator.
func (x *groupRequest) Locate(t *exchange.Target) { x.target = located{t.Scheme, t.Host, t.Addr} }

// stopEarly looks a request up among the running group exchanges before
// anything else is done with it. It reports whether that settled the request.
func (f *Front) stopEarly(rx *endpoint.Reception, m *wire.Message, h *hop) bool {
	key := clientToken{rx.Origin(), string(m.Token), h.context}
	stop := m.Code == codes.GET && h.timeout.Present && h.timeout.Seconds == 0 && h.local // GP-40
	f.mu.Lock()
	x := f.running[key]
	var cancel exchange.Canceler
	if x != nil {
		cancel = x.cancel
	}
	recently := stop && x == nil && f.ended.has(&key, rx.Now)
	if recently {
		f.withdraw(key, rx.Peer.Addr.Addr(), nil)
	}
	f.mu.Unlock()
	switch {
	case stop && x != nil:
		f.Stats.EarlyStops.Add(1)
		x.stopped.Store(true) // GP-41
		f.Log.Debug("early stop", zap.Uint64("exchange", x.id))
		cancel.Cancel()
	case recently: // GP-43
	case x != nil && x.observes && h.timeout.Present:
		// A registration anew, or the end of one by Observe 1: what is running ends
		// when the request has begun (FP-67).
		h.replaces = x
		f.mu.Lock()
		delete(f.running, key)
		f.mu.Unlock()
		return false
	case x != nil:
		// The client believes its Token free, so that responses to the old
		// request would be taken for responses to this one.
		f.Stats.TokenReuses.Add(1)
		x.stopped.Store(true)
		cancel.Cancel()
		if !h.timeout.Present {
			return false
		}
		r := &request{front: f, id: x.id, noResponse: h.noResponse, problem: h.problem, allowance: h.allowance}
		r.in.Accept(rx, m)
		f.active.Add(1)
		r.End(exchange.Failf(exchange.TokenReused, "Token reuse: the exchange with this Token was running and is stopped")) // GP-25, GC-41
		return true
	default:
		return false
	}
	var in endpoint.Incoming
	in.Accept(rx, m)
	in.Finish() // GP-42
	return true
}

// beginGroup starts an exchange that may have many responses.
func (f *Front) beginGroup(rx *endpoint.Reception, m *wire.Message, r *exchange.Request, h *hop, next exchange.Handler, failure *exchange.Failure) {
	f.Stats.GroupRequests.Add(1)
	x := &groupRequest{front: f, id: r.ID, client: r.Client, noResponse: h.noResponse, problem: h.problem, allowance: h.allowance,
		silent: r.Timeout.Seconds == 0, relayType: message.NonConfirmable, until: r.Arrival.Add(r.Timeout.Duration())}
	x.in.Accept(rx, m)
	token := unsafe.String(unsafe.SliceData(x.in.Token), len(x.in.Token)) // which is never changed
	x.key = clientToken{rx.Origin(), token, h.context}
	if r.Client != nil {
		x.dialect, x.delivery = r.Client.Dialect, r.Client.Delivery
	}
	if x.delivery.Type == exchange.Confirmable || x.delivery.Type == exchange.Same && x.in.Confirmable {
		x.relayType = message.Confirmable
	}
	if failure != nil {
		x.End(failure)
		return
	}
	old := h.replaces
	if x.observes = f.registers(r, h, old != nil); x.observes {
		x.observation = newGroupObservation(x, old)
	}
	x.counted = true
	f.Stats.Running.Add(1)
	if !x.in.Reliable() {
		f.mu.Lock()
		f.relaying.add(x)
		f.mu.Unlock()
	}
	cancel := next.Exchange(r, x)
	f.mu.Lock()
	ended := x.ended
	if !ended {
		x.cancel = cancel
		f.running[x.key] = x
	}
	f.mu.Unlock()
	x.in.CancelWhenGone(cancel) // GP-44
	if old != nil {
		old.replace()
	}
	switch {
	case ended:
	case r.Target.Addr.IsValid() && !r.Target.Group:
		x.in.AckLater()
	default:
		x.in.Ack() // GP-33
	}
}

// Respond implements exchange.Sink.
func (x *groupRequest) Respond(p *exchange.Response) exchange.Verdict {
	if x.stopped.Load() { // GP-41
		return exchange.Continue
	}
	if p.GroupPort == 0 {
		x.answer(p)
		return exchange.Stop
	}
	x.in.Ack()
	if x.silent || wire.Suppressed(x.noResponse, p.Code) { // GP-32, GP-37, FP-84
		return exchange.Continue
	}
	f := x.front
	s := relayScratchPool.Get().(*relayScratch)
	defer s.release()
	m := &s.message
	options := s.relayOptions(x, p)
	typ := x.relayType
	if x.observes && wire.IsNotification(p.Code, p.Options) {
		var confirm bool
		if options, confirm = x.observation.notify(options); confirm { // GP-65
			typ = message.Confirmable
		}
		s.options = options
	}
	*m = wire.Message{Code: p.Code, Token: x.in.Token, Options: options, Payload: p.Payload}
	f.Stats.Responses.Add(1)
	x.relayed++
	if ce := f.Log.Check(zap.DebugLevel, "relayed"); ce != nil {
		ce.Write(zap.Uint64("exchange", x.id), zap.String("code", wire.CodeString(p.Code)), zap.Stringer("server", p.From))
	}
	if typ == message.Confirmable && !x.in.Reliable() {
		f.deliver(x, p.From, m)
		return exchange.Continue
	}
	if x.delivery.Rate > 0 && !x.in.Reliable() {
		f.pace(x, p.From, m)
		return exchange.Continue
	}
	x.relay(m)
	return exchange.Continue
}

// End implements exchange.Sink.
func (x *groupRequest) End(err error) {
	f := x.front
	now := time.Now()
	refused := err != nil && !errors.Is(err, exchange.ErrCanceled) && x.relayed == 0 && !x.stopped.Load()
	f.mu.Lock()
	x.ended = true
	if f.running[x.key] == x {
		delete(f.running, x.key)
	}
	if !refused {
		f.ended.add(&x.key, now)
	}
	if err != nil || !now.Before(x.until) {
		f.withdraw(x.key, x.in.Peer.Addr.Addr(), x)
	}
	x.settleIfOver()
	f.mu.Unlock()
	if x.observes {
		f.Stats.Observers.Add(-1)
		f.Engine.Unschedule(&x.observation.deadline)
	}
	if refused {
		x.refuse(err)
	} else {
		if err != nil && x.established() && !errors.Is(err, exchange.ErrCanceled) && !x.stopped.Load() {
			x.sayLast(f.fail(x.id, x.in.Peer.Addr, x.client, &x.target, err, x.problem))
		}
		x.in.Finish() // GP-34, GP-38, GP-42
	}
	if ce := f.Log.Check(zap.DebugLevel, "group exchange ended"); ce != nil {
		ce.Write(zap.Uint64("exchange", x.id), zap.Stringer("target", x.target), zap.Int("relayed", x.relayed), zap.NamedError("why", err))
	}
	if x.counted {
		f.Stats.Running.Add(-1)
	}
	if over := now.Sub(x.until); err == nil && over >= 0 && x.counted && !x.silent {
		f.Stats.Overshoot.Observe(over)
	}
	so := silent
	switch {
	case refused:
		so = refusal
	case x.relayed > 0:
		so = answered
	}
	f.Stats.Exchanges[groupExchange][so.ended(err)].Add(1)
	if !x.established() {
		f.done()
	}
}

// refuse sends an error of the proxy's own. It has no Reply-From (GP-39), and
// goes out for T' = 0 too unless the client asked for silence (GP-34).
func (x *groupRequest) refuse(err error) {
	if notDone[exchange.AsFailure(err).Reason] {
		x.in.NotDone()
	}
	x.answer(x.front.fail(x.id, x.in.Peer.Addr, x.client, &x.target, err, x.problem))
}

// answer sends the one response of an exchange that is not a group's, with the
// options it has.
func (x *groupRequest) answer(p *exchange.Response) {
	x.relayed++
	if wire.Suppressed(x.noResponse, p.Code) {
		x.in.Finish()
		return
	}
	x.front.Stats.Responses.Add(1)
	p = x.front.fit(x.allowance, &x.in, p)
	if x.allowance != nil {
		x.relayType = message.NonConfirmable
	}
	x.in.Respond(&wire.Message{Code: p.Code, Options: withoutObserve(p.Options), Payload: p.Payload}, x.relayType, nil)
}

// unwanted stops an exchange because the client has reset a response, and so wants
// no more of them (GP-44), or because responses do not reach it.
func (x *groupRequest) unwanted() {
	f := x.front
	f.mu.Lock()
	cancel := x.cancel
	gone := x.ended
	if gone {
		f.withdraw(x.key, x.in.Peer.Addr.Addr(), x)
	}
	f.mu.Unlock()
	if gone || cancel == nil {
		return
	}
	f.Stats.ResetStops.Add(1)
	x.stopped.Store(true)
	f.Log.Debug("client wants no more responses", zap.Uint64("exchange", x.id))
	cancel.Cancel()
}

var relayScratchPool = sync.Pool{New: func() any { return &relayScratch{options: make(message.Options, 0, 16)} }}

// relayScratch is what a relayed response is put together in.
type relayScratch struct {
	message wire.Message
	options message.Options
	values  []byte
}

func (s *relayScratch) release() {
	clear(s.options)
	s.message = wire.Message{}
	relayScratchPool.Put(s)
}

// relayOptions returns the options of a server's response as the client of x
// gets them: with the address of the server in the client's dialect (GP-51,
// GP-52, GP-127), which the client's entry alone tells (GP-129).
func (s *relayScratch) relayOptions(x *groupRequest, p *exchange.Response) message.Options {
	numbers := x.front.Numbers
	draft, legacy := x.dialect != exchange.Legacy, x.dialect != exchange.Draft07
	s.options = s.options[:0]
	for _, o := range p.Options {
		switch {
		case o.ID == wire.Observe: // the client's has a number of the proxy's own (GP-67)
		case o.ID == numbers.ReplyFrom: // GP-51: the last proxy's word counts
		case o.ID == numbers.ResponseForwarding && legacy:
		default:
			s.options = append(s.options, o)
		}
	}
	if p.ReplyFrom != nil {
		return s.announce(p.ReplyFrom, numbers, draft, legacy)
	}
	if !p.From.IsValid() {
		return s.options
	}
	server := p.From
	if x.front.ZoneInReplyFrom {
		server = netip.AddrPortFrom(x.front.zones.of(server.Addr()), server.Port())
	} else {
		server = netip.AddrPortFrom(server.Addr().WithZone(""), server.Port())
	}
	s.values = s.values[:0]
	if legacy {
		s.values = wire.AppendResponseForwarding(s.values, wire.TransportUDP, server)
		s.options = insertOption(s.options, numbers.ResponseForwarding, s.values)
	}
	if draft {
		start := len(s.values)
		s.values = wire.AppendReplyFrom(s.values, schemeCoAP, server)
		s.options = insertOption(s.options, numbers.ReplyFrom, s.values[start:])
	}
	return s.options
}

// announce adds the address of a server that is announced as another one than it
// is. The older generation knows addresses only: for a server behind a second
// item, or one with a name, such a client gets none (GP-128).
func (s *relayScratch) announce(value []byte, numbers *wire.Numbers, draft, legacy bool) message.Options {
	if len(value) == 0 {
		return s.options
	}
	if v, err := wire.ParseReplyFrom(value); legacy && err == nil && v.Ref == nil && v.Server.Addr.IsValid() {
		if transport, ok := wire.SchemeTransport(v.Server.Scheme); ok {
			s.values = wire.AppendResponseForwarding(s.values[:0], transport, netip.AddrPortFrom(v.Server.Addr, v.Server.Port))
			s.options = insertOption(s.options, numbers.ResponseForwarding, s.values)
		}
	}
	if draft {
		s.options = insertOption(s.options, numbers.ReplyFrom, value)
	}
	return s.options
}

// schemeCoAP is the scheme number of coap (FP-6): servers answer group requests
// over UDP.
const schemeCoAP = 0
