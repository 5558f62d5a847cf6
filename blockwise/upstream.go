package blockwise

import (
	"math/rand/v2"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// Upstream is the layer above a leg to a single server: what comes from above
// are whole bodies, and so is what goes up (FP-72). A request body is sent in
// blocks when it does not fit one message, a response body is fetched block by
// block when the server sends it so. It is safe for concurrent use. A
// registration whose body does not fit one message becomes a plain request.
//
// The bodies that it holds are bounded by 64 MiB together, above which an
// exchange ends with exchange.Overloaded.
type Upstream struct {
	next  exchange.Handler
	sized Sized // next, if it is one
	read  reader
	limit int
	tags  atomic.Uint32 // the last Request-Tag
	bytes atomic.Int64  // of all bodies under way in blocks

	mu      sync.Mutex
	refuses *simplelru.LRU[netip.AddrPort, time.Time] // servers without Block1, until when (FP-78)
}

// Sized is a leg over a reliable transport.
type Sized interface {
	// Capacity is what a message to the server may carry beside options of usual
	// size, in bytes, and whether it may be a BERT block (RFC 8323 §6).
	Capacity(t *exchange.Target) (payload int, bert bool)
}

const (
	// maxRefusing bounds the servers remembered as without Block1; at the bound
	// the one remembered first is forgotten, which costs it one request.
	maxRefusing = 1024
	// refusalLifetime is how long that is remembered: a server may get a new
	// firmware.
	refusalLifetime = time.Hour
	// maxUnderWay bounds the bodies of all exchanges together, in bytes.
	maxUnderWay = 64 << 20
)

// NewUpstream returns an Upstream in front of next. limit is the largest
// response body in bytes.
func NewUpstream(next exchange.Handler, limit int) *Upstream {
	refuses, err := simplelru.NewLRU[netip.AddrPort, time.Time](maxRefusing, nil)
	if err != nil {
		panic(err) // the size is a positive constant
	}
	u := &Upstream{next: next, limit: limit, read: wire.ParseBlock, refuses: refuses}
	if sized, ok := next.(Sized); ok {
		u.sized, u.read = sized, wire.ParseBERTBlock
	}
	u.tags.Store(rand.Uint32()) //nolint:gosec // not those of the process before this one (RFC 9175 §3.4); no secret
	return u
}

// Exchange implements exchange.Handler.
func (u *Upstream) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	if value, ok := wire.First(r.Options, wire.Block2); ok {
		if b, err := u.read(value); err != nil || b.Num > 0 {
			return u.next.Exchange(r, w) // FP-76: somebody wants this block alone
		}
	}
	if wire.IsRegistration(r.Method, r.Options) && len(r.Payload) <= maxBlockSize {
		return u.observe(r, w)
	}
	if len(r.Payload) <= u.onePiece(&r.Target) {
		c := &call{upstream: u, sink: w, kept: keepRequest(r)}
		c.adopt(u.next.Exchange(r, c))
		return c
	}
	if u.isRefusing(r.Target.Addr) {
		return exchange.Fail(w, tooLargeForServer())
	}
	o := newOperation(u, w, keepRequest(r).Request())
	o.steps.serial.DoAlways(func() { o.begin(u.largest(&o.request.Target)) })
	return &o.steps
}

// maxBlockSize is the size of the largest blocks but BERT blocks: over UDP, request
// bodies up to it go to the server in one piece.
const maxBlockSize = 16 << maxSZX

// onePiece is the length of the longest request body that goes to the server in
// one piece.
func (u *Upstream) onePiece(t *exchange.Target) int {
	if u.sized == nil {
		return maxBlockSize
	}
	payload, bert := u.sized.Capacity(t)
	if bert {
		payload = min(payload, maxBERT)
	}
	return payload
}

// largest is the size exponent of the largest blocks that the server takes. It
// stays the same for a whole body: libcoap gives no answer when blocks grow.
func (u *Upstream) largest(t *exchange.Target) (szx uint8) {
	if u.sized == nil {
		return maxSZX
	}
	payload, bert := u.sized.Capacity(t)
	if bert && payload >= maxBlockSize {
		return wire.BERT
	}
	for szx = maxSZX; szx > 0 && 16<<szx > payload; szx-- {
	}
	return szx
}

