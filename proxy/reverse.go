package proxy

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// ServersAs says how the clients of a reverse-proxy reach the single servers of a
// group that answered.
type ServersAs uint8

// The cases of appendix A of the draft: A.1 at the proxy's one address, told apart
// by Uri-Host and Uri-Port (ByHost, GP-53) or, without telling their addresses, by
// a path (ByPath, GP-53); A.2 at an address and port for each (OwnAddress, GP-54);
// A.3 directly (Direct, GP-55).
const (
	ByHost ServersAs = iota
	ByPath
	OwnAddress
	Direct
)

// ReverseRoute says for what the proxy stands in.
type ReverseRoute struct {
	Name string
	// Hosts are the names in lower case, and canonical addresses, one of which
	// the request must be for; empty: any.
	Hosts []string
	// Path are the segments that its path must begin with; they are taken away.
	Path []string
	// Listener reports whether the request came by a listener of the route; nil:
	// any will do.
	Listener func(scheme string, local netip.AddrPort) bool
	// Scheme, Host or Addr, Port and Base are the target; Base is put in front of
	// the path that is left.
	Scheme string
	Host   string
	Addr   netip.Addr
	Port   uint16
	Base   []string
	// Group says that the target is a group, Groups under which names it is
	// configured, and Servers how its members are announced.
	Group   bool
	Groups  []string
	Servers ServersAs
	// PassThrough forwards requests with OSCORE to the target as they are; else a
	// layer for the proxy is taken off first (OH-18).
	PassThrough bool
	// Announce is the proxy's address as its clients know it, and its port, where
	// they are not those that requests are sent to.
	Announce     netip.Addr
	AnnouncePort uint16
}

// Reverse is the reverse side of the proxy: what requests without any Proxy
// option are forwarded to. It is not changed once it is used.
type Reverse struct {
	// Routes are looked through in this order.
	Routes   []ReverseRoute
	Mappings *Mappings
	// ServersPath are the segments in front of the one that names a server which
	// is announced by a path.
	ServersPath []string
}

// Place is where a request without Proxy option is for: what its URI would be at
// the proxy.
type Place struct {
	Scheme string         // by which the client reaches the proxy
	Local  netip.AddrPort // where it does
	Host   string         // in lower case, of a name; else
	Addr   netip.Addr     // the address; neither: none was given
	Port   uint16         // 0: none was given
	Path   [][]byte
}

func (v *Reverse) routeOf(p *Place) *ReverseRoute {
	for i := range v.Routes {
		if v.Routes[i].matches(p) {
			return &v.Routes[i]
		}
	}
	return nil
}

// route is the route of a name, nil for none.
func (v *Reverse) route(name string) *ReverseRoute {
	if v == nil || name == "" {
		return nil
	}
	if i := slices.IndexFunc(v.Routes, func(t ReverseRoute) bool { return t.Name == name }); i >= 0 {
		return &v.Routes[i]
	}
	return nil
}

// names reports whether a route is for a name.
func (v *Reverse) names(host string) bool {
	return v != nil && host != "" && slices.ContainsFunc(v.Routes, func(t ReverseRoute) bool { return slices.Contains(t.Hosts, host) })
}

func (t *ReverseRoute) matches(p *Place) bool {
	if t.Listener != nil && !t.Listener(p.Scheme, p.Local) {
		return false
	}
	if len(t.Hosts) > 0 && !slices.Contains(t.Hosts, p.hostText()) {
		return false
	}
	return hasPrefix(p.Path, t.Path)
}

// hostText is the host of the request, which is the address it was sent to when
// it names none (RFC 7252 §6.5).
func (p *Place) hostText() string {
	switch {
	case p.Host != "":
		return p.Host
	case p.Addr.IsValid():
		return p.Addr.WithZone("").String()
	default:
		return p.Local.Addr().WithZone("").String()
	}
}

