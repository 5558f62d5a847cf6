package wire

import (
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"
)

// URI is an absolute URI without fragment, taken apart and decoded: what a proxy
// needs to know of its target. Host names in Host are to be resolved by the
// caller; Addr has been checked for its form only.
//
// Decoding is what CoAP asks for, and loses nothing there. In HTTP an encoded
// delimiter can differ from the plain one ("%2B" from "+"): String writes both
// as the plain one, so who forwards an http URI unchanged has to keep the text.
type URI struct {
	Scheme       string     // one of FP-6, lower case
	Host         string     // registered name, decoded, lower case; "" when Addr is set
	Addr         netip.Addr // valid when the host is an IP literal; IPv4-mapped as IPv4 (GP-7); may have a zone
	Port         uint16     // never 0: the default of the scheme when the URI has none
	ExplicitPort bool       // the port was written out
	Path         []string   // segments, decoded; none for "" and for "/" (RFC 7252 §6.4)
	Query        []string   // items between "&", decoded; nil when there is no "?"
	Userinfo     string     // decoded
	HasUserinfo  bool       // there was a userinfo, perhaps empty
}

// URIError says why a string is not a URI of the kind wanted. It wraps ErrScheme
// when the scheme is the reason.
type URIError struct {
	URI    string // as given, unchecked: quote it before printing
	Reason string
	Err    error // ErrScheme or nil
}

func (e *URIError) Error() string { return "bad URI " + strconv.Quote(e.URI) + ": " + e.Reason }

// Unwrap returns ErrScheme or nil.
func (e *URIError) Unwrap() error { return e.Err }

// ParseURI reads an absolute URI of one of the schemes of FP-6, with the steps of
// RFC 7252 §6.4. It is strict: a fragment, an empty host, port 0, characters that
// have to be percent-encoded, and decoded text that is not UTF-8 are errors, and
// so are segments and query items above 255 bytes in a CoAP URI. Segments "." and
// ".." are left for the caller to judge (FP-28), encoded ones too.
//
// The error is a *URIError, with ErrScheme for any other scheme.
func ParseURI(s string) (URI, error) {
	scheme, rest, ok := cutScheme(s)
	if !ok {
		return URI{}, &URIError{URI: s, Reason: "not an absolute URI"}
	}
	u := URI{Scheme: lowerASCII(scheme)}
	if u.Port, ok = DefaultPort(u.Scheme); !ok {
		return URI{}, &URIError{URI: s, Reason: ErrScheme.Error(), Err: ErrScheme}
	}
	if reason := u.setHierarchy(rest); reason != "" {
		return URI{}, &URIError{URI: s, Reason: reason}
	}
	return u, nil
}

// setHierarchy reads what follows the scheme and its colon.
func (u *URI) setHierarchy(s string) (reason string) {
	if strings.Contains(s, "#") {
		return "has a fragment"
	}
	s, ok := strings.CutPrefix(s, "//")
	if !ok {
		return "no host"
	}
	s, query, hasQuery := strings.Cut(s, "?")
	authority, path, _ := strings.Cut(s, "/")
	if reason = u.setAuthority(authority); reason != "" {
		return reason
	}
	// A lone "/" is the same as no path (RFC 7252 §6.4 step 8).
	if path != "" {
		if u.Path, reason = u.decodeList(path, "/", &segmentSet); reason != "" {
			return reason
		}
	}
	if hasQuery {
		u.Query, reason = u.decodeList(query, "&", &queryItemSet)
	}
	return reason
}

// SetQuery sets the query to one that is written as in a URI, where it stands between
// "?" and the end: with the same conditions as ParseURI has for it. The error is a
// *URIError.
func (u *URI) SetQuery(query string) error {
	var reason string
	if strings.Contains(query, "#") {
		reason = "has a fragment"
	} else {
		u.Query, reason = u.decodeList(query, "&", &queryItemSet)
	}
	if reason != "" {
		return &URIError{URI: query, Reason: reason}
	}
	return nil
}

// cutScheme cuts off the scheme (RFC 3986 §3.1); ok is false if there is none.
func cutScheme(s string) (scheme, rest string, ok bool) {
	scheme, rest, ok = strings.Cut(s, ":")
	if !ok || scheme == "" || !('a' <= scheme[0]|0x20 && scheme[0]|0x20 <= 'z') {
		return "", s, false
	}
	for i := 0; i < len(scheme); i++ {
		if !schemeSet.has(scheme[i]) {
			return "", s, false
		}
	}
	return scheme, rest, true
}

// authorityParts is an authority cut up, still encoded (RFC 3986 §3.2).
type authorityParts struct {
	userinfo    string
	hasUserinfo bool
	host        string // without brackets
	literal     bool   // host stood in brackets
	port        string // digits; "" also when only the colon is there
}

