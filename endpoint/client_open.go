package endpoint

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// This file has what a Client does for calls that stay open after a response.

// admitOpen counts an observation, or makes the registration a plain
// request when there are too many. Called under the lock.
func (c *Client) admitOpen(k *call, m *wire.Message) {
	switch {
	case k.open == nil:
		return
	case k.open.registration == nil:
	case c.observations >= c.config.Observations:
		c.config.Stats.ObservationsRefused.Add(1)
		k.open = k.open.plain(m)
	default:
		c.observations++
		c.config.Stats.Observations.Add(1)
	}
	if k.open != nil {
		k.server.standing++
	}
}

// forgetOpen undoes what an open call has taken. Called under the lock.
func (c *Client) forgetOpen(k *call) {
	if k.open.registration != nil {
		c.observations--
		c.config.Stats.Observations.Add(-1)
	}
	if k.port != nil {
		k.port.keptTokens.Add(-1)
	}
	s := k.server
	if s.standing--; s.standing == 0 && s.outstanding == 0 {
		delete(c.busy, s.peer.Addr)
	}
}

// beginAgain gives a call its turn that has its source port already: a server
// knows an observation by port and Token. Called under the lock.
func (c *Client) beginAgain(k *call) error {
	s := k.server
	k.begun = time.Now()
	id, ok := s.lane.takeOn(k.begun, slices.Index(c.ports[s.family], k.port))
	if !ok {
		c.config.Stats.PortsExhausted.Add(1)
		return &exchange.Failure{Reason: exchange.Overloaded, Detail: "no Message ID is free towards this server", RetryAfter: time.Second}
	}
	k.id = id
	return nil
}

// openResponse takes a response for an open call. Called under the lock, which
// it lets go of.
func (c *Client) openResponse(k *call, m *wire.Message) {
	o, now := k.open, time.Now()
	from, id := k.server.peer.Addr, k.id
	var next *call
	var err error
	what := o.judge(m, now, false)
	switch what {
	case fateOld:
		c.mu.Unlock()
		c.config.Stats.NotificationsOld.Add(1)
		return
	case fateLast:
		next, err = c.remove(k)
	default:
		next, err = c.release(k) // NSTART counts what has had no response (FP-92)
		if o.established {
			c.config.Engine.Schedule(&k.deadline, o.due)
		}
	}
	c.mu.Unlock()
	if what == fateLast {
		c.config.Engine.Unschedule(&k.deadline)
	}
	k.port.Settle(from, id)
	if next != nil {
		c.send(next, next.request, err)
	}
	if !o.deliver(k.sink, m, from, what == fateLast, func() { k.stop(nil) }) {
		c.config.Stats.NotificationsDropped.Add(1)
	}
}

// stop ends a call that nobody is interested in any more, and tells the server
// if it would go on (FP-67).
func (k *call) stop(err error) {
	c := k.client
	if !c.take(k) {
		return
	}
	k.end(err)
	o := k.open
	switch {
	case o == nil || k.port == nil: // never sent
	case o.group && c.config.GroupStop != nil && !o.silent:
		c.tell(k, &wire.Message{Code: codes.GET, Options: c.config.GroupStop})
	case o.registration != nil:
		c.tell(k, o.registration.end())
	}
}

// tell sends a request with the Token of an ended call, whose response nobody
// waits for. If it is lost, the server's next notification is reset. It waits until
// nothing else waits for the server, so that many observations may end at once and
// keep up nobody; there are at most as many as there may be observations.
func (c *Client) tell(k *call, m *wire.Message) {
	m.Type = message.Confirmable
	d := &call{client: c, sink: discard{}, name: k.name, token: k.token, port: k.port, request: m, sealing: k.sealing}
	d.deadline.Fire = exchange.FireFunc(d.untold)
	nstart := c.config.NStart(k.server.peer.Addr)
	c.mu.Lock()
	s := c.serverOf(k.server.peer.Addr)
	d.server = s
	if c.closed || c.calls[d.token] != nil || len(s.leaving) >= max(c.config.Observations, c.config.Queue) {
		c.mu.Unlock()
		return
	}
	c.calls[d.token] = d
	until := time.Now().Add(c.config.TimeoutCON)
	if s.outstanding < max(nstart, 1) {
		c.start(d, m, nstart, until)
		return
	}
	c.config.Engine.Schedule(&d.deadline, until)
	d.waiting = true
	s.leaving = append(s.leaving, d)
	c.mu.Unlock()
}

