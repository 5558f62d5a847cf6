package proxy

import (
	"time"

	"go.uber.org/zap"

	"coapproxy/exchange"
)

// Groups is the layer for what every group request needs once the client is
// known to be allowed to make it: a timeout, and not too long a one.
type Groups struct {
	Next exchange.Handler
	// MaxTimeout is the longest T' for this request (GP-29).
	MaxTimeout func(r *exchange.Request) time.Duration
	// RefuseAboveMax refuses a longer T' instead of lowering it.
	RefuseAboveMax bool
	Log            *zap.Logger
}

// Exchange implements exchange.Handler.
func (g *Groups) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	if !r.Target.Group {
		return g.Next.Exchange(r, w)
	}
	if !r.Timeout.Present {
		return exchange.Fail(w, exchange.Failf(exchange.TimeoutMissing, "Please use Multicast-Timeout")) // GP-26
	}
	if limit := g.MaxTimeout(r); r.Timeout.Duration() > limit {
		if g.RefuseAboveMax {
			return exchange.Fail(w, exchange.Failf(exchange.BadRequest, "Multicast-Timeout above %d s", limit/time.Second))
		}
		g.Log.Info("Multicast-Timeout lowered", zap.Uint64("exchange", r.ID), zap.Stringer("client", r.Peer),
			zap.Uint32("asked", r.Timeout.Seconds), zap.Duration("limit", limit))
		r.Timeout.Seconds = uint32(limit / time.Second)
	}
	return g.Next.Exchange(r, w)
}
