package endpoint

import (
	"context"
	crand "crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/plgd-dev/go-coap/v3/message"
	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// StreamClientConfig says how a StreamClient behaves.
type StreamClientConfig struct {
	StreamConfig
	// TLS has the trusted authorities and the own certificate for coaps+tcp and
	// coaps+ws; nil: these schemes are not served.
	TLS *tls.Config
	// Dial opens a TCP connection; nil: that of package net.
	Dial func(ctx context.Context, server netip.AddrPort) (net.Conn, error)
	// Timeout bounds the wait for a response, from the arrival of the request
	// (FP-32).
	Timeout time.Duration
	// Connections bounds the servers that there is a connection to at a time. When
	// there are so many, the one that has been without requests for the longest time
	// gives way. Those that one client had opened are three quarters at most.
	Connections int
	// Calls bounds the requests to one server that are waiting for the connection
	// or the response (FP-35).
	Calls int
	// Observations bounds the observations; a registration beyond it is sent as a
	// plain request.
	Observations int
	// Latency takes how long servers took to answer, connecting to them included; nil:
	// nobody wants to know.
	Latency *exchange.Histogram
	// Stray is as in ClientConfig.
	Stray func(scheme string, server netip.AddrPort)
	// GroupStop is as in ClientConfig.
	GroupStop message.Options
	// Unused is how long a connection without requests is kept.
	Unused time.Duration
	// RetryMin and RetryMax bound the pause after an attempt to connect that
	// failed; it doubles each time. Requests are refused in the meantime.
	RetryMin, RetryMax time.Duration
}

// StreamClient is the leg that carries a request to one server over TCP, TLS or
// WebSocket (RFC 8323), by the scheme of its target. There is one connection per
// server, opened when it is needed. It implements exchange.Handler; what it
// sends are the options of the request as they are.
type StreamClient struct {
	config StreamClientConfig
	ctx    context.Context
	wg     sync.WaitGroup

	mu       sync.Mutex
	links    map[serverKey]*link
	failures *simplelru.LRU[serverKey, failedServer]
	shares   exchange.Shares // links that have not ended, those replaced included
	leaving  int             // links that made room
	tokens   *rand.ChaCha8
	// observations are the calls that observe; adrift are those of them whose
	// connection is lost.
	observations int
	adrift       map[*streamCall]struct{}
	closed       bool
}

// serverKey tells servers apart: under another name another certificate counts.
type serverKey struct {
	scheme, host string
	addr         netip.AddrPort
}

// failedServer is a server that could not be connected to.
type failedServer struct {
	until time.Time
	pause time.Duration
	err   error
}

// link is the connection to one server. Its fields are guarded by the client's
// lock.
type link struct {
	client *StreamClient
	key    serverKey
	opener netip.Addr // the client whose request it was opened for
	// stream is nil until the server's CSM has arrived.
	stream  *Stream
	calls   map[uint64]*streamCall
	waiting []*streamCall // for the CSM, in order
	// standing are the calls that may stay for ever: established observations.
	standing int
	used     time.Time
	unused   exchange.Deadline
	ended    bool
	evicted  bool // it made room for another one and has given back its share
}

// streamCall is one request. Who takes it out of link.calls, or of
// StreamClient.adrift, owns its end.
type streamCall struct {
	client   *StreamClient
	link     *link // guarded by the client's lock, replaced when it is lost
	sink     exchange.Sink
	token    uint64
	begun    time.Time
	deadline exchange.Deadline
	request  *wire.Message // owned, while the call waits for the connection
	open     *openCall     // nil: it ends with its response
	sealing  exchange.Sealing
}

const rememberedFailures = 1024

var _ exchange.Handler = (*StreamClient)(nil)

// NewStreamClient returns a StreamClient whose connections end when ctx does, in
// an orderly way; Wait waits for them.
func NewStreamClient(ctx context.Context, config StreamClientConfig) (*StreamClient, error) {
	var seed [32]byte
	if _, err := crand.Read(seed[:]); err != nil {
		return nil, fmt.Errorf("seed tokens: %w", err)
	}
	failures, err := simplelru.NewLRU[serverKey, failedServer](rememberedFailures, nil)
	if err != nil {
		return nil, err
	}
	if config.Dial == nil {
		config.Dial = dialTCP
	}
	return &StreamClient{config: config, ctx: ctx, links: make(map[serverKey]*link), failures: failures, tokens: rand.NewChaCha8(seed),
		adrift: make(map[*streamCall]struct{})}, nil
}

func dialTCP(ctx context.Context, server netip.AddrPort) (net.Conn, error) {
	var d net.Dialer
	return d.DialContext(ctx, "tcp", server.String())
}

// Wait waits until all connections are gone, after the context has ended. New
// exchanges fail from then on.
func (c *StreamClient) Wait() {
	c.mu.Lock()
	c.closed = true
	c.mu.Unlock()
	c.wg.Wait()
	c.mu.Lock()
	left := slices.Collect(maps.Keys(c.adrift))
	c.mu.Unlock()
	for _, k := range left {
		k.endWith(errClosing)
	}
}

// Exchange implements exchange.Handler.
func (c *StreamClient) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	m := wire.Message{Code: r.Method, Options: r.Options, Payload: r.Payload}
	k := &streamCall{client: c, sink: w, begun: r.Arrival, open: openCallOf(r, &m), sealing: r.Sealing}
	k.deadline.Fire = k
	c.mu.Lock()
	l, failure := c.linkTo(serverKey{r.Target.Scheme, r.Target.Host, r.Target.Addr}, r.Peer.Addr())
	if failure == nil && len(l.calls)-l.standing >= c.config.Calls {
		failure = &exchange.Failure{Reason: exchange.Overloaded, Detail: "too many requests wait for this server", RetryAfter: time.Second}
	}
	if failure != nil {
		c.mu.Unlock()
		return exchange.Fail(w, failure)
	}
	k.token = l.newToken()
	c.admitOpen(k, &m)
	stream := l.enter(k)
	if stream == nil {
		k.request = &wire.Message{Code: m.Code, Options: exchange.CloneOptions(m.Options), Payload: append([]byte(nil), m.Payload...)}
	}
	c.config.Engine.Schedule(&k.deadline, k.open.expires(r.Arrival.Add(c.config.Timeout)))
	c.mu.Unlock()
	if stream != nil {
		k.send(stream, &m)
	}
	return k
}

