package proxy

import (
	"context"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"coapproxy/access"
	"coapproxy/blockwise"
	"coapproxy/cache"
	"coapproxy/endpoint"
	"coapproxy/endpoint/memnet"
	"coapproxy/exchange"
	"coapproxy/multicast"
	"coapproxy/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// setup is what a test may change before the gateway starts.
type setup struct {
	access   access.Config
	groups   []multicast.Group
	dedup    endpoint.DedupLimits
	numbers  wire.Numbers
	names    map[string][]netip.Addr
	ownNames map[string]bool
	resolver Resolver
	front    FrontConfig
	window   Groups
	reverse  *Reverse
	mappings MappingsConfig
	route    Route
	client   endpoint.ClientConfig
	// legs under other schemes than coap; nil: none
	tcp, secure exchange.Handler
}

func defaults() *setup {
	user := access.Client{
		Identity: exchange.Identity{Name: "user", Delivery: exchange.Delivery{Outstanding: 8, Queue: 1024}},
		Networks: prefixes("203.0.113.0/24", "2001:db8:5::/64"), AllGroups: true, MaxTimeout: time.Hour,
		Forward: []access.Target{{Any: true, AnyPort: true}}, FollowUp: true, MaxExchanges: 1000, MaxObservations: 1000,
	}
	s := &setup{
		access: access.Config{Clients: []access.Client{user}, MaxTimeout: 10 * time.Minute, MaxScope: 5},
		dedup:  endpoint.DefaultDedupLimits(), numbers: wire.DefaultNumbers(),
		names:    map[string][]netip.Addr{"boiler.example": addrs("192.0.2.11")},
		resolver: resolverFunc(func(context.Context, string) ([]netip.Addr, error) { return nil, &net.DNSError{IsNotFound: true} }),
		front:    FrontConfig{ZoneInReplyFrom: true, MaxExchanges: 10000, MaxObservers: 1000, MaxEnded: 1000},
		mappings: MappingsConfig{Lifetime: 24 * time.Hour, Max: 100},
		route:    Route{HopLimit: 16, Identifier: "gw", GroupBody: func(*exchange.Request) int { return 1024 }},
		client: endpoint.ClientConfig{Params: endpoint.DefaultParams(), NStart: func(netip.AddrPort) int { return 100 }, Queue: 16,
			TimeoutCON: 93 * time.Second, TimeoutNON: 30 * time.Second, Ports: 4, Servers: 1000, Observations: 1000},
	}
	for name, addr := range map[string]string{"nodes": "224.0.1.187:5683", "lights": "[ff05::fd]:5683", "link": "[ff02::fd]:5683"} {
		s.access.Groups = append(s.access.Groups, access.Group{Name: name, Addr: netip.MustParseAddrPort(addr), Port: 5683,
			Methods: []codes.Code{codes.GET, wire.FETCH, codes.POST}, MaxTimeout: 10 * time.Minute})
		s.groups = append(s.groups, multicast.Group{Name: name, Interfaces: []string{"lo"}, HopLimit: func(netip.Addr) int { return 1 },
			NStart: 100, Queue: 16, Leisure: 5 * time.Second, FireRate: 1000, FireBurst: 1000, MaxResponses: 1000, MaxBytes: 1 << 20})
	}
	return s
}

// gateway is a whole proxy on a network in memory, in virtual time.
type gateway struct {
	t        testing.TB
	network  *memnet.Network
	engine   *exchange.Engine
	front    *Front
	heard    *access.Heard
	stats    Stats
	groups   multicast.Stats
	messages endpoint.Stats
	log      *observer.ObservedLogs
	hosts    map[netip.Addr]*memnet.Host
	own      []netip.AddrPort
	mappings *Mappings
	host     *memnet.Host // the side for clients
	outer    *memnet.Conn // the port for clients, IPv4

	stop  context.CancelFunc
	wait  func()
	sinks *contract
}

// inGateway runs a test in a bubble of virtual time. Behind it every exchange
// must have ended once, and the tables must be empty.
func inGateway(t *testing.T, change func(*setup), body func(g *gateway)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := defaults()
		if change != nil {
			change(s)
		}
		g := newGateway(t, s)
		defer g.shut() // for a test that fails
		body(g)
		g.after(20 * time.Minute)
		g.idle()
		g.shut()
		g.sinks.check()
	})
}

