package test

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// Codes and options of signaling messages (RFC 8323 §5).
const (
	csm            = coap.Code(0xe1)
	pingCode       = coap.Code(0xe2)
	pongCode       = coap.Code(0xe3)
	releaseCode    = coap.Code(0xe4)
	abortCode      = coap.Code(0xe5)
	maxMessageSize = 2
	blockWise      = 4
)

// frameConn carries messages over a reliable transport.
type frameConn interface {
	put(m *coap.Message) error
	// take waits for the next message.
	take() (*coap.Message, error)
	close()
}

// tcpConn frames messages as RFC 8323 §3.2 says.
type tcpConn struct{ net.Conn }

func (c tcpConn) close() { _ = c.Close() }

func (c tcpConn) put(m *coap.Message) error {
	udp := m.Bytes()
	rest := udp[4+len(m.Token):]
	tkl := byte(len(m.Token))
	var frame []byte
	switch n := len(rest); {
	case n < 13:
		frame = []byte{byte(n)<<4 | tkl}
	case n < 269:
		frame = []byte{13<<4 | tkl, byte(n - 13)}
	case n < 65805:
		frame = binary.BigEndian.AppendUint16([]byte{14<<4 | tkl}, uint16(n-269))
	default:
		frame = binary.BigEndian.AppendUint32([]byte{15<<4 | tkl}, uint32(n-65805))
	}
	_ = c.SetWriteDeadline(time.Now().Add(patience))
	_, err := c.Write(append(append(append(frame, byte(m.Code)), m.Token...), rest...))
	return err
}

func (c tcpConn) take() (*coap.Message, error) {
	_ = c.SetReadDeadline(time.Now().Add(overLoss))
	var err error
	read := func(n int) []byte {
		buf := make([]byte, n)
		if err == nil {
			_, err = io.ReadFull(c, buf)
		}
		return buf
	}
	first := read(1)[0]
	n := int(first >> 4)
	switch n {
	case 13:
		n = 13 + int(read(1)[0])
	case 14:
		n = 269 + int(binary.BigEndian.Uint16(read(2)))
	case 15:
		n = 65805 + int(binary.BigEndian.Uint32(read(4)))
	}
	code := read(1)[0]
	rest := read(int(first&0x0f) + n)
	if err != nil {
		return nil, err
	}
	return coap.Parse(append([]byte{0x40 | first&0x0f, code, 0, 0}, rest...))
}

// wsConn carries one message in each binary message (RFC 8323 §4.2).
type wsConn struct{ *websocket.Conn }

func (c wsConn) close() { _ = c.CloseNow() }

func (c wsConn) put(m *coap.Message) error {
	udp := m.Bytes()
	frame := append([]byte{byte(len(m.Token)), byte(m.Code)}, udp[4:]...)
	return c.Write(context.Background(), websocket.MessageBinary, frame)
}

func (c wsConn) take() (*coap.Message, error) {
	ctx, cancel := context.WithTimeout(context.Background(), overLoss)
	defer cancel()
	_, data, err := c.Read(ctx)
	if err != nil {
		return nil, err
	}
	if len(data) < 2 || data[0]>>4 != 0 {
		return nil, fmt.Errorf("no CoAP over WebSocket: %x", data)
	}
	return coap.Parse(append([]byte{0x40 | data[0]&0x0f, data[1], 0, 0}, data[2:]...))
}

// streamClient is a client over TCP, TLS or WebSocket.
type streamClient struct {
	t    *testing.T
	conn frameConn
	// peerMax is the proxy's Max-Message-Size.
	peerMax int
	token   byte
}

// tlsOf is the TLS side of a client that trusts an authority; own may be empty.
func tlsOf(t *testing.T, ca *certAuthority, own pair, alpn string) *tls.Config {
	t.Helper()
	c := &tls.Config{RootCAs: x509.NewCertPool(), ServerName: "localhost", NextProtos: []string{alpn}}
	c.RootCAs.AddCert(ca.cert)
	if own.cert != "" {
		p, err := tls.LoadX509KeyPair(own.cert, own.key)
		require.NoError(t, err)
		// Whatever the server asks for.
		c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return &p, nil }
	}
	return c
}

// connect opens a connection by scheme; secure is nil for the plain ones. It
// sends no CSM.
func connect(scheme string, to netip.AddrPort, secure *tls.Config) (frameConn, error) {
	return connectBy((&net.Dialer{}).DialContext, scheme, to, secure)
}