// enter has l carry k. It returns the connection, or nil if that is not open yet:
// k.request is sent when it is. Called under the lock.
func (l *link) enter(k *streamCall) *Stream {
	k.link = l
	l.calls[k.token] = k
	l.used = time.Now()
	if l.stream == nil {
		l.waiting = append(l.waiting, k)
	}
	return l.stream
}

// Capacity is what a message to a server may carry beside options of usual size,
// and whether it may be a BERT block (RFC 8323 §6): the least that every server
// takes while there is no connection to this one.
func (c *StreamClient) Capacity(t *exchange.Target) (payload int, bert bool) {
	c.mu.Lock()
	l := c.links[serverKey{t.Scheme, t.Host, t.Addr}]
	if l == nil || l.stream == nil {
		c.mu.Unlock()
		return maxDatagramPayload, false
	}
	s := l.stream
	c.mu.Unlock()
	return s.capacity()
}

// linkTo returns the connection to the server, which may be just being opened, for
// the client at the address of opener. Called under the lock.
func (c *StreamClient) linkTo(key serverKey, opener netip.Addr) (*link, *exchange.Failure) {
	if l := c.links[key]; l != nil {
		if l.stream == nil || l.stream.usable() {
			return l, nil
		}
		delete(c.links, key) // it ends when its last response is there
	}
	now := time.Now()
	f, failed := c.failures.Get(key)
	switch {
	case c.closed || c.ctx.Err() != nil:
		return nil, errClosing
	case failed && now.Before(f.until):
		return nil, unreachable(f.err)
	case !c.shares.Take(opener, c.config.Connections) && !(c.makeRoom(opener) && c.shares.Take(opener, c.config.Connections)):
		return nil, &exchange.Failure{Reason: exchange.Overloaded, Detail: "too many connections to servers", RetryAfter: time.Second}
	}
	l := &link{client: c, key: key, opener: opener, calls: make(map[uint64]*streamCall)}
	l.unused.Fire = exchange.FireFunc(l.closeUnused)
	c.links[key] = l
	c.wg.Go(func() { l.run() })
	return l, nil
}

