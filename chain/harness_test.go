package chain

import (
	"context"
	"errors"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"coapproxy/exchange"
	"coapproxy/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// bench is a Chain on a leg that is the test's, in virtual time.
type bench struct {
	t      *testing.T
	engine *exchange.Engine
	chain  *Chain
	leg    *leg
	stats  *Stats
	log    *observer.ObservedLogs
	trip   time.Duration // to the next hop
}

// Addresses of the next proxies.
const (
	first  = "192.0.2.9:5683"
	second = "192.0.2.10:5683"
)

// inBench runs a test with one hop, changed as it likes.
func inBench(t *testing.T, change func(*Hop), body func(b *bench)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bench{t: t, engine: exchange.NewEngine(), leg: &leg{down: make(map[string]error)}, stats: &Stats{}}
		core, logs := observer.New(zapcore.DebugLevel)
		b.log = logs
		h := Hop{Name: "next", Addresses: []Address{{Scheme: "coap", Addr: netip.MustParseAddrPort(first)}},
			Timeout: 10 * time.Second, RetryMax: time.Minute, NStart: 16, Stats: b.stats}
		if change != nil {
			change(&h)
		}
		numbers := wire.DefaultNumbers()
		numbers.LegacyTimeout = 2050
		ctx, stop := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		wg.Go(func() { b.engine.Run(ctx) })
		b.chain = New(ctx, Config{Engine: b.engine, Numbers: &numbers, Hops: []Hop{h}, Zones: true, Leg: b.leg, Whole: b.leg, Log: zap.New(core),
			RoundTrip: func(*exchange.Target) time.Duration { return b.trip },
			Resolve: func(_ context.Context, host string) ([]netip.Addr, error) {
				return b.leg.lookup(host)
			}})
		HandOver(nil, b.chain)
		synctest.Wait()
		body(b)
		stop()
		b.chain.Wait()
		wg.Wait()
		for _, s := range b.leg.all() {
			require.LessOrEqual(t, s.ends, 1)
		}
	})
}

func withBackup(h *Hop) {
	h.Addresses = append(h.Addresses, Address{Scheme: "coap", Addr: netip.MustParseAddrPort(second)})
}

// after lets time pass.
func (b *bench) after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// leg is a leg whose other side is the test. Attempts to find an address are
// answered at once unless it is down.
type leg struct {
	mu     sync.Mutex
	sent   []*sent
	probes []time.Time
	probe  *sent            // the last one
	down   map[string]error // by address; nil error: silence
	names  map[string]netip.Addr
}

// lose and restore say whether there is anybody at an address: with a nil error it
// is silent.
func (l *leg) lose(addr string, err error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.down[addr] = err
}

func (l *leg) restore(addr string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.down, addr)
}

// name gives proxy.example an address; empty: none.
func (l *leg) name(addr string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.names = nil
	if addr != "" {
		l.names = map[string]netip.Addr{"proxy.example": netip.MustParseAddr(addr)}
	}
}

func (l *leg) lookup(host string) ([]netip.Addr, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if addr, ok := l.names[host]; ok {
		return []netip.Addr{addr}, nil
	}
	return nil, errors.New("no such host")
}

// probing is the last attempt to find an address.
func (l *leg) probing() *sent {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.probe
}

func (l *leg) probed() []time.Time {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.probes)
}

// sent is a request on the leg.
type sent struct {
	leg     *leg
	at      time.Time
	request *exchange.Request
	sink    exchange.Sink

	canceled, forgotten bool
	ends                int
}

func (l *leg) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	s := &sent{leg: l, at: time.Now(), request: r.Clone(), sink: w}
	l.mu.Lock()
	err, down := l.down[r.Target.Addr.String()]
	probe := !wire.Has(r.Options, wire.ProxyURI) && !wire.Has(r.Options, wire.ProxyCRI) && !wire.Has(r.Options, wire.ProxyScheme) && !wire.Has(r.Options, wire.ProxySchemeNumber)
	if probe {
		l.probes = append(l.probes, s.at)
		l.probe = s
	} else {
		l.sent = append(l.sent, s)
	}
	l.mu.Unlock()
	switch {
	case down && err != nil:
		s.end(err)
	case down || !probe:
	default:
		w.Respond(&exchange.Response{Code: codes.NotFound})
		s.end(nil)
	}
	return s
}

func (s *sent) wasForgotten() bool {
	s.leg.mu.Lock()
	defer s.leg.mu.Unlock()
	return s.forgotten
}

func (s *sent) wasCanceled() bool {
	s.leg.mu.Lock()
	defer s.leg.mu.Unlock()
	return s.canceled
}

