package endpoint

import (
	"bytes"
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/plgd-dev/go-coap/v3/message"
	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// ClientConfig says how a Client behaves.
type ClientConfig struct {
	Engine *exchange.Engine
	Params Params
	Dedup  DedupLimits
	Stats  *Stats
	Log    *zap.Logger
	// RoundTrips measures the ways to servers; may be nil.
	RoundTrips *RoundTrips
	// Open opens a client port of the address family of the given wildcard
	// address.
	Open func(ctx context.Context, wildcard netip.Addr) (PacketConn, error)
	// KeepType sends a NON request on as NON; otherwise every request is
	// confirmable (FP-31).
	KeepType bool
	// NStart is the number of requests that may be outstanding towards a server,
	// that is without a response or an ACK (RFC 7252 §4.7, FP-35, FP-92); never
	// below 1.
	NStart func(server netip.AddrPort) int
	// Queue bounds the requests waiting for one server (FP-35).
	Queue int
	// TimeoutCON and TimeoutNON bound the wait for a response (FP-32).
	TimeoutCON, TimeoutNON time.Duration
	// Observations bounds the observations; a registration beyond it is sent as a
	// plain request, so that its client gets one response (RFC 7641 §4.1).
	Observations int
	// GroupStop are the options of the request that ends a group request at a
	// next hop before its T' is over, with the same Token (GP-40); nil: it is
	// left to run, and an observation is deregistered.
	GroupStop message.Options
	// Stray is told of responses that no request waits for, any more, and of the
	// server they are from; it does not block. It may be nil.
	Stray func(server netip.AddrPort)
	// Ports bounds the source ports per address family (FP-91).
	Ports int
	// Servers bounds the servers without outstanding requests that are
	// remembered, to spare the work of making their acquaintance again.
	Servers int
}

// Client is the leg that carries a request to one server over UDP or DTLS
// (RFC 7252 §5.7.1). It implements exchange.Handler; what it sends are the
// options of the request as they are.
type Client struct {
	config ClientConfig
	ctx    context.Context
	wg     sync.WaitGroup

	mu      sync.Mutex
	closed  bool
	calls   map[uint64]*call
	servers *simplelru.LRU[netip.AddrPort, *server]
	recent  *server                    // the one in servers that was used last
	busy    map[netip.AddrPort]*server // with outstanding or open calls and no longer in servers
	lanes   [2]*idLanes                // IPv4, IPv6
	ports   [2][]*Endpoint             // IPv4, IPv6
	tokens  *rand.ChaCha8
	// observations are the calls that observe.
	observations int
}

// server is what is known of one server.
type server struct {
	peer        Peer
	family      int
	lane        *idLane
	outstanding int
	waiting     []*call // sorted by round
	round       uint64  // of the last one that had its turn
	leaving     []*call // what ends observations, and waits until nothing else does
	standing    int     // open calls
}

// NewClient returns a Client whose goroutines end when ctx does; Wait waits
// for them.
func NewClient(ctx context.Context, config ClientConfig) (*Client, error) {
	var seed [32]byte
	if _, err := crand.Read(seed[:]); err != nil {
		return nil, fmt.Errorf("seed tokens: %w", err)
	}
	c := &Client{config: config, ctx: ctx, calls: make(map[uint64]*call), busy: make(map[netip.AddrPort]*server),
		lanes: [2]*idLanes{newIDLanes(), newIDLanes()}, tokens: rand.NewChaCha8(seed)}
	servers, err := simplelru.NewLRU(config.Servers, func(addr netip.AddrPort, s *server) {
		if s.outstanding > 0 || s.standing > 0 {
			c.busy[addr] = s
		}
	})
	if err != nil {
		return nil, fmt.Errorf("servers to remember: %w", err)
	}
	c.servers = servers
	return c, nil
}

// Queued is the number of requests that wait for their turn.
func (c *Client) Queued() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	for _, k := range c.calls {
		if k.waiting {
			n++
		}
	}
	return n
}

// Wait waits until the goroutines of the ports have ended, after the context
// has, and ends what is left of the exchanges. New ones fail from then on.
func (c *Client) Wait() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.wg.Wait()
	c.mu.Lock()
	left := slices.Collect(maps.Values(c.calls))
	for _, k := range left {
		delete(c.calls, k.token)
		k.over.Store(true)
		if k.open != nil {
			c.forgetOpen(k)
		}
		k.server.outstanding, k.server.waiting, k.server.leaving = 0, nil, nil
	}
	clear(c.busy)
	c.mu.Unlock()
	for _, k := range left {
		c.config.Engine.Unschedule(&k.deadline)
		k.end(errClosing)
	}
}

var errClosing = &exchange.Failure{Reason: exchange.Overloaded, Detail: "shutting down"}

