package proxy

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"github.com/plgd-dev/go-coap/v3/message"
	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// Targets is the layer that finds out where a request goes (FP-1 to FP-11,
// GP-21): it reads Proxy-Uri, Proxy-Cri, Proxy-Scheme, Proxy-Scheme-Number and
// Uri-*, resolves names, and hands on a request with Target set whose options
// hold nothing of the client's hop any more.
type Targets struct {
	// Next gets proxy requests, Local those for the proxy itself.
	Next, Local exchange.Handler
	// Reverse is what the proxy stands in for; nil for nothing.
	Reverse *Reverse
	Numbers *wire.Numbers
	Names   *Names
	// Own reports whether a destination is the proxy itself (FP-8).
	Own func(scheme string, at netip.AddrPort) bool
	// Serves reports whether there is a leg for the scheme (FP-7).
	Serves func(scheme string) bool
	// OwnNames are further names of the proxy in lower case, and addresses that
	// are not its own but lead to it, in canonical form.
	OwnNames map[string]bool
	// NextHop returns the name of the next proxy for a target, before its name is
	// resolved; "" if it is reached from here. It may be nil.
	NextHop func(scheme, host string, addr netip.Addr, port uint16) string
	// GroupName reports whether a host name and port are those of a group: one that
	// a next proxy reaches is not resolved here.
	GroupName func(host string, port uint16) bool
	// Zone returns the interface on which a link-local server was last heard,
	// or the default one, or "" (GP-57).
	Zone   func(netip.Addr) string
	Engine *exchange.Engine
	Log    *zap.Logger

	once sync.Once
	memo *uriMemo
}

func (t *Targets) uris() *uriMemo {
	t.once.Do(func() { t.memo = newURIMemo() })
	return t.memo
}

// destination is a target URI before name resolution.
type destination struct {
	scheme string
	host   string
	addr   netip.Addr // valid for a literal
	port   uint16
	// nextHop names the next proxy behind which an announced server was heard;
	// asServer says that it is a target of that proxy's own (GP-102).
	nextHop  string
	asServer bool
}

// Exchange implements exchange.Handler.
func (t *Targets) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	if !isProxyRequest(r.Options) {
		return t.here(r, w)
	}
	if f := checkRequestOptions(r, t.Numbers); f != nil {
		return exchange.Fail(w, f)
	}
	scratch := optionScratch.Get().(*message.Options)
	defer putScratch(scratch)
	d, options, f := t.split(r, (*scratch)[:0])
	*scratch = options
	if f != nil {
		f.Asked = asked(r.Options)
		return exchange.Fail(w, f)
	}
	if overHTTP(d.scheme) {
		if options, f = keepURI(r, &d, options); f != nil {
			return exchange.Fail(w, f)
		}
		*scratch = options
	}
	r.Options = options
	route := t.Reverse.route(r.Route)
	if route != nil {
		w = t.Reverse.announcer(r, &found{route: route}, t.hopFor(&d), w)
	}
	return t.reach(r, w, &d, route != nil)
}

// asked is what a client named a target by, as a log may show it.
func asked(options message.Options) string {
	const longest = 200
	text := ""
	for _, o := range options {
		switch o.ID {
		case wire.ProxyURI, wire.ProxyScheme, wire.URIHost:
			value := withoutSecrets(o.Value)
			text += fmt.Sprintf(" %q", value[:min(len(value), longest)])
		case wire.ProxyCRI, wire.URIPort, wire.ProxySchemeNumber:
			text += fmt.Sprintf(" %x", o.Value[:min(len(o.Value), longest)])
		}
	}
	return strings.TrimPrefix(text, " ")
}

