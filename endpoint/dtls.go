package endpoint

import (
	"container/list"
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"go.uber.org/zap"

	"coapproxy/exchange"
)

// DTLSConfig says how a DTLSConn behaves.
type DTLSConfig struct {
	// Conn carries the records; the DTLSConn owns it.
	Conn   PacketConn
	Engine *exchange.Engine
	// Credentials returns the own ones and those that peers are judged by, as of
	// now: it is asked for each session, by its goroutine.
	Credentials func() DTLSCredentials
	// Dial opens a socket for one session with a server, from a port that is not that of
	// Conn, for when the server may still remember another session with it: such ones
	// take what is new for noise. Nil: Conn is used all the same.
	Dial   func(ctx context.Context, server netip.AddrPort) (net.Conn, error)
	Limits DTLSLimits
	Stats  *DTLSStats
	Log    *zap.Logger
}

// DTLSLimits bound what sessions may cost.
type DTLSLimits struct {
	// Sessions is how many there may be. When there are so many, the one that was
	// silent for the longest time, and for a minute at least, gives way.
	Sessions int
	// PerPeer is how many sessions and handshakes of proven address one client
	// address may have; an IPv6 client is known by the first 64 bits of it.
	PerPeer int
	// Handshakes is how many may be under way with clients that have proven their
	// address by a cookie, and how many, of two kinds, with such that have not: see
	// accept, and makeWay for those that have. Once as many more may be ending.
	Handshakes int
	// Handshake is how long one may take.
	Handshake time.Duration
	// Wait is how long a datagram may have waited for a server when another handshake
	// is begun in place of one that took too long.
	Wait time.Duration
	// Idle is how long a session is kept without a datagram of the peer.
	Idle time.Duration
	// Queue is how many datagrams may wait for the handshake with a server.
	Queue int
	// RetryMin and RetryMax bound the pause after a handshake with a server that
	// failed; it doubles each time.
	RetryMin, RetryMax time.Duration
}

// DefaultDTLSLimits returns the documented defaults.
func DefaultDTLSLimits() DTLSLimits {
	return DTLSLimits{Sessions: 4096, PerPeer: 64, Handshakes: 256, Handshake: 20 * time.Second, Wait: 75 * time.Second,
		Idle: 24 * time.Hour, Queue: 64, RetryMin: time.Second, RetryMax: time.Minute}
}

// DTLSConn is a PacketConn whose datagrams travel in DTLS 1.2 sessions. As a
// server it takes sessions from clients, whose Peer then stands for the session:
// it says what the client has proven and survives a change of its address when
// both sides use a Connection ID (RFC 9146). As a client it opens a session with a
// server when a datagram for it is written, which waits for the handshake;
// datagrams that cannot be delivered come back as undeliverable.
//
// One goroutine reads records, and each session has one of its own, so that a
// handshake holds up nobody else.
type DTLSConn struct {
	DTLSConfig
	client bool
	ready  chan received
	lent   []*[]byte     // of the last ReadBatch
	closed chan struct{} // Close has been called
	done   chan struct{} // and has done its work
	once   sync.Once
	wg     sync.WaitGroup

	writing sync.Mutex // serialises Conn.WriteBatch
	sweep   exchange.Deadline

	mu         sync.Mutex
	closing    bool
	byAddr     map[netip.AddrPort]*addrSessions
	byCID      map[connectionID]*dtlsSession
	peers      map[netip.Prefix]int
	unproven   list.List // handshakes of clients whose address is not proven, oldest first
	returning  list.List // the same from where somebody has proven who it is
	opening    int       // clients' handshakes whose address was not proven, those that are ending included
	proving    list.List // handshakes of clients whose address is, oldest first
	handshakes int       // of proven address, or with servers
	silent     list.List // established sessions, the longest silent first
	failures   *simplelru.LRU[serverName, failedServer]
	// familiar are those of clients that have proven who they are; see accept and makeWay.
	familiar *simplelru.LRU[netip.Prefix, struct{}]
	// remembering are servers that may not know that their session has ended.
	remembering *simplelru.LRU[netip.AddrPort, struct{}]
}

// addrSessions are the sessions of one transport address: the established one,
// and the one that may take its place (RFC 6347 §4.2.8).
type addrSessions struct{ established, pending *dtlsSession }

