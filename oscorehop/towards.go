package oscorehop

import (
	"bytes"
	"errors"
	"sync"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// Towards is the layer that protects requests for one next hop, a proxy or a server
// (OH-3, OH-102). It is right before the leg, below what cuts bodies into blocks:
// those are between the two ends of the layer (OH-75).
type Towards struct {
	Next exchange.Handler
	Hop  *Hop
	// Context returns the context to use now, nil when there is none.
	Context func() *Context
	// Used, if not nil, is called after the context has been used.
	Used func(*Context)
	// Whole completes a response that somebody on the way has cut into blocks, of which
	// first is the first one, by asking leg for the others with r, the request as it was
	// sent; it owns r. done is called once. It is nil where such responses are dropped.
	Whole func(leg exchange.Handler, r *exchange.Request, first *exchange.Response, done func(*exchange.Response, error)) exchange.Canceler
}

var _ exchange.Handler = (*Towards)(nil)

// Exchange implements exchange.Handler. A next hop that has lost its replay window
// asks for an Echo; the request is sent once more with it, and the client sees
// nothing of that (OH-113).
func (t *Towards) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	c := t.Context()
	if c == nil {
		return exchange.Fail(w, exchange.Failf(exchange.Unreachable, "no security context for the next hop"))
	}
	again := r.Clone() // r is borrowed, and it may have to be sent once more
	x := &towards{layer: t, sink: w, request: again, context: c}
	x.seal(r)
	x.hold(t.Next.Exchange(r, x), true)
	return x
}

// towards is one request and what becomes of it.
type towards struct {
	layer   *Towards
	sink    exchange.Sink
	context *Context
	request *exchange.Request // owned

	mu       sync.Mutex
	cancel   exchange.Canceler // of the attempt under way
	canceled bool
	// What the serialised calls of the sink alone touch.
	value   []byte // the Echo that was asked for
	asked   bool   // the request has been repeated, or cannot be
	echoed  bool   // the second attempt is under way
	sealing *sealing
	piece   *exchange.Response // the first of several, of a response that was cut
}

// seal puts the layer round a request. Its response may come in pieces if it has but
// one: of what observes or asks a group, nobody could ask for the others.
func (x *towards) seal(r *exchange.Request) {
	x.sealing = &sealing{towards: x.layer, context: x.context, pieces: x.layer.Whole != nil && !r.Timeout.Present && !wire.Has(r.Options, wire.Observe)}
	r.Sealing = x.sealing
}

// hold keeps the canceler of an attempt, or uses it when that was asked for
// already. The first attempt may have given way to the second before its canceler
// is known.
func (x *towards) hold(c exchange.Canceler, first bool) {
	x.mu.Lock()
	if !first || !x.echoed {
		x.cancel = c
	}
	canceled := x.canceled
	x.mu.Unlock()
	if canceled {
		c.Cancel()
	}
}

// Cancel implements exchange.Canceler.
func (x *towards) Cancel() { x.stop(exchange.Canceler.Cancel) }

// Forget ends the exchange without telling the next hop, where the leg can do that.
func (x *towards) Forget() {
	x.stop(func(c exchange.Canceler) {
		if f, ok := c.(interface{ Forget() }); ok {
			f.Forget()
			return
		}
		c.Cancel()
	})
}

// Acknowledge tells a sink that wants to know it that the request has arrived.
func (x *towards) Acknowledge() {
	if a, ok := x.sink.(interface{ Acknowledge() }); ok {
		a.Acknowledge()
	}
}

func (x *towards) stop(end func(exchange.Canceler)) {
	x.mu.Lock()
	c := x.cancel
	x.canceled = true
	x.mu.Unlock()
	if c != nil {
		end(c)
	}
}

// Respond implements exchange.Sink.
func (x *towards) Respond(p *exchange.Response) exchange.Verdict {
	if x.value != nil && !x.echoed {
		return exchange.Stop // the attempt is over
	}
	if p.Code == codes.Empty {
		x.piece = p.Clone()
		return exchange.Stop
	}
	value, challenge := wire.First(p.Options, wire.Echo)
	if challenge && p.Code == codes.Unauthorized && !x.asked && !wire.Has(x.request.Options, wire.Echo) {
		x.asked, x.value = true, bytes.Clone(value)
		return exchange.Stop
	}
	x.asked = true // what has had a response is not repeated
	return x.sink.Respond(p)
}

// End implements exchange.Sink.
func (x *towards) End(err error) {
	if x.piece != nil {
		x.join()
		return
	}
	x.mu.Lock()
	again := x.value != nil && !x.echoed && !x.canceled
	x.echoed = x.echoed || again
	x.mu.Unlock()
	if !again {
		x.sink.End(err)
		return
	}
	r := x.request
	r.Options = insert(r.Options, message.Option{ID: wire.Echo, Value: x.value})
	x.seal(r)
	x.hold(x.layer.Next.Exchange(r, x), false)
}