func hasPrefix(path [][]byte, prefix []string) bool {
	if len(path) < len(prefix) {
		return false
	}
	for i, segment := range prefix {
		if string(path[i]) != segment {
			return false
		}
	}
	return true
}

// found is where a request without Proxy option goes.
type found struct {
	to    behind
	route *ReverseRoute // nil: to a server that was announced
	taken int           // segments of the path that belong to the target
	own   bool          // to an address of the pool
	// unknown: the path is that of a server that is not known.
	unknown bool
	// base is what Location-Path of the server is relative to.
	base [][]byte
}

// find looks a place up among the announced servers first: their targets are
// narrower than any route.
func (v *Reverse) find(p *Place, now time.Time) (found, bool) {
	var rest [][]byte
	if v.Mappings != nil {
		if hasPrefix(p.Path, v.ServersPath) {
			rest = p.Path[len(v.ServersPath):]
		}
		to, taken, own := v.Mappings.at(p.Local, hostKey{p.Addr.WithZone(""), p.Port}, rest, now)
		if taken > 0 {
			taken += len(v.ServersPath)
		}
		if to != nil {
			return found{to: *to, taken: taken, own: own, base: p.Path[:taken]}, true
		}
		if own {
			return found{own: true}, false
		}
	}
	if t := v.routeOf(p); t != nil {
		return found{to: behind{destination: destination{scheme: t.Scheme, host: t.Host, addr: t.Addr, port: t.Port}, path: t.Base},
			route: t, taken: len(t.Path), base: p.Path[:len(t.Path)]}, true
	}
	return found{unknown: len(rest) > 0}, false
}

// place reads the Uri-* options of a request. It reports false when they name no
// place; the request is for the proxy itself then, which says why.
func place(r *exchange.Request, paths [][]byte) (Place, bool) {
	p := Place{Scheme: r.Scheme, Local: r.Local, Path: paths}
	for _, o := range r.Options {
		switch o.ID {
		case wire.URIHost:
			var err error
			if p.Host, p.Addr, err = wire.ParseHost(string(o.Value)); err != nil {
				return p, false
			}
		case wire.URIPort:
			port, ok := wire.Uint(o.Value)
			if !ok || port == 0 || port > 65535 {
				return p, false
			}
			p.Port = uint16(port)
		case wire.URIPath:
			p.Path = append(p.Path, o.Value)
		case wire.URIPathAbbrev:
			if value, ok := wire.Uint(o.Value); ok {
				segments, _ := wire.ExpandPathAbbrev(value)
				for _, s := range segments {
					p.Path = append(p.Path, []byte(s))
				}
			}
		}
	}
	return p, true
}

// forward appends the options of the onward request to options: without what the
// target at the proxy was, and with what takes its place.
func (h *found) forward(r *exchange.Request, numbers *wire.Numbers, options message.Options) (message.Options, *exchange.Failure) {
	second := legacyTimeout(r.Client, numbers)
	skip := h.taken
	abbreviated, hasPath := 0, false
	for _, o := range r.Options {
		switch o.ID {
		case wire.URIHost, wire.URIPort, numbers.MulticastTimeout:
			continue
		case wire.URIPath:
			hasPath = true
			if isDot(o.Value) {
				return options, badOption(wire.URIPath, `a path segment is "." or ".."`) // FP-28
			}
			if skip > 0 {
				skip--
				continue
			}
		case wire.URIPathAbbrev:
			abbreviated++
		default:
			if second != 0 && o.ID == second {
				continue
			}
		}
		options = append(options, o)
	}
	if abbreviated > 0 {
		if hasPath {
			return options, badOption(wire.URIPathAbbrev, "Uri-Path-Abbrev together with a path") // FP-9
		}
		if abbreviated == 1 {
			options = expandPath(options)
			for ; skip > 0; skip-- {
				i := slices.IndexFunc(options, func(o message.Option) bool { return o.ID == wire.URIPath })
				options = slices.Delete(options, i, i+1)
			}
		}
	}
	if h.to.uriHost != "" {
		options = insertOption(options, wire.URIHost, []byte(h.to.uriHost))
	}
	if h.to.uriPort != 0 {
		options = insertOption(options, wire.URIPort, wire.AppendUint(nil, uint32(h.to.uriPort)))
	}
	if len(h.to.path) > 0 {
		at, _ := slices.BinarySearchFunc(options, wire.URIPath, func(o message.Option, id message.OptionID) int { return int(o.ID) - int(id) })
		var in message.Options
		options = slices.Insert(options, at, appendSegments(in, wire.URIPath, h.to.path)...)
	}
	return options, nil
}