func (l *leg) all() []*sent {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.sent)
}

// only is the one request that was sent.
func (b *bench) only() *sent {
	b.t.Helper()
	all := b.leg.all()
	require.Len(b.t, all, 1)
	return all[0]
}

func (s *sent) end(err error) {
	s.leg.mu.Lock()
	s.ends++
	first := s.ends == 1
	s.leg.mu.Unlock()
	if first {
		s.sink.End(err)
	}
}

// Cancel and Forget end the exchange; Forget tells nobody.
func (s *sent) Cancel() {
	s.leg.mu.Lock()
	s.canceled = s.canceled || s.ends == 0
	over := s.ends > 0
	s.leg.mu.Unlock()
	if !over {
		s.end(exchange.ErrCanceled)
	}
}

func (s *sent) Forget() {
	s.leg.mu.Lock()
	over := s.ends > 0
	s.forgotten = s.forgotten || !over
	s.leg.mu.Unlock()
	if !over {
		s.end(exchange.ErrCanceled)
	}
}

// told is the Multicast-Timeout that was sent.
func (s *sent) told(t *testing.T) uint32 {
	value, ok := wire.First(s.request.Options, wire.MulticastTimeout)
	require.True(t, ok, "no Multicast-Timeout")
	v, ok := wire.Uint(value)
	require.True(t, ok)
	return v
}

func (s *sent) ack() { s.sink.(exchange.Acknowledged).Acknowledge() }

// respond is a response of the next proxy.
func (s *sent) respond(code codes.Code, options ...message.Option) exchange.Verdict {
	slices.SortStableFunc(options, func(a, b message.Option) int { return int(a.ID) - int(b.ID) })
	return s.sink.Respond(&exchange.Response{Code: code, Options: options, Payload: []byte("payload"), From: s.request.Target.Addr})
}

func replyFrom(server string) message.Option {
	return message.Option{ID: wire.ReplyFrom, Value: wire.AppendReplyFrom(nil, 0, netip.MustParseAddrPort(server))}
}

func forwarding(server string) message.Option {
	return message.Option{ID: wire.ResponseForwarding, Value: wire.AppendResponseForwarding(nil, wire.TransportUDP, netip.MustParseAddrPort(server))}
}

func timeout(seconds uint32) message.Option {
	return message.Option{ID: wire.MulticastTimeout, Value: wire.AppendUint([]byte{}, seconds)}
}

// client is the sink of a test's request.
type client struct {
	mu        sync.Mutex
	responses []*exchange.Response
	ends      []error
	at        time.Time // of the end
	cancel    exchange.Canceler
	stop      bool
}

func (c *client) Respond(p *exchange.Response) exchange.Verdict {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.responses = append(c.responses, p.Clone())
	if c.stop {
		return exchange.Stop
	}
	return exchange.Continue
}

func (c *client) End(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.ends, c.at = append(c.ends, err), time.Now()
}

func (c *client) ended() []error {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.ends)
}

func (c *client) got() []*exchange.Response {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.responses)
}

func (c *client) when() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

// failure is the reason with which the exchange ended.
func (c *client) failure(t *testing.T) *exchange.Failure {
	t.Helper()
	ends := c.ended()
	require.Len(t, ends, 1)
	var f *exchange.Failure
	require.ErrorAs(t, ends[0], &f)
	return f
}

// request is one for a server; group one for a group.
func (b *bench) request(method codes.Code) (*client, *exchange.Request) {
	return b.send(&exchange.Request{Method: method, Form: exchange.FormURI, Options: message.Options{{ID: wire.URIPath, Value: []byte("a")}},
		Target: exchange.Target{Scheme: "coap", Addr: netip.MustParseAddrPort("198.51.100.7:61616"), NextHop: "next"}})
}

func (b *bench) group(seconds uint32, change ...func(*exchange.Request)) (*client, *exchange.Request) {
	r := &exchange.Request{Method: codes.GET, Form: exchange.FormURI, Options: message.Options{{ID: wire.URIPath, Value: []byte("a")}},
		Target:  exchange.Target{Scheme: "coap", Addr: netip.MustParseAddrPort("224.0.1.187:5683"), NextHop: "next", Group: true},
		Timeout: exchange.Timeout{Seconds: seconds, Present: true}}
	for _, f := range change {
		f(r)
	}
	return b.send(r)
}

func (b *bench) send(r *exchange.Request) (*client, *exchange.Request) {
	r.ID, r.Arrival = b.engine.NextID(), time.Now()
	c := &client{}
	c.cancel = b.chain.Exchange(r, c)
	synctest.Wait()
	return c, r
}
