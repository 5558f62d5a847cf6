package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"coapproxy/access"
	"coapproxy/blockwise"
	"coapproxy/config"
	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/metrics"
	"coapproxy/multicast"
	"coapproxy/proxy"
	"coapproxy/wire"
)

// runningProxy is a started proxy.
type runningProxy struct {
	front     *proxy.Front
	listeners []netip.AddrPort // in the order of the configuration
	metrics   *metrics.Registry
	cancel    context.CancelFunc
	wait      func()
	// save keeps the stored responses for the next start.
	save func()
}

// startProxy makes a proxy of a configuration and starts it. It runs until stop
// is called, also when ctx has ended: running exchanges are given time.
func startProxy(ctx context.Context, c *config.Config, log *zap.Logger) (*runningProxy, error) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	var wg sync.WaitGroup
	p := &runningProxy{metrics: &metrics.Registry{}, cancel: cancel}
	var (
		messages endpoint.Stats
		sessions endpoint.DTLSStats
		groups   multicast.Stats
		fronts   proxy.Stats
		bodies   blockwise.Stats
		blocks   blockwise.DownstreamStats
	)
	p.metrics.Register("coap", &messages, nil)
	p.metrics.Register("coap", &sessions, nil)
	p.metrics.Register("group", &groups, nil)
	p.metrics.Register("blockwise", &bodies, nil)
	p.metrics.Register("blockwise", &blocks, nil)
	p.metrics.Register("proxy", &fronts, func(i int) string { return exchange.Reason(i).String() })

	engine := exchange.NewEngine()
	wg.Go(func() { engine.Run(ctx) })
	numbers := numbersOf(c.Proxy.OptionNumbers)
	dedup := endpoint.DefaultDedupLimits()
	dedup.Idempotent, dedup.NonIdempotent = c.Limits.DedupEntries, c.Limits.DedupNonIdempotent

	groupLeg, err := multicast.New(ctx, multicast.Config{Engine: engine, Open: openGroup(c), Groups: groupsOf(c), Dedup: dedup,
		ReuseList: c.Limits.ReuseList, Stats: &groups, EndpointStats: &messages, Log: log.Named("group")})
	if err != nil {
		cancel()
		return nil, err
	}
	unicastLeg, err := endpoint.NewClient(ctx, endpoint.ClientConfig{Engine: engine, Params: endpoint.DefaultParams(), Dedup: dedup,
		Stats: &messages, Log: log.Named("upstream"), Open: openClient(c), KeepType: c.Proxy.ClientTypes == config.ClientTypesKeep,
		NStart: nstartOf(c), Queue: c.Limits.UpstreamQueue, TimeoutCON: c.Limits.ResponseTimeoutCon,
		TimeoutNON: c.Limits.ResponseTimeout, Ports: c.Limits.UpstreamPorts, Servers: maxServers})
	if err != nil {
		cancel()
		return nil, err
	}
	names, err := proxy.NewNames(ctx, c.Names, net.DefaultResolver, engine)
	if err != nil {
		cancel()
		return nil, err
	}
	p.wait = func() { wg.Wait(); groupLeg.Wait(); unicastLeg.Wait(); names.Wait() }
	fail := func(err error) (*runningProxy, error) {
		cancel()
		p.wait()
		return nil, err
	}
	heard := access.NewHeard()
	own := &ownAddresses{}

	// The way of a request, from its end to its beginning.
	route := &proxy.Route{
		Group:   &blockwise.Continuation{Group: groupLeg, Unicast: unicastLeg, Engine: engine, Stats: &bodies, Log: log.Named("blockwise")},
		Unicast: blockwise.NewUpstream(unicastLeg, maxBody), Numbers: numbers, HopLimit: uint8(c.Proxy.HopLimit),
		Identifier: identifierOf(c), GroupBody: groupBody(c), HoldBack: proxy.NewHoldBack(), Log: log.Named("route")}
	stored, err := p.cacheOf(c, route, engine, numbers, log.Named("cache"))
	if err != nil {
		return fail(err)
	}
	whole := blockwise.NewDownstream(stored, maxBody, maxBodies, &blocks)
	window := &proxy.Groups{Next: whole, RefuseAboveMax: c.Proxy.RefuseAboveMax, Log: log.Named("route")}
	policy := access.New(policyOf(c), window, heard)
	window.MaxTimeout = policy.MaxTimeout
	targets := &proxy.Targets{Next: policy, Local: proxy.Local{}, Numbers: numbers, Names: names, Own: own.is,
		OwnNames: ownNames(c), Zone: zoneOf(c, heard), Engine: engine, Log: log.Named("target")}
	p.front = proxy.NewFront(proxy.FrontConfig{Next: targets, Clients: policy, Numbers: numbers, Engine: engine,
		ZoneInReplyFrom: c.Proxy.ZoneInReplyFrom, MaxExchanges: c.Limits.Exchanges, MaxEnded: c.Limits.Exchanges,
		Stats: &fronts, Log: log.Named("front")})

	if err := prepareGroups(c, groupLeg, log); err != nil {
		return fail(err)
	}
	if err := p.listen(ctx, c, listening{engine: engine, own: own, dedup: dedup, messages: &messages, sessions: &sessions, wg: &wg}, log); err != nil {
		return fail(err)
	}
	warnings(c, log)
	return p, nil
}

