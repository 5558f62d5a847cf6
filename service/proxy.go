package service

import (
	"context"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"coapproxy/access"
	"coapproxy/blockwise"
	"coapproxy/cache"
	"coapproxy/chain"
	"coapproxy/config"
	"coapproxy/control"
	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/httpbridge"
	"coapproxy/membership"
	"coapproxy/metrics"
	"coapproxy/multicast"
	"coapproxy/proxy"
	"coapproxy/wire"
)

// Proxy is a proxy at work: what lives as long as the process, and the
// generation that serves.
//
//	listeners ─► front ─► generation.entry ─► stored ─► exit ─► generation.exit ─► servers
//
// The front and exit are switched when a new generation takes over, so that
// clients keep their sockets and sessions, and stored responses, half uploaded
// bodies and running exchanges outlive it.
type Proxy struct {
	ctx      context.Context // ends with the proxy
	cancel   context.CancelFunc
	wg       sync.WaitGroup // the engine, and old generations
	engine   *exchange.Engine
	metrics  *metrics.Registry
	control  *control.Server
	stats    stats
	numbers  *wire.Numbers
	heard    *access.Heard
	holdBack *proxy.HoldBack
	own      *ownAddresses
	sockets  *sockets // from the service manager; nil for none
	// roundTrips measures the ways to clients and next proxies, as long as there are
	// any of the latter.
	roundTrips *endpoint.RoundTrips
	hops       map[string]*chain.Stats

	front    *proxy.Front
	http     httpSide
	streams  *endpoint.StreamServer
	mappings *proxy.Mappings
	pool     pool
	bound    boundListeners
	stored   exchange.Handler
	exit     exchange.Switch
	shared   *cache.Cache // has the observations of all generations
	save     func()       // keeps the stored responses for the next start

	oscore *oscoreHop // nil while no configuration has had a context

	// What a reload replaces, under the lock; see reload.
	mu        sync.Mutex
	stopping  bool           // nothing is reloaded any more
	started   *config.Config // what the start was made with
	listeners []*listener    // in the order of the configuration
	serving   atomic.Pointer[generation]
	old       oldGenerations
	// What the generation that serves knows, for those who outlive it.
	members atomic.Pointer[membership.Groups]
	config  atomic.Pointer[config.Config]
	secrets atomic.Pointer[config.Loaded]
}

// stats is what the parts count in, over all generations.
type stats struct {
	messages endpoint.Stats
	sessions endpoint.DTLSStats
	streams  endpoint.StreamStats
	upstream upstreamStats
	groups   multicast.Stats
	fronts   proxy.Stats
	http     httpbridge.Stats
	httpLeg  httpbridge.LegStats
	bodies   blockwise.Stats
	blocks   blockwise.DownstreamStats
	control  control.Stats
	reloads  reloads
	access   access.Stats

	directories membership.DirectoryStats
}

func (s *stats) register(r *metrics.Registry) {
	r.Register("coap", &s.messages, nil)
	r.Register("coap", &s.sessions, nil)
	r.Register("coap", &s.streams, nil)
	r.Register("upstream", &s.upstream.sessions, nil)
	r.Register("upstream", &s.upstream.streams, nil)
	r.Register("upstream", &s.upstream.answers, nil)
	r.Register("group", &s.groups, nil)
	r.Register("blockwise", &s.bodies, nil)
	r.Register("blockwise", &s.blocks, nil)
	r.Register("control", &s.control, nil)
	r.Register("config", &s.reloads, nil)
	r.Register("access", &s.access, nil)
	r.Register("membership", &s.directories, nil)
	reasons := func(i int) string { return exchange.Reason(i).String() }
	r.Register("proxy", &s.fronts, reasons)
	r.Register("http", &s.http, reasons)
	r.Register("http_servers", &s.httpLeg, nil)
}

// Start makes a proxy of a configuration and starts it. It runs until Stop
// is called, also when ctx has ended: running exchanges are given time.
func Start(ctx context.Context, c *config.Config, log *zap.Logger) (*Proxy, error) {
	return startOn(ctx, c, nil, log)
}

