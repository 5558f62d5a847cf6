package cache

import (
	"time"

	"coapproxy/exchange"
)

// groupShare is what a subscriber has of a group exchange. held is touched by what
// the serial of shared runs.
type groupShare struct {
	until    time.Time // end of its T'
	deadline exchange.Deadline
	held     []held
}

// held is a stored response that waits for its time in a group exchange.
type held struct {
	entry *entry
	at    time.Time
}

// holdAll keeps the entries that exist when a group request goes out (GP-78).
func holdAll(entries []*entry) []held {
	if len(entries) == 0 {
		return nil
	}
	all := make([]held, len(entries))
	for i, e := range entries {
		all[i].entry = e
	}
	return all
}

// begin gives a late subscriber the latest response of every server that has
// answered (GC-82, GP-68, FP-62), and plans the rest.
func (s *shared) begin(u *subscriber) {
	if u.begun || u.ended {
		return
	}
	u.begun = true
	c := s.cache
	now := time.Now()
	c.mu.Lock()
	latest := make([]*entry, 0, s.heard.len())
	for e := range s.heard.all() {
		if e != nil && e.fresh(now) {
			latest = append(latest, e)
		}
	}
	c.mu.Unlock()
	for _, e := range latest {
		s.serve(u, e, now)
		if u.ended {
			return
		}
	}
	if s.group != nil {
		s.plan(u)
	}
}

// plan sends the stored responses that expire before T' now and holds the others
// back until shortly before it (GP-76, GP-77, GP-78).
func (s *shared) plan(u *subscriber) {
	if u.ended {
		return
	}
	now := time.Now()
	waiting := u.held[:0]
	for _, h := range u.held {
		if !h.entry.expires.Before(u.until) {
			waiting = append(waiting, h)
			continue
		}
		if s.answered(h.entry) {
			continue
		}
		s.serve(u, h.entry, now)
		if u.ended {
			return
		}
	}
	u.held = waiting
	s.cache.config.Stats.Deferred.Add(uint64(len(waiting)))
	gap := margin(u.until.Sub(now))
	for i := range waiting { // GP-79
		waiting[i].at = u.until.Add(-gap + gap*time.Duration(i)/time.Duration(len(waiting)))
	}
	u.deadline.Fire = exchange.FireFunc(func(time.Time) { s.serial.DoAlways(func() { s.tick(u) }) })
	s.arm(u)
}

// margin is how long before T' the sending of held back responses begins
// (GP-79).
func margin(timeout time.Duration) time.Duration {
	return min(time.Second, max(100*time.Millisecond, timeout/20))
}

// answered reports whether the server of an entry has answered in the exchange.
func (s *shared) answered(e *entry) bool {
	s.cache.mu.Lock()
	defer s.cache.mu.Unlock()
	_, ok := s.heard.of(e.server)
	return ok
}

// arm schedules what u waits for: its next held back response, or the end of its
// T' if the upstream exchange lasts longer.
func (s *shared) arm(u *subscriber) {
	if u.ended || u.deadline.Fire == nil {
		return
	}
	s.cache.mu.Lock()
	outlives := s.observe || s.group.until.After(u.until)
	s.cache.mu.Unlock()
	switch {
	case len(u.held) > 0:
		s.cache.config.Engine.Schedule(&u.deadline, u.held[0].at)
	case outlives && !u.observed:
		s.cache.config.Engine.Schedule(&u.deadline, u.until)
	}
}

// armAll looks at every subscriber's deadline again, because the upstream
// exchange has been made to last longer.
func (s *shared) armAll() {
	s.cache.mu.Lock()
	subscribers := s.subscribers
	s.cache.mu.Unlock()
	for _, u := range subscribers {
		s.arm(u)
	}
}

// tick does what is due for u.
func (s *shared) tick(u *subscriber) {
	if u.ended {
		return
	}
	now := time.Now()
	for len(u.held) > 0 && !now.Before(u.held[0].at) {
		s.release(u, now)
		if u.ended {
			return
		}
	}
	s.cache.mu.Lock()
	outlives := s.observe || s.group.until.After(u.until)
	s.cache.mu.Unlock()
	if outlives && !u.observed && !now.Before(u.until) { // GP-64
		s.leave(u, nil)
		return
	}
	s.arm(u)
}

// releaseAll sends what u still holds back: the upstream exchange ended early.
func (s *shared) releaseAll(u *subscriber) {
	now := time.Now()
	for len(u.held) > 0 && !u.ended {
		s.release(u, now)
	}
}

// release sends the first held back response, unless its server has answered
// since or it has been made stale (GP-78).
func (s *shared) release(u *subscriber, now time.Time) {
	e := u.held[0].entry
	u.held = u.held[1:]
	c := s.cache
	c.mu.Lock()
	_, overtaken := s.heard.of(e.server)
	if current := c.store.get(e.key); current != nil {
		e = current // by unicast meanwhile
	}
	usable := e.fresh(now)
	c.mu.Unlock()
	switch {
	case overtaken:
		c.config.Stats.Overtaken.Add(1)
	case usable:
		s.serve(u, e, now)
	}
}

// serve gives a subscriber a response from the store.
func (s *shared) serve(u *subscriber, e *entry, now time.Time) {
	c := s.cache
	y := replies.Get().(*reply)
	defer y.release()
	var port uint16
	if s.group != nil {
		port = s.group.target.Addr.Port()
		c.config.Stats.Served.Add(1)
	}
	c.config.Ages.note(now.Sub(e.received))
	s.hand(u, y.stored(e, now, e.validates(u.etags), port, extras{groupTag: s.groupTag(now), observe: s.observe}, &c.config))
}

var _ exchange.Renewer = (*subscriber)(nil)
