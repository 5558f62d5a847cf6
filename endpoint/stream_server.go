package endpoint

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log"
	"net"
	"net/netip"
	"sync"
	"time"

	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// ServerLimits bound the connections of a StreamServer.
type ServerLimits struct {
	// Connections is how many there may be in total.
	Connections int
	// PerPeer is how many one client address may have; an IPv6 client is known
	// by the first 64 bits of it.
	PerPeer int
	// Handshakes is how many may be between their acceptance and their CSM.
	Handshakes int
}

// DefaultServerLimits returns the documented defaults.
func DefaultServerLimits() ServerLimits {
	return ServerLimits{Connections: 4096, PerPeer: 64, Handshakes: 256}
}

// StreamServer serves CoAP over TCP, TLS and WebSocket (RFC 8323), on as many
// listeners as wanted; its limits count for all of them together. A connection
// beyond a limit is closed at once and counted: nobody waits for another one's
// handshake.
type StreamServer struct {
	StreamConfig
	limits ServerLimits

	mu         sync.Mutex
	open       int
	handshakes int
	peers      map[netip.Prefix]int
	proven     map[*Stream]struct{} // whose peers have proven who they are
}

// NewStreamServer returns a StreamServer.
func NewStreamServer(c StreamConfig, limits ServerLimits) *StreamServer {
	return &StreamServer{StreamConfig: c, limits: limits, peers: make(map[netip.Prefix]int), proven: make(map[*Stream]struct{})}
}

// Serve accepts connections until ctx ends, which closes the listener and, in an
// orderly way, the connections; it returns when all are gone. secure is nil for
// coap+tcp.
func (s *StreamServer) Serve(ctx context.Context, l net.Listener, secure *SecureServer) error {
	stop := context.AfterFunc(ctx, func() { _ = l.Close() })
	defer stop()
	var config *tls.Config
	if secure != nil {
		config = secure.forProtocol(alpnCoAP)
	}
	var mine sync.WaitGroup
	defer mine.Wait()
	var failing backoff
	for {
		raw, err := l.Accept()
		if err != nil {
			if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
				return nil
			}
			s.Log.Warn("accept failed", zap.Stringer("local", l.Addr()), zap.Error(err))
			if !failing.wait(ctx.Done()) {
				return nil
			}
			continue
		}
		failing.succeeded()
		place, ok := s.admit(addrPortOf(raw.RemoteAddr()))
		if !ok {
			_ = raw.Close()
			continue
		}
		mine.Go(func() {
			defer place.leave()
			defer func() { _ = raw.Close() }()
			s.serveConn(ctx, raw, config, place)
		})
	}
}

func (s *StreamServer) serveConn(ctx context.Context, raw net.Conn, config *tls.Config, place *place) {
	t := &netTransport{conn: raw, raw: raw}
	st := newStream(s.StreamConfig, s, t)
	st.raw, st.place, st.peer, st.local, st.scheme = raw, place, place.peer, addrPortOf(raw.LocalAddr()), "coap+tcp"
	if config != nil {
		st.scheme = "coaps+tcp"
		secured := tls.Server(raw, config)
		within, cancel := context.WithDeadline(ctx, place.until)
		err := secured.HandshakeContext(within)
		cancel()
		if err != nil {
			s.Stats.HandshakesFailed.Add(1)
			s.Log.Info("TLS handshake failed", zap.Stringer("peer", place.peer), zap.Error(err))
			return
		}
		state := secured.ConnectionState()
		t.conn, st.security = secured, tlsSecurity(&state)
	}
	s.carry(ctx, st)
}

// EndConnections ends the connections of peers whose proof does not count any
// more.
func (s *StreamServer) EndConnections(stale func(proven *exchange.Security) bool) {
	var ended []*Stream
	s.mu.Lock()
	for st := range s.proven {
		if stale(st.security) {
			ended = append(ended, st)
		}
	}
	s.mu.Unlock()
	for _, st := range ended {
		st.abort(errStaleProof.Error(), 0)
	}
	s.Engine.Flush()
}

