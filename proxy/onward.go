package proxy

import (
	"net/netip"

	"coapproxy/exchange"
)

// hopFor is the name of the next proxy for a destination, "" for none.
func (t *Targets) hopFor(d *destination) string {
	if d.nextHop != "" {
		return d.nextHop
	}
	if t.NextHop == nil {
		return ""
	}
	return t.NextHop(d.scheme, d.host, d.addr, d.port)
}

// toNextHop passes on a request for a next proxy. A name is for that to resolve,
// unless the configuration knows it (FP-39); that it is a group's is known from
// the groups that are configured. Zones stay as they are.
func (t *Targets) toNextHop(r *exchange.Request, w exchange.Sink, d *destination, stoodIn bool) exchange.Canceler {
	addrs := t.Names.own[d.host]
	if d.addr.IsValid() {
		addrs = []netip.Addr{d.addr}
	}
	groups, failure := allGroups(addrs)
	if failure != nil {
		return exchange.Fail(w, failure)
	}
	r.Target.Addr = netip.AddrPortFrom(netip.Addr{}, d.port)
	if len(addrs) > 0 {
		r.Target.Addr = netip.AddrPortFrom(addrs[0], d.port)
	}
	if d.asServer {
		r.Form = exchange.FormServer // GP-118
		return t.Next.Exchange(r, w)
	}
	r.Target.Group = groups || len(addrs) == 0 && t.GroupName != nil && t.GroupName(d.host, d.port)
	if !r.Target.Group {
		if d.addr.IsValid() && t.Own(d.scheme, r.Target.Addr) {
			r.Target.NextHop = ""
			return t.itself(r, w, d, stoodIn) // FP-8
		}
		return t.Next.Exchange(r, w)
	}
	if d.scheme != "coap" || d.port == securePort {
		return exchange.Fail(w, exchange.Failf(exchange.NotProxied, "a group has no secure port")) // GP-22, GC-4
	}
	for i := 1; i < len(addrs); i++ { // GC-2
		r.Target.Also = append(r.Target.Also, exchange.GroupAddr{Addr: netip.AddrPortFrom(addrs[i], d.port)})
	}
	return t.Next.Exchange(r, w)
}

// allGroups reports whether the addresses of a target are those of groups; some
// that are and some that are not cannot be (GC-3).
func allGroups(addrs []netip.Addr) (bool, *exchange.Failure) {
	groups := 0
	for _, a := range addrs {
		if a.IsMulticast() {
			groups++
		}
	}
	if groups > 0 && groups < len(addrs) {
		return false, exchange.Failf(exchange.BadRequest, "the name stands for groups and for single servers")
	}
	return groups > 0, nil
}
