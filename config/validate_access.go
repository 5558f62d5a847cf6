package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"
)

const (
	// maxTimeout bounds every configured Multicast-Timeout; the option itself
	// could say 136 years (GP-29).
	maxTimeout = 24 * time.Hour
	maxRate    = 1e6
	maxBurst   = 1_000_000
)

// groups checks groups.
func (v *validator) groups() {
	names := map[string]string{}
	taken := map[HostPort]string{}
	for i := range v.c.Groups {
		g := &v.c.Groups[i]
		key := fmt.Sprintf("groups[%d]", i)
		v.name(key, g.Name, names)
		v.groupURI(key, g, taken)
		v.groupInterfaces(key, g)
		v.methods(key+".methods", g.Methods)
		if g.Methods == nil {
			v.add(key+".methods", "missing", "write e.g. [GET, FETCH]")
		}
		between(v, key+".hop_limit", g.HopLimit, 0, 255) // GC-6
		v.timeout(key+".max_timeout", g.MaxTimeout)
		between(v, key+".max_responses", g.MaxResponses, 1, 10_000_000) // GP-61
		between(v, key+".max_bytes", g.MaxBytes, KiB, 64*GiB)           // GP-61
		between(v, key+".nstart", g.NStart, 1, 65536)                   // GC-80
		between(v, key+".queue", g.Queue, 0, 65536)                     // GC-80
		between(v, key+".leisure", g.Leisure, 0, 10*time.Minute)        // GC-35
		between(v, key+".rate", g.Rate, 0, maxRate)                     // GP-113
		between(v, key+".burst", g.Burst, 1, maxBurst)                  // GP-113
		between(v, key+".fire_and_forget_rate", g.FireAndForgetRate, 0.001, maxRate)
		between(v, key+".fire_and_forget_burst", g.FireAndForgetBurst, 1, maxBurst) // GC-80
		between(v, key+".probing_rate", g.ProbingRate, 0, 1_000_000_000)            // GC-81
		oneOf(v, key+".repeat", g.Repeat, RepeatOff, RepeatSameMID, RepeatNewMID)   // GC-40
		between(v, key+".max_request_payload", g.MaxRequestPayload, 1, 65000)       // GC-56
		v.networks(key+".allowed_sources", g.AllowedSources)                        // GC-25
		between(v, key+".learned.within", g.Learned.Within, 0, 1000)
		v.members(key+".members", g)
		v.directory(key+".rd", g)
	}
}

// members checks the list of a group's servers (GP-75).
func (v *validator) members(key string, g *Group) {
	if len(g.Members) > 0 && g.Learned.Within > 0 {
		v.add(key, "given together with learned", "write the members or have them learned")
	}
	unique(v, key, g.Members)
	for i, m := range g.Members {
		at := fmt.Sprintf("%s[%d]", key, i)
		switch {
		case !m.Addr.IsValid(), m.Addr.IsMulticast(), m.Addr.IsUnspecified(), m.Port == 0:
			v.add(at, m.String()+" is not the address and port of a server", "write e.g. 192.0.2.7:5683")
		case m.Addr.Is6() && m.Addr.IsLinkLocalUnicast() && m.Addr.Zone() == "":
			v.add(at, m.String()+" needs its interface", "write e.g. \"[fe80::1%eth0]:5683\"")
		}
	}
}

