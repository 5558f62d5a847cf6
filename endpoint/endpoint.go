package endpoint

import (
	"context"
	"errors"
	"hash/maphash"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// RequestHandler takes requests from the message layer.
type RequestHandler interface {
	// HandleRequest takes a request that is no duplicate, on the reading
	// goroutine. The message is borrowed. The handler answers through an
	// Incoming that it lets rx fill, exactly once; see Incoming.
	HandleRequest(rx *Reception, m *wire.Message)
}

// ResponseHandler takes responses from the message layer.
type ResponseHandler interface {
	// HandleResponse takes a response, on the reading goroutine. The message
	// is borrowed. It reports whether the Token was known; a confirmable
	// response is acknowledged then and reset otherwise.
	HandleResponse(e *Endpoint, peer Peer, m *wire.Message) bool
}

// Watcher waits for what becomes of a message that was sent.
type Watcher interface {
	// Acknowledged is called when an ACK for the message arrived.
	Acknowledged(id uint16)
	// Failed is called when the message was reset (ErrReset), never
	// acknowledged (ErrNoAck) or could not be delivered (ErrUndeliverable).
	Failed(id uint16, err error)
}

// What can become of a message.
var (
	ErrReset         = errors.New("reset by peer")
	ErrNoAck         = errors.New("not acknowledged")
	ErrUndeliverable = errUndeliverable
)

// Config says what an Endpoint is made of.
type Config struct {
	Conn   PacketConn
	Engine *exchange.Engine
	// Requests is nil on a port that serves nobody, Responses on one that asks
	// nobody.
	Requests  RequestHandler
	Responses ResponseHandler
	Params    Params
	Dedup     DedupLimits
	// DedupResponses drops repeated NON responses too: for ports on which a
	// Token outlives a response (GP-58).
	DedupResponses bool
	// MaxToken is the longest Token accepted from a client (FP-83).
	MaxToken int
	Stats    *Stats
	Log      *zap.Logger
}

// Endpoint is the message layer on one packet connection. Its methods are safe
// for concurrent use.
type Endpoint struct {
	Config
	out   outbox
	dedup *dedup

	mu      sync.Mutex
	pending map[messageKey]pending

	// rx is lent to the RequestHandler; the reading goroutine's alone.
	rx Reception

	seed maphash.Seed
	ids  [idSequences]idSequence
}

type pending struct {
	watcher Watcher
	// t is nil for a message that is not retransmitted.
	t *transmission
}

// Message IDs towards clients come from a fixed number of sequences, chosen by
// the peer's address: idle clients cost no memory and every client still sees
// IDs that only grow (FP-91).
const idSequences = 1024

type idSequence struct {
	next    atomic.Uint32
	wrapped atomic.Int64 // when it last wrapped, Unix seconds
}

// New returns an Endpoint; Serve makes it work.
func New(c Config) *Endpoint {
	e := &Endpoint{Config: c, pending: make(map[messageKey]pending), seed: maphash.MakeSeed(), dedup: newDedup(c.Dedup, c.Stats)}
	e.out = outbox{conn: c.Conn, engine: c.Engine, stats: c.Stats, failed: e.sendFailed}
	for i := range e.ids {
		e.ids[i].next.Store(rand.Uint32() & 0xffff)
	}
	return e
}

// LocalAddr is the address the endpoint is bound to.
func (e *Endpoint) LocalAddr() netip.AddrPort { return e.Conn.LocalAddr() }

// Serve reads until the connection is closed, which it is when ctx ends.
func (e *Endpoint) Serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { _ = e.Conn.Close() })
	defer stop()
	batch := make([]Datagram, BatchSize)
	m := &wire.Message{Options: make(message.Options, 0, 16)}
	backoff := time.Millisecond
	for {
		n, err := e.Conn.ReadBatch(batch)
		if err != nil {
			if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
				return nil
			}
			// A socket does not heal by being asked again at once, and does
			// not have to be given up either: out of memory passes.
			e.Log.Warn("read failed", zap.Stringer("local", e.LocalAddr()), zap.Error(err))
			select {
			case <-ctx.Done():
				return nil
			case <-time.After(backoff):
				backoff = min(2*backoff, time.Second)
				continue
			}
		}
		backoff = time.Millisecond
		now := time.Now()
		e.Stats.Received.Add(uint64(n))
		for i := range n {
			e.receive(&batch[i], m, now)
		}
		e.Engine.Flush()
	}
}

// receive handles one datagram.
func (e *Endpoint) receive(d *Datagram, m *wire.Message, now time.Time) {
	if d.Undeliverable != nil {
		e.undeliverable(d, m)
		return
	}
	err := m.Decode(d.Data)
	if err == nil && d.Truncated {
		err = &wire.FormatError{Type: m.Type, ID: m.ID, Reason: "datagram too long"}
	}
	if err != nil {
		e.malformed(d, err)
		return
	}
	switch {
	case m.Type == message.Acknowledgement:
		e.acknowledged(d, m)
	case m.Type == message.Reset:
		e.reset(d, m)
	case m.Code == codes.Empty:
		// CoAP ping (RFC 7252 §4.3), or a NON that means nothing.
		e.reject(d.Peer, d.Path, m.Type, m.ID)
	case wire.IsRequest(m.Code):
		e.request(d, m, now)
	default:
		e.response(d, m, now)
	}
}

