package endpoint

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	piondtls "github.com/pion/dtls/v3"
	"github.com/plgd-dev/go-coap/v3/dtls"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/mux"
	coapnet "github.com/plgd-dev/go-coap/v3/net"
	"github.com/plgd-dev/go-coap/v3/options"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

var loopback = netip.MustParseAddr("127.0.0.1")

// dtlsBench is an Endpoint over a DTLSConn on loopback.
type dtlsBench struct {
	*testing.T
	config  DTLSConfig
	conn    *DTLSConn
	handler *streamHandler
	stop    context.CancelFunc
	served  chan struct{}
}

func dtlsConfig(t *testing.T, engine *exchange.Engine, c DTLSCredentials) DTLSConfig {
	conn, err := ListenUDP(t.Context(), netip.AddrPortFrom(loopback, 0), UDPOptions{Errors: true})
	require.NoError(t, err)
	l := DefaultDTLSLimits()
	return DTLSConfig{Conn: conn, Engine: engine, Credentials: func() DTLSCredentials { return c }, Limits: l, Stats: &DTLSStats{}, Log: zap.NewNop()}
}

func newDTLSBench(t *testing.T, c DTLSCredentials, change func(*DTLSConfig)) *dtlsBench {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	engine := testStreamConfig(t).Engine
	b := &dtlsBench{T: t, config: dtlsConfig(t, engine, c), handler: &streamHandler{}, served: make(chan struct{})}
	if change != nil {
		change(&b.config)
	}
	var err error
	b.conn, err = NewDTLSServer(b.config)
	require.NoError(t, err)
	e := New(Config{Conn: b.conn, Engine: engine, Requests: b.handler, Params: DefaultParams(), Dedup: DefaultDedupLimits(), MaxToken: 8, Stats: &Stats{}, Log: zap.NewNop()})
	ctx, cancel := context.WithCancel(context.Background())
	b.stop = cancel
	go func() { defer close(b.served); _ = e.Serve(ctx) }()
	t.Cleanup(func() { cancel(); <-b.served; require.Zero(t, b.config.Stats.Sessions.Load()) })
	return b
}

func (b *dtlsBench) addr() string { return b.conn.LocalAddr().String() }

func meterKey(identity string) ([]byte, bool) { return []byte("secret"), identity == "meter" }

func pskClient(identity, key string) *piondtls.Config {
	return &piondtls.Config{
		PSK: func([]byte) ([]byte, error) { return []byte(key), nil }, PSKIdentityHint: []byte(identity),
		CipherSuites: []piondtls.CipherSuiteID{piondtls.TLS_PSK_WITH_AES_128_CCM_8}, LoggerFactory: silentLog(),
	}
}

func certClient(ca *authority, certs ...tls.Certificate) *piondtls.Config {
	return &piondtls.Config{RootCAs: ca.pool(), ServerName: "server.example", Certificates: certs, LoggerFactory: silentLog()}
}

// ask does a request with go-coap's client.
func (b *dtlsBench) ask(c *piondtls.Config) error {
	ctx, cancel := context.WithTimeout(b.Context(), 2*time.Second)
	defer cancel()
	cc, err := dtls.Dial(b.addr(), c, quietPeer)
	if err != nil {
		return err
	}
	defer func() { _ = cc.Close(); <-cc.Done() }()
	// A handshake that gets no answer does not heed ctx.
	stop := context.AfterFunc(ctx, func() { _ = cc.Close() })
	defer stop()
	m, err := cc.Post(ctx, "/echo", message.TextPlain, strings.NewReader("body"))
	if err != nil {
		return err
	}
	body, err := m.ReadBody()
	if string(body) != "body" {
		return errors.New("wrong answer")
	}
	return err
}

// dtlsPacketConn makes a packet connection of a connected one.
type dtlsPacketConn struct{ net.Conn }

func (c dtlsPacketConn) ReadFrom(b []byte) (int, net.Addr, error) {
	n, err := c.Read(b)
	return n, c.RemoteAddr(), err
}

func (c dtlsPacketConn) WriteTo(b []byte, _ net.Addr) (int, error) { return c.Write(b) }