// groupURI checks that the group at key is one that can be sent to, and that no
// group so far, in taken, has the same address and port (GC-2).
func (v *validator) groupURI(key string, g *Group, taken map[HostPort]string) {
	key += ".uri"
	u := g.URI.HostPort
	var addrs []netip.Addr
	as := "" // why an address that is not in the URI is checked
	switch {
	case u == HostPort{}:
		v.add(key, "missing", "write e.g. coap://224.0.1.187")
		return
	case u.Port == 0:
		v.add(key, "0 is not the port of a group", "leave it out for 5683")
		return
	case u.Port == 5684: // GC-4
		v.add(key, "5684 is the port of coaps, which has no groups", "leave it out for 5683")
		return
	case u.Host == "":
		addrs = []netip.Addr{u.Addr}
	default:
		addrs = v.c.Names[u.Host]
		if len(addrs) > 0 {
			as = fmt.Sprintf(", which is what %s says", v.where("names."+show(u.Host)))
		}
	}
	same := []HostPort{u}
	for _, addr := range addrs {
		if !v.groupAddr(key, addr, as) {
			return
		}
		if u.Host != "" {
			same = append(same, HostPort{Addr: addr, Port: u.Port})
		}
	}
	if g.HopLimit > 1 && len(addrs) > 0 && !slices.ContainsFunc(addrs, func(a netip.Addr) bool { return !staysOnLink(a) }) {
		v.add(strings.TrimSuffix(key, "uri")+"hop_limit", "a link-local group is always sent with hop limit 1", "remove it") // GC-6
	}
	for _, hp := range same {
		if first, ok := taken[hp]; ok {
			v.add(key, fmt.Sprintf("coap://%s is %s too", hp, v.where(first)), "make them one group")
			return
		}
	}
	for _, hp := range same {
		taken[hp] = key
	}
}

// groupAddr checks one address of the group whose URI is at key.
func (v *validator) groupAddr(key string, addr netip.Addr, as string) bool {
	const hint = "write e.g. coap://224.0.1.187"
	if !addr.IsMulticast() { // GC-9
		v.add(key, addr.String()+" is not a multicast address"+as, hint)
		return false
	}
	if addr.Is4() {
		return true
	}
	scope := addr.As16()[1] & 0x0f
	limit := v.c.Proxy.MaxScope
	switch {
	case scope == 0 || scope == 0xf: // RFC 4291 §2.7
		v.add(key, addr.String()+" has a reserved scope"+as, "write e.g. coap://[ff05::fd]")
		return false
	case limit.Value() != 0 && scope > limit.Value(): // GC-5
		v.add(key, fmt.Sprintf("%s has a wider scope than proxy.max_scope, which is %s%s", addr, limit, as),
			"use a group of smaller scope, or raise proxy.max_scope")
		return false
	}
	return true
}

// groupInterfaces checks the outgoing interfaces of the group at key (GC-7).
func (v *validator) groupInterfaces(key string, g *Group) {
	zone := g.URI.Addr.Zone()
	if zone == "" && len(g.Interfaces) == 0 && v.reachedByHop(g) {
		return
	}
	if zone != "" {
		v.networkInterface(key+".uri", zone)
		if len(g.Interfaces) > 0 && !slices.Equal(g.Interfaces, []string{zone}) {
			v.add(key+".interfaces", "the zone in the URI limits the group to "+show(zone), "leave one of them out")
		}
		return
	}
	key += ".interfaces"
	if len(g.Interfaces) == 0 {
		hint := "write the interfaces to send on, e.g. [eth0]"
		if len(v.c.NextHop) > 0 {
			hint += ", or put the group among the targets of a next_hop"
		}
		v.add(key, "missing", hint)
	}
	unique(v, key, g.Interfaces)
	for i, name := range g.Interfaces {
		v.networkInterface(fmt.Sprintf("%s[%d]", key, i), name)
	}
}

