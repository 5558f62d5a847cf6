package exchange

import (
	"errors"
	"fmt"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
)

// ErrCanceled is the End of an exchange that its own front gave up.
var ErrCanceled = errors.New("exchange canceled")

// Reason is why the proxy cannot carry out a request. Each front turns it into
// a response of its protocol in one place.
type Reason uint8

// The reasons; the CoAP response code of each is in brackets.
const (
	Internal         Reason = iota // a defect of the proxy (5.00)
	BadRequest                     // malformed request (4.00)
	TimeoutMissing                 // group request without Multicast-Timeout (4.00, GP-26)
	TokenReused                    // Token of a running group exchange (4.00, GP-25)
	Denied                         // not identified or not allowed (4.01, GP-23, FP-7)
	BadOption                      // unprocessable option (4.02, FP-20)
	NotFound                       // no such resource at the proxy (4.04)
	Incomplete                     // a block of the request body is missing (4.08, FP-73)
	MethodNotAllowed               // method not allowed for this group (4.05, GC-70)
	TooLarge                       // request body too large (4.13, GC-52)
	TooManyRequests                // this client asks too much (4.29, FP-37)
	GroupsDisabled                 // group forwarding is not enabled (5.01, GP-22)
	Unreachable                    // no such host, no route, refused, reset (5.02, FP-33, FP-34)
	BadResponse                    // the target's response cannot be used (5.02, FP-33)
	Overloaded                     // a bound of the proxy is reached (5.03, FP-34)
	NoAnswer                       // the target did not answer in time (5.04, FP-32)
	NotProxied                     // scheme or URI the proxy does not serve (5.05, FP-7)
	TimeoutTooShort                // T' cannot cover the chain (5.05, GP-96)
	HopLimitReached                // loop or too many hops (5.08, FP-52)
)

var reasonNames = [...]string{
	Internal: "internal", BadRequest: "bad_request", TimeoutMissing: "timeout_missing", TokenReused: "token_reused",
	Denied: "denied", BadOption: "bad_option", NotFound: "not_found", MethodNotAllowed: "method_not_allowed",
	TooLarge: "too_large", Incomplete: "incomplete", TooManyRequests: "too_many_requests", GroupsDisabled: "groups_disabled",
	Unreachable: "unreachable", BadResponse: "bad_response", Overloaded: "overloaded", NoAnswer: "no_answer",
	NotProxied: "not_proxied", TimeoutTooShort: "timeout_too_short", HopLimitReached: "hop_limit_reached",
}

// Reasons is the number of reasons, for counters indexed by Reason.
const Reasons = len(reasonNames)

// String returns the name used in logs and counters.
func (r Reason) String() string {
	if int(r) < len(reasonNames) {
		return reasonNames[r]
	}
	return fmt.Sprintf("reason_%d", uint8(r))
}

// Failure is the end of an exchange that the client must be told about.
type Failure struct {
	Reason Reason
	// Detail is a short diagnostic text for the client: UTF-8, no internal
	// addresses (FP-38).
	Detail string
	// RetryAfter goes with Overloaded and TooManyRequests (Max-Age).
	RetryAfter time.Duration
	// MinTimeout goes with TimeoutTooShort, in seconds (GP-96).
	MinTimeout uint32
	// Limit goes with TooLarge: the largest request body in bytes (Size1).
	Limit uint32
	// Option goes with BadOption: the option that could not be processed, 0 when
	// it was not one alone (FP-38).
	Option message.OptionID
	// Err is the cause, for the log only; may be nil.
	Err error
	// Key is the key of the configuration that denies, such as
	// clients[].forward, and Asked what a target was asked for by where it could not
	// be made out, both for the log only.
	Key, Asked string
}

// Because returns f with the key of the configuration that denies.
func (f *Failure) Because(key string) *Failure {
	f.Key = key
	return f
}

// Failf returns a Failure with a formatted Detail.
func Failf(reason Reason, format string, args ...any) *Failure {
	return &Failure{Reason: reason, Detail: fmt.Sprintf(format, args...)}
}

// Error implements error.
func (f *Failure) Error() string {
	if f.Err != nil {
		return fmt.Sprintf("%s: %s: %v", f.Reason, f.Detail, f.Err)
	}
	return fmt.Sprintf("%s: %s", f.Reason, f.Detail)
}

// Unwrap returns the cause.
func (f *Failure) Unwrap() error { return f.Err }

// AsFailure turns any error of an exchange's end into a Failure; one that is
// none becomes Internal.
func AsFailure(err error) *Failure {
	var f *Failure
	if errors.As(err, &f) {
		return f
	}
	return &Failure{Reason: Internal, Detail: "internal error", Err: err}
}
