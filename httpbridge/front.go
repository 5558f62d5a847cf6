package httpbridge

import (
	"context"
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
	always  [3]string // values of fields that every response has
	*load
}

// load is what is under way.
type load struct {
	budget *budget

	mu        sync.Mutex
	active    int
	perClient map[asker]int
	draining  bool
	idle      chan struct{} // closed when draining and nothing is active
	ended     func()        // see begun
}

// NewFront returns a Front. The error says what is wrong with the Config.
func NewFront(c Config) (*Front, error) {
	c.Limits = c.Limits.withDefaults()
	return newFrontWith(c, newLoad(c.Limits.TotalBytes))
}

func newLoad(totalBytes int) *load {
	l := &load{budget: newBudget(totalBytes), perClient: make(map[asker]int), idle: make(chan struct{})}
	l.ended = func() {
		l.mu.Lock()
		l.leave()
		l.mu.Unlock()
	}
	return l
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
		always: [...]string{"nosniff", "default-src 'none'; sandbox", "CoAP/1 " + c.Identifier}}, nil
}

var _ http.Handler = (*Front)(nil)

// call is one HTTP request on its way through the Front.
type call struct {
	front *Front
	w     http.ResponseWriter
	r     *http.Request
	send  sender
	place place
	// client and how it was identified.
	client *exchange.Identity
	proven ProvenBy
	// credentials is the name in the credentials file that was proven.
	credentials string
	peer        netip.AddrPort
	id          uint64
}

// ServeHTTP implements http.Handler.
func (f *Front) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	f.Stats.Requests.Add(1)
	x := &call{front: f, w: w, r: r, id: f.Engine.NextID(), peer: addrOf(r.RemoteAddr)}
	x.send.begin(w, r, &f.Limits)
	defer x.send.finish()
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

// serve carries the request out or says what is wrong.
func (x *call) serve() *problem {
	f, r := x.front, x.r
	if reason := malformed(r); reason != "" {
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
	if x.place, refusal = f.mapping.resolve(r.RequestURI, r.Host); refusal != nil {
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
	release, refusal := f.admit(x)
	if refusal != nil {
		return refusal
	}
	defer release()
	return x.forward()
}

// identify finds out who asks (HC-100, HC-75).
func (x *call) identify() *problem {
	f := x.front
	field, challenge, status := "Authorization", "Www-Authenticate", http.StatusUnauthorized
	if x.place.forward {
		field, challenge, status = "Proxy-Authorization", "Proxy-Authenticate", http.StatusProxyAuthRequired
	}
	who, err := f.Clients.Authenticate(Proof{Peer: x.peer, TLS: x.r.TLS, Authorization: x.r.Header.Get(field), Cookie: cookieOf(x.r)})
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

// admit counts the request in (HC-97).
func (f *Front) admit(x *call) (release func(), _ *problem) {
	key := asker{addr: x.peer.Addr()}
	if x.client != nil && x.proven != ByNetwork {
		key = asker{name: x.client.Name}
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	switch {
	case f.draining:
		return nil, refuse(http.StatusServiceUnavailable, "shutting down", "").retryAfter(10 * time.Second)
	case f.active >= f.Limits.Exchanges:
		return nil, refuse(http.StatusServiceUnavailable, "too many exchanges are running", "").retryAfter(time.Second)
	case f.perClient[key] >= f.Limits.ClientExchanges:
		return nil, refuse(http.StatusTooManyRequests, "too many requests of this client are running", "").retryAfter(time.Second)
	}
	f.active++
	f.perClient[key]++
	f.Stats.Running.Add(1)
	return func() { f.release(key) }, nil
}

// asker is somebody whose requests are counted: a client entry by its name, or an
// address.
type asker struct {
	name string
	addr netip.Addr
}

func (f *Front) release(key asker) {
	f.Stats.Running.Add(-1)
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.perClient[key]--; f.perClient[key] == 0 {
		delete(f.perClient, key)
	}
	f.leave()
}

// leave is called under the lock when something that was counted as active is
// over.
func (l *load) leave() {
	if l.active--; l.active == 0 && l.draining {
		close(l.idle)
	}
}

// begun counts an exchange that may outlive its HTTP request; the result is
// called at its end.
func (f *Front) begun() (ended func()) {
	f.mu.Lock()
	f.active++
	f.mu.Unlock()
	return f.ended
}

// Drain refuses new requests from now on and waits until those under way, and
// the exchanges they began, have ended or ctx has. It reports how many were
// left. It may be called once.
func (f *Front) Drain(ctx context.Context) int {
	f.mu.Lock()
	f.draining = true
	if f.active == 0 {
		close(f.idle)
	}
	f.mu.Unlock()
	select {
	case <-f.idle:
	case <-ctx.Done():
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.active
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
	contentType, body := p.document(x.r.Header.Values("Accept"))
	h["Content-Type"] = []string{contentType}
	h["Cache-Control"] = []string{"no-store"}
	h.Add("Vary", "Accept") // HC-58
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
func local(r *http.Request) netip.AddrPort {
	switch a := r.Context().Value(http.LocalAddrContextKey).(type) {
	case *net.TCPAddr:
		return unmapped(a.AddrPort())
	case *net.UDPAddr:
		return unmapped(a.AddrPort())
	}
	return netip.AddrPort{}
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
