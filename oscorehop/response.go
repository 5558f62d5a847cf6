package oscorehop

import (
	"sync"

	"github.com/plgd-dev/go-coap/v3/message"

	"coapproxy/wire"
)

// exchangeWindow is how many Partial IVs back a response of one exchange is told
// from a repeated one. It is wider than the window of a context, because the
// responses of other exchanges take numbers in between (OH-43).
const exchangeWindow = 1024

// Requester verifies the responses to one request of this endpoint in one layer
// (OC-17, OH-7). Safe for concurrent use.
type Requester struct {
	context *Context
	nonce   []byte // of the request
	aad     []byte
	observe bool

	mu     sync.Mutex
	plain  bool   // a response without Partial IV was accepted
	window window // of the Partial IVs of responses; made by the first
}

// Context returns the context that the request was protected with.
func (r *Requester) Context() *Context { return r.context }

// Unprotect verifies a response (OC-23). Each Partial IV, and the lack of one, is
// accepted once (OH-43). A response that fails is to be dropped, and the exchange
// goes on, whatever the error; it is a *VerifyError or a *PlaintextError.
//
// A notification gets a number made of its Partial IV as the value of Observe: the
// numbers rise in the order in which notifications were sent, and the one without
// a Partial IV is the oldest (OC-26, OH-43, OH-47).
func (r *Requester) Unprotect(m Message, classes Classes) (Message, error) {
	c := r.context
	option, err := responseOption(m, c.params.RecipientID)
	if err != nil {
		return Message{}, err
	}
	used := r.nonce
	if option.PartialIV != nil {
		used = nonce(c.iv, c.params.RecipientID, option.PartialIV)
	}
	if r.seen(option) {
		return Message{}, &VerifyError{Reason: Replayed}
	}
	buf, err := c.open(m.Payload, used, r.aad)
	if err != nil {
		return Message{}, err
	}
	if !r.add(option) {
		return Message{}, &VerifyError{Reason: Replayed}
	}
	inner, err := parsePlaintext(buf, true)
	if err != nil {
		return Message{}, &PlaintextError{Err: err}
	}
	if wire.Has(inner.Options, wire.Observe) {
		if !r.observe { // OC-23
			return Message{}, &PlaintextError{Err: errObserve}
		}
		order(inner.Options, option.PartialIV)
	}
	inner.Options = merge(inner.Options, m.Options, classes)
	return inner, nil
}

// order gives Observe the place of a notification among the others (OC-26).
func order(options message.Options, partialIV []byte) {
	for i := range options {
		if options[i].ID == wire.Observe {
			number := uint32(0)
			if partialIV != nil {
				number = uint32((sequenceOf(partialIV) + 1) & 0xffffff)
			}
			options[i].Value = wire.AppendUint(nil, number)
			return
		}
	}
}

func (r *Requester) seen(o Option) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if o.PartialIV == nil {
		return r.plain
	}
	return r.window.seen(sequenceOf(o.PartialIV))
}

// add marks a response as accepted; false when another was faster.
func (r *Requester) add(o Option) bool {
	r.mu.Lock()
	if o.PartialIV == nil {
		first := !r.plain
		r.plain = true
		r.mu.Unlock()
		return first
	}
	if r.window.bits == nil {
		r.window = newWindow(exchangeWindow)
	}
	number := sequenceOf(o.PartialIV)
	first := r.window.add(number)
	r.mu.Unlock()
	if first {
		r.context.mu.Lock()
		r.context.heard(number)
		r.context.mu.Unlock()
	}
	return first
}
