package endpoint

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/mux"
	coapnet "github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/options"
	"github.com/plgd-dev/go-coap/v3/tcp"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// authority issues certificates.
type authority struct {
	*testing.T
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "authority"}, IsCA: true, BasicConstraintsValid: true,
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	cert, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	return &authority{t, cert, key}
}

func (a *authority) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(a.cert)
	return p
}

// issue returns a certificate for the DNS names and for loopback.
func (a *authority) issue(name string, usage x509.ExtKeyUsage, expires time.Time, more ...string) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, DNSNames: append([]string{name}, more...),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, NotBefore: time.Now().Add(-2 * time.Hour), NotAfter: expires,
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{usage},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, key.Public(), a.key)
	require.NoError(a, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func (a *authority) server() tls.Certificate {
	return a.issue("server.example", x509.ExtKeyUsageServerAuth, time.Now().Add(time.Hour))
}

func (a *authority) client(name string) tls.Certificate {
	return a.issue(name, x509.ExtKeyUsageClientAuth, time.Now().Add(time.Hour))
}

// serveSockets serves on a loopback port until the test ends.
func serveSockets(t *testing.T, c StreamConfig, serve func(ctx context.Context, s *StreamServer, l net.Listener) error) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	s := NewStreamServer(c, DefaultServerLimits())
	go func() {
		defer close(done)
		if err := serve(ctx, s, l); err != nil {
			t.Error(err)
		}
	}()
	t.Cleanup(func() {
		cancel()
		<-done
		require.Zero(t, c.Stats.Open.Load())
		l.(*net.TCPListener).Close()
	})
	return l.Addr().String()
}

func plain(ctx context.Context, s *StreamServer, l net.Listener) error { return s.Serve(ctx, l, nil) }

func secured(c *tls.Config) func(context.Context, *StreamServer, net.Listener) error {
	return func(ctx context.Context, s *StreamServer, l net.Listener) error {
		return s.Serve(ctx, l, NewSecureServer(func() *tls.Config { return c }))
	}
}

func overWebSocket(secure *SecureServer) func(context.Context, *StreamServer, net.Listener) error {
	return func(ctx context.Context, s *StreamServer, l net.Listener) error {
		return s.ServeWebSocket(ctx, l, secure, WebPages{})
	}
}

func socketConfig(t *testing.T) (StreamConfig, *streamHandler) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	c, h := testStreamConfig(t), &streamHandler{}
	c.Requests = h
	return c, h
}

// quietPeer keeps go-coap from leaving goroutines behind.
var quietPeer = options.WithPeriodicRunner(func(func(time.Time) bool) {})

func TestStreamGoCoAPClient(t *testing.T) {
	c, _ := socketConfig(t)
	addr := serveSockets(t, c, plain)
	conn, err := tcp.Dial(addr, quietPeer)
	require.NoError(t, err)
	defer func() { _ = conn.Close(); <-conn.Done() }()
	require.NoError(t, conn.Ping(t.Context()))
	for range 3 {
		body := strings.Repeat("x", 900)
		m, err := conn.Post(t.Context(), "/echo", message.TextPlain, strings.NewReader(body))
		require.NoError(t, err)
		got, err := m.ReadBody()
		require.NoError(t, err)
		require.Equal(t, body, string(got))
	}
}

// GP-23: who a client is comes from its verified certificate, and a client with
// a wrong one gets no further than the handshake.
func TestStreamTLSIdentity(t *testing.T) {
	c, h := socketConfig(t)
	ca, foreign := newAuthority(t), newAuthority(t)
	addr := serveSockets(t, c, secured(&tls.Config{Certificates: []tls.Certificate{ca.server()}, ClientCAs: ca.pool(), ClientAuth: tls.VerifyClientCertIfGiven}))
	get := func(certs []tls.Certificate, version uint16, alpn ...string) error {
		conn, err := tcp.Dial(addr, quietPeer, options.WithTLS(&tls.Config{RootCAs: ca.pool(), ServerName: "server.example", Certificates: certs, MaxVersion: version, NextProtos: alpn}))
		if err != nil {
			return err
		}
		defer func() { _ = conn.Close(); <-conn.Done() }()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		_, err = conn.Get(ctx, "/echo")
		return err
	}
	require.NoError(t, get([]tls.Certificate{ca.client("meter")}, 0, "coap"))
	require.Equal(t, []string{"meter"}, h.proven(0).Certificate.DNSNames)
	require.NoError(t, get(nil, 0))
	require.Nil(t, h.proven(1), "encryption alone proves nothing")

	require.Error(t, get([]tls.Certificate{foreign.client("meter")}, 0, "coap"))
	require.Error(t, get([]tls.Certificate{ca.issue("meter", x509.ExtKeyUsageClientAuth, time.Now().Add(-time.Hour))}, 0, "coap"), "expired")
	require.Error(t, get([]tls.Certificate{ca.issue("meter", x509.ExtKeyUsageServerAuth, time.Now().Add(time.Hour))}, 0, "coap"), "not a client")
	require.Error(t, get(nil, tls.VersionTLS12))
	require.Error(t, get(nil, 0, "h2"))
	require.Equal(t, 2, h.served())
	require.Eventually(t, func() bool { return c.Stats.HandshakesFailed.Load() == 5 }, 10*time.Second, time.Millisecond)
}

