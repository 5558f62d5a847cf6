package proxy

import (
	"math"
	"net/netip"
	"slices"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// pacer is the token bucket for the non-confirmable responses of group requests
// towards one host to which the way is slow (GC-84): a host takes another port for
// each request. It exists while the bucket is not full or something waits. Guarded
// by the front's lock.
type pacer struct {
	host     netip.Addr
	rate     float64 // responses per second, above 0
	burst    float64
	tokens   float64
	at       time.Time // when tokens was right
	waiting  []waitingResponse
	deadline exchange.Deadline
}

// pace sends a non-confirmable response when its turn comes, at the latest before
// T' (GC-84). A notification takes the place of an older one of the same server
// that waits (FP-68). m is borrowed.
func (f *Front) pace(x *groupRequest, from netip.AddrPort, m *wire.Message) {
	now := time.Now()
	f.mu.Lock()
	p := f.pacerOf(x, now)
	switch {
	case p == nil:
		f.Stats.DeliveryDropped.Add(1)
	case len(p.waiting) == 0 && p.take(now):
		f.mu.Unlock()
		f.Engine.Schedule(&p.deadline, now.Add(p.until(p.burst)))
		x.relay(m)
		return
	case x.observes && replaces(p.waiting, x, from, m):
		f.Stats.NotificationsReplaced.Add(1)
	case len(p.waiting) < x.delivery.Queue && f.waiting < maxWaiting:
		f.waiting++
		x.paced++
		p.waiting = append(p.waiting, waitingResponse{x, from, ownedMessage(x, m)})
		f.Stats.Paced.Add(1)
		if len(p.waiting) == 1 {
			f.Engine.Schedule(&p.deadline, now.Add(p.until(1)))
		}
	default:
		f.Stats.DeliveryDropped.Add(1)
	}
	f.mu.Unlock()
}

// pacerOf returns the bucket of x's client, nil if there are too many. Called under
// the lock.
func (f *Front) pacerOf(x *groupRequest, now time.Time) *pacer {
	host, burst := x.in.Peer.Addr.Addr(), float64(max(x.delivery.Burst, 1))
	p := f.pacers[host]
	if p == nil {
		if len(f.pacers) >= maxDeliveries {
			return nil
		}
		p = &pacer{host: host, tokens: burst, at: now}
		p.deadline.Fire = exchange.FireFunc(func(now time.Time) { f.paceOn(p, now) })
		f.pacers[host] = p
	}
	p.rate, p.burst = x.delivery.Rate, burst // those of the entry that is in force now
	return p
}

// take takes a token if there is one.
func (p *pacer) take(now time.Time) bool {
	p.fill(now)
	if p.tokens < 1-1e-9-2e-9*p.rate { // what rounding to nanoseconds leaves
		return false
	}
	p.tokens--
	return true
}

// fill gives the tokens that have come since.
func (p *pacer) fill(now time.Time) {
	p.tokens = min(p.burst, p.tokens+p.rate*now.Sub(p.at).Seconds())
	p.at = now
}

// until is how long it takes from p.at on until there are so many tokens.
func (p *pacer) until(tokens float64) time.Duration {
	return max(time.Duration((tokens-p.tokens)/p.rate*float64(time.Second)), 0)
}

// paceOn sends what has its turn. What belongs to a request whose T' is over is
// dropped, without a turn (GC-84).
func (f *Front) paceOn(p *pacer, now time.Time) {
	f.mu.Lock()
	for len(p.waiting) > 0 {
		next := p.waiting[0]
		expired := !now.Before(next.x.until) && !wire.Has(next.message.Options, wire.Observe)
		if !expired && !p.take(now) {
			break
		}
		p.waiting[0] = waitingResponse{}
		p.waiting = p.waiting[1:]
		f.waiting--
		next.x.paced--
		if expired {
			f.Stats.Late.Add(1)
		} else {
			f.mu.Unlock()
			next.x.relay(next.message)
			f.mu.Lock()
		}
		next.x.settleIfOver()
	}
	defer f.mu.Unlock()
	if len(p.waiting) > 0 {
		f.Engine.Schedule(&p.deadline, p.at.Add(p.until(1)))
		return
	}
	p.fill(now)
	if full := p.until(p.burst); full > time.Microsecond {
		f.Engine.Schedule(&p.deadline, p.at.Add(full))
		return
	}
	delete(f.pacers, p.host)
}

// withdrawPaced takes what waits in the bucket of a client out of it, as withdraw
// does. Called under the lock.
func (f *Front) withdrawPaced(key clientToken, host netip.Addr, x *groupRequest) {
	p := f.pacers[host]
	if p == nil {
		return
	}
	before := len(p.waiting)
	p.waiting = slices.DeleteFunc(p.waiting, func(w waitingResponse) bool {
		if w.x.key != key || x != nil && w.x != x {
			return false
		}
		w.x.paced--
		w.x.settleIfOver()
		return true
	})
	f.waiting -= before - len(p.waiting)
	f.Stats.Late.Add(uint64(before - len(p.waiting)))
}

// maxWatched is the number of non-confirmable notifications of one observation
// that a RST may name: the latest.
const maxWatched = 64

// relay sends a response as a non-confirmable message.
func (x *groupRequest) relay(m *wire.Message) {
	id, err := x.in.Relay(m, message.NonConfirmable, nil)
	if err != nil {
		return
	}
	x.front.Stats.Relayed.Add(1)
	switch {
	case x.in.Reliable():
	case x.established():
		x.watched.add(id, maxWatched)
	default:
		x.watched.add(id, math.MaxInt)
	}
}

// settleIfOver ends the watch for RST of what was relayed, once the exchange has
// ended and nothing of it waits. Called under the front's lock.
func (x *groupRequest) settleIfOver() {
	if x.ended && x.paced == 0 {
		x.front.relaying.remove(x)
	}
}
