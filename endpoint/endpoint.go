package endpoint

import (
	"context"
	"errors"
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

// FailureHandler is a RequestHandler that finds out itself which of the messages that
// it has sent without a Watcher have failed: where there are many of them, to keep
// what tells them apart costs less there than to watch each.
type FailureHandler interface {
	// HandleFailure is told, on any goroutine and under no lock, that a client
	// endpoint has reset the message with this ID (ErrReset), or that it could not be
	// sent (ErrUndeliverable). It reports whether the handler has sent such a one.
	HandleFailure(client Origin, id uint16, err error) bool
}

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
	// RoundTrips measures the way to the peers; nil: nobody wants to know (GP-94).
	RoundTrips *RoundTrips
	Stats      *Stats
	Log        *zap.Logger
}

// Endpoint is the message layer on one packet connection. Its methods are safe
// for concurrent use.
type Endpoint struct {
	Config
	id    uint64 // in Origin
	out   outbox
	dedup *dedup

	mu      sync.Mutex
	pending keyTable[pending]

	// keptTokens counts the exchanges whose Token outlives a response: while there
	// are any, repeated NON responses are dropped as with DedupResponses.
	keptTokens atomic.Int32

	// rx is lent to the RequestHandler, now is when the batch that is handled was
	// read; the reading goroutine's alone.
	rx  Reception
	now time.Time

	seed keySeed
	ids  [idSequences]idSequence
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
	e := &Endpoint{Config: c, id: c.Engine.NextID(), pending: newKeyTable[pending](), seed: newKeySeed(), dedup: newDedup(c.Dedup, c.Stats)}
	e.out = outbox{conn: c.Conn, engine: c.Engine, stats: c.Stats, failed: e.sendFailed}
	for i := range e.ids {
		e.ids[i].next.Store(rand.Uint32() & 0xffff) //nolint:gosec // Message IDs are no secret
	}
	return e
}

// Now is when the datagrams that are being handled were read. Only a
// ResponseHandler may ask, on the reading goroutine.
func (e *Endpoint) Now() time.Time { return e.now }

// LocalAddr is the address the endpoint is bound to.
func (e *Endpoint) LocalAddr() netip.AddrPort { return e.Conn.LocalAddr() }

// Serve reads until the connection is closed, which it is when ctx ends.
func (e *Endpoint) Serve(ctx context.Context) error {
	// What a batch has caused leaves before the connection is closed: the last
	// responses, and the ACK of the last one that a client waited for.
	var batchMu sync.Mutex
	stop := context.AfterFunc(ctx, func() {
		batchMu.Lock()
		defer batchMu.Unlock()
		e.Engine.Flush()
		_ = e.Conn.Close()
	})
	defer stop()
	batch := make([]Datagram, BatchSize)
	m := &wire.Message{Options: make(message.Options, 0, 16)}
	var failing backoff
	for {
		n, err := e.Conn.ReadBatch(batch)
		if err != nil {
			if errors.Is(err, net.ErrClosed) || ctx.Err() != nil {
				return nil
			}
			e.Log.Warn("read failed", zap.Stringer("local", e.LocalAddr()), zap.Error(err))
			if !failing.wait(ctx.Done()) {
				return nil
			}
			continue
		}
		failing.succeeded()
		now := time.Now()
		e.now = now
		e.Stats.Received.Add(uint64(n))
		batchMu.Lock()
		for i := range n {
			e.receive(&batch[i], m, now)
		}
		e.Engine.Flush()
		batchMu.Unlock()
	}
}

