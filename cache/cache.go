package cache

import (
	"errors"
	"net/netip"
	"sync"
	"time"

	lru "github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/plgd-dev/go-coap/v3/message"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// Membership knows who is in a group. It is asked each time the answer matters,
// so that a member that joins or leaves counts at once. Safe for concurrent use;
// it must not block.
type Membership interface {
	// Members returns the servers in the group that the operator named group and
	// that has this address: the addresses and ports they answer from. The slice
	// is never changed afterwards. version is another one after every join or
	// leave. complete is true if these are known to be all current members
	// (GP-75); otherwise they are servers that are known to be members.
	Members(group string, addr netip.AddrPort) (servers []netip.AddrPort, version uint64, complete bool)
}

// Config says what a Cache is made of. Next, Engine, Numbers and the bounds are
// required; see Defaults.
type Config struct {
	// Next carries out what cannot be answered from the cache.
	Next    exchange.Handler
	Engine  *exchange.Engine
	Numbers *wire.Numbers
	// Members knows the groups; nil if nobody does.
	Members Membership
	// HopLimit is what a request without Hop-Limit counts as, 1 to 255 (FP-50,
	// FP-53).
	HopLimit uint8
	// MaxEntries and MaxBytes bound what is stored; the least recently used
	// entry goes first (FP-51).
	MaxEntries, MaxBytes int
	// MaxBody is the longest body in bytes that is stored (FP-51).
	MaxBody int
	// MaxVariants is the number of entries per resource of a server (FP-51).
	MaxVariants int
	// MaxKey is the longest cache key in bytes; a request with a longer one
	// bypasses the cache (FP-51).
	MaxKey int
	// MaxAge is the longest time in seconds that a response counts as fresh,
	// whatever its server says.
	MaxAge uint32
	// MaxSets bounds the group requests whose Group-ETag is remembered, MaxHeard
	// the servers per group that are remembered as having answered.
	MaxSets, MaxHeard int
	// Observe shares observations; the legs must support them.
	Observe bool
	// ObserveOnly does nothing but that: nothing is stored, and a request is
	// answered by nobody but its server (FP-60).
	ObserveOnly bool
	// Stats and Ages count; new ones are made if nil.
	Stats *Stats
	Ages  *Ages
}

// Defaults returns a Config with the default bounds.
func Defaults() Config {
	return Config{HopLimit: 16, MaxEntries: 10_000, MaxBytes: 32 << 20, MaxBody: 1 << 20, MaxVariants: 64, MaxKey: 4096,
		MaxAge: 24 * 60 * 60, MaxSets: 256, MaxHeard: 1024}
}

// maxGroups bounds the groups whose servers are remembered.
const maxGroups = 256

// Cache is the caching layer. Safe for concurrent use.
type Cache struct {
	config  Config
	scratch sync.Pool

	mu      sync.Mutex
	store   *store
	flights map[uint64]*shared
	sets    *sets
	// heard lists the servers that answered in a group: theirs are the entries
	// that a request to that group may use while nobody knows its members.
	heard *lru.LRU[netip.AddrPort, *lru.LRU[netip.AddrPort, struct{}]]
}

// New returns an empty Cache. The error is about bounds that are not positive.
func New(config Config) (*Cache, error) {
	if min(config.MaxEntries, config.MaxBytes, config.MaxBody, config.MaxVariants, config.MaxKey, config.MaxSets, config.MaxHeard) < 1 {
		return nil, errors.New("cache: a bound is not positive")
	}
	if config.Stats == nil {
		config.Stats = &Stats{}
	}
	if config.Ages == nil {
		config.Ages = &Ages{}
	}
	c := &Cache{config: config, flights: make(map[uint64]*shared)}
	c.scratch.New = func() any { return new(scratch) }
	var err error
	if c.store, err = newStore(&c.config); err != nil {
		return nil, err
	}
	if c.sets, err = newSets(c.store, config.MaxSets); err != nil {
		return nil, err
	}
	c.heard, err = lru.NewLRU[netip.AddrPort, *lru.LRU[netip.AddrPort, struct{}]](maxGroups, nil)
	return c, err
}

// scratch is what one Exchange call works with.
type scratch struct {
	asked
	reply   reply
	flight  []byte // key of an exchange that can be shared
	options message.Options
	census  census
}

var _ exchange.Handler = (*Cache)(nil)

// Exchange implements exchange.Handler.
func (c *Cache) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	if c.config.ObserveOnly && !wire.IsRegistration(r.Method, r.Options) {
		return c.config.Next.Exchange(r, w)
	}
	a := c.scratch.Get().(*scratch)
	defer c.release(a)
	switch bypass := a.read(r, &c.config); {
	case bypass == BypassMethod:
		c.config.Stats.Bypassed[bypass].Add(1)
		return c.unsafe(r, w, a)
	case bypass != NoBypass:
		if r.Stored.Only {
			return nothingStored(w)
		}
		c.config.Stats.Bypassed[bypass].Add(1)
		return c.config.Next.Exchange(r, w)
	case r.Target.Group:
		return c.group(r, w, a)
	}
	return c.single(r, w, a)
}