// clients checks clients.
func (v *validator) clients() {
	names := map[string]string{}
	taken, keys, httpNames, contexts := map[netip.Prefix]string{}, map[string]string{}, map[string]string{}, map[string]string{}
	certificates := map[CertificateName]string{}
	groups := newGroupIndex(v)
	for i := range v.c.Clients {
		c := &v.c.Clients[i]
		key := fmt.Sprintf("clients[%d]", i)
		v.name(key, c.Name, names)
		v.clientNetworks(key+".networks", c, taken)
		if first, ok := keys[c.PSK]; ok && c.PSK != "" {
			v.add(key+".psk", fmt.Sprintf("%s is %s too", show(c.PSK), v.where(first)), "give it to one client")
		}
		keys[c.PSK] = key + ".psk"
		if first, ok := httpNames[c.HTTP]; ok && c.HTTP != "" {
			v.add(key+".http", fmt.Sprintf("%s is %s too", show(c.HTTP), v.where(first)), "give it to one client")
		}
		httpNames[c.HTTP] = key + ".http"
		if c.HTTP != "" && v.c.Credentials.HTTP == "" {
			v.add(key+".http", "there is no file of tokens and passwords", "write credentials: {http: FILE}")
		}
		v.clientOSCORE(key+".oscore", c.OSCORE, contexts)
		v.clientCertificate(key+".certificate", c, certificates)
		oneOf(v, key+".dialect", c.Dialect, DialectDraft07, DialectLegacy, DialectBoth) // GP-127
		v.timeout(key+".max_timeout", c.MaxTimeout)
		v.presetTimeout(key+".preset_timeout", c)
		groups.check(v, key+".groups", c.Groups)
		v.methods(key+".methods", c.Methods)
		v.forward(key+".forward", c.Forward)
		oneOf(v, key+".echo", c.Echo, EchoOff, EchoRequired) // FP-81
		between(v, key+".max_exchanges", c.MaxExchanges, 1, 65536)
		between(v, key+".max_observations", c.MaxObservations, 0, 1<<20)
		between(v, key+".con_outstanding", c.ConOutstanding, 1, 1024) // GP-33
		between(v, key+".con_queue", c.ConQueue, 0, 65536)            // GP-33
		if c.ResponseRate != 0 {
			between(v, key+".response_rate", c.ResponseRate, 0.001, maxRate) // GC-84
		}
		between(v, key+".response_burst", c.ResponseBurst, 1, maxBurst)                        // GC-84
		oneOf(v, key+".response_type", c.ResponseType, ResponseSame, ResponseCon, ResponseNon) // GP-33
	}
}

// clientNetworks checks that the client at key can be recognised, and as no
// other one (GP-24).
func (v *validator) clientNetworks(key string, c *Client, taken map[netip.Prefix]string) {
	networks := c.Networks
	if len(networks) == 0 && c.PSK == "" && len(c.Certificate) == 0 && c.HTTP == "" && len(c.OSCORE) == 0 {
		v.add(key, "missing", "write the addresses of the client, e.g. [192.0.2.0/24]")
	}
	v.networks(key, networks)
	for i, n := range networks {
		item := fmt.Sprintf("%s[%d]", key, i)
		if first, ok := taken[n]; ok && parent(first) != key { // v.networks has seen the others
			v.add(item, fmt.Sprintf("%s is %s too", n, v.where(first)), "give it to one client")
			continue
		}
		taken[n] = item
	}
}

// networks checks a list of networks that packets come from.
func (v *validator) networks(key string, networks []netip.Prefix) {
	unique(v, key, networks)
	for i, n := range networks {
		item := fmt.Sprintf("%s[%d]", key, i)
		switch {
		case !n.IsValid():
			v.add(item, "not a network", "write e.g. 192.0.2.0/24")
		case n.Addr().IsMulticast():
			v.add(item, n.String()+" is multicast, and no packet comes from there", "write e.g. 192.0.2.0/24")
		}
	}
}

// timeout checks the longest Multicast-Timeout of a client or group (GP-29).
func (v *validator) timeout(key string, t time.Duration) {
	if t == 0 {
		return // the proxy's
	}
	wholeSeconds(v, key, t, time.Second, maxTimeout)
	if limit := v.c.Proxy.MaxTimeout; t > limit && t <= maxTimeout && !v.reported["proxy.max_timeout"] {
		v.add(key, fmt.Sprintf("%s is more than proxy.max_timeout, which is %s", written(t), written(limit)), "lower it or raise that")
	}
}

