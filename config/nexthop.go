package config

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// NextHop is the next proxy of a chain: requests for some targets and groups go
// to it and not to the target itself (FP-39, GP-91).
type NextHop struct {
	// Name identifies the entry in logs and counters; unique.
	Name string `yaml:"name"`
	// URI is where the next proxy is, Backup a second one that carries out the
	// same requests while the first cannot be reached; none if empty.
	URI    HopURI `yaml:"uri"`
	Backup HopURI `yaml:"backup"`
	// Targets are the targets and groups whose requests go there, apart from those
	// that Except lists. The first entry that has a target counts.
	Targets []Via `yaml:"targets"`
	Except  []Via `yaml:"except"`
	// OSCORE names the Security Context that requests for the next proxy are
	// protected with (OH-102); none if empty.
	OSCORE string `yaml:"oscore"`
	// Dialect is the generation of the group options that the next proxy speaks
	// (GP-127): draft-07 or legacy.
	Dialect Dialect `yaml:"dialect"`
	// Form is how the target of a request is named to the next proxy (FP-39).
	Form TargetForm `yaml:"form"`
	// MaxTimeout is the longest Multicast-Timeout that the next proxy is given, in
	// whole seconds, unless it asks for more itself (GP-97); 0: no such limit.
	MaxTimeout time.Duration `yaml:"max_timeout"`
	// Margin is subtracted from the client's Multicast-Timeout beside the round
	// trip to the client (GP-94), in whole seconds.
	Margin time.Duration `yaml:"margin"`
	// Timeout is how long the next proxy may give no sign of life before it counts
	// as down.
	Timeout time.Duration `yaml:"timeout"`
	// RetryMax is the longest pause between attempts to find a next proxy that is
	// down.
	RetryMax time.Duration `yaml:"retry_max"`
	// NStart bounds the requests to the next proxy that it has not acknowledged
	// (FP-92), Queue those that wait behind them.
	NStart int `yaml:"nstart"`
}

// TargetForm is how a proxy is told the target of a request.
type TargetForm string

// The forms: as the client has it, or one that the next proxy understands best.
const (
	FormClient      TargetForm = "client"
	FormProxyURI    TargetForm = "proxy-uri"
	FormProxyScheme TargetForm = "proxy-scheme"
)

// DefaultNextHop returns an entry without name, URI and targets.
func DefaultNextHop() NextHop {
	return NextHop{
		Dialect:    DialectDraft07, // GP-127
		Form:       FormClient,     // FP-39
		MaxTimeout: 0,              // GP-97
		Margin:     0,              // GP-94
		Timeout:    10 * time.Second,
		RetryMax:   time.Minute,
		NStart:     16, // FP-92
	}
}

// HopURI is where a next proxy is. The zero value is none.
type HopURI struct {
	// Scheme is the transport, one of coap, coaps, coap+tcp, coaps+tcp, coap+ws and
	// coaps+ws.
	Scheme string
	HostPort
}

// String returns the URI; empty for none.
func (u HopURI) String() string {
	if u.Scheme == "" {
		return ""
	}
	return u.Scheme + "://" + u.HostPort.String()
}

// Via is a pattern of targets and groups: everything, or the URIs of a scheme
// whose host is any, a name, a name under a domain, or an address of a network.
type Via struct {
	// All matches every URI of every scheme.
	All bool
	// Scheme is that of the target, in lower case.
	Scheme string
	// Any is true for all hosts.
	Any bool
	// Host is a name, and Domain a name that stands for all names under it, in
	// lower case.
	Host, Domain string
	// Network is compared with an address in the URI: names are the next proxy's
	// to resolve, unless the key names has them.
	Network netip.Prefix
	// Port is the port to match unless AnyPort is true.
	Port    uint16
	AnyPort bool
}

// String returns the pattern as it is written in the file.
func (v Via) String() string {
	if v.All {
		return "*"
	}
	host := v.Host
	switch {
	case v.Any:
		host = "*"
	case v.Domain != "":
		host = "*." + v.Domain
	case v.Network.IsValid():
		if host = v.Network.Addr().String(); v.Network.Addr().Is6() {
			host = "[" + host + "]"
		}
		if !v.Network.IsSingleIP() {
			host += "/" + strconv.Itoa(v.Network.Bits())
		}
	}
	if v.AnyPort {
		return v.Scheme + "://" + host + ":*"
	}
	return v.Scheme + "://" + host + ":" + strconv.Itoa(int(v.Port))
}

