package httpbridge

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"coapproxy/access"
	"coapproxy/demo"
	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/multicast"
	"coapproxy/proxy"
	"coapproxy/wire"
)

// realChain is everything behind the front as the proxy has it, in front of
// simulated devices in a real multicast group.
type realChain struct {
	devices *demo.Group
	engine  *exchange.Engine
	policy  *access.Policy
	targets *proxy.Targets
}

func newRealChain(t testing.TB, devices int) *realChain {
	ctx, cancel := context.WithCancel(context.Background())
	log, engine := zap.NewNop(), exchange.NewEngine()
	d, err := demo.Start(ctx, demo.Options{Devices: devices, Group: netip.AddrPortFrom(demo.DefaultGroup().Addr(), 0),
		Leisure: 50 * time.Millisecond, Seed: 1, Log: log})
	require.NoError(t, err)
	var wg sync.WaitGroup
	wg.Go(func() { engine.Run(ctx) })
	messages := &endpoint.Stats{}
	group, err := multicast.New(ctx, multicast.Config{Engine: engine, Dedup: endpoint.DefaultDedupLimits(), ReuseList: 1024,
		Stats: &multicast.Stats{}, EndpointStats: messages, Log: log,
		Open: func(ctx context.Context, local netip.AddrPort, m endpoint.MulticastOptions) (endpoint.PacketConn, error) {
			return endpoint.ListenUDP(ctx, local, endpoint.UDPOptions{Multicast: &m})
		},
		Groups: []multicast.Group{{Name: "devices", Interfaces: []string{demo.Interface}, HopLimit: func(netip.Addr) int { return 1 },
			NStart: 16, Queue: 16, Leisure: 50 * time.Millisecond, FireRate: 10, FireBurst: 10, MaxResponses: 1000, MaxBytes: 1 << 20}}})
	require.NoError(t, err)
	unicast, err := endpoint.NewClient(ctx, endpoint.ClientConfig{Engine: engine, Params: endpoint.DefaultParams(),
		Dedup: endpoint.DefaultDedupLimits(), Stats: messages, Log: log, NStart: func(netip.AddrPort) int { return 8 }, Queue: 16,
		TimeoutCON: 5 * time.Second, TimeoutNON: 5 * time.Second, Ports: 4, Servers: 100,
		Open: func(ctx context.Context, wildcard netip.Addr) (endpoint.PacketConn, error) {
			return endpoint.ListenUDP(ctx, netip.AddrPortFrom(wildcard, 0), endpoint.UDPOptions{Errors: true})
		}})
	require.NoError(t, err)
	numbers := wire.DefaultNumbers()
	names, err := proxy.NewNames(ctx, map[string][]netip.Addr{"devices.example": {d.Addr().Addr()}}, net.DefaultResolver, engine)
	require.NoError(t, err)
	heard := access.NewHeard()
	route := &proxy.Route{Group: group, Unicast: unicast, Numbers: &numbers, HopLimit: 16, Identifier: "test",
		GroupBody: func(*exchange.Request) int { return 1024 }, HoldBack: proxy.NewHoldBack(), Log: log}
	window := &proxy.Groups{Next: route, Log: log}
	local := netip.MustParsePrefix("127.0.0.0/8")
	policy := access.New(access.Config{MaxTimeout: time.Minute, MaxScope: 5, AllowLoopback: true,
		Clients: []access.Client{{Identity: exchange.Identity{Name: "local"}, Networks: []netip.Prefix{local}, AllGroups: true,
			MaxTimeout: time.Minute, MaxExchanges: 64, FollowUp: true, Forward: []access.Target{{Network: local, AnyPort: true}}}},
		Groups: []access.Group{{Name: "devices", Addr: d.Addr(), Methods: []codes.Code{codes.GET, codes.PUT}, MaxTimeout: time.Minute}},
	}, window, heard)
	window.MaxTimeout = policy.MaxTimeout
	targets := &proxy.Targets{Next: policy, Local: proxy.Local{}, Numbers: &numbers, Names: names,
		Own: func(string, netip.AddrPort) bool { return false }, Serves: func(string) bool { return true }, Zone: heard.Zone, Engine: engine, Log: log}
	t.Cleanup(func() {
		cancel()
		wg.Wait()
		group.Wait()
		unicast.Wait()
		names.Wait()
		d.Wait()
	})
	return &realChain{d, engine, policy, targets}
}