// GP-23, GP-110: who a client is comes from its key or certificate.
func TestDTLSIdentity(t *testing.T) {
	ca, foreign := newAuthority(t), newAuthority(t)
	b := newDTLSBench(t, DTLSCredentials{
		Key: meterKey, Hint: "plant", Certificates: []tls.Certificate{ca.server()}, Authorities: ca.pool(),
	}, nil)
	require.NoError(t, b.ask(pskClient("meter", "secret")))
	require.Equal(t, &exchange.Security{PSK: true, PSKIdentity: "meter"}, b.handler.proven(0))
	require.NoError(t, b.ask(certClient(ca, ca.client("valve"))))
	require.Equal(t, []string{"valve"}, b.handler.proven(1).Certificate.DNSNames)
	require.NoError(t, b.ask(certClient(ca)))
	require.Nil(t, b.handler.proven(2), "encryption alone proves nothing")

	for name, c := range map[string]*piondtls.Config{
		"wrong key":        pskClient("meter", "guess"),
		"unknown identity": pskClient("nobody", "secret"),
		"foreign":          certClient(ca, foreign.client("valve")),
		"expired":          certClient(ca, ca.issue("valve", x509.ExtKeyUsageClientAuth, time.Now().Add(-time.Hour))),
	} {
		require.Error(t, b.ask(c), name)
	}
	require.Equal(t, 3, b.handler.served())
	require.EqualValues(t, 1, b.config.Stats.UnknownIdentities.Load())
	require.EqualValues(t, 3, b.config.Stats.Established.Load())
}

func TestDTLSRequiresCertificate(t *testing.T) {
	ca := newAuthority(t)
	b := newDTLSBench(t, DTLSCredentials{Certificates: []tls.Certificate{ca.server()}, Authorities: ca.pool(), RequireCertificate: true}, nil)
	require.Error(t, b.ask(certClient(ca)))
	require.NoError(t, b.ask(certClient(ca, ca.client("valve"))))
}

// movingConn is a client's socket that can be replaced by one on another port.
type movingConn struct {
	mu     sync.Mutex
	conn   net.Conn
	server string
}

func (c *movingConn) current() net.Conn {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conn
}

func (c *movingConn) move(t *testing.T) {
	next, err := net.Dial("udp", c.server)
	require.NoError(t, err)
	c.mu.Lock()
	old := c.conn
	c.conn = next
	c.mu.Unlock()
	if old != nil {
		_ = old.Close()
	}
}

func (c *movingConn) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		conn := c.current()
		n, err := conn.Read(b)
		if err != nil && conn != c.current() {
			continue
		}
		return n, conn.RemoteAddr(), err
	}
}

func (c *movingConn) WriteTo(b []byte, _ net.Addr) (int, error) { return c.current().Write(b) }
func (c *movingConn) Close() error                              { return c.current().Close() }
func (c *movingConn) LocalAddr() net.Addr                       { return c.current().LocalAddr() }
func (c *movingConn) SetDeadline(t time.Time) error             { return c.current().SetDeadline(t) }
func (c *movingConn) SetReadDeadline(t time.Time) error         { return c.current().SetReadDeadline(t) }
func (c *movingConn) SetWriteDeadline(t time.Time) error        { return c.current().SetWriteDeadline(t) }

// A client behind a NAT that forgets keeps its session by its Connection ID, and
// what it asked for before is answered at its new address.
func TestDTLSConnectionID(t *testing.T) {
	b := newDTLSBench(t, DTLSCredentials{Key: meterKey}, nil)
	socket := &movingConn{server: b.addr()}
	socket.move(t)
	config := pskClient("meter", "secret")
	config.ConnectionIDGenerator = piondtls.OnlySendCIDGenerator()
	conn, err := piondtls.Client(socket, socket.current().RemoteAddr(), config)
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.HandshakeContext(t.Context()))
	exchangeOne := func(id uint16, path string) *wire.Message {
		m := &wire.Message{Type: message.Confirmable, Code: codes.GET, ID: id, Token: []byte{byte(id)}, Options: pathOptions(path), Payload: []byte("p")}
		data, err := m.Append(nil)
		require.NoError(t, err)
		_, err = conn.Write(data)
		require.NoError(t, err)
		return receiveDTLS(t, conn)
	}
	require.Equal(t, codes.Content, exchangeOne(1, "echo").Code)
	first := socket.current().LocalAddr().String()
	socket.move(t)
	require.NotEqual(t, first, socket.current().LocalAddr().String())
	require.Equal(t, codes.Content, exchangeOne(2, "echo").Code)
	require.Equal(t, b.handler.origin(0), b.handler.origin(1), "Tokens belong to the session, not to the address")
	require.EqualValues(t, 1, b.config.Stats.Established.Load())

	// Another client may get the address that was left.
	require.NoError(t, b.ask(pskClient("meter", "secret")))
	require.NotEqual(t, b.handler.origin(0), b.handler.origin(2))
	require.Equal(t, codes.Content, exchangeOne(3, "echo").Code)
}

