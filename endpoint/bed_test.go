package endpoint_test

import (
	"context"
	"maps"
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
	"go.uber.org/zap/zaptest"

	"coapproxy/endpoint"
	"coapproxy/endpoint/memnet"
	"coapproxy/exchange"
	"coapproxy/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	serverAddr = netip.MustParseAddrPort("192.0.2.1:5683")
	clientAddr = netip.MustParseAddrPort("198.51.100.1:40000")
	strange    = netip.MustParseAddrPort("203.0.113.1:5683")
	groupAddr  = netip.MustParseAddr("224.0.1.187")
)

// bed is a network in a bubble with an engine that runs.
type bed struct {
	t       *testing.T
	ctx     context.Context
	end     context.CancelFunc
	wg      *sync.WaitGroup
	network *memnet.Network
	engine  *exchange.Engine
	stats   *endpoint.Stats
}

// inBed runs f in a bubble.
func inBed(t *testing.T, f func(t *testing.T, b *bed)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		b := &bed{t: t, wg: &sync.WaitGroup{}, network: memnet.New(), engine: exchange.NewEngine(), stats: &endpoint.Stats{}}
		b.ctx, b.end = context.WithCancel(t.Context())
		b.wg.Go(func() { b.engine.Run(b.ctx) })
		defer b.wg.Wait()
		defer b.end()
		f(t, b)
	})
}

// pass lets time go by, and what is due then happen.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// handlerFunc is a RequestHandler made of a function.
type handlerFunc func(rx *endpoint.Reception, m *wire.Message)

func (f handlerFunc) HandleRequest(rx *endpoint.Reception, m *wire.Message) { f(rx, m) }

// responsesFunc is a ResponseHandler made of a function.
type responsesFunc func(peer endpoint.Peer, m *wire.Message) bool

func (f responsesFunc) HandleResponse(_ *endpoint.Endpoint, peer endpoint.Peer, m *wire.Message) bool {
	return f(peer, m)
}

// serve makes an endpoint at serverAddr with the defaults, changed by the
// functions.
func (b *bed) serve(h endpoint.RequestHandler, change ...func(*endpoint.Config)) *endpoint.Endpoint {
	b.t.Helper()
	return b.serveOn(b.listen(serverAddr), h, change...)
}

func (b *bed) serveOn(conn endpoint.PacketConn, h endpoint.RequestHandler, change ...func(*endpoint.Config)) *endpoint.Endpoint {
	config := endpoint.Config{Conn: conn, Engine: b.engine, Requests: h, Params: endpoint.DefaultParams(),
		Dedup: endpoint.DefaultDedupLimits(), MaxToken: 8, Stats: b.stats, Log: zaptest.NewLogger(b.t)}
	for _, f := range change {
		f(&config)
	}
	e := endpoint.New(config)
	b.wg.Go(func() { _ = e.Serve(b.ctx) })
	return e
}

func (b *bed) listen(addr netip.AddrPort) *memnet.Conn {
	b.t.Helper()
	conn, err := b.network.Host(addr.Addr()).Listen(addr, memnet.Options{})
	require.NoError(b.t, err)
	return conn
}

// raw is a peer without a message layer: the test says every word.
type raw struct {
	t    *testing.T
	conn *memnet.Conn
	// to is the other side, if it is always the same.
	to netip.AddrPort
}

func (b *bed) raw(addr, to netip.AddrPort) *raw { return &raw{b.t, b.listen(addr), to} }

// send sends a message.
func (r *raw) send(m wire.Message) {
	r.t.Helper()
	r.sendTo(r.to, m)
}

func (r *raw) sendTo(to netip.AddrPort, m wire.Message) {
	r.t.Helper()
	data, err := m.Append(nil)
	require.NoError(r.t, err)
	r.sendBytes(to, data)
}

func (r *raw) sendBytes(to netip.AddrPort, data []byte) {
	r.t.Helper()
	require.NoError(r.t, r.conn.Send(to, data))
	synctest.Wait()
}

// got is everything received since it was asked last.
func (r *raw) got() (all []wire.Message) {
	r.t.Helper()
	synctest.Wait()
	for _, d := range r.conn.Received() {
		if !r.to.IsValid() {
			r.to = d.Peer.Addr
		}
		var m wire.Message
		require.NoError(r.t, m.Decode(d.Data))
		all = append(all, m)
	}
	return all
}

// one is the only message received since then.
func (r *raw) one() wire.Message {
	r.t.Helper()
	all := r.got()
	require.Len(r.t, all, 1)
	return all[0]
}

// none requires that nothing was received since then.
func (r *raw) none() {
	r.t.Helper()
	require.Empty(r.t, r.got())
}

// Messages as tests write them.

func request(typ message.Type, code codes.Code, id uint16) wire.Message {
	return wire.Message{Type: typ, Code: code, ID: id, Token: []byte{byte(id >> 8), byte(id)}}
}

func con(code codes.Code, id uint16) wire.Message { return request(message.Confirmable, code, id) }
func non(code codes.Code, id uint16) wire.Message { return request(message.NonConfirmable, code, id) }

func emptyOf(typ message.Type, id uint16) wire.Message { return wire.Message{Type: typ, ID: id} }

// requireEmpty requires an Empty message of a type.
func requireEmpty(t *testing.T, typ message.Type, id uint16, m wire.Message) {
	t.Helper()
	require.Equal(t, typ.String(), m.Type.String())
	require.Equal(t, codes.Empty, m.Code)
	require.Equal(t, id, m.ID)
}

// content is an answer with a payload.
func content(payload string) *wire.Message {
	return &wire.Message{Code: codes.Content, Payload: []byte(payload)}
}

// keeping is a RequestHandler that accepts requests for the test to answer.
type keeping struct {
	mu  sync.Mutex
	all []*endpoint.Incoming
}

func (k *keeping) HandleRequest(rx *endpoint.Reception, m *wire.Message) {
	in := &endpoint.Incoming{}
	in.Accept(rx, m)
	k.mu.Lock()
	k.all = append(k.all, in)
	k.mu.Unlock()
	in.AckLater()
}

// take is what was accepted since it was asked last.
func (k *keeping) take() []*endpoint.Incoming {
	synctest.Wait()
	k.mu.Lock()
	defer k.mu.Unlock()
	all := k.all
	k.all = nil
	return all
}

// one is the only request accepted since then.
func (k *keeping) one(t *testing.T) *endpoint.Incoming {
	t.Helper()
	all := k.take()
	require.Len(t, all, 1)
	return all[0]
}

// fates is a Watcher that notes what it is told.
type fates struct {
	mu    sync.Mutex
	acks  []uint16
	fails map[uint16]error
}

func (f *fates) Acknowledged(id uint16) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.acks = append(f.acks, id)
}

func (f *fates) Failed(id uint16, err error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.fails == nil {
		f.fails = make(map[uint16]error)
	}
	f.fails[id] = err
}

func (f *fates) acked() []uint16 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.acks)
}

func (f *fates) failed() map[uint16]error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return maps.Clone(f.fails)
}
