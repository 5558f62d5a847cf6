package service

import (
	"net/netip"
	"slices"
	"strings"

	"coapproxy/config"
	"coapproxy/exchange"
	"coapproxy/proxy"
	"coapproxy/wire"
)

// localOf is what the proxy itself offers under /.well-known/core, to clients that
// may use it: the routes, the HTTP side, and the proxy under its other transports.
func (p *Proxy) localOf(c *config.Config, g *generation, reverse *proxy.Reverse) proxy.Local {
	return proxy.Local{Links: func(r *exchange.Request) []proxy.Link {
		if r.Client == nil {
			return nil
		}
		links := reverse.Offers(r, g.policy.Offers)
		seen := []string{wire.URI{Scheme: r.Scheme, Addr: r.Local.Addr().WithZone(""), Port: r.Local.Port()}.String()}
		for _, l := range c.Listen {
			for _, at := range p.bound.of(l) {
				if at.Addr().IsUnspecified() {
					if at.Addr().Is4() != r.Local.Addr().Is4() {
						continue
					}
					at = netip.AddrPortFrom(r.Local.Addr(), at.Port())
				}
				uri := wire.URI{Scheme: l.Scheme, Addr: at.Addr().WithZone(""), Port: at.Port()}.String()
				if slices.Contains(seen, uri) {
					continue
				}
				seen = append(seen, uri)
				uri = strings.TrimSuffix(uri, "/")
				if strings.HasPrefix(l.Scheme, "http") { // HC-14
					links = append(links, crossProxyLink(c, uri))
					continue
				}
				links = append(links, proxy.Link{Target: uri, Attributes: []proxy.LinkAttribute{{Name: "rel", Value: "has-proxy"}, {Name: "anchor", Value: "/"}}}) // FP-88
			}
		}
		return links
	}}
}

// crossProxyLink is the link to the HTTP side (HC-14).
func crossProxyLink(c *config.Config, origin string) proxy.Link {
	l := proxy.Link{Target: c.HTTP.Prefix, Attributes: []proxy.LinkAttribute{{Name: "rt", Value: "core.hc"}}}
	if len(c.HTTP.Templates) > 0 { // the default one needs no attribute
		l.Attributes = append(l.Attributes, proxy.LinkAttribute{Name: "hct", Value: c.HTTP.Templates[0]})
	}
	l.Attributes = append(l.Attributes, proxy.LinkAttribute{Name: "anchor", Value: origin})
	return l
}
