package chain

import (
	"errors"
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

const (
	// firstPause is the first pause between attempts to find an address again.
	firstPause = time.Second
	// probeTimeout is how long such an attempt may bring no sign of life.
	probeTimeout = 5 * time.Second
	// probeEnd is how long the leg may take to say why there is none, where it opens
	// a session first: longer than a handshake that comes to no end.
	probeEnd = 25 * time.Second
)

// peer is one address of a next proxy and what is known of its health. It counts
// as up until something says otherwise: an address that has not been tried, too,
// unless it is a name that has not been resolved.
type peer struct {
	hop     *hop
	address Address
	backup  bool

	// heard is the last sign of life, in nanoseconds since began: by the clock that
	// nobody sets.
	heard atomic.Int64
	began time.Time
	up    atomic.Bool
	known atomic.Bool // a first attempt has told whether it is up
	// addr is where to send to; nil while the name is not resolved.
	addr atomic.Pointer[netip.AddrPort]
	// atMost is the least time that an attempt to find it has taken: the round trip
	// is not longer. 0 before the first.
	atMost atomic.Int64

	mu      sync.Mutex
	serving bool // it is this one that is counted, logged and looked for
	reason  *exchange.Failure
	pause   time.Duration
	probing bool
	probes  []func(alive bool) // who waits for the probe under way
	retry   exchange.Deadline
}

func newPeer(h *hop, i int, a Address) *peer {
	p := &peer{hop: h, address: a, backup: i > 0, pause: firstPause, began: time.Now()}
	if a.Addr.Addr().IsValid() {
		p.addr.Store(&a.Addr)
		p.up.Store(true)
	} else {
		p.reason = exchange.Failf(exchange.Unreachable, "the name of the next proxy has not been resolved yet")
	}
	p.retry.Fire = exchange.FireFunc(func(time.Time) { p.look() })
	return p
}

// peerKey tells the addresses of next proxies apart.
type peerKey struct {
	hop     string
	address Address
}

func (p *peer) identity() peerKey { return peerKey{p.hop.Name, p.address} }

// takeOver makes p the one that tells about the health of its address, with what
// old knows, which may be nil.
func (p *peer) takeOver(old *peer) {
	if old != nil {
		old.mu.Lock()
		p.began = old.began
		p.heard.Store(old.heard.Load())
		p.up.Store(old.up.Load())
		p.known.Store(old.known.Load())
		p.atMost.Store(old.atMost.Load())
		p.addr.Store(old.addr.Load())
		p.reason, p.pause = old.reason, old.pause // nobody uses p yet
		old.mu.Unlock()
		old.retire()
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	p.serving = true
	if p.up.Load() {
		p.hop.Stats.Up.Add(1)
	}
}

// retire ends that p tells about the health of its address.
func (p *peer) retire() {
	p.mu.Lock()
	if p.serving && p.up.Load() {
		p.hop.Stats.Up.Add(-1)
	}
	p.serving = false
	p.mu.Unlock()
	p.hop.chain.config.Engine.Unschedule(&p.retry)
}

// roundTrip is the measured round trip, or what it is at most; 0 if nothing is
// known of it.
func (p *peer) roundTrip() time.Duration {
	if measured := p.hop.chain.config.RoundTrip; measured != nil {
		to := p.to()
		if d := measured(&to); d > 0 {
			return d
		}
	}
	return time.Duration(p.atMost.Load())
}

// usable reports whether requests can go there.
func (p *peer) usable() bool { return p.up.Load() }

// failure is the end of a request that cannot go there (FP-34).
func (p *peer) failure() *exchange.Failure {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.reason == nil {
		return exchange.Failf(exchange.Unreachable, "the next proxy cannot be reached") // it has just come back
	}
	return p.reason
}

func (p *peer) to() exchange.Target {
	t := exchange.Target{Scheme: p.address.Scheme, Host: p.address.Host}
	if addr := p.addr.Load(); addr != nil {
		t.Addr = *addr
	}
	return t
}

// alive notes a sign of life.
func (p *peer) alive() {
	p.heard.Store(int64(time.Since(p.began)))
	if p.up.Load() && p.known.Load() {
		return
	}
	p.mu.Lock()
	first := !p.up.Swap(true)
	news := (!p.known.Swap(true) || first) && p.serving
	p.reason, p.pause = nil, firstPause
	if first && p.serving {
		p.hop.Stats.Up.Add(1)
	}
	p.mu.Unlock()
	if news {
		p.hop.chain.config.Log.Info("next hop is up", zap.String("hop", p.hop.Name), zap.Stringer("uri", p.address), zap.Bool("backup", p.backup))
	}
}

// heardSince reports whether there was a sign of life after the time.
func (p *peer) heardSince(t time.Time) bool { return p.heard.Load() > int64(t.Sub(p.began)) }

// failed notes that something sent then got no sign of life. What came back
// after it speaks against that, but not for ever: a connection that is lost looks
// like this, too, when the request had just been written to it.
func (p *peer) failed(sent time.Time, f *exchange.Failure) {
	if p.heardSince(sent) {
		if f.Reason == exchange.Unreachable {
			p.check(nil)
		}
		return
	}
	p.mu.Lock()
	was := p.up.Swap(false)
	news := (!p.known.Swap(true) || was) && p.serving
	clearer := !news && p.serving && p.reason != nil && p.reason.Reason == exchange.NoAnswer && f.Reason == exchange.Unreachable
	p.reason = &exchange.Failure{Reason: f.Reason, Detail: f.Detail, Err: f.Err}
	pause := p.pause
	if was && p.serving {
		p.hop.Stats.Up.Add(-1)
		p.hop.Stats.Downs.Add(1)
	}
	p.mu.Unlock()
	line := "next hop is down"
	if clearer {
		line = "next hop is still down"
	}
	if news || clearer {
		p.hop.chain.config.Log.Warn(line, zap.String("hop", p.hop.Name), zap.Stringer("uri", p.address), zap.Bool("backup", p.backup),
			zap.Stringer("reason", f.Reason), zap.String("detail", f.Detail), zap.NamedError("cause", f.Err))
	}
	if news {
		p.later(pause)
	}
}

// later looks for the peer again after a pause.
func (p *peer) later(pause time.Duration) {
	c := p.hop.chain
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.serving && c.ctx.Err() == nil {
		c.config.Engine.Schedule(&p.retry, time.Now().Add(pause))
	}
}

// look finds out whether the peer is there. It runs on the engine's goroutine.
func (p *peer) look() {
	c := p.hop.chain
	if c.ctx.Err() != nil {
		return
	}
	if p.address.Addr.Addr().IsValid() {
		p.check(nil)
		return
	}
	c.lookups.Go(func() { // each time: the proxy may have moved
		addrs, err := c.config.Resolve(c.ctx, p.address.Host)
		if err != nil || len(addrs) == 0 {
			p.unresolved(err)
			return
		}
		addr := netip.AddrPortFrom(addrs[0], p.address.Addr.Port())
		p.addr.Store(&addr)
		p.check(nil)
		c.config.Engine.Flush()
	})
}

func (p *peer) unresolved(err error) {
	if p.addr.Load() != nil {
		p.check(nil) // at the address it had
		p.hop.chain.config.Engine.Flush()
		return
	}
	p.missed(&exchange.Failure{Reason: exchange.Unreachable, Detail: "the name of the next proxy does not resolve", Err: err})
}

// missed notes that an attempt to find the peer failed.
func (p *peer) missed(f *exchange.Failure) {
	p.failed(time.Now(), f)
	p.mu.Lock()
	pause := p.pause
	p.pause = min(2*p.pause, p.hop.RetryMax)
	p.mu.Unlock()
	p.later(pause)
}

// check asks the peer for a sign of life and tells whether there was one; several
// that ask at a time share the answer. then may be nil.
func (p *peer) check(then func(alive bool)) {
	p.mu.Lock()
	if then != nil {
		p.probes = append(p.probes, then)
	}
	if p.probing {
		p.mu.Unlock()
		return
	}
	p.probing = true
	p.mu.Unlock()
	c := p.hop.chain
	s := &probe{peer: p, sent: time.Now()}
	r := &exchange.Request{ID: c.config.Engine.NextID(), Method: codes.GET, Confirmable: true, Target: p.to(), Arrival: s.sent,
		Options: message.Options{{ID: wire.URIPath, Value: []byte(".well-known")}, {ID: wire.URIPath, Value: []byte("core")}}}
	s.until.Fire = exchange.FireFunc(s.silent)
	s.cancel = c.config.Leg.Exchange(r, s)
	if !s.over.Load() {
		c.config.Engine.Schedule(&s.until, s.sent.Add(probeTimeout))
		if s.over.Load() {
			c.config.Engine.Unschedule(&s.until)
		}
	}
}

// probe is a request whose response only shows that somebody is there: any will
// do, and so does an acknowledgement. It is the sink of it.
type probe struct {
	peer   *peer
	sent   time.Time
	cancel exchange.Canceler
	until  exchange.Deadline
	alive  atomic.Bool
	over   atomic.Bool
}

// silent deals with an attempt that has brought no sign of life.
func (s *probe) silent(now time.Time) {
	p := s.peer
	if last := s.sent.Add(probeEnd); p.address.Scheme == "coaps" && now.Before(last) {
		if p.up.Load() { // what was the matter before is not forgotten
			p.failed(now, unreachable(nil))
		}
		p.tell(false)
		p.hop.chain.config.Engine.Schedule(&s.until, last)
		if s.over.Load() {
			p.hop.chain.config.Engine.Unschedule(&s.until)
		}
		return
	}
	s.cancel.Cancel()
}

// tell tells those who wait for an attempt what became of it.
func (p *peer) tell(alive bool) {
	p.mu.Lock()
	waiting := p.probes
	p.probes = nil
	p.mu.Unlock()
	for _, then := range waiting {
		then(alive)
	}
}

// Acknowledge implements exchange.Acknowledged.
func (s *probe) Acknowledge() { s.live() }

func (s *probe) live() {
	s.alive.Store(true)
	s.peer.alive()
}

// Respond implements exchange.Sink.
func (s *probe) Respond(*exchange.Response) exchange.Verdict {
	took := int64(time.Since(s.sent))
	if least := s.peer.atMost.Load(); least == 0 || took < least {
		s.peer.atMost.Store(took)
	}
	s.live()
	return exchange.Stop
}

// End implements exchange.Sink.
func (s *probe) End(err error) {
	s.over.Store(true)
	p := s.peer
	c := p.hop.chain
	c.config.Engine.Unschedule(&s.until)
	p.mu.Lock()
	p.probing = false
	p.mu.Unlock()
	alive := s.alive.Load()
	if !alive && c.ctx.Err() == nil {
		p.missed(unreachable(err))
	}
	p.tell(alive)
}

// unreachable is the failure of a request that got no sign of life from the next
// proxy: with its cause where there is one, else for want of an answer.
func unreachable(err error) *exchange.Failure {
	f := exchange.AsFailure(err)
	switch {
	case err == nil, errors.Is(err, exchange.ErrCanceled): // that is our doing, and no cause
		return &exchange.Failure{Reason: exchange.NoAnswer, Detail: "the next proxy does not answer"}
	case f.Reason != exchange.Unreachable:
		return &exchange.Failure{Reason: exchange.NoAnswer, Detail: "the next proxy does not answer", Err: f.Err}
	}
	return &exchange.Failure{Reason: exchange.Unreachable, Detail: "the next proxy cannot be reached", Err: f.Err}
}