// malformed carries out RFC 7252 §4.2 and §4.3: reject a CON with a format
// error, ignore everything else, and ignore unknown versions altogether.
func (e *Endpoint) malformed(d *Datagram, err error) {
	var f *wire.FormatError
	if !errors.As(err, &f) || d.Path.Local.IsMulticast() {
		e.Stats.Ignored.Add(1)
		return
	}
	e.Stats.Malformed.Add(1)
	if ce := e.Log.Check(zap.DebugLevel, "malformed message"); ce != nil {
		ce.Write(zap.Stringer("peer", d.Peer.Addr), zap.Error(err))
	}
	e.reject(d.Peer, d.Path, f.Type, f.ID)
}

// reject resets a confirmable message and ignores a non-confirmable one.
func (e *Endpoint) reject(peer Peer, path Path, typ message.Type, id uint16) {
	if typ != message.Confirmable || path.Local.IsMulticast() {
		e.Stats.Ignored.Add(1)
		return
	}
	e.Stats.ResetsSent.Add(1)
	_ = e.out.put(peer, path, &wire.Message{Type: message.Reset, ID: id}, nil)
}

func (e *Endpoint) ack(peer Peer, path Path, id uint16) {
	_ = e.out.put(peer, path, &wire.Message{Type: message.Acknowledgement, ID: id}, nil)
}

func (e *Endpoint) acknowledged(d *Datagram, m *wire.Message) {
	p, ok := e.settle(d.Peer.Addr, m.ID, true)
	if !ok {
		e.Stats.Ignored.Add(1)
		return
	}
	p.watcher.Acknowledged(m.ID)
	if m.Code != codes.Empty && wire.IsResponse(m.Code) && e.Responses != nil {
		e.Responses.HandleResponse(e, d.Peer, m)
	}
}

func (e *Endpoint) reset(d *Datagram, m *wire.Message) {
	p, ok := e.settle(d.Peer.Addr, m.ID, false)
	if !ok || m.Code != codes.Empty {
		e.Stats.Ignored.Add(1)
		return
	}
	e.Stats.ResetsReceived.Add(1)
	p.watcher.Failed(m.ID, ErrReset)
}

func (e *Endpoint) request(d *Datagram, m *wire.Message, now time.Time) {
	if e.Requests == nil {
		e.reject(d.Peer, d.Path, m.Type, m.ID)
		return
	}
	if isMulticast := d.Path.Local.IsMulticast(); isMulticast && (m.Type == message.Confirmable || isProxyRequest(m.Options)) {
		// A CON is never sent to a group (RFC 7252 §8.1), and of several
		// proxies that hear a proxy request none carries it out (GC-94).
		e.Stats.Ignored.Add(1)
		return
	}
	confirmable := m.Type == message.Confirmable
	key := keyOf(d.Peer.Addr, m.ID)
	entry, old, verdict := e.dedup.begin(key, lifetimeOf(m.Code, confirmable), now)
	if verdict == duplicate {
		e.Stats.Duplicates.Add(1)
		switch {
		case !confirmable:
		case old.reply != nil:
			_ = e.out.putBytes(d.Peer, d.Path, old.reply)
		case old.flags&(flagAcked|flagDone) != 0:
			e.ack(d.Peer, d.Path, m.ID)
		}
		return
	}
	rx := &e.rx
	*rx = Reception{endpoint: e, Peer: d.Peer, Path: d.Path, Now: now, entry: entry}
	switch {
	case verdict == refused:
		e.Stats.DedupFull.Add(1)
		rx.refuse(m, codes.ServiceUnavailable, "too many requests remembered")
	case len(m.Token) > e.MaxToken:
		rx.refuse(m, codes.BadRequest, "token too long") // FP-83
	default:
		e.Requests.HandleRequest(rx, m)
	}
}

func isProxyRequest(options message.Options) bool {
	for _, o := range options {
		switch o.ID {
		case wire.ProxyURI, wire.ProxyScheme, wire.ProxyCRI, wire.ProxySchemeNumber:
			return true
		}
	}
	return false
}

func (e *Endpoint) response(d *Datagram, m *wire.Message, now time.Time) {
	if e.Responses == nil {
		e.reject(d.Peer, d.Path, m.Type, m.ID)
		return
	}
	confirmable := m.Type == message.Confirmable
	entry := none
	if confirmable || e.DedupResponses {
		var old earlier
		var seen bool
		if entry, old, seen = e.dedup.beginResponse(keyOf(d.Peer.Addr, m.ID), confirmable, now); seen {
			e.Stats.Duplicates.Add(1)
			switch {
			case old.flags&flagRefused != 0:
				e.reject(d.Peer, d.Path, m.Type, m.ID)
			case confirmable:
				e.ack(d.Peer, d.Path, m.ID)
			}
			return
		}
	}
	switch known := e.Responses.HandleResponse(e, d.Peer, m); {
	case !known:
		if entry != none {
			e.dedup.refuse(entry)
		}
		e.reject(d.Peer, d.Path, m.Type, m.ID)
	case confirmable:
		e.ack(d.Peer, d.Path, m.ID)
	}
}

