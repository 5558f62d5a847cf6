package exchange

import "sync/atomic"

// Switch is a Handler that hands every request on to another one, which can be
// replaced at any time: what lives as long as the process stands before it, what
// a new configuration replaces behind it. An exchange stays with the Handler
// with which it began. Safe for concurrent use, once To has been called.
type Switch struct {
	to atomic.Pointer[Handler]
}

// To makes further requests go to h.
func (s *Switch) To(h Handler) { s.to.Store(&h) }

// Exchange implements Handler.
func (s *Switch) Exchange(r *Request, w Sink) Canceler { return (*s.to.Load()).Exchange(r, w) }