// received is a datagram out of a session.
type received struct {
	peer Peer
	path Path
	data *[]byte // of dtlsBuffers; nil for the end of a session
	// undeliverable and gone as in Datagram
	undeliverable, gone error
}

const (
	connectionIDLen = 8
	dtlsReady       = 1024 // datagrams that may wait for ReadBatch
	dtlsInbound     = 32   // records that may wait for one session
	minSilence      = time.Minute

	familiarPrefixes = 4096
)

type connectionID [connectionIDLen]byte

var dtlsBuffers = sync.Pool{New: func() any { b := make([]byte, 0, slotKeep); return &b }}

// NewDTLSServer returns a DTLSConn that takes sessions.
func NewDTLSServer(c DTLSConfig) (*DTLSConn, error) { return newDTLSConn(c, false) }

// NewDTLSClient returns a DTLSConn that opens sessions.
func NewDTLSClient(c DTLSConfig) (*DTLSConn, error) { return newDTLSConn(c, true) }

func newDTLSConn(c DTLSConfig, client bool) (*DTLSConn, error) {
	failures, err := simplelru.NewLRU[serverName, failedServer](rememberedFailures, nil)
	if err != nil {
		return nil, err
	}
	remembering, err := simplelru.NewLRU[netip.AddrPort, struct{}](rememberedFailures, nil)
	if err != nil {
		return nil, err
	}
	familiar, err := simplelru.NewLRU[netip.Prefix, struct{}](familiarPrefixes, nil)
	if err != nil {
		return nil, err
	}
	d := &DTLSConn{DTLSConfig: c, client: client, ready: make(chan received, dtlsReady), closed: make(chan struct{}), done: make(chan struct{}),
		byAddr: make(map[netip.AddrPort]*addrSessions), byCID: make(map[connectionID]*dtlsSession), peers: make(map[netip.Prefix]int),
		failures: failures, familiar: familiar, remembering: remembering}
	d.sweep.Fire = exchange.FireFunc(d.dropIdle)
	c.Engine.Schedule(&d.sweep, time.Now().Add(c.Limits.Idle/4))
	d.wg.Go(d.readRecords)
	return d, nil
}

// LocalAddr implements PacketConn.
func (d *DTLSConn) LocalAddr() netip.AddrPort { return d.Conn.LocalAddr() }

// Close implements PacketConn. It tells the peers that their sessions end, and
// waits until all are gone.
func (d *DTLSConn) Close() error {
	err := net.ErrClosed
	d.once.Do(func() {
		d.mu.Lock()
		d.closing = true
		all := make([]*dtlsSession, 0, len(d.byAddr))
		for _, a := range d.byAddr {
			all = append(all, a.established, a.pending)
		}
		for _, s := range d.byCID { // those that have moved away from their address
			all = append(all, s)
		}
		d.mu.Unlock()
		d.Engine.Unschedule(&d.sweep)
		close(d.closed)
		for _, s := range all {
			if s != nil {
				s.end(net.ErrClosed)
			}
		}
		err = d.Conn.Close()
		d.wg.Wait()
		close(d.done)
	})
	return err
}

// EndSessions ends the established sessions of peers whose proof does not count
// any more.
func (d *DTLSConn) EndSessions(stale func(proven *exchange.Security) bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for e := d.silent.Front(); e != nil; e = e.Next() {
		if s := e.Value.(*dtlsSession); s.security != nil && stale(s.security) {
			s.endLater(errStaleProof)
		}
	}
}

var errStaleProof = errors.New("the peer's key or certificate is not valid any more")

// ReadBatch implements PacketConn.
func (d *DTLSConn) ReadBatch(batch []Datagram) (int, error) {
	for i, b := range d.lent {
		dtlsBuffers.Put(b)
		d.lent[i] = nil
	}
	d.lent = d.lent[:0]
	var r received
	select {
	case <-d.done:
		return 0, net.ErrClosed
	case r = <-d.ready:
	}
	for n := 0; ; {
		batch[n] = Datagram{Peer: r.peer, Path: r.path, Undeliverable: r.undeliverable, Gone: r.gone}
		if r.data != nil {
			batch[n].Data = *r.data
			batch[n].Truncated = len(*r.data) > maxDatagram
			d.lent = append(d.lent, r.data)
		}
		if n++; n == len(batch) {
			return n, nil
		}
		select {
		case r = <-d.ready:
		default:
			return n, nil
		}
	}
}

