package test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// nat is a relay between one client and the proxy that can take another port
// towards the proxy, as a NAT does that has forgotten a binding.
type nat struct {
	t     *testing.T
	inner *net.UDPConn // to the client
	proxy *net.UDPAddr

	mu     sync.Mutex
	client *net.UDPAddr
	outer  *net.UDPConn
	wg     sync.WaitGroup
}

func newNAT(t *testing.T, proxy netip.AddrPort) *nat {
	t.Helper()
	inner, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	n := &nat{t: t, inner: inner, proxy: net.UDPAddrFromAddrPort(proxy)}
	n.rebind()
	n.wg.Go(func() {
		buf := make([]byte, 65536)
		for {
			k, from, err := inner.ReadFromUDP(buf)
			if err != nil {
				return
			}
			n.mu.Lock()
			n.client = from
			_, _ = n.outer.WriteToUDP(buf[:k], n.proxy)
			n.mu.Unlock()
		}
	})
	t.Cleanup(func() {
		_ = inner.Close()
		n.mu.Lock()
		_ = n.outer.Close()
		n.mu.Unlock()
		n.wg.Wait()
	})
	return n
}

// rebind takes a new port towards the proxy; what comes to the old one is lost.
func (n *nat) rebind() {
	outer, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(n.t, err)
	n.mu.Lock()
	if n.outer != nil {
		_ = n.outer.Close()
	}
	n.outer = outer
	n.mu.Unlock()
	n.wg.Go(func() {
		buf := make([]byte, 65536)
		for {
			k, err := outer.Read(buf)
			if err != nil {
				return
			}
			n.mu.Lock()
			client := n.client
			n.mu.Unlock()
			_, _ = n.inner.WriteToUDP(buf[:k], client)
		}
	})
}

// A DTLS client whose NAT gives it another port goes on in its session: both
// sides have a Connection ID (RFC 9146).
func TestDTLSClientBehindNAT(t *testing.T) {
	t.Parallel()
	origin := single(t, content)
	s := startSecured(t, "")
	n := newNAT(t, s.at("coaps"))
	raw, err := net.ListenPacket("udp4", "127.0.0.1:0")
	require.NoError(t, err)
	conn, err := dtls.ClientWithOptions(raw, n.inner.LocalAddr(), dtls.WithPSK(func([]byte) ([]byte, error) { return []byte(sharedKey), nil }),
		dtls.WithPSKIdentityHint([]byte("gw")), dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8), dtls.WithConnectionIDGenerator(dtls.OnlySendCIDGenerator()))
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(patience)))
	id := uint16(100)
	ask := func() {
		t.Helper()
		id++
		m := get(coap.CON, fmt.Sprintf("coap://%v/x", origin.addr()))
		m.ID, m.Token = id, []byte{byte(id)}
		_, err := conn.Write(m.Bytes())
		require.NoError(t, err)
		buf := make([]byte, 2048)
		k, err := conn.Read(buf)
		require.NoError(t, err)
		in, err := coap.Parse(buf[:k])
		require.NoError(t, err)
		require.Equal(t, coap.CodeOf(2, 5), in.Code)
	}
	ask()
	for range 3 {
		n.rebind()
		ask()
	}
	require.EqualValues(t, 1, s.counters()["coap_dtls_established_total"])
}

// A server that restarts has forgotten its DTLS session and its connections: the
// next requests open new ones, however the old ones ended.
func TestServerRestarts(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, "coap-server-openssl")
	for _, how := range []string{"key", "certificate"} {
		top := "credentials: {servers: {authorities: " + o.ca.file
		if how == "key" {
			top += ", psk: " + o.psk
		}
		p := startProxy(t, group0, settings{client: everyScheme, proxy: "require_secure_client: false", top: top + "}}"})
		schemes := []string{"coaps", "coap+tcp", "coaps+tcp"}
		clients := make(map[string]*client)
		for _, scheme := range schemes {
			clients[scheme] = newClient(t, here, clientAddr, p.addr())
			require.Equal(t, coap.CodeOf(2, 5), clients[scheme].ask(get(coap.CON, o.uri(scheme, "time"))).Code, scheme)
		}
		o.kill() // without a goodbye
		o.run(t, "coap-server-openssl")
		var wg sync.WaitGroup
		for _, scheme := range schemes {
			wg.Go(func() {
				c := clients[scheme]
				until := time.Now().Add(patience)
				for {
					c.send(c.fresh(get(coap.NON, o.uri(scheme, "time"))))
					in := c.next(patience)
					if in != nil && in.Code == coap.CodeOf(2, 5) {
						return
					}
					if in == nil || time.Now().After(until) {
						t.Errorf("%s with %s: %v", scheme, how, in)
						return
					}
					// Refused at once: it has only just been found out.
					time.Sleep(50 * time.Millisecond)
				}
			})
		}
		wg.Wait()
		if n := p.counters(); n["upstream_dtls_established_total"] < 2 || n["upstream_dtls_silent_total"] != 1 {
			t.Errorf("counters: %v", n)
		}
	}
}

