package httpbridge

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go/http3"
	"go.uber.org/zap"
)

// ListenConfig says where and how a Listener takes connections. Zero values are
// replaced by the defaults.
type ListenConfig struct {
	Addr netip.AddrPort
	// TLS makes it https: HTTP/2 and HTTP/1.1 over TCP, HTTP/3 over UDP at the
	// same port. Nil: plain HTTP/1.1.
	TLS   *TLSConfig
	Front *Front
	// TCP and UDP are sockets that are open at Addr already; nil: they are opened.
	// The Listener owns them.
	TCP *net.TCPListener
	UDP net.PacketConn
	// MaxHeader is the longest request header in bytes, 16 KiB (HC-97).
	MaxHeader int
	// MaxConns and MaxPeerConns bound the open connections, 4096, and those of
	// one address, 256; more are closed at once.
	MaxConns, MaxPeerConns int
	// MaxStreams bounds the requests at a time on an HTTP/2 or HTTP/3
	// connection, 100.
	MaxStreams int
	// HeaderTimeout is how long a TLS handshake or a request header may take,
	// 10 s, IdleTimeout how long a connection may wait for a request, 60 s.
	HeaderTimeout, IdleTimeout time.Duration
	// Grace is how long requests may go on after the context has ended.
	Grace time.Duration
	Log   *zap.Logger
}

// TLSConfig is what a Listener needs for TLS, which is 1.3 always.
type TLSConfig struct {
	// Config returns the certificates of this server and the authorities whose
	// client certificates are verified (HC-100), as of now: it is called for every
	// connection.
	Config func() *tls.Config
	// NoHTTP3 leaves UDP alone.
	NoHTTP3 bool
}

func (c ListenConfig) withDefaults() ListenConfig {
	for _, d := range []struct {
		value    *int
		standard int
	}{{&c.MaxHeader, 16 << 10}, {&c.MaxConns, 4096}, {&c.MaxPeerConns, 256}, {&c.MaxStreams, 100}} {
		if *d.value <= 0 {
			*d.value = d.standard
		}
	}
	for _, d := range []struct {
		value    *time.Duration
		standard time.Duration
	}{{&c.HeaderTimeout, 10 * time.Second}, {&c.IdleTimeout, time.Minute}} {
		if *d.value <= 0 {
			*d.value = d.standard
		}
	}
	return c
}

// Listener takes HTTP connections at one address.
type Listener struct {
	config ListenConfig
	tcp    *net.TCPListener
	udp    net.PacketConn
	tls    *tls.Config
	conns  places
	// streams are those of HTTP/3 that wait for a header or are served: each costs
	// what a request costs before any limit of the front can tell.
	streams places
	altSvc  string
	front   atomic.Pointer[Front]
	active  sync.WaitGroup // requests
}

// Listen opens the sockets. Serve closes them.
func Listen(config ListenConfig) (*Listener, error) {
	c := config.withDefaults()
	tcp, udp, err := c.sockets()
	if err != nil {
		return nil, err
	}
	stats, limits := c.Front.Stats, &c.Front.Limits
	l := &Listener{config: c, tcp: tcp, udp: udp,
		conns:   places{max: c.MaxConns, maxPeer: c.MaxPeerConns, open: &stats.Connections, refused: &stats.RefusedConns},
		streams: places{max: 2 * limits.Exchanges, maxPeer: 4 * limits.ClientExchanges, open: &stats.Streams, refused: &stats.RefusedStreams}}
	l.front.Store(c.Front)
	if c.TLS == nil {
		return l, nil
	}
	protocols := []string{"h2", "http/1.1"}
	l.tls = &tls.Config{MinVersion: tls.VersionTLS13, NextProtos: protocols, GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
		now := c.TLS.Config().Clone()
		now.MinVersion, now.NextProtos = tls.VersionTLS13, protocols
		return now, nil
	}}
	if udp != nil {
		l.altSvc = `h3=":` + strconv.Itoa(int(l.Addr().Port())) + `"; ma=86400`
	}
	return l, nil
}