// makeRoom has the connection that was without requests for the longest time end, to
// make room for another one, and reports whether there is such a one: of all, or
// where the share of the client is used up, of those opened for it. Called under the
// lock.
func (c *StreamClient) makeRoom(opener netip.Addr) bool {
	if c.leaving >= maxLeaving {
		return false
	}
	modest := c.shares.Modest(opener, c.config.Connections)
	var oldest *link
	for _, l := range c.links {
		if l.stream != nil && len(l.calls) == 0 && (modest || l.opener == opener) && (oldest == nil || l.used.Before(oldest.used)) {
			oldest = l
		}
	}
	if oldest == nil {
		return false
	}
	c.config.Stats.Evicted.Add(1)
	delete(c.links, oldest.key)
	oldest.evicted = true
	c.leaving++
	c.shares.Give(oldest.opener)
	c.config.Engine.Schedule(&oldest.unused, time.Now()) // which closes it
	return true
}

// maxLeaving bounds the connections beyond the limit that are being closed.
const maxLeaving = 64

func unreachable(err error) *exchange.Failure {
	return &exchange.Failure{Reason: exchange.Unreachable, Detail: "the server cannot be reached", Err: err}
}

func (l *link) newToken() uint64 {
	for {
		if t := l.client.tokens.Uint64(); l.calls[t] == nil {
			return t
		}
	}
}

// run opens the connection and carries it to its end.
func (l *link) run() {
	c := l.client
	c.config.Stats.Open.Add(1)
	defer c.config.Stats.Open.Add(-1)
	until := time.Now().Add(c.config.Limits.Handshake)
	ctx, cancel := context.WithDeadline(c.ctx, until)
	stream, closeConn, err := dialStream(ctx, &c.config, l.key, l)
	cancel()
	if err == nil {
		err = stream.run(c.ctx, until)
		closeConn()
	}
	l.end(err)
}

// ready implements streamOwner: the requests that waited go out.
func (l *link) ready(s *Stream) {
	c := l.client
	c.config.Stats.Dialled.Add(1)
	c.mu.Lock()
	c.failures.Remove(l.key)
	l.stream = s
	l.used = time.Now()
	waiting := l.waiting
	l.waiting = nil
	c.mu.Unlock()
	c.config.Engine.Schedule(&l.unused, time.Now().Add(c.config.Unused))
	for _, k := range waiting {
		c.mu.Lock()
		alive := l.calls[k.token] == k
		c.mu.Unlock()
		if alive {
			k.send(s, k.request)
		}
	}
}

// busy implements streamOwner. Observations do not keep a connection that the
// server wants to end: they go on over another one.
func (l *link) busy(*Stream) bool {
	l.client.mu.Lock()
	defer l.client.mu.Unlock()
	return len(l.calls) > l.standing
}

// end ends what waits for the connection (FP-33).
func (l *link) end(err error) {
	c := l.client
	c.mu.Lock()
	l.ended = true
	if c.links[l.key] == l {
		delete(c.links, l.key)
	}
	if l.evicted {
		c.leaving--
	} else {
		c.shares.Give(l.opener)
	}
	opened := l.stream != nil
	if !opened {
		old, _ := c.failures.Get(l.key)
		pause := min(max(2*old.pause, c.config.RetryMin), c.config.RetryMax)
		c.failures.Add(l.key, failedServer{until: time.Now().Add(pause), pause: pause, err: err})
	}
	calls := l.calls
	l.calls = nil
	c.setAdrift(calls)
	c.mu.Unlock()
	c.config.Engine.Unschedule(&l.unused)
	write := c.config.Log.Debug
	switch {
	case !opened:
		c.config.Stats.DialsFailed.Add(1)
		write = c.config.Log.Info
	case len(calls) > 0:
		c.config.Stats.Lost.Add(1)
		write = c.config.Log.Info
	}
	write("connection to server ended", zap.String("scheme", l.key.scheme), zap.Stringer("server", l.key.addr), zap.NamedError("why", err))
	for _, k := range calls {
		c.config.Engine.Unschedule(&k.deadline)
		k.end(unreachable(err))
	}
	c.config.Engine.Flush()
}

// closeUnused releases the connection when nobody has used it for a while.
func (l *link) closeUnused(now time.Time) {
	c := l.client
	c.mu.Lock()
	if l.ended {
		c.mu.Unlock()
		return
	}
	next := l.used.Add(c.config.Unused)
	if len(l.calls) > 0 {
		next = now.Add(c.config.Unused)
	}
	release := l.evicted || !next.After(now)
	if release && c.links[l.key] == l {
		delete(c.links, l.key)
	}
	stream := l.stream
	c.mu.Unlock()
	if release {
		stream.release()
		return
	}
	c.config.Engine.Schedule(&l.unused, next)
}

