package httpbridge

import (
	"net/netip"
	"strings"

	"coapproxy/wire"
)

// normalPath is a path in its normal form (RFC 3986 §6.2.2.1, §6.2.2.2): what needs no
// encoding has none, and the rest is encoded in capitals. An encoded slash stays encoded
// and separates nothing. Dot segments stay, too: they are refused (HC-13).
func normalPath(path string) string {
	out := make([]byte, 0, len(path))
	for i := 0; i < len(path); i++ {
		c, ok := encodedAt(path, i)
		switch {
		case !ok:
			out = append(out, path[i])
			continue
		case isUnreserved(c):
			out = append(out, c)
		default:
			const capitals = "0123456789ABCDEF"
			out = append(out, '%', capitals[c>>4], capitals[c&15])
		}
		i += 2
	}
	return string(out)
}

// encodedAt is the byte that s has encoded at i, if it has one there.
func encodedAt(s string, i int) (byte, bool) {
	if s[i] != '%' || i+2 >= len(s) {
		return 0, false
	}
	high, ok := hexDigit(s[i+1])
	low, also := hexDigit(s[i+2])
	return high<<4 | low, ok && also
}

func hexDigit(c byte) (byte, bool) {
	switch {
	case '0' <= c && c <= '9':
		return c - '0', true
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return c | 0x20 - 'a' + 10, true
	}
	return 0, false
}

// isUnreserved reports whether a character means the same encoded and plain (RFC 3986
// §2.3).
func isUnreserved(c byte) bool {
	return isLetter(c) || '0' <= c && c <= '9' || c == '-' || c == '.' || c == '_' || c == '~'
}

// cutSegments cuts segments off the beginning of a path: those whose meaning is
// that of the given ones (RFC 7252 §6.4).
func cutSegments(path string, segments []string) (rest string, ok bool) {
	for _, plain := range segments {
		raw, tail, ok := firstSegment(path)
		if !ok || !means(raw, plain) {
			return path, false
		}
		path = tail
	}
	return path, true
}

// firstSegment is the first segment of a path, as it is written, and what follows it.
func firstSegment(path string) (raw, rest string, ok bool) {
	if path == "" || path[0] != '/' {
		return "", path, false
	}
	path = path[1:]
	if end := strings.IndexByte(path, '/'); end >= 0 {
		return path[:end], path[end:], true
	}
	return path, "", true
}

// means reports whether a segment, encoded or not, stands for plain.
func means(raw, plain string) bool {
	i := 0
	for n := 0; n < len(raw); n++ {
		c, ok := encodedAt(raw, n)
		if ok {
			n += 2
		} else {
			c = raw[n]
		}
		if i >= len(plain) || plain[i] != c {
			return false
		}
		i++
	}
	return i == len(plain)
}

// pathOf writes segments as a path; none are "".
func pathOf(segments []string) string {
	if len(segments) == 0 {
		return ""
	}
	return requestTarget(wire.URI{Path: segments})
}

// requestTarget is the path and query of a URI.
func requestTarget(u wire.URI) string {
	const nowhere = "coap://h"
	return wire.URI{Scheme: "coap", Host: "h", Path: u.Path, Query: u.Query}.String()[len(nowhere):]
}

// isFor reports whether a route with a host is for the one that a client has asked for.
func (r *mappedRoute) isFor(host string) bool {
	if r.addr.IsValid() {
		addr, err := netip.ParseAddr(strings.Trim(host, "[]"))
		return err == nil && addr.Unmap() == r.addr
	}
	return strings.EqualFold(r.Host, strings.TrimSuffix(host, "."))
}

// announced is the segment of a path by which an announced server goes, if there is
// one.
func (m *mapping) announced(path string) (id string, ok bool) {
	if len(m.Servers) == 0 {
		return "", false
	}
	rest, ok := cutSegments(path, m.Servers)
	if !ok {
		return "", false
	}
	id, _, ok = firstSegment(rest)
	return id, ok
}