func splitAuthority(s string) (p authorityParts, reason string) {
	if userinfo, host, ok := strings.Cut(s, "@"); ok {
		p.userinfo, p.hasUserinfo, s = userinfo, true, host
	}
	port, hasPort := "", false
	if literal, ok := strings.CutPrefix(s, "["); ok {
		var rest string
		if p.host, rest, ok = strings.Cut(literal, "]"); !ok {
			return p, "host bracket not closed"
		}
		p.literal = true
		if port, hasPort = strings.CutPrefix(rest, ":"); !hasPort && rest != "" {
			return p, "text after host bracket"
		}
	} else {
		p.host, port, _ = strings.Cut(s, ":")
	}
	for i := 0; i < len(port); i++ {
		if port[i] < '0' || port[i] > '9' {
			return p, "port is not a number"
		}
	}
	p.port = port
	return p, ""
}

// setAuthority reads userinfo, host and port (RFC 7252 §6.4 steps 5 and 6).
func (u *URI) setAuthority(authority string) (reason string) {
	parts, reason := splitAuthority(authority)
	if reason != "" {
		return reason
	}
	if parts.hasUserinfo {
		u.HasUserinfo = true
		if u.Userinfo, reason = decodePercent(parts.userinfo, &userinfoSet); reason != "" {
			return reason
		}
		if !utf8.ValidString(u.Userinfo) {
			return "userinfo is not UTF-8"
		}
	}
	if parts.literal {
		u.Addr, reason = parseIPLiteral(parts.host)
	} else {
		var name string
		if name, reason = decodePercent(parts.host, &regNameSet); reason == "" {
			u.Host, u.Addr, reason = normaliseName(name)
		}
	}
	if reason != "" || parts.port == "" {
		return reason
	}
	port, err := strconv.ParseUint(parts.port, 10, 16)
	if err != nil || port == 0 {
		return "port outside 1 to 65535"
	}
	u.Port, u.ExplicitPort = uint16(port), true
	return ""
}

// decodeList splits a path or query and decodes the pieces.
func (u *URI) decodeList(s, separator string, set *charset) (list []string, reason string) {
	list = strings.Split(s, separator)
	for i := range list {
		if list[i], reason = decodePercent(list[i], set); reason != "" {
			return nil, reason
		}
		if reason = u.checkItem(list[i]); reason != "" {
			return nil, reason
		}
	}
	return list, ""
}

// checkItem checks a decoded segment or query item.
func (u *URI) checkItem(s string) (reason string) {
	switch {
	case !utf8.ValidString(s):
		return "path or query is not UTF-8"
	case len(s) > maxNameLen && isCoAPScheme(u.Scheme):
		return "path segment or query item longer than 255 bytes"
	}
	return ""
}

// String composes the URI with the steps of RFC 7252 §6.5: the default port is
// left out, the path is at least "/", a zone follows after "%25" (RFC 6874).
func (u URI) String() string {
	buf := make([]byte, 0, 64)
	buf = append(buf, u.Scheme...)
	buf = append(buf, "://"...)
	if u.HasUserinfo {
		buf = appendEncoded(buf, u.Userinfo, &userinfoSet)
		buf = append(buf, '@')
	}
	buf = u.appendAuthority(buf)
	if len(u.Path) == 0 {
		buf = append(buf, '/')
	}
	for _, segment := range u.Path {
		buf = append(buf, '/')
		buf = appendEncoded(buf, segment, &segmentSet)
	}
	for i, item := range u.Query {
		if i == 0 {
			buf = append(buf, '?')
		} else {
			buf = append(buf, '&')
		}
		buf = appendEncoded(buf, item, &queryItemSet)
	}
	return string(buf)
}

// Authority returns "host" or "host:port" as it stands in a URI, with the default
// port and the userinfo left out.
func (u URI) Authority() string { return string(u.appendAuthority(nil)) }

func (u URI) appendAuthority(buf []byte) []byte {
	buf = appendHost(buf, u.Host, u.Addr)
	if port, ok := DefaultPort(u.Scheme); u.Port != 0 && (!ok || u.Port != port) {
		buf = append(buf, ':')
		buf = strconv.AppendUint(buf, uint64(u.Port), 10)
	}
	return buf
}

// appendHost appends a host as it stands in a URI.
func appendHost(buf []byte, name string, addr netip.Addr) []byte {
	switch {
	case !addr.IsValid():
		return appendEncoded(buf, name, &regNameSet)
	case addr.Is4():
		return addr.AppendTo(buf)
	}
	buf = append(buf, '[')
	buf = addr.WithZone("").AppendTo(buf)
	if zone := addr.Zone(); zone != "" {
		buf = append(buf, "%25"...)
		buf = appendEncoded(buf, zone, &unreserved)
	}
	return append(buf, ']')
}
