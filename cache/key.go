package cache

import (
	"bytes"
	"hash/maphash"
	"net/netip"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// Bypass is why a request is neither answered from the cache nor stored.
type Bypass uint8

// The reasons; NoBypass is none.
const (
	NoBypass        Bypass = iota
	BypassMethod           // not GET or FETCH
	BypassCondition        // If-Match or If-None-Match (FP-24)
	BypassProtected        // OSCORE (GP-81)
	BypassSilent           // T' = 0 (GP-37)
	BypassBlock            // a single block is wanted
	BypassNobody           // secured target, unidentified client (FP-48)
	BypassLongKey          // the cache key exceeds its bound (FP-51)
	BypassUnkept           // the client wants nothing stored (HC-57)
)

var bypassNames = [...]string{NoBypass: "none", BypassMethod: "method", BypassCondition: "condition", BypassProtected: "protected",
	BypassSilent: "silent", BypassBlock: "block", BypassNobody: "nobody", BypassLongKey: "long_key", BypassUnkept: "unkept"}

// Bypasses is the number of reasons, for counters indexed by Bypass.
const Bypasses = len(bypassNames)

// String returns the name used in counters.
func (b Bypass) String() string {
	if int(b) < len(bypassNames) {
		return bypassNames[b]
	}
	return "unknown"
}

// asked is what the cache reads out of a request. It borrows from the request
// and is part of the scratch of one call.
type asked struct {
	// key is the request part of the cache key, method first, and behind it the
	// server part (GP-70).
	key []byte
	// uri is where path and query end in key, request where the request part
	// does.
	uri, request int

	etags     etags // the ETags the client listed, in their order
	groupTags etags // its Group-ETags
	hopLimit  uint8
	observe   bool // a registration
	echo      bool
	protected bool   // by OSCORE
	hashed    bool   // with a Request-Hash
	onward    bool   // to a next proxy
	silence   uint32 // No-Response
}

// Markers in front of the parts of a key; option numbers follow optionItem.
const (
	pathItem   = 1
	queryItem  = 2
	optionItem = 3
	bodyItem   = 4
	hopItem    = 5
)

// Marks in front of the name of the client whose entry it is.
const (
	securedMark       = "s"
	authenticatedMark = "S"
)

// read fills a from r and says whether the cache must leave r alone. The key is
// complete up to the server part in every case that names a URI.
func (a *asked) read(r *exchange.Request, c *Config) Bypass {
	*a = asked{key: append(a.key[:0], byte(r.Method)), etags: a.etags[:0], groupTags: a.groupTags[:0], hopLimit: c.HopLimit, onward: r.Target.NextHop != ""}
	a.key = appendURI(a.key, r.Options, wire.URIPath, wire.URIQuery)
	a.uri = len(a.key)
	bypass := NoBypass
	if r.Method != codes.GET && r.Method != wire.FETCH {
		bypass = BypassMethod
	}
	for _, o := range r.Options {
		if b := a.option(o, c); b != NoBypass && bypass == NoBypass {
			bypass = b
		}
	}
	if a.protected && !a.deterministic(r) {
		bypass = BypassProtected // whatever the outer method is, which says nothing
	}
	if len(r.Payload) > 0 && bypass == NoBypass {
		if len(r.Payload) > c.MaxKey {
			bypass = BypassLongKey
		} else {
			a.key = append(appendItem(a.key, bodyItem, nil), r.Payload...) // FP-41, GC-71
		}
	}
	if r.Target.NextHop != "" { // other servers than those that are reached from here
		a.key = append(appendItem(a.key, hopItem, nil), r.Target.NextHop...)
	}
	a.request = len(a.key)
	switch {
	case bypass != NoBypass:
	case r.Stored.Unkept:
		bypass = BypassUnkept
	case r.Timeout.Present && r.Timeout.Seconds == 0:
		bypass = BypassSilent // GP-37
	case a.request > c.MaxKey:
		bypass = BypassLongKey
	case wire.SecureScheme(r.Target.Scheme) && r.Client == nil:
		bypass = BypassNobody // FP-48
	}
	return bypass
}

// deterministic reports a Deterministic Request, the only kind protected end to end
// whose responses can be stored: clients that ask the same send the same bytes
// (OC-88, OH-76).
func (a *asked) deterministic(r *exchange.Request) bool {
	return a.hashed && r.Method == wire.FETCH && !wire.Has(r.Options, wire.EDHOC)
}

// option sorts one option into the key or out of it (FP-24, FP-41, GP-72).
func (a *asked) option(o message.Option, c *Config) Bypass {
	switch o.ID {
	case wire.URIPath, wire.URIQuery, wire.MaxAge, wire.Size1, wire.Size2, wire.RequestTag, c.Numbers.MulticastTimeout:
	case wire.URIPathAbbrev:
		if v, ok := wire.Uint(o.Value); ok {
			if _, known := wire.ExpandPathAbbrev(v); known {
				return NoBypass // the URI part has it (FP-9)
			}
		}
		a.key = appendOption(a.key, o)
	case wire.ETag:
		a.etags = a.etags.add(o.Value)
	case c.Numbers.GroupETag:
		a.groupTags = a.groupTags.add(o.Value)
	case wire.Observe:
		a.observe = len(o.Value) == 0
	case wire.HopLimit:
		if len(o.Value) == 1 {
			a.hopLimit = o.Value[0]
		}
	case wire.Echo:
		a.echo = true
	case wire.NoResponse:
		a.silence, _ = wire.Uint(o.Value)
	case wire.IfMatch, wire.IfNoneMatch:
		return BypassCondition
	case wire.EDHOC:
		a.protected = true
	case wire.OSCORE:
		a.protected = true
		a.key = appendOption(a.key, o) // GP-81
	case wire.RequestHash:
		a.hashed = true
		a.key = appendOption(a.key, o) // OC-89
	case wire.Block1, wire.Block2, wire.QBlock1, wire.QBlock2:
		return BypassBlock
	default:
		if c.Numbers.LegacyTimeout != 0 && o.ID == c.Numbers.LegacyTimeout || wire.NoCacheKey(o.ID) {
			return NoBypass
		}
		a.key = appendOption(a.key, o)
	}
	return NoBypass
}

// server completes the key for one server.
func (a *asked) server(scheme string, addr netip.AddrPort, host string, client *exchange.Identity) {
	a.key = appendServer(a.key[:a.request], scheme, addr, host, client)
}

// appendServer appends the server part of a key. host is the name in a URI that
// had one: it may select a virtual host, so that by-name and by-address are
// different URIs; what a group answers belongs to the address of the responder
// (GP-71, GC-62).
func appendServer(key []byte, scheme string, addr netip.AddrPort, host string, client *exchange.Identity) []byte {
	key = appendItem(key, 0, nil)
	key = append(append(key, scheme...), 0)
	key = appendAddr(key, addr)
	key = append(append(key, host...), 0)
	if wire.SecureScheme(scheme) && client != nil { // FP-48
		mark := securedMark
		if client.Authenticated {
			mark = authenticatedMark
		}
		key = append(append(key, mark...), client.Name...)
	}
	return key
}

func appendAddr(key []byte, addr netip.AddrPort) []byte {
	b := addr.Addr().As16()
	key = append(key, b[:]...)
	key = append(key, byte(addr.Port()>>8), byte(addr.Port()))
	return append(append(key, addr.Addr().Zone()...), 0)
}

// appendURI appends path and query. "/" and the empty path are one (RFC 7252
// §6.5), and so are a path and its abbreviation (FP-9).
func appendURI(key []byte, options message.Options, path, query message.OptionID) []byte {
	start, segments := len(key), 0
	for _, o := range options {
		switch {
		case o.ID == path:
			key = appendItem(key, pathItem, o.Value)
			segments++
		case o.ID == query:
			if segments == 1 && len(key) == start+itemHeader {
				key, segments = key[:start], 0
			}
			key = appendItem(key, queryItem, o.Value)
		case o.ID == wire.URIPathAbbrev && path == wire.URIPath:
			v, ok := wire.Uint(o.Value)
			if !ok {
				continue
			}
			expanded, _ := wire.ExpandPathAbbrev(v)
			for _, segment := range expanded {
				key = appendItem(key, pathItem, []byte(segment))
				segments++
			}
		}
	}
	if segments == 1 && len(key) == start+itemHeader {
		key = key[:start]
	}
	return key
}

const itemHeader = 4

func appendItem(key []byte, kind byte, value []byte) []byte {
	n := len(value)
	key = append(key, kind, byte(n>>16), byte(n>>8), byte(n))
	return append(key, value...)
}

func appendOption(key []byte, o message.Option) []byte {
	key = append(key, optionItem, byte(o.ID>>8), byte(o.ID))
	return appendItem(key, optionItem, o.Value)
}

// appendPlace appends what tells apart the resources whose entries an unsafe
// request makes stale (FP-47): path and query at an address. Scheme, name and
// client are left out, so that rather too much is stale than too little.
func appendPlace(buf, uri []byte, server netip.AddrPort) []byte {
	return appendAddr(append(append(buf, uri...), 0), server)
}

func sum(seed maphash.Seed, b []byte) uint64 { return maphash.Bytes(seed, b) }

// etags is a list of ETag values.
type etags [][]byte

// add appends a value that can be an ETag (RFC 7252 §5.10.6); one of another
// length is an option nobody recognises (FP-22).
func (e etags) add(value []byte) etags {
	if len(value) < 1 || len(value) > 8 {
		return e
	}
	return append(e, value)
}

func (e etags) has(value []byte) bool {
	for _, v := range e {
		if bytes.Equal(v, value) {
			return true
		}
	}
	return false
}

func (e etags) clone() etags {
	if len(e) == 0 {
		return nil
	}
	c := make(etags, len(e))
	for i, v := range e {
		c[i] = append([]byte(nil), v...)
	}
	return c
}
