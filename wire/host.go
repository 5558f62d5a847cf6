package wire

import (
	"net/netip"
	"strings"
	"unicode/utf8"
)

// maxNameLen is the longest value of a Uri-Host, Uri-Path or Uri-Query option,
// in bytes.
const maxNameLen = 255

// ParseHost reads a host as it stands in a Uri-Host option (RFC 7252 §5.10.1): a
// name, an IPv4 address, or an IPv6 address with or without brackets, for both
// are seen in use. A zone follows after "%" (or "%25" inside brackets). Exactly
// one of name and addr is set; names come back in lower case and IPv4-mapped
// addresses as IPv4 (GP-7). The error is a *URIError.
func ParseHost(s string) (name string, addr netip.Addr, err error) {
	var reason string
	switch {
	case strings.HasPrefix(s, "["):
		if !strings.HasSuffix(s, "]") {
			reason = "host bracket not closed"
			break
		}
		addr, reason = parseIPLiteral(s[1 : len(s)-1])
	case strings.Contains(s, ":"):
		if ip, zone, hasZone := strings.Cut(s, "%"); isIPv6(ip) {
			addr, reason = parseIPv6(ip, zone, hasZone)
			break
		}
		fallthrough
	default:
		name, addr, reason = normaliseName(s)
	}
	if reason != "" {
		return "", netip.Addr{}, &URIError{URI: s, Reason: reason}
	}
	return name, addr, nil
}

// normaliseName checks a registered name, already decoded, and returns it in
// lower case; an IPv4 address in disguise comes back as one.
func normaliseName(s string) (name string, addr netip.Addr, reason string) {
	switch {
	case s == "":
		return "", netip.Addr{}, "no host"
	case len(s) > maxNameLen:
		return "", netip.Addr{}, "host name longer than 255 bytes"
	case !utf8.ValidString(s):
		return "", netip.Addr{}, "host name is not UTF-8"
	case strings.ContainsFunc(s, isControl):
		return "", netip.Addr{}, "control character in host name"
	}
	ip, _, _ := strings.Cut(s, "%")
	a, err := netip.ParseAddr(ip)
	if err == nil && a.Is4() && ip == s {
		return "", a, ""
	}
	if err == nil || s[0] == '[' {
		// A name that the next reader of a Uri-Host option, or a resolver,
		// would take for an address that no access rule has seen.
		return "", netip.Addr{}, "IP address written as a host name"
	}
	return lowerASCII(s), netip.Addr{}, ""
}

// isControl picks out what no host name has and what would forge log lines and
// header fields.
func isControl(r rune) bool { return r < ' ' || 0x7f <= r && r < 0xa0 }

// parseIPLiteral reads what stands between the brackets of a URI (RFC 3986
// §3.2.2). A zone follows after "%25" (RFC 6874) or, as many write it, after a
// bare "%"; where both readings are possible the first is taken.
func parseIPLiteral(s string) (addr netip.Addr, reason string) {
	ip, zone, hasZone := strings.Cut(s, "%")
	if len(zone) > len("25") {
		zone = strings.TrimPrefix(zone, "25")
	}
	if hasZone {
		if zone, reason = decodePercent(zone, &unreserved); reason != "" {
			return netip.Addr{}, reason
		}
	}
	return parseIPv6(ip, zone, hasZone)
}

// parseIPv6 puts address and zone together; IPv4-mapped addresses become IPv4
// (GP-7).
func parseIPv6(ip, zone string, hasZone bool) (addr netip.Addr, reason string) {
	if !isIPv6(ip) {
		return netip.Addr{}, "not an IPv6 address"
	}
	addr = netip.MustParseAddr(ip)
	if hasZone {
		if reason := checkZone(zone); reason != "" {
			return netip.Addr{}, reason
		}
		addr = addr.WithZone(zone)
	}
	return addr.Unmap(), ""
}

func isIPv6(s string) bool {
	addr, err := netip.ParseAddr(s)
	return err == nil && addr.Is6() && addr.Zone() == ""
}

// checkZone checks a zone identifier (RFC 4007 §11.2).
func checkZone(zone string) (reason string) {
	switch {
	case zone == "":
		return "empty zone"
	case len(zone) > maxNameLen:
		return "zone longer than 255 bytes"
	case !utf8.ValidString(zone):
		return "zone is not UTF-8"
	case strings.ContainsFunc(zone, isControl):
		return "control character in zone"
	}
	return ""
}
