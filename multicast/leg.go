package multicast

import (
	"context"
	crand "crypto/rand"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"go.uber.org/zap"

	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/wire"
)

// Config says what a Leg is made of.
type Config struct {
	Engine *exchange.Engine
	Open   Open
	// Interface finds a network interface by its name; nil is
	// net.InterfaceByName.
	Interface func(name string) (*net.Interface, error)
	Groups    []Group
	Dedup     endpoint.DedupLimits
	// Observations bounds the observations; a registration beyond it is sent as a
	// plain request.
	Observations int
	// ReuseList bounds the freed Tokens per source port (GC-24).
	ReuseList     int
	Stats         *Stats
	EndpointStats *endpoint.Stats
	Log           *zap.Logger
}

// Leg is the group leg. It implements exchange.Handler for group requests whose
// groups the access layer has named, and is safe for concurrent use.
type Leg struct {
	config Config
	ctx    context.Context
	wg     sync.WaitGroup
	now    func() time.Time
	epoch  time.Time

	mu      sync.Mutex
	groups  map[string]*group
	egress  map[way]*egress
	ports   map[*endpoint.Endpoint]*egress // those of egress, and retired ones still in use
	running map[uint64]*transaction
	tokens  *rand.ChaCha8
	hinted  map[string]bool // clients told about a short T' (GC-36)
	closed  bool
	// observations are the transactions that observe.
	observations int
}

// New returns a Leg whose goroutines end with ctx; Wait waits for them.
func New(ctx context.Context, config Config) (*Leg, error) {
	var seed [32]byte
	if _, err := crand.Read(seed[:]); err != nil {
		return nil, fmt.Errorf("seed tokens: %w", err)
	}
	l := &Leg{config: config, ctx: ctx, now: time.Now, epoch: time.Now(), groups: make(map[string]*group), egress: make(map[way]*egress),
		ports: make(map[*endpoint.Endpoint]*egress), running: make(map[uint64]*transaction), tokens: rand.NewChaCha8(seed), hinted: make(map[string]bool)}
	if l.config.Interface == nil {
		l.config.Interface = net.InterfaceByName
	}
	for _, g := range config.Groups {
		l.groups[g.Name] = newGroup(g)
	}
	return l, nil
}

// Wait waits until the goroutines of the sockets have ended, after the context
// has, and ends the exchanges that were left.
func (l *Leg) Wait() {
	l.mu.Lock()
	l.closed = true
	var left []*transaction
	for _, t := range l.running {
		left = append(left, t)
	}
	for _, g := range l.groups {
		left = append(left, g.queue...)
	}
	l.mu.Unlock()
	for _, t := range left {
		t.serial.DoAlways(func() {
			t.endOpen(&exchange.Failure{Reason: exchange.Overloaded, Detail: "shutting down", RetryAfter: time.Second})
			t.endAll(exchange.ErrCanceled)
		})
	}
	l.wg.Wait()
}

// Queued is the number of requests that wait for their turn.
func (l *Leg) Queued() int {
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, g := range l.groups {
		n += len(g.queue)
	}
	return n
}

// Prepare opens the sockets for a group address now, so that what is wrong with
// an interface shows at the start and not at the first request.
func (l *Leg) Prepare(name string, addr netip.Addr) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.groups[name]
	if g == nil {
		return fmt.Errorf("group %q is not configured", name)
	}
	_, err := l.ways(nil, g, addr)
	return err
}

var _ exchange.Handler = (*Leg)(nil)

