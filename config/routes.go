package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Route is something that the proxy stands in for as a reverse-proxy: what
// requests without any Proxy option are forwarded to. Of several that match the
// first one counts.
type Route struct {
	// Name is what logs call it; unique.
	Name string `yaml:"name"`
	// Host are the names, in lower case, and the addresses, without brackets, one
	// of which Uri-Host must be; any if empty.
	Host []string `yaml:"host"`
	// Path is what the path must begin with, whole segments; it is taken away.
	Path URIPath `yaml:"path"`
	// Listen are those of the listeners, written as in listen, that the request
	// must have come by; any if empty.
	Listen []Listener `yaml:"listen"`
	// To is the server or group.
	To RouteTarget `yaml:"to"`
	// Servers says how the servers of a group are announced (GP-53 to GP-55).
	Servers RouteServers `yaml:"servers"`
	// Announce is the address of the proxy, and port, as clients know it, where
	// that is not what requests are sent to.
	Announce Announced `yaml:"announce"`
	// OSCORE says whose the layer of a request with OSCORE is (OH-18).
	OSCORE RouteOSCORE `yaml:"oscore"`
	// MulticastTimeout stands in for a missing Multicast-Timeout of HTTP clients
	// that can send none, in whole seconds; 0: it is required.
	MulticastTimeout time.Duration `yaml:"multicast_timeout"`
}

// URIPath is a path: decoded segments.
type URIPath []string

// RouteTarget is the URI of a server or a group, without a query.
type RouteTarget struct {
	Scheme string
	HostPort
	Path URIPath
}

// String returns the URI.
func (t RouteTarget) String() string {
	uri := t.Scheme + "://" + t.HostPort.String()
	if len(t.Path) > 0 {
		uri += "/" + strings.Join(t.Path, "/")
	}
	return uri
}

// Announced is an address with or without a port.
type Announced struct {
	Addr netip.Addr
	Port uint16 // 0: none
}

// PortRange is an address with a port or a range of ports.
type PortRange struct {
	Addr        netip.Addr
	First, Last uint16
}

// RouteServers says how the clients of a route to a group reach a single server
// of it.
type RouteServers string

// The ways to reach a server.
const (
	ServersByHost     RouteServers = "by-host"     // at the proxy, with the server's address in Uri-Host (GP-53)
	ServersByPath     RouteServers = "by-path"     // at the proxy, with a path that tells nothing (GP-53)
	ServersOwnAddress RouteServers = "own-address" // at an address and port of the proxy for each (GP-54)
	ServersDirect     RouteServers = "direct"      // at the server itself (GP-55)
)

// DefaultRoute returns a route without name and target.
func DefaultRoute() Route { return Route{Servers: ServersByHost, OSCORE: OSCOREDecryptFirst} }

// maxPool bounds the addresses and ports for single servers.
const maxPool = 4096

// schemePorts are the schemes a route can lead to, with their ports.
var schemePorts = []struct {
	scheme string
	port   uint16
}{{"coap", 5683}, {"coaps", 5684}, {"coap+tcp", 5683}, {"coaps+tcp", 5684}, {"coap+ws", 80}, {"coaps+ws", 443}, {"http", 80}, {"https", 443}}

// parseRouteTarget reads the URI of a route's target.
func parseRouteTarget(s string) (RouteTarget, *fault) {
	const hint = "write e.g. coap://192.0.2.7, coap://device.example/base or coap://[ff05::fd]"
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return RouteTarget{}, faultf(hint, "%s has no scheme", show(s))
	}
	t := RouteTarget{Scheme: strings.ToLower(scheme)}
	var standard uint16
	for _, known := range schemePorts {
		if known.scheme == t.Scheme {
			standard = known.port
		}
	}
	if standard == 0 {
		return RouteTarget{}, faultf(hint, "%s is not a known scheme", show(scheme))
	}
	authority, path, _ := strings.Cut(rest, "/")
	var f *fault
	if t.HostPort, f = parseHostPort(authority); f != nil {
		return RouteTarget{}, f
	}
	if _, port := cutPort(authority); port == "" {
		t.Port = standard
	}
	t.Path, f = parseURIPath("/" + path)
	return t, f
}

