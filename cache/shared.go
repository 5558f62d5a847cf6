package cache

import (
	"bytes"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// shared is one upstream exchange and the clients that take part in it. It is
// the sink of the exchange. Single flight (FP-49), the joining of a running
// group exchange (GC-82) and the sharing of an observation (FP-60, GP-68) differ
// only in when a further client is admitted and in how much it gets at first:
// nothing, because nothing has come yet, or the latest response of each server.
type shared struct {
	cache  *Cache
	serial exchange.Serial

	// Set before the exchange begins.
	flight      []byte
	hash        uint64 // of flight
	key         int32  // end in flight of the key of one server; of a group of the request part
	uri         int32  // end of the URI part of key
	request     int32  // end of the request part of key
	hopLimit    uint8
	confirmable bool
	observe     bool
	protected   bool   // a Deterministic Request
	place       uint64 // of the resource at the server, or at all servers
	begun       uint64 // see store.now
	scheme      string
	server      netip.AddrPort // of one server
	client      *exchange.Identity
	group       *audience     // of a group
	again       exchange.Kept // the request without ETags, where it may be made anew
	base        *entry        // of an observation: the one whose ETag the registration lists

	// Guarded by Cache.mu.
	subscribers []*subscriber // replaced, never changed, when one leaves
	upstream    exchange.Canceler
	heard       latest
	closed      bool // takes no further subscriber
	abandoned   bool // nobody is left
	unstored    bool // a response was relayed that a late one could not get

	// Touched by what serial runs.
	ended    bool
	asked2nd bool // without ETags
	repeat   bool
	moved    bool // it was registered anew; see Cache.Reregister
	failure  *exchange.Failure

	first subscriber
}

// subscriber is one client's share; its exchange.
type subscriber struct {
	shared      *shared
	sink        exchange.Sink
	etags       etags // that it listed
	*groupShare       // nil for one server

	// Touched by what serial runs.
	begun    bool
	ended    bool
	observed bool // got a notification (GP-64)
}

// Cancel implements exchange.Canceler.
func (u *subscriber) Cancel() {
	s := u.shared
	s.serial.DoAlways(func() { s.leave(u, exchange.ErrCanceled) })
}

// Renew implements exchange.Renewer, for all who share.
func (u *subscriber) Renew() {
	s := u.shared
	s.cache.mu.Lock()
	upstream, ok := s.upstream.(exchange.Renewer)
	s.cache.mu.Unlock()
	if ok && s.observe {
		upstream.Renew()
	}
}

// share makes what others can join, with w as the first subscriber. Called under
// Cache.mu.
func (c *Cache) share(r *exchange.Request, w exchange.Sink, a *scratch, hash, place uint64) *shared {
	s := &shared{cache: c, hash: hash, place: place, begun: c.store.now, hopLimit: a.hopLimit, confirmable: r.Confirmable,
		protected: a.protected, observe: a.observe && c.config.Observe,
		flight: bytes.Clone(a.flight), // which continues the key
		key:    int32(len(a.key)), uri: int32(a.uri), request: int32(a.request)}
	s.first = subscriber{shared: s, sink: w, etags: a.etags.clone(), begun: true}
	s.subscribers = append(s.subscribers, &s.first)
	if !a.echo {
		c.flights[hash] = s // one that can be shared no more gives way
	}
	return s
}

// admits reports whether a request that has the flight key of s may join it.
// Called under Cache.mu.
func (s *shared) admits(a *scratch, r *exchange.Request, now time.Time) bool {
	if s.closed || s.unstored || !bytes.Equal(s.flight, a.flight) {
		return false
	}
	if s.observe && s.heard.len() > 0 {
		// What matters for a first response no longer does.
		if _, ok := s.upstream.(exchange.Renewer); ok {
			return true
		}
	} else if a.hopLimit > s.hopLimit || r.Confirmable && !s.confirmable ||
		a.onward && a.hopLimit != s.hopLimit { // it may be the same request, that came round (FP-52)
		return false
	}
	for e := range s.heard.all() { // GC-82, GP-68
		if e == nil || !e.fresh(now) {
			return false
		}
	}
	return true
}

// renewal returns what to call, under no lock, so that one who joins gets what
// the store cannot give: the observation brings the current state once more.
// Called under Cache.mu.
func (s *shared) renewal(now time.Time) func() {
	if s.observe {
		for e := range s.heard.all() {
			if upstream, ok := s.upstream.(exchange.Renewer); ok && (e == nil || !e.fresh(now)) {
				return upstream.Renew
			}
		}
	}
	return func() {}
}

// join adds a subscriber. Called under Cache.mu; the caller calls welcome when it
// has let go of the lock.
func (s *shared) join(w exchange.Sink, a *scratch) *subscriber {
	u := &subscriber{shared: s, sink: w, etags: a.etags.clone()}
	s.subscribers = append(s.subscribers[:len(s.subscribers):len(s.subscribers)], u)
	return u
}

// welcome gives a subscriber that joined what it missed.
func (s *shared) welcome(u *subscriber) { s.serial.DoAlways(func() { s.begin(u) }) }

// start begins the upstream exchange.
func (s *shared) start(r *exchange.Request) {
	c := s.cache
	upstream := c.config.Next.Exchange(r, s)
	c.mu.Lock()
	s.upstream = upstream
	abandoned := s.abandoned
	c.mu.Unlock()
	if abandoned {
		upstream.Cancel()
	}
}

// Respond implements exchange.Sink.
func (s *shared) Respond(p *exchange.Response) exchange.Verdict {
	if !s.serial.Do(func() { s.respond(p) }, func() func() { q := p.Clone(); return func() { s.respond(q) } }) {
		s.cache.config.Stats.Dropped.Add(1)
	}
	if s.group == nil && !s.observe {
		return exchange.Stop
	}
	return exchange.Continue
}

// End implements exchange.Sink.
func (s *shared) End(err error) { s.serial.DoAlways(func() { s.finish(err) }) }

// outcome is what became of a response in the store.
type outcome struct {
	entry *entry // made or refreshed by it
	// valid: a 2.03 for that entry. alien: a 2.03 that fits no entry.
	valid, alien bool
	etag         []byte
	subscribers  []*subscriber
}

// respond stores a response and hands it to every subscriber.
func (s *shared) respond(p *exchange.Response) {
	if s.ended {
		return
	}
	now := time.Now()
	got := s.absorb(p, now)
	y := replies.Get().(*reply)
	defer y.release()
	var tag []byte
	if s.group != nil && (p.Code == codes.Content || got.valid) {
		tag = s.groupTag(now)
	}
	var without []*subscriber
	for _, u := range got.subscribers {
		if late := !u.begun && (s.group != nil || s.observe); late {
			s.begin(u)
			if got.entry != nil && now.Before(got.entry.expires) {
				continue // it had the response from the store
			}
		}
		if u.ended {
			continue
		}
		q := p
		switch {
		case p.Code == codes.Valid && u.etags.has(got.etag): // FP-45, GP-80
		case got.valid:
			q = y.stored(got.entry, now, false, p.GroupPort, extras{groupTag: tag, observe: s.observe && wire.Has(p.Options, wire.Observe)}, &s.cache.config)
		case got.alien:
			without = append(without, u)
			continue
		case tag != nil:
			q = y.tagged(p, tag, &s.cache.config) // GP-84
		}
		s.hand(u, q)
	}
	if len(without) > 0 {
		s.alien(p, without)
	}
}

// hand gives a subscriber a response.
func (s *shared) hand(u *subscriber, p *exchange.Response) {
	u.observed = u.observed || s.observe && p.Code>>5 == 2 && wire.Has(p.Options, wire.Observe)
	if u.sink.Respond(p) == exchange.Stop && (s.group != nil || s.observe) {
		s.leave(u, nil)
	}
}

// alien deals with a 2.03 that some subscribers cannot use: its ETag is neither
// theirs nor stored for that server. The server is asked again without ETags
// (GP-80, GC-64), once.
func (s *shared) alien(p *exchange.Response, without []*subscriber) {
	switch {
	case s.group != nil:
		s.refetch(unmapped(p.From), p.GroupPort, without)
	case s.again.Bare() != nil && !s.asked2nd && !s.observe:
		s.asked2nd, s.repeat = true, true
	default:
		s.failure = exchange.Failf(exchange.BadResponse, "the server confirmed an ETag it was not asked about")
	}
}

// absorb enters a response into the store.
func (s *shared) absorb(p *exchange.Response, now time.Time) outcome {
	c := s.cache
	server := s.server
	if s.group != nil {
		server = unmapped(p.From)
	}
	key, lasting := s.keyOf(server)
	v := judge(p, s.protected, &c.config)
	c.mu.Lock()
	defer c.mu.Unlock()
	place := s.place
	if s.group != nil {
		place = c.store.placeOf(s.flight[1:s.uri], server)
	}
	// The state of an observed resource is followed by the one after a change.
	outdated := !s.observe && c.store.outdated(place, s.begun)
	var got outcome
	old := c.store.get(key)
	if c.config.ObserveOnly {
		old, _ = s.heard.of(server)
	}
	switch {
	case s.group != nil && !server.IsValid(): // the proxy's own, or a next hop's
	case p.Code == codes.Valid:
		got = s.confirm(old, p, now, outdated)
	case v.store && (!outdated || v.etag != nil):
		got.entry = newEntry(p, v, now, &c.config)
		got.entry.hopLimit, got.entry.stale = s.hopLimit, outdated
		if !lasting {
			key = slices.Clone(key)
		}
		c.store.complete(got.entry, key, int(s.uri), int(s.request), server, s.client, s.scheme)
		if c.put(got.entry) {
			c.config.Stats.noteStored(&v)
		}
		if s.group != nil && v.etag != nil {
			c.sets.noteETag(s.group.set, string(v.etag), server)
		}
	default:
		c.config.Stats.NotStored.Add(1)
		if len(p.Payload) > c.config.MaxBody {
			c.config.Stats.TooLarge.Add(1)
		}
		if old != nil && (v.store || v.drop) {
			c.store.remove(old) // FP-44
		}
	}
	s.remember(server, got.entry, p)
	got.subscribers = s.subscribers
	notified := s.observe && p.Code>>5 == 2 && wire.Has(p.Options, wire.Observe)
	repeats := got.alien && !s.asked2nd && s.again.Bare() != nil && !s.first.etags.has(got.etag)
	if s.group == nil && !notified && !repeats { // FP-62, FP-66
		s.close()
	}
	return got
}

// put stores an entry, if that is wanted. Called under Cache.mu.
func (c *Cache) put(e *entry) bool {
	if c.config.ObserveOnly {
		return false
	}
	c.store.put(e)
	c.config.Stats.Stored.Add(1)
	return true
}

// confirm enters a 2.03 (FP-45). Called under Cache.mu.
func (s *shared) confirm(old *entry, p *exchange.Response, now time.Time, outdated bool) outcome {
	c := s.cache
	etag, _ := wire.First(p.Options, wire.ETag)
	if s.base != nil && bytes.Equal(s.base.etag, etag) {
		old = s.base
	}
	if old == nil || old.etag == nil || !bytes.Equal(old.etag, etag) {
		c.config.Stats.Unmatched.Add(1)
		if old != nil {
			old.stale = true // the server has something else now
		}
		return outcome{alien: true, etag: etag}
	}
	maxAge := uint32(defaultMaxAge)
	if value, ok := wire.First(p.Options, wire.MaxAge); ok {
		maxAge, _ = wire.Uint(value)
	}
	e := old.refreshed(p, min(maxAge, c.config.MaxAge), now, &c.config)
	e.stale = outdated
	c.put(e)
	c.config.Stats.Validated.Add(1)
	return outcome{entry: e, valid: true, etag: etag}
}

// remember notes what a late subscriber will have to get. Called under Cache.mu.
func (s *shared) remember(server netip.AddrPort, e *entry, p *exchange.Response) {
	if s.group == nil && !s.observe {
		return
	}
	if s.group != nil && server.IsValid() {
		s.cache.hear(s.group, server)
	}
	switch _, again := s.heard.of(server); {
	case !again && s.heard.len() >= s.cache.config.MaxHeard:
		s.unstored = true
		return
	case again && !s.observe:
		s.unstored = true // only the latest response of a server is stored
	}
	s.heard.set(server, e)
}

// keyOf is the cache key of a server; unless it is lasting, valid until the next
// call.
func (s *shared) keyOf(server netip.AddrPort) (key []byte, lasting bool) {
	key = s.flight[:s.key:s.key]
	if s.group == nil {
		return key, true
	}
	s.group.buffer = appendServer(append(s.group.buffer[:0], key...), s.scheme, server, "", nil)
	return s.group.buffer, false
}

// close makes s take no further subscriber. Called under Cache.mu.
func (s *shared) close() {
	if s.cache.flights[s.hash] == s {
		delete(s.cache.flights, s.hash)
	}
	s.closed = true
}

// leave ends one subscriber's exchange with what it still holds back (GP-46), and
// with the last one the upstream exchange (GP-41).
func (s *shared) leave(u *subscriber, err error) {
	if u.ended {
		return
	}
	u.ended = true
	c := s.cache
	if u.groupShare != nil {
		u.held = nil
		c.config.Engine.Unschedule(&u.deadline)
	}
	c.mu.Lock()
	s.subscribers = slices.DeleteFunc(slices.Clone(s.subscribers), func(o *subscriber) bool { return o == u })
	var upstream exchange.Canceler
	if len(s.subscribers) == 0 {
		s.close()
		s.abandoned = true
		upstream = s.upstream
	}
	c.mu.Unlock()
	u.sink.End(err)
	if upstream != nil {
		upstream.Cancel()
	}
}

// finish ends the exchange of every subscriber.
func (s *shared) finish(err error) {
	if s.repeat {
		s.repeat = false
		c := s.cache
		c.mu.Lock()
		s.upstream = nil
		abandoned := s.abandoned
		c.mu.Unlock()
		if !abandoned {
			r := s.again.Request()
			r.Arrival = time.Now()
			s.again.Keep(r, nil, isETag) // so that those who keep it below share that again
			s.start(r)
			return
		}
	}
	s.ended = true
	if s.failure != nil {
		err = s.failure
	}
	if err == nil && s.moved && s.group != nil { // clients have had notifications before
		err = exchange.Failf(exchange.NoAnswer, "no member of the group answers any more")
	}
	if s.group != nil {
		for _, f := range s.group.fetches {
			f.Cancel()
		}
		s.group.fetches = nil
	}
	c := s.cache
	c.mu.Lock()
	s.close()
	subscribers := s.subscribers
	c.mu.Unlock()
	for _, u := range subscribers {
		if !u.begun {
			s.begin(u)
		}
		if err == nil && s.group != nil {
			s.releaseAll(u)
		}
		s.leave(u, err)
	}
}

var replies = sync.Pool{New: func() any { return new(reply) }}

func (y *reply) release() {
	clear(y.options)
	y.response, y.extra = exchange.Response{}, [3]message.Option{}
	replies.Put(y)
}
