package multicast

import (
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// groupObservation is what a transaction that observes has beside (GC-42): its
// Token stays in use after T' once a member has registered it (GP-64, GC-49). It
// is touched by what the serial of the transaction runs, but for request and
// counted.
type groupObservation struct {
	transaction *transaction
	request     exchange.Kept // the registration
	counted     bool          // in Leg.observations; guarded by the leg's lock

	established bool
	members     map[netip.AddrPort]*observed
	renewal     exchange.Deadline
}

// observed is one member that has registered the observation.
type observed struct {
	order wire.NotificationOrder // GC-43
	due   time.Time              // Max-Age is over and nothing has come
	asked bool                   // it was registered anew since it last answered
}

const (
	// maxObserved bounds the members of one observation; responses of further ones
	// are dropped and counted.
	maxObserved = 4096
	// defaultMaxAge is the Max-Age of a response that has none (RFC 7252 §5.10.5).
	defaultMaxAge = 60 * time.Second
)

// renewalPause is the random wait before a registration is repeated (GC-46).
func renewalPause() time.Duration {
	return 5*time.Second + rand.N(10*time.Second) //nolint:gosec // a spread in time is no secret
}

// admitObservation counts a registration, or makes it a plain request when there
// are too many. Called under the lock.
func (l *Leg) admitObservation(r *exchange.Request) bool {
	if !wire.IsRegistration(r.Method, r.Options) {
		return false
	}
	if l.observations >= l.config.Observations {
		l.config.Stats.ObservationsRefused.Add(1)
		r.Options = slices.DeleteFunc(slices.Clone(r.Options), func(o message.Option) bool { return o.ID == wire.Observe })
		return false
	}
	l.observations++
	l.config.Stats.Observations.Add(1)
	return true
}

func newGroupObservation(t *transaction, r *exchange.Request) *groupObservation {
	o := &groupObservation{transaction: t, counted: true, members: make(map[netip.AddrPort]*observed)}
	o.request.Keep(r, nil, nil)
	o.renewal.Fire = exchange.FireFunc(func(time.Time) { t.serial.DoAlways(o.expired) })
	return o
}

// take judges a response of a member: whether it is registered, or was until now, and
// ok is false for a response that was overtaken or is of a member too many. Run by the
// serial.
func (o *groupObservation) take(p *exchange.Response) (registered, ok bool) {
	stats := o.transaction.leg.config.Stats
	m := o.members[p.From]
	if !wire.IsNotification(p.Code, p.Options) {
		delete(o.members, p.From) // it does not observe, or not any more (GP-63)
		return m != nil, true
	}
	now := time.Now()
	if m == nil {
		if len(o.members) >= maxObserved {
			stats.Excess.Add(1)
			return false, false
		}
		m = &observed{}
		o.members[p.From] = m
	}
	if m.asked { // it may have started anew
		m.order = wire.NotificationOrder{}
	}
	if value, ok := wire.ObserveOf(p.Options); ok && !m.order.Newer(value, now) {
		stats.NotificationsOld.Add(1) // GC-43
		return true, false
	}
	maxAge := defaultMaxAge
	if v, ok := wire.First(p.Options, wire.MaxAge); ok {
		seconds, _ := wire.Uint(v)
		maxAge = time.Duration(seconds) * time.Second
	}
	m.due, m.asked = now.Add(maxAge+renewalPause()), false
	o.established = true
	o.plan()
	return true, true
}

// plan schedules the next renewal.
func (o *groupObservation) plan() {
	var next time.Time
	for _, m := range o.members {
		if next.IsZero() || m.due.Before(next) {
			next = m.due
		}
	}
	if !next.IsZero() {
		o.transaction.leg.config.Engine.Schedule(&o.renewal, next)
	}
}

// expired looks after the members that have sent nothing for too long: they are
// registered with again, and forgotten if they do not answer to that.
func (o *groupObservation) expired() {
	t := o.transaction
	if len(t.subscribers) == 0 {
		return
	}
	now, overdue := time.Now(), false
	for server, m := range o.members {
		switch {
		case now.Before(m.due):
		case m.asked:
			delete(o.members, server)
			t.leg.config.Stats.MembersLost.Add(1)
		default:
			overdue = true
		}
	}
	if overdue {
		o.renew(now)
	}
	if len(o.members) == 0 && o.established {
		t.endOpen(&exchange.Failure{Reason: exchange.NoAnswer, Detail: "no member of the group answers any more"})
		return
	}
	o.plan()
}

// renew multicasts the registration once more, with the same Token (GC-44), not
// sooner than members may take to answer to the one before (GC-46). That also
// reaches members that missed it or are new, in place of a request to each (GC-45).
func (o *groupObservation) renew(now time.Time) {
	t := o.transaction
	l := t.leg
	span := t.group.Leisure + roundTrip
	l.mu.Lock()
	earliest := t.lastSent.Add(span)
	again := !t.done && t.sent && !now.Before(earliest)
	if again {
		t.lastSent = now
		l.config.Stats.ObservationsRenewed.Add(1)
		l.transmit(t, o.request.Request(), false)
	}
	l.mu.Unlock()
	for _, m := range o.members {
		switch {
		case now.Before(m.due):
		case again:
			m.asked, m.due = true, now.Add(span+renewalPause())
		default:
			m.due = earliest
		}
	}
}

// endOpen ends the observations whose T' is over. Run by the serial.
func (t *transaction) endOpen(err error) {
	for _, s := range slices.Clone(t.subscribers) {
		if s.open {
			t.end(s, err)
		}
	}
}

var _ exchange.Renewer = (*subscriber)(nil)

// Renew implements exchange.Renewer.
func (s *subscriber) Renew() {
	t := s.transaction
	t.serial.DoAlways(func() {
		o := t.observation
		if o == nil || s.ended || !o.established {
			return
		}
		now := time.Now()
		for _, m := range o.members {
			if !m.asked {
				m.due = now
			}
		}
		o.expired()
	})
}

// deregister ends the observation of a transaction that nobody is interested in
// any more: with a group request with the same Token (GC-48, GP-66). Members that
// missed it learn it by the RST to their next notification. Called under the lock,
// before the Token is freed.
func (l *Leg) deregister(t *transaction) {
	o := t.observation
	if o == nil || !o.counted {
		return
	}
	o.counted = false
	l.observations--
	l.config.Stats.Observations.Add(-1)
	l.config.Engine.Unschedule(&o.renewal)
	if !t.sent || l.closed {
		return
	}
	r := o.request.Request()
	for i := range r.Options {
		if r.Options[i].ID == wire.Observe {
			r.Options[i].Value = []byte{wire.ObserveDeregister}
		}
	}
	l.transmit(t, r, false)
}
