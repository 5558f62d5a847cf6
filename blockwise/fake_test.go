package blockwise

import (
	"errors"
	"fmt"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

var (
	alice  = netip.MustParseAddrPort("192.0.2.1:40001")
	bob    = netip.MustParseAddrPort("192.0.2.2:40001")
	origin = netip.MustParseAddrPort("[2001:db8::7]:5683")
)

// tester is a test, or one run of a property.
type tester interface {
	require.TestingT
	Helper()
}

// checkingSink records what it gets and fails the test when its caller breaks
// the contract of an exchange.
type checkingSink struct {
	t       tester
	verdict func(n int) exchange.Verdict // after the nth response; nil: always Continue
	during  func(n int)                  // called inside Respond

	busy atomic.Bool
	mu   sync.Mutex
	got  []*exchange.Response
	ends int
	err  error
}

func (s *checkingSink) enter(what string) func() {
	if !s.busy.CompareAndSwap(false, true) {
		s.t.Errorf("%s while another call is running", what)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ends > 0 {
		s.t.Errorf("%s after End", what)
	}
	return func() { s.busy.Store(false) }
}

func (s *checkingSink) Respond(p *exchange.Response) exchange.Verdict {
	defer s.enter("Respond")()
	s.mu.Lock()
	for i := 1; i < len(p.Options); i++ {
		if p.Options[i].ID < p.Options[i-1].ID {
			s.t.Errorf("options of the response are not sorted: %v", p.Options)
		}
	}
	s.got = append(s.got, p.Clone())
	n := len(s.got)
	s.mu.Unlock()
	if s.during != nil {
		s.during(n)
	}
	if s.verdict != nil {
		return s.verdict(n)
	}
	return exchange.Continue
}

func (s *checkingSink) End(err error) {
	defer s.enter("End")()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.ends++
	s.err = err
}

func (s *checkingSink) responses() []*exchange.Response {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]*exchange.Response(nil), s.got...)
}

func (s *checkingSink) ended() (ends int, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.ends, s.err
}

// one returns the single response of an exchange that ended well.
func (s *checkingSink) one() *exchange.Response {
	s.t.Helper()
	ends, err := s.ended()
	require.Equal(s.t, 1, ends, "End calls")
	require.NoError(s.t, err)
	got := s.responses()
	require.Len(s.t, got, 1)
	return got[0]
}

// failure returns the end of an exchange without a response.
func (s *checkingSink) failure(want exchange.Reason) *exchange.Failure {
	s.t.Helper()
	ends, err := s.ended()
	require.Equal(s.t, 1, ends, "End calls")
	require.Empty(s.t, s.responses())
	var f *exchange.Failure
	require.ErrorAs(s.t, err, &f)
	require.Equal(s.t, want, f.Reason, f.Error())
	require.NotEmpty(s.t, f.Detail)
	return f
}

// ask makes an exchange with a request of which it destroys every byte as soon
// as Exchange has returned: it was only lent.
func ask(h exchange.Handler, r *exchange.Request, w exchange.Sink) exchange.Canceler {
	lent := r.Clone()
	options, payload, also := append(message.Options(nil), lent.Options...), lent.Payload, lent.Target.Also
	c := h.Exchange(lent, w)
	scribble(options, payload)
	clear(also)
	*lent = exchange.Request{}
	return c
}

func scribble(options message.Options, payload []byte) {
	for i := range options {
		for j := range options[i].Value {
			options[i].Value[j] ^= 0xa5
		}
		options[i].ID = 0xffff
	}
	for i := range payload {
		payload[i] ^= 0xa5
	}
}

// talk makes an exchange and returns its sink.
func talk(t tester, h exchange.Handler, r *exchange.Request) *checkingSink {
	w := &checkingSink{t: t}
	ask(h, r, w)
	return w
}

// fakeLeg is a leg whose answers the test gives: at once when answer returns a
// response, else with asked[i].respond and end. It keeps the contract, and
// destroys every response it has lent.
type fakeLeg struct {
	t      tester
	answer func(r *exchange.Request) *exchange.Response
	fail   func(r *exchange.Request) error
	// before is called inside Exchange before anything else.
	before func(n int)
	// delay makes answers come from another goroutine.
	delay func() time.Duration

	mu    sync.Mutex
	asked []*asked
	wg    sync.WaitGroup
}

// asked is one request that a fake leg got.
type asked struct {
	*exchange.Request
	leg  *fakeLeg
	sink exchange.Sink

	serial   exchange.Serial
	over     atomic.Bool
	canceled atomic.Int32
	stopped  bool // touched by what serial runs
}

