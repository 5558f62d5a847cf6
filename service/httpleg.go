package service

import (
	"context"
	"net/netip"
	"net/url"
	"slices"

	"go.uber.org/zap"

	"coapproxy/config"
	"coapproxy/exchange"
	"coapproxy/httpbridge"
	"coapproxy/wire"
)

// httpLegOf makes the leg to HTTP servers, nil if no client may reach any.
func (p *Proxy) httpLegOf(ctx context.Context, c *config.Config, g *generation, log *zap.Logger) *httpbridge.Leg {
	wanted := slices.ContainsFunc(c.Clients, func(cl config.Client) bool {
		return slices.ContainsFunc(cl.Forward, func(t config.Target) bool { return t.Scheme == "http" || t.Scheme == "https" })
	})
	if !wanted {
		return nil
	}
	settings := httpbridge.LegConfig{Engine: p.engine, Roots: g.secrets.ServerAuthorities, Redirects: c.HTTP.Redirects, Body: maxBody,
		Timeout: c.Limits.ResponseTimeout, Query: c.HTTP.Query, Loose: c.HTTP.LooseMediaTypes, Pseudonym: p.http.pseudonymOf(c),
		Stats: &p.stats.httpLeg, Log: log}
	if c.HTTP.Redirects > 0 {
		settings.Redirect = func(ctx context.Context, r *exchange.Request, to *url.URL) (exchange.Target, error) {
			return p.redirect(ctx, c, g, r, to)
		}
	}
	return httpbridge.NewLeg(ctx, settings)
}

// redirect finds out where a redirection of an HTTP server leads, and refuses
// what the client could not ask for itself (HC-34, HC-103).
func (p *Proxy) redirect(ctx context.Context, c *config.Config, g *generation, r *exchange.Request, to *url.URL) (exchange.Target, error) {
	refused := exchange.Failf(exchange.Denied, "the HTTP server redirects to where this client may not go")
	u, err := wire.ParseURI(to.Scheme + "://" + to.Host)
	if err != nil {
		return exchange.Target{}, refused
	}
	addrs := []netip.Addr{u.Addr}
	if u.Host != "" {
		if addrs, err = g.names.Resolve(ctx, r.Peer.Addr(), u.Host); err != nil {
			return exchange.Target{}, err
		}
	}
	t := exchange.Target{Scheme: u.Scheme, Host: u.Host, Addr: netip.AddrPortFrom(addrs[0], u.Port)}
	secret := wire.SecureScheme(t.Scheme) && !r.Secured && c.Proxy.RequireSecureClient // FP-87
	if secret || p.own.is(t.Scheme, t.Addr) || !g.policy.Allows(r, t) {
		return exchange.Target{}, refused
	}
	return t, nil
}