// join fetches the rest of a response that was cut on the way, and goes on with the
// whole (OH-75).
func (x *towards) join() {
	s := x.sealing
	s.mu.Lock()
	outer := s.outer
	s.mu.Unlock()
	r := *x.request
	r.Method, r.Options, r.Payload, r.Sealing = outer.Code, outer.Options, nil, nil
	first := x.piece
	x.piece, first.Code = nil, s.cut
	x.mu.Lock()
	last := x.echoed
	x.mu.Unlock()
	x.hold(x.layer.Whole(x.layer.Next, &r, first, func(p *exchange.Response, err error) {
		if err == nil {
			q := *p
			var ok bool
			if q.Code, q.Options, q.Payload, ok = s.open(p.Code, p.Options, p.Payload); ok {
				x.Respond(&q)
			} else {
				err = exchange.Failf(exchange.BadResponse, "the response was cut into blocks on the way, and cannot be verified")
			}
		}
		x.End(err)
	}), !last)
}

// earlier is how many requests of one exchange, an observation that is renewed, are
// kept for responses that are still on their way.
const earlier = 2

// sealing is the layer round the messages of one exchange.
type sealing struct {
	towards *Towards
	context *Context
	pieces  bool // of its one response the first piece is let through

	mu       sync.Mutex
	requests []*Requester // the latest first
	outer    Message      // the latest request as it was sent, without payload; for pieces
	pieced   bool         // a piece was let through
	cut      codes.Code   // its code; not changed after that
}

var _ exchange.Sealing = (*sealing)(nil)

// Seal implements exchange.Sealing.
func (s *sealing) Seal(code codes.Code, options message.Options, payload []byte) (codes.Code, message.Options, []byte, error) {
	out, r, err := s.context.ProtectRequest(Message{Code: code, Options: options, Payload: payload}, s.towards.Hop.Outgoing(options))
	s.used()
	if err != nil {
		return 0, nil, nil, sealFailure(err)
	}
	s.mu.Lock()
	s.requests = append([]*Requester{r}, s.requests[:min(len(s.requests), earlier-1)]...)
	if s.pieces {
		s.outer = Message{Code: out.Code, Options: exchange.CloneOptions(out.Options)}
	}
	s.mu.Unlock()
	return out.Code, out.Options, out.Payload, nil
}

func (s *sealing) used() {
	if s.towards.Used != nil {
		s.towards.Used(s.context)
	}
}

// sealFailure says what the client is told about a request that cannot be
// protected.
func sealFailure(err error) *exchange.Failure {
	var unknown *UnknownOptionError
	var large *TooLargeError
	f := &exchange.Failure{Reason: exchange.Unreachable, Detail: "the request cannot be protected for the next hop", Err: err}
	switch {
	case errors.As(err, &unknown): // OH-57
		f.Reason, f.Option = exchange.BadOption, unknown.ID
	case errors.As(err, &large):
		f.Reason, f.Limit = exchange.TooLarge, uint32(max(0, large.Max))
	case errors.Is(err, ErrNotReserved):
		f.Reason, f.RetryAfter = exchange.Overloaded, time.Second
	}
	return f
}

// Open implements exchange.Sealing. An error that comes without the layer, as hops
// say that they could not remove it, is a failure of the hop; everything else that
// lacks it is dropped (OH-45).
func (s *sealing) Open(code codes.Code, options message.Options, payload []byte) (codes.Code, message.Options, []byte, bool) {
	if !wire.Has(options, wire.OSCORE) {
		switch code {
		case codes.BadRequest, codes.Unauthorized, codes.BadOption, codes.ServiceUnavailable:
			text := "the next hop did not accept the protection of the request"
			return codes.BadGateway, message.Options{{ID: wire.MaxAge}}, []byte(text), true
		}
		return 0, nil, nil, false
	}
	if s.pieces && isPiece(options) {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.pieced {
			return 0, nil, nil, false
		}
		s.pieced, s.cut = true, code
		return codes.Empty, options, payload, true
	}
	return s.open(code, options, payload)
}

// isPiece reports whether a message is the first piece of one that was cut on the way.
// Its block option is outside of the layer.
func isPiece(options message.Options) bool {
	value, ok := wire.First(options, wire.Block2)
	if !ok {
		return false
	}
	b, err := wire.ParseBERTBlock(value)
	return err == nil && b.Num == 0 && b.More
}

// open removes the layer.
func (s *sealing) open(code codes.Code, options message.Options, payload []byte) (codes.Code, message.Options, []byte, bool) {
	s.mu.Lock()
	requests := s.requests
	s.mu.Unlock()
	for _, r := range requests {
		m, err := s.towards.Hop.UnprotectResponse(r, Message{Code: code, Options: options, Payload: payload})
		if err == nil {
			return m.Code, m.Options, m.Payload, true
		}
	}
	s.used()
	return 0, nil, nil, false
}