// undeliverable handles a message of our own that came back.
func (e *Endpoint) undeliverable(d *Datagram, m *wire.Message) {
	e.Stats.Undeliverable.Add(1)
	if m.Decode(d.Data) != nil {
		return
	}
	if p, ok := e.settle(d.Peer.Addr, m.ID, false); ok {
		p.watcher.Failed(m.ID, ErrUndeliverable)
	}
}

// sendFailed handles a message that the kernel refused to send. It runs under
// the lock of writes, so the watcher learns it on the engine's goroutine.
func (e *Endpoint) sendFailed(d *Datagram, err error) {
	if len(d.Data) < 4 {
		return
	}
	id := uint16(d.Data[2])<<8 | uint16(d.Data[3])
	e.mu.Lock()
	p, ok := e.pending[keyOf(d.Peer.Addr, id)]
	e.mu.Unlock()
	if !ok {
		return
	}
	later := &exchange.Deadline{}
	peer := d.Peer.Addr
	later.Fire = func(time.Time) {
		if q, ok := e.settle(peer, id, false); ok && q == p {
			p.watcher.Failed(id, errors.Join(ErrUndeliverable, err))
		}
	}
	e.Engine.Schedule(later, time.Now())
}

// settle takes the message out of what waits, and stops its retransmission.
// onlyConfirmable leaves a message that cannot be acknowledged where it is.
func (e *Endpoint) settle(peer netip.AddrPort, id uint16, onlyConfirmable bool) (pending, bool) {
	key := keyOf(peer, id)
	e.mu.Lock()
	p, ok := e.pending[key]
	if !ok || onlyConfirmable && p.t == nil {
		e.mu.Unlock()
		return pending{}, false
	}
	delete(e.pending, key)
	e.mu.Unlock()
	if p.t != nil {
		e.Engine.Unschedule(&p.t.deadline)
	}
	return p, true
}

// Settle stops waiting for an ACK or RST of the message: its watcher is not
// called any more, unless it is being called right now.
func (e *Endpoint) Settle(peer netip.AddrPort, id uint16) { e.settle(peer, id, false) }

// NextID returns the next Message ID towards a client.
func (e *Endpoint) NextID(peer netip.AddrPort) uint16 {
	s := &e.ids[maphash.Comparable(e.seed, peer)%idSequences]
	n := s.next.Add(1)
	if n&0xffff == 0 {
		now := time.Now().Unix()
		if last := s.wrapped.Swap(now); last != 0 && now-last < int64(ExchangeLifetime/time.Second) {
			e.Stats.MessageIDWraps.Add(1)
		}
	}
	return uint16(n)
}

// Send sends a message whose type, Message ID and Token are set. A confirmable
// one is retransmitted until it is acknowledged, reset or given up; w learns
// which. For a non-confirmable one w, if not nil, learns of a RST until Settle.
func (e *Endpoint) Send(peer Peer, path Path, m *wire.Message, w Watcher) error {
	if w == nil {
		return e.out.put(peer, path, m, nil)
	}
	key := keyOf(peer.Addr, m.ID)
	p := pending{watcher: w}
	if m.Type == message.Confirmable {
		p.t = &transmission{endpoint: e, peer: peer, path: path, id: m.ID, timeout: e.Params.initialTimeout()}
		p.t.deadline.Fire = p.t.expire
	}
	e.mu.Lock()
	e.pending[key] = p
	e.mu.Unlock()
	err := e.out.put(peer, path, m, func(encoded []byte) {
		if p.t != nil {
			p.t.encoded = append([]byte(nil), encoded...)
		}
	})
	if err != nil {
		e.Settle(peer.Addr, m.ID)
		return err
	}
	if p.t != nil {
		e.Engine.Schedule(&p.t.deadline, time.Now().Add(p.t.timeout))
	}
	return nil
}

// transmission is a confirmable message on its way (RFC 7252 §4.2).
type transmission struct {
	endpoint *Endpoint
	deadline exchange.Deadline
	peer     Peer
	path     Path
	id       uint16
	encoded  []byte
	timeout  time.Duration // doubles each time
	repeats  int
}

func (t *transmission) expire(now time.Time) {
	e := t.endpoint
	key := keyOf(t.peer.Addr, t.id)
	e.mu.Lock()
	p, ok := e.pending[key]
	ok = ok && p.t == t
	last := t.repeats >= e.Params.MaxRetransmit
	if ok && last {
		delete(e.pending, key)
	}
	e.mu.Unlock()
	switch {
	case !ok:
	case last:
		e.Stats.Timeouts.Add(1)
		p.watcher.Failed(t.id, ErrNoAck)
	default:
		t.repeats++
		t.timeout *= 2
		e.Stats.Retransmissions.Add(1)
		_ = e.out.putBytes(t.peer, t.path, t.encoded)
		e.Engine.Schedule(&t.deadline, now.Add(t.timeout))
	}
}
