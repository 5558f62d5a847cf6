package proxy

import (
	"errors"
	"slices"
	"sync"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"go.uber.org/zap"

	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/wire"
)

// observation is one client's observation of a resource at a single server (RFC
// 7641). It is the sink of its exchange. Until the first response is there it is
// a request like others; one that is no notification is its answer (FP-62).
//
// What comes too fast for the client waits, and the newest replaces what waits
// (FP-68).
type observation struct {
	front      *Front
	in         endpoint.Incoming
	context    string // as in clientToken
	id         uint64
	client     *exchange.Identity
	target     located // for the log
	noResponse uint32
	problem    bool
	next       *observation // see observers

	mu          sync.Mutex
	cancel      exchange.Canceler // nil until the exchange has begun, and after it
	registered  bool              // a notification was sent
	answered    bool              // the one response was sent instead
	outcome     outcome
	closed      bool   // nothing is sent any more
	ended       bool   // the exchange has ended
	last        bool   // what waits or is under way is the last response
	unconfirmed bool   // a confirmable notification waits for its ACK
	watched     bool   // see sent
	nons        uint8  // non-confirmable notifications in a row
	sent        uint16 // Message ID of the last separate notification, if watched
	sequence    uint32 // of the last notification
	format      uint32 // Content-Format of the representation, plus 1
	sentAt      moment
	confirmedAt moment        // when the client last showed that it is there
	askedAt     moment        // when it was last asked to; see Attend
	pause       time.Duration // between non-confirmable notifications
	waiting     *exchange.Response
	waitingAt   moment // when it came
	deadline    exchange.Deadline
}

// moment is a time in a third of the memory of time.Time, since there are many
// observations: since the epoch of the front, 0 for long ago.
type moment time.Duration

// longAgo is how long before the front was made its epoch is: more than an observer
// goes unasked.
const longAgo = interestInterval + time.Hour

func (f *Front) moment(t time.Time) moment { return moment(t.Sub(f.epoch)) }

func (f *Front) time(m moment) time.Time { return f.epoch.Add(time.Duration(m)) }

// key is what tells x apart from others.
func (x *observation) key() clientToken {
	return clientToken{x.in.Origin(), string(x.in.Token), x.context}
}

const (
	// interestInterval is how long a client may go without a confirmable
	// notification: less than the 24 hours of FP-68, since one may have to be
	// asked for.
	interestInterval = 23 * time.Hour
	// maxNonConfirmable is the number of non-confirmable notifications after
	// which one asks whether the client is still interested (GP-65).
	maxNonConfirmable = 16
	// notificationPause is the time between two non-confirmable notifications to
	// a client whose round trip is not known (FP-68).
	notificationPause = 3 * time.Second
	// maxRoundTrip is above what counts as the round trip of a confirmable
	// notification that was not repeated: ACK_TIMEOUT.
	maxRoundTrip = 2 * time.Second
	// sequenceMask keeps the value of Observe within 24 bits (FP-63).
	sequenceMask = 1<<24 - 1
)

// registers reports whether a request becomes an observation: one that wants the
// responses, while there is room. Where it does not, the request goes on as a
// plain one.
func (f *Front) registers(r *exchange.Request, h *hop, replaces bool) bool {
	if !h.registers {
		return false
	}
	r.Replaces = replaces
	switch {
	case h.allowance != nil: // notifications are for addresses that are proven (FP-86)
	case h.timeout.Present && h.timeout.Seconds == 0, wire.Suppressed(h.noResponse, codes.Content): // GP-36
	case f.takePlace() || replaces:
		return true
	default:
		f.Stats.Observers.Add(-1)
		f.Stats.ObserversRefused.Add(1)
	}
	r.Options = withoutObserve(r.Options)
	return false
}

// takePlace counts an observation and reports whether there was room for it.
func (f *Front) takePlace() bool {
	taken := f.Stats.Observers.Add(1)
	f.attend(taken)
	return taken <= int64(f.MaxObservers)
}