// Exchange implements exchange.Handler.
func (l *Leg) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	l.mu.Lock()
	if l.closed {
		l.mu.Unlock()
		return exchange.Fail(w, overloaded("shutting down", time.Second))
	}
	g := l.groups[r.Target.GroupName]
	if g == nil {
		l.mu.Unlock()
		return exchange.Fail(w, exchange.Failf(exchange.Denied, "the group is not configured any more"))
	}
	if f := l.limited(g, r); f != nil {
		l.mu.Unlock()
		l.config.Stats.Limited.Add(1)
		return exchange.Fail(w, f)
	}
	if r.Timeout.Seconds == 0 {
		t := &transaction{leg: l, group: g}
		err := l.send(t, r)
		l.retire(t)
		l.mu.Unlock()
		return exchange.Fail(w, err)
	}
	hint := r.Timeout.Duration() < g.Leisure+roundTrip && r.Client != nil && !l.hinted[r.Client.Name]
	if hint {
		l.hinted[r.Client.Name] = true
	}
	until := r.Arrival.Add(r.Timeout.Duration())
	observes := l.admitObservation(r)
	t, s, displaced, f := l.admit(g, r, w, until)
	if observes && f == nil && t.observation == nil {
		t.observation = newGroupObservation(t, r)
	} else if observes { // it shares one, or there is no room
		l.observations--
		l.config.Stats.Observations.Add(-1)
	}
	l.mu.Unlock()
	if displaced != nil {
		l.config.Stats.Displaced.Add(1)
		displaced.serial.DoAlways(func() { displaced.endAll(groupBusy(g)) })
	}
	if hint { // GC-36
		l.config.Log.Info("this client's timeout is shorter than the time servers may take to answer; late responses are lost",
			zap.String("client", r.Client.Name), zap.Duration("timeout", r.Timeout.Duration()), zap.String("group", g.Name), zap.Duration("leisure", g.Leisure))
	}
	if f != nil {
		l.config.Stats.QueueFull.Add(1)
		return exchange.Fail(w, f)
	}
	s.schedule(until)
	if s.begins {
		l.begin(t, r)
	}
	return s
}

// limited applies the rates of GC-80 and GC-81, called under the lock.
func (l *Leg) limited(g *group, r *exchange.Request) *exchange.Failure {
	if r.Timeout.Seconds == 0 {
		if g.fire.AllowN(r.Arrival, 1) {
			return nil
		}
		return overloaded("too many requests without responses to this group", time.Duration(float64(time.Second)/g.FireRate))
	}
	if g.heard || g.probing == nil {
		return nil
	}
	size := len(r.Payload) + 16
	for _, o := range r.Options {
		size += len(o.Value) + 2
	}
	size *= len(g.Interfaces) * (1 + len(r.Target.Also))
	if g.probing.AllowN(r.Arrival, min(size, probingBurst)) {
		return nil
	}
	return overloaded("this group has never answered", time.Duration(size/g.ProbingRate)*time.Second)
}

func overloaded(detail string, retry time.Duration) *exchange.Failure {
	return &exchange.Failure{Reason: exchange.Overloaded, Detail: detail, RetryAfter: max(retry, time.Second)}
}

// admit makes a subscriber for the request: of a transaction that begins now,
// that waits for its turn, or that another client's identical request has
// waiting already (GC-80, GC-82). Called under the lock.
//
// The transaction that has to leave the queue for it, if any, is returned to be
// ended.
func (l *Leg) admit(g *group, r *exchange.Request, w exchange.Sink, until time.Time) (t *transaction, s *subscriber, displaced *transaction, f *exchange.Failure) {
	if g.outstanding < g.NStart && len(g.queue) == 0 {
		t := newTransaction(l, g, w, until)
		t.holdsSlot, t.first.begins = true, true
		g.outstanding++
		return t, &t.first, nil, nil
	}
	key := shareKey(r)
	if t := g.sharable[key]; t != nil && key != "" {
		l.config.Stats.Shared.Add(1)
		s := &subscriber{}
		s.begin(t, w, until)
		t.subscribers = append(t.subscribers, s)
		return t, s, nil, nil
	}
	t = newTransaction(l, g, w, until)
	t.key = key
	var ok bool
	if g.queue, displaced, ok = exchange.Enqueue(g.queue, t, r.Peer.Addr(), g.round, g.Queue); !ok {
		return nil, nil, nil, groupBusy(g)
	}
	if displaced != nil {
		l.dequeued(displaced)
	}
	l.config.Stats.Queued.Add(1)
	t.request = r.Clone()
	if key != "" {
		g.sharable[key] = t
	}
	return t, &t.first, displaced, nil
}

func groupBusy(g *group) *exchange.Failure {
	return overloaded("too many requests wait for this group", g.Leisure)
}

