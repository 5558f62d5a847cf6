package proxy

import (
	"coapproxy/exchange"
)

// Legs are the legs to single servers by the scheme of the target URI, in lower
// case. It is the Handler that chooses among them, and not changed once in use.
type Legs map[string]exchange.Handler

// Serves reports whether there is a leg for the scheme (FP-7).
func (l Legs) Serves(scheme string) bool {
	_, ok := l[scheme]
	return ok
}

// Exchange implements exchange.Handler.
func (l Legs) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	leg, ok := l[r.Target.Scheme]
	if !ok {
		return exchange.Fail(w, exchange.Failf(exchange.NotProxied, "scheme %s is not served", r.Target.Scheme)) // FP-7
	}
	return leg.Exchange(r, w)
}
