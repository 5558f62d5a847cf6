package endpoint

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/coder/websocket"

	"coapproxy/wire"
)

// WebSocketPath is where CoAP over WebSockets is served (RFC 8323 §8.3) and
// webSocketProtocol the subprotocol that says so (RFC 8323 §4.1).
const (
	WebSocketPath     = "/.well-known/coap"
	webSocketProtocol = "coap"
)

// wsTransport carries messages over a WebSocket, one in each binary message.
type wsTransport struct {
	conn *websocket.Conn
	// ctx ends the connection, without blocking, when it is canceled.
	ctx    context.Context
	cancel context.CancelFunc
	buf    []byte
}

func newWSTransport(ctx context.Context, conn *websocket.Conn) *wsTransport {
	conn.SetReadLimit(-1) // we count ourselves, so that there can be an Abort
	t := &wsTransport{conn: conn}
	t.ctx, t.cancel = context.WithCancel(context.WithoutCancel(ctx))
	return t
}

var errTextMessage = errors.New("text message on a CoAP WebSocket")

func (t *wsTransport) decode(m *wire.Message, frame []byte) error { return m.DecodeWebSocket(frame) }

func (t *wsTransport) encode(m *wire.Message, buf []byte) ([]byte, error) {
	return m.AppendWebSocket(buf)
}

func (t *wsTransport) read(limit int) ([]byte, bool, error) {
	kind, r, err := t.conn.Reader(t.ctx)
	if err != nil {
		return nil, false, err
	}
	if kind != websocket.MessageBinary { // RFC 8323 §4.2
		return nil, false, errTextMessage
	}
	if cap(t.buf) > slotKeep {
		t.buf = nil
	}
	t.buf = t.buf[:0]
	for {
		if len(t.buf) == cap(t.buf) {
			grown := make([]byte, len(t.buf), max(readBuffer, 2*cap(t.buf)))
			copy(grown, t.buf)
			t.buf = grown
		}
		n, err := r.Read(t.buf[len(t.buf):cap(t.buf)])
		t.buf = t.buf[:len(t.buf)+n]
		switch {
		case len(t.buf) > limit:
			return nil, false, errFrameTooBig
		case errors.Is(err, io.EOF):
			return t.buf, false, nil
		case err != nil:
			return nil, false, err
		}
	}
}

func (t *wsTransport) write(frames []byte, ends []int, within time.Duration) error {
	begin := 0
	for _, end := range ends {
		ctx, cancel := context.WithTimeout(t.ctx, within)
		err := t.conn.Write(ctx, websocket.MessageBinary, frames[begin:end])
		cancel()
		if err != nil {
			return err
		}
		begin = end
	}
	return nil
}

func (t *wsTransport) closeWrite(within time.Duration) {
	stop := time.AfterFunc(within, t.cancel)
	defer stop.Stop()
	_ = t.conn.Close(websocket.StatusNormalClosure, "")
}

func (t *wsTransport) discard() {
	for n := 0; n < discardMax; {
		_, r, err := t.conn.Reader(t.ctx)
		if err != nil {
			return
		}
		k, err := io.Copy(io.Discard, io.LimitReader(r, discardMax))
		n += int(k) + 1
		if err != nil {
			return
		}
	}
}

func (t *wsTransport) close() { t.cancel() }

// WebSocketHandler serves CoAP on WebSocketPath of an HTTP/1.1 server; other
// paths get 404.
type WebSocketHandler struct {
	server *StreamServer
	ctx    context.Context
	pages  WebPages

	mu      sync.Mutex
	closed  bool
	running sync.WaitGroup
}

// WebPages says which web pages may have a browser connect, beside pages of the
// server itself. Who is no browser sends no Origin, and is asked for nothing of it.
type WebPages struct {
	// Origins are the host patterns of such pages.
	Origins []string
	// KnownHost reports whether the server is known under the host of a Host field.
	// A page of another name that leads to the server's address, to which its owner
	// can point any name, is as foreign as any (HC-91). Nil: every name is known.
	KnownHost func(host string) bool
}

// NewWebSocketHandler returns a handler whose connections end with ctx, in an
// orderly way.
func (s *StreamServer) NewWebSocketHandler(ctx context.Context, pages WebPages) *WebSocketHandler {
	return &WebSocketHandler{server: s, ctx: ctx, pages: pages}
}

