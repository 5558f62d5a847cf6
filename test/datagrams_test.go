package test

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// datagramClient is a client over UDP or DTLS that repeats what is not answered, so
// that it can be used where datagrams get lost. It has one request at a time.
type datagramClient struct {
	t    *testing.T
	conn net.Conn
	id   uint16
}

// newDatagramClient opens a client in a host; options are those of DTLS, none for
// UDP.
func newDatagramClient(t *testing.T, h *host, to netip.AddrPort, options ...dtls.ClientOption) *datagramClient {
	t.Helper()
	open := func() *net.UDPConn {
		var raw *net.UDPConn
		var err error
		h.do(t, func() { raw, err = net.DialUDP("udp4", nil, net.UDPAddrFromAddrPort(to)) })
		require.NoError(t, err)
		return raw
	}
	c := &datagramClient{t: t}
	t.Cleanup(func() { _ = c.conn.Close() })
	if len(options) == 0 {
		c.conn = open()
		return c
	}
	var err error
	for range 3 { // the network may eat a handshake
		raw := open()
		c.conn = raw
		secured, failed := dtls.ClientWithOptions(connected{raw}, raw.RemoteAddr(), options...)
		require.NoError(t, failed)
		c.conn = secured
		ctx, cancel := context.WithTimeout(t.Context(), patience)
		err = secured.HandshakeContext(ctx)
		cancel()
		if err == nil {
			return c
		}
		_ = secured.Close()
	}
	require.NoError(t, err)
	return nil
}

// connected is a net.PacketConn made of a socket that is connected.
type connected struct{ *net.UDPConn }

func (c connected) WriteTo(b []byte, _ net.Addr) (int, error) { return c.Write(b) }

// pskOptions are those of a client with a pre-shared key.
func pskOptions(identity string) []dtls.ClientOption {
	return []dtls.ClientOption{dtls.WithPSK(func([]byte) ([]byte, error) { return []byte(sharedKey), nil }),
		dtls.WithPSKIdentityHint([]byte(identity)), dtls.WithCipherSuites(dtls.TLS_PSK_WITH_AES_128_CCM_8)}
}

// ask sends a confirmable request, as often as it takes, and returns its response.
func (c *datagramClient) ask(m *coap.Message) *coap.Message {
	c.t.Helper()
	c.id++
	m.Type, m.ID, m.Token = coap.CON, c.id, fmt.Appendf(nil, "%04x", c.id)
	pause := 2 * time.Second
	again := time.Now()
	for until := again.Add(overLoss); time.Now().Before(until); {
		if !time.Now().Before(again) {
			_, err := c.conn.Write(m.Bytes())
			require.NoError(c.t, err)
			again = time.Now().Add(pause)
			pause *= 2
		}
		in := c.take(again)
		switch {
		case in == nil:
		case in.Type == coap.ACK && in.Code == coap.Empty && in.ID == m.ID:
			again = until // the response comes separately
		case bytes.Equal(in.Token, m.Token) && in.Code != coap.Empty:
			return in
		}
	}
	require.FailNow(c.t, "no response", "%v", m)
	return nil
}

// take is the next message, nil if none comes in time. It acknowledges.
func (c *datagramClient) take(until time.Time) *coap.Message {
	c.t.Helper()
	require.NoError(c.t, c.conn.SetReadDeadline(until))
	buf := make([]byte, 65536)
	n, err := c.conn.Read(buf)
	if err != nil {
		var late net.Error
		require.True(c.t, errors.As(err, &late) && late.Timeout(), "%v", err)
		return nil
	}
	in, err := coap.Parse(buf[:n])
	require.NoError(c.t, err)
	if in.Type == coap.CON {
		_, _ = c.conn.Write((&coap.Message{Type: coap.ACK, ID: in.ID}).Bytes())
	}
	return in
}

// put implements carrier.
func (c *datagramClient) put(t *testing.T, uri string, body []byte) {
	t.Helper()
	const szx, size = 6, 1024
	for at := 0; ; at += size {
		end := min(at+size, len(body))
		m := get(coap.CON, uri)
		m.Code, m.Payload = coap.PUT, body[at:end]
		more := end < len(body)
		if at > 0 || more {
			m.Options = append(m.Options, blockOption(coap.Block1, at/size, more, szx))
		}
		in := c.ask(m)
		if !more {
			require.Equal(t, coap.CodeOf(2, 4), in.Code, "%q", in.Payload)
			return
		}
		require.Equal(t, coap.CodeOf(2, 31), in.Code, "%q", in.Payload)
	}
}