// shareKey identifies requests that may share one multicast (GC-82); "" for a
// method that is not safe. Hop-Limit is the proxy's own by now and Group-ETag
// gone; everything else has to be the same.
func shareKey(r *exchange.Request) string {
	if r.Method != codes.GET && r.Method != wire.FETCH {
		return ""
	}
	key := append([]byte{byte(r.Method)}, r.Target.Addr.String()...)
	for _, a := range r.Target.Also {
		key = append(append(key, ' '), a.Addr.String()...)
	}
	key = append(key, '\n')
	key = binary.BigEndian.AppendUint32(key, uint32(len(r.Payload)))
	key = append(key, r.Payload...)
	for _, o := range r.Options {
		if o.ID == wire.HopLimit || wire.NoCacheKey(o.ID) {
			continue
		}
		key = binary.BigEndian.AppendUint16(key, uint16(o.ID))
		key = binary.BigEndian.AppendUint16(key, uint16(len(o.Value)))
		key = append(key, o.Value...)
	}
	return string(key)
}

// begin multicasts the request of a transaction that has its slot.
func (l *Leg) begin(t *transaction, r *exchange.Request) {
	l.mu.Lock()
	if t.done {
		l.mu.Unlock()
		return
	}
	err := l.send(t, r)
	if ce := l.config.Log.Check(zap.DebugLevel, "multicast"); ce != nil {
		ce.Write(zap.Uint64("exchange", r.ID), zap.String("group", t.group.Name), zap.Int("datagrams", len(t.sendings)), zap.Error(err))
	}
	if err == nil {
		t.sent = true
		t.begun = l.now()
		expected := t.begun.Add(t.group.Leisure + roundTrip)
		t.slot.Fire = (*slotEnd)(t)
		l.config.Engine.Schedule(&t.slot, expected)
		safe := r.Method == codes.GET || r.Method == wire.FETCH
		if repeat := t.group.Repeat; repeat == SameMessageID || repeat == NewMessageID && safe { // GC-40
			if t.request == nil {
				t.request = r.Clone()
			}
			t.again.Fire = exchange.FireFunc(t.repeat)
			l.config.Engine.Schedule(&t.again, expected)
		}
	}
	l.mu.Unlock()
	if err != nil {
		t.serial.DoAlways(func() { t.endAll(err) })
	}
}

// send multicasts the request by every way with a new Token (GP-31, GC-8).
// Called under the lock.
func (l *Leg) send(t *transaction, r *exchange.Request) error {
	if err := l.plan(t, r); err != nil {
		return &exchange.Failure{Reason: exchange.Unreachable, Detail: "no way to the group", Err: err}
	}
	t.token = l.newToken(t)
	t.lastSent = l.now()
	if len(t.subscribers) > 0 {
		l.running[t.token] = t
	}
	t.groupPort = r.Target.Addr.Port()
	l.config.Stats.Requests.Add(1)
	l.transmit(t, r, false)
	return nil
}

// plan finds the ways to every address of the group.
func (l *Leg) plan(t *transaction, r *exchange.Request) error {
	t.sendings = t.oneWay[:0]
	if err := l.planFor(t, r.Target.GroupName, r.Target.Addr); err != nil {
		return err
	}
	for _, a := range r.Target.Also {
		if err := l.planFor(t, a.Name, a.Addr); err != nil {
			return err
		}
	}
	return nil
}

// planFor finds the ways to one address. Called under the lock.
func (l *Leg) planFor(t *transaction, name string, addr netip.AddrPort) error {
	g := l.groups[name]
	if g == nil {
		return fmt.Errorf("group %q is not configured", name)
	}
	var space [4]*egress
	ways, err := l.ways(space[:0], g, addr.Addr())
	for _, e := range ways {
		e.users++
		t.sendings = append(t.sendings, sending{endpoint: e.endpoint, egress: e, to: endpoint.PeerOf(unzoned(addr))})
	}
	return err
}

func unzoned(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(a.Addr().WithZone(""), a.Port())
}

// newToken returns an unguessable Token that no way of t has in use or on its
// reuse list (GC-22). Called under the lock.
func (l *Leg) newToken(t *transaction) uint64 {
next:
	for {
		token := l.tokens.Uint64()
		if l.running[token] != nil {
			continue
		}
		for _, s := range t.sendings {
			if s.egress.freed.has(token) {
				continue next
			}
		}
		return token
	}
}