// front returns a Front over the chain that knows clients by their network.
func (c *realChain) front(t testing.TB) *Front {
	f, _ := newFront(t, func(config *Config) {
		config.Next, config.Engine = c.targets, c.engine
		config.Clients = &Authentication{Network: func(peer netip.AddrPort) *exchange.Identity { return c.policy.Identify(peer, nil) }}
	})
	return f
}

// serve runs a Listener until the test ends and returns its address.
func serve(t testing.TB, f *Front, change func(*ListenConfig)) string {
	c := ListenConfig{Addr: netip.MustParseAddrPort("127.0.0.1:0"), Front: f, Log: zap.NewNop()}
	if change != nil {
		change(&c)
	}
	l, err := Listen(c)
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	over := make(chan error, 1)
	go func() { over <- l.Serve(ctx) }()
	t.Cleanup(func() { cancel(); require.NoError(t, <-over) })
	return l.Addr().String()
}

// plainClient speaks HTTP/1.1 on connections of its own.
func plainClient(t testing.TB) *http.Client {
	transport := &http.Transport{DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

// reply is a response whose body has been read.
type reply struct {
	StatusCode, ProtoMajor int
	Header                 http.Header
	Close                  bool
}

func replyOf(w *http.Response) reply { return reply{w.StatusCode, w.ProtoMajor, w.Header, w.Close} }

// get sends a request; the path goes out as it is.
func get(t testing.TB, c *http.Client, base, target string, fields ...string) (reply, string) {
	return send(t, c, "GET", base, target, "", fields...)
}

func send(t testing.TB, c *http.Client, method, base, target, body string, fields ...string) (reply, string) {
	r, err := http.NewRequestWithContext(t.Context(), method, base, strings.NewReader(body))
	require.NoError(t, err)
	if body == "" {
		r.Body, r.ContentLength = nil, 0
	}
	r.URL.Opaque = target
	for _, field := range fields {
		name, value, _ := strings.Cut(field, ": ")
		r.Header.Add(name, value)
	}
	w, err := c.Do(r)
	require.NoError(t, err)
	defer w.Body.Close()
	b, err := io.ReadAll(w.Body)
	require.NoError(t, err)
	return replyOf(w), string(b)
}

// A GET goes through the whole proxy to a device and back.
func TestUnicastThroughChain(t *testing.T) {
	chain := newRealChain(t, 1)
	base := "http://" + serve(t, chain.front(t), nil)
	client, device := plainClient(t), "/hc/coap://"+chain.devices.Devices()[0].Addr.String()
	w, body := get(t, client, base, device+"/temp")
	require.Equal(t, 200, w.StatusCode, body)
	require.Regexp(t, `^\d\d\.\d °C$`, body)
	require.Equal(t, "text/plain; charset=utf-8", w.Header.Get("Content-Type"))
	require.Equal(t, "max-age=5", w.Header.Get("Cache-Control"))
	require.Regexp(t, `^"[0-9a-f]{8}"$`, w.Header.Get("Etag"))

	// HC-53, HC-55
	w, _ = get(t, client, base, device+"/info")
	tag := w.Header.Get("Etag")
	w, body = get(t, client, base, device+"/info", "If-None-Match: "+tag)
	require.Equal(t, 304, w.StatusCode)
	require.Empty(t, body)
	require.Equal(t, tag, w.Header.Get("Etag"))

	w, _ = send(t, client, "PUT", base, device+"/light", "on", "Content-Type: text/plain")
	require.Equal(t, 204, w.StatusCode)
	_, body = get(t, client, base, device+"/light")
	require.Equal(t, "on", body)
	w, _ = send(t, client, "PUT", base, device+"/light", "off", `If-Match: "00"`)
	require.Equal(t, 412, w.StatusCode)
	w, body = get(t, client, base, device+"/nothing")
	require.Equal(t, 404, w.StatusCode)
	require.Equal(t, "no such resource", body)
	w, _ = get(t, client, base, device+"/temp", "Accept: application/json")
	require.Equal(t, 406, w.StatusCode)
}