// Wait refuses new connections and waits until all are gone, after the context
// has ended.
func (h *WebSocketHandler) Wait() {
	h.mu.Lock()
	h.closed = true
	h.mu.Unlock()
	h.running.Wait()
}

// ServeHTTP implements http.Handler.
func (h *WebSocketHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.mu.Lock()
	closed := h.closed
	if !closed {
		h.running.Add(1)
	}
	h.mu.Unlock()
	if closed {
		http.Error(w, "shutting down", http.StatusServiceUnavailable)
		return
	}
	defer h.running.Done()
	if r.URL.Path != WebSocketPath {
		http.NotFound(w, r)
		return
	}
	if r.Header.Get("Origin") != "" && h.pages.KnownHost != nil && !h.pages.KnownHost(r.Host) { // HC-91
		h.server.Stats.HandshakesFailed.Add(1)
		http.Error(w, "not known under this name", http.StatusMisdirectedRequest)
		return
	}
	place, ok := r.Context().Value(placeKey{}).(*place)
	if !ok { // on a server that is not ours
		remote, _ := netip.ParseAddrPort(r.RemoteAddr)
		if place, ok = h.server.admit(remote); !ok {
			http.Error(w, "too many connections", http.StatusServiceUnavailable)
			return
		}
		defer place.leave()
	}
	conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{
		Subprotocols: []string{webSocketProtocol}, OriginPatterns: h.pages.Origins, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		h.server.Stats.HandshakesFailed.Add(1)
		return
	}
	defer func() { _ = conn.CloseNow() }()
	if conn.Subprotocol() != webSocketProtocol {
		h.server.Stats.HandshakesFailed.Add(1)
		_ = conn.Close(websocket.StatusProtocolError, "subprotocol coap is required")
		return
	}
	st := newStream(h.server.StreamConfig, h.server, newWSTransport(h.ctx, conn)) //nolint:contextcheck // that of the request ends with the hijacking
	st.raw, st.place, st.peer, st.scheme = place.raw, place, place.peer, "coap+ws"
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		st.local = addrPortOf(local)
	}
	if r.TLS != nil {
		st.scheme = "coaps+ws"
		st.security = tlsSecurity(r.TLS)
	}
	h.server.carry(h.ctx, st) //nolint:contextcheck // as above
}

// ServeWebSocket accepts WebSocket connections until ctx ends, which closes the
// listener and, in an orderly way, the connections; it returns when all are gone.
// secure is nil for coap+ws.
func (s *StreamServer) ServeWebSocket(ctx context.Context, l net.Listener, secure *SecureServer, pages WebPages) error {
	var ln net.Listener = &admittingListener{Listener: l, server: s}
	if secure != nil {
		ln = tls.NewListener(ln, secure.forProtocol("http/1.1"))
	}
	handler := s.NewWebSocketHandler(ctx, pages)
	server := &http.Server{
		Handler:           handler,
		ReadHeaderTimeout: s.Limits.Handshake,
		WriteTimeout:      s.Limits.Handshake,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          quietLog(),
		ConnContext:       withPlace,
	}
	server.SetKeepAlivesEnabled(false)
	stop := context.AfterFunc(ctx, func() { _ = server.Close() })
	defer stop()
	err := server.Serve(ln)
	_ = server.Close() // those too that were accepted meanwhile
	if ctx.Err() != nil && errors.Is(err, http.ErrServerClosed) {
		err = nil
	}
	handler.Wait()
	return err
}

// dialWebSocket opens a WebSocket to the authority over connections that dial
// makes.
func dialWebSocket(ctx context.Context, authority string, dial func(ctx context.Context) (net.Conn, error)) (*websocket.Conn, error) {
	once := func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx) }
	client := &http.Client{
		Transport:     &http.Transport{DialContext: once, DisableKeepAlives: true, Proxy: nil},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
	// dial secures the connection where that is due, so that HTTP need not know.
	conn, response, err := websocket.Dial(ctx, "ws://"+authority+WebSocketPath, &websocket.DialOptions{ //nolint:bodyclose // the library closes it
		HTTPClient: client, Subprotocols: []string{webSocketProtocol}, CompressionMode: websocket.CompressionDisabled,
	})
	if err != nil {
		if response != nil {
			err = fmt.Errorf("HTTP status %d: %w", response.StatusCode, err)
		}
		return nil, err
	}
	if conn.Subprotocol() != webSocketProtocol {
		_ = conn.CloseNow()
		return nil, errors.New("the server does not speak CoAP over WebSockets")
	}
	return conn, nil
}