// get implements carrier.
func (c *datagramClient) get(t *testing.T, uri string) []byte {
	t.Helper()
	var body []byte
	for {
		m := get(coap.CON, uri)
		if len(body) > 0 {
			m.Options = append(m.Options, blockOption(coap.Block2, len(body)/1024, false, 6))
		}
		in := c.ask(m)
		require.Equal(t, coap.CodeOf(2, 5), in.Code, "%q", in.Payload)
		body = append(body, in.Payload...)
		o, ok := in.Option(coap.Block2)
		if !ok {
			return body
		}
		if _, more, _ := blockOf(o); !more {
			return body
		}
	}
}

// datagramOrigin is a server over UDP or DTLS that keeps the body of the last PUT to
// each path. It takes and gives bodies in blocks of 1024 bytes, and answers what
// comes twice with what it said before.
type datagramOrigin struct {
	t      *testing.T
	scheme string
	addr   netip.AddrPort

	mu     sync.Mutex
	bodies map[string][]byte
	conns  map[net.Conn]bool // DTLS sessions
	count  int               // sessions so far
}

// newDatagramOrigin starts a server in a host at an address, port 0 for any; options
// are those of DTLS, none for UDP.
func newDatagramOrigin(t *testing.T, h *host, at netip.AddrPort, options ...dtls.ServerOption) *datagramOrigin {
	t.Helper()
	o := &datagramOrigin{t: t, scheme: "coap", bodies: make(map[string][]byte), conns: make(map[net.Conn]bool)}
	var wg sync.WaitGroup
	if len(options) == 0 {
		var conn *net.UDPConn
		var err error
		h.do(t, func() { conn, err = net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at)) })
		require.NoError(t, err)
		o.addr = unmapped(conn.LocalAddr())
		t.Cleanup(func() { _ = conn.Close(); wg.Wait() })
		wg.Go(func() { o.serveUDP(conn) })
		return o
	}
	o.scheme = "coaps"
	var l net.Listener
	var err error
	h.do(t, func() { l, err = dtls.ListenWithOptions("udp4", net.UDPAddrFromAddrPort(at), options...) })
	require.NoError(t, err)
	o.addr = unmapped(l.Addr())
	t.Cleanup(func() { o.drop(); _ = l.Close(); wg.Wait() })
	wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			o.mu.Lock()
			o.conns[conn] = true
			o.mu.Unlock()
			wg.Go(func() { o.serveSession(conn) })
		}
	})
	return o
}

func unmapped(a net.Addr) netip.AddrPort {
	at := a.(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

// certificateOptions are those of a DTLS server with a certificate.
func certificateOptions(t *testing.T, own pair) []dtls.ServerOption {
	t.Helper()
	p, err := tls.LoadX509KeyPair(own.cert, own.key)
	require.NoError(t, err)
	return []dtls.ServerOption{dtls.WithCertificates(p)}
}

func (o *datagramOrigin) uri(path string) string {
	return fmt.Sprintf("%s://%v/%s", o.scheme, o.addr, path)
}

func (o *datagramOrigin) body(path string) []byte {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.bodies["/"+path]
}

func (o *datagramOrigin) keep(path string, body []byte) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.bodies["/"+path] = body
}

// drop ends all sessions, and tells their peers.
func (o *datagramOrigin) drop() {
	o.mu.Lock()
	all := make([]net.Conn, 0, len(o.conns))
	for c := range o.conns {
		all = append(all, c)
	}
	o.mu.Unlock()
	for _, c := range all {
		_ = c.Close()
	}
}

func (o *datagramOrigin) sessions() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.count
}

func (o *datagramOrigin) serveUDP(conn *net.UDPConn) {
	peers := make(map[netip.AddrPort]*datagramPeer)
	buf := make([]byte, 65536)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		if peers[from] == nil {
			peers[from] = newDatagramPeer()
		}
		if answer := o.receive(peers[from], buf[:n]); answer != nil {
			_, _ = conn.WriteToUDPAddrPort(answer, from)
		}
	}
}

func (o *datagramOrigin) serveSession(conn net.Conn) {
	defer func() {
		_ = conn.Close()
		o.mu.Lock()
		delete(o.conns, conn)
		o.mu.Unlock()
	}()
	if d, ok := conn.(*dtls.Conn); ok {
		ctx, cancel := context.WithTimeout(context.Background(), 3*patience)
		err := d.HandshakeContext(ctx)
		cancel()
		if err != nil {
			return
		}
	}
	o.mu.Lock()
	o.count++
	o.mu.Unlock()
	peer := newDatagramPeer()
	buf := make([]byte, 65536)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return
		}
		if answer := o.receive(peer, buf[:n]); answer != nil {
			if _, err := conn.Write(answer); err != nil {
				return
			}
		}
	}
}