func receiveDTLS(t *testing.T, conn *piondtls.Conn) *wire.Message {
	buf := make([]byte, 4096)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(5*time.Second)))
	n, err := conn.Read(buf)
	require.NoError(t, err)
	m := &wire.Message{}
	require.NoError(t, m.Decode(bytes.Clone(buf[:n])))
	return m
}

// GP-44: a session that the client closes ends what it asked for; one that it
// replaces from the same address too (RFC 6347 §4.2.8).
func TestDTLSGone(t *testing.T) {
	b := newDTLSBench(t, DTLSCredentials{Key: meterKey}, nil)
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	server := net.UDPAddrFromAddrPort(b.conn.LocalAddr())
	hang := func(id uint16, socket *sharedSocket) *piondtls.Conn {
		conn, err := piondtls.Client(socket, server, pskClient("meter", "secret"))
		require.NoError(t, err)
		require.NoError(t, conn.HandshakeContext(t.Context()))
		data, err := (&wire.Message{Type: message.Confirmable, Code: codes.GET, ID: id, Token: []byte{1}, Options: pathOptions("hang")}).Append(nil)
		require.NoError(t, err)
		_, err = conn.Write(data)
		require.NoError(t, err)
		require.Eventually(t, func() bool { h, _ := b.handler.count(); return h == int(id) }, 5*time.Second, time.Millisecond)
		return conn
	}
	crashing := &sharedSocket{PacketConn: l}
	forgotten := hang(1, crashing)
	crashing.mute.Store(true)
	require.NoError(t, forgotten.Close())
	second := hang(2, &sharedSocket{PacketConn: l})
	require.Eventually(t, func() bool { _, g := b.handler.count(); return g == 1 }, 5*time.Second, time.Millisecond)
	require.NoError(t, second.Close())
	require.Eventually(t, func() bool { _, g := b.handler.count(); return g == 2 }, 5*time.Second, time.Millisecond)
	require.Eventually(t, func() bool { return b.config.Stats.Sessions.Load() == 0 }, 5*time.Second, time.Millisecond)
	require.NotEqual(t, b.handler.origin(0), b.handler.origin(1), "the same address, another session")
}

// sharedSocket survives the connections over it.
type sharedSocket struct {
	net.PacketConn
	mute atomic.Bool
}

func (*sharedSocket) Close() error { return nil }

func (s *sharedSocket) WriteTo(b []byte, a net.Addr) (int, error) {
	if s.mute.Load() {
		return len(b), nil
	}
	return s.PacketConn.WriteTo(b, a)
}

// First flights from addresses that never answer keep nobody out.
func TestDTLSFlood(t *testing.T) {
	b := newDTLSBench(t, DTLSCredentials{Key: meterKey}, func(c *DTLSConfig) { c.Limits.Handshakes = 4 })
	hello := captureHello(t)
	for range 50 {
		c, err := net.Dial("udp", b.addr())
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		_, err = c.Write(hello)
		require.NoError(t, err)
	}
	require.NoError(t, b.ask(pskClient("meter", "secret")))
	require.LessOrEqual(t, b.config.Stats.Handshakes.Load(), uint64(52))
	require.GreaterOrEqual(t, b.config.Stats.Refused.Load(), uint64(46))
	c, err := net.Dial("udp", b.addr())
	require.NoError(t, err)
	defer c.Close()
	for _, junk := range []string{"", "x", strings.Repeat("x", 100), string(hello[:14]), "\x19\xfe\xfd" + strings.Repeat("x", 30), "\x17" + string(hello[1:])} {
		_, _ = c.Write([]byte(junk))
	}
	require.NoError(t, b.ask(pskClient("meter", "secret")))
}

// captureHello returns a ClientHello without cookie.
func captureHello(t *testing.T) []byte {
	l, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	c, err := net.Dial("udp", l.LocalAddr().String())
	require.NoError(t, err)
	conn, err := piondtls.Client(dtlsPacketConn{c}, c.RemoteAddr(), pskClient("meter", "secret"))
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); _ = conn.HandshakeContext(ctx) }()
	buf := make([]byte, 4096)
	n, _, err := l.ReadFrom(buf)
	require.NoError(t, err)
	cancel()
	<-done
	_ = conn.Close()
	return buf[:n]
}