// withoutSecrets is a URI, well-formed or not, without what can hold a secret: the
// query, and userinfo.
func withoutSecrets(uri []byte) []byte {
	uri, _, _ = bytes.Cut(uri, []byte{'?'})
	if at := bytes.LastIndexByte(uri, '@'); at >= 0 {
		scheme, _, ok := bytes.Cut(uri[:at], []byte("//"))
		if !ok {
			return uri[at+1:]
		}
		return slices.Concat(scheme, []byte("//"), uri[at+1:])
	}
	return uri
}

// here is a request without Proxy option: for what the proxy stands in for, or
// for its own resources (FP-1).
func (t *Targets) here(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	if t.Reverse == nil {
		return t.local(r, w)
	}
	var space [8][]byte
	p, ok := place(r, space[:0])
	if !ok {
		return t.local(r, w)
	}
	return t.stoodInFor(r, w, &p)
}

// stoodInFor sends a request on by the reverse side, or to the proxy itself.
func (t *Targets) stoodInFor(r *exchange.Request, w exchange.Sink, p *Place) exchange.Canceler {
	h, ok := t.Reverse.find(p, r.Arrival)
	switch {
	case !ok && h.own: // GP-54: such an address is good for its server only
		return exchange.Fail(w, exchange.Failf(exchange.NotFound, "no server is behind this address"))
	case !ok && h.unknown: // GP-102: its time is over, or the proxy has started anew
		return exchange.Fail(w, exchange.Failf(exchange.NotFound, "this server is not known here any more; ask its group again"))
	case !ok:
		return t.local(r, w)
	}
	if f := checkRequestOptions(r, t.Numbers); f != nil {
		return exchange.Fail(w, f)
	}
	scratch := optionScratch.Get().(*message.Options)
	defer putScratch(scratch)
	options, f := h.forward(r, t.Numbers, (*scratch)[:0])
	if f == nil && overHTTP(h.to.scheme) {
		options, f = keepURI(r, &h.to.destination, options)
	}
	*scratch = options
	if f != nil {
		return exchange.Fail(w, f)
	}
	w = t.Reverse.announcer(r, &h, t.hopFor(&h.to.destination), w)
	r.Options = options
	r.Target.Announced = h.to.groups
	return t.reach(r, w, &h.to.destination, true)
}

// itself is a proxy request whose target turned out to be the proxy itself, by d
// or by the address that its name stands for (FP-8).
func (t *Targets) itself(r *exchange.Request, w exchange.Sink, d *destination, stoodIn bool) exchange.Canceler {
	r.Target = exchange.Target{Scheme: d.scheme, Host: d.host, Addr: netip.AddrPortFrom(d.addr, d.port), Announced: r.Target.Announced}
	r.Options = slices.DeleteFunc(r.Options, func(o message.Option) bool { return o.ID == wire.ProxyURI }) // of keepURI
	if t.Reverse == nil || stoodIn {
		return t.local(r, w) // no further: the proxy does not stand in for itself
	}
	var space [8][]byte
	p, ok := place(r, space[:0])
	if !ok {
		return t.local(r, w)
	}
	p.Host, p.Addr, p.Port = d.host, d.addr, d.port
	return t.stoodInFor(r, w, &p)
}

// reach sends a request to its destination, which it resolves first. stoodIn says
// that the proxy stands in for it.
func (t *Targets) reach(r *exchange.Request, w exchange.Sink, d *destination, stoodIn bool) exchange.Canceler {
	r.Target = exchange.Target{Scheme: d.scheme, Host: d.host, Addr: netip.AddrPortFrom(d.addr, d.port), Announced: r.Target.Announced}
	if l, ok := w.(exchange.Locator); ok {
		l.Locate(&r.Target)
	}
	r.Target.NextHop = t.hopFor(d)
	if r.Target.NextHop == "" && !t.Serves(d.scheme) {
		return exchange.Fail(w, exchange.Failf(exchange.NotProxied, "scheme %s is not served", d.scheme)) // FP-7, GP-22
	}
	if t.addressed(r, d) {
		r.Target.NextHop = ""
		return t.itself(r, w, d, stoodIn) // FP-8
	}
	switch {
	case r.Target.NextHop != "":
		return t.toNextHop(r, w, d, stoodIn)
	case d.addr.IsMulticast():
		return t.proceed(r, w, []netip.Addr{d.addr}, d.port, stoodIn)
	case d.addr.IsValid():
		return t.single(r, w, netip.AddrPortFrom(d.addr, d.port), stoodIn)
	}
	if r.Client == nil { // nobody makes the proxy ask name servers for nothing
		return exchange.Fail(w, exchange.Failf(exchange.Denied, "client not identified").Because("clients")) // GP-23, FP-85
	}
	port := d.port // so that only what needs a name costs an allocation
	return t.Names.lookup(r, w, d.host, func(r *exchange.Request, w exchange.Sink, addrs []netip.Addr) exchange.Canceler {
		return t.proceed(r, w, addrs, port, stoodIn)
	})
}

