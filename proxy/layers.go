package proxy

import (
	"bytes"
	"sync/atomic"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"go.uber.org/zap"

	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/wire"
)

// Protection is how a front serves requests that are protected with OSCORE.
type Protection struct {
	Layers Unprotector
	// MaxLayers bounds the layers that are removed from one message (OH-2).
	MaxLayers int
	// Itself returns the options of a request whose target is the proxy itself
	// without those that say so; false for any other target (OH-13).
	Itself func(r *exchange.Request) (message.Options, bool)
	// PassesThrough reports whether a request without Proxy option is forwarded with
	// its layer, as by a reverse-proxy (OH-12, OH-18).
	PassesThrough func(r *exchange.Request) bool
	// Pieces puts together what was cut on the way.
	Pieces Joiner
}

// Joiner puts together protected requests that somebody on the way has cut into
// blocks (OH-75). Safe for concurrent use.
type Joiner interface {
	// Join takes r, a request with Block1. It reports whether r is whole now,
	// without that option; otherwise w has got the answer to the block, and has
	// ended. Requests that differ in nothing but their blocks are one; the host of
	// the target may tell them apart.
	Join(r *exchange.Request, w exchange.Sink) bool
}

// Unprotector removes OSCORE layers from requests. Safe for concurrent use.
type Unprotector interface {
	// Unprotect removes the layer of m, a request with an OSCORE option that is for
	// this proxy (OH-15). The result may alias m.
	Unprotect(m *wire.Message) (*wire.Message, Layer, *LayerRefusal)
}

// Layer is a layer that was removed from a request and goes round every one of its
// responses (OH-4). Safe for concurrent use.
type Layer interface {
	// Security says whom the layer proves the request to be from (OH-122).
	Security() *exchange.Security
	// Context names the Security Context; no two contexts have the same name.
	Context() string
	// WornOut reports a context so near to the limits of its keys that nothing may
	// be begun with it that draws many responses (OC-55).
	WornOut() bool
	// Protect returns the response to send in place of m: Code, Options and
	// Payload, m being borrowed. After an error nothing may be sent (OH-63).
	Protect(m *wire.Message) (*wire.Message, error)
}

// LayerRefusal is why a layer was not removed (OH-50 to OH-54).
type LayerRefusal struct {
	// Answer is what the client may be told: Code, Options and Payload.
	Answer *wire.Message
	// Authentic says that the request was, and that Answer is protected by the
	// layer itself (OH-54). It is always sent then; any other answer only as
	// often as its source may have some (OH-65).
	Authentic bool
	// Forged says that a key has been tried in vain, of which limits have to be
	// kept (OC-54).
	Forged bool
	Reason error // for the log
}

// layers are the layers removed from one request, the outermost first.
type layers []Layer