// carry carries a connection to its end.
func (s *StreamServer) carry(ctx context.Context, st *Stream) {
	if st.security != nil {
		s.mu.Lock()
		s.proven[st] = struct{}{}
		s.mu.Unlock()
		defer func() {
			s.mu.Lock()
			delete(s.proven, st)
			s.mu.Unlock()
		}()
	}
	err := st.run(ctx, st.place.until)
	if ce := s.Log.Check(zap.DebugLevel, "connection ended"); ce != nil {
		if errors.Is(err, io.EOF) {
			err = nil
		}
		ce.Write(zap.Stringer("peer", st.peer), zap.NamedError("why", err))
	}
}

// ready implements streamOwner: the handshake is over.
func (s *StreamServer) ready(st *Stream) { st.place.settle() }

// response implements streamOwner: a server asks nobody.
func (s *StreamServer) response(*Stream, *wire.Message) bool { return false }

// busy implements streamOwner.
func (s *StreamServer) busy(*Stream) bool { return false }

// place is a connection's share of the limits.
type place struct {
	server *StreamServer
	peer   netip.AddrPort
	until  time.Time // when the handshake must be over
	raw    net.Conn  // of a WebSocket

	settled, left bool // guarded by server.mu
}

// admit gives a new connection its place, or counts its refusal.
func (s *StreamServer) admit(peer netip.AddrPort) (*place, bool) {
	key := peerPrefix(peer.Addr())
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.open >= s.limits.Connections || s.handshakes >= s.limits.Handshakes || s.peers[key] >= s.limits.PerPeer {
		s.Stats.Refused.Add(1)
		return nil, false
	}
	s.open++
	s.handshakes++
	s.peers[key]++
	s.Stats.Accepted.Add(1)
	s.Stats.Open.Add(1)
	return &place{server: s, peer: peer, until: time.Now().Add(s.Limits.Handshake)}, true
}

// peerPrefix is what of an address stands for one client.
func peerPrefix(a netip.Addr) netip.Prefix {
	bits := a.BitLen()
	if a.Is6() {
		bits = 64
	}
	p, _ := a.WithZone("").Prefix(bits)
	return p
}

// settle ends the handshake.
func (p *place) settle() {
	p.server.mu.Lock()
	defer p.server.mu.Unlock()
	if !p.settled {
		p.settled = true
		p.server.handshakes--
	}
}

// leave gives the place back.
func (p *place) leave() {
	p.settle()
	s := p.server
	s.mu.Lock()
	defer s.mu.Unlock()
	if p.left {
		return
	}
	p.left = true
	s.open--
	s.Stats.Open.Add(-1)
	key := peerPrefix(p.peer.Addr())
	if s.peers[key]--; s.peers[key] == 0 {
		delete(s.peers, key)
	}
}

// admittingListener holds the limits for connections that an HTTP server
// accepts.
type admittingListener struct {
	net.Listener
	server *StreamServer
}

// Accept implements net.Listener.
func (l *admittingListener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if place, ok := l.server.admit(addrPortOf(c.RemoteAddr())); ok {
			place.raw = c
			return &placedConn{Conn: c, place: place}, nil
		}
		_ = c.Close()
	}
}

// placedConn gives its place back when it is closed.
type placedConn struct {
	net.Conn
	place *place
}

// Close implements net.Conn.
func (c *placedConn) Close() error {
	err := c.Conn.Close()
	c.place.leave()
	return err
}

type placeKey struct{}

// withPlace tells the HTTP handler the place of its connection.
func withPlace(ctx context.Context, c net.Conn) context.Context {
	if t, ok := c.(*tls.Conn); ok {
		c = t.NetConn()
	}
	if p, ok := c.(*placedConn); ok {
		return context.WithValue(ctx, placeKey{}, p.place)
	}
	return ctx
}

// quietLog swallows what net/http has to say about strangers' handshakes.
func quietLog() *log.Logger { return log.New(io.Discard, "", 0) }

// addrPortOf is the address of a TCP connection, without IPv4-mapping; invalid
// for another kind.
func addrPortOf(a net.Addr) netip.AddrPort {
	t, ok := a.(*net.TCPAddr)
	if !ok {
		return netip.AddrPort{}
	}
	p := t.AddrPort()
	return netip.AddrPortFrom(p.Addr().Unmap(), p.Port())
}
