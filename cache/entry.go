package cache

import (
	"bytes"
	"net/netip"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// entry is the stored response of one server to one request (GP-70). What is
// above the line is immutable, so that it is used without a lock; a response
// that comes in later makes a new entry.
type entry struct {
	hash    uint64
	key     []byte
	uri     int32  // end of the URI part of key
	request int32  // end of the request part of key
	place   uint64 // see appendPlace

	server   netip.AddrPort  // the address option is made of it for each client (GP-74)
	announce []byte          // what the server is announced as, if not as that; see Response.ReplyFrom
	options  message.Options // without Max-Age, sorted
	payload  []byte
	etag     []byte // in options; nil: none that can validate
	received time.Time
	expires  time.Time
	maxAge   uint32 // seconds
	code     codes.Code
	hopLimit uint8 // of the request that led to a 5.08 (FP-50)
	private  bool
	client   string // whose private entry it is; "" for a public one
	cost     int    // bytes

	// ---- guarded by Cache.mu
	version uint64 // unique per change
	used    uint64 // tick of the latest use
	stale   bool   // made so by an unsafe request (FP-47)
}

// entryOverhead is what an entry costs beside its bytes: the structs, the list
// and index elements.
const entryOverhead = 400

// measure sets the cost of e.
func (e *entry) measure() {
	e.cost = entryOverhead + len(e.key) + len(e.payload) + len(e.announce)
	for _, o := range e.options {
		e.cost += len(o.Value) + 32
	}
}

// fresh reports whether e may answer without asking the server (FP-42, FP-43).
// Called under Cache.mu.
func (e *entry) fresh(now time.Time) bool { return !e.stale && now.Before(e.expires) }

// remaining is the Max-Age to send: whole seconds, rounded down (FP-42, FP-43).
func (e *entry) remaining(now time.Time) uint32 {
	left := e.expires.Sub(now)
	if left <= 0 {
		return 0
	}
	return min(uint32(left/time.Second), e.maxAge)
}

// answers reports whether e may answer a request with this Hop-Limit: a 5.08
// tells nothing about a request that can go further (FP-50).
func (e *entry) answers(hopLimit uint8) bool {
	return e.code != wire.HopLimitReached || hopLimit <= e.hopLimit
}

// validates reports whether a 2.03 with e's ETag can stand for e towards a
// client that listed these (FP-46).
func (e *entry) validates(listed etags) bool {
	return e.etag != nil && e.code == codes.Content && len(listed) > 0 && listed.has(e.etag)
}

// defaultMaxAge is the Max-Age of a response that has none (RFC 7252 §5.10.5).
const defaultMaxAge = 60

// storability is what is known of a response before it is stored.
type storability struct {
	store  bool   // can become an entry
	drop   bool   // cannot, and what is stored is outdated all the same
	maxAge uint32 // seconds
	etag   []byte
	// For counters: the ETag is none, Max-Age is longer than anything counts.
	badETag, capped bool
}

// judge decides whether a response to a safe request can be stored (FP-40,
// GP-73, GP-81). protected says that it was a Deterministic Request (OC-89): then
// only a protected response counts, which names its Max-Age outside.
func judge(p *exchange.Response, protected bool, c *Config) storability {
	v := storability{maxAge: defaultMaxAge}
	if !cacheable(p.Code) {
		return v
	}
	etagged, sealed, aged := 0, false, false
	for _, o := range p.Options {
		switch o.ID {
		case wire.OSCORE:
			if !protected {
				return v // by nobody who said that others may have it (GP-81)
			}
			sealed = true
		case wire.Echo:
			return v // a challenge to one client
		case wire.Block1, wire.Block2, wire.QBlock1, wire.QBlock2:
			v.drop = true
			return v // not a whole body
		case wire.MaxAge:
			seconds, ok := wire.Uint(o.Value)
			if !ok {
				return v
			}
			v.maxAge, aged = seconds, true
		case wire.ETag:
			if etagged++; len(o.Value) >= 1 && len(o.Value) <= 8 {
				v.etag = o.Value
			}
		}
	}
	if etagged > 1 || p.Code != codes.Content {
		v.etag = nil // an ETag occurs once in a response (RFC 7252 §5.10.6.1)
	}
	v.badETag = etagged > 0 && v.etag == nil && p.Code == codes.Content
	v.capped = v.maxAge > c.MaxAge
	v.maxAge = min(v.maxAge, c.MaxAge)
	if protected {
		v.etag = nil // OC-89: the server does not see what the proxy would ask
		if !sealed || !aged {
			return v
		}
	}
	switch {
	case len(p.Payload) > c.MaxBody: // FP-51
		v.drop = true
	case v.maxAge == 0 && v.etag == nil: // FP-42
		v.drop = true
	default:
		v.store = true
	}
	return v
}

// cacheable reports whether responses with this code are stored (FP-40). 4.29 is
// left out: it is meant for one client, who is held back elsewhere (FP-36).
func cacheable(code codes.Code) bool {
	switch code {
	case codes.Content,
		codes.BadRequest, codes.Unauthorized, codes.BadOption, codes.Forbidden, codes.NotFound, codes.MethodNotAllowed,
		codes.NotAcceptable, codes.RequestEntityIncomplete, wire.Conflict, codes.PreconditionFailed,
		codes.RequestEntityTooLarge, codes.UnsupportedMediaType, wire.UnprocessableEntity,
		codes.InternalServerError, codes.NotImplemented, codes.BadGateway, codes.ServiceUnavailable, codes.GatewayTimeout,
		codes.ProxyingNotSupported, wire.HopLimitReached:
		return true
	}
	return false
}

// kept reports whether a response option goes into an entry: not those that
// belong to the exchange that brought it.
func kept(id message.OptionID, c *Config) bool {
	return id != wire.MaxAge && id != wire.Observe && id != c.Numbers.GroupETag && id != wire.Size2
}

// newEntry makes an entry of a response that judge found storable. It copies
// what p refers to, and keeps key.
func newEntry(p *exchange.Response, v storability, now time.Time, c *Config) *entry {
	e := &entry{code: p.Code, received: now, maxAge: v.maxAge, expires: now.Add(time.Duration(v.maxAge) * time.Second)}
	count, size := 0, len(p.Payload)+len(p.ReplyFrom)
	for _, o := range p.Options {
		if kept(o.ID, c) {
			count++
			size += len(o.Value)
		}
	}
	values := make([]byte, 0, size)
	own := func(b []byte) []byte {
		start := len(values)
		values = append(values, b...)
		return values[start:len(values):len(values)]
	}
	e.options = make(message.Options, 0, count)
	for _, o := range p.Options {
		if !kept(o.ID, c) {
			continue
		}
		value := own(o.Value)
		if o.ID == wire.ETag && v.etag != nil {
			e.etag = value
		}
		e.options = append(e.options, message.Option{ID: o.ID, Value: value})
	}
	e.payload = own(p.Payload)
	if p.ReplyFrom != nil {
		e.announce = own(p.ReplyFrom)
	}
	return e
}

// refreshed is e after a 2.03 that validated it: Max-Age starts anew, and every
// type of safe option in the 2.03 replaces the stored ones (FP-45; RFC 7252
// §5.9.1.3).
func (e *entry) refreshed(p *exchange.Response, maxAge uint32, now time.Time, c *Config) *entry {
	n := &entry{hash: e.hash, key: e.key, uri: e.uri, request: e.request, place: e.place, server: e.server, announce: e.announce, code: e.code, payload: e.payload,
		client: e.client, private: e.private, hopLimit: e.hopLimit, received: now, maxAge: maxAge, expires: now.Add(time.Duration(maxAge) * time.Second)}
	brought := func(id message.OptionID) bool { return !wire.Unsafe(id) && kept(id, c) && id != wire.ETag }
	n.options = make(message.Options, 0, len(e.options)+len(p.Options))
	i := 0
	for _, o := range e.options {
		for ; i < len(p.Options) && p.Options[i].ID <= o.ID; i++ {
			if brought(p.Options[i].ID) {
				n.options = append(n.options, message.Option{ID: p.Options[i].ID, Value: bytes.Clone(p.Options[i].Value)})
			}
		}
		if !brought(o.ID) || !wire.Has(p.Options, o.ID) {
			n.options = append(n.options, o)
		}
		if o.ID == wire.ETag && e.etag != nil {
			n.etag = o.Value
		}
	}
	for ; i < len(p.Options); i++ {
		if brought(p.Options[i].ID) {
			n.options = append(n.options, message.Option{ID: p.Options[i].ID, Value: bytes.Clone(p.Options[i].Value)})
		}
	}
	n.measure()
	return n
}

// reply is where a response is put together; it is lent for one Respond.
type reply struct {
	response exchange.Response
	options  message.Options
	maxAge   [4]byte
	extra    [3]message.Option
}

// extras are what a response from the cache gets beside the stored options.
type extras struct {
	groupTag []byte // Group-ETag, nil for none
	observe  bool   // it is a notification; the front numbers it (FP-63)
}

// stored makes the response to a client from e: a 2.05 or whatever was stored,
// or with valid a 2.03 (FP-46). group is the port of the group URI, 0 for a
// unicast request.
func (y *reply) stored(e *entry, now time.Time, valid bool, groupPort uint16, x extras, c *Config) *exchange.Response {
	extra := y.extra[:0]
	if x.observe {
		extra = append(extra, message.Option{ID: wire.Observe})
	}
	extra = append(extra, message.Option{ID: wire.MaxAge, Value: wire.AppendUint(y.maxAge[:0], e.remaining(now))}) // FP-42
	if x.groupTag != nil && e.code == codes.Content && !valid {
		extra = append(extra, message.Option{ID: c.Numbers.GroupETag, Value: x.groupTag}) // GP-84
	}
	y.response = exchange.Response{Code: e.code, Payload: e.payload, From: e.server, ReplyFrom: e.announce, GroupPort: groupPort}
	y.options = y.options[:0]
	if valid {
		y.response.Code, y.response.Payload = codes.Valid, nil
		y.options = mergeOptions(y.options, message.Options{{ID: wire.ETag, Value: e.etag}}, extra, 0)
	} else {
		var without message.OptionID
		if groupPort == 0 {
			without = c.Numbers.ReplyFrom // it named the server of a group exchange
		}
		y.options = mergeOptions(y.options, e.options, extra, without)
	}
	y.response.Options = y.options
	return &y.response
}

// tagged is a copy of a live response with a Group-ETag of its own (GP-84), in
// place of one that a next hop may have given (GP-104).
func (y *reply) tagged(p *exchange.Response, tag []byte, c *Config) *exchange.Response {
	y.response = *p
	y.extra[0] = message.Option{ID: c.Numbers.GroupETag, Value: tag}
	y.options = mergeOptions(y.options[:0], p.Options, y.extra[:1], c.Numbers.GroupETag)
	y.response.Options = y.options
	return &y.response
}

// mergeOptions appends two sorted lists to dst in order, leaving out the options
// of the first with the number without.
func mergeOptions(dst, a, b message.Options, without message.OptionID) message.Options {
	for _, o := range a {
		for len(b) > 0 && b[0].ID < o.ID {
			dst, b = append(dst, b[0]), b[1:]
		}
		if o.ID != without {
			dst = append(dst, o)
		}
	}
	return append(dst, b...)
}