// dialer opens TCP connections.
type dialer func(ctx context.Context, network, address string) (net.Conn, error)

// dialer opens TCP connections from the host.
func (h *host) dialer(t *testing.T) dialer {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		h.do(t, func() { conn, err = (&net.Dialer{}).DialContext(ctx, network, address) })
		return conn, err
	}
}

func connectBy(dial dialer, scheme string, to netip.AddrPort, secure *tls.Config) (frameConn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	if strings.HasSuffix(scheme, "+ws") {
		web := "ws"
		client := &http.Client{Transport: &http.Transport{DialContext: dial, TLSClientConfig: secure}}
		if secure != nil {
			web = "wss"
		}
		conn, _, err := websocket.Dial(ctx, fmt.Sprintf("%s://%v/.well-known/coap", web, to), &websocket.DialOptions{HTTPClient: client, Subprotocols: []string{"coap"}}) //nolint:bodyclose // the library does
		if err != nil {
			return nil, err
		}
		conn.SetReadLimit(-1)
		return wsConn{conn}, nil
	}
	conn, err := dial(ctx, "tcp", to.String())
	if err != nil {
		return nil, err
	}
	if secure == nil {
		return tcpConn{conn}, nil
	}
	secured := tls.Client(conn, secure)
	if err := secured.HandshakeContext(ctx); err != nil {
		_ = conn.Close()
		return nil, err
	}
	return tcpConn{secured}, nil
}

// newStreamClient connects and exchanges CSMs: ours offers own bytes and blocks.
func newStreamClient(t *testing.T, scheme string, to netip.AddrPort, secure *tls.Config, own uint32) *streamClient {
	t.Helper()
	return newStreamClientBy(t, (&net.Dialer{}).DialContext, scheme, to, secure, own)
}

func newStreamClientBy(t *testing.T, dial dialer, scheme string, to netip.AddrPort, secure *tls.Config, own uint32) *streamClient {
	t.Helper()
	conn, err := connectBy(dial, scheme, to, secure)
	require.NoError(t, err, scheme)
	c := &streamClient{t: t, conn: conn, peerMax: 1152}
	t.Cleanup(conn.close)
	require.NoError(t, conn.put(&coap.Message{Code: csm, Options: []coap.Option{coap.Uint(maxMessageSize, own), {Number: blockWise}}}))
	m, err := conn.take()
	require.NoError(t, err)
	require.Equal(t, csm, m.Code)
	if o, ok := m.Option(maxMessageSize); ok {
		c.peerMax = int(o.Uint())
	}
	require.True(t, m.Has(blockWise))
	return c
}

// ask sends a request and returns its response.
func (c *streamClient) ask(m *coap.Message) *coap.Message {
	c.t.Helper()
	c.token++
	m.Token = []byte{c.token}
	require.NoError(c.t, c.conn.put(m))
	for {
		in, err := c.conn.take()
		require.NoError(c.t, err)
		if in.Code == csm {
			continue
		}
		require.Equal(c.t, m.Token, in.Token, "%v", in)
		return in
	}
}

// bert is the size exponent of BERT blocks (RFC 8323 §6).
const bert = 7

// blockOption is a Block1 or Block2 option: with szx 7 the number counts 1024 bytes.
func blockOption(number uint16, num int, more bool, szx int) coap.Option {
	v := uint32(num)<<4 | uint32(szx)
	if more {
		v |= 8
	}
	return coap.Uint(number, v)
}

// blockOf is an option taken apart.
func blockOf(o coap.Option) (num int, more bool, szx int) {
	v := o.Uint()
	return int(v >> 4), v&8 != 0, int(v & 7)
}

// blockSize is the unit in which the number of a block counts.
func blockSize(szx int) int { return 1 << (min(szx, 6) + 4) }

// upload sends a body in blocks of the size exponent, BERT blocks as large as
// the proxy takes, and returns the last response.
func (c *streamClient) upload(uri string, body []byte, szx int) *coap.Message {
	c.t.Helper()
	chunk := blockSize(szx)
	if szx == bert {
		chunk = max((c.peerMax-128)/1024, 1) * 1024
	}
	for at := 0; ; {
		n := min(chunk, len(body)-at)
		m := get(coap.CON, uri, coap.Uint(coap.ContentFormat, 42))
		m.Code, m.Payload = coap.PUT, body[at:at+n]
		more := at+n < len(body)
		if more || at > 0 {
			m.Options = append(m.Options, blockOption(coap.Block1, at/blockSize(szx), more, szx))
		}
		in := c.ask(m)
		if !more {
			return in
		}
		require.Equal(c.t, coap.CodeOf(2, 31), in.Code, "%v %q", in, in.Payload)
		at += n
	}
}

