package service

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"go.uber.org/zap"

	"coapproxy/config"
	"coapproxy/exchange"
	"coapproxy/httpbridge"
	"coapproxy/wire"
)

// httpSide is what of HTTP lives as long as the proxy.
type httpSide struct {
	front    *httpbridge.Front // of the generation that serves; nil without HTTP
	sessions *httpbridge.Sessions
	// pseudonym is the name in Via of the requests that this process makes; see
	// pseudonymOf.
	pseudonym string
}

// pseudonymOf is a name that no other proxy has. It stays when another configuration
// names the proxy differently: requests are under way.
func (h *httpSide) pseudonymOf(c *config.Config) string {
	if h.pseudonym == "" {
		var random [6]byte
		_, _ = rand.Read(random[:]) // never fails
		h.pseudonym = viaName(identifierOf(c)) + "-" + hex.EncodeToString(random[:])
	}
	return h.pseudonym
}

// serve makes the front of g get the requests of the listeners.
func (h *httpSide) serve(g *generation, listeners []*listener) {
	h.front = g.web
	for _, l := range listeners {
		if l.web != nil && g.web != nil { // else l is about to be closed
			l.web.To(g.web)
		}
	}
}

// webOf makes the HTTP front of a generation.
func (p *Proxy) webOf(c *config.Config, g *generation, log *zap.Logger) error {
	schemes := make(map[string]bool)
	for _, l := range c.Listen {
		schemes[l.Scheme] = true
	}
	if !schemes["http"] && !schemes["https"] {
		return nil
	}
	h := &c.HTTP
	if p.http.sessions == nil {
		p.http.sessions = httpbridge.NewSessions(h.SessionLifetime)
	}
	clients, err := p.httpClients(c, g, log)
	if err != nil {
		return err
	}
	routes := p.webRoutes(c)
	announced := func(id string) bool { return p.mappings.Announced(id, time.Now()) }
	newFront := httpbridge.NewFront
	if p.http.front != nil {
		newFront = p.http.front.Successor
	}
	g.web, err = newFront(httpbridge.Config{Next: g.entry, Clients: clients, Numbers: p.numbers, Engine: p.engine,
		Mapping: httpbridge.Mapping{Prefix: h.Prefix, Templates: h.Templates, DefaultScheme: h.DefaultScheme, Forward: h.ForwardProxy, Routes: routes,
			Servers: c.Proxy.ServersPath, Announced: announced},
		Media: httpbridge.Media{Loose: h.LooseMediaTypes, PassThrough: h.CoAPPayload}, OSCORE: h.OSCORE,
		Origins: httpbridge.Origins{Allow: h.CORS.Origins, Credentials: h.CORS.Credentials, MaxAge: h.CORS.MaxAge,
			Hosts: hostNames(c)},
		Limits: httpbridge.Limits{Exchanges: h.Limits.Exchanges, ClientExchanges: h.Limits.ClientExchanges,
			RequestBody: int(h.Limits.Body), ResponseBody: int(h.Limits.Response), BatchBytes: int(h.Limits.BatchBytes), BatchParts: h.Limits.BatchParts,
			QueueBytes: int(h.Limits.QueueBytes), QueueParts: h.Limits.QueueParts, TotalBytes: int(h.Limits.TotalBytes),
			ReceiveTimeout: h.Limits.BodyTimeout, SendTimeout: h.Limits.SendTimeout},
		Identifier: viaName(identifierOf(c)), Pseudonym: p.http.pseudonymOf(c), Query: h.Query, SecureFromPlain: h.SecureFromPlain, ZoneInReplyFrom: c.Proxy.ZoneInReplyFrom,
		Stats: &p.stats.http, Log: log})
	if err != nil {
		return fmt.Errorf("http: %w", err)
	}
	return nil
}

// hostNames are the names by which web browsers may address the proxy, beside
// those that are always its own (HC-91).
func hostNames(c *config.Config) []string {
	return append(slices.Clone(c.HTTP.HostNames), c.Proxy.OwnNames...)
}

// knownHost reports whether a Host field names this proxy.
func (p *Proxy) knownHost(host string) bool {
	o := httpbridge.Origins{Hosts: hostNames(p.config.Load())}
	return o.KnownHost(host)
}