// receive handles one datagram.
func (e *Endpoint) receive(d *Datagram, m *wire.Message, now time.Time) {
	if d.Gone != nil {
		e.peerGone(d.Peer, d.Gone)
		return
	}
	if d.Undeliverable != nil {
		e.undeliverable(d)
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
	if !errors.As(err, &f) {
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

// acknowledged handles an ACK, which is Empty or carries a response; any other
// is rejected, which means ignored (RFC 7252 §4.2).
func (e *Endpoint) acknowledged(d *Datagram, m *wire.Message) {
	var p pending
	ok := m.Code == codes.Empty || wire.IsResponse(m.Code)
	if ok {
		p, ok = e.settle(d.Peer.key(), m.ID, true)
	}
	if !ok {
		e.Stats.Ignored.Add(1)
		return
	}
	if m.Code == codes.Empty && p.t.repeats == 0 && e.RoundTrips.measures() { // no response that took its time
		e.RoundTrips.Note(d.Peer.key(), time.Since(p.t.sent))
	}
	if m.Code != codes.Empty && e.Responses != nil {
		e.Responses.HandleResponse(e, d.Peer, m)
	}
	p.watcher.Acknowledged(m.ID)
}

// reset handles a RST, which is always Empty (RFC 7252 §4.2).
func (e *Endpoint) reset(d *Datagram, m *wire.Message) {
	if m.Code != codes.Empty {
		e.Stats.Ignored.Add(1)
		return
	}
	p, ok := e.settle(d.Peer.key(), m.ID, false)
	switch {
	case ok:
	case e.failed(d.Peer, m.ID, ErrReset):
		e.Stats.ResetsReceived.Add(1)
		return
	default:
		e.Stats.Ignored.Add(1)
		return
	}
	e.Stats.ResetsReceived.Add(1)
	p.watcher.Failed(m.ID, ErrReset)
}

// failed hands on that an unwatched message has failed, and reports whether anybody
// knows it.
func (e *Endpoint) failed(peer Peer, id uint16, err error) bool {
	h, ok := e.Requests.(FailureHandler)
	return ok && h.HandleFailure(e.origin(peer), id, err)
}

func (e *Endpoint) origin(peer Peer) Origin { return Origin{layer: e.id, peer: peer.key()} }

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
	key := receivedKey(d.Peer.key(), d.Path.Local, m.ID)
	entry, old, verdict := e.dedup.begin(key, m.Code, confirmable, len(d.Data), now)
	if verdict == duplicate {
		e.Stats.Duplicates.Add(1)
		switch {
		case !confirmable:
		case len(d.Data) < old.size:
			// It repeats the Message ID and nothing else: a reply made for a longer
			// message would be more than a peer at a forged address may cause (FP-86).
			e.Stats.Ignored.Add(1)
		case old.reply != nil:
			_ = e.out.putBytes(d.Peer, d.Path, old.reply)
		case old.flags&(flagAcked|flagDone) != 0:
			e.ack(d.Peer, d.Path, m.ID)
		}
		return
	}
	rx := &e.rx
	*rx = Reception{endpoint: e, Peer: d.Peer, Path: d.Path, Now: now, Size: len(d.Data), entry: entry}
	switch {
	case verdict == refused: // FP-90
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
	if confirmable || e.DedupResponses || e.keptTokens.Load() > 0 {
		var old earlier
		var seen bool
		if entry, old, seen = e.dedup.beginResponse(receivedKey(d.Peer.key(), d.Path.Local, m.ID), confirmable, now); seen {
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
		typ := m.Type
		if wire.Has(m.Options, wire.Observe) {
			// Who observes no more says so to every notification, lest it goes on
			// (FP-67, GP-66).
			typ = message.Confirmable
		}
		e.reject(d.Peer, d.Path, typ, m.ID)
	case confirmable:
		e.ack(d.Peer, d.Path, m.ID)
	}
}

// NextID returns the next Message ID towards a client.
func (e *Endpoint) NextID(peer netip.AddrPort) uint16 {
	key := keyOf(peer, 0)
	s := &e.ids[e.seed.hash(&key)%idSequences]
	n := s.next.Add(1)
	if n&0xffff == 0 {
		now := time.Now().Unix()
		if last := s.wrapped.Swap(now); last != 0 && now-last < int64(ExchangeLifetime/time.Second) {
			e.Stats.MessageIDWraps.Add(1)
		}
	}
	return uint16(n)
}
