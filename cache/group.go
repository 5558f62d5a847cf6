package cache

import (
	"net/netip"
	"slices"
	"time"

	lru "github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// groupScheme is the scheme of every group request, and of the URI that a
// response to one belongs to (GP-22, GP-71).
const groupScheme = "coap"

// audience is what a shared exchange has beside the rest because it is with a group.
type audience struct {
	target    exchange.Target
	bodyLimit int
	groups    []exchange.GroupAddr
	set       *set
	request   exchange.Kept // without the options that are for groups only
	until     time.Time     // end of the upstream exchange; guarded by Cache.mu

	// Touched by what serial runs.
	buffer  []byte
	missing int // index of a member that had no fresh entry lately
	fetches []exchange.Canceler
	first   groupShare // of the first subscriber
}

// census is the state of the entries for a group request.
type census struct {
	groups  []exchange.GroupAddr
	servers []netip.AddrPort // borrowed or in buffer
	buffer  []netip.AddrPort
	fresh   []*entry
	etags   etags // of the servers' entries, fresh or not
	// complete: all members are known and each has a fresh entry (GP-75, GP-82).
	complete bool
	// usable: this client can take every one of the fresh entries.
	usable  bool
	version uint64 // of the membership
}

// groupsOf returns the addresses a group request goes to (GC-2).
func groupsOf(t *exchange.Target, groups []exchange.GroupAddr) []exchange.GroupAddr {
	groups = append(groups[:0], exchange.GroupAddr{Addr: t.Addr, Name: t.GroupName})
	return append(groups, t.Also...)
}

// members returns the servers whose entries may answer for the groups of r: all
// current members if complete, else those known to be members and those that
// answered lately. The slice is borrowed until the next call.
func (c *Cache) members(r *exchange.Request, a *scratch) (servers []netip.AddrPort, version uint64, complete bool) {
	a.census.groups = groupsOf(&r.Target, a.census.groups)
	return c.membersOf(a.census.groups, &a.census.buffer)
}

func (c *Cache) membersOf(groups []exchange.GroupAddr, buffer *[]netip.AddrPort) (servers []netip.AddrPort, version uint64, complete bool) {
	complete = c.config.Members != nil
	*buffer = (*buffer)[:0]
	for i, g := range groups {
		if c.config.Members == nil {
			break
		}
		known, v, all := c.config.Members.Members(g.Name, g.Addr)
		version = version*1_000_003 + v
		complete = complete && all
		if i == 0 && len(groups) == 1 && all {
			return known, version, len(known) > 0
		}
		*buffer = appendNew(*buffer, known)
	}
	if !complete {
		c.mu.Lock()
		for _, g := range groups {
			if !g.Addr.IsValid() { // a name that a next proxy resolves: no key
				continue
			}
			if heard, ok := c.heard.Get(g.Addr); ok {
				*buffer = appendNew(*buffer, heard.Keys())
			}
		}
		c.mu.Unlock()
	}
	return *buffer, version, complete && len(*buffer) > 0
}

// appendNew appends what is not there yet.
func appendNew(to, more []netip.AddrPort) []netip.AddrPort {
	if len(to) == 0 {
		return append(to, more...)
	}
	there := make(map[netip.AddrPort]bool, len(to))
	for _, a := range to {
		there[a] = true
	}
	for _, a := range more {
		if !there[a] {
			to = append(to, a)
		}
	}
	return to
}

// hear notes that a server answered in a group. Called under Cache.mu.
func (c *Cache) hear(group *audience, server netip.AddrPort) {
	for _, g := range group.groups {
		if !g.Addr.IsValid() {
			continue
		}
		heard, ok := c.heard.Get(g.Addr)
		if !ok {
			heard, _ = lru.NewLRU[netip.AddrPort, struct{}](c.config.MaxHeard, nil)
			c.heard.Add(g.Addr, heard)
		}
		heard.Add(server, struct{}{})
	}
}

// take finds the entries for a group request. Called under Cache.mu.
func (c *Cache) take(r *exchange.Request, a *scratch, now time.Time) {
	n := &a.census
	n.fresh, n.etags, n.usable = n.fresh[:0], n.etags[:0], true
	for _, server := range n.servers {
		a.server(groupScheme, server, "", nil)
		e := c.store.get(a.key)
		if e != nil && e.etag != nil {
			n.etags = append(n.etags, e.etag)
		}
		switch {
		case e == nil || !e.fresh(now) || !r.Stored.Admits(now.Sub(e.received)): // HC-57
			n.complete = false
		case !e.answers(a.hopLimit) || r.BodyLimit > 0 && len(e.payload) > r.BodyLimit:
			n.usable = false
		default:
			n.fresh = append(n.fresh, e)
		}
	}
	a.key = a.key[:a.request]
}

// group carries out a safe request to a group whose T' is not 0 (GC-60): from the
// cache alone if every current member has a fresh entry, else by asking the group
// (GC-61).
func (c *Cache) group(r *exchange.Request, w exchange.Sink, a *scratch) exchange.Canceler {
	n := &a.census
	n.servers, n.version, n.complete = c.members(r, a)
	now := time.Now()
	observe := a.observe && c.config.Observe
	port := r.Target.Addr.Port()
	c.mu.Lock()
	c.take(r, a, now)
	set := c.sets.of(a.key[:a.request], n.groups)
	if n.complete && n.usable && !observe {
		tag := c.sets.tag(set, n) // GP-83
		c.mu.Unlock()
		return c.whole(w, a, tag, now, port)
	}
	if r.Stored.Only {
		c.mu.Unlock()
		return nothingStored(w)
	}
	if !n.complete {
		set.tagged = false // GP-83
	}
	until := r.Arrival.Add(r.Timeout.Duration())
	a.flightKey(n.groups, observe)
	hash := sum(c.store.seed, a.flight)
	place := c.store.placeOf(a.key[1:a.uri], netip.AddrPort{})
	joinable := func() *shared {
		running := c.flights[hash]
		if running == nil || a.echo || running.group.bodyLimit != r.BodyLimit || !observe && c.store.outdated(place, running.begun) || !running.admits(a, r, now) {
			return nil
		}
		return running
	}
	if running := joinable(); running != nil { // GC-82
		if until.After(running.group.until) && !observe {
			running = c.extend(running, until, joinable)
		}
		if running != nil {
			u := running.join(w, a)
			u.groupShare = &groupShare{until: until, held: holdAll(n.fresh)}
			renew := running.renewal(now)
			c.mu.Unlock()
			c.config.Stats.Coalesced.Add(1)
			running.welcome(u)
			renew()
			running.serial.DoAlways(running.armAll)
			return u
		}
	}
	s := c.share(r, w, a, hash, place)
	s.scheme = groupScheme
	s.group = &audience{target: r.Target, bodyLimit: r.BodyLimit, groups: slices.Clone(n.groups), set: set, until: until,
		first: groupShare{until: until, held: holdAll(n.fresh)}}
	u := &s.first
	u.groupShare = &s.group.first
	listed := a.etags
	if observe {
		listed = nil
		s.again.Keep(r, nil, isETag)
	}
	validators := n.etags[:0]
	for _, tag := range n.etags { // GP-80, GC-63
		if !observe && !set.etags.ambiguous(string(tag)) && !validators.has(tag) {
			validators = append(validators, tag)
		}
	}
	c.mu.Unlock()
	c.config.Stats.Misses.Add(1)
	s.group.request.Keep(r, nil, forGroup)
	if len(validators) > 0 || observe {
		a.options = withETags(a.options[:0], r.Options, listed, validators...)
		r.Options = a.options
	}
	s.start(r)
	s.serial.DoAlways(func() { s.plan(u) }) // GP-76
	return u
}

// extend makes a running exchange last until then, if its leg can do that. It is
// called and returns under Cache.mu, which it lets go of meanwhile; nil means
// that the exchange cannot be joined.
func (c *Cache) extend(s *shared, until time.Time, again func() *shared) *shared {
	upstream, ok := s.upstream.(exchange.Extender)
	if !ok {
		return nil
	}
	c.mu.Unlock()
	ok = upstream.Extend(until)
	c.mu.Lock()
	if !ok || again() != s {
		return nil
	}
	if until.After(s.group.until) {
		s.group.until = until
	}
	return s
}

// whole answers a group request from a complete set, without sending anything:
// with the 2.03 of GP-85 if the client has the set already, else with every
// entry (GP-75, GP-86).
func (c *Cache) whole(w exchange.Sink, a *scratch, tag []byte, now time.Time, port uint16) exchange.Canceler {
	n := &a.census
	y := &a.reply
	if a.groupTags.has(tag) {
		c.config.Stats.GroupValid.Add(1)
		least := n.fresh[0].remaining(now)
		for _, e := range n.fresh[1:] {
			least = min(least, e.remaining(now))
		}
		y.options = append(y.options[:0], message.Option{ID: wire.MaxAge, Value: wire.AppendUint(y.maxAge[:0], least)})
		y.options = mergeOptions(nil, y.options, message.Options{{ID: c.config.Numbers.GroupETag, Value: tag}}, 0)
		y.response = exchange.Response{Code: codes.Valid, Options: y.options}
		w.Respond(&y.response)
		w.End(nil)
		return exchange.Ended{}
	}
	c.config.Stats.GroupHits.Add(1)
	for _, e := range n.fresh {
		c.config.Stats.Served.Add(1)
		c.config.Ages.note(now.Sub(e.received))
		if w.Respond(y.stored(e, now, e.validates(a.etags), port, extras{groupTag: tag}, &c.config)) == exchange.Stop {
			break
		}
	}
	w.End(nil)
	return exchange.Ended{}
}

// forGroup names the options that are left out where a group request is repeated to
// one of its servers (GP-80).
func forGroup(id message.OptionID) bool {
	return id == wire.ETag || id == wire.NoResponse || id == wire.Observe
}

// maxRefetches bounds the servers asked one by one in a group exchange.
const maxRefetches = 64

// refetch asks one server of the group for what its 2.03 did not bring (GP-80,
// GC-64, GC-65).
func (s *shared) refetch(server netip.AddrPort, port uint16, without []*subscriber) {
	if len(s.group.fetches) >= maxRefetches {
		s.cache.config.Stats.Dropped.Add(1)
		return
	}
	r := s.group.request.Request()
	r.Arrival, r.Timeout = time.Now(), exchange.Timeout{}
	r.Target = exchange.Target{Scheme: groupScheme, Addr: server, NextHop: s.group.target.NextHop}
	s.group.fetches = append(s.group.fetches, s.cache.Exchange(r, &refetch{shared: s, port: port, to: slices.Clone(without)}))
}

// refetch is the sink of such a request.
type refetch struct {
	shared *shared
	port   uint16
	to     []*subscriber
}

// Respond implements exchange.Sink.
func (f *refetch) Respond(p *exchange.Response) exchange.Verdict {
	q := *p
	q.GroupPort = f.port
	f.shared.serial.Do(func() { f.hand(&q) }, func() func() { kept := q.Clone(); return func() { f.hand(kept) } })
	return exchange.Stop
}

func (f *refetch) hand(p *exchange.Response) {
	for _, u := range f.to {
		if !u.ended {
			f.shared.hand(u, p)
		}
	}
}

// End implements exchange.Sink: a server that does not answer is silent (GC-30).
func (f *refetch) End(error) {}

// groupTag is the Group-ETag of the set that the request of s belongs to, nil
// while it is not complete (GP-82, GP-84).
func (s *shared) groupTag(now time.Time) []byte {
	c := s.cache
	if s.group == nil || c.config.Members == nil {
		return nil
	}
	var n census
	n.servers, n.version, n.complete = c.membersOf(s.group.groups, &n.buffer)
	if !n.complete {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	freshOf := func(i int) *entry {
		key, _ := s.keyOf(n.servers[i])
		e := c.store.get(key)
		if e == nil || !e.fresh(now) {
			return nil
		}
		return e
	}
	if s.group.missing < len(n.servers) && freshOf(s.group.missing) == nil {
		s.group.set.tagged = false
		return nil // the same one as last time: the common case costs little
	}
	for i := range n.servers {
		e := freshOf(i)
		if e == nil {
			s.group.missing = i
			s.group.set.tagged = false
			return nil
		}
		n.fresh = append(n.fresh, e)
	}
	return c.sets.tag(s.group.set, &n)
}
