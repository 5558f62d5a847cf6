package client

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// server is a peer on the other end of a connection: each request goes to
// handle, on the reading goroutine.
type server struct {
	t        testing.TB
	endpoint *endpoint.Endpoint
	handle   func(*asked)
	requests chan *wire.Message // every request, in order
	stats    endpoint.Stats
}

// asked is one request at a server.
type asked struct {
	endpoint.Incoming
	*wire.Message
	server *server
}

// serve runs a server on conn until the test ends.
func serve(t testing.TB, conn endpoint.PacketConn, handle func(*asked)) *server {
	t.Helper()
	engine := exchange.NewEngine()
	s := &server{t: t, handle: handle, requests: make(chan *wire.Message, 256)}
	s.endpoint = endpoint.New(endpoint.Config{Conn: conn, Engine: engine, Requests: s, Params: endpoint.DefaultParams(),
		Dedup: endpoint.DefaultDedupLimits(), MaxToken: 8, Stats: &s.stats, Log: zap.NewNop()})
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { engine.Run(ctx) })
	wg.Go(func() { _ = s.endpoint.Serve(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return s
}

// HandleRequest implements endpoint.RequestHandler.
func (s *server) HandleRequest(rx *endpoint.Reception, m *wire.Message) {
	own := *m
	own.Options, own.Payload = exchange.CloneOptions(m.Options), append([]byte(nil), m.Payload...)
	a := &asked{Message: &own, server: s}
	a.Accept(rx, m)
	own.Token = a.Incoming.Token
	s.requests <- &own
	s.handle(a)
}

// respond answers a request, piggybacked when it can be.
func (a *asked) respond(code codes.Code, payload string, options ...message.Option) {
	a.Respond(&wire.Message{Code: code, Options: options, Payload: []byte(payload)}, message.NonConfirmable, nil)
	a.server.endpoint.Engine.Flush()
}

// relay sends one of several responses, as a proxy does; server is who answered.
func (a *asked) relay(typ message.Type, server string, code codes.Code, payload string, options ...message.Option) {
	a.Ack()
	if server != "" {
		from := wire.AppendReplyFrom(nil, wire.SchemeCoAP, netip.MustParseAddrPort(server))
		options = append(options, message.Option{ID: wire.ReplyFrom, Value: from})
	}
	e := a.server.endpoint
	m := &wire.Message{Type: typ, Code: code, ID: e.NextID(a.Peer.Addr), Token: a.Incoming.Token, Options: options, Payload: []byte(payload)}
	var w endpoint.Watcher
	if typ == message.Confirmable {
		w = newFate()
	}
	if err := e.Send(a.Peer, a.Path, m, w); err != nil {
		a.server.t.Errorf("relay: %v", err)
	}
	e.Engine.Flush()
}

// isEarlyStop recognises what GP-40 describes.
func isEarlyStop(m *wire.Message) bool {
	return m.Code == codes.GET && len(m.Options) == 1 && m.Options[0].ID == wire.MulticastTimeout &&
		len(m.Options[0].Value) == 0 && len(m.Payload) == 0
}

// dialUDP returns a client and its server on loopback sockets.
func dialUDP(t testing.TB, config Config, handle func(*asked)) (*Client, *server) {
	t.Helper()
	conn, err := endpoint.ListenUDP(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"), endpoint.UDPOptions{})
	require.NoError(t, err)
	s := serve(t, conn, handle)
	c, err := Dial(t.Context(), conn.LocalAddr(), config)
	require.NoError(t, err)
	t.Cleanup(c.Close)
	return c, s
}

// dialMemory returns a client and its server on connections in memory, for
// tests in virtual time.
func dialMemory(t testing.TB, config Config, handle func(*asked)) (*Client, *server, *memoryConn) {
	t.Helper()
	near, far := newMemoryConns()
	s := serve(t, far, handle)
	c, err := newClient(far.local, config)
	require.NoError(t, err)
	c.serve(near)
	t.Cleanup(c.Close)
	return c, s, near
}

// memoryConn is one end of a pair of packet connections.
type memoryConn struct {
	local  netip.AddrPort
	in     chan endpoint.Datagram
	other  *memoryConn
	closed chan struct{}
	once   sync.Once

	mu   sync.Mutex
	lose func(m []byte) bool // drops what is written
}

func newMemoryConns() (near, far *memoryConn) {
	near = &memoryConn{local: netip.MustParseAddrPort("192.0.2.1:49152")}
	far = &memoryConn{local: netip.MustParseAddrPort("192.0.2.2:5683"), other: near}
	near.other = far
	for _, c := range []*memoryConn{near, far} {
		c.in, c.closed = make(chan endpoint.Datagram, 2*maxWaiting), make(chan struct{})
	}
	return near, far
}

func (c *memoryConn) setLoss(lose func(m []byte) bool) {
	c.mu.Lock()
	c.lose = lose
	c.mu.Unlock()
}

func (c *memoryConn) ReadBatch(batch []endpoint.Datagram) (int, error) {
	select {
	case batch[0] = <-c.in:
		return 1, nil
	case <-c.closed:
		return 0, net.ErrClosed
	}
}

func (c *memoryConn) WriteBatch(batch []endpoint.Datagram) (int, error) {
	c.mu.Lock()
	lose := c.lose
	c.mu.Unlock()
	for i := range batch {
		if lose != nil && lose(batch[i].Data) {
			continue
		}
		d := endpoint.Datagram{Peer: endpoint.PeerOf(c.local), Data: append([]byte(nil), batch[i].Data...)}
		select {
		case c.other.in <- d:
		default: // a full receive buffer
		}
	}
	return len(batch), nil
}

func (c *memoryConn) LocalAddr() netip.AddrPort { return c.local }

func (c *memoryConn) Close() error {
	c.once.Do(func() { close(c.closed) })
	return nil
}

// collect runs an exchange to its end.
func collect(ctx context.Context, t testing.TB, c *Client, r *Request) (all []*Response, err error) {
	t.Helper()
	for p, e := range c.Do(ctx, r) {
		if e != nil {
			require.Nil(t, p)
			require.NoError(t, err, "an error comes last")
			err = e
			continue
		}
		require.NoError(t, err, "nothing comes after an error")
		all = append(all, p)
	}
	return all, err
}

func seconds(n uint32) exchange.Timeout { return exchange.Timeout{Seconds: n, Present: true} }

func groupGet(t uint32) *Request {
	return &Request{Method: codes.GET, URI: "coap://224.0.1.187/temp", Form: ProxyURI, Confirmable: true, Timeout: seconds(t)}
}

// soon bounds what real sockets may take.
const soon = 20 * time.Second
