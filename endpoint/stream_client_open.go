package endpoint

import (
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// This file has what a StreamClient does for calls that stay open after a
// response.

// admitOpen counts an observation, or makes the registration a plain request
// when there are too many. Called under the lock.
func (c *StreamClient) admitOpen(k *streamCall, m *wire.Message) {
	switch {
	case k.open == nil || k.open.registration == nil:
	case c.observations >= c.config.Observations:
		c.config.Stats.ObservationsRefused.Add(1)
		k.open = k.open.plain(m)
	default:
		c.observations++
		c.config.Stats.Observations.Add(1)
	}
}

// forgetOpen undoes what an open call has taken, called under the lock while it
// is still in its table.
func (c *StreamClient) forgetOpen(k *streamCall) {
	if k.open.registration != nil {
		c.observations--
		c.config.Stats.Observations.Add(-1)
	}
	if _, drifts := c.adrift[k]; k.open.established && !drifts {
		k.link.standing--
	}
}

func (c *StreamClient) established(k *streamCall) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return k.open.established
}

// openResponse takes a response for an open call. Called under the lock, which
// it lets go of.
func (l *link) openResponse(s *Stream, k *streamCall, m *wire.Message) {
	c, o := l.client, k.open
	stood := o.established
	what := o.judge(m, time.Now(), true) // FP-64
	if what == fateLast {
		c.remove(k)()
	} else {
		if o.established {
			c.config.Engine.Schedule(&k.deadline, o.due)
		}
		if o.established && !stood {
			l.standing++
		}
		c.mu.Unlock()
		if !stood {
			s.closeIfReleased()
		}
	}
	if !o.deliver(k.sink, m, l.key.addr, what == fateLast, func() { k.stop(nil) }) {
		c.config.Stats.NotificationsDropped.Add(1)
	}
}

// stop ends a call that nobody is interested in any more, and tells the server
// if it would go on (FP-67).
func (k *streamCall) stop(err error) {
	c, o := k.client, k.open
	c.mu.Lock()
	l := k.link
	stream := l.stream
	c.mu.Unlock()
	if !c.take(k) {
		return
	}
	k.end(err)
	if o == nil || stream == nil || !stream.usable() {
		return
	}
	var m wire.Message
	switch {
	case o.group && c.config.GroupStop != nil && !o.silent:
		m = wire.Message{Code: codes.GET, Options: c.config.GroupStop}
	case o.registration != nil:
		m = *o.registration.end()
	default:
		return
	}
	d := &streamCall{client: c, sink: discard{}, token: k.token, sealing: k.sealing}
	d.deadline.Fire = d
	c.mu.Lock()
	if l.ended || l.calls[d.token] != nil {
		c.mu.Unlock()
		return
	}
	l.enter(d)
	c.config.Engine.Schedule(&d.deadline, time.Now().Add(c.config.Timeout))
	c.mu.Unlock()
	d.send(stream, &m)
}

// setAdrift keeps the observations of a connection that has ended, and takes
// them out of calls, whose others end with it. Called under the lock.
func (c *StreamClient) setAdrift(calls map[uint64]*streamCall) {
	if c.ctx.Err() != nil {
		for _, k := range calls {
			if k.open != nil {
				c.forgetOpen(k)
			}
		}
		return
	}
	now := time.Now()
	for token, k := range calls {
		switch o := k.open; {
		case o == nil:
		case !o.established || o.failures >= maxRenewalFailures:
			c.forgetOpen(k)
		default:
			delete(calls, token)
			k.link.standing--
			c.adrift[k] = struct{}{}
			o.failures++
			o.renewing = false
			o.due = now.Add(reconnectPause())
			c.config.Engine.Schedule(&k.deadline, o.due)
		}
	}
}

var _ exchange.Renewer = (*streamCall)(nil)

// Renew implements exchange.Renewer.
func (k *streamCall) Renew() {
	c := k.client
	c.mu.Lock()
	if o := k.open; o != nil && k.link.calls[k.token] == k && o.established && !o.renewing {
		o.due = time.Now()
		c.config.Engine.Schedule(&k.deadline, o.due)
	}
	c.mu.Unlock()
}

// openExpired does what is due for an open call: an observation is renewed
// (FP-65), over a new connection if the old one is lost, and a group request is
// over.
func (k *streamCall) openExpired(now time.Time) {
	c, o := k.client, k.open
	c.mu.Lock()
	_, drifts := c.adrift[k]
	switch {
	case !drifts && k.link.calls[k.token] != k, o.established && now.Before(o.due):
		c.mu.Unlock()
		return
	case !o.established:
		c.mu.Unlock()
		var err error
		if !o.group {
			err = errNoAnswer
		}
		k.endWith(err)
		return
	case o.renewing && o.failures >= maxRenewalFailures:
		c.mu.Unlock()
		k.endWith(errNoAnswer)
		return
	case o.renewing:
		o.failures++
	}
	l := k.link
	if drifts {
		var failure *exchange.Failure
		if l, failure = c.linkTo(l.key, l.opener); failure != nil {
			o.failures++
			if o.failures > maxRenewalFailures {
				c.mu.Unlock()
				k.endWith(failure)
				return
			}
			o.due = now.Add(renewalPause())
			c.config.Engine.Schedule(&k.deadline, o.due)
			c.mu.Unlock()
			return
		}
		delete(c.adrift, k)
		k.request = o.registration.message()
		l.standing++
		l.enter(k)
	}
	c.config.Stats.ObservationsRenewed.Add(1)
	o.renewing = true
	o.due = now.Add(c.config.Timeout)
	c.config.Engine.Schedule(&k.deadline, o.due)
	stream := l.stream
	c.mu.Unlock()
	if stream != nil {
		k.send(stream, o.registration.message())
	}
}