// Matches reports whether a URI with this scheme, host and port is one of the
// pattern's. The host is a name in lower case, or an address.
func (v Via) Matches(scheme, host string, addr netip.Addr, port uint16) bool {
	switch {
	case v.All:
		return true
	case scheme != v.Scheme || !v.AnyPort && port != v.Port:
		return false
	case v.Any:
		return true
	case v.Host != "":
		return host == v.Host
	case v.Domain != "":
		return strings.HasSuffix(host, "."+v.Domain)
	default:
		return addr.IsValid() && v.Network.Contains(addr.WithZone(""))
	}
}

// NextHopOf returns the name of the next proxy for a target, or "" if its
// requests go to the target itself. A group that has interfaces is reached from
// here.
func (c *Config) NextHopOf(scheme, host string, addr netip.Addr, port uint16) string {
	for i := range c.Groups {
		if g := &c.Groups[i]; len(g.Interfaces) > 0 && g.URI.Port == port && scheme == "coap" && c.isHost(g.URI.HostPort, host, addr) {
			return ""
		}
	}
	for i := range c.NextHop {
		h := &c.NextHop[i]
		has := func(v Via) bool { return v.Matches(scheme, host, addr, port) }
		if slices.ContainsFunc(h.Targets, has) && !slices.ContainsFunc(h.Except, has) {
			return h.Name
		}
	}
	return ""
}

// isHost reports whether a host, by name or by address, is that of u or one of
// those that u's name stands for.
func (c *Config) isHost(u HostPort, host string, addr netip.Addr) bool {
	switch {
	case u.Host != "" && u.Host == host:
		return true
	case !addr.IsValid():
		return false
	case u.Host != "":
		return slices.Contains(c.Names[u.Host], addr.WithZone(""))
	default:
		return u.Addr.WithZone("") == addr.WithZone("")
	}
}

// parseHop reads the URI of a next proxy.
func parseHop(s string) (HopURI, *fault) {
	const hint = "write e.g. coap://192.0.2.9, coaps://proxy.example or coap+tcp://[2001:db8::9]:5683"
	if s == "" {
		return HopURI{}, nil
	}
	scheme, rest, ok := strings.Cut(s, "://")
	scheme = strings.ToLower(scheme)
	port, known := schemes[scheme]
	switch {
	case !ok:
		return HopURI{}, faultf(hint, "%s has no scheme", show(s))
	case !known, scheme == "http", scheme == "https":
		return HopURI{}, faultf(hint, "%s is no scheme by which a CoAP proxy is reached", show(scheme))
	}
	rest = strings.TrimSuffix(rest, "/")
	h, f := parseHostPort(rest)
	if f != nil {
		return HopURI{}, f
	}
	if _, written := cutPort(rest); written == "" {
		h.Port = port
	}
	return HopURI{scheme, h}, nil
}

// parseVia reads a pattern of targets.
func parseVia(s string) (Via, *fault) {
	const hint = `write e.g. coap://192.0.2.0/24:*, coap://[ff05::fd], coap://*.floor2.example, coaps://*:* or "*"`
	if s == "*" {
		return Via{All: true}, nil
	}
	scheme, rest, ok := strings.Cut(s, "://")
	scheme = strings.ToLower(scheme)
	port, known := schemes[scheme]
	switch {
	case !ok:
		return Via{}, faultf(hint, "%s has no scheme", show(s))
	case !known:
		return Via{}, faultf(hint, "%s is not a known scheme", show(scheme))
	}
	v := Via{Scheme: scheme, Port: port}
	host := strings.TrimSuffix(rest, "/")
	if cut, ok := strings.CutSuffix(host, ":*"); ok {
		host, v.Port, v.AnyPort = cut, 0, true
	}
	host, written := cutPort(host)
	switch {
	case v.AnyPort && written != "":
		return Via{}, faultf(hint, "%s has two ports", show(s))
	case written != "":
		var f *fault
		if v.Port, f = parsePort(written[1:]); f != nil {
			return Via{}, f
		}
		if v.Port == 0 {
			return Via{}, faultf("write the port, or * for all", "0 is not the port of a target")
		}
	}
	f := v.setHost(host, hint)
	return v, f
}

