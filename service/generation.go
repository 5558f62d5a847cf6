package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"coapproxy/access"
	"coapproxy/blockwise"
	"coapproxy/chain"
	"coapproxy/config"
	"coapproxy/exchange"
	"coapproxy/httpbridge"
	"coapproxy/membership"
	"coapproxy/multicast"
	"coapproxy/proxy"
)

// generation is what one configuration makes of the proxy: who may do what,
// which groups and servers there are, and the legs to them. A running proxy has
// one that serves; those before it only finish what they have begun.
type generation struct {
	// entry is where the front hands requests in, for the clients that policy
	// knows; it leads to the process's cache. exit is where the cache hands them
	// on; it leads to the legs.
	entry, exit exchange.Handler
	policy      *access.Policy
	targets     *proxy.Targets
	config      *config.Config
	protected   *proxy.Protection
	members     membership.Groups
	learned     map[string]*membership.Learned
	directories directories
	secrets     *config.Loaded
	web         *httpbridge.Front // nil without a listener for HTTP

	route *proxy.Route
	// chain is nil where there are no next proxies, and until it is made: it looks at
	// them at once, through a leg that asks what it knows of them.
	chain  atomic.Pointer[chain.Chain]
	names  *proxy.Names
	cancel context.CancelFunc
	legs   []leg
	// lifetime is how long an exchange takes at most, observations apart.
	lifetime time.Duration
}

// leg is a Handler with goroutines and sockets of its own, which end when its
// context has. Wait waits for that; what still runs then ends with an error.
type leg interface {
	exchange.Handler
	Wait()
}

// generationOf makes a generation, whose sockets are open and whom nobody asks
// yet. It lasts until close.
func (p *Proxy) generationOf(c *config.Config, log *zap.Logger) (_ *generation, err error) {
	ctx, cancel := context.WithCancel(p.ctx)
	g := &generation{config: c, cancel: cancel, lifetime: c.Proxy.MaxTimeout + c.Limits.ResponseTimeoutCon}
	defer func() {
		if err != nil {
			g.close()
		}
	}()
	if g.secrets, err = c.Credentials.Load(); err != nil {
		return nil, err
	}
	withoutKey(c, g.secrets, log)
	dedup := dedupOf(c)
	groupLeg, err := multicast.New(ctx, multicast.Config{Engine: p.engine, Open: openGroup(c), Groups: groupsOf(c), Dedup: dedup,
		ReuseList: c.Limits.ReuseList, Observations: c.Limits.Observations, Stats: &p.stats.groups, EndpointStats: &p.stats.messages, Log: log.Named("group")})
	if err != nil {
		return nil, err
	}
	g.legs = append(g.legs, groupLeg)
	servers, err := p.upstreamsOf(ctx, c, g, log.Named("upstream"))
	if err != nil {
		return nil, err
	}
	if g.names, err = proxy.NewNames(ctx, c.Names, net.DefaultResolver, p.engine); err != nil {
		return nil, err
	}
	g.directories = p.directoriesOf(c, servers.legs, log.Named("members"))
	g.members, g.learned = membersOf(c, p.serving.Load(), g.directories)

	// The way of a request, from its end to its beginning; p.stored is between the
	// two halves.
	g.route = &proxy.Route{
		Group:   &blockwise.Continuation{Group: groupLeg, Unicast: servers.coap, Engine: p.engine, Stats: &p.stats.bodies, Log: log.Named("blockwise")},
		Unicast: servers.legs, Numbers: p.numbers, HopLimit: uint8(c.Proxy.HopLimit),
		Identifier: identifierOf(c), GroupBody: groupBody(c), ForwardNoResponse: c.Proxy.ForwardNoResponse, HoldBack: p.holdBack, Log: log.Named("route")}
	g.route.NextHop = p.chainOf(ctx, c, g, servers, log)
	g.exit = g.route
	if len(g.learned) > 0 {
		g.exit = &membership.Listener{Next: g.route, Groups: g.learned}
	}

	window := &proxy.Groups{Next: p.stored, RefuseAboveMax: c.Proxy.RefuseAboveMax, Log: log.Named("route")}
	g.policy = access.New(p.policyOf(c), window, p.heard)
	window.MaxTimeout = g.policy.MaxTimeout
	reverse := p.reverseOf(c)
	targets := &proxy.Targets{Next: g.policy, Reverse: reverse, Local: p.localOf(c, g, reverse), Numbers: p.numbers, Names: g.names, Own: p.own.is, Serves: servers.legs.Serves,
		OwnNames: ownNames(c), NextHop: p.nextHopOf(c), GroupName: g.policy.NamesGroup, Zone: zoneOf(c, p.heard), Engine: p.engine, Log: log.Named("target")}
	g.entry = targets
	if err := p.webOf(c, g, log.Named("http")); err != nil {
		return nil, err
	}
	g.targets = targets
	return g, prepareGroups(c, groupLeg, log)
}

