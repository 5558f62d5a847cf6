package oscorehop

import (
	"bytes"
	"sync/atomic"

	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/wire"
)

// ProtectRequest protects a request (OC-20). The Requester verifies its
// responses. Errors are *UnknownOptionError, ErrOutside, *TooLargeError,
// *LimitError, ErrNotReserved, ErrClosed, and those of the message codec; a
// request that was not protected has not been given to the key.
//
// A result is sent once, or sent again byte for byte; a repeated request is
// protected again.
func (c *Context) ProtectRequest(m Message, classes Classes) (Message, *Requester, error) {
	if !wire.IsRequest(m.Code) {
		return Message{}, nil, errCode
	}
	options, err := splitProxyURI(m.Options, classes)
	if err != nil {
		return Message{}, nil, err
	}
	inner, outer, err := split(options, classes, false)
	if err != nil {
		return Message{}, nil, err
	}
	plaintext, err := appendPlaintext(m.Code, inner, m.Payload)
	if err != nil {
		return Message{}, nil, err
	}
	if err := c.fits(plaintext); err != nil {
		return Message{}, nil, err
	}
	if err := c.usable(); err != nil {
		return Message{}, nil, err
	}
	partialIV, err := c.ownPartialIV()
	if err != nil {
		return Message{}, nil, err
	}
	// OC-15: kid and Partial IV always; the kid context where there is one.
	option := Option{PartialIV: partialIV, KID: notNil(c.params.SenderID), KIDContext: c.params.IDContext}
	value, err := option.Append(nil)
	if err != nil {
		return Message{}, nil, err
	}
	r := &Requester{
		context: c,
		nonce:   nonce(c.iv, c.params.SenderID, partialIV),
		aad:     additionalData(c.params.Algorithm, c.params.SenderID, partialIV),
		observe: wire.Has(m.Options, wire.Observe),
	}
	ciphertext, err := c.seal(plaintext, r.nonce, r.aad)
	if err != nil {
		return Message{}, nil, err
	}
	protected := Message{Code: codes.POST, Options: withOSCORE(outer, value), Payload: ciphertext}
	if r.observe {
		protected.Code = wire.FETCH // OH-37
	}
	return protected, r, nil
}

// notNil returns an empty slice for a nil one: an empty kid is a kid.
func notNil(b []byte) []byte {
	if b == nil {
		return []byte{}
	}
	return b
}

// UnprotectRequest verifies a request whose option was read with RequestOption
// and names this context (OC-21). Outer blocks must have been put together
// before. classes says which outer options are kept: those of Class U.
//
// Errors: a *VerifyError means that the request is not authentic, or a replay; a
// *ChallengeError carries the response that asks for proof that it is none; a
// *PlaintextError comes with a Responder. Other errors, those of
// [Responder.Protect], mean that a challenge could not be sent.
func (c *Context) UnprotectRequest(m Message, option Option, classes Classes) (Message, *Responder, error) {
	switch {
	case len(option.PartialIV) == 0 || len(option.PartialIV) > maxPartialIV:
		return Message{}, nil, malformed(errNoIV)
	case !c.names(option):
		return Message{}, nil, &VerifyError{Reason: NoContext}
	}
	number := sequenceOf(option.PartialIV)
	c.mu.Lock()
	replayed := c.window.seen(number)
	c.mu.Unlock()
	if replayed { // OC-21: before anything is decrypted
		return Message{}, nil, &VerifyError{Reason: Replayed}
	}
	r := &Responder{
		context:    c,
		kidContext: bytes.Clone(option.KIDContext),
		partialIV:  bytes.Clone(option.PartialIV),
		nonce:      nonce(c.iv, c.params.RecipientID, option.PartialIV),
		aad:        additionalData(c.params.Algorithm, c.params.RecipientID, option.PartialIV),
	}
	buf, err := c.open(m.Payload, r.nonce, r.aad)
	if err != nil {
		return Message{}, nil, err
	}
	inner, parseErr := parsePlaintext(buf, false)

	challenge, stripped, err := c.accept(number, inner)
	if err != nil {
		return Message{}, nil, err
	}
	if challenge != nil {
		return Message{}, nil, r.challenge(challenge)
	}
	if parseErr != nil {
		return Message{}, r, &PlaintextError{Err: parseErr}
	}
	inner.Options = merge(stripped, m.Options, classes)
	// OH-42: what may draw several responses never reuses the nonce.
	if !wire.Has(inner.Options, wire.Observe) && !wire.Has(inner.Options, wire.MulticastTimeout) {
		r.reusable.Store(true)
	}
	return inner, r, nil
}

// Responder protects the responses to one request that was verified in one layer
// (OC-17, OH-7). Safe for concurrent use.
type Responder struct {
	context    *Context
	kidContext []byte
	partialIV  []byte // of the request
	nonce      []byte // of the request
	aad        []byte
	// reusable is true until a response has claimed the nonce of the request.
	reusable atomic.Bool
}

// Context returns the context that the request was verified with. Whoever it
// belongs to is the client of the request (OH-122).
func (r *Responder) Context() *Context { return r.context }

// PartialIV returns the Partial IV of the request; the caller must not change it.
func (r *Responder) PartialIV() []byte { return r.partialIV }

// KIDContext returns the kid context of the request, nil when it had none; the
// caller must not change it.
func (r *Responder) KIDContext() []byte { return r.kidContext }

// RequirePartialIV makes every response carry a Partial IV of its own, as for a
// request that may draw several of them and is not known by Observe or the
// number 2 of Multicast-Timeout (OH-42).
func (r *Responder) RequirePartialIV() { r.reusable.Store(false) }

// Protect protects a response (OC-22). The first response reuses the nonce of the
// request unless that may draw several; every further one takes a sequence number
// (OH-41). Errors are as for ProtectRequest; after *LimitError nothing may be sent
// (OH-63).
func (r *Responder) Protect(m Message, classes Classes) (Message, error) {
	c := r.context
	if !wire.IsResponse(m.Code) {
		return Message{}, errCode
	}
	inner, outer, err := split(m.Options, classes, true)
	if err != nil {
		return Message{}, err
	}
	plaintext, err := appendPlaintext(m.Code, inner, m.Payload)
	if err != nil {
		return Message{}, err
	}
	if err := c.fits(plaintext); err != nil {
		return Message{}, err
	}
	if err := c.usable(); err != nil {
		return Message{}, err
	}
	var option Option
	used := r.nonce
	if !r.reusable.CompareAndSwap(true, false) { // OH-42: claimed once
		if option.PartialIV, err = c.ownPartialIV(); err != nil {
			return Message{}, err
		}
		used = nonce(c.iv, c.params.SenderID, option.PartialIV)
	}
	value, err := option.Append(nil)
	if err != nil {
		return Message{}, err
	}
	ciphertext, err := c.seal(plaintext, used, r.aad)
	if err != nil {
		return Message{}, err
	}
	protected := Message{Code: codes.Changed, Options: withOSCORE(outer, value), Payload: ciphertext}
	if wire.Has(m.Options, wire.Observe) {
		protected.Code = codes.Content // OH-37
	}
	return protected, nil
}
