package oscorehop

import (
	"errors"
	"fmt"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/wire"
)

// Refusal is why a protected message was not verified.
type Refusal uint8

// The refusals; in brackets what a request may be answered with.
const (
	Malformed Refusal = iota // option or COSE object cannot be decoded (4.02, OH-50)
	NoContext                // no such context, or not for this source (4.01, OH-51)
	Replayed                 // this Partial IV came before, or is too old (4.01, OH-52)
	Forged                   // the tag is wrong (4.00, OH-53)
)

// String returns the diagnostic text of RFC 8613 §8.2.
func (r Refusal) String() string {
	switch r {
	case Malformed:
		return "Failed to decode COSE"
	case NoContext:
		return "Security context not found"
	case Replayed:
		return "Replay detected"
	case Forged:
		return "Decryption failed"
	}
	return fmt.Sprintf("refusal %d", uint8(r))
}

// VerifyError means that a message was not verified. A request may be answered
// with [VerifyError.Response]; a response is dropped, and the exchange goes on
// (OC-23, OH-45).
type VerifyError struct {
	Reason Refusal
	Err    error // the cause, for the log only; may be nil
}

// Error implements error.
func (e *VerifyError) Error() string {
	if e.Err != nil {
		return fmt.Sprintf("OSCORE: %v: %v", e.Reason, e.Err)
	}
	return fmt.Sprintf("OSCORE: %v", e.Reason)
}

// Unwrap returns the cause.
func (e *VerifyError) Unwrap() error { return e.Err }

// Response returns the answer that a request may get. It must not be protected
// by this layer, only by layers that were removed before (OC-24, OH-64).
func (e *VerifyError) Response() Message {
	m := Message{
		Options: message.Options{{ID: wire.MaxAge}}, // zero: not to be cached
		Payload: []byte(e.Reason.String()),
	}
	switch e.Reason {
	case Malformed: // OH-50
		m.Code = codes.BadOption
	case NoContext: // OH-51
		m.Code = codes.Unauthorized
	case Replayed: // OH-52
		m.Code = codes.Unauthorized
	case Forged: // OH-53
		m.Code = codes.BadRequest
	}
	return m
}

func malformed(cause error) error { return &VerifyError{Reason: Malformed, Err: cause} }

// PlaintextError means that a message was verified, but that its plaintext is no
// CoAP message. It comes with a [Responder]: answer a request with 4.00 in this
// layer (OC-24).
type PlaintextError struct{ Err error }

// Error implements error.
func (e *PlaintextError) Error() string { return "OSCORE: bad plaintext: " + e.Err.Error() }

// Unwrap returns the cause.
func (e *PlaintextError) Unwrap() error { return e.Err }

// ChallengeError means that a request was verified, but that nobody knows whether
// it is a replay, since the replay window was lost in a restart. The request must
// not be carried out (OH-113).
type ChallengeError struct {
	// Response is 4.01 with an Echo option, protected by this layer. Layers that
	// were removed before it are added as usual (OH-54).
	Response Message
}

// Error implements error.
func (e *ChallengeError) Error() string { return "OSCORE: replay window lost, Echo required" }

// UnknownOptionError means that a message cannot be protected because the class
// of an option is not known (OH-34): 4.02 for a request, 5.02 for a response
// (OH-57).
type UnknownOptionError struct{ ID message.OptionID }

// Error implements error.
func (e *UnknownOptionError) Error() string {
	return fmt.Sprintf("OSCORE: option %d has no known class", e.ID)
}

// TooLargeError means that a message is longer than the limits of its key permit;
// inner block-wise transfer is the way out (OC-51).
type TooLargeError struct{ Size, Max int } // bytes of COSE plaintext and tag

// Error implements error.
func (e *TooLargeError) Error() string {
	return fmt.Sprintf("OSCORE: message of %d bytes, more than %d", e.Size, e.Max)
}

// LimitError means that a key must not be used any more: nothing can be
// protected, not even an error response (OC-51, OH-63).
type LimitError struct{ Limit Limit }

// Error implements error.
func (e *LimitError) Error() string { return fmt.Sprintf("OSCORE: limit of %v reached", e.Limit) }

// Limit is one of the limits of a Security Context.
type Limit uint8

// The limits.
const (
	Encryptions Limit = iota // messages protected with the Sender Key (OC-51)
	Failures                 // failed decryptions with the Recipient Key (OC-51)
	Sequence                 // Sender Sequence Numbers (OH-111)
	Lifetime                 // Parameters.Expires (OC-51)
)

// String names the limit for logs.
func (l Limit) String() string {
	switch l {
	case Encryptions:
		return "encryptions"
	case Failures:
		return "failed decryptions"
	case Sequence:
		return "sequence numbers"
	case Lifetime:
		return "lifetime"
	}
	return fmt.Sprintf("limit %d", uint8(l))
}

var (
	// ErrNotReserved means that the store has not caught up: no Sender Sequence
	// Number is available just now (OH-112). The message can be tried again.
	ErrNotReserved = errors.New("OSCORE: no sequence number is reserved yet")
	// ErrClosed means that the context or its keeper was closed.
	ErrClosed = errors.New("OSCORE: context closed")
	// ErrInUse means that the same Sender Key is in use already, under whatever
	// name (OC-3).
	ErrInUse = errors.New("OSCORE: this context is in use already")
	// ErrOutside means that a message holds an OSCORE option of its own that the
	// given classes would leave outside, where only one can be (OH-30).
	ErrOutside = errors.New("OSCORE: an OSCORE option of the message would stay outside")

	errObserve = errors.New("notification for a request without Observe")
)