// sockets are those that were passed, or new ones: for TCP and, with HTTP/3, for UDP
// at the same port, else nil. Where any port will do, one is looked for that is free
// for both.
func (c *ListenConfig) sockets() (*net.TCPListener, net.PacketConn, error) {
	http3 := c.TLS != nil && !c.TLS.NoHTTP3
	for tries := 1; ; tries++ {
		tcp := c.TCP
		var err error
		if tcp == nil {
			if tcp, err = net.ListenTCP("tcp", net.TCPAddrFromAddrPort(c.Addr)); err != nil {
				return nil, nil, fmt.Errorf("listen: %w", err)
			}
		}
		if !http3 || c.UDP != nil {
			return tcp, c.UDP, nil
		}
		at := tcp.Addr().(*net.TCPAddr)
		udp, err := net.ListenUDP("udp", &net.UDPAddr{IP: at.IP, Port: at.Port, Zone: at.Zone})
		if err == nil {
			return tcp, udp, nil
		}
		_ = tcp.Close()
		if c.TCP != nil || c.Addr.Port() != 0 || tries == 10 {
			return nil, nil, fmt.Errorf("listen for HTTP/3: %w", err)
		}
	}
}

// Addr is the address listened on.
func (l *Listener) Addr() netip.AddrPort {
	a := l.tcp.Addr().(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

// To makes further requests go to f, a Successor of the Front before.
func (l *Listener) To(f *Front) { l.front.Store(f) }

// Close closes the sockets of a Listener that is not to serve.
func (l *Listener) Close() error {
	err := l.tcp.Close()
	if l.udp != nil {
		err = errors.Join(err, l.udp.Close())
	}
	return err
}

// Serve takes connections until ctx ends or a socket fails; then it waits for
// the requests under way, for the time of Grace at most, and for all of its
// goroutines.
func (l *Listener) Serve(ctx context.Context) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	s := l.newServers()
	var wg sync.WaitGroup
	failed := make(chan error, 4)
	run := func(f func() error) {
		wg.Go(func() {
			if err := f(); err != nil && ctx.Err() == nil && !errors.Is(err, http.ErrServerClosed) {
				failed <- err
				cancel()
			}
		})
	}
	h1, h2 := newHandOver(l.tcp.Addr()), newHandOver(l.tcp.Addr())
	run(func() error { return s.h1.Serve(h1) })
	if l.tls != nil {
		run(func() error { return s.h2.Serve(h2) })
	}
	run(func() error { return l.accept(ctx, &wg, h1, h2) })
	over, cut := context.WithCancel(context.Background()) //nolint:contextcheck // it ends after the other
	defer cut()
	if s.h3 != nil {
		run(func() error { return l.serveQUIC(ctx, over, s.h3) })
	}
	<-ctx.Done()
	_ = l.tcp.Close()
	timer := time.AfterFunc(l.config.Grace, cut)
	defer timer.Stop()
	s.stop(over) //nolint:contextcheck // the context has ended
	wg.Wait()
	l.active.Wait()
	if l.udp != nil {
		_ = l.udp.Close()
	}
	select {
	case err := <-failed:
		return err
	default:
		return nil
	}
}

// servers are the servers for the versions of HTTP. HTTP/1.1 has one of its own
// because its connections go through a guard.
type servers struct {
	h1, h2 *http.Server
	h3     *http3.Server
}

func (l *Listener) newServers() servers {
	c := &l.config
	plain := func() *http.Server {
		return &http.Server{Handler: l, ReadHeaderTimeout: c.HeaderTimeout, IdleTimeout: c.IdleTimeout,
			MaxHeaderBytes: c.MaxHeader, ErrorLog: quietLog(c.Log), DisableGeneralOptionsHandler: true}
	}
	s := servers{h1: plain(), h2: plain()}
	s.h1.ConnContext = withGuard
	s.h1.Protocols = new(http.Protocols)
	s.h1.Protocols.SetHTTP1(true)
	s.h2.TLSConfig = l.tls.Clone() // the server adds to it
	s.h2.Protocols = new(http.Protocols)
	s.h2.Protocols.SetHTTP2(true)
	s.h2.HTTP2 = &http.HTTP2Config{MaxConcurrentStreams: c.MaxStreams, WriteByteTimeout: c.Front.Limits.SendTimeout,
		SendPingTimeout: c.IdleTimeout, PingTimeout: c.HeaderTimeout}
	if l.udp != nil {
		s.h3 = &http3.Server{Handler: l, MaxHeaderBytes: c.MaxHeader}
	}
	return s
}

// ServeHTTP implements http.Handler for the servers of l. It tells clients that
// HTTP/3 is there, too (RFC 7838), and keeps Serve from returning before the
// request has ended.
func (l *Listener) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	l.active.Add(1)
	defer l.active.Done()
	if l.altSvc != "" && r.ProtoMajor < 3 {
		w.Header()["Alt-Svc"] = []string{l.altSvc}
	}
	l.front.Load().ServeHTTP(w, r)
}

