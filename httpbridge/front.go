package httpbridge

import (
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// Front is the HTTP side towards clients; it implements http.Handler for every
// HTTP version.
type Front struct {
	Config
	mapping *mapping
	media   *mediaTypes
	always  [4]string // values of fields that many responses have
	*load
}

// NewFront returns a Front. The error says what is wrong with the Config.
func NewFront(c Config) (*Front, error) {
	c.Limits = c.Limits.withDefaults()
	return newFrontWith(c, newLoad(c.Limits.TotalBytes))
}

// Successor returns a Front for another Config that takes the place of f: what is
// under way counts for both, whichever of them drains. The bound of all bytes
// stays that of the first Front.
func (f *Front) Successor(c Config) (*Front, error) { return newFrontWith(c, f.load) }

func newFrontWith(c Config, l *load) (*Front, error) {
	c.Limits = c.Limits.withDefaults()
	if err := c.Origins.check(); err != nil {
		return nil, fmt.Errorf("cors: %w", err)
	}
	m, err := newMapping(c.Mapping)
	if err != nil {
		return nil, err
	}
	if strings.ContainsAny(c.Identifier, " ,()\r\n") {
		return nil, fmt.Errorf("identifier %q cannot stand in a Via field", c.Identifier)
	}
	return &Front{Config: c, mapping: m, media: newMediaTypes(c.Media), load: l,
		always: [...]string{"nosniff", "default-src 'none'; sandbox", "CoAP/1 " + c.Identifier, "Accept"}}, nil
}

var _ http.Handler = (*Front)(nil)

// call is one HTTP request on its way through the Front.
type call struct {
	front *Front
	w     http.ResponseWriter
	r     *http.Request
	conn  *guard // of HTTP/1; else nil
	send  sender
	place *place // shared, never changed
	// client and how it was identified.
	client *exchange.Identity
	proven ProvenBy
	// credentials is the name in the credentials file that was proven.
	credentials string
	peer        netip.AddrPort
	id          uint64
	query       query
}

var calls = sync.Pool{New: func() any { return new(call) }}

// ServeHTTP implements http.Handler.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.Stats.Requests.Add(1)
	x := calls.Get().(*call)
	x.front, x.w, x.r, x.id, x.conn = f, w, r, f.Engine.NextID(), guardOf(r)
	if x.conn != nil {
		x.peer = x.conn.peer
	} else {
		x.peer = addrOf(r.RemoteAddr)
	}
	x.send.begin(w, r, &f.Limits, x.conn)
	defer x.over()
	h := w.Header()
	h["X-Content-Type-Options"] = f.always[0:1:1]
	h["Content-Security-Policy"] = f.always[1:2:2] // whatever a device serves, it is no page of ours
	if f.Identifier != "" {
		h["Via"] = f.always[2:3:3] // HC-106
	}
	if refusal := x.serve(); refusal != nil { //nolint:contextcheck // it is the context of the request
		x.refuse(refusal)
	}
}

// over is called when the request was answered, or the answer was cut off: nothing
// has x any more.
func (x *call) over() {
	x.send.finish()
	x.front.budget.give(x.query.kept)
	room := x.query.sent
	clear(room)
	*x = call{}
	x.query.sent = room[:0]
	calls.Put(x)
}

// varies says that a response depends on Accept (HC-58).
func (f *Front) varies(h http.Header) {
	if h["Vary"] == nil {
		h["Vary"] = f.always[3:4:4]
		return
	}
	h["Vary"] = append(h["Vary"], f.always[3])
}

// serve carries the request out or says what is wrong.
func (x *call) serve() *problem {
	f, r := x.front, x.r
	if reason := x.conn.malformed(r); reason != "" {
		p := refuse(http.StatusBadRequest, reason, "")
		p.close = true
		return p // HC-104
	}
	f.Origins.share(x.w.Header(), r)
	if f.Origins.preflight(x.w.Header(), r, f.Query) {
		x.w.WriteHeader(http.StatusNoContent)
		return nil
	}
	var refusal *problem
	if x.place, refusal = f.mapping.find(r.RequestURI, addressed{r.Host, scheme(r), x.local()}); refusal != nil {
		return refusal
	}
	if x.place.kind == placeOpenAPI {
		return x.openAPI()
	}
	if refusal := x.identify(); refusal != nil {
		return refusal
	}
	if refusal := f.Origins.crossSite(r, x.proven, x.place.forward); refusal != nil {
		return refusal
	}
	switch x.place.kind {
	case placeCore:
		return x.core()
	case placeSession:
		return x.session()
	case placeServer:
		return refuse(http.StatusNotImplemented, "the method "+quoteMethod(r.Method)+" is not carried out here", "") // HC-20
	}
	who, refusal := f.admit(x)
	if refusal != nil {
		return refusal
	}
	defer f.release(who)
	return x.forward()
}

