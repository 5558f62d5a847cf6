package endpoint

import (
	"bytes"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// streamHandler answers /echo with the payload of the request, sends as many
// messages as the payload has bytes for /relay, and answers /hang not at all.
type streamHandler struct {
	mu       sync.Mutex
	hanging  []*Incoming
	gone     int // requests of clients that went away
	security []*exchange.Security
	origins  []Origin
}

type streamCancel struct{ h *streamHandler }

func (c streamCancel) Cancel() {
	c.h.mu.Lock()
	c.h.gone++
	c.h.mu.Unlock()
}

func (h *streamHandler) HandleRequest(rx *Reception, m *wire.Message) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.security = append(h.security, rx.Security())
	h.origins = append(h.origins, rx.Origin())
	in := &Incoming{}
	in.Accept(rx, m)
	in.CancelWhenGone(streamCancel{h})
	path, _ := wire.First(m.Options, wire.URIPath)
	switch string(path) {
	case "echo":
		in.Respond(&wire.Message{Code: codes.Content, Payload: m.Payload}, message.NonConfirmable, nil)
	case "relay":
		for i := range m.Payload {
			_, _ = in.Relay(&wire.Message{Code: codes.Content, Payload: m.Payload[i : i+1]}, message.NonConfirmable, nil)
		}
		in.Finish()
	case "hang":
		h.hanging = append(h.hanging, in)
	default:
		in.Respond(&wire.Message{Code: codes.NotFound}, message.NonConfirmable, nil)
	}
}

func (h *streamHandler) proven(i int) *exchange.Security {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.security[i]
}

func (h *streamHandler) origin(i int) Origin {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.origins[i]
}

func (h *streamHandler) served() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.origins)
}

func (h *streamHandler) count() (hanging, gone int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	return len(h.hanging), h.gone
}

// pipeListener accepts the other ends of pipes.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
	once   sync.Once
}

func newPipeListener() *pipeListener {
	return &pipeListener{conns: make(chan net.Conn), closed: make(chan struct{})}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error { l.once.Do(func() { close(l.closed) }); return nil }

func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 5683} }

// pipeConn is an end of a pipe with addresses.
type pipeConn struct {
	net.Conn
	remote *net.TCPAddr
}

func (c pipeConn) RemoteAddr() net.Addr { return c.remote }

func (c pipeConn) LocalAddr() net.Addr {
	return &net.TCPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 5683}
}

// dial connects from the address.
func (l *pipeListener) dial(from string) (net.Conn, error) {
	ours, theirs := net.Pipe()
	select {
	case l.conns <- pipeConn{theirs, net.TCPAddrFromAddrPort(netip.MustParseAddrPort(from))}:
		return ours, nil
	case <-l.closed:
		return nil, errors.New("connection refused")
	}
}

// streamBench is a StreamServer on a pipeListener in a synctest bubble.
type streamBench struct {
	*testing.T
	config   StreamConfig
	server   *StreamServer
	handler  *streamHandler
	listener *pipeListener
	shutdown context.CancelFunc
	served   chan struct{}
}

func newStreamBench(t *testing.T, change func(*StreamConfig, *ServerLimits)) *streamBench {
	b := &streamBench{T: t, handler: &streamHandler{}, listener: newPipeListener(), served: make(chan struct{})}
	b.config = testStreamConfig(t)
	b.config.Requests = b.handler
	limits := DefaultServerLimits()
	if change != nil {
		change(&b.config, &limits)
	}
	b.server = NewStreamServer(b.config, limits)
	ctx, cancel := context.WithCancel(t.Context())
	b.shutdown = cancel
	go func() {
		defer close(b.served)
		if err := b.server.Serve(ctx, b.listener, nil); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() { cancel(); <-b.served; require.Zero(t, b.config.Stats.Open.Load(), "places are given back") })
	return b
}

// testStreamConfig returns a configuration with a running engine.
func testStreamConfig(t *testing.T) StreamConfig {
	engine := exchange.NewEngine()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); engine.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done })
	return StreamConfig{Engine: engine, MaxToken: 8, Limits: DefaultStreamLimits(), Stats: &StreamStats{}, Log: zap.NewNop()}
}

// streamPeer is the other end of a connection, byte by byte.
type streamPeer struct {
	*testing.T
	net.Conn
	buf []byte
}

func (b *streamBench) peer() *streamPeer { return b.peerFrom("192.0.2.9:40000") }

func (b *streamBench) peerFrom(addr string) *streamPeer {
	c, err := b.listener.dial(addr)
	require.NoError(b, err)
	b.Cleanup(func() { _ = c.Close() })
	return &streamPeer{T: b.T, Conn: c}
}

// settled is a peer after the exchange of CSMs.
func (b *streamBench) settled() *streamPeer {
	p := b.peer()
	p.expect(codes.CSM)
	p.send(&wire.Message{Code: codes.CSM})
	return p
}

func (p *streamPeer) send(m *wire.Message) {
	p.Helper()
	frame, err := m.AppendFrame(nil)
	require.NoError(p, err)
	_, err = p.Write(frame)
	require.NoError(p, err)
}

// next returns the next message, nil at the end of the connection.
func (p *streamPeer) next() *wire.Message {
	p.Helper()
	for {
		n, err := wire.FrameLen(p.buf)
		if err == nil && n <= uint64(len(p.buf)) {
			m := &wire.Message{}
			require.NoError(p, m.DecodeFrame(bytes.Clone(p.buf[:n])))
			p.buf = p.buf[n:]
			return m
		}
		chunk := make([]byte, 4096)
		k, err := p.Read(chunk)
		p.buf = append(p.buf, chunk[:k]...)
		if err != nil {
			return nil
		}
	}
}

func (p *streamPeer) expect(code codes.Code) *wire.Message {
	p.Helper()
	m := p.next()
	require.NotNil(p, m, "the connection has ended, %v was expected", code)
	require.Equal(p, wire.CodeString(code), wire.CodeString(m.Code), "%s", m.Payload)
	return m
}

func (p *streamPeer) expectEnd() {
	p.Helper()
	m := p.next()
	require.Nil(p, m)
}

func pathOptions(path string) message.Options {
	return message.Options{{ID: wire.URIPath, Value: []byte(path)}}
}

func streamRequest(token, path, payload string) *wire.Message {
	return &wire.Message{Code: codes.GET, Token: []byte(token), Options: pathOptions(path), Payload: []byte(payload)}
}