func overHTTP(scheme string) bool { return scheme == "http" || scheme == "https" }

// keepURI keeps the URI of an HTTP target as it was written, in Proxy-Uri: an
// encoded delimiter can mean something else there than the plain one.
func keepURI(r *exchange.Request, d *destination, options message.Options) (message.Options, *exchange.Failure) {
	text, ok := wire.First(r.Options, wire.ProxyURI)
	if !ok || wire.Has(r.Options, wire.ProxyCRI) {
		u := wire.URI{Scheme: d.scheme, Host: d.host, Addr: d.addr, Port: d.port}
		for segment := range wire.All(options, wire.URIPath) {
			u.Path = append(u.Path, string(segment))
		}
		for item := range wire.All(options, wire.URIQuery) {
			u.Query = append(u.Query, string(item))
		}
		text = []byte(u.String())
	}
	if len(text) > maxProxyURI {
		return options, badOption(wire.ProxyURI, "the target URI is too long")
	}
	return insertOption(options, wire.ProxyURI, text), nil
}

// maxProxyURI is the longest value of Proxy-Uri (RFC 7252 §5.10).
const maxProxyURI = 1034

// Itself returns the options of a request whose target is the proxy itself without
// those that say so, and false for every other target (FP-8, OH-13). A name counts
// only if it is one of OwnNames.
func (t *Targets) Itself(r *exchange.Request) (message.Options, bool) {
	if f := checkRequestOptions(r, t.Numbers); f != nil {
		return nil, false
	}
	d, options, f := t.split(r, nil)
	if f != nil {
		return nil, false
	}
	return options, t.addressed(r, &d) || d.addr.IsValid() && t.Own(d.scheme, netip.AddrPortFrom(d.addr, d.port))
}

// addressed reports whether a destination is what the request was sent to, or one
// of OwnNames (FP-8): on a port where the proxy listens, or on any if it stands in
// for that name.
func (t *Targets) addressed(r *exchange.Request, d *destination) bool {
	return d.scheme == r.Scheme && d.addr == r.Local.Addr() && d.port == r.Local.Port() ||
		t.alias(d) && (t.Reverse.names(d.host) || t.Own(d.scheme, netip.AddrPortFrom(r.Local.Addr(), d.port)))
}

// PassesThrough reports whether a request with OSCORE and without Proxy option is
// forwarded as it is, because its place says that it is for a server that the
// proxy stands in for with pass-through (OH-12, OH-18).
func (t *Targets) PassesThrough(r *exchange.Request) bool {
	if t.Reverse == nil {
		return false
	}
	var space [8][]byte
	p, ok := place(r, space[:0])
	if !ok {
		return false
	}
	h, ok := t.Reverse.find(&p, r.Arrival)
	switch {
	case !ok:
		return false
	case h.route != nil: // OH-10: a message that names no place is for the proxy itself
		return h.route.PassThrough && (p.Host != "" || p.Addr.IsValid() || p.Port != 0 || len(p.Path) > 0)
	}
	return slices.ContainsFunc(t.Reverse.Routes, func(route ReverseRoute) bool {
		return route.PassThrough && slices.ContainsFunc(route.Groups, func(name string) bool { return slices.Contains(h.to.groups, name) })
	})
}