// untold ends a call of tell whose time is over.
func (k *call) untold(now time.Time) {
	k.client.mu.Lock()
	if k.waiting {
		k.client.config.Stats.DeregistrationsUnsent.Add(1)
	}
	k.client.mu.Unlock()
	k.Fire(now)
}

// unqueue takes a call out of what waits for the server. Called under the client's
// lock.
func (s *server) unqueue(k *call) {
	k.waiting = false
	if i := slices.Index(s.waiting, k); i >= 0 {
		s.waiting = slices.Delete(s.waiting, i, i+1)
		return
	}
	if i := slices.Index(s.leaving, k); i >= 0 {
		s.leaving = slices.Delete(s.leaving, i, i+1)
	}
}

// start begins a call with a request of its own, or has it wait for its turn.
// Called under the lock, which it lets go of.
func (c *Client) start(k *call, m *wire.Message, nstart int, until time.Time) {
	s := k.server
	c.config.Engine.Schedule(&k.deadline, until)
	if s.outstanding >= max(nstart, 1) {
		k.waiting, k.request = true, m
		s.waiting, _, _ = exchange.Enqueue(s.waiting, k, netip.Addr{}, s.round, len(s.waiting)+1)
		c.mu.Unlock()
		return
	}
	err := c.begin(k)
	c.mu.Unlock()
	c.send(k, m, err)
}

var _ exchange.Renewer = (*call)(nil)

// Renew implements exchange.Renewer.
func (k *call) Renew() {
	c := k.client
	c.mu.Lock()
	if o := k.open; o != nil && c.calls[k.token] == k && o.established && !o.renewing && !o.due.Before(o.until) {
		o.due = time.Now()
		c.config.Engine.Schedule(&k.deadline, o.due)
	}
	c.mu.Unlock()
}

// openExpired does what is due for an open call: an observation is renewed
// (FP-65), a group request is over.
func (k *call) openExpired(now time.Time) {
	c, o := k.client, k.open
	s := k.server
	nstart := c.config.NStart(s.peer.Addr)
	c.mu.Lock()
	switch {
	case c.calls[k.token] != k:
		c.mu.Unlock()
		return
	case !o.established:
		c.mu.Unlock()
		var err error
		if !o.group || o.silent {
			err = errNoAnswer
		}
		k.finish(err)
		return
	case now.Before(o.due): // something came meanwhile
		c.mu.Unlock()
		return
	}
	if o.renewing {
		id := k.id
		c.mu.Unlock()
		if !k.retries(int(id), ErrNoAck) {
			k.finish(errNoAnswer)
		}
		return
	}
	if len(s.waiting) >= c.config.Queue {
		o.due = now.Add(renewalPause())
		c.config.Engine.Schedule(&k.deadline, o.due)
		c.mu.Unlock()
		return
	}
	c.config.Stats.ObservationsRenewed.Add(1)
	o.renewing, o.order = true, wire.NotificationOrder{} // the server may have started anew
	o.due = now.Add(c.config.TimeoutCON)
	c.start(k, o.registration.message(), nstart, o.due)
}

// sessionLost stands for a Message ID when the session with the server has ended.
const sessionLost = -1

// retries reports whether an observation outlives that the message could not be
// delivered: the registration is repeated later. id is that of the message.
func (k *call) retries(id int, err error) bool {
	c, o := k.client, k.open
	c.mu.Lock()
	if c.calls[k.token] != k || id != sessionLost && id != int(k.id) {
		c.mu.Unlock()
		return true // it is of no interest any more
	}
	if !o.established || errors.Is(err, ErrReset) || o.failures >= maxRenewalFailures {
		c.mu.Unlock()
		return false
	}
	o.failures++
	o.renewing = false
	now := time.Now()
	if id == sessionLost {
		o.due = now.Add(reconnectPause())
	} else {
		o.due = now.Add(renewalPause())
	}
	c.config.Engine.Schedule(&k.deadline, o.due)
	next, failure := c.release(k)
	if k.waiting {
		k.server.unqueue(k)
	}
	last := k.id
	c.mu.Unlock()
	k.port.Settle(k.server.peer.Addr, last)
	c.config.Log.Info("an observation is interrupted", zap.Stringer("server", k.server.peer.Addr), zap.NamedError("why", err))
	if next != nil {
		c.send(next, next.request, failure)
	}
	return true
}

// unsent ends a call that could not be sent; an observation tries again.
func (k *call) unsent(err error) {
	if k.open != nil && k.client.established(k) && k.retries(int(k.id), err) {
		return
	}
	k.finish(err)
}

func (c *Client) established(k *call) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return k.open.established
}