// setHost reads the host of a pattern.
func (v *Via) setHost(host, hint string) *fault {
	if host == "*" {
		v.Any = true
		return nil
	}
	if domain, ok := strings.CutPrefix(host, "*."); ok {
		if !isHostName(domain) {
			return faultf(hint, "%s is not the name of a domain", show(domain))
		}
		v.Domain = strings.ToLower(domain)
		return nil
	}
	if strings.Contains(host, "*") {
		return faultf(hint, "%s has a * that is not the whole host or its first label", show(host))
	}
	if addr, bits, ok := strings.Cut(host, "/"); ok {
		if inner, bracketed := cutBrackets(addr); bracketed {
			addr = inner
		}
		var f *fault
		v.Network, f = parseNetwork(addr + "/" + bits)
		return f
	}
	h, f := parseHostPort(host)
	switch {
	case f != nil:
		return f
	case h.Addr.Zone() != "":
		return faultf("leave the zone out", "%s has a zone, which has no meaning here", show(host))
	case h.Host != "":
		v.Host = h.Host
	default:
		v.Network = netip.PrefixFrom(h.Addr, h.Addr.BitLen())
	}
	return nil
}

// nextHops checks next_hop.
func (v *validator) nextHops() {
	names := map[string]string{}
	for i := range v.c.NextHop {
		h := &v.c.NextHop[i]
		key := fmt.Sprintf("next_hop[%d]", i)
		v.name(key, h.Name, names)
		v.hopURI(key+".uri", h.URI, true)
		v.hopURI(key+".backup", h.Backup, false)
		if h.OSCORE != "" && h.Backup.Scheme != "" { // OC-3
			v.add(key+".oscore", "given together with backup", "give the second proxy a context and an entry of its own: two proxies must not have the same keys")
		}
		if h.Backup.Scheme != "" && h.Backup == h.URI {
			v.add(key+".backup", "the same as uri", "write another proxy, or remove it")
		}
		if len(h.Targets) == 0 {
			v.add(key+".targets", "missing", `write whose requests go there, e.g. ["coap://[ff05::fd]", "coap://192.0.2.0/24:*"]`)
		}
		unique(v, key+".targets", h.Targets)
		unique(v, key+".except", h.Except)
		oneOf(v, key+".dialect", h.Dialect, DialectDraft07, DialectLegacy) // GP-127
		oneOf(v, key+".form", h.Form, FormClient, FormProxyURI, FormProxyScheme)
		if h.MaxTimeout != 0 {
			wholeSeconds(v, key+".max_timeout", h.MaxTimeout, time.Second, maxTimeout)
		}
		wholeSeconds(v, key+".margin", h.Margin, 0, time.Minute)
		between(v, key+".timeout", h.Timeout, time.Second, 5*time.Minute)
		between(v, key+".retry_max", h.RetryMax, time.Second, time.Hour)
		between(v, key+".nstart", h.NStart, 1, 65536) // FP-92
	}
}

// hopURI checks where a next proxy is.
func (v *validator) hopURI(key string, u HopURI, required bool) {
	switch {
	case u.Scheme == "" && required:
		v.add(key, "missing", "write e.g. coap://192.0.2.9")
	case u.Scheme == "":
	case u.Port == 0:
		v.add(key, "0 is not the port of a proxy", "write a port from 1 to 65535")
	case u.Addr.IsMulticast() || u.Addr.IsUnspecified():
		v.add(key, u.Addr.String()+" is not the address of a proxy", "write e.g. coap://192.0.2.9") // GC-94
	case u.Addr.Is6() && u.Addr.IsLinkLocalUnicast() && u.Addr.Zone() == "":
		v.add(key, u.Addr.String()+" needs its interface", "write e.g. coap://[fe80::9%eth0]")
	case slices.ContainsFunc(v.c.Listen, func(l Listener) bool { return l.Scheme == u.Scheme && l.Addr == netip.AddrPortFrom(u.Addr, u.Port) }):
		v.add(key, u.String()+" is this proxy itself", "write the proxy behind it") // FP-8
	}
}

// reachedByHop reports whether the requests to a group without interfaces go to a
// next proxy.
func (v *validator) reachedByHop(g *Group) bool {
	u := g.URI.HostPort
	if v.c.NextHopOf("coap", u.Host, u.Addr, u.Port) != "" {
		return true
	}
	for _, addr := range v.c.Names[u.Host] {
		if v.c.NextHopOf("coap", u.Host, addr, u.Port) != "" {
			return true
		}
	}
	return false
}