func newGateway(t testing.TB, s *setup) *gateway {
	g := &gateway{t: t, network: memnet.New(), engine: exchange.NewEngine(), heard: access.NewHeard(), hosts: make(map[netip.Addr]*memnet.Host)}
	core, logs := observer.New(zapcore.DebugLevel)
	g.log = logs
	log := zap.New(core)
	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { g.engine.Run(ctx) })

	inner := g.network.Host(addrs("192.0.2.1", "2001:db8:99::1", "fe80::1%lo")...)
	leg, err := multicast.New(ctx, multicast.Config{
		Engine: g.engine, Groups: s.groups, Dedup: s.dedup, ReuseList: 1024, Observations: 1000, Stats: &g.groups, EndpointStats: &g.messages, Log: log,
		Open: func(_ context.Context, local netip.AddrPort, _ endpoint.MulticastOptions) (endpoint.PacketConn, error) {
			return inner.Listen(local, memnet.Options{})
		},
		Interface: func(name string) (*net.Interface, error) { return &net.Interface{Name: name}, nil },
	})
	require.NoError(t, err)
	s.client.Engine, s.client.Dedup, s.client.Stats, s.client.Log = g.engine, s.dedup, &g.messages, log
	s.client.Open = func(_ context.Context, wildcard netip.Addr) (endpoint.PacketConn, error) {
		return inner.Listen(netip.AddrPortFrom(wildcard, 0), memnet.Options{Errors: true})
	}
	unicast, err := endpoint.NewClient(ctx, s.client)
	require.NoError(t, err)
	names, err := NewNames(ctx, s.names, s.resolver, g.engine)
	require.NoError(t, err)

	for _, a := range []string{proxy4, proxy6, "fe80::100"} {
		g.own = append(g.own, netip.AddrPortFrom(netip.MustParseAddr(a), 5683))
	}
	s.route.Group = &blockwise.Continuation{Group: leg, Unicast: unicast, Engine: g.engine, Stats: &blockwise.Stats{}, Log: log}
	legs := Legs{"coap": blockwise.NewUpstream(unicast, 1<<20), "coap+tcp": s.tcp, "coaps": s.secure}
	for scheme, leg := range legs {
		if leg == nil {
			delete(legs, scheme)
		}
	}
	s.route.Unicast = legs
	s.route.Numbers, s.route.HoldBack, s.route.Log = &s.numbers, NewHoldBack(), log
	settings := cache.Defaults()
	settings.Next, settings.Engine, settings.Numbers, settings.Observe, settings.ObserveOnly = &s.route, g.engine, &s.numbers, true, true
	shared, err := cache.New(settings)
	require.NoError(t, err)
	s.window.Next, s.window.Log = blockwise.NewDownstream(shared, 1<<20, 1<<24, &blockwise.DownstreamStats{}), log
	policy := access.New(s.access, &s.window, g.heard)
	s.window.MaxTimeout = policy.MaxTimeout
	s.mappings.Stats, s.mappings.Log = &g.stats, log
	if s.mappings.Open == nil {
		s.mappings.Open = func(_ string, at netip.AddrPort) error { return g.serve(ctx, &wg, s, at, log) }
	}
	g.mappings = NewMappings(s.mappings)
	if s.reverse != nil {
		s.reverse.Mappings = g.mappings
	}
	targets := &Targets{Reverse: s.reverse, Next: policy, Local: Local{}, Numbers: &s.numbers, Names: names, OwnNames: s.ownNames, Zone: g.heard.Zone, Engine: g.engine, Log: log,
		Serves: legs.Serves,
		Own: func(scheme string, a netip.AddrPort) bool {
			return scheme == "coap" && slices.Contains(g.own, netip.AddrPortFrom(a.Addr().WithZone(""), a.Port()))
		}}
	g.sinks = &contract{t: t, next: targets}
	s.front.Next, s.front.Clients, s.front.Numbers, s.front.Engine, s.front.Stats, s.front.Log = g.sinks, policy, &s.numbers, g.engine, &g.stats, log
	if p := s.front.Protected; p != nil {
		p.Itself, p.PassesThrough = targets.Itself, targets.PassesThrough
	}
	g.front = NewFront(s.front)

	g.host = g.network.Host(addrs(proxy4, proxy6, "fe80::100%lo")...)
	for _, local := range []string{"0.0.0.0:5683", "[::]:5683"} {
		require.NoError(t, g.serve(ctx, &wg, s, netip.MustParseAddrPort(local), log))
	}

	g.stop = stop
	g.wait = func() { wg.Wait(); leg.Wait(); unicast.Wait(); names.Wait() }
	return g
}