// datagramPeer is what a datagramOrigin knows of a client.
type datagramPeer struct {
	answers map[uint16][]byte
	uploads map[string][]byte
}

func newDatagramPeer() *datagramPeer {
	return &datagramPeer{answers: make(map[uint16][]byte), uploads: make(map[string][]byte)}
}

// receive returns the answer to a datagram, nil for none.
func (o *datagramOrigin) receive(peer *datagramPeer, data []byte) []byte {
	m, err := coap.Parse(data)
	if err != nil {
		o.t.Errorf("the %s origin got no CoAP message: %v: %x", o.scheme, err, data)
		return nil
	}
	if m.Code == coap.Empty || m.Code>>5 != 0 {
		return nil
	}
	if said, ok := peer.answers[m.ID]; ok {
		return said
	}
	r := o.answer(peer, m)
	r.Type, r.ID, r.Token = coap.ACK, m.ID, m.Token
	if m.Type != coap.CON {
		r.Type = coap.NON
	}
	peer.answers[m.ID] = r.Bytes()
	delete(peer.answers, m.ID-512) // as numbers go round
	return peer.answers[m.ID]
}

func (o *datagramOrigin) answer(peer *datagramPeer, m *coap.Message) *coap.Message {
	o.mu.Lock()
	defer o.mu.Unlock()
	path := m.Path()
	if m.Code == coap.PUT {
		b, ok := m.Option(coap.Block1)
		if !ok {
			o.bodies[path] = m.Payload
			return &coap.Message{Code: coap.CodeOf(2, 4)}
		}
		num, more, szx := blockOf(b)
		if num == 0 {
			delete(peer.uploads, path)
		}
		if num*blockSize(szx) != len(peer.uploads[path]) {
			return &coap.Message{Code: coap.CodeOf(4, 8)}
		}
		peer.uploads[path] = append(peer.uploads[path], m.Payload...)
		r := &coap.Message{Code: coap.CodeOf(2, 31), Options: []coap.Option{blockOption(coap.Block1, num, more, szx)}}
		if !more {
			o.bodies[path] = peer.uploads[path]
			delete(peer.uploads, path)
			r.Code = coap.CodeOf(2, 4)
		}
		return r
	}
	body, ok := o.bodies[path]
	if !ok {
		return &coap.Message{Code: coap.CodeOf(4, 4)}
	}
	num, szx := 0, 6
	if b, ok := m.Option(coap.Block2); ok {
		n, _, s := blockOf(b)
		num, szx = n, min(s, 6)
	}
	at := min(num*blockSize(szx), len(body))
	end := min(at+blockSize(szx), len(body))
	r := &coap.Message{Code: coap.CodeOf(2, 5), Payload: body[at:end]}
	if end < len(body) || num > 0 {
		r.Options = []coap.Option{blockOption(coap.Block2, num, end < len(body), szx), coap.Opt(coap.ETag, strconv.Itoa(len(body)))}
	}
	return r
}

// keeper is a server that keeps bodies.
type keeper interface {
	uri(path string) string
	body(path string) []byte
	keep(path string, body []byte)
	drop()
}

// newKeeper starts a server of the tests' own over any transport, in a host; own is
// its certificate.
func newKeeper(t *testing.T, h *host, at netip.AddrPort, scheme string, own pair) keeper {
	t.Helper()
	switch scheme {
	case "coap":
		return newDatagramOrigin(t, h, at)
	case "coaps":
		return newDatagramOrigin(t, h, at, certificateOptions(t, own)...)
	}
	var l net.Listener
	var err error
	h.do(t, func() { l, err = net.Listen("tcp4", at.String()) })
	require.NoError(t, err)
	return newStreamOriginOn(t, l, scheme, own, 65536)
}

// newCarrier opens a client of the tests' own over any transport, in a host: over
// DTLS it has the key of gw, over TLS the certificate own.
func newCarrier(t *testing.T, h *host, to netip.AddrPort, scheme string, ca *certAuthority, own pair) carrier {
	t.Helper()
	switch scheme {
	case "coap":
		return newDatagramClient(t, h, to)
	case "coaps":
		return newDatagramClient(t, h, to, pskOptions("gw")...)
	}
	var secure *tls.Config
	if strings.HasPrefix(scheme, "coaps") {
		secure = tlsOf(t, ca, own, alpnOf(scheme))
	}
	return streamCarrier{newStreamClientBy(t, h.dialer(t), scheme, to, secure, 65536), bert}
}
