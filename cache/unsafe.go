package cache

import (
	"errors"
	"net/netip"
	"slices"

	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// unsafe passes a request on that may change its resource, and makes entries
// stale by what is answered (FP-47, GC-71). An unknown method counts as one.
//
// Where no answer tells, it may have been carried out all the same: a server
// whose response did not come, and each member of a group, which may keep its
// success to itself (GC-30). Their entries are stale as well; what is stale by
// mistake costs one validation.
func (c *Cache) unsafe(r *exchange.Request, w exchange.Sink, a *scratch) exchange.Canceler {
	s := &change{sink: w, cache: c, uri: append([]byte(nil), a.key[1:a.uri]...)}
	if !r.Target.Group {
		s.server = r.Target.Addr
		return c.config.Next.Exchange(r, s)
	}
	s.groups = slices.Clone(groupsOf(&r.Target, a.census.groups))
	s.everywhere()
	if r.Timeout.Present && r.Timeout.Seconds == 0 || wire.Suppressed(a.silence, codes.Changed) {
		return c.config.Next.Exchange(r, w) // nobody will tell what came of it
	}
	return c.config.Next.Exchange(r, s)
}

// change is the sink of an unsafe request.
type change struct {
	sink     exchange.Sink
	cache    *Cache
	uri      []byte
	server   netip.AddrPort // of one server
	groups   []exchange.GroupAddr
	answered bool
}

// Respond implements exchange.Sink.
func (s *change) Respond(p *exchange.Response) exchange.Verdict {
	s.answered = true
	if p.Code>>5 == 2 {
		server := s.server
		if s.groups != nil {
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
func (s *change) End(err error) {
	switch {
	case s.groups != nil:
		s.everywhere()
	case !s.answered && perhapsCarriedOut(err):
		s.cache.changed(s.uri, s.server)
	}
	s.sink.End(err)
}

// perhapsCarriedOut tells an exchange whose request reached the server, as far as
// one knows, from one that was refused on the way.
func perhapsCarriedOut(err error) bool {
	if err == nil || errors.Is(err, exchange.ErrCanceled) {
		return true
	}
	switch exchange.AsFailure(err).Reason {
	case exchange.NoAnswer, exchange.Unreachable, exchange.BadResponse, exchange.Internal:
		return true
	}
	return false
}

// everywhere makes the resource stale at every server that is known to be in the
// groups or was heard there.
func (s *change) everywhere() {
	var buffer []netip.AddrPort
	servers, _, _ := s.cache.membersOf(s.groups, &buffer)
	for _, server := range servers {
		s.cache.changed(s.uri, server)
	}
}

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