// transmit sends the request, NON (GC-11), by every way of t. Nobody waits for
// a RST: it may come from a server that knows nothing of multicast, and says
// nothing about the others (GC-15). Called under the lock.
func (l *Leg) transmit(t *transaction, r *exchange.Request, again bool) {
	var token [8]byte
	binary.BigEndian.PutUint64(token[:], t.token)
	m := wire.Message{Type: message.NonConfirmable, Code: r.Method, Token: token[:], Options: r.Options, Payload: r.Payload}
	for i := range t.sendings {
		s := &t.sendings[i]
		if !again || t.group.Repeat == NewMessageID {
			s.id = s.egress.endpoint.NextID(s.to.Addr)
		}
		m.ID = s.id
		if err := s.egress.endpoint.Send(s.to, endpoint.Path{}, &m, nil); err != nil {
			l.config.Stats.SendFailed.Add(1)
			l.config.Log.Warn("group request not sent", zap.String("group", t.group.Name), zap.String("interface", s.egress.way.iface), zap.Error(err))
		}
	}
}

// retire frees the Token of t. What was sent keeps its slot all the same until
// its time is over: an exchange that is given up, or whose T' is short, makes
// no room for more load on the group (GC-80). Called under the lock; the caller
// begins what it returns.
func (l *Leg) retire(t *transaction) *transaction {
	l.deregister(t)
	if l.running[t.token] == t {
		delete(l.running, t.token)
	}
	for _, s := range t.sendings {
		l.release(s.egress, t.token)
	}
	t.sendings, t.done = nil, true
	l.config.Engine.Unschedule(&t.again)
	if t.sent {
		return nil
	}
	return l.freeSlot(t)
}

// freeSlot ends t's being outstanding (GC-80). Called under the lock.
func (l *Leg) freeSlot(t *transaction) *transaction {
	if !t.holdsSlot {
		return nil
	}
	t.holdsSlot = false
	l.config.Engine.Unschedule(&t.slot)
	g := t.group
	g.outstanding--
	if len(g.queue) == 0 {
		return nil
	}
	next := g.queue[0]
	g.queue[0] = nil
	g.queue = g.queue[1:]
	g.round = next.Round()
	l.dequeued(next)
	g.outstanding++
	next.holdsSlot = true
	return next
}

// dequeued closes a transaction for further subscribers. Called under the lock.
func (l *Leg) dequeued(t *transaction) {
	if g := t.group; t.key != "" && g.sharable[t.key] == t {
		delete(g.sharable, t.key)
	}
}

// HandleResponse implements endpoint.ResponseHandler. The Token alone tells the
// exchange, whatever address and port a response comes from (GP-50, GC-17), and
// stays in use after it (GC-20). What is known is acknowledged if it wants to
// be (GC-12), what is not is reset (GP-59).
func (l *Leg) HandleResponse(e *endpoint.Endpoint, peer endpoint.Peer, m *wire.Message) bool {
	if len(m.Token) != 8 {
		l.config.Stats.Unknown.Add(1)
		return false
	}
	token := binary.BigEndian.Uint64(m.Token)
	l.mu.Lock()
	t := l.running[token]
	if t == nil || !t.sentBy(e) {
		late := l.isLate(e, token)
		l.mu.Unlock()
		if late {
			l.config.Stats.Late.Add(1)
		} else {
			l.config.Stats.Unknown.Add(1)
		}
		return false
	}
	at := e.Now().Sub(l.epoch)
	if t.over(at) {
		l.mu.Unlock()
		l.config.Stats.Late.Add(1)
		return false
	}
	if !t.group.allows(peer.Addr.Addr()) { // GC-25
		l.mu.Unlock()
		l.config.Stats.Foreign.Add(1)
		return false
	}
	t.group.heard = true
	begun := t.begun
	next := l.freeSlot(t)
	l.mu.Unlock()
	if next != nil {
		l.begin(next, next.request)
	}
	l.config.Stats.Responses.Add(1)
	l.config.Stats.Latency.Observe(e.Now().Sub(begun))
	p := responses.Get().(*exchange.Response)
	*p = exchange.Response{Code: m.Code, Options: m.Options, Payload: m.Payload, From: peer.Addr, GroupPort: t.groupPort}
	if !t.serial.Do(func() { t.respond(p, at) }, func() func() { q := p.Clone(); return func() { t.respond(q, at) } }) {
		l.config.Stats.Excess.Add(1)
	}
	*p = exchange.Response{}
	responses.Put(p)
	return true
}

// responses lends the structs that sinks borrow.
var responses = sync.Pool{New: func() any { return new(exchange.Response) }}

// isLate reports whether the Token was used on the port and freed lately.
// Called under the lock.
func (l *Leg) isLate(e *endpoint.Endpoint, token uint64) bool {
	from := l.ports[e]
	return from != nil && from.freed.has(token)
}