// deliver hands a datagram to ReadBatch; it takes r.data over.
func (d *DTLSConn) deliver(r received) {
	select {
	case d.ready <- r:
	default:
		d.Stats.Dropped.Add(1)
		if r.data != nil {
			dtlsBuffers.Put(r.data)
		}
	}
}

// WriteBatch implements PacketConn.
func (d *DTLSConn) WriteBatch(batch []Datagram) (int, error) {
	for i := range batch {
		if err := d.write(&batch[i]); err != nil {
			return i, err
		}
	}
	return len(batch), nil
}

func (d *DTLSConn) write(dg *Datagram) error {
	if dg.Peer.session != nil {
		return dg.Peer.session.write(dg.Data)
	}
	if !d.client {
		return errNoSession
	}
	s, err := d.sessionTo(dg)
	if err != nil {
		return err
	}
	return s.writeOrWait(dg.Data)
}

var (
	errNoSession   = errors.New("no DTLS session with the peer")
	errSessionFull = errors.New("too many DTLS sessions")
)

// send sends one record.
func (d *DTLSConn) send(addr netip.AddrPort, path Path, record []byte) error {
	d.writing.Lock()
	defer d.writing.Unlock()
	one := [1]Datagram{{Peer: PeerOf(addr), Path: path, Data: record}}
	_, err := d.Conn.WriteBatch(one[:])
	return err
}

// readRecords reads records until the connection is closed.
func (d *DTLSConn) readRecords() {
	batch := make([]Datagram, BatchSize)
	var failing backoff
	for {
		n, err := d.Conn.ReadBatch(batch)
		if err != nil {
			select {
			case <-d.closed:
				return
			default:
			}
			if errors.Is(err, net.ErrClosed) {
				return
			}
			d.Log.Warn("read failed", zap.Stringer("local", d.LocalAddr()), zap.Error(err))
			if !failing.wait(d.closed) {
				return
			}
			continue
		}
		failing.succeeded()
		for i := range n {
			d.route(&batch[i])
		}
	}
}

// Positions in a record (RFC 6347 §4.1, RFC 9146 §4).
const (
	recordHeader      = 13
	recordHandshake   = 22
	recordCID         = 25
	epochAt           = 3
	connectionIDAt    = 11
	handshakeHelloReq = 1
)

// route finds the session of a datagram, or makes one for a ClientHello.
func (d *DTLSConn) route(dg *Datagram) {
	data, addr := dg.Data, dg.Peer.Addr
	if dg.Undeliverable != nil {
		if s := d.at(addr); d.client && s != nil && !s.apart {
			s.end(errUndeliverable)
		}
		return
	}
	if len(data) <= recordHeader || dg.Truncated || dg.Path.Local.IsMulticast() {
		d.Stats.Ignored.Add(1)
		return
	}
	hello := data[0] == recordHandshake && data[epochAt] == 0 && data[epochAt+1] == 0 && data[recordHeader] == handshakeHelloReq
	d.mu.Lock()
	var s *dtlsSession
	a := d.byAddr[addr]
	switch {
	case d.closing:
	case data[0] == recordCID && !d.client:
		if len(data) >= connectionIDAt+connectionIDLen {
			s = d.byCID[connectionID(data[connectionIDAt:])]
		}
	case a != nil && a.pending != nil && (hello || a.pending.proven || a.established == nil):
		s = a.pending
	case a != nil && a.established != nil && !hello:
		s = a.established
	case hello && !d.client:
		s = d.accept(addr, dg.Path)
	}
	if s == nil || s.apart {
		d.mu.Unlock()
		d.Stats.Ignored.Add(1)
		return
	}
	if !s.proven {
		d.prove(s, data)
	}
	d.hears(s)
	d.mu.Unlock()
	s.push(data, addr)
}

// hears notes that the peer of a session is there. Called under the lock.
func (d *DTLSConn) hears(s *dtlsSession) {
	if s.element != nil && s.isEstablished {
		s.heard = time.Now()
		d.silent.MoveToBack(s.element)
	}
}

func (d *DTLSConn) at(addr netip.AddrPort) *dtlsSession {
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.byAddr[addr]
	switch {
	case a == nil:
		return nil
	case a.established != nil:
		return a.established
	}
	return a.pending
}
