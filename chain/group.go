package chain

import (
	"errors"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// group carries out a group request (GP-91).
func (h *hop) group(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	p, f := h.choose(nil)
	if f != nil {
		return exchange.Fail(w, f)
	}
	g := &group{hop: h, sink: w, port: r.Target.Addr.Port(), until: r.Arrival.Add(r.Timeout.Duration())}
	if r.Timeout.Seconds > 0 {
		var ok bool
		if g.window, ok = h.window(r.Timeout.Seconds, r.PreviousHop); !ok {
			return exchange.Fail(w, &exchange.Failure{Reason: exchange.TimeoutTooShort, MinTimeout: g.window.least(),
				Detail: "the timeout is too short for a chain of proxies"}) // GP-96
		}
	}
	onward := *r
	onward.Options = options(r, h.Form)
	onward.Confirmable = true // so that nothing is lost on the way, and the next proxy shows that it is there
	g.request = onward.Clone()
	g.end.Fire = exchange.FireFunc(func(time.Time) { g.serial.DoAlways(g.timeUp) })
	g.watch.Fire = exchange.FireFunc(func(now time.Time) { g.serial.DoAlways(func() { g.doubt(now) }) })
	g.serial.DoAlways(func() {
		if !g.silent() {
			h.chain.config.Engine.Schedule(&g.end, g.until) // GP-100
		}
		g.begin(p)
	})
	return g
}

// group is a group request that the next proxy carries out; it is its exchange.
// What is not set at its beginning is touched by what serial runs.
type group struct {
	hop    *hop
	sink   exchange.Sink
	port   uint16    // of the group URI
	until  time.Time // end of T'
	serial exchange.Serial

	// request has the options for the next proxy but Multicast-Timeout.
	request *exchange.Request
	window  window // zero for T' = 0
	attempt *attempt
	end     exchange.Deadline
	watch   exchange.Deadline

	relayed  int
	observed bool // a notification came (GP-105)
	late     bool // T' is over, and notifications alone are passed on
	moved    bool // to the other address
	over     bool
	options  message.Options // of the response being passed on
}

func (g *group) misbehaves(m misdeed) { g.hop.misbehaves(m, g.request.ID) }

// silent reports whether no responses are wanted (GP-92).
func (g *group) silent() bool { return g.window.asked == 0 }

// attempt is a group request at one address; it is the sink of it.
type attempt struct {
	group  *group
	peer   *peer
	sent   time.Time
	acked  atomic.Bool
	cancel exchange.Canceler // touched by what serial runs
}

// begin sends the request to an address.
func (g *group) begin(p *peer) {
	h := g.hop
	c := h.chain
	a := &attempt{group: g, peer: p, sent: time.Now()}
	g.attempt = a
	onward := *g.request
	onward.Target = p.to()
	onward.Options = h.withTimeout(g.request.Options, g.window.told)
	onward.Timeout = exchange.Timeout{Present: true}
	if !g.silent() {
		onward.Timeout.Seconds = g.window.token(p.roundTrip()) // GP-93
	}
	c.config.Engine.Schedule(&g.watch, g.doubtful(a))
	a.cancel = h.Leg.Exchange(&onward, a)
	if ce := c.config.Log.Check(zap.DebugLevel, "next hop"); ce != nil {
		ce.Write(zap.Uint64("exchange", g.request.ID), zap.String("hop", h.Name), zap.Stringer("uri", p.address),
			zap.Uint32("asked", g.window.asked), zap.Uint32("told", g.window.told))
	}
}

// doubtful is when an attempt without a sign of life is doubted: early enough
// for another one, if there is a spare address.
func (g *group) doubtful(a *attempt) time.Time {
	at := a.sent.Add(g.hop.Timeout)
	if g.silent() {
		return at
	}
	last := g.last()
	if !g.moved && isSafe(g.request.Method) && g.hop.spare(a.peer) {
		last = a.sent.Add(g.until.Sub(a.sent) / 2)
	}
	if last.Before(at) {
		return last
	}
	return at
}

// last is when an error can be sent that reaches the client in time.
func (g *group) last() time.Time {
	return g.until.Add(-time.Duration(g.window.difference) * time.Second)
}

// doubt looks at an attempt that has had no sign of life for long.
func (g *group) doubt(now time.Time) {
	a := g.attempt
	if g.over || g.late || a.acked.Load() || g.relayed > 0 {
		return
	}
	f := unreachable(nil)
	switch {
	case g.silent(), !now.Before(a.sent.Add(g.hop.Timeout)):
		a.peer.failed(a.sent, f)
	default:
		a.peer.check(nil) // too early to tell
	}
	if g.silent() {
		g.forget()
		g.finish(nil)
		return
	}
	if g.move() {
		return
	}
	if last := g.last(); now.Before(last) && now.Before(a.sent.Add(g.hop.Timeout)) {
		g.hop.chain.config.Engine.Schedule(&g.watch, last)
		return
	}
	g.forget()
	g.finish(f)
}

// move sends the request to the other address instead, if that can be.
func (g *group) move() bool {
	h := g.hop
	if g.moved || g.silent() || !isSafe(g.request.Method) || !h.spare(g.attempt.peer) || !g.window.again(g.spent()) {
		return false
	}
	p, _ := h.choose(g.attempt.peer)
	if p == nil {
		return false
	}
	g.forget()
	g.moved = true
	h.Stats.Failovers.Add(1)
	h.chain.config.Log.Info("request sent again to the other next hop", zap.Uint64("exchange", g.request.ID), zap.String("hop", h.Name), zap.Stringer("uri", p.address))
	g.begin(p)
	return true
}

func (g *group) spent() time.Duration { return time.Since(g.request.Arrival) }

// forget ends the attempt without telling the next proxy.
func (g *group) forget() {
	if f, ok := g.attempt.cancel.(exchange.Forgetter); ok {
		f.Forget()
		return
	}
	g.attempt.cancel.Cancel()
}

// finish ends the exchange.
func (g *group) finish(err error) {
	if g.over {
		return
	}
	g.over = true
	e := g.hop.chain.config.Engine
	e.Unschedule(&g.end)
	e.Unschedule(&g.watch)
	g.sink.End(err)
}

// timeUp is the end of T': the proxy's own timer counts, not what the next proxy
// was told (GP-100). The Token towards the next proxy stays in use a little longer
// (GP-93), and as long as there is an observation (GP-105).
func (g *group) timeUp() {
	if g.over {
		return
	}
	if g.observed {
		g.late = true
		return
	}
	g.finish(nil)
}

// Cancel implements exchange.Canceler: the next proxy gets an Early Stop (GP-103).
func (g *group) Cancel() {
	g.serial.DoAlways(func() {
		if g.over {
			return
		}
		g.hop.Stats.Stopped.Add(1)
		g.finish(exchange.ErrCanceled)
		g.attempt.cancel.Cancel()
	})
}

// Acknowledge implements exchange.Acknowledged.
func (a *attempt) Acknowledge() {
	a.acked.Store(true)
	a.peer.alive()
}

// Respond implements exchange.Sink. It never asks for the end, because that would
// be told to the next proxy.
func (a *attempt) Respond(p *exchange.Response) exchange.Verdict {
	if !a.acked.Load() {
		a.Acknowledge()
	} else {
		a.peer.alive()
	}
	g := a.group
	if !g.serial.Do(func() { g.respond(a, p) }, func() func() { q := p.Clone(); return func() { g.respond(a, q) } }) {
		g.hop.Stats.Dropped.Add(1)
	}
	return exchange.Continue
}

// End implements exchange.Sink.
func (a *attempt) End(err error) { a.group.serial.DoAlways(func() { a.group.ended(a, err) }) }

// ended deals with the end of an attempt.
func (g *group) ended(a *attempt, err error) {
	if g.over || a != g.attempt {
		return
	}
	if err == nil || errors.Is(err, exchange.ErrCanceled) || !lost(err, a.acked.Load(), false) {
		g.finish(err)
		return
	}
	f := unreachable(err)
	a.peer.failed(a.sent, f)
	if g.relayed == 0 && g.move() {
		return
	}
	g.finish(f)
}

// respond takes a response of the next proxy.
func (g *group) respond(a *attempt, p *exchange.Response) {
	switch {
	case a != g.attempt:
		g.misbehaves(excess)
		return
	case g.over:
		g.misbehaves(late)
		return
	}
	q := *p
	q.GroupPort = g.port
	named := g.name(&q)
	notification := q.Code>>5 == 2 && wire.Has(q.Options, wire.Observe)
	switch {
	case !named && g.unnamed(&q):
		return
	case g.silent():
		g.misbehaves(excess) // what was not asked for
		return
	case g.late && !notification && q.Code>>5 == 2:
		g.misbehaves(late)
		return
	}
	g.observed = g.observed || notification
	g.relayed++
	g.hop.Stats.Responses.Add(1)
	if g.sink.Respond(&q) == exchange.Stop {
		g.finish(nil)
		g.attempt.cancel.Cancel()
	}
}

// unnamed deals with a response that does not say which server it is from: the
// next proxy's own. It reports false if it is to be passed on as a server's
// nevertheless.
func (g *group) unnamed(p *exchange.Response) bool {
	h := g.hop
	switch {
	case h.Dialect == exchange.Legacy && p.Code>>5 == 2 && p.Code != codes.Valid:
		g.misbehaves(unnamed)
		return false // the older generation does not always tell (GP-123)
	case g.relayed > 0:
		g.misbehaves(excess)
		return true
	}
	numbers := h.chain.config.Numbers
	value, timed := wire.First(p.Options, numbers.MulticastTimeout)
	_, tagged := wire.First(p.Options, numbers.GroupETag)
	switch {
	case p.Code == codes.ProxyingNotSupported && timed:
		g.tooShort(value)
	case timed:
		g.misbehaves(nonsense)
		g.refuse(exchange.Failf(exchange.BadResponse, "the next proxy does not take the timeout it is given"))
	case p.Code == codes.Valid && tagged, p.Code>>5 != 2: // GP-104; GP-39
		p.GroupPort, p.From = 0, netip.AddrPort{}
		h.Stats.Responses.Add(1)
		g.relayed++
		g.sink.Respond(p)
		g.forget()
		g.finish(nil)
	default:
		g.misbehaves(unnamed)
		g.refuse(exchange.Failf(exchange.BadResponse, "the next proxy does not say which server answered"))
	}
	return true
}

// refuse ends an exchange that the next proxy cannot carry out.
func (g *group) refuse(f *exchange.Failure) {
	g.hop.chain.config.Log.Info("unusable response of the next hop", zap.Uint64("exchange", g.request.ID), zap.String("hop", g.hop.Name), zap.String("reason", f.Detail))
	g.forget()
	g.finish(f)
}

// tooShort deals with a refusal of the timeout that the next proxy was told: with
// a longer one if there is room, or by asking the client for more (GP-97, GP-98).
func (g *group) tooShort(value []byte) {
	h := g.hop
	h.Stats.TooShort.Add(1)
	m, ok := wire.Uint(value)
	least, fits := g.window.upwards(m)
	if !ok || m <= g.window.told || !fits {
		g.misbehaves(nonsense)
		g.refuse(exchange.Failf(exchange.BadResponse, "the next proxy refused the timeout and asks for none that would do"))
		return
	}
	if g.window.raise(m, g.spent()) {
		h.Stats.Repeats.Add(1)
		p := g.attempt.peer
		g.forget()
		g.begin(p)
		return
	}
	g.forget()
	g.finish(&exchange.Failure{Reason: exchange.TimeoutTooShort, MinTimeout: least, Detail: "the timeout is too short for the proxies behind this one"})
}