func (l *fakeLeg) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	for i := 1; i < len(r.Options); i++ {
		if r.Options[i].ID < r.Options[i-1].ID {
			l.t.Errorf("options of the request are not sorted: %v", r.Options)
		}
	}
	a := &asked{Request: r.Clone(), leg: l, sink: w}
	l.mu.Lock()
	l.asked = append(l.asked, a)
	n := len(l.asked)
	l.mu.Unlock()
	if l.before != nil {
		l.before(n)
	}
	if l.fail != nil {
		if err := l.fail(a.Request); err != nil {
			a.end(err)
			return a
		}
	}
	if l.answer == nil {
		return a
	}
	p := l.answer(a.Request)
	if p == nil {
		return a
	}
	if l.delay == nil {
		a.respond(p)
		a.end(nil)
		return a
	}
	l.wg.Go(func() {
		time.Sleep(l.delay())
		a.respond(p)
		a.end(nil)
	})
	return a
}

// requests returns what was asked so far.
func (l *fakeLeg) requests() []*asked {
	l.mu.Lock()
	defer l.mu.Unlock()
	return append([]*asked(nil), l.asked...)
}

// last returns the latest request.
func (l *fakeLeg) last() *asked {
	l.t.Helper()
	all := l.requests()
	require.NotEmpty(l.t, all)
	return all[len(all)-1]
}

// respond hands on a response unless the exchange is over.
func (a *asked) respond(p *exchange.Response) {
	a.serial.DoAlways(func() {
		if a.over.Load() || a.stopped {
			return
		}
		lent := p.Clone()
		if !lent.From.IsValid() {
			lent.From = a.Target.Addr
		}
		options, payload := append(message.Options(nil), lent.Options...), lent.Payload
		a.stopped = a.sink.Respond(lent) == exchange.Stop
		scribble(options, payload)
		*lent = exchange.Response{}
	})
}

func (a *asked) end(err error) {
	a.serial.DoAlways(func() {
		if a.over.CompareAndSwap(false, true) {
			a.sink.End(err)
		}
	})
}

// answer responds and ends.
func (a *asked) answer(p *exchange.Response) {
	a.respond(p)
	a.end(nil)
}

func (a *asked) Cancel() {
	a.canceled.Add(1)
	a.end(exchange.ErrCanceled)
}

// block returns a block option of the request, and whether there is one.
func (a *asked) block(id message.OptionID) (wire.Block, bool) { return blockOf(a.t(), a.Options, id) }

func (a *asked) t() tester { return a.leg.t }

func blockOf(t tester, options message.Options, id message.OptionID) (wire.Block, bool) {
	t.Helper()
	value, ok := wire.First(options, id)
	b, err := wire.ParseBlock(value)
	require.NoError(t, err)
	return b, ok
}

func option(id message.OptionID, value []byte) message.Option {
	return message.Option{ID: id, Value: value}
}

func uintOption(id message.OptionID, v uint32) message.Option {
	return option(id, wire.AppendUint([]byte{}, v))
}

func blockOption(id message.OptionID, num int, more bool, szx uint8) message.Option {
	return option(id, wire.Block{Num: uint32(num), More: more, SZX: szx}.Append([]byte{}))
}

func uintOf(t tester, options message.Options, id message.OptionID) uint32 {
	t.Helper()
	value, ok := wire.First(options, id)
	require.True(t, ok, "option %d", id)
	v, ok := wire.Uint(value)
	require.True(t, ok)
	return v
}

// request returns a request of alice to the origin for /r, with further options
// in any order.
func request(method codes.Code, payload []byte, options ...message.Option) *exchange.Request {
	r := &exchange.Request{ID: 1, Method: method, Payload: payload, Confirmable: true, Peer: alice,
		Target: exchange.Target{Scheme: "coap", Addr: origin}, Arrival: time.Now(), BodyLimit: 1024}
	for _, o := range append([]message.Option{option(wire.URIPath, []byte("r"))}, options...) {
		at := 0
		for at < len(r.Options) && r.Options[at].ID <= o.ID {
			at++
		}
		r.Options = append(r.Options, message.Option{})
		copy(r.Options[at+1:], r.Options[at:])
		r.Options[at] = o
	}
	return r
}

// bodyOf returns n bytes that differ from place to place.
func bodyOf(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(i*7 + i>>8*13 + i>>16*31)
	}
	return b
}

func content(payload []byte, options ...message.Option) *exchange.Response {
	return &exchange.Response{Code: codes.Content, Payload: payload, Options: options}
}

// slice returns the block of a body that a Block2 option asks for, as a server
// does that sends blocks of at most the given size.
func slice(t tester, body []byte, options message.Options, szx uint8, extra ...message.Option) *exchange.Response {
	asked, wishes := blockOf(t, options, wire.Block2)
	if wishes {
		szx = min(szx, asked.SZX)
	}
	offset := asked.Offset()
	size := 16 << szx
	if offset > 0 && offset >= len(body) {
		return &exchange.Response{Code: codes.BadRequest}
	}
	end := min(offset+size, len(body))
	p := content(body[offset:end], extra...)
	if offset > 0 || end < len(body) || wishes {
		p.Options = withOption(p.Options, wire.Block2, wire.Block{Num: uint32(offset / size), More: end < len(body), SZX: szx}.Append(nil))
	}
	return p
}

var errTest = errors.New("leg broken")

func name(parts ...any) string { return fmt.Sprint(parts...) }
