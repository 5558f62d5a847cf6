package endpoint

import (
	"bytes"
	"container/list"
	"context"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/pion/transport/v5/deadline"
	"go.uber.org/zap"

	"coapproxy/exchange"
)

// dtlsSession is one DTLS association. To the DTLS library it is the
// net.PacketConn that carries its records.
type dtlsSession struct {
	owner *DTLSConn
	// addr is the address the handshake came from or went to, key stands for the
	// session on the message layer.
	addr, key netip.AddrPort
	path      Path
	name      string // of the server, see Peer
	in        chan record
	ctx       context.Context // ends with the session
	cancel    context.CancelFunc
	deadline  *deadline.Deadline
	open      openRequests
	// credentials of this session, set by its goroutine when it begins.
	credentials DTLSCredentials
	// identity is that used with a server, for a pre-shared key.
	identity string
	// claimed is the beginning of the PSK identity that a client has named, for
	// the log; nil until it has.
	claimed atomic.Pointer[claim]
	// security and leaf are set before the first datagram is delivered.
	security *exchange.Security
	leaf     *x509.Certificate

	// guarded by owner.mu
	proven        bool // the peer's address is no forgery
	counted       bool // in owner.peers, and in owner.handshakes until established
	isEstablished bool
	heard         time.Time
	asked         time.Time     // with a server: when it was first written to after that
	used          time.Time     // with a server: when it was last written to
	element       *list.Element // in owner.unproven, owner.proving or owner.silent
	opening       bool          // counted in owner.opening
	begun         time.Time     // when it was made, and then when the address was proven
	cid           connectionID

	// apart: it has a socket of its own, see DTLSConfig.Dial.
	apart bool
	// attempt counts the handshakes begun for what waits; answered: the server has said
	// something in this one.
	attempt  int
	answered atomic.Bool

	// replaced: another session with the server has taken its place, and what was
	// asked in this one goes on there.
	replaced atomic.Bool

	mu      sync.Mutex
	socket  net.Conn   // of a session apart, nil before it is open
	conn    *dtls.Conn // when the handshake is over
	cause   error
	ended   bool
	cookie  []byte            // in our HelloVerifyRequest
	waiting []waitingDatagram // for the handshake
}

// waitingDatagram is one that waits for a handshake, and since when.
type waitingDatagram struct {
	data  []byte
	since time.Time
}

// record is a datagram of records with the address it came from.
type record struct {
	data []byte
	addr netip.AddrPort
}

// newSession makes a session that is not entered anywhere.
func (d *DTLSConn) newSession(addr netip.AddrPort, path Path, name string) *dtlsSession {
	s := &dtlsSession{owner: d, addr: addr, key: sessionKey(d.Engine.NextID()), path: path, name: name,
		in: make(chan record, dtlsInbound), deadline: deadline.New()}
	s.ctx, s.cancel = context.WithCancel(context.Background())
	return s
}

// sessionKey is an address in 100::/64 (RFC 6666).
func sessionKey(id uint64) netip.AddrPort {
	a := [16]byte{0: 1}
	binary.BigEndian.PutUint64(a[8:], id)
	return netip.AddrPortFrom(netip.AddrFrom16(a), 0)
}

// serve carries a client's session to its end.
func (s *dtlsSession) serve() {
	d := s.owner
	s.credentials = d.Credentials()
	conn, err := dtls.ServerWithOptions(s, dtlsAddr(s.addr), d.serverOptions(s)...)
	s.run(conn, err)
}

// dial carries a session with a server to its end.
func (s *dtlsSession) dial() {
	d := s.owner
	s.credentials = d.Credentials()
	options, err := d.clientOptions(s)
	if err == nil && s.apart {
		err = s.openSocket()
	}
	var conn *dtls.Conn
	if err == nil {
		conn, err = dtls.ClientWithOptions(s, dtlsAddr(s.addr), options...)
	}
	s.run(conn, err)
}