// identify finds out who asks (HC-100, HC-75).
func (x *call) identify() *problem {
	f := x.front
	field, challenge, status := "Authorization", "Www-Authenticate", http.StatusUnauthorized
	if x.place.forward {
		field, challenge, status = "Proxy-Authorization", "Proxy-Authenticate", http.StatusProxyAuthRequired
	}
	who, err := f.Clients.Authenticate(Proof{Peer: x.peer, TLS: x.r.TLS, Authorization: first(x.r.Header, field), Cookie: cookieOf(x.r)})
	switch {
	case errors.Is(err, ErrPlainCredentials):
		return refuse(http.StatusForbidden, "credentials are not taken without TLS", "use https, and change these credentials: they have been seen")
	case errors.Is(err, ErrAuthenticationBusy):
		return refuse(http.StatusServiceUnavailable, err.Error(), "try again later, or use a bearer token").retryAfter(time.Second)
	case err == nil && who.Client != nil:
		x.client, x.proven, x.credentials = who.Client, who.By, who.Credentials
		return nil
	}
	f.Stats.Unauthenticated.Add(1)
	challenges := f.Clients.Challenges()
	if len(challenges) == 0 || x.r.TLS == nil && err == nil && !f.plainCredentials() {
		return refuse(http.StatusForbidden, "this client is not known", "an entry of the proxy's clients must cover it")
	}
	p := refuse(status, "who is asking?", "send credentials in "+field)
	if err != nil {
		p.detail = err.Error()
	}
	for _, c := range challenges {
		p.with(challenge, c)
	}
	return p
}

// plainCredentials reports whether it makes sense to ask for credentials on a
// connection without TLS.
func (f *Front) plainCredentials() bool {
	a, ok := f.Clients.(*Authentication)
	return ok && a.PlainCredentials
}

// refuse answers with an error of the proxy's own.
func (x *call) refuse(p *problem) {
	f := x.front
	f.Stats.Refused.Add(1)
	f.Log.Info("request refused", zap.Uint64("exchange", x.id), zap.Stringer("client", x.peer), zap.Int("status", p.status),
		zap.String("detail", p.detail))
	h := x.w.Header()
	for name, values := range p.fields {
		h[name] = values
	}
	contentType, body := p.document(x.r.Header["Accept"])
	h["Content-Type"] = []string{contentType}
	h["Cache-Control"] = []string{"no-store"}
	f.varies(h)
	if p.close && x.r.ProtoMajor == 1 {
		h["Connection"] = []string{"close"}
	}
	x.w.WriteHeader(p.status)
	if x.r.Method != http.MethodHead {
		_, _ = x.send.Write(body)
	}
}

// addrOf reads an address as net/http gives it.
func addrOf(s string) netip.AddrPort {
	a, err := netip.ParseAddrPort(s)
	if err != nil {
		return netip.AddrPort{}
	}
	return unmapped(a)
}

func unmapped(a netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(a.Addr().Unmap(), a.Port()) }

// local is the address the request was sent to.
func (x *call) local() netip.AddrPort {
	if x.conn != nil {
		return x.conn.local
	}
	a, _ := x.r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	return addrPortOf(a)
}

// origin is the proxy in the URI that the client asked for (RFC 9110 §7.1).
func (x *call) origin() wire.URI {
	u := wire.URI{Scheme: scheme(x.r)}
	asked, err := wire.ParseURI(u.Scheme + "://" + x.r.Host)
	if err != nil || asked.HasUserinfo {
		u.Addr, u.Port = x.local().Addr().WithZone(""), x.local().Port() // HTTP/1.0
		return u
	}
	u.Host, u.Addr, u.Port = asked.Host, asked.Addr.WithZone(""), asked.Port
	return u
}

// addrPortOf is an address of a socket.
func addrPortOf(a net.Addr) netip.AddrPort {
	switch a := a.(type) {
	case *net.TCPAddr:
		return unmapped(a.AddrPort())
	case *net.UDPAddr:
		return unmapped(a.AddrPort())
	}
	return netip.AddrPort{}
}

// first is the value of a header field, the first one if there are several, "" for
// none. The name is in the canonical form of net/http, which Get would have to find
// out.
func first(h http.Header, name string) string {
	if values := h[name]; len(values) > 0 {
		return values[0]
	}
	return ""
}

// quoteMethod makes a method fit for an error text.
func quoteMethod(method string) string {
	if len(method) > 32 {
		method = method[:32] + "..."
	}
	return method
}

// secure reports whether a scheme is one over DTLS or TLS.
func secure(u wire.URI) bool { return strings.HasPrefix(u.Scheme, "coaps") }