// alias reports whether the host is one of OwnNames.
func (t *Targets) alias(d *destination) bool {
	if len(t.OwnNames) == 0 {
		return false
	}
	if d.addr.IsValid() {
		return t.OwnNames[d.addr.WithZone("").String()]
	}
	return t.OwnNames[d.host]
}

// local is a request for the proxy's own resources: FP-25.
func (t *Targets) local(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	previous := message.OptionID(0)
	for _, o := range r.Options {
		surplus := o.ID == previous
		previous = o.ID
		if !wire.Critical(o.ID) {
			continue
		}
		definition, known := wire.Lookup(o.ID)
		switch o.ID {
		case wire.URIHost, wire.URIPort, wire.URIPath, wire.URIQuery, wire.Accept, wire.Block2:
		default:
			known = false
		}
		if !known || !definition.Valid(o.Value) || surplus && !definition.Repeatable {
			return exchange.Fail(w, badOption(o.ID, "option %d cannot be processed", o.ID))
		}
	}
	return t.Local.Exchange(r, w)
}

// formOf is the form in which a proxy request names its target (FP-2).
func formOf(options message.Options) exchange.Form {
	form := exchange.NoForm
	for _, o := range options {
		switch {
		case o.ID == wire.ProxyCRI:
			return exchange.FormCRI
		case o.ID == wire.ProxyURI:
			form = exchange.FormURI
		case o.ID == wire.ProxyScheme && form == exchange.NoForm:
			form = exchange.FormScheme
		case o.ID == wire.ProxySchemeNumber && form == exchange.NoForm:
			form = exchange.FormSchemeNumber
		}
	}
	return form
}

func isProxyRequest(options message.Options) bool {
	for _, o := range options {
		switch o.ID {
		case wire.ProxyURI, wire.ProxyScheme, wire.ProxyCRI, wire.ProxySchemeNumber:
			return true
		}
	}
	return false
}

// split separates the destination, and Multicast-Timeout (GP-28), from the
// options of a proxy request. It appends what the onward request keeps to
// options, repeated ones in their order (FP-23).
func (t *Targets) split(r *exchange.Request, options message.Options) (destination, message.Options, *exchange.Failure) {
	var d destination
	uri, whole, f := t.absolute(r.Options)
	if f != nil {
		return d, options, f
	}
	r.Form = formOf(r.Options)
	if whole {
		d = destination{scheme: uri.Scheme, host: uri.Host, addr: uri.Addr, port: uri.Port}
	} else if d, f = t.fromScheme(r); f != nil {
		return d, options, f
	}
	placed := !whole // Proxy-Uri and Proxy-Cri override every Uri-* (FP-2)
	hasPath, abbreviated := len(uri.Path) > 0, 0
	second := legacyTimeout(r.Client, t.Numbers)
	for _, o := range r.Options {
		if !placed && o.ID > wire.URIPath {
			options, placed = appendSegments(options, wire.URIPath, uri.Path), true
		}
		switch o.ID {
		case wire.ProxyURI, wire.ProxyScheme, wire.ProxyCRI, wire.ProxySchemeNumber, wire.URIHost, wire.URIPort,
			t.Numbers.MulticastTimeout:
			continue
		case wire.URIPath:
			if whole {
				continue
			}
			hasPath = true
		case wire.URIQuery:
			if whole {
				continue
			}
		case wire.URIPathAbbrev:
			abbreviated++
		default:
			if second != 0 && o.ID == second {
				continue
			}
		}
		if o.ID == wire.URIPath && isDot(o.Value) {
			return d, options, badOption(wire.URIPath, `a path segment is "." or ".."`) // FP-28
		}
		options = append(options, o)
	}
	if !placed {
		options = appendSegments(options, wire.URIPath, uri.Path)
	}
	for _, q := range uri.Query {
		options = insertOption(options, wire.URIQuery, lent(q))
	}
	for _, segment := range uri.Path {
		if segment == "." || segment == ".." {
			return d, options, exchange.Failf(exchange.BadOption, `a path segment is "." or ".."`) // FP-28
		}
	}
	switch {
	case abbreviated > 0 && hasPath:
		return d, options, badOption(wire.URIPathAbbrev, "Uri-Path-Abbrev together with a path") // FP-9
	case abbreviated == 1: // a repeated one is for the server to judge (FP-22)
		options = expandPath(options)
	}
	return d, options, nil
}

