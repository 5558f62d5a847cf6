package wire

import (
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
)

// Values of Observe in a request (RFC 7641 §2).
const (
	ObserveRegister   = 0
	ObserveDeregister = 1
)

// ObserveOf is the value of Observe in a message: it is present, and valid, when
// ok is true (RFC 7641 §2: at most 3 bytes).
func ObserveOf(options message.Options) (value uint32, ok bool) {
	v, ok := First(options, Observe)
	if !ok || len(v) > 3 {
		return 0, false
	}
	return Uint(v)
}

// IsRegistration reports whether a request asks for an observation (RFC 7641
// §3.1; RFC 8132 §2.4 for FETCH).
func IsRegistration(method codes.Code, options message.Options) bool {
	if method != codes.GET && method != FETCH {
		return false
	}
	v, ok := ObserveOf(options)
	return ok && v == ObserveRegister
}

// IsNotification reports whether a response leaves its observation running:
// success, with Observe (RFC 7641 §3.2).
func IsNotification(code codes.Code, options message.Options) bool {
	return code>>5 == 2 && Has(options, Observe)
}

// NotificationOrder judges which of the notifications of one server is the
// newest (RFC 7641 §3.4). The zero value has seen none. It is not safe for
// concurrent use.
type NotificationOrder struct {
	at    time.Time // of the newest; zero: none
	value uint32
}

// orderLifetime is how long the sequence number of a notification says anything
// about a later one.
const orderLifetime = 128 * time.Second

// Newer reports whether a notification with this value that arrives now is newer
// than all before it, and remembers it then.
func (o *NotificationOrder) Newer(value uint32, now time.Time) bool {
	const half = 1 << 23
	if !o.at.IsZero() && now.Sub(o.at) <= orderLifetime &&
		!(o.value < value && value-o.value < half || o.value > value && o.value-value > half) {
		return false
	}
	o.value, o.at = value, now
	return true
}