// nothingStored ends an exchange whose client wants only what is stored (HC-57).
func nothingStored(w exchange.Sink) exchange.Canceler {
	return exchange.Fail(w, exchange.Failf(exchange.NoAnswer, "no fresh response is stored"))
}

func (c *Cache) release(a *scratch) {
	clear(a.etags[:cap(a.etags)])
	clear(a.groupTags[:cap(a.groupTags)])
	clear(a.options)
	clear(a.reply.options)
	clear(a.census.fresh[:cap(a.census.fresh)])
	a.reply.response, a.reply.extra = exchange.Response{}, [3]message.Option{}
	c.scratch.Put(a)
}

// single carries out a safe request to one server.
func (c *Cache) single(r *exchange.Request, w exchange.Sink, a *scratch) exchange.Canceler {
	a.server(r.Target.Scheme, r.Target.Addr, r.Target.Host, r.Client)
	observe := a.observe && c.config.Observe
	now := time.Now()
	c.mu.Lock()
	e := c.store.get(a.key)
	fresh := e != nil && e.fresh(now)
	usable := fresh && r.Stored.Admits(now.Sub(e.received)) // HC-57
	if usable && !observe && e.answers(a.hopLimit) {
		c.mu.Unlock()
		c.config.Stats.Hits.Add(1)
		c.config.Ages.note(now.Sub(e.received))
		w.Respond(a.reply.stored(e, now, e.validates(a.etags), 0, extras{}, &c.config)) // FP-46
		w.End(nil)
		return exchange.Ended{}
	}
	if r.Stored.Only {
		c.mu.Unlock()
		return nothingStored(w)
	}
	a.flightKey(nil, observe)
	hash := sum(c.store.seed, a.flight)
	place := c.store.placeOf(a.key[1:a.uri], r.Target.Addr)
	running := c.flights[hash]
	if running != nil && !a.echo && running.admits(a, r, now) && (observe || !c.store.outdated(place, running.begun)) { // FP-49, FP-60
		u := running.join(w, a)
		renew := running.renewal(now)
		c.mu.Unlock()
		c.config.Stats.Coalesced.Add(1)
		running.welcome(u)
		renew()
		return u
	}
	s := c.share(r, w, a, hash, place)
	s.scheme, s.server, s.client = r.Target.Scheme, r.Target.Addr, r.Client
	var validator []byte
	if e != nil && e.etag != nil && !usable { // FP-45
		validator = e.etag
	}
	if e != nil && e.etag == nil && !fresh {
		c.store.remove(e) // of no more use
	}
	c.mu.Unlock()
	c.config.Stats.Misses.Add(1)
	listed := a.etags
	if observe {
		listed = nil // a 2.03 to one client's ETag would be of no use to others
		if validator != nil {
			s.base = e
		}
	}
	if validator != nil || len(listed) > 0 || observe {
		if validator != nil {
			c.config.Stats.Stale.Add(1)
		}
		s.again.Keep(r, nil, isETag)
		a.options = withETags(a.options[:0], r.Options, listed, validator)
		r.Options = a.options
	}
	s.start(r)
	return &s.first
}

// maxETags is the number of ETags in one request beyond which the cache adds
// none of its own (GP-80).
const maxETags = 8

// withETags appends a request's options to dst with these ETags instead of its
// own.
func withETags(dst, options message.Options, listed etags, more ...[]byte) message.Options {
	placed := false
	place := func() {
		placed = true
		n := len(listed)
		for _, v := range listed {
			dst = append(dst, message.Option{ID: wire.ETag, Value: v})
		}
		for _, v := range more {
			if v != nil && n < maxETags && !listed.has(v) {
				n++
				dst = append(dst, message.Option{ID: wire.ETag, Value: v})
			}
		}
	}
	for _, o := range options {
		if !placed && o.ID >= wire.ETag {
			place()
		}
		if o.ID != wire.ETag {
			dst = append(dst, o)
		}
	}
	if !placed {
		place()
	}
	return dst
}

func isETag(id message.OptionID) bool { return id == wire.ETag }

// flightKey makes the key under which an exchange can be shared: the cache key,
// and what else makes clients' requests the same (GC-82). An observation is
// shared whatever ETags the clients listed (FP-61).
func (a *scratch) flightKey(groups []exchange.GroupAddr, observe bool) {
	a.flight = append(a.flight[:0], a.key...)
	for _, g := range groups {
		a.flight = appendGroup(a.flight, g)
	}
	if observe {
		a.flight = append(a.flight, 'o')
		return
	}
	for _, v := range a.etags {
		a.flight = append(append(a.flight, 'e', byte(len(v))), v...)
	}
	a.flight = append(a.flight, 'n', byte(a.silence))
	if a.onward && groups != nil {
		for _, v := range a.groupTags { // the next proxy may confirm one of them (GP-104)
			a.flight = append(append(a.flight, 't', byte(len(v))), v...)
		}
	}
}

// appendGroup appends what tells groups apart: the address, or the name where a
// next proxy resolves it.
func appendGroup(key []byte, g exchange.GroupAddr) []byte {
	key = appendAddr(append(key, 'g'), g.Addr)
	if !g.Addr.IsValid() {
		key = append(append(key, g.Name...), 0)
	}
	return key
}