// stop ends the proxy: no new requests at once, running exchanges after grace
// at the latest. It returns how many were cut off.
func (p *runningProxy) stop(grace time.Duration) int {
	over := make(chan struct{})
	timer := time.AfterFunc(grace, func() { close(over) })
	left := p.front.Drain(over)
	timer.Stop()
	p.cancel()
	p.wait()
	p.save()
	return left
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

// warnings says what an operator should know before it hurts.
func warnings(c *config.Config, log *zap.Logger) {
	for i := range c.Clients {
		cl := &c.Clients[i]
		// GP-24
		beyond := slices.DeleteFunc(slices.Clone(cl.Networks), func(n netip.Prefix) bool { return n.Addr().IsLoopback() })
		switch {
		case len(beyond) > 0:
			log.Warn("clients are identified by their source address alone; anybody who can send from these networks may use the proxy",
				zap.String("client", cl.Name), zap.Stringers("networks", beyond))
		case len(cl.Networks) > 0:
			log.Info("every program on this host may use the proxy", zap.String("client", cl.Name))
		}
	}
	for _, l := range c.Listen {
		if l.Addr.Addr().IsUnspecified() {
			log.Warn("listening on every interface", zap.Stringer("listener", l))
		}
	}
}

func identifierOf(c *config.Config) string {
	if c.Proxy.Identifier != "" {
		return c.Proxy.Identifier
	}
	name, err := os.Hostname()
	if err != nil || name == "" {
		return "coapproxy"
	}
	return strings.ReplaceAll(name, " ", "-")
}

func ownNames(c *config.Config) map[string]bool {
	names := make(map[string]bool)
	for _, n := range c.Proxy.OwnNames {
		names[strings.ToLower(n)] = true
	}
	return names
}

// zoneOf returns the interface of a link-local server (GP-57).
func zoneOf(c *config.Config, heard *access.Heard) func(netip.Addr) string {
	return func(server netip.Addr) string {
		if zone := heard.Zone(server); zone != "" {
			return zone
		}
		return c.Proxy.DefaultInterface
	}
}

// ownAddresses tells which destinations are this proxy (FP-8).
type ownAddresses struct {
	mu        sync.Mutex
	exact     map[netip.AddrPort]bool
	wildcards map[uint16]bool
	local     map[netip.Addr]bool // addresses of this host, for the wildcards
	asked     time.Time
}

// localAge is how old the list of the host's addresses may be.
const localAge = 10 * time.Second

func (o *ownAddresses) add(listener netip.AddrPort) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.exact == nil {
		o.exact, o.wildcards = make(map[netip.AddrPort]bool), make(map[uint16]bool)
	}
	if listener.Addr().IsUnspecified() {
		o.wildcards[listener.Port()] = true
		return
	}
	o.exact[listener] = true
}

func (o *ownAddresses) is(a netip.AddrPort) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.exact[a] {
		return true
	}
	if !o.wildcards[a.Port()] {
		return false
	}
	if now := time.Now(); now.Sub(o.asked) > localAge {
		o.asked, o.local = now, make(map[netip.Addr]bool)
		addrs, _ := net.InterfaceAddrs()
		for _, known := range addrs {
			if n, ok := known.(*net.IPNet); ok {
				ip, _ := netip.AddrFromSlice(n.IP)
				o.local[ip.Unmap()] = true
			}
		}
	}
	addr := a.Addr().WithZone("")
	return addr.IsLoopback() || o.local[addr]
}

func numbersOf(n config.OptionNumbers) *wire.Numbers {
	return &wire.Numbers{MulticastTimeout: optionID(n.MulticastTimeout), LegacyTimeout: optionID(n.LegacyTimeout),
		ReplyFrom: optionID(n.ReplyFrom), GroupETag: optionID(n.GroupETag), ResponseForwarding: optionID(n.ResponseForwarding)}
}
