package endpoint

import (
	"math/rand/v2"
	"time"
)

// Params are the transmission parameters of RFC 7252 §4.8.
type Params struct {
	AckTimeout      time.Duration // ACK_TIMEOUT
	AckRandomFactor float64       // ACK_RANDOM_FACTOR, at least 1
	MaxRetransmit   int           // MAX_RETRANSMIT
	// ProcessingDelay is how long a confirmable request may wait for a
	// piggybacked response before an empty ACK goes out; below AckTimeout.
	ProcessingDelay time.Duration
}

// DefaultParams are the defaults of RFC 7252 §4.8, and a processing delay that
// leaves a client with a slow link time to see the ACK before it repeats.
func DefaultParams() Params {
	return Params{AckTimeout: 2 * time.Second, AckRandomFactor: 1.5, MaxRetransmit: 4, ProcessingDelay: 500 * time.Millisecond}
}

// Derived times with the default parameters (RFC 7252 §4.8.2). They say how
// long the other side may believe in a Message ID, so they do not follow our
// own parameters.
const (
	ExchangeLifetime = 247 * time.Second
	NonLifetime      = 145 * time.Second
)

// initialTimeout is ACK_TIMEOUT times a random factor (RFC 7252 §4.2).
func (p Params) initialTimeout() time.Duration {
	spread := rand.Float64() * (p.AckRandomFactor - 1) //nolint:gosec // a spread in time is no secret
	return time.Duration(float64(p.AckTimeout) * (1 + spread))
}