// Connections that never finish their handshake do not hold up another one.
func TestStreamTLSHalfOpen(t *testing.T) {
	c, _ := socketConfig(t)
	c.Limits.Handshake = 300 * time.Millisecond
	ca := newAuthority(t)
	addr := serveSockets(t, c, secured(&tls.Config{Certificates: []tls.Certificate{ca.server()}}))
	var silent []net.Conn
	for range 20 {
		conn, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		t.Cleanup(func() { _ = conn.Close() })
		silent = append(silent, conn)
	}
	conn, err := tcp.Dial(addr, quietPeer, options.WithTLS(&tls.Config{RootCAs: ca.pool(), ServerName: "server.example"}))
	require.NoError(t, err)
	_, err = conn.Get(t.Context(), "/echo")
	require.NoError(t, err)
	_ = conn.Close()
	<-conn.Done()
	for _, s := range silent { // all are closed in time
		require.NoError(t, s.SetReadDeadline(time.Now().Add(10*time.Second)))
		_, err := io.ReadAll(s)
		require.NoError(t, err)
	}
}

func newSocketClient(t *testing.T, c StreamConfig, secure *tls.Config) *StreamClient {
	ctx, cancel := context.WithCancel(context.Background())
	c.Requests, c.Stats = nil, &StreamStats{}
	client, err := NewStreamClient(ctx, StreamClientConfig{
		StreamConfig: c, TLS: secure, Timeout: 10 * time.Second, Connections: 8, Calls: 64, Unused: time.Minute, RetryMin: time.Second, RetryMax: time.Minute,
	})
	require.NoError(t, err)
	t.Cleanup(func() { cancel(); client.Wait() })
	return client
}

func askSocket(client *StreamClient, scheme, host, addr, payload string) *outcome {
	o := newOutcome()
	client.Exchange(&exchange.Request{
		Method: codes.POST, Options: pathOptions("echo"), Payload: []byte(payload), Arrival: time.Now(),
		Target: exchange.Target{Scheme: scheme, Host: host, Addr: netip.MustParseAddrPort(addr)},
	}, o)
	client.config.Engine.Flush()
	return o
}

// Client and server of this package with each other, on every transport.
func TestStreamTransports(t *testing.T) {
	ca := newAuthority(t)
	server := &tls.Config{Certificates: []tls.Certificate{ca.server()}, ClientCAs: ca.pool(), ClientAuth: tls.RequireAndVerifyClientCert}
	for scheme, serve := range map[string]func(context.Context, *StreamServer, net.Listener) error{
		"coap+tcp": plain, "coaps+tcp": secured(server), "coap+ws": overWebSocket(nil), "coaps+ws": overWebSocket(NewSecureServer(func() *tls.Config { return server })),
	} {
		t.Run(scheme, func(t *testing.T) {
			c, h := socketConfig(t)
			addr := serveSockets(t, c, serve)
			client := newSocketClient(t, c, &tls.Config{RootCAs: ca.pool(), Certificates: []tls.Certificate{ca.client("meter")}})
			for _, size := range []int{0, 1, 1023, 1024, 1025, 60000} {
				body := strings.Repeat("b", size)
				require.Equal(t, body, string(askSocket(client, scheme, "server.example", addr, body).content(t).Payload))
			}
			var pending []*outcome
			for range 50 {
				pending = append(pending, askSocket(client, scheme, "server.example", addr, "p"))
			}
			for _, o := range pending {
				o.content(t)
			}
			if strings.HasPrefix(scheme, "coaps") {
				require.Equal(t, []string{"meter"}, h.proven(0).Certificate.DNSNames)
				other := askSocket(client, scheme, "other.example", addr, "")
				require.Equal(t, exchange.Unreachable, other.failure(t).Reason, "the certificate is for another name")
				askSocket(client, scheme, "", addr, "").content(t) // by address
			}
			tooBig := askSocket(client, scheme, "server.example", addr, strings.Repeat("b", 70000))
			require.Equal(t, exchange.TooLarge, tooBig.failure(t).Reason)
		})
	}
}