// expandPath writes out the path of a known Uri-Path-Abbrev: servers need not
// know the option, and members of a group would not say so (FP-9, GC-73). An
// unknown value stays as it is.
func expandPath(options message.Options) message.Options {
	i := slices.IndexFunc(options, func(o message.Option) bool { return o.ID == wire.URIPathAbbrev })
	value, ok := wire.Uint(options[i].Value)
	if !ok {
		return options
	}
	path, ok := wire.ExpandPathAbbrev(value)
	if !ok {
		return options
	}
	options = slices.Delete(options, i, i+1)
	for _, segment := range path {
		options = insertOption(options, wire.URIPath, []byte(segment))
	}
	return options
}

func isDot(segment []byte) bool { return string(segment) == "." || string(segment) == ".." }

func appendSegments(options message.Options, id message.OptionID, values []string) message.Options {
	for _, v := range values {
		options = append(options, message.Option{ID: id, Value: lent(v)})
	}
	return options
}

// lent is s as the value of an option, without a copy: nobody writes into the
// options of a request.
func lent(s string) []byte { return unsafe.Slice(unsafe.StringData(s), len(s)) }

// absolute reads Proxy-Cri or Proxy-Uri, in this order of precedence (FP-2). The
// URI is not to be changed.
func (t *Targets) absolute(options message.Options) (uri wire.URI, found bool, _ *exchange.Failure) {
	var err error
	id := wire.ProxyCRI
	if value, ok := wire.First(options, wire.ProxyCRI); ok {
		uri, err = wire.ParseProxyCRI(value)
	} else if value, ok := wire.First(options, wire.ProxyURI); ok {
		id = wire.ProxyURI
		uri, err = t.uris().parse(value)
	} else {
		return wire.URI{}, false, nil
	}
	var f *exchange.Failure
	switch {
	case errors.Is(err, wire.ErrScheme):
		f = exchange.Failf(exchange.NotProxied, "this scheme is not served") // FP-7
	case err != nil:
		f = badOption(id, "the target URI is malformed") // FP-3
	case uri.HasUserinfo:
		f = badOption(id, "the target URI has userinfo") // FP-10
	default:
		return uri, true, nil
	}
	var malformed *wire.URIError
	if errors.As(err, &malformed) {
		err = errors.New(malformed.Reason) // the URI itself can hold a secret
	}
	f.Err = err
	return wire.URI{}, false, f
}

// fromScheme composes the destination from Proxy-Scheme or Proxy-Scheme-Number
// and Uri-Host and Uri-Port; what is missing is the address and port the
// request was sent to (FP-4, FP-5).
func (t *Targets) fromScheme(r *exchange.Request) (destination, *exchange.Failure) {
	d := destination{addr: r.Local.Addr(), port: r.Local.Port()}
	for _, o := range r.Options {
		switch o.ID {
		case wire.URIHost:
			name, addr, err := wire.ParseHost(string(o.Value))
			if err != nil {
				f := badOption(wire.URIHost, "Uri-Host is malformed")
				f.Err = err
				return d, f
			}
			d.host, d.addr = name, addr
		case wire.URIPort:
			port, _ := wire.Uint(o.Value)
			if port == 0 {
				return d, badOption(wire.URIPort, "Uri-Port is 0")
			}
			d.port = uint16(port)
		case wire.ProxyScheme:
			d.scheme = strings.ToLower(string(o.Value))
		case wire.ProxySchemeNumber:
			if d.scheme != "" {
				return d, badOption(wire.ProxySchemeNumber, "Proxy-Scheme together with Proxy-Scheme-Number") // FP-2
			}
			number, _ := wire.Uint(o.Value)
			name, ok := wire.SchemeName(number) // FP-6
			if !ok {
				return d, exchange.Failf(exchange.NotProxied, "scheme number %d is not served", number)
			}
			d.scheme = name
		}
	}
	return d, nil
}

