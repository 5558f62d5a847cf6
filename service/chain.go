package service

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"go.uber.org/zap"

	"coapproxy/blockwise"
	"coapproxy/chain"
	"coapproxy/config"
	"coapproxy/exchange"
)

// maxRoundTrips bounds the peers whose round trip is remembered.
const maxRoundTrips = 16384

// chainOf makes the leg to the next proxies out of those to servers. It sets g.chain, which stays nil where there
// is no next proxy, and returns what gets their requests.
func (p *Proxy) chainOf(ctx context.Context, c *config.Config, g *generation, servers *upstreams, log *zap.Logger) exchange.Handler {
	if len(c.NextHop) == 0 {
		return nil
	}
	settings := chain.Config{Engine: p.engine, Numbers: p.numbers, Leg: servers.single, Whole: servers.legs, Log: log.Named("chain"),
		Resolve: func(ctx context.Context, host string) ([]netip.Addr, error) { return resolve(ctx, c, host) },
		RoundTrip: func(t *exchange.Target) time.Duration {
			if strings.HasSuffix(t.Scheme, "+tcp") || strings.HasSuffix(t.Scheme, "+ws") {
				return servers.streams.RoundTrip(t)
			}
			return p.roundTrips.Of(t.Addr)
		}}
	if settings.Zones = c.Proxy.ZoneInReplyFrom; p.started != nil {
		settings.Zones = p.started.Proxy.ZoneInReplyFrom // as the front does
	}
	for i := range c.NextHop {
		h := &c.NextHop[i]
		hop := chain.Hop{Name: h.Name, Addresses: []chain.Address{addressOf(h.URI)}, Dialect: exchange.Draft07,
			MaxTimeout: uint32(h.MaxTimeout / time.Second), Margin: uint32(h.Margin / time.Second), Timeout: h.Timeout,
			RetryMax: h.RetryMax, NStart: h.NStart, Stats: p.hopStats(h.Name)}
		if h.Backup.Scheme != "" {
			hop.Addresses = append(hop.Addresses, addressOf(h.Backup))
		}
		if h.Dialect == config.DialectLegacy {
			hop.Dialect = exchange.Legacy
		}
		switch h.Form {
		case config.FormProxyURI:
			hop.Form = exchange.FormURI
		case config.FormProxyScheme:
			hop.Form = exchange.FormScheme
		}
		if h.OSCORE != "" { // OH-102
			hop.Leg = p.towards(h.OSCORE, servers.single)
			hop.Whole = blockwise.NewUpstream(hop.Leg, maxBody)
		}
		settings.Hops = append(settings.Hops, hop)
		log.Info("next hop", zap.String("name", h.Name), zap.Stringer("uri", h.URI), zap.Stringer("backup", h.Backup), zap.Stringers("targets", h.Targets))
	}
	hops := chain.New(ctx, settings)
	g.chain.Store(hops)
	g.legs = append(g.legs, hops)
	groups := &blockwise.Continuation{Group: hops, Unicast: hops, Engine: p.engine, Stats: &p.stats.bodies, Log: log.Named("blockwise")}
	return exchange.HandlerFunc(func(r *exchange.Request, w exchange.Sink) exchange.Canceler {
		if r.Target.Group {
			return groups.Exchange(r, w)
		}
		return hops.Exchange(r, w)
	})
}

// earlyStop are the options of the request that ends a group request at a next
// proxy (GP-103).
func (p *Proxy) earlyStop() message.Options {
	return message.Options{{ID: p.numbers.MulticastTimeout, Value: []byte{}}}
}

// hopStats are the counters of a next proxy, the same ones in every generation.
func (p *Proxy) hopStats(name string) *chain.Stats {
	s := p.hops[name]
	if s == nil {
		if p.hops == nil {
			p.hops = make(map[string]*chain.Stats)
		}
		s = &chain.Stats{}
		p.hops[name] = s
		p.metrics.RegisterFor("next_hop", s, "hop", name)
		p.metrics.DurationFor("next_hop_round_trip_seconds", "Round trip to the next proxy, measured or at most; 0: not known.", "hop", name, func() time.Duration {
			if g := p.serving.Load(); g != nil && g.chain.Load() != nil {
				return g.chain.Load().RoundTrip(name)
			}
			return 0
		})
	}
	return s
}

func addressOf(u config.HopURI) chain.Address {
	return chain.Address{Scheme: u.Scheme, Host: u.Host, Addr: netip.AddrPortFrom(u.Addr, u.Port)}
}

// resolve looks the name of a next proxy up.
func resolve(ctx context.Context, c *config.Config, host string) ([]netip.Addr, error) {
	if addrs := c.Names[host]; len(addrs) > 0 {
		return addrs, nil
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	addrs, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	for i := range addrs {
		addrs[i] = addrs[i].Unmap()
	}
	return slices.DeleteFunc(addrs, netip.Addr.IsMulticast), err
}

// nextHopOf says which next proxy has a target; nil if there are none. A
// link-local server is where it was heard: its zone means nothing here.
func (p *Proxy) nextHopOf(c *config.Config) func(scheme, host string, addr netip.Addr, port uint16) string {
	if len(c.NextHop) == 0 {
		return nil
	}
	return func(scheme, host string, addr netip.Addr, port uint16) string {
		if addr.IsLinkLocalUnicast() && scheme == "coap" {
			if via := p.heard.Via(netip.AddrPortFrom(addr, port)); via != "" {
				return via
			}
		}
		return c.NextHopOf(scheme, host, addr, port)
	}
}

// strays is told of responses that no request waits for; nil where nobody wants to
// know.
func (g *generation) strays(c *config.Config) func(scheme string, from netip.AddrPort) {
	if len(c.NextHop) == 0 {
		return nil
	}
	return func(scheme string, from netip.AddrPort) {
		if hops := g.chain.Load(); hops != nil {
			hops.Stray(scheme, from)
		}
	}
}

func strayUnder(stray func(string, netip.AddrPort), scheme string) func(netip.AddrPort) {
	if stray == nil {
		return nil
	}
	return func(from netip.AddrPort) { stray(scheme, from) }
}

// nstart is the number of outstanding requests to a server, which may be a next
// proxy (FP-92).
func (g *generation) nstart(c *config.Config) func(netip.AddrPort) int {
	server := nstartOf(c)
	if len(c.NextHop) == 0 {
		return server
	}
	return func(to netip.AddrPort) int {
		if hops := g.chain.Load(); hops != nil {
			if n := hops.NStart(to); n > 0 {
				return n
			}
		}
		return server(to)
	}
}
