package wire

import (
	"errors"
	"net/netip"
	"slices"
)

// CRI is a Constrained Resource Identifier, or a reference to one, in the
// abstract form of draft-ietf-core-href ("HREF") §5.2. It is a full CRI when
// Scheme is set, and a reference otherwise.
type CRI struct {
	Scheme    string // lower case; "" = not set
	Authority Authority
	Discard   int    // path segments of the base to drop, 0 to 127, or DiscardAll; without meaning when Scheme or Authority is set
	Path      []Text // nil = not set
	Query     []Text // nil = not set
	Fragment  *Text  // nil = not set
}

// DiscardAll as the value of Discard drops the whole path of the base.
const DiscardAll = -1

const maxDiscard = 127

// AuthorityKind says what stands in the authority section of a CRI.
type AuthorityKind uint8

// The kinds of authority sections.
const (
	AuthorityNone     AuthorityKind = iota // not set; in a full CRI the path begins with "/"
	AuthorityRootless                      // none, and the path does not begin with "/"
	AuthorityHost                          // a host, perhaps with userinfo and port
)

// Authority is the authority section of a CRI. Beside Kind the fields count only
// for AuthorityHost.
type Authority struct {
	Kind     AuthorityKind
	Userinfo *Text      // nil = not set
	Labels   []Text     // of the host name; unused when Addr is valid, none = empty name
	Addr     netip.Addr // valid when the host is an IP address; IPv6 ones may have a zone
	Port     uint16
	HasPort  bool
}

// Text is a text string of a CRI: a plain one is a single Run, or none if empty.
// With percent-encoded text (HREF §7.2) literal and encoded runs alternate.
type Text []Run

// Run is a part of a Text that is written in one way.
type Run struct {
	Value   string
	Encoded bool // Value is bytes that stay percent-encoded in the URI
}

// PlainText returns s as a Text without percent-encoded parts.
func PlainText(s string) Text {
	if s == "" {
		return nil
	}
	return Text{{Value: s}}
}

// Plain returns the text and whether it is one without percent-encoded parts.
func (t Text) Plain() (string, bool) {
	switch {
	case len(t) == 0:
		return "", true
	case len(t) == 1 && !t[0].Encoded:
		return t[0].Value, true
	}
	return "", false
}

// isDots reports whether t is a dot segment, which no CRI may have (HREF §2.3).
func (t Text) isDots() bool {
	s, ok := t.Plain()
	return ok && (s == "." || s == "..")
}

var errCRIBase = errors.New("base is not a full CRI")

// Append appends the encoded CRI in the interchange form of HREF §5.1: the scheme
// by number where FP-6 has one, and no trailing defaults.
func (c CRI) Append(buf []byte) []byte {
	full := c.Scheme != ""
	relative := !full && c.Authority.Kind == AuthorityNone

	local := 0 // sections after scheme and authority, or after discard
	switch {
	case c.Fragment != nil:
		local = 3
	case c.Query != nil && (!full || len(c.Query) > 0):
		local = 2
	case c.Path != nil && (!full || len(c.Path) > 0):
		local = 1
	}
	switch {
	case relative && local == 0 && c.Discard == 0:
		return appendCBORHead(buf, cborArray, 0)
	case relative:
		buf = appendCBORHead(buf, cborArray, uint64(1+local))
		if c.Discard == DiscardAll {
			buf = appendCBORHead(buf, cborSimple, simpleTrue)
		} else {
			buf = appendCBORHead(buf, cborUint, uint64(c.Discard))
		}
	case local == 0 && c.Authority.Kind == AuthorityNone:
		buf = appendCBORHead(buf, cborArray, 1)
		return appendCRIScheme(buf, c.Scheme)
	default:
		buf = appendCBORHead(buf, cborArray, uint64(2+local))
		buf = appendCRIScheme(buf, c.Scheme)
		buf = c.Authority.append(buf)
	}
	if local > 0 {
		buf = appendCRITexts(buf, c.Path)
	}
	if local > 1 {
		buf = appendCRITexts(buf, c.Query)
	}
	if local > 2 {
		buf = appendCRIText(buf, *c.Fragment)
	}
	return buf
}

