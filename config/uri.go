package config

import (
	"net/netip"
	"strconv"
	"strings"
)

// defaultPort is the port of coap URIs without one (RFC 7252 §6.1).
const defaultPort = 5683

// schemes are those of listeners with their default ports. They are
// those of servers, too.
var schemes = map[string]uint16{"coap": 5683, "coaps": 5684, "coap+tcp": 5683, "coaps+tcp": 5684, "coap+ws": 80, "coaps+ws": 443,
	"http": 80, "https": 443}

// Listener is an address the proxy listens on.
type Listener struct {
	// Scheme is "coap" (UDP), "coaps" (DTLS), "coap+tcp", "coaps+tcp" (TLS),
	// "coap+ws", "coaps+ws" (WebSocket), "http" or "https" (TCP, and UDP for
	// HTTP/3).
	Scheme string
	// Addr is a unicast or unspecified address, with a zone when link-local.
	// Port 0 lets the system choose.
	Addr netip.AddrPort
}

// String returns the listener's URI.
func (l Listener) String() string { return l.Scheme + "://" + l.Addr.String() }

// overTCP reports whether the listener takes a TCP port.
func (l Listener) overTCP() bool { return l.Scheme != "coap" && l.Scheme != "coaps" }

// HostPort is a host, by address or by name, and a port.
type HostPort struct {
	// Host is the name, in lower case; empty when the host is an address.
	Host string
	// Addr is the address; invalid when the host is a name.
	Addr netip.Addr
	Port uint16
}

// String returns h in the form it has in a URI.
func (h HostPort) String() string {
	if h.Addr.IsValid() {
		return netip.AddrPortFrom(h.Addr, h.Port).String()
	}
	return h.Host + ":" + strconv.Itoa(int(h.Port))
}

// GroupURI is the authority of a coap URI whose host is a multicast address, or
// a name that stands for multicast addresses.
type GroupURI struct{ HostPort }

// String returns the group's URI.
func (g GroupURI) String() string { return "coap://" + g.HostPort.String() }

// Target is a pattern of unicast targets: all hosts, one host by name, or a
// network; with one port or all.
type Target struct {
	// Scheme of the target URIs, in lower case.
	Scheme string
	// Any is true for all hosts.
	Any bool
	// Host is a name, in lower case, compared with the name in a request.
	Host string
	// Network is compared with the address a request resolves to.
	Network netip.Prefix
	// Port is the port to match unless AnyPort is true.
	Port    uint16
	AnyPort bool
}

// String returns the pattern as it is written in the file.
func (t Target) String() string {
	var b strings.Builder
	b.WriteString(t.Scheme + "://")
	switch {
	case t.Any:
		b.WriteString("*")
	case t.Host != "":
		b.WriteString(t.Host)
	case t.Network.Addr().Is6():
		b.WriteString("[" + t.Network.Addr().String() + "]")
	default:
		b.WriteString(t.Network.Addr().String())
	}
	if t.Network.IsValid() && !t.Network.IsSingleIP() {
		b.WriteString("/" + strconv.Itoa(t.Network.Bits()))
	}
	if t.AnyPort {
		b.WriteString(":*")
	} else {
		b.WriteString(":" + strconv.Itoa(int(t.Port)))
	}
	return b.String()
}

// parseListener reads the URI of a listener.
func parseListener(s string) (Listener, *fault) {
	const hint = "write e.g. coap://127.0.0.1:5683 or coap://[::1]:5683"
	scheme, rest, f := cutScheme(s, hint)
	if f != nil {
		return Listener{}, f
	}
	h, f := parseHostPortOf(rest, schemes[scheme])
	if f != nil {
		return Listener{}, f
	}
	if h.Host != "" {
		return Listener{}, faultf(hint, "%s is not an IP address, and a listener needs one", show(h.Host))
	}
	return Listener{Scheme: scheme, Addr: netip.AddrPortFrom(h.Addr, h.Port)}, nil
}

// parseGroupURI reads the URI of a group.
func parseGroupURI(s string) (GroupURI, *fault) {
	const hint = "write e.g. coap://224.0.1.187 or coap://[ff05::fd]"
	scheme, rest, f := cutScheme(s, hint)
	if f != nil {
		return GroupURI{}, f
	}
	if scheme != "coap" {
		return GroupURI{}, faultf("write a coap:// URI", "groups are not reached by %s", scheme)
	}
	h, f := parseHostPort(rest)
	return GroupURI{h}, f
}