// parseURIPath reads a path with "%XX" in it.
func parseURIPath(s string) (URIPath, *fault) {
	const hint = "write e.g. /lights or /building/1"
	if !strings.HasPrefix(s, "/") || strings.ContainsAny(s, "?#") {
		return nil, faultf(hint, "%s is not a path", show(s))
	}
	s = strings.TrimSuffix(s[1:], "/")
	if s == "" {
		return nil, nil
	}
	var path URIPath
	for segment := range strings.SplitSeq(s, "/") {
		decoded, ok := unescape(segment)
		switch {
		case !ok || len(decoded) > 255:
			return nil, faultf(hint, "%s has a bad segment", show(s))
		case decoded == "" || decoded == "." || decoded == "..":
			return nil, faultf(hint, "%s has the segment %q, which has no meaning here", show(s), decoded)
		}
		path = append(path, decoded)
	}
	return path, nil
}

func unescape(s string) (string, bool) {
	var b strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] != '%' {
			b.WriteByte(s[i])
			continue
		}
		if i+2 >= len(s) {
			return "", false
		}
		n, err := strconv.ParseUint(s[i+1:i+3], 16, 8)
		if err != nil {
			return "", false
		}
		b.WriteByte(byte(n))
		i += 2
	}
	return b.String(), true
}

// parseAnnounced reads ADDRESS or ADDRESS:PORT.
func parseAnnounced(s string) (Announced, *fault) {
	const hint = `write e.g. 203.0.113.5, 203.0.113.5:5683 or "[2001:db8::5]:5683"`
	if isAddr(s) {
		a, f := parseAddr(s)
		return Announced{Addr: a}, f
	}
	h, f := parseHostPort(s)
	switch {
	case f != nil:
		return Announced{}, f
	case h.Host != "" || h.Port == 0 || h.Addr.Zone() != "":
		return Announced{}, faultf(hint, "%s is not an IP address, alone or with a port", show(s))
	}
	return Announced{Addr: h.Addr, Port: h.Port}, nil
}

// parsePortRange reads ADDRESS:PORT or ADDRESS:FIRST-LAST.
func parsePortRange(s string) (PortRange, *fault) {
	const hint = `write e.g. 192.0.2.1:6000-6099, "[2001:db8::1]:6000-6099" or 192.0.2.2:5683`
	host, ports := cutPort(s)
	first, last, isRange := strings.Cut(strings.TrimPrefix(ports, ":"), "-")
	if !isRange {
		last = first
	}
	literal, bracketed := cutBrackets(host)
	addr, f := parseAddr(literal)
	low, f1 := parsePort(first)
	high, f2 := parsePort(last)
	switch {
	case f != nil || f1 != nil || f2 != nil || bracketed != addr.Is6() || low == 0 || high < low:
		return PortRange{}, faultf(hint, "%s is not an address with ports", show(s))
	case addr.IsUnspecified() || addr.IsMulticast():
		return PortRange{}, faultf(hint, "%s is not an address that clients can be told", addr)
	}
	return PortRange{Addr: addr, First: low, Last: high}, nil
}

