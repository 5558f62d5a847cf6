package blockwise

import "coapproxy/exchange"

// steps makes exchanges with a leg one after the other: those for the blocks of
// one body. The sink of each calls then when it ends. The zero value with a leg
// is ready for use.
type steps struct {
	leg    exchange.Handler
	serial exchange.Serial

	// Touched by what serial runs.
	running  exchange.Canceler // the latest exchange
	canceled bool
}

// begin makes the next exchange. Run by serial. Its sink gets ErrCanceled at
// once when the steps have been canceled.
func (s *steps) begin(r *exchange.Request, w exchange.Sink) {
	if s.canceled {
		w.End(exchange.ErrCanceled)
		return
	}
	s.running = s.leg.Exchange(r, w)
}

// then runs next after the exchange under way, which has ended; also when its
// leg was so quick that it has not returned yet.
func (s *steps) then(next func()) { s.serial.DoAlways(next) }

// Cancel implements exchange.Canceler: the exchange under way is canceled and
// none is begun any more.
func (s *steps) Cancel() {
	s.serial.DoAlways(func() {
		s.canceled = true
		if s.running != nil {
			s.running.Cancel()
		}
	})
}
