package cache

import (
	"net/netip"

	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// unsafe passes a request on that may change its resource, and makes entries
// stale by what is answered (FP-47, GC-71). An unknown method counts as one.
func (c *Cache) unsafe(r *exchange.Request, w exchange.Sink, a *scratch) exchange.Canceler {
	uri := append([]byte(nil), a.key[1:a.uri]...)
	if r.Target.Group && (r.Timeout.Present && r.Timeout.Seconds == 0 || wire.Suppressed(a.silence, codes.Changed)) {
		// Nobody will tell what came of it.
		servers, _, _ := c.members(r, a)
		for _, server := range servers {
			c.changed(uri, server)
		}
		return c.config.Next.Exchange(r, w)
	}
	s := &change{sink: w, cache: c, uri: uri}
	if !r.Target.Group {
		s.server = r.Target.Addr
	}
	return c.config.Next.Exchange(r, s)
}

// change is the sink of an unsafe request.
type change struct {
	sink   exchange.Sink
	cache  *Cache
	uri    []byte
	server netip.AddrPort // zero for a group: the one that answers
}

// Respond implements exchange.Sink.
func (s *change) Respond(p *exchange.Response) exchange.Verdict {
	if p.Code>>5 == 2 {
		server := s.server
		if !server.IsValid() {
			server = unmapped(p.From)
		}
		s.cache.changed(s.uri, server)
		if p.Code == codes.Created && (wire.Has(p.Options, wire.LocationPath) || wire.Has(p.Options, wire.LocationQuery)) {
			s.cache.changed(appendURI(nil, p.Options, wire.LocationPath, wire.LocationQuery), server) // GC-66
		}
	}
	return s.sink.Respond(p)
}

// End implements exchange.Sink.
func (s *change) End(err error) { s.sink.End(err) }

// changed makes a resource of a server stale. Exchanges under way with it, alone
// or as a member of a group, may bring what it was before: they store nothing as
// fresh and nobody joins them any more.
func (c *Cache) changed(uri []byte, server netip.AddrPort) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.store.invalidate(c.store.placeOf(uri, server))
	c.store.invalidate(c.store.placeOf(uri, netip.AddrPort{}))
}

func unmapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}