func TestDTLSLimits(t *testing.T) {
	b := newDTLSBench(t, DTLSCredentials{Key: meterKey}, func(c *DTLSConfig) { c.Limits.PerPeer = 2 })
	var open []*piondtls.Conn
	for range 2 {
		c, err := net.Dial("udp", b.addr())
		require.NoError(t, err)
		conn, err := piondtls.Client(dtlsPacketConn{c}, c.RemoteAddr(), pskClient("meter", "secret"))
		require.NoError(t, err)
		require.NoError(t, conn.HandshakeContext(t.Context()))
		open = append(open, conn)
	}
	require.Error(t, b.ask(pskClient("meter", "secret")))
	for _, c := range open {
		_ = c.Close()
	}
	require.Eventually(t, func() bool { return b.config.Stats.Sessions.Load() == 0 }, 5*time.Second, time.Millisecond)
	require.NoError(t, b.ask(pskClient("meter", "secret")))
}

func TestDTLSIdle(t *testing.T) {
	b := newDTLSBench(t, DTLSCredentials{Key: meterKey}, func(c *DTLSConfig) { c.Limits.Idle = 100 * time.Millisecond })
	c, err := net.Dial("udp", b.addr())
	require.NoError(t, err)
	conn, err := piondtls.Client(dtlsPacketConn{c}, c.RemoteAddr(), pskClient("meter", "secret"))
	require.NoError(t, err)
	require.NoError(t, conn.HandshakeContext(t.Context()))
	_, err = conn.Read(make([]byte, 100))
	require.Error(t, err, "the server says goodbye")
	_ = conn.Close()
	require.EqualValues(t, 1, b.config.Stats.Idle.Load())
}

// newDTLSLeg is the leg over DTLS. change may say something else of its sessions.
func newDTLSLeg(t *testing.T, c DTLSCredentials, change ...func(*DTLSConfig)) (*DTLSLeg, *DTLSStats) {
	engine := testStreamConfig(t).Engine
	ctx, cancel := context.WithCancel(context.Background())
	secure := DTLSConfig{Engine: engine, Credentials: func() DTLSCredentials { return c }, Limits: DefaultDTLSLimits(), Stats: &DTLSStats{}, Log: zap.NewNop()}
	secure.Limits.Handshake = time.Second
	open := func(ctx context.Context, _ netip.Addr) (PacketConn, error) {
		return ListenUDP(ctx, netip.AddrPortFrom(loopback, 0), UDPOptions{Errors: true})
	}
	clients := ClientConfig{
		Engine: engine, Params: DefaultParams(), Dedup: DefaultDedupLimits(), Stats: &Stats{}, Log: zap.NewNop(), Open: open,
		NStart: func(netip.AddrPort) int { return 8 }, Queue: 100, TimeoutCON: 30 * time.Second, TimeoutNON: 30 * time.Second, Ports: 2, Servers: 100,
	}
	for _, f := range change {
		f(&secure)
	}
	if secure.Conn != nil { // what goes through another one
		clients.Open = func(context.Context, netip.Addr) (PacketConn, error) { return secure.Conn, nil }
	}
	leg, err := NewDTLSLeg(ctx, clients, secure)
	require.NoError(t, err)
	t.Cleanup(func() { cancel(); leg.Wait() })
	return leg, secure.Stats
}

func askDTLS(c *DTLSLeg, server, payload string) *outcome {
	return askNamed(c, server, "", payload)
}

// askNamed asks the server at an address by a name.
func askNamed(c *DTLSLeg, server, name, payload string) *outcome {
	o := newOutcome()
	c.Exchange(&exchange.Request{
		Method: codes.POST, Options: pathOptions("echo"), Payload: []byte(payload), Arrival: time.Now(),
		Target: exchange.Target{Scheme: "coaps", Host: name, Addr: netip.MustParseAddrPort(server)},
	}, o)
	c.clients.Engine.Flush()
	return o
}

