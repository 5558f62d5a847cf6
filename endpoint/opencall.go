package endpoint

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// openCall is what a call has whose Token stays in use after a response: an
// observation (RFC 7641), a group request that a next hop carries out, which has
// responses until its T' is over (GP-64), or both.
type openCall struct {
	// registration is repeated when nothing has come for too long (FP-65); nil
	// when nothing is observed.
	registration registration
	until        time.Time // end of T'
	group        bool
	// silent: a group request without responses, T' = 0. It is over when it is
	// acknowledged.
	silent bool

	ended  bool // touched by what serial runs
	serial exchange.Serial

	// Guarded by the lock of the leg.
	established bool  // a notification came
	renewing    bool  // a registration is under way again
	failures    uint8 // of renewals, in a row
	due         time.Time
	order       wire.NotificationOrder
}

const (
	// maxRenewalFailures is how often in a row a registration is repeated in vain
	// before the observation ends.
	maxRenewalFailures = 3
	// defaultMaxAge is the Max-Age of a response that has none, in seconds (RFC
	// 7252 §5.10.5).
	defaultMaxAge = 60
)

// openCallOf returns nil for a request that has one response. m is r as it will
// be sent.
func openCallOf(r *exchange.Request, m *wire.Message) *openCall {
	observes := wire.IsRegistration(m.Code, m.Options)
	if !observes && !r.Timeout.Present {
		return nil
	}
	o := &openCall{group: r.Timeout.Present, silent: r.Timeout.Present && r.Timeout.Seconds == 0}
	if o.group {
		o.until = r.Arrival.Add(r.Timeout.Duration())
	}
	if observes {
		o.registration = registrationOf(m)
	}
	return o
}

// registration is a request to observe as it is sent, without Token and Message
// ID: there are many, and they are rarely needed.
type registration []byte

// registrationOf keeps a request; nil for one that cannot be sent either.
func registrationOf(m *wire.Message) registration {
	encoded, err := (&wire.Message{Code: m.Code, Options: m.Options, Payload: m.Payload}).Append(nil)
	if err != nil {
		return nil
	}
	return encoded
}

// message is the request to send, to be changed by nobody but its options.
func (r registration) message() *wire.Message {
	m := &wire.Message{}
	_ = m.Decode(r) // which was encoded here
	return m
}

// end is the request that ends the observation at its server (FP-67).
func (r registration) end() *wire.Message {
	m := r.message()
	for i := range m.Options {
		if m.Options[i].ID == wire.Observe {
			m.Options[i].Value = []byte{wire.ObserveDeregister}
		}
	}
	return m
}

// plain makes a registration an ordinary request, because there are too many
// observations. It returns nil if that leaves nothing to keep open.
func (o *openCall) plain(m *wire.Message) *openCall {
	o.registration = nil
	m.Options = slices.DeleteFunc(slices.Clone(m.Options), func(v message.Option) bool { return v.ID == wire.Observe })
	if !o.group {
		return nil
	}
	return o
}

// expires is when a call without a response ends.
func (o *openCall) expires(timeout time.Time) time.Time {
	if o != nil && o.group && !o.silent {
		return o.until
	}
	return timeout
}

// fate is what a response means for an open call.
type fate uint8

const (
	fateKeep fate = iota // more may come
	fateLast             // it ends the call
	fateOld              // it was overtaken, and is dropped
)

// judge takes note of a response. inOrder says that its transport keeps the
// order. Called under the lock of the leg.
func (o *openCall) judge(m *wire.Message, now time.Time, inOrder bool) fate {
	if o.registration == nil {
		return fateKeep
	}
	notification := wire.IsNotification(m.Code, m.Options)
	if !o.group {
		if !notification {
			return fateLast // FP-62, FP-66
		}
		// The servers behind a next hop share one sequence, so that only the
		// client of a group can judge the order, per server (GP-67).
		if value, ok := wire.ObserveOf(m.Options); ok && !inOrder && !o.order.Newer(value, now) {
			return fateOld // FP-64
		}
	}
	if !notification {
		return fateKeep
	}
	o.established, o.renewing, o.failures = true, false, 0
	o.due = now.Add(maxAgeOf(m.Options) + renewalPause())
	if o.due.Before(o.until) {
		o.due = o.until
	}
	return fateKeep
}

func maxAgeOf(options message.Options) time.Duration {
	seconds := uint32(defaultMaxAge)
	if v, ok := wire.First(options, wire.MaxAge); ok {
		seconds, _ = wire.Uint(v)
	}
	return time.Duration(seconds) * time.Second
}

// renewalPause is the random wait before a registration is repeated (FP-65).
func renewalPause() time.Duration {
	return 5*time.Second + rand.N(10*time.Second) //nolint:gosec // a spread in time is no secret
}

// reconnectPause is the random wait before a registration is repeated because
// its session or connection is lost.
func reconnectPause() time.Duration {
	return time.Second + rand.N(2*time.Second) //nolint:gosec // a spread in time is no secret
}

// deliver gives a response to the sink, and the end after the last one; stop is
// called when that wants no more. It reports false for a response that was dropped
// because too many wait.
func (o *openCall) deliver(w exchange.Sink, m *wire.Message, from netip.AddrPort, last bool, stop func()) (ok bool) {
	p := responses.Get().(*exchange.Response)
	*p = exchange.Response{Code: m.Code, Options: m.Options, Payload: m.Payload, From: from}
	respond := func(p *exchange.Response) {
		if !o.ended && w.Respond(p) == exchange.Stop {
			stop()
		}
	}
	ok = o.serial.Do(func() { respond(p) }, func() func() { q := p.Clone(); return func() { respond(q) } })
	*p = exchange.Response{}
	responses.Put(p)
	if last {
		o.end(w, nil)
	}
	return ok
}

// end ends the exchange; whoever took the call out of its table calls it.
func (o *openCall) end(w exchange.Sink, err error) {
	o.serial.DoAlways(func() {
		o.ended = true
		w.End(err)
	})
}

// discard is the sink of a request whose response interests nobody.
type discard struct{}

// Respond implements exchange.Sink.
func (discard) Respond(*exchange.Response) exchange.Verdict { return exchange.Stop }

// End implements exchange.Sink.
func (discard) End(error) {}
