package httpbridge

import (
	"errors"
	"fmt"
	"hash/maphash"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// Mapping says which HTTP request targets stand for which CoAP URIs.
type Mapping struct {
	// Prefix is the path of the base URI, with a slash at both ends; empty:
	// "/hc/" (HC-3). Below it the default mapping (HC-2) and
	// "?target_uri=" (HC-7) are always served.
	Prefix string
	// Templates are further URI templates relative to the base (HC-7, HC-9), for
	// example "?s={+s}&hp={+hp}&p={+p}&q={+q}".
	Templates []string
	// DefaultScheme stands in for a missing one in the default mapping (HC-6);
	// empty: 400.
	DefaultScheme string
	// Forward serves absolute-form request targets with a CoAP scheme (HC-11).
	Forward bool
	// Routes are the null mapping: a table of paths (HC-10), looked through in this
	// order.
	Routes []Route
	// Servers are the segments in front of the one by which a server goes that was
	// announced to clients of a route, and Announced reports whether one does: such
	// paths come before all routes (GP-56). None: nothing is announced.
	Servers   []string
	Announced func(id string) bool
}

// Route maps a path, and everything below it, to a CoAP URI and what is below
// that (HC-10).
type Route struct {
	// Host is the host the client asked for, without port or brackets; empty: any.
	Host string
	// Listener reports whether a request came by one of the listeners for which the
	// route is; nil: by any.
	Listener func(scheme string, local netip.AddrPort) bool
	// Path are the segments that the path must begin with. They are compared with
	// what those of the request mean, however they are encoded.
	Path []string
	// Target is a CoAP URI without query.
	Target string
	// Name is that of a route whose servers are announced (see exchange.Request.Route);
	// empty: clients are told the addresses of servers.
	Name string
	// Timeout stands in for a missing Multicast-Timeout field (HC-92).
	Timeout exchange.Timeout
}

const (
	defaultPrefix  = "/hc/"
	corePath       = "/.well-known/core"
	openAPIPath    = "/openapi.json"
	targetVariable = "target_uri="
	// maxTarget is the longest Proxy-Uri value (RFC 7252 §5.10).
	maxTarget = 1034
)

type placeKind uint8

const (
	placeTarget placeKind = iota
	placeCore
	placeOpenAPI
	placeSession
	placeServer // "*": the proxy as a whole
)

// place is what a request target means.
type place struct {
	kind  placeKind
	query string // of the resources of the proxy itself
	uri   wire.URI
	text  []byte // uri, written out
	// forward: the request came in the forward-proxy form (HC-11).
	forward bool
	timeout exchange.Timeout // default of the route
	route   *mappedRoute
	// server is the path of a server that was announced; then uri has the path and query
	// of what was asked for, at this proxy, and nothing else. Nil: none.
	server []string
	// passing: what was asked for can mean something else soon.
	passing bool
}

type mapping struct {
	Mapping
	templates []template
	routes    []mappedRoute
	elsewhere bool // what a target means can depend on more than itself
	memo      placeMemo
}

type mappedRoute struct {
	Route
	addr   netip.Addr // that Host is; else invalid
	path   string     // written out, without a slash at the end
	target wire.URI
	text   string // the target without a slash at the end
}

func newMapping(c Mapping) (*mapping, error) {
	m := &mapping{Mapping: c, memo: placeMemo{seed: maphash.MakeSeed()}}
	if m.Prefix == "" {
		m.Prefix = defaultPrefix
	}
	if !strings.HasPrefix(m.Prefix, "/") || !strings.HasSuffix(m.Prefix, "/") || strings.ContainsAny(m.Prefix, "?#% ") {
		return nil, fmt.Errorf("prefix %q: must begin and end with a slash and need no encoding", m.Prefix)
	}
	for _, text := range c.Templates {
		t, err := parseTemplate(text)
		if err != nil {
			return nil, fmt.Errorf("template %q: %w", text, err)
		}
		m.templates = append(m.templates, t)
	}
	for _, r := range c.Routes {
		u, err := wire.ParseURI(r.Target)
		switch {
		case err != nil:
			return nil, fmt.Errorf("route to %s: %w", r.Target, err)
		case !isCoAP(u.Scheme), u.Query != nil, u.HasUserinfo:
			return nil, fmt.Errorf("route to %s: the target must be a CoAP URI without query", r.Target)
		}
		m.elsewhere = m.elsewhere || r.Host != "" || r.Listener != nil
		addr, _ := netip.ParseAddr(r.Host)
		m.routes = append(m.routes, mappedRoute{Route: r, addr: addr.Unmap(), path: pathOf(r.Path), target: u, text: strings.TrimSuffix(u.String(), "/")})
	}
	return m, nil
}

func isCoAP(scheme string) bool { return strings.HasPrefix(scheme, "coap") }

// find is resolve with what it remembers. The place is shared and never changed.
func (m *mapping) find(target string, to addressed) (*place, *problem) {
	if m.elsewhere || len(target) > memoLength {
		p, refusal := m.resolve(target, to)
		return &p, refusal
	}
	slot, hash, known := m.memo.look(target)
	if known != nil {
		return known, nil
	}
	p, refusal := m.resolve(target, to)
	if refusal == nil && !p.passing {
		slot.remember(target, hash, &p)
	}
	return &p, refusal
}

// addressed is what a client sent a request to.
type addressed struct {
	host   string // as it says
	scheme string // of the listener
	local  netip.AddrPort
}

// resolve reads a raw request target (HC-5).
func (m *mapping) resolve(target string, to addressed) (place, *problem) {
	scheme, _, absolute := cutScheme(target)
	switch {
	case target == "*":
		return place{kind: placeServer}, nil
	case strings.HasPrefix(target, "/"):
	case absolute && (scheme == "http" || scheme == "https"): // RFC 9112 §3.2.2
		authority, path, _ := strings.Cut(target[len(scheme)+1:], "//")
		if authority != "" {
			return place{}, refuse(http.StatusBadRequest, "malformed request target", "")
		}
		end := strings.IndexAny(path, "/?")
		if end < 0 {
			end = len(path)
		}
		to.host, target = path[:end], path[end:]
		if !strings.HasPrefix(target, "/") {
			target = "/" + target
		}
	case absolute && m.Forward:
		p, refusal := m.target(target)
		p.forward = true
		return p, refusal // HC-11
	case absolute:
		return place{}, refuse(http.StatusNotImplemented, "the forward-proxy form of request targets is not served here",
			"ask for "+m.Prefix+"coap://host/path instead")
	default:
		return place{}, refuse(http.StatusBadRequest, "malformed request target", "")
	}
	return m.origin(target, &to)
}

// origin reads a request target in origin form.
func (m *mapping) origin(target string, to *addressed) (place, *problem) {
	path, query, hasQuery := strings.Cut(target, "?")
	if strings.IndexByte(path, '%') >= 0 {
		path = normalPath(path)
		if target = path; hasQuery {
			target += "?" + query
		}
	}
	switch path {
	case corePath:
		return place{kind: placeCore, query: query}, nil
	case openAPIPath:
		return place{kind: placeOpenAPI}, nil
	case sessionPath:
		return place{kind: placeSession}, nil
	}
	id, announced := m.announced(path)
	if announced && m.Announced(id) {
		p, refusal := m.target("coap://h" + target) // for what is said of paths there
		p.server, p.passing = append(slices.Clip(m.Servers), id), true
		p.uri.Host = ""
		return p, refusal
	}
	for i := range m.routes {
		r := &m.routes[i]
		rest, ok := cutSegments(path, r.Path)
		if !ok || r.Host != "" && !r.isFor(hostOnly(to.host)) || r.Listener != nil && !r.Listener(to.scheme, to.local) {
			continue
		}
		if hasQuery {
			rest += "?" + query
		}
		p, refusal := m.target(r.text + rest) // HC-10
		p.timeout, p.route, p.passing = r.Timeout, r, announced
		return p, refusal
	}
	rest, ok := strings.CutPrefix(target, m.Prefix)
	if !ok && hasQuery && path == strings.TrimSuffix(m.Prefix, "/") {
		rest, ok = "?"+query, true
	}
	if !ok && announced { // GP-102: its time is over, or it never was one
		return place{}, refuse(http.StatusNotFound, "this server is not known here any more", "ask its group again")
	}
	if !ok || rest == "" {
		return place{}, refuse(http.StatusNotFound, "nothing is mapped to this path",
			"ask for "+m.Prefix+"coap://host/path or "+m.Prefix+"?"+targetVariable+"coap://host/path")
	}
	if value, ok := strings.CutPrefix(rest, "?"+targetVariable); ok {
		return m.encoded(value) // HC-7
	}
	if _, _, ok := cutScheme(rest); ok {
		return m.target(rest) // HC-2
	}
	for i := range m.templates {
		if uri, ok := m.templates[i].match(rest); ok {
			return m.encoded(uri) // HC-9
		}
	}
	if m.DefaultScheme != "" && rest[0] != '?' && rest[0] != '/' {
		return m.target(m.DefaultScheme + "://" + rest) // HC-6
	}
	return place{}, refuse(http.StatusBadRequest, "the target has no scheme", "write "+m.Prefix+"coap://host/path")
}

// encoded reads a target that may be percent-encoded as a whole: then it is
// decoded once (HC-8).
func (m *mapping) encoded(value string) (place, *problem) {
	if _, _, plain := cutScheme(value); !plain {
		decoded, err := url.PathUnescape(value)
		if err != nil {
			return place{}, refuse(http.StatusBadRequest, "the target URI is not percent-encoded properly", "")
		}
		value = decoded
	}
	return m.target(value)
}

// target reads a CoAP URI (HC-4, HC-5, HC-12, HC-13).
func (m *mapping) target(text string) (place, *problem) {
	scheme, rest, ok := cutScheme(text)
	switch {
	case !ok:
		return place{}, refuse(http.StatusBadRequest, "the target has no scheme", "write coap://host/path") // HC-6
	case !isCoAP(scheme):
		return place{}, refuse(http.StatusNotImplemented, "targets of this scheme are not served", "use coap://host/path") // HC-22
	case !strings.HasPrefix(rest, "//") || strings.HasPrefix(rest, "///"):
		return place{}, refuse(http.StatusBadRequest, "the scheme must be followed by exactly two slashes",
			"if something on the way cleans paths, use "+m.Prefix+"?"+targetVariable+"coap://host/path") // HC-5
	}
	u, err := wire.ParseURI(scheme + ":" + openBrackets(rest))
	var why *wire.URIError
	switch {
	case errors.Is(err, wire.ErrScheme):
		return place{}, refuse(http.StatusNotImplemented, "targets of this scheme are not served", "use coap://host/path") // HC-22
	case errors.As(err, &why):
		return place{}, refuse(http.StatusBadRequest, "the target URI is malformed: "+why.Reason, "") // HC-12, HC-13
	case err != nil:
		return place{}, refuse(http.StatusBadRequest, "the target URI is malformed", "")
	case u.HasUserinfo:
		return place{}, refuse(http.StatusBadRequest, "the target URI has userinfo", "leave out what stands before the @") // HC-12
	case slices.Contains(u.Path, ".") || slices.Contains(u.Path, ".."):
		return place{}, refuse(http.StatusBadRequest, `a path segment of the target is "." or ".."`, "") // HC-13
	}
	written := u.String()
	if len(written) > maxTarget {
		return place{}, refuse(http.StatusRequestURITooLong, fmt.Sprintf("the target URI is longer than %d bytes", maxTarget), "")
	}
	return place{uri: u, text: []byte(written)}, nil
}

// openBrackets turns encoded brackets in the authority back (HC-4). s begins
// with two slashes.
func openBrackets(s string) string {
	end := strings.IndexAny(s[2:], "/?")
	if end < 0 {
		end = len(s) - 2
	}
	authority := s[2 : 2+end]
	if !strings.Contains(authority, "%5") {
		return s
	}
	return "//" + brackets.Replace(authority) + s[2+end:]
}

var brackets = strings.NewReplacer("%5B", "[", "%5b", "[", "%5D", "]", "%5d", "]")

// hosting writes a CoAP URI as a hosting HTTP URI, the way a client asks for it (HC-1): as the route it came
// by has it, in the forward-proxy form, or in the default mapping.
func (m *mapping) hosting(p *place, u wire.URI) string {
	text := u.String()
	if p.forward {
		return text
	}
	if p.route != nil {
		if rest, ok := strings.CutPrefix(text, p.route.text); ok && (rest == "" || rest[0] == '/' || rest[0] == '?') {
			return p.route.path + rest
		}
	}
	return m.Prefix + strings.NewReplacer("[", "%5B", "]", "%5D").Replace(text)
}

// cutScheme cuts off a scheme and its colon (RFC 3986 §3.1). The scheme comes
// back in lower case.
func cutScheme(s string) (scheme, rest string, ok bool) {
	scheme, rest, ok = strings.Cut(s, ":")
	if !ok || scheme == "" || !isLetter(scheme[0]) {
		return "", s, false
	}
	for i := range len(scheme) {
		if c := scheme[i]; !isLetter(c) && (c < '0' || c > '9') && c != '+' && c != '.' && c != '-' {
			return "", s, false
		}
	}
	return strings.ToLower(scheme), rest, true
}

func isLetter(c byte) bool { return 'a' <= c|0x20 && c|0x20 <= 'z' }

// hostOnly cuts off the port.
func hostOnly(authority string) string {
	if i := strings.LastIndexByte(authority, ':'); i >= 0 && !strings.HasSuffix(authority, "]") {
		authority = authority[:i]
	}
	return authority
}