// routes checks routes, and the keys of proxy that are about them.
func (v *validator) routes() {
	names := map[string]string{}
	listeners := map[Listener]bool{}
	for _, l := range v.c.Listen {
		listeners[l] = true
	}
	for i := range v.c.Routes {
		t := &v.c.Routes[i]
		key := fmt.Sprintf("routes[%d]", i)
		v.name(key, t.Name, names)
		unique(v, key+".host", t.Host)
		for j, host := range t.Host {
			if at := fmt.Sprintf("%s.host[%d]", key, j); !isAddr(host) && (!isHostName(host) || host != strings.ToLower(host)) {
				v.add(at, show(host)+" is neither a host name nor an IP address", "write e.g. lights.example, in lower case")
			}
		}
		unique(v, key+".listen", t.Listen)
		for j, l := range t.Listen {
			if !listeners[l] {
				v.add(fmt.Sprintf("%s.listen[%d]", key, j), l.String()+" is not among the listeners", "write it as it stands under listen")
			}
		}
		for j := range i {
			if w := &v.c.Routes[j]; w.covers(t) {
				v.add(key, fmt.Sprintf("%s matches all of its requests before", v.where(fmt.Sprintf("routes[%d]", j))), "put this one first, or remove it")
				break
			}
		}
		oneOf(v, key+".oscore", t.OSCORE, OSCOREDecryptFirst, OSCOREPassThrough)
		oneOf(v, key+".servers", t.Servers, ServersByHost, ServersByPath, ServersOwnAddress, ServersDirect)
		if t.Servers == ServersOwnAddress && len(v.c.Proxy.ServerAddresses) == 0 { // GP-54
			v.add(key+".servers", "own-address needs addresses", "write proxy.server_addresses, e.g. [192.0.2.1:6000-6099]")
		}
		if t.Announce.Addr.IsValid() && (t.Announce.Addr.IsUnspecified() || t.Announce.Addr.IsMulticast()) {
			v.add(key+".announce", t.Announce.Addr.String()+" is not an address that clients can be told", "write e.g. 203.0.113.5")
		}
		if t.MulticastTimeout != 0 {
			wholeSeconds(v, key+".multicast_timeout", t.MulticastTimeout, time.Second, v.c.Proxy.MaxTimeout)
		}
		v.routeTarget(key+".to", t)
	}
	if len(v.c.Proxy.ServersPath) == 0 {
		v.add("proxy.servers_path", "empty", "write e.g. /servers")
	}
	unique(v, "proxy.server_addresses", v.c.Proxy.ServerAddresses)
	n := 0
	for i, r := range v.c.Proxy.ServerAddresses {
		key := fmt.Sprintf("proxy.server_addresses[%d]", i)
		if n += int(r.Last-r.First) + 1; n > maxPool {
			v.add(key, fmt.Sprintf("more than %d addresses and ports", maxPool), "write fewer")
			break
		}
		for _, l := range v.c.Listen {
			if p := l.Addr.Port(); p != 0 && p >= r.First && p <= r.Last && (l.Addr.Addr() == r.Addr || l.Addr.Addr().IsUnspecified()) {
				v.add(key, fmt.Sprintf("%s is a listener", l), "write ports that are free")
				break
			}
		}
	}
	between(v, "limits.reverse_mappings", v.c.Limits.ReverseMappings, 1, 1<<20)
	between(v, "limits.reverse_lifetime", v.c.Limits.ReverseLifetime, time.Minute, 365*24*time.Hour) // GP-102
}

// routeTarget checks where a route leads.
func (v *validator) routeTarget(key string, t *Route) {
	switch {
	case t.To.Scheme == "":
		v.add(key, "missing", "write e.g. coap://192.0.2.7 or coap://[ff05::fd]")
	case t.To.Port == 0:
		v.add(key, "0 is not a port", "leave it out for the default")
	case len(v.c.GroupsAt(t.To.HostPort)) > 0:
		if t.To.Scheme != "coap" { // GP-22
			v.add(key, t.To.Scheme+" does not reach groups", "write coap://")
		}
	case t.To.Addr.IsMulticast():
		v.add(key, fmt.Sprintf("no group has the URI coap://%s", t.To.HostPort), "add it under groups")
	}
}

// covers reports whether every request that u matches is matched by t as well.
func (t *Route) covers(u *Route) bool {
	within := func(a, b []string) bool {
		return len(a) == 0 || len(b) > 0 && !slices.ContainsFunc(b, func(s string) bool { return !slices.Contains(a, s) })
	}
	if !within(t.Host, u.Host) || len(u.Path) < len(t.Path) || !slices.Equal(t.Path, u.Path[:len(t.Path)]) {
		return false
	}
	return len(t.Listen) == 0 || len(u.Listen) > 0 && !slices.ContainsFunc(u.Listen, func(l Listener) bool { return !slices.Contains(t.Listen, l) })
}

// GroupsAt returns the names of the groups that have one of the addresses, or the
// name, of h.
func (c *Config) GroupsAt(h HostPort) []string {
	addrs := c.Names[h.Host]
	if h.Addr.IsValid() {
		addrs = []netip.Addr{h.Addr.WithZone("")}
	}
	var out []string
	for i := range c.Groups {
		g := &c.Groups[i].URI
		if g.Port != h.Port {
			continue
		}
		same := h.Host != "" && g.Host == h.Host
		for _, a := range append([]netip.Addr{g.Addr.WithZone("")}, c.Names[g.Host]...) {
			same = same || a.IsValid() && slices.Contains(addrs, a)
		}
		if same {
			out = append(out, c.Groups[i].Name)
		}
	}
	return out
}