// A server with two names on one DTLS address, with a certificate for each, is asked
// under both at a time, each in a session of its own; a name that it has no certificate
// for is 5.02, and disturbs neither.
func TestServerWithTwoNames(t *testing.T) {
	t.Parallel()
	ca := newCertAuthority(t, "servers")
	var options []tls.Certificate
	names := []string{"one.example", "two.example"}
	for _, name := range names {
		own := ca.issue(name, func(c *x509.Certificate) { c.DNSNames = []string{name} })
		p, err := tls.LoadX509KeyPair(own.cert, own.key)
		require.NoError(t, err)
		options = append(options, p)
	}
	o := newDatagramOrigin(t, here, netip.AddrPortFrom(clientAddr, 0), dtls.WithCertificates(options...))
	o.keep("x", []byte("hello"))
	p := startProxy(t, group0, settings{client: everyScheme, proxy: "require_secure_client: false", top: "credentials: {servers: {authorities: " + ca.file + "}}",
		names: "one.example: [127.0.0.1]\ntwo.example: [127.0.0.1]\nthree.example: [127.0.0.1]"})
	c := newClient(t, here, clientAddr, p.addr())
	ask := func(name string) coap.Code {
		return c.ask(get(coap.CON, fmt.Sprintf("coaps://%s:%d/x", name, o.addr.Port()))).Code
	}
	for range 5 {
		for _, name := range names {
			require.Equal(t, coap.CodeOf(2, 5), ask(name), name)
		}
		require.Equal(t, coap.CodeOf(5, 2), ask("three.example"))
	}
	require.Equal(t, len(names), o.sessions())
	require.EqualValues(t, len(names), p.counters()["upstream_dtls_established_total"])
}

// A server that is away is refused at once for a while, then tried again; others
// are served meanwhile (FP-34).
func TestServerAway(t *testing.T) {
	t.Parallel()
	ca := newCertAuthority(t, "servers")
	good := newStreamOrigin(t, "coap+tcp", pair{}, 1152)
	wrong := newStreamOrigin(t, "coaps+tcp", newCertAuthority(t, "others").issue("x", forServer), 1152)
	web := newStreamOrigin(t, "coaps+ws", ca.issue("web", forServer), 1152)
	expired := newStreamOrigin(t, "coaps+ws", ca.issue("expired", func(c *x509.Certificate) {
		forServer(c)
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	}), 1152)
	elsewhere := newStreamOrigin(t, "coaps+tcp", ca.issue("elsewhere", func(c *x509.Certificate) { c.DNSNames = []string{"elsewhere.example"} }), 1152)
	p := startProxy(t, group0, settings{client: everyScheme, proxy: "require_secure_client: false", top: "credentials: {servers: {authorities: " + ca.file + "}}"})
	away := fmt.Sprintf("127.0.0.1:%d", newSocketPorts(t))
	c := newClient(t, here, clientAddr, p.addr())
	for range 3 {
		for _, scheme := range allSchemes[2:] {
			begun := time.Now()
			in := c.ask(get(coap.CON, fmt.Sprintf("%s://%s/x", scheme, away)))
			require.Equal(t, coap.CodeOf(5, 2), in.Code, scheme)
			require.Less(t, time.Since(begun), 5*time.Second)
		}
		for _, bad := range []*streamOrigin{wrong, expired, elsewhere} {
			require.Equal(t, coap.CodeOf(5, 2), c.ask(get(coap.CON, bad.uri("x"))).Code)
		}
		require.Equal(t, coap.CodeOf(4, 4), c.ask(get(coap.CON, web.uri("x"))).Code)
		require.Equal(t, coap.CodeOf(4, 4), c.ask(get(coap.CON, good.uri("x"))).Code)
	}
	require.Equal(t, 1, good.connections())
	n := p.counters()
	require.Positive(t, n["upstream_connections_dial_failed_total"])
	require.LessOrEqual(t, n["upstream_connections_dial_failed_total"], 21.0)
}