func (s *dtlsSession) run(conn *dtls.Conn, err error) {
	d := s.owner
	if err == nil {
		ctx, cancel := context.WithTimeout(s.ctx, d.Limits.Handshake)
		err = conn.HandshakeContext(ctx)
		cancel()
	}
	established := err == nil
	if established {
		established, err = s.begin(conn)
	}
	if established {
		err = s.read(conn)
	}
	repeated := !established && d.client && errors.Is(err, context.DeadlineExceeded) && d.again(s)
	s.end(err)
	if conn != nil {
		_ = conn.Close()
	}
	_ = s.Close()
	s.mu.Lock()
	err, waiting := s.cause, s.waiting
	s.waiting = nil
	s.mu.Unlock()
	ended := time.Now() // before anybody can open the next one
	if !repeated {
		d.remove(s, err)
	}
	if !established {
		write := d.Log.Info
		if !d.client && !d.isProven(s) { // anybody can make any number of these; they are counted
			write = d.Log.Debug
		}
		write("DTLS handshake failed", append(s.suspicion(err), zap.Stringer("peer", s.addr), zap.Bool("again", repeated), zap.Error(err))...)
	}
	if d.client {
		if s.identity != "" && !established && errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("%s: %w", otherKey, err)
		}
		peer := Peer{Addr: s.addr, name: s.name}
		for _, w := range waiting {
			buf := dtlsBuffers.Get().(*[]byte)
			*buf = append((*buf)[:0], w.data...)
			d.deliver(received{peer: peer, data: buf, undeliverable: err})
		}
		if established && !s.replaced.Load() {
			d.deliver(received{peer: peer, gone: &sessionEnd{err, ended}})
		}
	}
	s.open.cancelAll() // GP-44
	d.Engine.Flush()
}

// otherKey is what a handshake with a server and a pre-shared key has failed of that
// came to no end.
const otherKey = "the server has another key, or is silent"

// claim is what a client says it is, before it has proven it.
type claim struct {
	identity string
	known    bool // there is a key for it
}

// suspicion is what the log says of a failed handshake with a pre-shared key
// beside the error: two sides with different keys cannot read each other, which
// looks like silence to both.
func (s *dtlsSession) suspicion(err error) []zap.Field {
	late := errors.Is(err, context.DeadlineExceeded)
	if c := s.claimed.Load(); c != nil {
		switch {
		case !c.known:
			return []zap.Field{zap.String("identity", c.identity), zap.String("why", "no key has this identity")}
		case late:
			return []zap.Field{zap.String("identity", c.identity), zap.String("why", "the client has another key, or fell silent")}
		}
		return []zap.Field{zap.String("identity", c.identity)}
	}
	if s.identity != "" && late {
		return []zap.Field{zap.String("identity", s.identity), zap.String("why", otherKey)}
	}
	return nil
}

// begin takes note of who the peer is and sends what has waited.
func (s *dtlsSession) begin(conn *dtls.Conn) (bool, error) {
	d := s.owner
	state, ok := conn.ConnectionState()
	if !ok {
		return false, errNoSession
	}
	s.security, s.leaf = s.judge(&state)
	d.establish(s, conn)
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return true, s.cause
	}
	s.conn = conn
	waiting := s.waiting
	s.waiting = nil
	s.mu.Unlock()
	for _, w := range waiting {
		if _, err := conn.Write(w.data); err != nil {
			return true, err
		}
	}
	return true, nil
}

// read delivers datagrams until the session ends.
func (s *dtlsSession) read(conn *dtls.Conn) error {
	d := s.owner
	for {
		buf := dtlsBuffers.Get().(*[]byte)
		*buf = (*buf)[:cap(*buf)]
		n, err := conn.Read(*buf)
		if err != nil {
			dtlsBuffers.Put(buf)
			if errors.Is(err, io.EOF) {
				return errSessionClosed
			}
			return err
		}
		*buf = (*buf)[:n]
		peer := Peer{Addr: s.addr, name: s.name}
		if !d.client {
			peer = Peer{Addr: addrOf(conn.RemoteAddr()), session: s}
		}
		d.deliver(received{peer: peer, path: s.path, data: buf})
	}
}

var errSessionClosed = errors.New("DTLS session closed by peer")

// at is the peer's present address.
func (s *dtlsSession) at() netip.AddrPort {
	s.mu.Lock()
	conn := s.conn
	s.mu.Unlock()
	if conn == nil {
		return s.addr
	}
	return addrOf(conn.RemoteAddr())
}

// write sends a datagram in an established session.
func (s *dtlsSession) write(data []byte) error {
	s.mu.Lock()
	conn, ended := s.conn, s.ended
	s.mu.Unlock()
	if conn == nil || ended {
		return errNoSession
	}
	_, err := conn.Write(data)
	return err
}

