package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"unicode/utf8"
)

var (
	errCRINotFull   = errors.New("not a full CRI with a host")
	errCRIFragment  = errors.New("CRI has a fragment")
	errCRIEncoded   = errors.New("CRI has percent-encoded text")
	errCRINoURI     = errors.New("CRI has no form as a URI")
	errProxyCRISize = errors.New("Proxy-Cri is not 1 to 1023 bytes long")
)

// maxProxyCRI is the greatest length of a Proxy-Cri value, in bytes (FP-3).
const maxProxyCRI = 1023

// ParseProxyCRI reads the value of a Proxy-Cri option (FP-3). Every error means
// 4.02, except that one wrapping ErrScheme may be answered with 5.05.
func ParseProxyCRI(value []byte) (URI, error) {
	if len(value) == 0 || len(value) > maxProxyCRI {
		return URI{}, errProxyCRISize
	}
	c, err := ParseCRI(value)
	if err != nil {
		return URI{}, err
	}
	return c.URI()
}

// URI returns the target that a full CRI identifies. It fails where the CRI has
// something that options cannot express (HREF §8.1.1: a fragment,
// percent-encoded text) or that ParseURI would refuse, with ErrScheme for a
// scheme outside FP-6. Dot segments are left for the caller to judge (FP-28).
func (c CRI) URI() (URI, error) {
	u, err := c.uri()
	if err != nil {
		return URI{}, fmt.Errorf("bad CRI: %w", err)
	}
	return u, nil
}

func (c CRI) uri() (u URI, err error) {
	if c.Scheme == "" || c.Authority.Kind != AuthorityHost {
		return u, errCRINotFull
	}
	if c.Fragment != nil {
		return u, errCRIFragment
	}
	u.Scheme = c.Scheme
	var ok bool
	if u.Port, ok = DefaultPort(u.Scheme); !ok {
		return u, ErrScheme
	}
	if c.Authority.HasPort {
		if c.Authority.Port == 0 {
			return u, errCRIPort
		}
		u.Port, u.ExplicitPort = c.Authority.Port, true
	}
	if c.Authority.Userinfo != nil {
		u.HasUserinfo = true
		if u.Userinfo, ok = c.Authority.Userinfo.Plain(); !ok {
			return u, errCRIEncoded
		}
	}
	if u.Host, u.Addr, err = c.Authority.host(); err != nil {
		return u, err
	}
	if u.Path, err = u.plainList(c.Path); err != nil {
		return u, err
	}
	if len(u.Path) == 1 && u.Path[0] == "" {
		u.Path = nil // HREF §8.1.1 step 7
	}
	u.Query, err = u.plainList(c.Query)
	return u, err
}

// host returns name or address, normalised as ParseURI does.
func (a *Authority) host() (name string, addr netip.Addr, err error) {
	if a.Addr.IsValid() {
		return "", a.Addr.Unmap(), nil // GP-7
	}
	var buf []byte
	for i, label := range a.Labels {
		s, ok := label.Plain()
		if !ok {
			return "", netip.Addr{}, errCRIEncoded
		}
		if strings.Contains(s, ".") {
			return "", netip.Addr{}, errCRIHost // HREF §2.1 C5
		}
		if i > 0 {
			buf = append(buf, '.')
		}
		buf = append(buf, s...)
	}
	name, addr, reason := normaliseName(string(buf))
	if reason != "" {
		return "", netip.Addr{}, errors.New(reason)
	}
	return name, addr, nil
}

// plainList turns a path or query into strings; empty and not set are the same
// in a full CRI (HREF §5.1).
func (u *URI) plainList(texts []Text) ([]string, error) {
	var list []string
	for _, t := range texts {
		s, ok := t.Plain()
		if !ok {
			return nil, errCRIEncoded
		}
		if reason := u.checkItem(s); reason != "" {
			return nil, errors.New(reason)
		}
		list = append(list, s)
	}
	return list, nil
}

// Reference returns the URI or URI reference for c (HREF §6.1), or an error for
// one of those that have none, such as dot segments. A zone is written as
// RFC 6874 has it.
func (c CRI) Reference() (string, error) {
	var buf []byte
	if c.Scheme != "" {
		buf = append(append(buf, c.Scheme...), ':')
	}
	if c.Authority.Kind == AuthorityHost {
		var err error
		if buf, err = c.Authority.appendURI(append(buf, "//"...)); err != nil {
			return "", err
		}
	}
	buf, ok := c.appendPath(buf)
	if !ok {
		return "", errCRINoURI
	}
	for i, item := range c.Query {
		if i == 0 {
			buf = append(buf, '?')
		} else {
			buf = append(buf, '&')
		}
		buf = item.appendURI(buf, &queryItemSet)
	}
	if c.Fragment != nil {
		buf = c.Fragment.appendURI(append(buf, '#'), &querySet)
	}
	return string(buf), nil
}