// protect puts all layers round a response, in reverse order of removal (OH-4,
// OH-40). It is a Reception's Seal.
func (l layers) protect(m *wire.Message) (*wire.Message, error) {
	for i := len(l) - 1; i >= 0; i-- {
		var err error
		if m, err = l[i].Protect(m); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// context names all contexts of the layers; empty for none. What belongs to an
// exchange, such as an Early Stop Request, has to come in the same (OH-103).
func (l layers) context() string {
	switch len(l) {
	case 0:
		return ""
	case 1:
		return l[0].Context()
	}
	name := ""
	for _, layer := range l {
		name += layer.Context() + "\n"
	}
	return name
}

// proven is what the layers, or else the transport, prove about the client: the
// last layer removed counts (OH-13), and a message out of which none was removed
// has nothing but its transport, whatever it carries for others (OH-17).
func (l layers) proven(rx *endpoint.Reception) *exchange.Security {
	if len(l) == 0 {
		return rx.Security()
	}
	return l[len(l)-1].Security()
}

func (l layers) wornOut() bool {
	for _, layer := range l {
		if layer.WornOut() {
			return true
		}
	}
	return false
}

// Sources may have so many unprotected answers about their protected messages
// (OH-65), and may send so many messages that keys are tried on in vain (OC-54).
const (
	layerAnswerRate   = 5 // per second
	layerAnswerBurst  = 20
	layerFailureRate  = 10 // per second
	layerFailureBurst = 64
)

// unprotect runs the decision loop on a request with an OSCORE option (OH-10 to
// OH-16), before anything else is looked at (GP-20): it removes the layers that are
// for this proxy until the message is to be forwarded or has none for it any more. done says that the request has been
// answered or dropped. What is left goes through the other layers like any
// request, with the identity that the removed layers prove; rx seals its
// responses.
func (f *Front) unprotect(p *Protection, rx *endpoint.Reception, m *wire.Message) (inner *wire.Message, removed layers, done bool) {
	for wire.Has(m.Options, wire.OSCORE) { // OH-14: without one it is for the local application
		if isProxyRequest(m.Options) { // OH-11
			rest, own := p.forItself(rx, m)
			if !own {
				return m, removed, false // another's layer is forwarded as it is: OH-22, OC-80
			}
			m = rest // OH-13
			continue
		}
		if len(removed) == 0 && p.PassesThrough(requestOf(rx, m)) {
			return m, removed, false // OH-12, OH-18
		}
		if wire.Has(m.Options, wire.EDHOC) { // OH-19: combined requests are not served
			f.refuseLayer(rx, m, removed, &LayerRefusal{Reason: badOption(wire.EDHOC, "EDHOC is not supported"),
				Answer: &wire.Message{Code: codes.BadOption, Payload: []byte("EDHOC is not supported")}})
			return nil, nil, true
		}
		if len(removed) >= p.MaxLayers { // OH-2, OH-56
			f.refuseLayer(rx, m, removed, &LayerRefusal{Reason: exchange.Failf(exchange.Denied, "too many OSCORE layers"),
				Answer: &wire.Message{Code: codes.Unauthorized, Options: message.Options{{ID: wire.MaxAge}}, Payload: []byte("too many OSCORE layers")}})
			return nil, nil, true
		}
		if f.forgers.barred(rx.Peer.Addr, rx.Now) {
			f.Stats.LayersSkipped.Add(1)
			f.refuseLayer(rx, m, removed, &LayerRefusal{Reason: exchange.Failf(exchange.TooManyRequests, "too many forged messages from this source")})
			return nil, nil, true
		}
		block, cut := wire.First(m.Options, wire.Block1)
		if cut {
			whole := f.join(p, rx, m, removed)
			if whole == nil {
				return nil, nil, true
			}
			m = whole
		}
		next, layer, refusal := p.Layers.Unprotect(m)
		if refusal != nil {
			f.refuseLayer(rx, m, removed, refusal)
			return nil, nil, true
		}
		if cut {
			layer = &joined{Layer: layer, block: bytes.Clone(block)}
		}
		f.forgers.authentic(rx.Peer.Addr, rx.Now)
		removed = append(removed, layer)
		rx.Seal = removed.protect
		m = next
	}
	return m, removed, false
}

// join takes a piece of a protected request, on which no key is to be tried (OH-75).
// It returns the whole; or nil, and the piece has been answered.
func (f *Front) join(p *Protection, rx *endpoint.Reception, m *wire.Message, removed layers) *wire.Message {
	r := exchange.Request{Method: m.Code, Options: m.Options, Payload: m.Payload, Peer: rx.Peer.Addr, Local: rx.Local(),
		Target: exchange.Target{Host: removed.context()}, Arrival: rx.Now, BERT: rx.BERT() && len(removed) == 0}
	var answer pieceAnswer
	if p.Pieces.Join(&r, &answer) {
		whole := *m
		whole.Options, whole.Payload = r.Options, r.Payload
		return &whole
	}
	if answer.failure != nil {
		p := failureResponse(answer.failure, f.Numbers)
		f.refuseLayer(rx, m, removed, &LayerRefusal{Reason: answer.failure, Answer: &wire.Message{Code: p.Code, Options: p.Options, Payload: p.Payload}})
		return nil
	}
	// Shorter than the piece itself, so that nobody can make it more.
	f.Stats.Responses.Add(1)
	var in endpoint.Incoming
	in.Accept(rx, m)
	in.Respond(&answer.message, m.Type, nil)
	return nil
}

// pieceAnswer is the sink of a piece.
type pieceAnswer struct {
	message wire.Message
	failure *exchange.Failure
}

// Respond implements exchange.Sink.
func (a *pieceAnswer) Respond(p *exchange.Response) exchange.Verdict {
	a.message.Code, a.message.Options = p.Code, p.Options
	return exchange.Stop
}

// End implements exchange.Sink.
func (a *pieceAnswer) End(err error) {
	if err != nil {
		a.failure = exchange.AsFailure(err)
	}
}

// joined is a layer that came in pieces. The first response tells whoever has cut
// it that the last one has arrived (RFC 7959 §2.3).
type joined struct {
	Layer
	block []byte
	said  atomic.Bool
}

// Protect implements Layer.
func (l *joined) Protect(m *wire.Message) (*wire.Message, error) {
	out, err := l.Layer.Protect(m)
	if err == nil && l.said.CompareAndSwap(false, true) {
		out.Options = insertOption(out.Options, wire.Block1, l.block)
	}
	return out, err
}

// forItself returns what is left of a request whose target is the proxy: the same
// without the options that say so.
func (p *Protection) forItself(rx *endpoint.Reception, m *wire.Message) (*wire.Message, bool) {
	options, ok := p.Itself(&exchange.Request{Options: m.Options, Local: rx.Local(), Scheme: rx.Scheme()})
	if !ok {
		return nil, false
	}
	rest := *m
	rest.Options = options
	return &rest, true
}

// requestOf is what says where a request is for.
func requestOf(rx *endpoint.Reception, m *wire.Message) *exchange.Request {
	return &exchange.Request{Options: m.Options, Local: rx.Local(), Scheme: rx.Scheme(), Arrival: rx.Now}
}

// refuseLayer ends a request of which a layer could not be removed. Answers that
// are not protected by that layer go out, in the layers removed before, at a
// bounded rate (OH-64, OH-65).
func (f *Front) refuseLayer(rx *endpoint.Reception, m *wire.Message, removed layers, r *LayerRefusal) {
	if r.Forged {
		f.forgers.failed(rx.Peer.Addr, rx.Now)
	}
	level := zap.InfoLevel
	if r.Authentic {
		level = zap.DebugLevel
	}
	if ce := f.Log.Check(level, "protected request refused"); ce != nil {
		ce.Write(zap.Stringer("client", rx.Peer.Addr), zap.String("context", removed.context()), zap.NamedError("reason", r.Reason))
	}
	var in endpoint.Incoming
	in.Accept(rx, m)
	switch {
	case r.Answer == nil:
		in.Finish()
		return
	case !r.Authentic && !f.answers.take(sourceOf(rx.Peer.Addr), rx.Now):
		f.Stats.LayersSilenced.Add(1)
		in.Finish()
		return
	}
	f.Stats.Responses.Add(1)
	in.Respond(r.Answer, m.Type, nil)
}
