package multicast

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
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

	"coapproxy/endpoint"
	"coapproxy/endpoint/memnet"
	"coapproxy/exchange"
	"coapproxy/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const nodes4, nodes6 = "224.0.1.187:5683", "[ff05::fd]:5683"

// site is a leg on a network in memory, in virtual time. The leg's host has the
// interfaces eth0 and eth1 with addresses of both families.
type site struct {
	t        testing.TB
	network  *memnet.Network
	engine   *exchange.Engine
	leg      *Leg
	stats    Stats
	messages endpoint.Stats
	log      *observer.ObservedLogs
	opened   []*opening
	stop     context.CancelFunc

	mu      sync.Mutex
	sinks   []*recorder
	members map[netip.Addr]*memnet.Host
	down    map[string]bool // interfaces that do not exist
	wg      sync.WaitGroup
}

// opening is one socket of the leg.
type opening struct {
	options endpoint.MulticastOptions
	local   netip.AddrPort
	conn    *memnet.Conn
}

// inSite runs a test in a bubble of virtual time. After it no exchange may be
// left open, and no table hold anything.
func inSite(t *testing.T, change func(*Config), body func(s *site)) {
	synctest.Test(t, func(t *testing.T) {
		s := newSite(t, change)
		defer s.shut() // for a test that fails
		body(s)
		s.close()
	})
}

func newSite(t testing.TB, change func(*Config)) *site {
	s := &site{t: t, network: memnet.New(), engine: exchange.NewEngine(), down: make(map[string]bool),
		members: make(map[netip.Addr]*memnet.Host)}
	core, logs := observer.New(zapcore.DebugLevel)
	s.log = logs
	hosts := map[string]*memnet.Host{
		"eth0": s.network.Host(addrs("192.0.2.1", "2001:db8::1", "fe80::1%eth0")...),
		"eth1": s.network.Host(addrs("198.51.100.1", "2001:db8:1::1", "fe80::101%eth1")...),
	}
	config := Config{
		Engine: s.engine,
		Groups: []Group{testGroup("nodes")},
		Open: func(_ context.Context, local netip.AddrPort, m endpoint.MulticastOptions) (endpoint.PacketConn, error) {
			conn, err := hosts[m.Interface.Name].Listen(local, memnet.Options{})
			if err == nil {
				s.opened = append(s.opened, &opening{m, local, conn})
			}
			return conn, err
		},
		Interface: func(name string) (*net.Interface, error) {
			if hosts[name] == nil || s.down[name] {
				return nil, fmt.Errorf("no interface %s", name)
			}
			return &net.Interface{Name: name}, nil
		},
		Dedup: endpoint.DefaultDedupLimits(), ReuseList: 1024, Observations: 100, Stats: &s.stats, EndpointStats: &s.messages, Log: zap.New(core),
	}
	if change != nil {
		change(&config)
	}
	ctx, stop := context.WithCancel(context.Background())
	leg, err := New(ctx, config)
	require.NoError(t, err)
	s.leg, s.stop = leg, stop
	s.wg.Go(func() { s.engine.Run(ctx) })
	return s
}

// testGroup is a group without the limits that a test would run into.
func testGroup(name string) Group {
	return Group{Name: name, Interfaces: []string{"eth0"}, HopLimit: func(netip.Addr) int { return 16 },
		NStart: 100, Queue: 16, Leisure: 5 * time.Second, FireRate: 1000, FireBurst: 1000, MaxResponses: 1000, MaxBytes: 1 << 20}
}

// close ends the leg when everything has had its time.
func (s *site) close() {
	s.after(20 * time.Minute)
	s.idle()
	s.shut()
	for i, w := range s.sinks {
		require.EqualValues(s.t, 1, w.ends.Load(), "exchange %d", i)
	}
}

func (s *site) shut() {
	s.stop()
	s.leg.Wait()
	s.wg.Wait()
}

// idle requires that nothing is left in the tables of the leg.
func (s *site) idle() {
	s.t.Helper()
	l := s.leg
	l.mu.Lock()
	defer l.mu.Unlock()
	require.Empty(s.t, l.running)
	for _, g := range l.groups {
		require.Zero(s.t, g.outstanding, g.Name)
		require.Empty(s.t, g.queue, g.Name)
		require.Empty(s.t, g.sharable, g.Name)
	}
	require.Len(s.t, l.ports, len(l.egress))
	for w, e := range l.egress {
		require.Zero(s.t, e.users, w)
		require.Same(s.t, e, l.ports[e.endpoint])
	}
}