// parseTarget reads a target pattern.
func parseTarget(s string) (Target, *fault) {
	const hint = "write e.g. coap://192.0.2.7, coap://192.0.2.0/24:*, coap://[2001:db8::]/64, coap://device.example:5683 or coap://*"
	scheme, rest, f := cutScheme(s, hint)
	if f != nil {
		return Target{}, f
	}
	t := Target{Scheme: scheme, Port: schemes[scheme]}
	if host, ok := strings.CutSuffix(rest, ":*"); ok {
		rest, t.Port, t.AnyPort = host, 0, true
	}
	host, port := cutPort(rest)
	switch {
	case t.AnyPort && port != "":
		return Target{}, faultf(hint, "%s has two ports", show(s))
	case port != "":
		if t.Port, f = parsePort(port[1:]); f != nil {
			return Target{}, f
		}
		if t.Port == 0 {
			return Target{}, faultf("write the port, or * for all", "0 is not the port of a target")
		}
	}
	if host == "*" {
		t.Any = true
		return t, nil
	}
	if strings.Contains(host, "*") {
		return Target{}, faultf(hint, "%s has a * that is not the whole host", show(host))
	}
	if addr, bits, ok := strings.Cut(host, "/"); ok {
		if inner, ok := cutBrackets(addr); ok {
			addr = inner
		} else if strings.Contains(addr, ":") {
			return Target{}, faultf("write "+scheme+"://["+addr+"]/"+bits, "an IPv6 address in a URI needs brackets")
		}
		t.Network, f = parseNetwork(addr + "/" + bits)
		return t, f
	}
	h, f := parseHostPort(host)
	switch {
	case f != nil:
		return Target{}, f
	case h.Addr.Zone() != "":
		return Target{}, faultf("leave the zone out", "%s has a zone, which has no meaning here", show(host))
	case h.Host != "":
		t.Host = h.Host
	default:
		t.Network = netip.PrefixFrom(h.Addr, h.Addr.BitLen())
	}
	return t, nil
}

// cutScheme splits a URI into its scheme, in lower case, and the rest without
// one slash at the end, which changes nothing (RFC 7252 §6.3).
func cutScheme(s, hint string) (scheme, rest string, _ *fault) {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		return "", "", faultf(hint, "%s has no scheme", show(s))
	}
	scheme = strings.ToLower(scheme)
	if _, ok := schemes[scheme]; ok {
		return scheme, strings.TrimSuffix(rest, "/"), nil
	}
	return "", "", faultf("write a coap:// URI", "%s is not a known scheme", show(scheme))
}

// parseHostPort reads host[:port], where host is a name, an IPv4 address or an
// IPv6 address in brackets. A missing port is 5683.
func parseHostPort(s string) (HostPort, *fault) { return parseHostPortOf(s, defaultPort) }

// parseHostPortOf is parseHostPort with another default.
func parseHostPortOf(s string, port0 uint16) (HostPort, *fault) {
	if i := strings.IndexAny(s, "/?#@"); i >= 0 {
		return HostPort{}, faultf("write only the host and the port", "%s has %q, which has no meaning here", show(s), s[i])
	}
	host, port := cutPort(s)
	h := HostPort{Port: port0}
	if port != "" {
		var f *fault
		if h.Port, f = parsePort(port[1:]); f != nil {
			return HostPort{}, f
		}
	}
	literal, bracketed := cutBrackets(host)
	if bracketed {
		host = strings.Replace(literal, "%25", "%", 1) // RFC 6874 §2
	}
	addr, err := netip.ParseAddr(host)
	switch {
	case err == nil && addr.Is6() && !bracketed:
		return HostPort{}, faultf("write ["+host+"]", "an IPv6 address in a URI needs brackets")
	case err == nil && addr.Is4In6():
		return HostPort{}, faultf("write "+addr.Unmap().String(), "%s is an IPv4 address in IPv6 form", show(host))
	case err == nil && addr.Is4() && bracketed, err != nil && bracketed:
		return HostPort{}, faultf("write e.g. [2001:db8::7]", "%s is not an IPv6 address", show(host))
	case err == nil:
		h.Addr = addr
		return h, nil
	case !isHostName(host):
		return HostPort{}, faultf("write e.g. device.example, 192.0.2.7 or [2001:db8::7]", "%s is neither a host name nor an IP address", show(host))
	}
	h.Host = strings.ToLower(host)
	return h, nil
}

// cutPort splits s before the colon of its port; port is empty when there is
// none. An IPv6 address without brackets is left whole.
func cutPort(s string) (host, port string) {
	i := strings.LastIndexByte(s, ':')
	if i < 0 || i < strings.LastIndexByte(s, ']') {
		return s, ""
	}
	if strings.Count(s, ":") > 1 && !strings.HasPrefix(s, "[") {
		return s, ""
	}
	return s[:i], s[i:]
}

// cutBrackets removes the brackets round an IPv6 address.
func cutBrackets(s string) (string, bool) {
	if len(s) < 2 || s[0] != '[' || s[len(s)-1] != ']' {
		return s, false
	}
	return s[1 : len(s)-1], true
}

func parsePort(s string) (uint16, *fault) {
	n, err := parseWhole(s)
	if err != nil || n < 0 || n > 65535 {
		return 0, faultf("write a port from 1 to 65535", "%s is not a port", show(s))
	}
	return uint16(n), nil
}

// isHostName reports whether s can be a host name (RFC 1123 §2.1; underscores
// are tolerated). A last label of digits only is a mistyped address.
func isHostName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	labels := strings.Split(s, ".")
	for _, label := range labels {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return false
		}
		for _, c := range []byte(label) {
			if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
				return false
			}
		}
	}
	return strings.Trim(labels[len(labels)-1], "0123456789") != ""
}