// call is one request to one server. Its fields but deadline are guarded by
// the client's lock until it is taken out of the table: who takes it out owns
// its end.
type call struct {
	exchange.Turn // while it waits

	client *Client
	sink   exchange.Sink
	server *server
	name   string // of the server in the target, for its certificate
	token  uint64
	// tokenBytes is token as it is sent.
	tokenBytes [8]byte
	deadline   exchange.Deadline
	// request is what waits for its turn.
	request *wire.Message
	port    *Endpoint // nil before its turn
	id      uint16
	waiting bool
	// outstanding: it has had its turn and neither a response nor an ACK.
	outstanding bool
	over        atomic.Bool // it is out of the table
	begun       time.Time   // when it had its turn
	exchange    uint64      // of the exchange, for the log
	open        *openCall   // nil: it ends with its response
	sealing     exchange.Sealing
}

var _ exchange.Handler = (*Client)(nil)

// Exchange implements exchange.Handler.
func (c *Client) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	m := wire.Message{Type: message.Confirmable, Code: r.Method, Options: r.Options, Payload: r.Payload}
	timeout := c.config.TimeoutCON
	if c.config.KeepType && !r.Confirmable {
		m.Type = message.NonConfirmable
		timeout = c.config.TimeoutNON
	}
	k := &call{client: c, sink: w, name: r.Target.Host, open: openCallOf(r, &m), sealing: r.Sealing}
	k.deadline.Fire = k
	nstart := c.config.NStart(r.Target.Addr)
	c.mu.Lock()
	if c.closed {
		c.mu.Unlock()
		return exchange.Fail(w, errClosing)
	}
	s := c.serverOf(r.Target.Addr)
	wait := s.outstanding >= max(nstart, 1)
	var displaced *call
	if wait { // FP-35
		var ok bool
		if s.waiting, displaced, ok = exchange.Enqueue(s.waiting, k, r.Peer.Addr(), s.round, c.config.Queue); !ok {
			c.mu.Unlock()
			return exchange.Fail(w, errServerBusy)
		}
	}
	k.server = s
	k.exchange = r.ID
	k.token = c.newToken()
	c.calls[k.token] = k
	c.admitOpen(k, &m)
	c.config.Engine.Schedule(&k.deadline, k.open.expires(r.Arrival.Add(timeout)))
	if wait {
		k.waiting = true
		k.request = &wire.Message{Type: m.Type, Code: m.Code, Options: exchange.CloneOptions(m.Options), Payload: bytes.Clone(m.Payload)}
		if displaced != nil {
			c.displace(displaced)
		}
		c.mu.Unlock()
		if displaced != nil {
			c.config.Engine.Unschedule(&displaced.deadline)
			displaced.end(errServerBusy)
		}
		if ce := c.config.Log.Check(zap.DebugLevel, "waits for its turn with the server"); ce != nil {
			ce.Write(zap.Uint64("exchange", r.ID), zap.Stringer("server", r.Target.Addr))
		}
		return k
	}
	err := c.begin(k)
	c.mu.Unlock()
	c.send(k, &m, err)
	return k
}

var errServerBusy = &exchange.Failure{Reason: exchange.Overloaded, Detail: "too many requests wait for this server", RetryAfter: time.Second}

// displace takes a call out of the table that has left the queue for another
// client's. Called under the lock.
func (c *Client) displace(k *call) {
	c.config.Stats.Displaced.Add(1)
	delete(c.calls, k.token)
	k.over.Store(true)
	k.waiting = false
	if k.open != nil {
		c.forgetOpen(k)
	}
}

// serverOf returns what is known of the server, called under the lock.
func (c *Client) serverOf(addr netip.AddrPort) *server {
	if s := c.recent; s != nil && s.peer.Addr == addr { // what was used last is the last to leave servers
		return s
	}
	if s, ok := c.servers.Get(addr); ok {
		c.recent = s
		return s
	}
	s := c.busy[addr]
	delete(c.busy, addr)
	if s == nil {
		s = &server{peer: PeerOf(addr)}
		if addr.Addr().Is6() {
			s.family = 1
		}
		s.lane = c.lanes[s.family].of(addr)
	}
	c.servers.Add(addr, s)
	c.recent = s
	return s
}

// newToken returns a Token that is not in use, called under the lock (FP-31).
func (c *Client) newToken() uint64 {
	for {
		if t := c.tokens.Uint64(); c.calls[t] == nil {
			return t
		}
	}
}