// response implements streamOwner.
func (l *link) response(s *Stream, m *wire.Message) bool {
	if len(m.Token) != 8 {
		return false
	}
	c := l.client
	c.mu.Lock()
	k := l.calls[binary.BigEndian.Uint64(m.Token)]
	if k == nil {
		c.mu.Unlock()
		if c.config.Stray != nil {
			c.config.Stray(l.key.scheme, l.key.addr)
		}
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
		if l.calls[k.token] != k { // it has ended meanwhile
			c.mu.Unlock()
			return true
		}
	}
	if k.open != nil {
		l.openResponse(s, k, m)
		return true
	}
	c.remove(k)() // which lets go of the lock
	if c.config.Latency != nil {
		c.config.Latency.Observe(time.Since(k.begun))
	}
	p := responses.Get().(*exchange.Response)
	*p = exchange.Response{Code: m.Code, Options: m.Options, Payload: m.Payload, From: l.key.addr}
	k.sink.Respond(p)
	*p = exchange.Response{}
	responses.Put(p)
	k.sink.End(nil)
	return true
}

// take takes a call out of its table; it reports false when somebody else has
// done so.
func (c *StreamClient) take(k *streamCall) bool {
	c.mu.Lock()
	_, drifts := c.adrift[k]
	if !drifts && k.link.calls[k.token] != k {
		c.mu.Unlock()
		return false
	}
	c.remove(k)()
	return true
}

// remove takes a call out of its table, called under the lock. What it returns
// lets go of the lock and does the rest.
func (c *StreamClient) remove(k *streamCall) func() {
	l := k.link
	if k.open != nil {
		c.forgetOpen(k)
	}
	if _, drifts := c.adrift[k]; drifts {
		delete(c.adrift, k)
		return func() {
			c.mu.Unlock()
			c.config.Engine.Unschedule(&k.deadline)
		}
	}
	delete(l.calls, k.token)
	l.used = time.Now()
	if l.stream == nil {
		l.waiting = slices.DeleteFunc(l.waiting, func(w *streamCall) bool { return w == k })
	}
	stream, last, replaced := l.stream, len(l.calls) == l.standing, c.links[l.key] != l
	return func() {
		c.mu.Unlock()
		c.config.Engine.Unschedule(&k.deadline)
		switch {
		case stream == nil || !last:
		case replaced:
			stream.release()
		default:
			stream.closeIfReleased()
		}
	}
}

// send sends the request of a call whose connection is open.
func (k *streamCall) send(s *Stream, m *wire.Message) {
	m, err := sealed(k.sealing, m)
	if err != nil {
		k.endWith(err)
		return
	}
	var token [8]byte
	binary.BigEndian.PutUint64(token[:], k.token)
	m.Token = token[:]
	err = s.put(m)
	if err == nil {
		acknowledge(k.sink) // the connection is there, and says so if it breaks
		if k.open != nil && k.open.silent {
			k.endWith(nil)
		}
		return
	}
	failure := unreachable(err)
	if errors.Is(err, errMessageTooBig) {
		failure = &exchange.Failure{Reason: exchange.TooLarge, Detail: "the request is too large for the server", Err: err}
	} else if k.open != nil && k.client.established(k) {
		return // the connection is ending, and the observation goes on over another one
	}
	k.endWith(failure)
}

func (k *streamCall) endWith(err error) {
	if k.client.take(k) {
		k.end(err)
	}
}

func (k *streamCall) end(err error) {
	if k.open != nil {
		k.open.end(k.sink, err)
		return
	}
	k.sink.End(err)
}

// Cancel implements exchange.Canceler.
func (k *streamCall) Cancel() { k.stop(exchange.ErrCanceled) }

// Forget implements exchange.Forgetter.
func (k *streamCall) Forget() { k.endWith(exchange.ErrCanceled) }

// Fire implements exchange.Firer: its time is over.
func (k *streamCall) Fire(now time.Time) {
	if k.open != nil {
		k.openExpired(now)
		return
	}
	k.endWith(errNoAnswer)
}