// download fetches a body in blocks; it returns the largest of them, too.
func (c *streamClient) download(uri string, szx int) (body []byte, code coap.Code, largest int) {
	c.t.Helper()
	for {
		m := get(coap.CON, uri)
		if len(body) > 0 || szx < bert {
			m.Options = append(m.Options, blockOption(coap.Block2, len(body)/blockSize(szx), false, szx))
		}
		in := c.ask(m)
		body = append(body, in.Payload...)
		largest = max(largest, len(in.Payload))
		o, ok := in.Option(coap.Block2)
		if !ok {
			return body, in.Code, largest
		}
		_, more, given := blockOf(o)
		if !more {
			return body, in.Code, largest
		}
		szx = given
	}
}

// streamOrigin is a server over TCP, TLS or WebSocket that keeps the body of the
// last PUT to each path. It takes and gives bodies in blocks, BERT blocks where
// both sides can.
type streamOrigin struct {
	t      *testing.T
	scheme string
	addr   netip.AddrPort
	csm    []coap.Option

	mu      sync.Mutex
	bodies  map[string][]byte
	conns   map[frameConn]bool
	watch   map[string]streamObserver
	count   int // connections so far
	largest int // payload of a request
	szx     map[int]bool
}

// newStreamOrigin starts a server that offers messages of max bytes; cert is
// that of the secure schemes.
func newStreamOrigin(t *testing.T, scheme string, cert pair, maxMessage uint32) *streamOrigin {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	return newStreamOriginOn(t, l, scheme, cert, maxMessage)
}

func newStreamOriginOn(t *testing.T, l net.Listener, scheme string, cert pair, maxMessage uint32) *streamOrigin {
	t.Helper()
	at := l.Addr().(*net.TCPAddr).AddrPort()
	o := &streamOrigin{t: t, scheme: scheme, addr: netip.AddrPortFrom(at.Addr().Unmap(), at.Port()), bodies: make(map[string][]byte),
		conns: make(map[frameConn]bool), watch: make(map[string]streamObserver), szx: make(map[int]bool)}
	if maxMessage > 0 {
		o.csm = []coap.Option{coap.Uint(maxMessageSize, maxMessage), {Number: blockWise}}
	}
	var secure *tls.Config
	if strings.HasPrefix(scheme, "coaps") {
		p, err := tls.LoadX509KeyPair(cert.cert, cert.key)
		require.NoError(t, err)
		secure = &tls.Config{Certificates: []tls.Certificate{p}, NextProtos: []string{"coap"}}
		if strings.HasSuffix(scheme, "+ws") {
			secure.NextProtos = []string{"http/1.1"}
		}
		l = tls.NewListener(l, secure)
	}
	var wg sync.WaitGroup
	t.Cleanup(func() { _ = l.Close(); o.drop(); wg.Wait() })
	if strings.HasSuffix(scheme, "+ws") {
		s := &http.Server{ReadHeaderTimeout: patience, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			conn, err := websocket.Accept(w, r, &websocket.AcceptOptions{Subprotocols: []string{"coap"}})
			if err == nil {
				conn.SetReadLimit(-1)
				o.serve(wsConn{conn})
			}
		})}
		wg.Go(func() { _ = s.Serve(l) })
		t.Cleanup(func() { _ = s.Close() })
		return o
	}
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			wg.Go(func() { o.serve(tcpConn{conn}) })
		}
	})
	return o
}

// uri of a resource.
func (o *streamOrigin) uri(path string) string {
	return fmt.Sprintf("%s://%v/%s", o.scheme, o.addr, path)
}

// drop closes all connections, as a server that crashed.
func (o *streamOrigin) drop() {
	o.mu.Lock()
	defer o.mu.Unlock()
	for c := range o.conns {
		c.close()
	}
}

func (o *streamOrigin) connections() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.count
}