// Offers returns the links to what this side of the proxy stands in for, as far as
// allowed says that the client of r may use it.
func (v *Reverse) Offers(r *exchange.Request, allowed func(client *exchange.Identity, groups []string, to *exchange.Target) bool) []Link {
	var out []Link
	for i := range v.Routes {
		t := &v.Routes[i]
		to := exchange.Target{Scheme: t.Scheme, Host: t.Host, Addr: netip.AddrPortFrom(t.Addr, t.Port), Group: t.Group}
		if t.Listener != nil && !t.Listener(r.Scheme, r.Local) || !allowed(r.Client, t.Groups, &to) {
			continue
		}
		title := []LinkAttribute{{"title", t.Name}}
		path := wire.URI{Scheme: r.Scheme, Host: "h", Path: t.Path}.String()
		path = path[strings.Index(path, "//h")+len("//h"):]
		if len(t.Hosts) == 0 {
			out = append(out, Link{path, title})
		}
		for _, host := range t.Hosts {
			at := wire.URI{Scheme: r.Scheme, Host: host, Port: r.Local.Port(), Path: t.Path}
			if addr, err := netip.ParseAddr(host); err == nil {
				at.Host, at.Addr = "", addr
			}
			out = append(out, Link{at.String(), title})
		}
	}
	return out
}

// announcing is the sink of a request that came by the reverse side. It announces
// the servers of groups as what clients can reach (GP-53 to GP-55).
type announcing struct {
	sink    exchange.Sink
	reverse *Reverse
	found   *found
	// Of the request:
	scheme string
	local  netip.AddrPort
	legacy bool
	// nextHop names the next proxy that the request goes to; empty for none.
	nextHop string

	base     [][]byte // for Location-Path
	response exchange.Response
	value    []byte
}

// announcer returns the sink for a request that goes where h says, by the next proxy
// if one is named, w itself when there is nothing to announce. It keeps nothing of the
// request's bytes.
func (v *Reverse) announcer(r *exchange.Request, h *found, nextHop string, w exchange.Sink) exchange.Sink {
	group := h.route != nil && h.route.Servers != Direct // GP-55: made of the address
	if !group && h.taken == 0 && len(h.to.path) == 0 {
		return w
	}
	a := &announcing{sink: w, reverse: v, found: h, scheme: r.Scheme, local: r.Local, nextHop: nextHop}
	a.legacy = r.Client != nil && r.Client.Dialect == exchange.Legacy
	for _, s := range h.base {
		a.base = append(a.base, slices.Clone(s))
	}
	h.base = a.base
	return a
}

// Locate implements exchange.Locator.
func (a *announcing) Locate(t *exchange.Target) {
	if l, ok := a.sink.(exchange.Locator); ok {
		l.Locate(t)
	}
}

// Respond implements exchange.Sink.
func (a *announcing) Respond(p *exchange.Response) exchange.Verdict {
	a.response = *p
	base, inside := a.base, a.found.to.path
	if p.GroupPort != 0 && a.found.route != nil && a.found.route.Servers != Direct && (p.From.IsValid() || p.ReplyFrom != nil) {
		var path []string
		a.response.ReplyFrom, path = a.announce(p) // GP-102, behind a next proxy
		if path != nil {
			base, inside = nil, nil
			for _, s := range path {
				base = append(base, lent(s))
			}
		}
	}
	if p.Code == codes.Created && wire.Has(p.Options, wire.LocationPath) {
		a.response.Options = relocated(p.Options, base, inside)
	}
	verdict := a.sink.Respond(&a.response)
	a.response = exchange.Response{}
	return verdict
}