func TestStreamGoCoAPServer(t *testing.T) {
	c, _ := socketConfig(t)
	ca := newAuthority(t)
	router := mux.NewRouter()
	require.NoError(t, router.Handle("/echo", mux.HandlerFunc(func(w mux.ResponseWriter, r *mux.Message) {
		body, _ := r.ReadBody()
		_ = w.SetResponse(codes.Content, message.TextPlain, bytes.NewReader(body))
	})))
	serve := func(l coapListener) string {
		s := tcp.NewServer(quietPeer, options.WithMux(router))
		done := make(chan struct{})
		go func() { defer close(done); _ = s.Serve(l) }()
		t.Cleanup(func() { s.Stop(); <-done; _ = l.Close() })
		return l.Addr().String()
	}
	plainListener, err := coapnet.NewTCPListener("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	tlsListener, err := coapnet.NewTLSListener("tcp", "127.0.0.1:0", &tls.Config{Certificates: []tls.Certificate{ca.server()}})
	require.NoError(t, err)
	client := newSocketClient(t, c, &tls.Config{RootCAs: ca.pool()})
	body := strings.Repeat("y", 900)
	require.Equal(t, body, string(askSocket(client, "coap+tcp", "", serve(plainListener), body).content(t).Payload))
	require.Equal(t, body, string(askSocket(client, "coaps+tcp", "server.example", serve(tlsListener), body).content(t).Payload))
}

type coapListener interface {
	Close() error
	AcceptWithContext(ctx context.Context) (net.Conn, error)
	Addr() net.Addr
}

// What a WebSocket peer can do wrong.
func TestWebSocketRefusals(t *testing.T) {
	c, h := socketConfig(t)
	addr := serveSockets(t, c, overWebSocket(nil))
	hc := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	dial := func(path string, o *websocket.DialOptions) (*websocket.Conn, int) {
		o.HTTPClient = hc
		conn, r, err := websocket.Dial(t.Context(), "ws://"+addr+path, o) //nolint:bodyclose // the library closes it
		if err != nil {
			return nil, r.StatusCode
		}
		t.Cleanup(func() { _ = conn.CloseNow() })
		return conn, r.StatusCode
	}
	coap := []string{"coap"}
	_, status := dial("/", &websocket.DialOptions{Subprotocols: coap})
	require.Equal(t, http.StatusNotFound, status)
	_, status = dial(WebSocketPath, &websocket.DialOptions{Subprotocols: coap, HTTPHeader: http.Header{"Origin": {"http://elsewhere.example"}}})
	require.Equal(t, http.StatusForbidden, status)
	r, err := hc.Get("http://" + addr + WebSocketPath)
	require.NoError(t, err)
	_ = r.Body.Close()
	require.Equal(t, http.StatusUpgradeRequired, r.StatusCode)

	other, _ := dial(WebSocketPath, &websocket.DialOptions{Subprotocols: []string{"mqtt"}})
	_, _, err = other.Read(t.Context())
	require.Equal(t, websocket.StatusProtocolError, websocket.CloseStatus(err))

	receive := func(conn *websocket.Conn) *wire.Message {
		_, data, err := conn.Read(t.Context())
		require.NoError(t, err)
		m := &wire.Message{}
		require.NoError(t, m.DecodeWebSocket(data))
		return m
	}
	open := func() *websocket.Conn {
		conn, _ := dial(WebSocketPath, &websocket.DialOptions{Subprotocols: coap})
		require.Equal(t, codes.CSM, receive(conn).Code)
		return conn
	}
	long := open()
	require.NoError(t, long.Write(t.Context(), websocket.MessageBinary, make([]byte, c.Limits.Message+1)))
	m := receive(long)
	require.Equal(t, codes.Abort, m.Code)
	require.Contains(t, string(m.Payload), "Max-Message-Size")

	framed := open()
	require.NoError(t, framed.Write(t.Context(), websocket.MessageBinary, frameOf(&wire.Message{Code: codes.CSM, Options: message.Options{{ID: 4}}})))
	require.Equal(t, codes.Abort, receive(framed).Code, "the length field must be 0")

	text := open()
	require.NoError(t, text.Write(t.Context(), websocket.MessageText, []byte{0, 0xe1}))
	_, _, err = text.Read(t.Context())
	require.Error(t, err)
	require.Zero(t, h.served())
}