func (s *site) after(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// recorder is the sink of one exchange; it keeps what it gets and finds calls
// that the contract of exchange.Sink forbids.
type recorder struct {
	t       testing.TB
	busy    atomic.Bool
	ends    atomic.Int32
	verdict exchange.Verdict
	during  func() // called from inside Respond

	mu        sync.Mutex
	responses []*exchange.Response
	err       error
	ended     time.Time
}

func (w *recorder) enter() func() {
	if !w.busy.CompareAndSwap(false, true) {
		w.t.Error("two calls of a sink at once")
	}
	if w.ends.Load() > 0 {
		w.t.Error("a sink is called after its end")
	}
	return func() { w.busy.Store(false) }
}

func (w *recorder) Respond(p *exchange.Response) exchange.Verdict {
	defer w.enter()()
	w.mu.Lock()
	w.responses = append(w.responses, p.Clone())
	w.mu.Unlock()
	if w.during != nil {
		w.during()
	}
	return w.verdict
}

func (w *recorder) End(err error) {
	leave := w.enter()
	w.mu.Lock()
	w.err, w.ended = err, time.Now()
	w.mu.Unlock()
	leave()
	w.ends.Add(1)
}

// got returns the payloads of the responses so far.
func (w *recorder) got() []string {
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	texts := []string{}
	for _, p := range w.responses {
		texts = append(texts, string(p.Payload))
	}
	return texts
}

func (w *recorder) open() bool {
	synctest.Wait()
	return w.ends.Load() == 0
}

// failure requires that the exchange has failed, and why.
func (w *recorder) failure(reason exchange.Reason) *exchange.Failure {
	w.t.Helper()
	synctest.Wait()
	require.EqualValues(w.t, 1, w.ends.Load(), "the exchange has not ended")
	require.Error(w.t, w.err)
	f := exchange.AsFailure(w.err)
	require.Equal(w.t, reason.String(), f.Reason.String(), "%v", w.err)
	return f
}

// get is a GET for /r of a group, as the layers above hand it to the leg.
func get(group string, seconds uint32, options ...message.Option) *exchange.Request {
	name := "nodes"
	return &exchange.Request{
		Method: codes.GET, Options: append(message.Options{{ID: wire.URIPath, Value: []byte("r")}}, options...),
		Target:  exchange.Target{Scheme: "coap", Addr: netip.MustParseAddrPort(group), Group: true, GroupName: name},
		Timeout: exchange.Timeout{Seconds: seconds, Present: true}, Arrival: time.Now(),
	}
}

// ask starts an exchange.
func (s *site) ask(r *exchange.Request, during ...func(*recorder)) (*recorder, exchange.Canceler) {
	w := &recorder{t: s.t}
	for _, f := range during {
		f(w)
	}
	s.mu.Lock()
	s.sinks = append(s.sinks, w)
	s.mu.Unlock()
	c := s.leg.Exchange(r, w)
	s.engine.Flush()
	synctest.Wait()
	return w, c
}

// member is a server in groups.
type member struct {
	*memnet.Conn
	t  testing.TB
	id uint16
}

// member makes a server at an address that has joined groups.
func (s *site) member(local string, groups ...string) *member {
	at := netip.MustParseAddrPort(local)
	host := s.members[at.Addr()]
	if host == nil {
		host = s.network.Host(at.Addr())
		s.members[at.Addr()] = host
	}
	conn, err := host.Listen(at, memnet.Options{})
	require.NoError(s.t, err)
	for _, g := range groups {
		conn.Join(netip.MustParseAddr(g))
	}
	return &member{Conn: conn, t: s.t}
}

// received is a message with where it came from.
type received struct {
	wire.Message
	from netip.AddrPort
}

// heard returns what has arrived since the last call.
func (m *member) heard() []received {
	synctest.Wait()
	var out []received
	for _, d := range m.Received() {
		r := received{from: d.Peer.Addr}
		require.NoError(m.t, r.Decode(slices.Clone(d.Data)))
		out = append(out, r)
	}
	return out
}

// request returns the one request that has arrived.
func (m *member) request() received {
	m.t.Helper()
	got := m.heard()
	require.Len(m.t, got, 1)
	require.Equal(m.t, message.NonConfirmable, got[0].Type) // GC-11
	return got[0]
}

// answer sends a response to a request with a new Message ID.
func (m *member) answer(to received, typ message.Type, payload string) {
	m.id++
	m.send(to.from, &wire.Message{Type: typ, Code: codes.Content, ID: m.id, Token: to.Token, Payload: []byte(payload)})
}

func (m *member) send(to netip.AddrPort, msg *wire.Message) {
	data, err := msg.Append(nil)
	require.NoError(m.t, err)
	require.NoError(m.t, m.Send(to, data))
	synctest.Wait()
}

// replies returns the types of the empty messages that have arrived.
func (m *member) replies() []message.Type {
	types := []message.Type{}
	for _, r := range m.heard() {
		require.Equal(m.t, codes.Empty, r.Code)
		types = append(types, r.Type)
	}
	return types
}

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}