// begin gives k its turn: a source port and a Message ID (FP-91). Called under
// the lock.
func (c *Client) begin(k *call) error {
	s := k.server
	s.outstanding++
	k.outstanding = true
	if k.port != nil {
		return c.beginAgain(k)
	}
	k.begun = time.Now()
	port, id, ok := s.lane.take(k.begun, c.config.Ports)
	if !ok {
		c.config.Stats.PortsExhausted.Add(1)
		return &exchange.Failure{Reason: exchange.Overloaded, Detail: "no Message ID is free towards this server", RetryAfter: time.Second}
	}
	e, err := c.portOf(s.family, port)
	if err != nil {
		return err
	}
	k.port, k.id = e, id
	if k.open != nil {
		e.keptTokens.Add(1)
	}
	return nil
}

// portOf opens source ports as they are needed. Called under the lock.
func (c *Client) portOf(family, i int) (*Endpoint, error) {
	for len(c.ports[family]) <= i {
		if c.closed || c.ctx.Err() != nil {
			return nil, errClosing
		}
		wildcard := netip.IPv4Unspecified()
		if family == 1 {
			wildcard = netip.IPv6Unspecified()
		}
		conn, err := c.config.Open(c.ctx, wildcard)
		if err != nil {
			return nil, &exchange.Failure{Reason: exchange.Overloaded, Detail: "no source port", RetryAfter: time.Second, Err: err}
		}
		e := New(Config{Conn: conn, Engine: c.config.Engine, Responses: c, Params: c.config.Params, Dedup: c.config.Dedup,
			RoundTrips: c.config.RoundTrips, Stats: c.config.Stats, Log: c.config.Log})
		c.ports[family] = append(c.ports[family], e)
		c.wg.Add(1)
		go func() {
			defer c.wg.Done()
			_ = e.Serve(c.ctx)
		}()
	}
	return c.ports[family][i], nil
}

// send sends the call that has begun, or ends it with err.
func (c *Client) send(k *call, m *wire.Message, err error) {
	if err == nil {
		m, err = sealed(k.sealing, m)
	}
	if err == nil {
		binary.BigEndian.PutUint64(k.tokenBytes[:], k.token)
		m.Token, m.ID = k.tokenBytes[:], k.id
		peer := k.server.peer
		peer.name = k.name
		if ce := c.config.Log.Check(zap.DebugLevel, "asks the server"); ce != nil {
			ce.Write(zap.Uint64("exchange", k.exchange), zap.Stringer("server", peer.Addr), zap.Stringer("type", m.Type), zap.Uint16("message", k.id), zap.Stringer("from", k.port.LocalAddr()))
		}
		err = k.port.Send(peer, Path{}, m, k)
		if errors.Is(err, errOutboxFull) {
			err = &exchange.Failure{Reason: exchange.Overloaded, Detail: "too many requests wait to be sent", RetryAfter: time.Second, Err: err}
		}
	}
	if err != nil {
		k.unsent(err)
		return
	}
	if o := k.open; o != nil && o.silent && m.Type == message.NonConfirmable {
		k.finish(nil)
		return
	}
	if value, ok := wire.First(m.Options, wire.NoResponse); ok && m.Type == message.NonConfirmable && wire.Mute(value) {
		c.yield(k) // nothing will come that could end its turn (FP-84)
	}
	if k.over.Load() { // while it was being sent: who ended it found nothing to settle
		k.port.Settle(k.server.peer.Addr, k.id)
	}
}

// take takes k out of the table and gives its turn to the next; it reports
// false when somebody else has done so.
func (c *Client) take(k *call) bool {
	c.mu.Lock()
	if c.calls[k.token] != k {
		c.mu.Unlock()
		return false
	}
	next, err := c.remove(k)
	c.mu.Unlock()
	c.config.Engine.Unschedule(&k.deadline)
	if next != nil {
		c.send(next, next.request, err)
	}
	return true
}

// remove takes k out of the table, called under the lock. It returns the call
// whose turn has come, if any, with the outcome of begin.
func (c *Client) remove(k *call) (*call, error) {
	delete(c.calls, k.token)
	k.over.Store(true)
	if k.open != nil {
		c.forgetOpen(k)
	}
	if k.waiting {
		k.server.unqueue(k)
		return nil, nil
	}
	return c.release(k)
}

// release ends k's being outstanding, called under the lock; it returns what
// remove does.
func (c *Client) release(k *call) (*call, error) {
	if !k.outstanding {
		return nil, nil
	}
	k.outstanding = false
	s := k.server
	s.outstanding--
	if len(s.waiting) == 0 && len(s.leaving) > 0 {
		next := s.leaving[0]
		s.unqueue(next)
		return next, c.begin(next)
	}
	if len(s.waiting) == 0 {
		if s.outstanding == 0 && s.standing == 0 && len(c.busy) > 0 {
			delete(c.busy, s.peer.Addr)
		}
		return nil, nil
	}
	next := s.waiting[0]
	s.waiting[0] = nil
	s.waiting = s.waiting[1:]
	s.round = next.Round()
	next.waiting = false
	return next, c.begin(next)
}