func (a *Authority) appendURI(buf []byte) ([]byte, error) {
	if a.Userinfo != nil {
		buf = append(a.Userinfo.appendURI(buf, &userinfoSet), '@')
	}
	if a.Addr.IsValid() {
		buf = appendHost(buf, "", a.Addr)
	}
	for i, label := range a.Labels {
		for _, run := range label {
			if strings.Contains(run.Value, ".") {
				return nil, errCRIHost
			}
		}
		if i > 0 {
			buf = append(buf, '.')
		}
		buf = label.appendURI(buf, &regNameSet)
	}
	if a.HasPort {
		buf = append(buf, ':')
		buf = strconv.AppendUint(buf, uint64(a.Port), 10)
	}
	return buf, nil
}

func (t Text) appendURI(buf []byte, set *charset) []byte {
	for _, run := range t {
		if run.Encoded {
			buf = appendEncoded(buf, run.Value, &charset{})
		} else {
			buf = appendEncoded(buf, run.Value, set)
		}
	}
	return buf
}

// appendPath appends the path with what discard means in front of it; ok is false
// where URI syntax has no way to say it.
func (c CRI) appendPath(buf []byte) (_ []byte, ok bool) {
	for _, segment := range c.Path {
		if segment.isDots() {
			return nil, false
		}
	}
	emptyFirst := len(c.Path) > 0 && len(c.Path[0]) == 0
	relative := c.Scheme == "" && c.Authority.Kind == AuthorityNone
	rooted := true
	switch {
	case c.Authority.Kind == AuthorityHost:
	case c.Authority.Kind == AuthorityRootless:
		if c.Scheme == "" || len(c.Path) == 0 || emptyFirst {
			return nil, false
		}
		rooted = false
	case emptyFirst && len(c.Path) > 1 && (!relative || c.Discard == DiscardAll):
		return nil, false // would read as an authority
	case !relative:
	case c.Discard == 0:
		// A path always replaces a segment, and only a query removes a query.
		return buf, c.Path == nil && (c.Query == nil || len(c.Query) > 0)
	case len(c.Path) == 0:
		return nil, false
	case c.Discard > 0:
		rooted = false
		buf = appendDiscard(buf, c.Discard, c.Path[0])
	}
	for i, segment := range c.Path {
		if i > 0 || rooted {
			buf = append(buf, '/')
		}
		buf = segment.appendURI(buf, &segmentSet)
	}
	return buf, true
}

// appendDiscard appends the dot segments for a positive discard value, given the
// first segment that will follow.
func appendDiscard(buf []byte, discard int, first Text) []byte {
	if discard == 1 {
		protect := len(first) == 0
		for _, run := range first {
			protect = protect || !run.Encoded && strings.Contains(run.Value, ":")
		}
		if protect {
			buf = append(buf, "./"...)
		}
		return buf
	}
	for ; discard > 1; discard-- {
		buf = append(buf, "../"...)
	}
	return buf
}

// CRIFromURI converts a URI or URI reference of any scheme. Percent-encoded
// characters that could also stand for themselves in their place, and bytes that
// are not UTF-8, become encoded runs; everything else becomes plain text. Dot
// segments are resolved, the default port of a known scheme is left out, and an
// IPv4-mapped address becomes IPv4 (GP-7). The error is a *URIError.
func CRIFromURI(uri string) (CRI, error) {
	var c CRI
	if reason := c.setURI(uri); reason != "" {
		return CRI{}, &URIError{URI: uri, Reason: reason}
	}
	return c, nil
}

func (c *CRI) setURI(s string) (reason string) {
	s, fragment, hasFragment := strings.Cut(s, "#")
	s, query, hasQuery := strings.Cut(s, "?")
	if scheme, rest, ok := cutScheme(s); ok {
		c.Scheme, s = lowerASCII(scheme), rest
	}
	if authority, ok := strings.CutPrefix(s, "//"); ok {
		s = ""
		if i := strings.IndexByte(authority, '/'); i >= 0 {
			authority, s = authority[:i], authority[i:]
		}
		if reason = c.setAuthority(authority); reason != "" {
			return reason
		}
	}
	if reason = c.setPath(s); reason != "" {
		return reason
	}
	if hasQuery {
		for _, item := range strings.Split(query, "&") {
			text, reason := decodeText(item, &queryItemSet)
			if reason != "" {
				return reason
			}
			c.Query = append(c.Query, text)
		}
	}
	if hasFragment {
		c.Fragment = new(Text)
		*c.Fragment, reason = decodeText(fragment, &querySet)
	}
	return reason
}