// protect makes requests protected with the OSCORE contexts of g's configuration
// work. It comes last, because it takes contexts away that there are no more.
func (p *Proxy) protect(g *generation, log *zap.Logger) (err error) {
	g.protected, err = p.protectionOf(g.config, g.targets, log.Named("oscore"))
	return err
}

// serve makes g the generation that gets the requests.
func (p *Proxy) serve(g *generation) {
	var before *chain.Chain
	if old := p.serving.Load(); old != nil {
		before = old.chain.Load()
	}
	chain.HandOver(before, g.chain.Load())
	p.roundTrips.Measure(g.chain.Load() != nil)
	p.secrets.Store(g.secrets)
	p.members.Store(&g.members)
	p.config.Store(g.config)
	p.exit.To(g.exit)
	p.front.Serve(g.entry, g.policy, g.protected)
	p.oscore.keep(g.config)
	p.http.serve(g, p.listeners)
	if before := p.serving.Swap(g); before != nil {
		before.directories.close()
	}
	g.directories.start()
	p.engine.Flush()
}

// queued is the number of requests that wait for their turn: with groups, and
// with single servers.
func (g *generation) queued() (groups, servers int) {
	for _, l := range g.legs {
		switch l := l.(type) {
		case *multicast.Leg:
			groups += l.Queued()
		case interface{ Queued() int }:
			servers += l.Queued()
		}
	}
	return groups, servers
}

// close ends g and waits for it; exchanges that it still has end with an error.
func (g *generation) close() {
	g.directories.close()
	g.cancel()
	for _, l := range g.legs {
		l.Wait()
	}
	if g.names != nil {
		g.names.Wait()
	}
}

const (
	maxBody   = 1 << 20  // the longest request or response body (FP-72)
	maxBodies = 64 << 20 // all bodies in transfer in blocks
)

// maxServers bounds the servers whose Message IDs are remembered.
const maxServers = 16384

// prepareGroups opens the sockets of all groups with a known address.
func prepareGroups(c *config.Config, leg *multicast.Leg, log *zap.Logger) error {
	var errs error
	for i := range c.Groups {
		g := &c.Groups[i]
		addrs := c.Names[g.URI.Host]
		if len(g.Interfaces) == 0 { // a next proxy reaches it
			log.Info("group", zap.String("name", g.Name), zap.Stringer("uri", g.URI))
			continue
		}
		if g.URI.Addr.IsValid() {
			addrs = []netip.Addr{g.URI.Addr}
		}
		for _, addr := range addrs {
			if err := leg.Prepare(g.Name, addr); err != nil {
				errs = errors.Join(errs, fmt.Errorf("group %s: %w", g.Name, err))
			}
		}
		log.Info("group", zap.String("name", g.Name), zap.Stringer("uri", g.URI), zap.Strings("interfaces", g.Interfaces))
	}
	return errs
}