// Connections that never say anything, half-open TLS handshakes, requests before a
// CSM and garbage: each costs its own connection, no more than 64 of one address
// are kept, other clients are served, and at the end all file descriptors are
// back.
func TestHostileConnections(t *testing.T) {
	t.Parallel()
	origin := single(t, content)
	ca := newCertAuthority(t, "clients")
	e := startEveryTransport(t, ca)
	uri := fmt.Sprintf("coap://%v/x", origin.addr())
	for _, c := range e.carriers(t) {
		require.NotEmpty(t, c.get(t, uri))
	}
	before := fileDescriptors(t, e.cmd.Process.Pid)

	from := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 66)}}
	var all []net.Conn
	for i := range 120 {
		scheme := allSchemes[2+i%4]
		conn, err := from.Dial("tcp", e.at[scheme].String())
		require.NoError(t, err)
		all = append(all, conn)
		switch i % 3 {
		case 1:
			_, _ = conn.Write([]byte{0x16, 3, 1, 0}) // the beginning of a ClientHello
		case 2:
			_, _ = conn.Write([]byte("GET / HTTP/1.1\r\nHost: x\r\n"))
		}
	}
	for _, conn := range all[64:] {
		_ = conn.SetReadDeadline(time.Now().Add(patience))
		_, err := io.Copy(io.Discard, conn) // until the proxy closes it
		require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
	}
	for name, c := range e.carriers(t) {
		require.NotEmpty(t, c.get(t, uri), name)
	}
	// A request before the CSM aborts the connection (RFC 8323 §3.3).
	for _, scheme := range []string{"coap+tcp", "coap+ws"} {
		conn, err := connect(scheme, e.at[scheme], nil)
		require.NoError(t, err)
		m := get(coap.CON, uri)
		m.Token = []byte{1}
		require.NoError(t, conn.put(m))
		codes := []coap.Code{}
		for {
			in, err := conn.take()
			if err != nil {
				break
			}
			codes = append(codes, in.Code)
		}
		require.Equal(t, []coap.Code{csm, abortCode}, codes, scheme)
		conn.close()
	}
	for _, conn := range all {
		_ = conn.Close()
	}
	n := e.counters()
	require.GreaterOrEqual(t, n["coap_connections_refused_total"], 20.0) // some had been aborted when the last came
	// Those of the second round of carriers stay open until the test ends.
	eventually(t, func() bool { return fileDescriptors(t, e.cmd.Process.Pid) <= before+5 }, "file descriptors are left: %d, %d before", fileDescriptors(t, e.cmd.Process.Pid), before)
}

// Many DTLS handshakes that never go on, from one address: whoever really wants
// to is served all the same.
func TestHandshakeFlood(t *testing.T) {
	t.Parallel()
	origin := single(t, content)
	s := startSecured(t, "")
	hello := dtlsHello()
	for range 600 {
		conn, err := net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(s.at("coaps")))
		require.NoError(t, err)
		_, _ = conn.Write(hello)
		_ = conn.Close()
	}
	out := run(t, here, "coap-client-openssl", "-B", "10", "-k", sharedKey, "-u", "gw", "-P", fmt.Sprintf("coaps://%v", s.at("coaps")), fmt.Sprintf("coap://%v/x", origin.addr()))
	require.Contains(t, out.stdout, "server/x", out.stderr)
	require.Positive(t, s.counters()["coap_dtls_refused_total"])
}

// dtlsHello is a ClientHello without a cookie (RFC 6347 §4.2.1).
func dtlsHello() []byte {
	body := append([]byte{0xfe, 0xfd}, make([]byte, 32)...) // version, random
	body = append(body,
		0, 0, // session, cookie
		0, 2, 0xc0, 0xa8, 1, 0, // TLS_PSK_WITH_AES_128_CCM_8, no compression
		0, 0, // no extensions
	)
	n := byte(len(body))
	message := append([]byte{1, 0, 0, n, 0, 0, 0, 0, 0, 0, 0, n}, body...)
	return append([]byte{22, 0xfe, 0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, byte(len(message))}, message...)
}
