package endpoint

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
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

	"coapproxy/exchange"
)

// A server that has another certificate for each of its names has a session for
// each; names that one certificate is for share one (FP-34).
func TestDTLSNames(t *testing.T) {
	ca := newAuthority(t)
	cert := func(names ...string) tls.Certificate {
		return ca.issue(names[0], x509.ExtKeyUsageServerAuth, time.Now().Add(time.Hour), names[1:]...)
	}
	b := newDTLSBench(t, DTLSCredentials{Certificates: []tls.Certificate{cert("a.example", "alias.example"), cert("b.example"), cert("c.example")}}, nil)
	leg, stats := newDTLSLeg(t, DTLSCredentials{Authorities: ca.pool()})
	var all []*outcome
	for i := range 12 { // at the same time, and so in their handshakes
		all = append(all, askNamed(leg, b.addr(), []string{"a.example", "b.example", "c.example"}[i%3], fmt.Sprint(i)))
	}
	for i, o := range all {
		require.Equal(t, fmt.Sprint(i), string(o.content(t).Payload))
	}
	require.EqualValues(t, 3, stats.Established.Load())
	require.Equal(t, "alias", string(askNamed(leg, b.addr(), "alias.example", "alias").content(t).Payload))
	require.EqualValues(t, 3, stats.Established.Load())
	require.Equal(t, exchange.Unreachable, askNamed(leg, b.addr(), "foreign.example", "").failure(t).Reason)
	require.Equal(t, "still", string(askNamed(leg, b.addr(), "a.example", "still").content(t).Payload))
	require.EqualValues(t, 3, stats.Established.Load())
	require.Zero(t, leg.Queued())
}

// Everything that one pre-shared key is for shares a session, from its handshake on.
func TestDTLSNamesOfOneKey(t *testing.T) {
	psk := newDTLSBench(t, DTLSCredentials{Key: meterKey}, nil)
	keyed, stats := newDTLSLeg(t, DTLSCredentials{KeyFor: func(netip.AddrPort, string) (string, []byte, bool) { return "meter", []byte("secret"), true }})
	first, second := askNamed(keyed, psk.addr(), "", "1"), askNamed(keyed, psk.addr(), "x.example", "2")
	require.Equal(t, "1", string(first.content(t).Payload))
	require.Equal(t, "2", string(second.content(t).Payload))
	require.EqualValues(t, 1, stats.Established.Load())
}

// Names beyond the bound are refused while all of it is in use, and take the place of
// the one that was not used for the longest time.
func TestDTLSNamesAreBounded(t *testing.T) {
	leg, _ := newDTLSLeg(t, DTLSCredentials{})
	server, now := netip.MustParseAddrPort("192.0.2.1:5684"), time.Now()
	seen := make(map[*dtlsLane]bool)
	for i := range maxNames {
		lane, err := leg.laneOf(server, fmt.Sprint(i), now.Add(time.Duration(i)*time.Second))
		require.NoError(t, err)
		seen[lane] = true
	}
	require.Len(t, seen, maxNames)
	_, err := leg.laneOf(server, "more", now.Add(time.Minute-time.Second))
	require.Equal(t, errTooManyNames, err)
	first, err := leg.laneOf(server, "0", now.Add(time.Minute))
	require.NoError(t, err)
	lane, err := leg.laneOf(server, "more", now.Add(time.Minute+time.Second))
	require.NoError(t, err)
	require.NotEqual(t, first, lane)
	require.Equal(t, leg.lanes[1], lane)
	other, err := leg.laneOf(netip.MustParseAddrPort("192.0.2.2:5684"), "1", now)
	require.NoError(t, err)
	require.Equal(t, leg.lanes[0], other)
}

// lossyConn loses what it is given while lost says so.
type lossyConn struct {
	PacketConn
	lost func() bool
}

func (c lossyConn) WriteBatch(batch []Datagram) (int, error) {
	if c.lost() {
		return len(batch), nil
	}
	return c.PacketConn.WriteBatch(batch)
}

type lossySocket struct {
	net.Conn
	lost func() bool
}

func (c lossySocket) Write(b []byte) (int, error) {
	if c.lost() {
		return len(b), nil
	}
	return c.Conn.Write(b)
}

