package proxy

import (
	"context"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"coapproxy/endpoint"
	"coapproxy/wire"
)

// connection is a client's end of a connection to the gateway over TCP.
type connection struct {
	t testing.TB
	net.Conn
	mu  sync.Mutex
	buf []byte
}

// acceptOne is a listener with one connection to accept.
type acceptOne struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func (l *acceptOne) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *acceptOne) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *acceptOne) Addr() net.Addr { return &net.TCPAddr{} }

// pipeEnd is the gateway's end, from the address of the user.
type pipeEnd struct{ net.Conn }

func (pipeEnd) RemoteAddr() net.Addr { return net.TCPAddrFromAddrPort(addrPort(userAddr)) }
func (pipeEnd) LocalAddr() net.Addr  { return net.TCPAddrFromAddrPort(addrPort(proxy4 + ":5683")) }

// connect opens a connection to the gateway; end ends the server.
func (g *gateway) connect() (_ *connection, end func()) {
	var stats endpoint.StreamStats
	server := endpoint.NewStreamServer(endpoint.StreamConfig{Engine: g.engine, Requests: g.front, MaxToken: 8,
		Limits: endpoint.DefaultStreamLimits(), Stats: &stats, Log: zap.NewNop()}, endpoint.DefaultServerLimits())
	l := &acceptOne{conns: make(chan net.Conn, 1), closed: make(chan struct{})}
	ours, theirs := net.Pipe()
	l.conns <- pipeEnd{theirs}
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { _ = server.Serve(ctx, l, nil) })
	c := &connection{t: g.t, Conn: ours}
	wg.Go(c.collect)
	c.send(&wire.Message{Code: codes.CSM})
	c.expect("7.01")
	return c, func() { _ = ours.Close(); cancel(); wg.Wait() }
}

func (c *connection) collect() {
	chunk := make([]byte, 4096)
	for {
		n, err := c.Read(chunk)
		c.mu.Lock()
		c.buf = append(c.buf, chunk[:n]...)
		c.mu.Unlock()
		if err != nil {
			return
		}
	}
}

func (c *connection) send(m *wire.Message) {
	frame, err := m.AppendFrame(nil)
	require.NoError(c.t, err)
	_, err = c.Write(frame)
	require.NoError(c.t, err)
}

// arrived returns the messages since the last call.
func (c *connection) arrived() []*wire.Message {
	synctest.Wait()
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*wire.Message
	for len(c.buf) > 0 {
		n, err := wire.FrameLen(c.buf)
		require.NoError(c.t, err)
		m := &wire.Message{}
		require.NoError(c.t, m.DecodeFrame(c.buf[:n]))
		out, c.buf = append(out, m), c.buf[n:]
	}
	return out
}

// expect requires messages with these codes and payloads.
func (c *connection) expect(want ...string) []*wire.Message {
	c.t.Helper()
	got := c.arrived()
	require.Len(c.t, got, len(want))
	for i, m := range got {
		require.Equal(c.t, want[i], strings.TrimSpace(wire.CodeString(m.Code)[:4]+" "+string(m.Payload)))
	}
	return got
}

// FP-89: a group request over a connection is relayed and stopped as one over
// UDP, without message types; the responses are not paced by ACKs (GP-33).
func TestGroupOverConnection(t *testing.T) {
	inGateway(t, func(s *setup) { s.access.Clients[0].Identity.Delivery.Outstanding = 1 }, func(g *gateway) {
		c, end := g.connect()
		defer end()
		a, b := g.peer(member1, "224.0.1.187"), g.peer("192.0.2.12:5683", "224.0.1.187")
		m := groupGet(con, "tok", 60)
		c.send(&m)
		qa, qb := a.request(), b.request()
		a.answer(qa, non, "one")
		b.answer(qb, non, "two")
		for _, m := range c.expect("2.05 one", "2.05 two") {
			require.Equal(t, "tok", string(m.Token))
			require.True(t, wire.Has(m.Options, wire.ReplyFrom)) // GP-51
		}
		stop := &wire.Message{Code: codes.GET, Token: []byte("tok"), Options: message.Options{timeout(0)}}
		c.send(stop) // GP-40
		synctest.Wait()
		require.EqualValues(t, 1, g.stats.EarlyStops.Load())
		a.answer(qa, non, "late")
		c.expect()
	})
}

// GP-44: a connection that closes has the effect of an Early Stop, for unicast
// requests too.
func TestConnectionCloses(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, end := g.connect()
		a := g.peer(member1, "224.0.1.187")
		m := groupGet(con, "tok", 600)
		c.send(&m)
		unicast := msg(con, codes.GET, "uni", uri("coap://192.0.2.11/x"))
		c.send(&unicast)
		synctest.Wait()
		require.Len(t, a.take(), 2)
		require.EqualValues(t, 2, g.front.active.Load())
		end()
		require.Zero(t, g.front.active.Load())
		g.idle()
	})
}

// A client whose connection ends while it waits is no failure of anybody's: its
// exchange ends without a word.
func TestConnectionGoneWhileWaiting(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		a := g.peer("192.0.2.11:5683")
		c, end := g.connect()
		c.send(&wire.Message{Code: codes.GET, Token: []byte{1}, Options: message.Options{uri(serverURI)}})
		q := a.request()
		end()
		g.after(time.Second)
		a.answer(q, ack, "late")
		require.Empty(t, g.log.FilterMessage("request refused").All())
	})
}