// blockLen is the payload of the blocks of a size exponent.
func (u *Upstream) blockLen(t *exchange.Target, b wire.Block) int {
	if b.SZX != wire.BERT {
		return b.Size()
	}
	payload, _ := u.sized.Capacity(t)
	return max(min(payload, maxBERT)/maxBlockSize, 1) * maxBlockSize
}

func (u *Upstream) isRefusing(server netip.AddrPort) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	until, ok := u.refuses.Get(server)
	return ok && time.Now().Before(until)
}

// noteRefusal remembers a server without Block1 (FP-78).
func (u *Upstream) noteRefusal(server netip.AddrPort) {
	u.mu.Lock()
	u.refuses.Add(server, time.Now().Add(refusalLifetime))
	u.mu.Unlock()
}

// tooLargeForServer is the end of a request with a body that its server does
// not take in blocks and cannot take in one piece.
func tooLargeForServer() *exchange.Failure {
	return &exchange.Failure{Reason: exchange.TooLarge, Detail: "the server takes no bodies in blocks", Limit: maxBlockSize}
}

// call is an exchange whose request goes to the server in one message. It is
// the sink and the canceler of it, and hands over to an operation in blocks if
// the response asks for one.
type call struct {
	upstream *Upstream
	sink     exchange.Sink
	// Touched by the serialised calls of the leg only:
	kept  *kept      // nil once the operation has it, and after the end
	then  *operation // what goes on in blocks
	begin func()     // begins it

	mu       sync.Mutex
	running  exchange.Canceler // the leg's exchange or the operation; nil before and after
	canceled bool
	over     bool
}

// adopt notes the canceler of the leg's exchange, unless that is over already.
// Nobody can have called Cancel yet.
func (c *call) adopt(running exchange.Canceler) {
	c.mu.Lock()
	if c.running == nil && !c.over {
		c.running = running
	}
	c.mu.Unlock()
}

// Acknowledge implements exchange.Acknowledged.
func (c *call) Acknowledge() {
	if a, ok := c.sink.(exchange.Acknowledged); ok {
		a.Acknowledge()
	}
}

// Cancel implements exchange.Canceler.
func (c *call) Cancel() {
	c.mu.Lock()
	c.canceled = true
	running := c.running
	c.mu.Unlock()
	if running != nil {
		running.Cancel()
	}
}

// Respond implements exchange.Sink.
func (c *call) Respond(p *exchange.Response) exchange.Verdict {
	if b, ok := c.wantsBlocks(p); ok {
		c.goOn()
		c.begin = func() { c.then.begin(b.SZX) }
		return exchange.Stop
	}
	if _, more, err := opening(p, c.upstream.read); err == nil && !more && p.Code != codes.Continue {
		return c.sink.Respond(withoutBlocks(p))
	}
	c.goOn()
	c.begin = c.then.answered(p, c.then.request.Method == wire.FETCH)
	return exchange.Stop
}

// goOn makes the operation that begins when the leg has ended this exchange.
func (c *call) goOn() {
	c.then = newOperation(c.upstream, c.sink, c.kept.Request())
	c.kept = nil
}

// wantsBlocks reports whether a server refuses a body for its size and names a
// block size that it would take (RFC 7959 §2.5).
func (c *call) wantsBlocks(p *exchange.Response) (wire.Block, bool) {
	if p.Code != codes.RequestEntityTooLarge {
		return wire.Block{}, false
	}
	value, ok := wire.First(p.Options, wire.Block1)
	b, err := c.upstream.read(value)
	return b, ok && err == nil && b.Size() < c.kept.PayloadLen()
}

// End implements exchange.Sink.
func (c *call) End(err error) {
	if c.kept != nil {
		c.kept.release()
		c.kept = nil
	}
	c.mu.Lock()
	c.running, c.over = nil, true
	if c.then != nil {
		c.running = &c.then.steps
	}
	canceled := c.canceled
	c.mu.Unlock()
	switch {
	case c.then == nil:
		c.sink.End(err)
	case err != nil:
		c.then.end(err)
	case canceled:
		c.then.end(exchange.ErrCanceled)
	default:
		c.then.steps.serial.DoAlways(c.begin)
	}
}

// withoutBlocks returns a response without the block options of its leg. p is
// not changed.
func withoutBlocks(p *exchange.Response) *exchange.Response {
	if !wire.Has(p.Options, wire.Block1) && !wire.Has(p.Options, wire.Block2) {
		return p
	}
	q := *p
	q.Options = withoutOptions(p.Options, wire.Block1, wire.Block2, wire.Size2)
	return &q
}
