package oscorehop

import (
	"crypto/rand"
	"crypto/subtle"
	"slices"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/wire"
)

const (
	echoLen = 8 // bytes
	// echoLifetime is how long a challenge is answered with the same value; that
	// value is accepted for as long again (OH-113).
	echoLifetime = time.Minute
)

// echo is the challenge of a context whose replay window was lost (OH-113). One
// value serves all requests: whoever repeats it, inside the layer, wrote the
// request after this process had started, and that is all it has to prove.
type echo struct {
	made           time.Time
	value, earlier []byte
}

// challenge returns the current value.
func (e *echo) challenge(now time.Time) []byte {
	e.age(now)
	if e.value == nil {
		e.value, e.made = random(echoLen), now
	}
	return e.value
}

// age retires values after their time.
func (e *echo) age(now time.Time) {
	switch passed := now.Sub(e.made); {
	case passed >= 2*echoLifetime:
		e.value, e.earlier = nil, nil
	case passed >= echoLifetime && e.value != nil:
		e.earlier, e.value = e.value, nil
	}
}

// ours reports whether a value was made here lately.
func (e *echo) ours(value []byte, now time.Time) bool {
	e.age(now)
	return len(value) == echoLen &&
		(subtle.ConstantTimeCompare(value, e.value) == 1 || subtle.ConstantTimeCompare(value, e.earlier) == 1)
}

// accept decides on a request that was decrypted: a replay is an error; with the
// window lost, a request without our Echo gets the returned challenge; otherwise
// the options of the request are returned, without an Echo of ours (OH-74).
func (c *Context) accept(number uint64, inner Message) (challenge []byte, options message.Options, err error) {
	value, present := wire.First(inner.Options, wire.Echo)
	now := time.Now()

	c.mu.Lock()
	defer c.mu.Unlock()
	// Under one lock with the mark, so that of concurrent copies one passes (OH-110).
	if !c.window.add(number) {
		return nil, nil, &VerifyError{Reason: Replayed}
	}
	c.heard(number)
	ours := present && c.echo.ours(value, now)
	if !c.valid {
		if !ours { // OH-114: never valid by a request that echoes nothing
			return c.echo.challenge(now), nil, nil
		}
		c.window.startAt(number) // OH-113
		c.valid = true
	}
	if ours {
		return nil, slices.DeleteFunc(inner.Options, func(o message.Option) bool { return o.ID == wire.Echo }), nil
	}
	return nil, inner.Options, nil
}

// challenge protects the response that asks for an Echo, with a Partial IV of its
// own, because the request may have been answered before the restart (OH-113). It
// returns a *ChallengeError, or why there is none.
func (r *Responder) challenge(value []byte) error {
	m, err := r.Protect(Message{
		Code:    codes.Unauthorized,
		Options: message.Options{{ID: wire.Echo, Value: value}},
	}, DefaultClasses)
	if err != nil {
		return err
	}
	return &ChallengeError{Response: m}
}

func random(n int) []byte {
	b := make([]byte, n)
	_, _ = rand.Read(b) // never fails
	return b
}