// proceed classifies the addresses of a target and passes the request on.
func (t *Targets) proceed(r *exchange.Request, w exchange.Sink, addrs []netip.Addr, port uint16, stoodIn bool) exchange.Canceler {
	groups, failure := allGroups(addrs)
	if failure != nil {
		return exchange.Fail(w, failure)
	}
	if !groups {
		return t.single(r, w, netip.AddrPortFrom(addrs[0], port), stoodIn)
	}
	if r.Target.Scheme != "coap" {
		return exchange.Fail(w, exchange.Failf(exchange.NotProxied, "groups are reached under the scheme coap")) // GP-22
	}
	if port == securePort {
		return exchange.Fail(w, exchange.Failf(exchange.NotProxied, "a group has no secure port")) // GC-4
	}
	r.Target.Group = true
	r.Target.Addr = netip.AddrPortFrom(namedZone(addrs[0]), port)
	for _, a := range addrs[1:] { // GC-2
		also := exchange.GroupAddr{Addr: netip.AddrPortFrom(namedZone(a), port)}
		if also.Addr != r.Target.Addr && !slices.Contains(r.Target.Also, also) {
			r.Target.Also = append(r.Target.Also, also)
		}
	}
	return t.Next.Exchange(r, w)
}

// single passes on a request to one server. Only a link-local address has a
// zone, and always: the one in the URI, or the interface on which the server
// was heard (GP-57).
func (t *Targets) single(r *exchange.Request, w exchange.Sink, to netip.AddrPort, stoodIn bool) exchange.Canceler {
	addr := to.Addr()
	zone := canonicalZone(addr.Zone())
	addr = addr.WithZone("")
	r.Target.Addr = netip.AddrPortFrom(addr, to.Port())
	self := destination{host: r.Target.Host, port: to.Port()}
	if self.host == "" {
		self.addr = addr
	}
	if t.Own(r.Target.Scheme, r.Target.Addr) {
		return t.itself(r, w, &self, stoodIn) // FP-8
	}
	if !addr.Is6() || !addr.IsLinkLocalUnicast() {
		return t.Next.Exchange(r, w)
	}
	if zone == "" {
		zone = t.Zone(addr)
	}
	if zone == "" {
		return exchange.Fail(w, exchange.Failf(exchange.BadRequest, "a link-local address needs a zone"))
	}
	r.Target.Addr = netip.AddrPortFrom(addr.WithZone(zone), to.Port())
	if t.Own(r.Target.Scheme, r.Target.Addr) {
		return t.itself(r, w, &self, stoodIn)
	}
	return t.Next.Exchange(r, w)
}

// namedZone writes the zone of an address as the name of the interface.
func namedZone(addr netip.Addr) netip.Addr {
	if addr.Zone() == "" {
		return addr
	}
	return addr.WithZone(canonicalZone(addr.Zone()))
}

const securePort = 5684

// optionScratch lends the option slices that layers build for the duration of
// one Exchange call.
var optionScratch = sync.Pool{New: func() any { o := make(message.Options, 0, 24); return &o }}

func putScratch(s *message.Options) {
	clear(*s)
	optionScratch.Put(s)
}