// presetTimeout checks the time that stands in for a missing option (GP-127).
func (v *validator) presetTimeout(key string, c *Client) {
	limit := c.MaxTimeout
	if limit <= 0 {
		limit = v.c.Proxy.MaxTimeout
	}
	switch t := c.PresetTimeout; {
	case t == 0:
	case c.Dialect != DialectLegacy:
		v.add(key, "only a client with dialect legacy can have it", "remove it or write dialect: legacy")
	case t > limit && t <= maxTimeout:
		v.add(key, fmt.Sprintf("%s is more than this client's longest timeout, which is %s", written(t), written(limit)), "lower it")
	default:
		wholeSeconds(v, key, t, time.Second, maxTimeout)
	}
}

// methods checks a list of methods (GC-70). Nil means that there is none.
func (v *validator) methods(key string, methods []Method) {
	if methods != nil && len(methods) == 0 {
		v.add(key, "no method", "name at least one, or remove the key")
	}
	unique(v, key, methods)
	for i, m := range methods {
		oneOf(v, fmt.Sprintf("%s[%d]", key, i), m,
			MethodGET, MethodPOST, MethodPUT, MethodDELETE, MethodFETCH, MethodPATCH, MethodIPATCH)
	}
}

// forward checks a list of unicast targets (FP-85).
func (v *validator) forward(key string, targets []Target) {
	unique(v, key, targets)
	for i, t := range targets {
		item := fmt.Sprintf("%s[%d]", key, i)
		switch {
		case schemes[t.Scheme] == 0:
			v.add(item, show(t.Scheme)+" is not a known scheme", "write e.g. coap://192.0.2.7")
		case !t.Any && t.Host == "" && !t.Network.IsValid():
			v.add(item, "no host", "write e.g. coap://192.0.2.7 or coap://*")
		case t.Network.IsValid() && t.Network.Addr().IsMulticast():
			v.add(item, t.Network.Addr().String()+" is a multicast address", "name its group in the key groups")
		case !t.AnyPort && t.Port == 0:
			v.add(item, "no port", "write the port, or * for all")
		default:
			v.reachable(item, t)
		}
	}
}

// reachable reports a target that the proxy's own address rules make useless
// (FP-11).
func (v *validator) reachable(key string, t Target) {
	p := &v.c.Proxy
	addr := t.Network.Addr()
	kind, setting := "", ""
	switch {
	case addr.IsLoopback() && !p.AllowLoopback:
		kind, setting = "a loopback", "proxy.allow_loopback"
	case addr.IsLinkLocalUnicast() && !p.AllowLinkLocal:
		kind, setting = "a link-local", "proxy.allow_link_local"
	case addr.IsPrivate() && !p.AllowPrivate:
		kind, setting = "a private", "proxy.allow_private"
	default:
		return
	}
	v.add(key, fmt.Sprintf("%s is %s address, and %s is false", addr, kind, setting), "set that to true, or remove the target")
}

// groupIndex answers which groups exist.
type groupIndex struct {
	names []string
	known map[string]bool
	// partial is true when the name of a group could not be read, so that a
	// reference may well be right.
	partial bool
}

func newGroupIndex(v *validator) groupIndex {
	x := groupIndex{known: map[string]bool{}, partial: v.reported["groups"]}
	for _, g := range v.c.Groups {
		if g.Name == "" {
			x.partial = true
			continue
		}
		x.known[g.Name] = true
		x.names = append(x.names, g.Name)
	}
	return x
}

// check reports the names in the list at key that no group has.
func (x groupIndex) check(v *validator, key string, names GroupNames) {
	unique(v, key, names)
	for i, name := range names {
		item := fmt.Sprintf("%s[%d]", key, i)
		if name == "*" {
			if len(names) > 1 {
				v.add(item, "* stands for all groups already", "remove it or the other names")
			}
			continue
		}
		if x.known[name] || x.partial {
			continue
		}
		hint := "add it under groups"
		if near := nearest(name, x.names); near != "" {
			hint = "did you mean " + show(near) + "?"
		}
		v.add(item, "no group is named "+show(name), hint)
	}
}