// quietLog keeps what clients do wrong out of the operator's sight unless asked.
func quietLog(l *zap.Logger) *log.Logger {
	std, err := zap.NewStdLogAt(l, zap.DebugLevel)
	if err != nil {
		return nil
	}
	return std
}

// stop ends the servers over TCP: gracefully until over ends.
func (s *servers) stop(over context.Context) {
	var wg sync.WaitGroup
	for _, h := range []*http.Server{s.h1, s.h2} {
		wg.Go(func() {
			if h.Shutdown(over) != nil {
				_ = h.Close()
			}
		})
	}
	wg.Wait()
}

// accept takes TCP connections and hands each to the server for its version.
func (l *Listener) accept(ctx context.Context, wg *sync.WaitGroup, h1, h2 *handOver) error {
	for {
		c, err := l.tcp.AcceptTCP()
		if err != nil {
			var n net.Error
			if errors.As(err, &n) && n.Temporary() { //nolint:staticcheck // what net/http does: out of descriptors passes
				select {
				case <-time.After(5 * time.Millisecond):
					continue
				case <-ctx.Done():
				}
			}
			return err
		}
		peer := addrOf(c.RemoteAddr().String()).Addr()
		release, ok := l.conns.take(peer)
		if !ok {
			_ = c.Close()
			continue
		}
		socket, err := newTCPConn(c)
		if err != nil {
			_ = c.Close()
			release()
			continue
		}
		if l.tls == nil {
			h1.give(l.guard(socket, socket, release))
			continue
		}
		wg.Go(func() { l.handshake(ctx, socket, release, h1, h2) })
	}
}

// guard is that of a connection for HTTP/1 over a socket.
func (l *Listener) guard(c net.Conn, socket *tcpConn, released func()) *guard {
	return newGuard(c, socket, guardConfig{maxHead: l.config.MaxHeader, sendTime: l.config.Front.Limits.SendTimeout,
		refused: &l.config.Front.Stats.Malformed, released: released})
}

func (l *Listener) handshake(ctx context.Context, c *tcpConn, release func(), h1, h2 *handOver) {
	t := tls.Server(&releasing{Conn: c, release: sync.OnceFunc(release)}, l.tls)
	ctx, cancel := context.WithTimeout(ctx, l.config.HeaderTimeout)
	defer cancel()
	if err := t.HandshakeContext(ctx); err != nil {
		l.config.Log.Debug("TLS handshake failed", zap.Stringer("client", c.RemoteAddr()), zap.Error(err))
		_ = t.Close()
		return
	}
	if t.ConnectionState().NegotiatedProtocol == "h2" {
		h2.give(t)
		return
	}
	h1.give(secureGuard{l.guard(t, c, func() {}), t})
}