func (c *CRI) setAuthority(s string) (reason string) {
	parts, reason := splitAuthority(s)
	if reason != "" {
		return reason
	}
	c.Discard = DiscardAll
	a := &c.Authority
	a.Kind = AuthorityHost
	if parts.hasUserinfo {
		a.Userinfo = new(Text)
		if *a.Userinfo, reason = decodeText(parts.userinfo, &userinfoSet); reason != "" {
			return reason
		}
	}
	if parts.literal {
		a.Addr, reason = parseIPLiteral(parts.host)
	} else {
		reason = a.setName(parts.host)
	}
	if reason != "" || parts.port == "" {
		return reason
	}
	port, err := strconv.ParseUint(parts.port, 10, 16)
	if err != nil {
		return "port above 65535"
	}
	standard, ok := DefaultPort(c.Scheme)
	a.Port, a.HasPort = uint16(port), !ok || port != uint64(standard)
	if !a.HasPort {
		a.Port = 0
	}
	return ""
}

// setName splits a registered name, still encoded, into labels.
func (a *Authority) setName(s string) (reason string) {
	// A dot is unreserved, so that an encoded one is the same dot.
	s = strings.NewReplacer("%2E", ".", "%2e", ".").Replace(s)
	if s == "" {
		return ""
	}
	labels := strings.Split(s, ".")
	for _, label := range labels {
		text, reason := decodeText(label, &regNameSet)
		if reason != "" {
			return reason
		}
		for i := range text {
			if !text[i].Encoded {
				text[i].Value = lowerASCII(text[i].Value)
			}
		}
		a.Labels = append(a.Labels, text)
	}
	if name, reason := decodePercent(s, &regNameSet); reason == "" {
		if addr, err := netip.ParseAddr(name); err == nil && addr.Is4() {
			a.Addr, a.Labels = addr, nil
		}
	}
	return ""
}

// setPath reads a path, resolves its dot segments (RFC 3986 §5.2.4), and finds
// the discard value of a reference.
func (c *CRI) setPath(s string) (reason string) {
	relative := c.Scheme == "" && c.Authority.Kind == AuthorityNone
	if s == "" {
		if c.Scheme != "" {
			c.Discard = DiscardAll
		}
		return ""
	}
	c.Discard = DiscardAll
	rootless := s[0] != '/'
	if rootless && relative {
		if first, _, _ := strings.Cut(s, "/"); strings.Contains(first, ":") {
			return "neither a scheme nor a relative path"
		}
		c.Discard = 1
	} else if rootless {
		c.Authority.Kind = AuthorityRootless
	}
	segments := strings.Split(strings.TrimPrefix(s, "/"), "/")
	c.Path = make([]Text, 0, len(segments))
	for i, segment := range segments {
		text, reason := decodeText(segment, &segmentSet)
		if reason != "" {
			return reason
		}
		if !text.isDots() {
			c.Path = append(c.Path, text)
			continue
		}
		if dots, _ := text.Plain(); dots == ".." {
			switch {
			case len(c.Path) > 0:
				c.Path = c.Path[:len(c.Path)-1]
			case c.Discard > 0:
				c.Discard++
			}
		}
		if i == len(segments)-1 {
			c.Path = append(c.Path, nil)
		}
	}
	emptyFirst := len(c.Path[0]) == 0
	switch {
	case c.Discard > maxDiscard:
		return "more than 126 leading dot segments"
	case c.Authority.Kind == AuthorityRootless && emptyFirst,
		c.Authority.Kind == AuthorityNone && c.Discard == DiscardAll && emptyFirst && len(c.Path) > 1:
		return "path would read as an authority"
	}
	return ""
}

// decodeText decodes one component of a URI in which the characters of set may
// stand unencoded.
func decodeText(s string, set *charset) (Text, string) {
	if reason := checkChars(s, set); reason != "" {
		return nil, reason
	}
	if !strings.Contains(s, "%") {
		return PlainText(s), ""
	}
	var text Text
	add := func(value string, encoded bool) {
		if n := len(text); n > 0 && text[n-1].Encoded == encoded {
			text[n-1].Value += value
		} else {
			text = append(text, Run{Value: value, Encoded: encoded})
		}
	}
	for s != "" {
		if literal, _, _ := strings.Cut(s, "%"); literal != "" {
			add(literal, false)
			s = s[len(literal):]
			continue
		}
		// A stretch of percent-encodings, so that UTF-8 sequences stay whole.
		var stretch []byte
		for len(s) > 0 && s[0] == '%' {
			b, _ := hexByte(s[1:])
			stretch = append(stretch, b)
			s = s[3:]
		}
		for len(stretch) > 0 {
			r, size := utf8.DecodeRune(stretch)
			plain := r >= utf8.RuneSelf && size > 1 ||
				r < utf8.RuneSelf && (unreserved.has(stretch[0]) || !set.has(stretch[0]))
			add(string(stretch[:size]), !plain)
			stretch = stretch[size:]
		}
	}
	return text, ""
}