// writeOrWait is write for a session that may be in its handshake. What waits
// already need not wait twice, as a message that is repeated.
func (s *dtlsSession) writeOrWait(data []byte) error {
	s.mu.Lock()
	if s.conn == nil && !s.ended {
		defer s.mu.Unlock()
		if slices.ContainsFunc(s.waiting, func(w waitingDatagram) bool { return bytes.Equal(w.data, data) }) {
			return nil
		}
		if len(s.waiting) >= s.owner.Limits.Queue {
			return os.ErrDeadlineExceeded
		}
		s.waiting = append(s.waiting, waitingDatagram{bytes.Clone(data), time.Now()})
		return nil
	}
	s.mu.Unlock()
	return s.write(data)
}

// end begins to end the session. It may wait for room in a socket buffer.
func (s *dtlsSession) end(cause error) {
	s.mu.Lock()
	if s.cause == nil {
		s.cause = cause
	}
	conn, first := s.conn, !s.ended
	s.ended = true
	s.mu.Unlock()
	if first && conn != nil {
		_ = conn.Close() // says goodbye, then closes s
		return
	}
	_ = s.Close()
}

// endLater is end for a caller that must not wait or holds owner.mu.
func (s *dtlsSession) endLater(cause error) {
	s.owner.wg.Go(func() { s.end(cause) })
}

// push hands over a datagram of records, which is copied; with a full queue it
// is lost, as datagrams are.
func (s *dtlsSession) push(data []byte, addr netip.AddrPort) {
	s.answered.Store(true)
	select {
	case s.in <- record{bytes.Clone(data), addr}:
	default:
		s.owner.Stats.Dropped.Add(1)
	}
}

// hasCookie reports whether the datagram shows the cookie we sent.
func (s *dtlsSession) hasCookie(data []byte) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.cookie) > 0 && bytes.Contains(data, s.cookie)
}

// keepCookie remembers the cookie of a HelloVerifyRequest (RFC 6347 §4.2.1):
// record and handshake header, version, length, cookie.
func (s *dtlsSession) keepCookie(data []byte) {
	const (
		helloVerifyRequest = 3
		at                 = recordHeader + 12 + 2
	)
	if len(data) <= at || data[0] != recordHandshake || data[recordHeader] != helloVerifyRequest {
		return
	}
	n := int(data[at])
	if len(data) < at+1+n {
		return
	}
	s.mu.Lock()
	s.cookie = bytes.Clone(data[at+1 : at+1+n])
	s.mu.Unlock()
}

// ReadFrom implements net.PacketConn.
func (s *dtlsSession) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case <-s.deadline.Done():
		return 0, nil, os.ErrDeadlineExceeded
	default:
	}
	select {
	case r := <-s.in:
		return copy(b, r.data), dtlsAddr(r.addr), nil
	case <-s.ctx.Done():
		return 0, nil, net.ErrClosed
	case <-s.deadline.Done():
		return 0, nil, os.ErrDeadlineExceeded
	}
}

// WriteTo implements net.PacketConn.
func (s *dtlsSession) WriteTo(b []byte, addr net.Addr) (int, error) {
	if s.socket != nil { // set before anything is written
		return s.socket.Write(b)
	}
	s.keepCookie(b)
	if err := s.owner.send(addrOf(addr), s.path, b); err != nil {
		return 0, err
	}
	return len(b), nil
}

// Close implements net.PacketConn.
func (s *dtlsSession) Close() error {
	s.cancel()
	s.mu.Lock()
	socket := s.socket
	s.mu.Unlock()
	if socket != nil {
		return socket.Close()
	}
	return nil
}

// LocalAddr implements net.PacketConn.
func (s *dtlsSession) LocalAddr() net.Addr { return dtlsAddr(s.owner.LocalAddr()) }

// SetDeadline implements net.PacketConn.
func (s *dtlsSession) SetDeadline(t time.Time) error { return s.SetReadDeadline(t) }

// SetReadDeadline implements net.PacketConn.
func (s *dtlsSession) SetReadDeadline(t time.Time) error {
	s.deadline.Set(t)
	return nil
}

// SetWriteDeadline implements net.PacketConn; writes hardly wait.
func (s *dtlsSession) SetWriteDeadline(time.Time) error { return nil }

// dtlsAddr is a net.Addr that can be compared.
type dtlsAddr netip.AddrPort

// Network implements net.Addr.
func (dtlsAddr) Network() string { return "udp" }

// String implements net.Addr.
func (a dtlsAddr) String() string { return netip.AddrPort(a).String() }

func addrOf(a net.Addr) netip.AddrPort {
	d, _ := a.(dtlsAddr)
	return netip.AddrPort(d)
}