func (o *streamOrigin) serve(c frameConn) {
	o.mu.Lock()
	o.conns[c] = true
	o.count++
	o.mu.Unlock()
	defer func() {
		c.close()
		o.mu.Lock()
		delete(o.conns, c)
		for path, w := range o.watch {
			if w.conn == c {
				delete(o.watch, path)
			}
		}
		o.mu.Unlock()
	}()
	peerMax := 1152
	if c.put(&coap.Message{Code: csm, Options: o.csm}) != nil {
		return
	}
	uploads := make(map[string][]byte)
	for {
		m, err := c.take()
		if err != nil {
			if !errors.Is(err, io.EOF) && !errors.Is(err, net.ErrClosed) {
				o.t.Logf("%s origin: %v", o.scheme, err)
			}
			return
		}
		switch {
		case m.Code == csm:
			if v, ok := m.Option(maxMessageSize); ok {
				peerMax = int(v.Uint())
			}
			continue
		case m.Code>>5 == 7 || m.Code == coap.Empty:
			continue
		}
		r := o.answer(m, uploads, peerMax)
		r.Token = m.Token
		if wish, ok := m.Option(coap.Observe); ok && r.Code == coap.CodeOf(2, 5) {
			o.mu.Lock()
			if delete(o.watch, m.Path()); wish.Uint() == 0 {
				o.watch[m.Path()] = streamObserver{c, m.Token}
				r.Options = append(r.Options, coap.Opt(coap.Observe, ""))
			}
			o.mu.Unlock()
		}
		if c.put(r) != nil {
			return
		}
	}
}

// body and keep look at and set the body at a path.
func (o *streamOrigin) body(path string) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.bodies["/"+path]
}

func (o *streamOrigin) keep(path string, body []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.bodies["/"+path] = body
}

// streamObserver is who observes a resource.
type streamObserver struct {
	conn  frameConn
	token []byte
}

// notify changes a body and tells the observer.
func (o *streamOrigin) notify(path string, body []byte) {
	o.keep(path, body)
	o.mu.Lock()
	w := o.watch["/"+path]
	o.mu.Unlock()
	require.NoError(o.t, w.conn.put(&coap.Message{Code: coap.CodeOf(2, 5), Token: w.token, Payload: body, Options: []coap.Option{coap.Opt(coap.Observe, "")}}))
}

func (o *streamOrigin) observed(path string) bool {
	o.mu.Lock()
	defer o.mu.Unlock()
	_, ok := o.watch["/"+path]
	return ok
}

// answer answers a request of a connection; uploads are the bodies it has begun.
func (o *streamOrigin) answer(m *coap.Message, uploads map[string][]byte, peerMax int) *coap.Message {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.largest = max(o.largest, len(m.Payload))
	if m.Code == coap.PUT {
		b, ok := m.Option(coap.Block1)
		if !ok {
			o.bodies[m.Path()] = m.Payload
			return &coap.Message{Code: coap.CodeOf(2, 4)}
		}
		num, more, szx := blockOf(b)
		o.szx[szx] = true
		if num == 0 {
			delete(uploads, m.Path())
		}
		if num*blockSize(szx) != len(uploads[m.Path()]) {
			return &coap.Message{Code: coap.CodeOf(4, 8)}
		}
		uploads[m.Path()] = append(uploads[m.Path()], m.Payload...)
		if more {
			return &coap.Message{Code: coap.CodeOf(2, 31), Options: []coap.Option{blockOption(coap.Block1, num, true, szx)}}
		}
		o.bodies[m.Path()] = uploads[m.Path()]
		delete(uploads, m.Path())
		return &coap.Message{Code: coap.CodeOf(2, 4), Options: []coap.Option{blockOption(coap.Block1, num, false, szx)}}
	}
	body, ok := o.bodies[m.Path()]
	if !ok {
		return &coap.Message{Code: coap.CodeOf(4, 4)}
	}
	szx, num := 6, 0
	if peerMax > 1152 && o.csm != nil {
		szx = bert
	}
	if b, ok := m.Option(coap.Block2); ok {
		n, _, s := blockOf(b)
		num, szx = n, min(szx, s)
	}
	chunk := blockSize(szx)
	if szx == bert {
		chunk = max((peerMax-128)/1024, 1) * 1024
	}
	at := num * blockSize(szx)
	if at > len(body) {
		return &coap.Message{Code: coap.CodeOf(4, 2)}
	}
	end := min(at+chunk, len(body))
	r := &coap.Message{Code: coap.CodeOf(2, 5), Payload: body[at:end]}
	if end < len(body) || num > 0 {
		r.Options = []coap.Option{blockOption(coap.Block2, num, end < len(body), szx), coap.Opt(coap.ETag, fmt.Sprint(len(body)))}
		o.szx[szx] = true
	}
	return r
}

// fileDescriptors counts those of a process.
func fileDescriptors(t *testing.T, pid int) int {
	t.Helper()
	entries, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	require.NoError(t, err)
	return len(entries)
}