func TestDTLSClient(t *testing.T) {
	ca := newAuthority(t)
	for name, v := range map[string]struct{ server, client DTLSCredentials }{
		"key":         {DTLSCredentials{Key: meterKey}, DTLSCredentials{KeyFor: func(netip.AddrPort, string) (string, []byte, bool) { return "meter", []byte("secret"), true }}},
		"certificate": {DTLSCredentials{Certificates: []tls.Certificate{ca.server()}, Authorities: ca.pool(), RequireCertificate: true}, DTLSCredentials{Authorities: ca.pool(), Certificates: []tls.Certificate{ca.client("meter")}}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newDTLSBench(t, v.server, nil)
			leg, stats := newDTLSLeg(t, v.client)
			var pending []*outcome
			for range 20 {
				pending = append(pending, askDTLS(leg, b.addr(), "x"))
			}
			for _, o := range pending {
				require.Equal(t, "x", string(o.content(t).Payload))
			}
			require.EqualValues(t, 1, stats.Established.Load())
			for _, size := range []int{1, 1023, 1024, 1025} {
				require.Len(t, askDTLS(leg, b.addr(), strings.Repeat("x", size)).content(t).Payload, size)
			}
			require.NotNil(t, b.handler.proven(0))
		})
	}
}

// FP-34: a server that refuses the handshake, or that nobody is behind, is 5.02;
// so is what waits when the session ends, and the next request opens a new one.
func TestDTLSClientFailures(t *testing.T) {
	key := DTLSCredentials{KeyFor: func(netip.AddrPort, string) (string, []byte, bool) { return "meter", []byte("secret"), true }}
	b := newDTLSBench(t, DTLSCredentials{Key: meterKey}, nil)
	leg, stats := newDTLSLeg(t, key)
	wrong, _ := newDTLSLeg(t, DTLSCredentials{KeyFor: func(netip.AddrPort, string) (string, []byte, bool) { return "meter", []byte("guess"), true }})
	none, _ := newDTLSLeg(t, DTLSCredentials{})
	free, err := net.ListenPacket("udp", "127.0.0.1:0")
	require.NoError(t, err)
	nobody := free.LocalAddr().String()
	require.NoError(t, free.Close())

	require.Equal(t, exchange.Unreachable, askDTLS(wrong, b.addr(), "").failure(t).Reason)
	require.Equal(t, exchange.Unreachable, askDTLS(wrong, b.addr(), "").failure(t).Reason, "at once: it has just failed")
	require.Equal(t, exchange.Unreachable, askDTLS(none, b.addr(), "").failure(t).Reason)
	require.Equal(t, exchange.Unreachable, askDTLS(leg, nobody, "").failure(t).Reason)

	askDTLS(leg, b.addr(), "x").content(t)
	hanging := newOutcome()
	leg.Exchange(&exchange.Request{Method: codes.GET, Options: pathOptions("hang"), Arrival: time.Now(),
		Target: exchange.Target{Scheme: "coaps", Addr: b.conn.LocalAddr()}}, hanging)
	leg.clients.Engine.Flush()
	require.Eventually(t, func() bool { h, _ := b.handler.count(); return h == 1 }, 5*time.Second, time.Millisecond)
	b.conn.mu.Lock()
	for _, a := range b.conn.byAddr {
		if a.established != nil {
			a.established.endLater(errIdleSession)
		}
	}
	b.conn.mu.Unlock()
	require.Equal(t, exchange.Unreachable, hanging.failure(t).Reason)
	require.Eventually(t, func() bool { return askDTLS(leg, b.addr(), "x").content(t).Code == codes.Content }, 5*time.Second, 10*time.Millisecond)
	require.EqualValues(t, 2, stats.Established.Load())
}

func TestDTLSGoCoAPServer(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	router := mux.NewRouter()
	require.NoError(t, router.Handle("/echo", mux.HandlerFunc(func(w mux.ResponseWriter, r *mux.Message) {
		body, _ := r.ReadBody()
		_ = w.SetResponse(codes.Content, message.TextPlain, bytes.NewReader(body))
	})))
	l, err := coapnet.NewDTLSListener("udp", "127.0.0.1:0", &piondtls.Config{
		PSK: func([]byte) ([]byte, error) { return []byte("secret"), nil }, CipherSuites: []piondtls.CipherSuiteID{piondtls.TLS_PSK_WITH_AES_128_CCM_8},
		LoggerFactory: silentLog(), ConnectionIDGenerator: piondtls.RandomCIDGenerator(8),
	})
	require.NoError(t, err)
	s := dtls.NewServer(quietPeer, options.WithMux(router))
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	defer func() { s.Stop(); <-done; _ = l.Close() }()
	leg, _ := newDTLSLeg(t, DTLSCredentials{KeyFor: func(netip.AddrPort, string) (string, []byte, bool) { return "meter", []byte("secret"), true }})
	require.Equal(t, "hello", string(askDTLS(leg, l.Addr().String(), "hello").content(t).Payload))
}