// A server that does not know that its session has ended, and takes a new ClientHello
// from the port of that for noise, is reached from another port.
func TestDTLSServerRemembers(t *testing.T) {
	t.Cleanup(func() { goleak.VerifyNone(t) })
	l, err := coapnet.NewDTLSListener("udp4", "127.0.0.1:0", coapnet.NewDTLSServerOptions(piondtls.WithPSK(func([]byte) ([]byte, error) { return []byte("secret"), nil }),
		piondtls.WithCipherSuites(piondtls.TLS_PSK_WITH_AES_128_CCM_8), piondtls.WithLoggerFactory(silentLog())))
	require.NoError(t, err)
	router := mux.NewRouter()
	router.DefaultHandleFunc(func(w mux.ResponseWriter, r *mux.Message) {
		if body, _ := r.ReadBody(); string(body) != "hang" {
			_ = w.SetResponse(codes.Content, message.TextPlain, bytes.NewReader(body))
		}
	})
	s := dtls.NewServer(quietPeer, options.WithMux(router))
	done := make(chan struct{})
	go func() { defer close(done); _ = s.Serve(l) }()
	defer func() { s.Stop(); <-done; _ = l.Close() }()

	var lost atomic.Bool
	var dialled atomic.Int32
	leg, stats := newDTLSLeg(t, DTLSCredentials{KeyFor: func(netip.AddrPort, string) (string, []byte, bool) { return "meter", []byte("secret"), true }}, func(c *DTLSConfig) {
		conn, err := ListenUDP(t.Context(), netip.AddrPortFrom(loopback, 0), UDPOptions{Errors: true})
		require.NoError(t, err)
		c.Conn = lossyConn{conn, lost.Load}
		c.Limits.Handshake = 10 * time.Second
		c.Dial = func(ctx context.Context, server netip.AddrPort) (net.Conn, error) {
			dialled.Add(1)
			socket, err := (&net.Dialer{}).DialContext(ctx, "udp", server.String())
			return lossySocket{socket, lost.Load}, err
		}
	})
	at := l.Addr().String()
	require.Equal(t, "one", string(askDTLS(leg, at, "one").content(t).Payload))
	for _, text := range []string{"two", "three"} {
		hanging := askDTLS(leg, at, "hang") // until the end of the session is known
		lost.Store(true)                    // so is our goodbye
		conn := leg.lanes[0].conns[0]
		conn.at(netip.MustParseAddrPort(at)).end(errServerSilent)
		require.Equal(t, exchange.Unreachable, hanging.failure(t).Reason)
		lost.Store(false)
		require.Equal(t, text, string(askDTLS(leg, at, text).content(t).Payload))
	}
	require.EqualValues(t, 2, dialled.Load())
	require.EqualValues(t, 3, stats.Established.Load())
	require.Zero(t, stats.HandshakesRepeated.Load())
}

// A handshake that the network eats is begun anew while a request waits, and not for
// longer.
func TestDTLSHandshakeRepeated(t *testing.T) {
	b := newDTLSBench(t, DTLSCredentials{Key: meterKey}, nil)
	key := DTLSCredentials{KeyFor: func(netip.AddrPort, string) (string, []byte, bool) { return "meter", []byte("secret"), true }}
	open := func(lost func(s *DTLSStats) bool, change func(*DTLSLimits)) (*DTLSLeg, *DTLSStats) {
		return newDTLSLeg(t, key, func(c *DTLSConfig) {
			conn, err := ListenUDP(t.Context(), netip.AddrPortFrom(loopback, 0), UDPOptions{Errors: true})
			require.NoError(t, err)
			c.Conn = lossyConn{conn, func() bool { return lost(c.Stats) }}
			c.Dial = func(ctx context.Context, server netip.AddrPort) (net.Conn, error) {
				socket, err := (&net.Dialer{}).DialContext(ctx, "udp", server.String())
				return lossySocket{socket, func() bool { return lost(c.Stats) }}, err
			}
			c.Limits.Handshake = 300 * time.Millisecond
			if change != nil {
				change(&c.Limits)
			}
		})
	}
	leg, stats := open(func(s *DTLSStats) bool { return s.HandshakesRepeated.Load() < 2 }, nil)
	require.Equal(t, "x", string(askDTLS(leg, b.addr(), "x").content(t).Payload))
	require.EqualValues(t, 2, stats.HandshakesRepeated.Load())
	require.EqualValues(t, 3, stats.Handshakes.Load())
	require.EqualValues(t, 2, stats.HandshakesFailed.Load())
	require.Equal(t, 1, b.handler.served(), "a message that was repeated meanwhile went out once")

	leg, stats = open(func(*DTLSStats) bool { return true }, func(l *DTLSLimits) { l.Wait = 500 * time.Millisecond })
	require.Equal(t, exchange.Unreachable, askDTLS(leg, b.addr(), "x").failure(t).Reason)
	require.EqualValues(t, 1, stats.HandshakesRepeated.Load())
}