// HandleResponse implements ResponseHandler.
func (c *Client) HandleResponse(e *Endpoint, peer Peer, m *wire.Message) bool {
	known := c.handleResponse(e, peer, m)
	if !known && c.config.Stray != nil {
		c.config.Stray(peer.Addr)
	}
	return known
}

func (c *Client) handleResponse(e *Endpoint, peer Peer, m *wire.Message) bool {
	if len(m.Token) != 8 {
		return false
	}
	token := binary.BigEndian.Uint64(m.Token)
	c.mu.Lock()
	k := c.calls[token]
	if k == nil || k.port != e || k.server.peer.Addr != peer.Addr {
		c.mu.Unlock()
		return false
	}
	if k.sealing != nil {
		c.mu.Unlock()
		inner, ok := opened(k.sealing, m)
		if !ok {
			c.config.Stats.Unopened.Add(1)
			return true
		}
		m = inner
		c.mu.Lock()
		if c.calls[token] != k { // it has ended meanwhile
			c.mu.Unlock()
			return true
		}
	}
	if k.open != nil {
		c.openResponse(k, m)
		return true
	}
	next, err := c.remove(k)
	c.mu.Unlock()
	c.config.Engine.Unschedule(&k.deadline)
	c.config.Stats.Latency.Observe(e.Now().Sub(k.begun))
	if ce := c.config.Log.Check(zap.DebugLevel, "the server answers"); ce != nil {
		ce.Write(zap.Uint64("exchange", k.exchange), zap.Stringer("server", peer.Addr), zap.String("code", wire.CodeString(m.Code)), zap.Duration("after", e.Now().Sub(k.begun)))
	}
	e.Settle(peer.Addr, k.id) // a response implies the ACK (RFC 7252 §5.2.2)
	if next != nil {
		c.send(next, next.request, err)
	}
	p := responses.Get().(*exchange.Response)
	*p = exchange.Response{Code: m.Code, Options: m.Options, Payload: m.Payload, From: peer.Addr}
	k.sink.Respond(p)
	*p = exchange.Response{}
	responses.Put(p)
	k.sink.End(nil)
	return true
}

// responses lends the structs that sinks borrow.
var responses = sync.Pool{New: func() any { return new(exchange.Response) }}

func (k *call) end(err error) {
	if k.port != nil {
		k.port.Settle(k.server.peer.Addr, k.id)
	}
	if k.open != nil {
		k.open.end(k.sink, err)
		return
	}
	k.sink.End(err)
}

// finish ends the call unless somebody else has done so.
func (k *call) finish(err error) {
	if k.client.take(k) {
		k.end(err)
	}
}

// Cancel implements exchange.Canceler.
func (k *call) Cancel() { k.stop(exchange.ErrCanceled) }

// Forget implements exchange.Forgetter.
func (k *call) Forget() { k.finish(exchange.ErrCanceled) }

// Fire implements exchange.Firer: its time is over.
func (k *call) Fire(now time.Time) {
	if k.open != nil {
		k.openExpired(now)
		return
	}
	k.finish(errNoAnswer)
}

var errNoAnswer = &exchange.Failure{Reason: exchange.NoAnswer, Detail: "no response from the server in time"}

// Acknowledged implements Watcher: the response will come separately, and the
// next request need not wait for it (RFC 7252 §4.7).
func (k *call) Acknowledged(uint16) {
	if k.over.Load() {
		return
	}
	acknowledge(k.sink)
	if o := k.open; o != nil && o.silent {
		k.finish(nil)
		return
	}
	k.client.yield(k)
}

// yield gives k's turn to the next.
func (c *Client) yield(k *call) {
	c.mu.Lock()
	next, err := c.release(k)
	c.mu.Unlock()
	if next != nil {
		c.send(next, next.request, err)
	}
}

// acknowledge tells a sink that wants to know that its request has arrived.
func acknowledge(w exchange.Sink) {
	if a, ok := w.(exchange.Acknowledged); ok {
		a.Acknowledge()
	}
}

// Failed implements Watcher.
func (k *call) Failed(id uint16, err error) {
	if k.open != nil && k.retries(int(id), err) {
		return
	}
	k.fail(err)
}

// fail ends the call because its request cannot be delivered.
func (k *call) fail(err error) {
	if !k.client.take(k) {
		return
	}
	f := &exchange.Failure{Reason: exchange.Unreachable, Detail: "the server cannot be reached", Err: err}
	switch {
	case errors.Is(err, ErrReset):
		f.Detail = "the server rejected the message" // FP-33
	case errors.Is(err, ErrNoAck):
		f.Reason, f.Detail = exchange.NoAnswer, "no response from the server in time" // FP-32
	}
	k.end(f)
}
