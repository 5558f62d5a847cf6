package blockwise

import (
	"bytes"
	"hash/maphash"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// transfer identifies a body that is being carried in blocks: between whom, in
// which direction, and for which request (FP-73, RFC 9175 §3.3).
type transfer struct {
	client   netip.AddrPort
	identity *exchange.Identity // never share bodies across security contexts
	local    netip.AddrPort
	server   netip.AddrPort
	method   codes.Code
	upload   bool
	request  uint64 // hash of target and options
	payload  uint64 // hash of the payload if it came in one message, else 0
}

// body is a body in transfer.
type body struct {
	data     []byte
	response *exchange.Response // of a download: code and options; owned
	created  bool               // an upload's first block had If-None-Match (FP-77)
	since    time.Time          // when a download began
	expires  time.Time
}

// size is what a body counts against the bound of its store.
func (b *body) size() int {
	n := len(b.data)
	if b.response != nil {
		for _, o := range b.response.Options {
			n += len(o.Value)
		}
	}
	return n
}

const (
	// transferLifetime is how long a body waits for its next block:
	// EXCHANGE_LIFETIME (FP-73).
	transferLifetime = 247 * time.Second
	// maxTransfers bounds the bodies in transfer.
	maxTransfers = 4096
	// clientTransfers and clientBytes are the share of one client, at least: an
	// eighth of all transfers, and a quarter of the bytes.
	clientTransfers = maxTransfers / 8
	clientBytes     = 4 << 20
)

// share is what one client has in a store.
type share struct {
	bytes  int
	bodies *simplelru.LRU[transfer, struct{}]
}

// store holds the bodies in transfer, bounded by their number and their bytes.
// At a bound the one that has waited longest for its next block is forgotten
// and counted; a client beyond its share forgets its own. It is safe for
// concurrent use.
type store struct {
	seed    maphash.Seed
	maximum int
	dropped *atomic.Uint64

	mu     sync.Mutex
	bytes  int
	bodies *simplelru.LRU[transfer, *body]
	// clients are told apart by their address, an IPv6 one by its first 64 bits.
	clients map[netip.Addr]*share
	// latest leads a request without a payload to the latest transfer that
	// differs from it only in having one: some clients do not repeat the
	// payload when they ask for the further blocks of a response.
	latest *simplelru.LRU[transfer, uint64]
}

func newStore(maximum int, dropped *atomic.Uint64) *store {
	s := &store{seed: maphash.MakeSeed(), maximum: maximum, dropped: dropped, clients: make(map[netip.Addr]*share)}
	bodies, err := simplelru.NewLRU(maxTransfers, s.gone)
	if err != nil {
		panic(err) // the size is a positive constant
	}
	latest, err := simplelru.NewLRU[transfer, uint64](maxTransfers, nil)
	if err != nil {
		panic(err)
	}
	s.bodies, s.latest = bodies, latest
	return s
}

// transferOf returns what identifies the response body that a message belongs
// to, but for its payload. Two messages belong together if all their options
// are the same, except block options and those that say something about one
// message or one cached response alone (RFC 9175 §1.1, §3.3).
func (s *store) transferOf(r *exchange.Request) transfer {
	var room [256]byte // on the stack, as long as it is enough
	text := append(append(append(room[:0], r.Target.Scheme...), 0), r.Target.Host...)
	for _, o := range r.Options {
		switch o.ID {
		case wire.Block1, wire.Block2, wire.Observe, wire.ETag, wire.MaxAge, wire.HopLimit, wire.NoResponse,
			wire.IfNoneMatch: // FP-77: with the first block only
			continue
		}
		if !wire.Critical(o.ID) && wire.NoCacheKey(o.ID) { // Size1, Size2, Echo
			continue
		}
		text = append(text, byte(o.ID), byte(o.ID>>8), byte(len(o.Value)), byte(len(o.Value)>>8))
		text = append(text, o.Value...)
	}
	return transfer{client: r.Peer, identity: r.Client, local: r.Local, server: r.Target.Addr, method: r.Method, request: maphash.Bytes(s.seed, text)}
}

// payloadHash tells requests apart that differ in their payload only; 0: none.
func (s *store) payloadHash(payload []byte) uint64 {
	if len(payload) == 0 {
		return 0
	}
	return maphash.Bytes(s.seed, payload)
}

// addBlock adds a block to an upload. It returns the body when it is whole, and
// reports false when a block before this one is missing. A block that has
// arrived already is taken as such; the first one begins anew (RFC 7959 §2.5).
func (s *store) addBlock(t transfer, b wire.Block, r *exchange.Request) (whole *body, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	stored, found := s.bodies.Peek(t)
	if b.Num == 0 {
		stored, found = &body{created: wire.Has(r.Options, wire.IfNoneMatch)}, true
	} else if found && stored.expires.Before(r.Arrival) {
		found = false
	}
	offset, payload := b.Offset(), r.Payload
	switch {
	case !found || offset > len(stored.data):
		return nil, false
	case offset < len(stored.data):
		end := offset + len(payload)
		if !b.More || end > len(stored.data) || !bytes.Equal(stored.data[offset:end], payload) {
			return nil, false
		}
		payload = nil // it is there
	}
	s.bodies.Remove(t)
	stored.data = append(stored.data, payload...)
	if !b.More {
		return stored, true
	}
	stored.expires = r.Arrival.Add(transferLifetime)
	s.put(t, stored)
	return nil, true
}

// clientOf is what stands for the client of a transfer.
func clientOf(t transfer) netip.Addr {
	addr := t.client.Addr().WithZone("")
	if addr.Is6() {
		p, _ := addr.Prefix(64)
		return p.Addr()
	}
	return addr
}

// gone is called when a body has left bodies.
func (s *store) gone(t transfer, b *body) {
	s.bytes -= b.size()
	client := clientOf(t)
	if h := s.clients[client]; h != nil {
		h.bytes -= b.size()
		h.bodies.Remove(t)
		if h.bodies.Len() == 0 {
			delete(s.clients, client)
		}
	}
}

// shareOf returns what the client of a transfer has, with room for size bytes more.
func (s *store) shareOf(t transfer, size int) *share {
	client := clientOf(t)
	h := s.clients[client]
	for h != nil && (h.bodies.Len() >= clientTransfers || h.bytes+size > max(s.maximum/4, clientBytes)) {
		oldest, _, ok := h.bodies.GetOldest()
		if !ok {
			break
		}
		s.bodies.Remove(oldest)
		s.dropped.Add(1)
		h = s.clients[client]
	}
	if h == nil {
		bodies, err := simplelru.NewLRU[transfer, struct{}](clientTransfers, nil)
		if err != nil {
			panic(err) // the size is a positive constant
		}
		h = &share{bodies: bodies}
	}
	return h
}

// put stores a body. Called under the lock.
func (s *store) put(t transfer, b *body) {
	s.bodies.Remove(t)
	size := b.size()
	for s.bodies.Len() > 0 {
		_, oldest, _ := s.bodies.GetOldest()
		expired := oldest.expires.Before(b.expires.Add(-transferLifetime))
		if !expired && s.bytes+size <= s.maximum {
			break
		}
		s.bodies.RemoveOldest()
		if !expired {
			s.dropped.Add(1)
		}
	}
	if size > s.maximum {
		s.dropped.Add(1)
		return
	}
	h := s.shareOf(t, size)
	s.bytes += size
	h.bytes += size
	h.bodies.Add(t, struct{}{})
	s.clients[clientOf(t)] = h
	if s.bodies.Add(t, b) {
		s.dropped.Add(1)
	}
}

// keep stores a response whose further blocks the client will ask for. It is
// borrowed.
func (s *store) keep(t transfer, p *exchange.Response, now time.Time) {
	owned := p.Clone()
	b := &body{data: owned.Payload, response: owned, since: now, expires: now.Add(transferLifetime)}
	owned.Payload = nil
	s.mu.Lock()
	defer s.mu.Unlock()
	s.put(t, b)
	payload := t.payload
	t.payload = 0
	if payload == 0 {
		s.latest.Remove(t)
		return
	}
	s.bodies.Remove(t)
	s.latest.Add(t, payload)
}

// take returns the response of which a client asks a further block, and the
// transfer it is stored under; nil if there is none.
func (s *store) take(t transfer, now time.Time) (*exchange.Response, transfer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b, ok := s.bodies.Get(t)
	if !ok && t.payload == 0 {
		if t.payload, ok = s.latest.Get(t); ok {
			b, ok = s.bodies.Get(t)
		}
	}
	if !ok || b.expires.Before(now) {
		return nil, t
	}
	b.expires = now.Add(transferLifetime)
	if h := s.clients[clientOf(t)]; h != nil {
		h.bodies.Get(t)
	}
	p := *b.response
	p.Payload = b.data
	p.Options = aged(p.Code, p.Options, now.Sub(b.since))
	return &p, t
}

func (s *store) drop(t transfer) {
	s.mu.Lock()
	s.bodies.Remove(t)
	s.mu.Unlock()
}

// defaultMaxAge is the Max-Age of a response without one, in seconds
// (RFC 7252 §5.10.5).
const defaultMaxAge = 60

// aged returns the options of a response that has been in the store for some
// time (FP-42).
func aged(code codes.Code, options message.Options, age time.Duration) message.Options {
	seconds := uint32(max(age, 0) / time.Second)
	maxAge := uint32(defaultMaxAge)
	value, ok := wire.First(options, wire.MaxAge)
	if seconds == 0 || !ok && code != codes.Content {
		return options
	}
	if ok {
		maxAge, _ = wire.Uint(value)
	}
	return withOption(options, wire.MaxAge, wire.AppendUint(nil, maxAge-min(seconds, maxAge)))
}