// serve opens a port for clients.
func (g *gateway) serve(ctx context.Context, wg *sync.WaitGroup, s *setup, local netip.AddrPort, log *zap.Logger) error {
	conn, err := g.host.Listen(local, memnet.Options{})
	if err != nil {
		return err
	}
	if g.outer == nil {
		g.outer = conn
	}
	e := endpoint.New(endpoint.Config{Conn: conn, Engine: g.engine, Requests: g.front, Params: endpoint.DefaultParams(),
		Dedup: s.dedup, MaxToken: 8, Stats: &g.messages, Log: log})
	wg.Go(func() { _ = e.Serve(ctx) })
	return nil
}

// prove has a peer count as one whose address is proven.
func (g *gateway) prove(peer string) {
	g.front.echoes.mu.Lock()
	defer g.front.echoes.mu.Unlock()
	g.front.echoes.proven.Add(netip.MustParseAddrPort(peer), time.Now())
}

func (g *gateway) shut() {
	g.stop()
	g.wait()
}

// idle requires that nothing is left in the tables of the front.
func (g *gateway) idle() {
	g.t.Helper()
	f := g.front
	f.mu.Lock()
	defer f.mu.Unlock()
	require.Empty(g.t, f.running)
	require.Empty(g.t, f.observers.byHash)
	require.Zero(g.t, f.Stats.Observers.Load())
	require.Empty(g.t, f.deliveries)
	require.Zero(g.t, f.active.Load())
	require.Zero(g.t, f.Stats.Running.Load())
	require.LessOrEqual(g.t, len(f.ended.when), f.MaxEnded)
}

func (g *gateway) after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// contract is a layer that finds what the contract of exchange.Sink forbids.
type contract struct {
	t     testing.TB
	next  exchange.Handler
	mu    sync.Mutex
	sinks []*contractSink
}

func (c *contract) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	s := &contractSink{t: c.t, sink: w}
	c.mu.Lock()
	c.sinks = append(c.sinks, s)
	c.mu.Unlock()
	return c.next.Exchange(r, s)
}

// check requires that all exchanges have ended.
func (c *contract) check() {
	c.t.Helper()
	c.mu.Lock()
	defer c.mu.Unlock()
	for i, s := range c.sinks {
		require.EqualValues(c.t, 1, s.ends.Load(), "ends of exchange %d", i+1)
	}
}

type contractSink struct {
	t    testing.TB
	sink exchange.Sink
	busy atomic.Bool
	ends atomic.Int32
}

func (s *contractSink) enter() func() {
	if !s.busy.CompareAndSwap(false, true) {
		s.t.Error("two calls of a sink at once")
	}
	if s.ends.Load() > 0 {
		s.t.Error("a sink is called after its end")
	}
	return func() { s.busy.Store(false) }
}

// Locate implements exchange.Locator.
func (s *contractSink) Locate(t *exchange.Target) {
	if l, ok := s.sink.(exchange.Locator); ok {
		l.Locate(t)
	}
}

// Attend implements exchange.Attended.
func (s *contractSink) Attend() {
	if a, ok := s.sink.(exchange.Attended); ok {
		a.Attend()
	}
}

func (s *contractSink) Respond(p *exchange.Response) exchange.Verdict {
	defer s.enter()()
	return s.sink.Respond(p)
}

func (s *contractSink) End(err error) {
	leave := s.enter()
	s.sink.End(err)
	leave()
	s.ends.Add(1)
}