// End implements exchange.Sink.
func (a *announcing) End(err error) { a.sink.End(err) }

// Attend implements exchange.Attended.
func (a *announcing) Attend() {
	if t, ok := a.sink.(exchange.Attended); ok {
		t.Attend()
	}
}

// relocated makes the location of a new resource one at the proxy: below base instead
// of inside, the path that the proxy has put in front of the client's.
func relocated(options message.Options, base [][]byte, inside []string) message.Options {
	out := make(message.Options, 0, len(options)+len(base))
	skip, placed := len(inside), false
	var segments [][]byte
	for s := range wire.All(options, wire.LocationPath) {
		segments = append(segments, s)
	}
	if !hasPrefix(segments, inside) {
		return options // it is outside of what the route shows
	}
	for _, o := range options {
		if o.ID == wire.LocationPath {
			if !placed {
				placed = true
				for _, s := range base {
					out = append(out, message.Option{ID: wire.LocationPath, Value: s})
				}
			}
			if skip > 0 {
				skip--
				continue
			}
		}
		out = append(out, o)
	}
	return out
}

// announce returns the value of Reply-From for the server of a response, and the path
// in it, if it has one. It is empty where nothing can be announced that would reach the
// server.
//
// Over HTTP a path is what there is: a client can hardly send a Host that is not that of
// the URI, and each address of its own would be another origin, under a name that no
// certificate has. Which host the proxy is in the URI is for the front to say.
func (a *announcing) announce(p *exchange.Response) (value []byte, path []string) {
	t, m := a.found.route, a.reverse.Mappings
	key, to, ok := behindOf(p.From, p.ReplyFrom)
	if !ok {
		return []byte{}, nil
	}
	key.nextHop, to.nextHop, to.asServer = a.nextHop, a.nextHop, key.via != ""
	now := time.Now()
	self := wire.URI{Scheme: a.scheme, Addr: a.local.Addr().WithZone(""), Port: a.local.Port()}
	if t.Announce.IsValid() {
		self.Addr = t.Announce
	}
	way, web := t.Servers, overHTTP(a.scheme)
	if web {
		way = ByPath // HC-85
	}
	if (way == OwnAddress || a.legacy && len(m.Pool) > 0) && !web { // GP-128: a legacy client knows no second item
		if at, ok := m.address(key, to, t.Groups, a.scheme, a.local.Addr(), now); ok {
			if !t.Announce.IsValid() {
				self.Addr = at.Addr()
			}
			self.Port = at.Port()
			return a.append(wire.ReplyFromValue{Server: self}), nil
		}
		way = ByPath
	}
	if t.AnnouncePort != 0 {
		self.Port = t.AnnouncePort
	}
	if self.Addr.IsUnspecified() && !web {
		return []byte{}, nil
	}
	if way == ByHost && key.via == "" {
		addr := p.From.Addr().WithZone("")
		written := uint16(0)
		if p.From.Port() != self.Port {
			written = p.From.Port() // GP-9
		}
		m.host(key, to, t.Groups, addr, written, p.From.Port(), now)
		return a.append(wire.ReplyFromValue{Server: self, Ref: &wire.ReplyFromRef{Addr: addr, Port: p.From.Port()}}), nil
	}
	path = append(slices.Clip(a.reverse.ServersPath), m.path(key, to, t.Groups, now))
	return a.append(wire.ReplyFromValue{Server: self, Ref: &wire.ReplyFromRef{Path: path}}), path
}

func (a *announcing) append(v wire.ReplyFromValue) []byte {
	a.value = v.Append(a.value[:0])
	if len(a.value) == 0 {
		return []byte{}
	}
	return a.value
}