// webRoutes are the routes that HTTP clients can ask for, by a path or by a name
// (HC-10), or by a listener; a group's may have a default T' (HC-92).
func (p *Proxy) webRoutes(c *config.Config) (out []httpbridge.Route) {
	for i := range c.Routes {
		r := &c.Routes[i]
		reachable := len(r.Listen) == 0 || slices.ContainsFunc(r.Listen, func(l config.Listener) bool { return l.Scheme == "http" || l.Scheme == "https" })
		if !reachable || strings.HasPrefix(r.To.Scheme, "http") || len(r.Path) == 0 && len(r.Host) == 0 && len(r.Listen) == 0 {
			continue
		}
		var came func(string, netip.AddrPort) bool
		if len(r.Listen) > 0 {
			came = func(scheme string, local netip.AddrPort) bool { return p.bound.has(r.Listen, scheme, local) }
		}
		name := "" // GP-55: made of the address
		if len(c.GroupsAt(r.To.HostPort)) > 0 && r.Servers != config.ServersDirect {
			name = r.Name
		}
		target := wire.URI{Scheme: r.To.Scheme, Host: r.To.Host, Addr: r.To.Addr, Port: r.To.Port, Path: r.To.Path}
		for _, host := range append(r.Host[:len(r.Host):len(r.Host)], "")[:max(len(r.Host), 1)] {
			out = append(out, httpbridge.Route{Name: name, Host: host, Listener: came, Path: r.Path, Target: target.String(),
				Timeout: exchange.Timeout{Seconds: uint32(r.MulticastTimeout / time.Second), Present: r.MulticastTimeout > 0}})
		}
	}
	return out
}

// viaName is the name of this proxy in Via fields (HC-106).
func viaName(identifier string) string {
	return strings.Map(func(r rune) rune {
		if strings.ContainsRune(" ,()", r) {
			return '-'
		}
		return r
	}, identifier)
}

// httpClients tells who HTTP clients are: by the same entries as CoAP clients
// (HC-100).
func (p *Proxy) httpClients(c *config.Config, g *generation, log *zap.Logger) (*httpbridge.Authentication, error) {
	policy := g.policy
	out := &httpbridge.Authentication{Client: policy.IdentifyHTTP, PlainCredentials: c.HTTP.PlainCredentials, Sessions: p.http.sessions,
		Network: func(peer netip.AddrPort) *exchange.Identity { return policy.Identify(peer, nil) },
	}
	certificates, err := newCertificates(g.secrets.ClientAuthorities)
	if err != nil {
		return nil, err
	}
	out.Certificate = func(shown []*x509.Certificate) *exchange.Identity { // no network stands in for it
		if proven := certificates.proof(shown); proven != nil {
			return policy.Identify(netip.AddrPort{}, proven)
		}
		return nil
	}
	if g.secrets.HTTP == nil {
		return out, nil
	}
	if out.Credentials, err = httpbridge.ReadCredentials(bytes.NewReader(g.secrets.HTTP)); err != nil {
		return nil, fmt.Errorf("credentials.http: %s: %w", c.Credentials.HTTP, err)
	}
	known := make(map[string]bool)
	for _, name := range out.Credentials.Clients() {
		known[name] = true
		if policy.IdentifyHTTP(name) == nil {
			log.Warn("a token or password belongs to no client", zap.String("file", string(c.Credentials.HTTP)), zap.String("name", name))
		}
	}
	for i := range c.Clients {
		if name := c.Clients[i].HTTP; name != "" && !known[name] {
			return nil, fmt.Errorf("client %s: %s has no token or password for %s", c.Clients[i].Name, c.Credentials.HTTP, name)
		}
	}
	return out, nil
}

// httpGrace is how long responses that are being written may take after the
// exchanges have ended.
const httpGrace = 500 * time.Millisecond

// listenHTTP opens a listener for HTTP.
func (p *Proxy) listenHTTP(c *config.Config, l config.Listener, front *httpbridge.Front, log *zap.Logger) (*listener, error) {
	limits := &c.HTTP.Limits
	settings := httpbridge.ListenConfig{Addr: l.Addr, Front: front, MaxHeader: int(limits.Header), MaxConns: connectionsWithin(descriptorLimit(), c).web,
		MaxPeerConns: limits.PeerConnections, MaxStreams: limits.Streams, HeaderTimeout: limits.HeaderTimeout,
		IdleTimeout: limits.IdleTimeout, Grace: httpGrace, Log: log.Named("http")}
	if l.Scheme == "https" {
		settings.TLS = &httpbridge.TLSConfig{Config: p.serverTLS, NoHTTP3: !c.HTTP.HTTP3}
	}
	if err := p.sockets.forHTTP(&settings); err != nil {
		return nil, err
	}
	web, err := httpbridge.Listen(settings)
	if err != nil {
		return nil, err
	}
	uri := zap.String("uri", l.Scheme+"://"+web.Addr().String())
	return &listener{addr: web.Addr(), web: web, close: web.Close, ready: func() { log.Info("listening", uri) }, serve: func(ctx context.Context) {
		if err := web.Serve(ctx); err != nil && ctx.Err() == nil {
			log.Error("listener ended", uri, zap.Error(err))
		}
	}}, nil
}

// drain is Front.Drain of both fronts at once.
func (p *Proxy) drain(over <-chan struct{}) (left int) {
	if p.http.front == nil {
		return p.front.Drain(over)
	}
	ctx, cancel := context.WithCancelCause(context.Background())
	defer cancel(nil)
	go func() {
		select {
		case <-over:
			cancel(errors.New("the time is over"))
		case <-ctx.Done():
		}
	}()
	http := make(chan int, 1)
	go func() { http <- p.http.front.Drain(ctx) }()
	left = p.front.Drain(over)
	return left + <-http
}
