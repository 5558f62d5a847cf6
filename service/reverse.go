package service

import (
	"errors"
	"net/netip"
	"slices"
	"strings"
	"sync"

	"go.uber.org/zap"

	"coapproxy/config"
	"coapproxy/proxy"
)

// boundListeners tells where the listeners of the configuration are: a port can
// be of the system's choice.
type boundListeners struct {
	mu    sync.Mutex
	addrs map[string][]netip.AddrPort // by what the configuration calls them
}

// set says where the proxy listens.
func (b *boundListeners) set(listeners []*listener) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.addrs = make(map[string][]netip.AddrPort)
	for _, l := range listeners {
		name, _, _ := strings.Cut(l.name, " ") // without the number of its repetition
		b.addrs[name] = append(b.addrs[name], l.addr)
	}
}

// of returns where a listener of the configuration is.
func (b *boundListeners) of(l config.Listener) []netip.AddrPort {
	b.mu.Lock()
	defer b.mu.Unlock()
	return slices.Clone(b.addrs[l.String()])
}

// has reports whether what was sent to local by the scheme came by one of the
// listeners.
func (b *boundListeners) has(wanted []config.Listener, scheme string, local netip.AddrPort) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, l := range wanted {
		if l.Scheme != scheme {
			continue
		}
		for _, at := range b.addrs[l.String()] {
			if at.Port() == local.Port() && (at.Addr().IsUnspecified() || at.Addr().WithZone("") == local.Addr().WithZone("")) {
				return true
			}
		}
	}
	return false
}

// pool are the listeners for single servers. They stay open until the proxy ends.
type pool struct {
	mu        sync.Mutex
	closed    bool
	listeners []*listener
}

// open opens one more and has it started.
func (p *pool) open(open func() (*listener, error), start func(*listener)) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.closed {
		return errors.New("shutting down")
	}
	l, err := open()
	if err != nil {
		return err
	}
	start(l)
	p.listeners = append(p.listeners, l)
	return nil
}

// all returns those that are open.
func (p *pool) all() []*listener {
	p.mu.Lock()
	defer p.mu.Unlock()
	return slices.Clone(p.listeners)
}

// close opens none any more and returns those that are to be stopped.
func (p *pool) close() []*listener {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.closed = true
	return p.listeners
}

// mappingsOf makes the table of announced servers, which outlives generations: what
// was announced stays good (GP-56).
func (p *Proxy) mappingsOf(c *config.Config, log *zap.Logger) *proxy.Mappings {
	var pool []netip.AddrPort
	for _, r := range c.Proxy.ServerAddresses {
		for port := int(r.First); port <= int(r.Last); port++ {
			pool = append(pool, netip.AddrPortFrom(r.Addr, uint16(port)))
		}
	}
	log = log.Named("reverse")
	return proxy.NewMappings(proxy.MappingsConfig{Lifetime: c.Limits.ReverseLifetime, Max: c.Limits.ReverseMappings, Pool: pool,
		Stats: &p.stats.fronts, Log: log, Open: func(scheme string, at netip.AddrPort) error {
			l := config.Listener{Scheme: scheme, Addr: at}
			return p.pool.open(func() (*listener, error) { return p.open(c, nil, l, l.String(), log) }, func(l *listener) {
				p.own.add(scheme, l.addr)
				l.start(p.ctx)
			})
		}})
}

// reverseOf is the reverse side: what requests without Proxy option go to.
func (p *Proxy) reverseOf(c *config.Config) *proxy.Reverse {
	v := &proxy.Reverse{Mappings: p.mappings, ServersPath: c.Proxy.ServersPath}
	for i := range c.Routes {
		t := &c.Routes[i]
		groups := c.GroupsAt(t.To.HostPort)
		route := proxy.ReverseRoute{Name: t.Name, Hosts: slices.Clone(t.Host), Path: t.Path, Scheme: t.To.Scheme, Host: t.To.Host, Addr: t.To.Addr,
			Port: t.To.Port, Base: t.To.Path, Group: len(groups) > 0, Groups: groups, PassThrough: t.OSCORE == config.OSCOREPassThrough,
			Announce: t.Announce.Addr, AnnouncePort: t.Announce.Port}
		for j, host := range route.Hosts {
			if addr, err := netip.ParseAddr(host); err == nil {
				route.Hosts[j] = addr.Unmap().String()
			}
		}
		if len(t.Listen) > 0 {
			route.Listener = func(scheme string, local netip.AddrPort) bool { return p.bound.has(t.Listen, scheme, local) }
		}
		switch t.Servers {
		case config.ServersByPath:
			route.Servers = proxy.ByPath
		case config.ServersOwnAddress:
			route.Servers = proxy.OwnAddress
		case config.ServersDirect:
			route.Servers = proxy.Direct
		}
		v.Routes = append(v.Routes, route)
	}
	return v
}