// replaced finds the observation that a request with the same Token ends, or
// takes the place of (FP-67), and takes it out of the table; nil for none. A
// further block of a notification is asked for beside it.
func (f *Front) replaced(rx *endpoint.Reception, m *wire.Message, h *hop) *observation {
	if f.Stats.Observers.Load() == 0 || h.further {
		return nil
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.observers.take(clientToken{rx.Origin(), string(m.Token), h.context})
}

// observe begins an observation. Its sequence goes on after that of old, which it
// replaces, if there is one.
func (f *Front) observe(rx *endpoint.Reception, m *wire.Message, r *exchange.Request, h *hop, next exchange.Handler, old *observation) {
	x := &observation{front: f, context: h.context, id: r.ID, client: r.Client, noResponse: h.noResponse, problem: h.problem,
		// Numbers that grow with time are new to a client also after a restart of
		// the proxy, if it does not notify more than once in a second.
		sequence: uint32(r.Arrival.Unix()) & sequenceMask, pause: notificationPause}
	if old != nil {
		old.mu.Lock()
		x.sequence, x.pause = old.sequence, old.pause
		old.mu.Unlock()
	}
	x.deadline.Fire = x
	x.in.Accept(rx, m)
	cancel := next.Exchange(r, x)
	f.mu.Lock()
	x.mu.Lock()
	if !x.ended {
		x.cancel = cancel
		f.observers.add(x)
	}
	x.mu.Unlock()
	f.mu.Unlock()
	x.in.CancelWhenGone(cancel) // FP-67
	x.in.AckLater()
}

// Locate implements exchange.Locator.
func (x *observation) Locate(t *exchange.Target) { x.target = located{t.Scheme, t.Host, t.Addr} }

// Respond implements exchange.Sink.
func (x *observation) Respond(p *exchange.Response) exchange.Verdict {
	x.mu.Lock()
	defer x.mu.Unlock()
	notification := wire.IsNotification(p.Code, p.Options)
	switch {
	case x.closed || x.last || x.answered:
		return exchange.Stop
	case !x.registered && !notification:
		x.answer(p)
		return exchange.Stop
	case !x.registered:
		x.register(p)
		return exchange.Continue
	case notification && x.formatOf(p) != x.format && p.Code != codes.Valid:
		// FP-63; RFC 7641 §4.2: it ends with 4.06.
		x.notify(&exchange.Response{Code: codes.NotAcceptable, Payload: []byte("the Content-Format has changed")}, true)
		return exchange.Stop
	}
	x.notify(p, !notification)
	if x.last {
		return exchange.Stop
	}
	return exchange.Continue
}

// formatOf is the Content-Format of a response plus 1, 0 for none.
func (x *observation) formatOf(p *exchange.Response) uint32 {
	v, ok := wire.First(p.Options, wire.ContentFormat)
	if !ok {
		return 0
	}
	n, _ := wire.Uint(v)
	return n + 1
}

// answer sends the response to a request that is no observation. Called under
// the lock.
func (x *observation) answer(p *exchange.Response) {
	x.answered, x.outcome = true, outcomeOf(p.Code)
	if wire.Suppressed(x.noResponse, p.Code) { // FP-84
		x.in.Finish()
		return
	}
	x.front.Stats.Responses.Add(1)
	x.in.Respond(&wire.Message{Code: p.Code, Options: withoutObserve(p.Options), Payload: p.Payload}, x.typeOf(), nil)
}

// withoutObserve returns options without Observe, which only notifications have.
func withoutObserve(options message.Options) message.Options {
	if !wire.Has(options, wire.Observe) {
		return options
	}
	return slices.DeleteFunc(slices.Clone(options), func(o message.Option) bool { return o.ID == wire.Observe })
}

func (x *observation) typeOf() message.Type {
	if x.in.Confirmable {
		return message.Confirmable
	}
	return message.NonConfirmable
}

// register sends the first notification. Called under the lock.
func (x *observation) register(p *exchange.Response) {
	f := x.front
	x.registered, x.format = true, x.formatOf(p)
	f.Stats.Exchanges[unicastExchange][outcomeOf(p.Code)].Add(1)
	f.done() // what lasts is no exchange that ends
	s := relayScratchPool.Get().(*relayScratch)
	defer s.release()
	now := time.Now()
	m := x.encode(s, p, 0)
	f.Stats.Notifications.Add(1)
	id, separate, _ := x.in.Begin(m, x.typeOf(), x)
	x.sentAt = f.moment(now)
	x.confirmedAt = x.sentAt
	if separate {
		x.sent, x.watched, x.unconfirmed = id, true, x.in.Confirmable
	}
	f.Log.Debug("observation", zap.Uint64("exchange", x.id), zap.Stringer("client", x.in.Peer.Addr), zap.Stringer("target", x.target))
	x.plan(now)
}

// notify sends a notification, or the last response, or has it wait. p is
// borrowed. Called under the lock.
func (x *observation) notify(p *exchange.Response, last bool) {
	now := time.Now()
	x.last = x.last || last
	if x.waiting != nil {
		x.front.Stats.NotificationsReplaced.Add(1)
		x.waiting = nil
	}
	if x.in.Reliable() || !x.unconfirmed && (last || x.confirmable(now) || !now.Before(x.mayGo())) {
		if x.send(p, 0, now) {
			return
		}
	}
	x.waiting, x.waitingAt = p.Clone(), x.front.moment(now)
	x.plan(now)
}

// confirmable reports whether the next notification has to be. Called under the
// lock.
func (x *observation) confirmable(now time.Time) bool {
	return x.in.Confirmable || x.last || x.nons >= maxNonConfirmable || x.askedAt > x.confirmedAt || now.Sub(x.front.time(x.confirmedAt)) >= interestInterval
}

// send sends a notification that came so long ago. It reports false when there
// is no room for it. Called under the lock.
func (x *observation) send(p *exchange.Response, age time.Duration, now time.Time) bool {
	f := x.front
	s := relayScratchPool.Get().(*relayScratch)
	defer s.release()
	m := x.encode(s, p, age)
	typ := message.NonConfirmable
	if x.confirmable(now) {
		typ = message.Confirmable
	}
	x.settle()
	id, err := x.in.Relay(m, typ, x)
	switch {
	case x.in.Reliable():
		x.sentAt = f.moment(now)
		f.Stats.Notifications.Add(1)
		if x.last {
			x.close()
		}
		return true
	case err != nil:
		x.sentAt = f.moment(now)
		return false
	}
	f.Stats.Notifications.Add(1)
	x.sent, x.watched, x.sentAt = id, true, f.moment(now)
	x.unconfirmed = typ == message.Confirmable
	x.nons++
	if x.unconfirmed {
		x.nons = 0
	}
	x.plan(now)
	return true
}

// settle takes no more interest in the notification before. Called under the
// lock.
func (x *observation) settle() {
	if x.watched {
		x.watched = false
		x.in.Settle(x.sent)
	}
}

// encode makes the message of a notification: with a number of its own (FP-63),
// and a Max-Age that is as old as it is. Called under the lock.
func (x *observation) encode(s *relayScratch, p *exchange.Response, age time.Duration) *wire.Message {
	s.options, s.values = s.options[:0], s.values[:0]
	seconds := uint32(age / time.Second)
	aged := false
	for _, o := range p.Options {
		switch {
		case o.ID == wire.Observe:
			continue
		case o.ID == wire.MaxAge && seconds > 0:
			aged = true
			v, _ := wire.Uint(o.Value)
			s.values = wire.AppendUint(s.values, v-min(v, seconds))
			o.Value = s.values[:len(s.values):len(s.values)]
		}
		s.options = append(s.options, o)
	}
	if seconds > 0 && !aged {
		s.options = insertOption(s.options, wire.MaxAge, wire.AppendUint(nil, defaultMaxAge-min(defaultMaxAge, seconds)))
	}
	if wire.IsNotification(p.Code, p.Options) {
		s.options = insertOption(s.options, wire.Observe, x.number())
	}
	s.message = wire.Message{Code: p.Code, Options: s.options, Payload: p.Payload}
	return &s.message
}

// number is the value of the next Observe option. On a connection, where the order is
// given, nobody needs it (FP-64), but go-coap takes notifications without it for old
// ones.
func (x *observation) number() []byte {
	x.sequence = (x.sequence + 1) & sequenceMask
	return wire.AppendUint(nil, x.sequence)
}

// defaultMaxAge is the Max-Age of a response that has none (RFC 7252 §5.10.5).
const defaultMaxAge = 60

// plan schedules what has to be done next. Called under the lock.
func (x *observation) plan(now time.Time) {
	if x.closed || x.in.Reliable() || x.unconfirmed {
		return // an ACK or its absence comes first
	}
	at := x.front.time(x.confirmedAt).Add(interestInterval)
	if x.waiting != nil {
		at = x.mayGo()
	}
	if at.Before(now) { // it was not sent, or has been asked for
		at = now.Add(max(x.pause, time.Second))
	}
	x.front.Engine.Schedule(&x.deadline, at)
}

// mayGo is when the next non-confirmable notification may be sent. Called under the
// lock.
func (x *observation) mayGo() time.Time { return x.front.time(x.sentAt).Add(x.pause) }

// Fire implements exchange.Firer: it sends what waits, or asks for something to send
// (FP-68).
func (x *observation) Fire(now time.Time) {
	x.mu.Lock()
	if x.closed || x.unconfirmed {
		x.mu.Unlock()
		return
	}
	var renewer exchange.Renewer
	switch {
	case x.waiting != nil && !now.Before(x.mayGo()):
		x.sendWaiting(now)
	case x.waiting == nil && now.Sub(x.front.time(x.confirmedAt)) >= interestInterval:
		renewer, _ = x.cancel.(exchange.Renewer)
		x.front.Engine.Schedule(&x.deadline, now.Add(time.Hour/4))
	default:
		x.plan(now)
	}
	x.mu.Unlock()
	if renewer != nil {
		renewer.Renew()
	}
}

// sendWaiting sends what waits. Called under the lock.
func (x *observation) sendWaiting(now time.Time) {
	p := x.waiting
	x.waiting = nil
	if !x.send(p, now.Sub(x.front.time(x.waitingAt)), now) {
		x.waiting = p
		x.plan(now)
	}
}

// Acknowledged implements endpoint.Watcher: the client is there.
func (x *observation) Acknowledged(id uint16) {
	now := time.Now()
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.closed || !x.watched || id != x.sent {
		return
	}
	x.watched, x.unconfirmed, x.confirmedAt = false, false, x.front.moment(now)
	if trip := now.Sub(x.front.time(x.sentAt)); trip < maxRoundTrip {
		x.pause = trip
	}
	switch {
	case x.waiting != nil:
		x.sendWaiting(now)
	case x.last:
		x.close()
	default:
		x.plan(now)
	}
}

// Failed implements endpoint.Watcher: the client has reset a notification, never
// acknowledged one or is gone (FP-67).
func (x *observation) Failed(id uint16, err error) {
	x.mu.Lock()
	if x.closed || !x.watched || id != x.sent {
		x.mu.Unlock()
		return
	}
	x.watched = false
	x.close()
	cancel := x.cancel
	x.mu.Unlock()
	if errors.Is(err, endpoint.ErrReset) {
		x.front.Stats.ObserversReset.Add(1)
	} else {
		x.front.Stats.ObserversLost.Add(1)
	}
	x.front.Log.Debug("an observer is gone", zap.Uint64("exchange", x.id), zap.Stringer("client", x.in.Peer.Addr), zap.Error(err))
	if cancel != nil {
		cancel.Cancel()
	}
}

// close ends what is sent. Called under the lock.
func (x *observation) close() {
	x.closed, x.waiting = true, nil
	x.settle()
	x.front.Engine.Unschedule(&x.deadline)
	if x.registered {
		x.in.Finish()
	}
}

// end ends the observation for a reason on the client's side: its client said so
// in another request, or the proxy stops and says so in a last response.
func (x *observation) end(last *exchange.Response) {
	x.mu.Lock()
	cancel := x.cancel
	switch {
	case x.closed:
	case last != nil && x.registered:
		s := relayScratchPool.Get().(*relayScratch)
		_, _ = x.in.Relay(x.encode(s, last, 0), message.NonConfirmable, nil)
		s.release()
		x.close()
	case x.registered:
		x.close()
	case last != nil:
		x.answer(last)
	default:
		x.closed = true
		x.in.Finish()
	}
	x.mu.Unlock()
	if cancel != nil {
		cancel.Cancel()
	}
}

// End implements exchange.Sink.
func (x *observation) End(err error) {
	f := x.front
	f.mu.Lock()
	f.observers.remove(x)
	x.mu.Lock()
	f.mu.Unlock()
	defer x.mu.Unlock()
	x.ended, x.cancel = true, nil
	f.Stats.Observers.Add(-1)
	if !x.registered {
		defer func() {
			f.Stats.Exchanges[unicastExchange][x.outcome.ended(err)].Add(1)
			f.done()
		}()
	}
	switch {
	case x.closed || x.answered || x.last:
	case errors.Is(err, exchange.ErrCanceled) || err == nil && !x.registered:
		x.close()
		x.in.Finish()
	case !x.registered:
		x.answer(f.fail(x.id, x.in.Peer.Addr, x.client, &x.target, err, x.problem))
	case err == nil:
		err = exchange.Failf(exchange.Internal, "the observation ended")
		fallthrough
	default:
		x.notify(f.fail(x.id, x.in.Peer.Addr, x.client, &x.target, err, x.problem), true)
	}
}

// endObservers ends all observations: the proxy stops.
func (f *Front) endObservers() {
	f.mu.Lock()
	all := slices.Collect(f.observers.all())
	f.observers.clear()
	groups := make([]*groupRequest, 0, len(f.running))
	for _, x := range f.running {
		if x.observes {
			groups = append(groups, x)
		}
	}
	f.mu.Unlock()
	failure := &exchange.Failure{Reason: exchange.Overloaded, Detail: "shutting down", RetryAfter: 10 * time.Second}
	for _, x := range all {
		x.end(failureResponse(failure, f.Numbers))
	}
	for _, x := range groups {
		x.sayLast(failureResponse(failure, f.Numbers))
		x.replace()
	}
	f.Engine.Flush()
}