func appendCRIScheme(buf []byte, scheme string) []byte {
	if scheme == "" {
		return appendCBORHead(buf, cborSimple, simpleNull)
	}
	if n, ok := SchemeNumber(scheme); ok {
		return appendCBORHead(buf, cborNegint, uint64(n))
	}
	return appendCBORText(buf, scheme)
}

func (a *Authority) append(buf []byte) []byte {
	switch a.Kind {
	case AuthorityNone:
		return appendCBORHead(buf, cborSimple, simpleNull)
	case AuthorityRootless:
		return appendCBORHead(buf, cborSimple, simpleTrue)
	}
	n := len(a.Labels)
	if a.Addr.IsValid() {
		n = 1
		if a.Addr.Zone() != "" {
			n = 2
		}
	}
	if a.Userinfo != nil {
		n += 2
	}
	if a.HasPort {
		n++
	}
	buf = appendCBORHead(buf, cborArray, uint64(n))
	if a.Userinfo != nil {
		buf = appendCBORHead(buf, cborSimple, simpleFalse)
		buf = appendCRIText(buf, *a.Userinfo)
	}
	if a.Addr.IsValid() {
		buf = appendCRIAddr(buf, a.Addr)
	} else {
		for _, label := range a.Labels {
			buf = appendCRIText(buf, label)
		}
	}
	if a.HasPort {
		buf = appendCBORHead(buf, cborUint, uint64(a.Port))
	}
	return buf
}

// appendCRIAddr appends an address as a byte string and its zone, if any, as a
// text.
func appendCRIAddr(buf []byte, addr netip.Addr) []byte {
	if addr.Is4() {
		value := addr.As4()
		return append(appendCBORHead(buf, cborBytes, 4), value[:]...)
	}
	value := addr.As16()
	buf = append(appendCBORHead(buf, cborBytes, 16), value[:]...)
	if zone := addr.Zone(); zone != "" {
		buf = appendCBORText(buf, zone)
	}
	return buf
}

func appendCRITexts(buf []byte, texts []Text) []byte {
	if texts == nil {
		return appendCBORHead(buf, cborSimple, simpleNull)
	}
	buf = appendCBORHead(buf, cborArray, uint64(len(texts)))
	for _, t := range texts {
		buf = appendCRIText(buf, t)
	}
	return buf
}

func appendCRIText(buf []byte, t Text) []byte {
	if s, ok := t.Plain(); ok {
		return appendCBORText(buf, s)
	}
	buf = appendCBORHead(buf, cborArray, uint64(len(t)))
	for _, run := range t {
		major := byte(cborText)
		if run.Encoded {
			major = cborBytes
		}
		buf = append(appendCBORHead(buf, major, uint64(len(run.Value))), run.Value...)
	}
	return buf
}

// Resolve returns the full CRI that c means relative to base, a full CRI (HREF
// §5.3). A c with a scheme is its own result.
func (c CRI) Resolve(base CRI) (CRI, error) {
	if base.Scheme == "" {
		return CRI{}, errCRIBase
	}
	if c.Scheme != "" {
		return c, nil
	}
	out := base
	switch {
	case c.Discard == DiscardAll || c.Authority.Kind != AuthorityNone:
		out.Path, out.Query, out.Fragment = nil, nil, nil
		if out.Authority.Kind == AuthorityRootless {
			out.Authority.Kind = AuthorityNone
		}
	case c.Discard > 0:
		out.Path = base.Path[:max(0, len(base.Path)-c.Discard)]
		out.Query, out.Fragment = nil, nil
	}
	if c.Path != nil {
		out.Path = slices.Concat(out.Path, c.Path)
		if out.Path == nil {
			out.Path = []Text{}
		}
		out.Query, out.Fragment = nil, nil
	}
	if c.Query != nil {
		out.Query, out.Fragment = c.Query, nil
	}
	if c.Fragment != nil {
		out.Fragment = c.Fragment
	}
	if c.Authority.Kind != AuthorityNone {
		out.Authority = c.Authority
	}
	return out, nil
}