// startOn is Start with sockets that are open already.
func startOn(ctx context.Context, c *config.Config, passed *sockets, log *zap.Logger) (*Proxy, error) {
	p := &Proxy{engine: exchange.NewEngine(), metrics: &metrics.Registry{}, numbers: numbersOf(c.Proxy.OptionNumbers),
		heard: access.NewHeard(), holdBack: proxy.NewHoldBack(), own: &ownAddresses{}, sockets: passed}
	p.ctx, p.cancel = context.WithCancel(context.WithoutCancel(ctx))
	p.stats.register(p.metrics)
	p.control = control.NewServer(&p.stats.control, log.Named("control"))
	p.wg.Go(func() { p.engine.Run(p.ctx) })
	if err := p.start(c, log); err != nil {
		p.close()
		return nil, err
	}
	warnings(c, p.secrets.Load(), log)
	return p, nil
}

// start puts the parts together: from the legs to the listeners, which open when
// everything behind them is there.
func (p *Proxy) start(c *config.Config, log *zap.Logger) error {
	var err error
	if p.roundTrips, err = endpoint.NewRoundTrips(maxRoundTrips); err != nil {
		return err
	}
	stored, err := p.cacheOf(c, &p.exit, log.Named("cache"))
	if err != nil {
		return err
	}
	p.stored = blockwise.NewDownstream(stored, maxBody, maxBodies, &p.stats.blocks)
	p.mappings = p.mappingsOf(c, log)
	g, err := p.generationOf(c, log)
	if err != nil {
		return err
	}
	if err := p.protect(g, log); err != nil {
		g.close()
		return err
	}
	p.front = proxy.NewFront(proxy.FrontConfig{Next: g.entry, Clients: g.policy, Protected: g.protected, Numbers: p.numbers, Engine: p.engine,
		ZoneInReplyFrom: c.Proxy.ZoneInReplyFrom, MaxExchanges: c.Limits.Exchanges, MaxObservers: c.Limits.Observations, MaxEnded: c.Limits.Exchanges,
		Stats: &p.stats.fronts, Log: log.Named("front")})
	p.serve(g)
	p.streams = p.streamServer(c, log.Named("connection"))
	t, err := p.listen(c, g, log)
	if err != nil {
		return err
	}
	t.apply()
	p.started = c
	p.keepTargets(c.Proxy.ServerTargets, log.Named("reverse"))
	p.stats.reloads.Last.Store(time.Now().Unix())
	p.registerGauges()
	p.registerKeyUse()
	if err := p.serveMetrics(c.Metrics, log.Named("metrics")); err != nil {
		return err
	}
	return p.serveControl(c.Control, log.Named("control"))
}

// Addrs are where the proxy listens, in the order of the configuration.
func (p *Proxy) Addrs() []netip.AddrPort {
	p.mu.Lock()
	defer p.mu.Unlock()
	var addrs []netip.AddrPort
	for _, l := range p.listeners {
		addrs = append(addrs, l.addr)
	}
	return addrs
}

// Stop ends the proxy: no new requests at once, running exchanges after
// limits.grace at the latest. It returns how many were cut off.
func (p *Proxy) Stop(log *zap.Logger) int {
	p.mu.Lock()
	p.stopping = true
	grace := p.config.Load().Limits.Grace
	p.mu.Unlock()
	log.Info("stopping", zap.Duration("grace", grace))
	over := make(chan struct{})
	timer := time.AfterFunc(grace, func() { close(over) })
	left := p.drain(over)
	p.settle(over)
	timer.Stop()
	p.close()
	p.save()
	return left
}

// close ends everything and waits for it.
func (p *Proxy) close() {
	p.cancel()
	for _, l := range slices.Concat(p.listeners, p.pool.close()) {
		l.stop()
	}
	p.wg.Wait()
	if g := p.serving.Load(); g != nil {
		g.close()
	}
	p.oscore.close()
}

// warnings says what an operator should know before it hurts.
func warnings(c *config.Config, secrets *config.Loaded, log *zap.Logger) {
	for _, text := range secrets.Expiring(time.Now()) {
		log.Warn(text)
	}
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
	if c.Proxy.ServerTargets == "" && slices.ContainsFunc(c.Routes, func(r config.Route) bool { return r.Servers == config.ServersOwnAddress }) {
		log.Warn("without proxy.server_targets an address of proxy.server_addresses may stand for another server after a restart")
	}
	for _, l := range c.Listen {
		if l.Addr.Addr().IsUnspecified() {
			log.Warn("listening on every interface", zap.Stringer("listener", l))
		}
	}
}
