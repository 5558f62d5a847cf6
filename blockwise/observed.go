package blockwise

import (
	"sync/atomic"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// observed is the sink of an observation at one server, and its canceler: the
// rest of a notification that is the first of several blocks is fetched (RFC
// 7959 §2.6, §3.4). A newer notification takes the place of one whose body is
// not there yet. Its fields are touched by what serial runs, but for those that
// never change.
type observed struct {
	upstream *Upstream
	sink     exchange.Sink
	serial   exchange.Serial
	stopped  atomic.Bool // the sink said Stop

	leg     exchange.Canceler // nil until the leg has returned it
	body    *notifiedBody     // being fetched, nil for none
	any     bool              // a response was handed on
	over    bool              // the leg has ended without an error
	ended   bool
	unready bool // Cancel came before leg was set
	kept    exchange.Kept
}

var _ exchange.Renewer = (*observed)(nil)

// observe makes an exchange of a registration.
func (u *Upstream) observe(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	o := &observed{upstream: u, sink: w}
	o.kept.Keep(r, nil, perBlock)
	leg := u.next.Exchange(r, o)
	o.serial.DoAlways(func() {
		o.leg = leg
		if o.unready || o.stopped.Load() {
			leg.Cancel()
		}
	})
	return o
}

// Cancel implements exchange.Canceler.
func (o *observed) Cancel() {
	o.serial.DoAlways(func() {
		switch {
		case o.over && o.body != nil:
			o.end(exchange.ErrCanceled)
		case o.leg != nil:
			o.leg.Cancel()
		default:
			o.unready = true
		}
	})
}

// Renew implements exchange.Renewer.
func (o *observed) Renew() {
	o.serial.DoAlways(func() {
		if r, ok := o.leg.(exchange.Renewer); ok {
			r.Renew()
		}
	})
}

// Respond implements exchange.Sink. A response that is dropped because too many
// wait is followed by newer ones.
func (o *observed) Respond(p *exchange.Response) exchange.Verdict {
	o.serial.Do(func() { o.take(p) }, func() func() { q := p.Clone(); return func() { o.take(q) } })
	if o.stopped.Load() {
		return exchange.Stop
	}
	return exchange.Continue
}

// take hands on a response, or begins to fetch the rest of its body. p is
// borrowed.
func (o *observed) take(p *exchange.Response) {
	if o.ended || o.stopped.Load() {
		return
	}
	o.abandon()
	if _, more, err := opening(p, o.upstream.read); err != nil || !more {
		o.hand(withoutBlocks(p))
		return
	}
	b := &notifiedBody{of: o}
	if v, ok := wire.First(p.Options, wire.Observe); ok {
		b.observe, b.notifies = append([]byte(nil), v...), true
	}
	o.body = b
	b.operation = newOperation(o.upstream, b, o.kept.Request())
	if next := b.operation.answered(p, b.operation.request.Method == wire.FETCH); next != nil {
		b.operation.steps.serial.DoAlways(next)
	}
}

// abandon gives up the body that is being fetched.
func (o *observed) abandon() {
	if b := o.body; b != nil {
		o.body = nil
		b.operation.steps.Cancel()
	}
}

func (o *observed) hand(p *exchange.Response) {
	o.any = true
	if o.sink.Respond(p) == exchange.Stop && !o.stopped.Swap(true) && o.leg != nil {
		o.leg.Cancel() // the response may not have come from its Respond
	}
}

// fetched takes the whole body of a notification.
func (o *observed) fetched(b *notifiedBody, p *exchange.Response) {
	if o.body != b || o.ended || o.stopped.Load() {
		return
	}
	if b.notifies && p.Code>>5 == 2 {
		q := *p
		q.Options = withOption(p.Options, wire.Observe, b.observe)
		p = &q
	}
	b.handed = true
	o.hand(p)
}

// fetchEnded ends the fetch of a body. A notification whose body could not be
// had is left out if there was one before it: its server notifies of what comes
// after it, and registering anew brings the current state (FP-65).
func (o *observed) fetchEnded(b *notifiedBody, err error) {
	if o.body != b || o.ended {
		return
	}
	o.body = nil
	switch {
	case o.over:
		o.end(err)
	case err != nil && !o.any:
		o.stopped.Store(true)
		if o.leg != nil {
			o.leg.Cancel()
		}
		o.end(err)
	}
}

// End implements exchange.Sink.
func (o *observed) End(err error) {
	o.serial.DoAlways(func() {
		switch {
		case o.ended:
		case err == nil && o.body != nil && !o.stopped.Load():
			o.over = true // the last response is being fetched
		default:
			if o.stopped.Load() {
				err = nil // it is the sink that wanted no more
			}
			o.end(err)
		}
	})
}

func (o *observed) end(err error) {
	o.ended = true
	o.abandon()
	o.sink.End(err)
}

// notifiedBody is the sink of the fetch of one notification.
type notifiedBody struct {
	of        *observed
	operation *operation
	observe   []byte // of the notification
	notifies  bool
	handed    bool // touched by what the serial of of runs
}

// Respond implements exchange.Sink.
func (b *notifiedBody) Respond(p *exchange.Response) exchange.Verdict {
	b.of.serial.Do(func() { b.of.fetched(b, p) }, func() func() { q := p.Clone(); return func() { b.of.fetched(b, q) } })
	return exchange.Stop
}

// End implements exchange.Sink.
func (b *notifiedBody) End(err error) { b.of.serial.DoAlways(func() { b.of.fetchEnded(b, err) }) }
