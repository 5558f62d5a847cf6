package oscorehop

import (
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// nextHop is a leg and the next hop behind it: it has the other end of the context.
type nextHop struct {
	t        *testing.T
	hop      Hop
	context  *Context
	attempts []*attempt
	inside   func(a *attempt) // called in Exchange; may be nil
}

// attempt is one exchange of the leg.
type attempt struct {
	next     *nextHop
	sink     exchange.Sink
	sealing  exchange.Sealing
	request  Message // as the next hop reads it
	raw      Message // as it was sent
	answerer *Responder
	canceled bool
	ended    bool

	forgotten bool
}

func (n *nextHop) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	a := &attempt{next: n, sink: w, sealing: r.Sealing}
	n.attempts = append(n.attempts, a)
	if err := a.send(Message{Code: r.Method, Options: r.Options, Payload: r.Payload}); err != nil {
		return exchange.Fail(w, err)
	}
	if n.inside != nil {
		n.inside(a)
	}
	return a
}

func (a *attempt) send(m Message) error {
	code, options, payload, err := a.sealing.Seal(m.Code, m.Options, m.Payload)
	if err != nil {
		return err
	}
	a.raw = Message{Code: code, Options: options, Payload: payload}
	option, err := RequestOption(a.raw)
	require.NoError(a.next.t, err)
	a.request, a.answerer, err = a.next.hop.UnprotectRequest(a.next.context, a.raw, option)
	require.NoError(a.next.t, err)
	return nil
}

func (a *attempt) Cancel() {
	if !a.ended {
		a.canceled, a.ended = true, true
		a.sink.End(exchange.ErrCanceled)
	}
}

func (a *attempt) Forget() {
	a.forgotten = true
	a.Cancel()
}

// receive hands a message on as the leg does, and reports whether it was opened.
func (a *attempt) receive(m Message, last bool) bool {
	code, options, payload, ok := a.sealing.Open(m.Code, m.Options, m.Payload)
	if !ok || a.ended {
		return false
	}
	verdict := a.sink.Respond(&exchange.Response{Code: code, Options: options, Payload: payload})
	if verdict == exchange.Stop || last {
		a.ended = true
		a.sink.End(nil)
	}
	return true
}

func (a *attempt) answer(last bool, code codes.Code, payload string, options ...message.Option) bool {
	m, err := a.answerer.Protect(Message{Code: code, Options: options, Payload: []byte(payload)}, a.next.hop.Outgoing(options))
	require.NoError(a.next.t, err)
	return a.receive(m, last)
}

// collected is a sink.
type collected struct {
	responses []*exchange.Response
	ends      []error
}

func (c *collected) Respond(p *exchange.Response) exchange.Verdict {
	c.responses = append(c.responses, p.Clone())
	return exchange.Continue
}
func (c *collected) End(err error) { c.ends = append(c.ends, err) }

func newTowards(t *testing.T) (*Towards, *nextHop) {
	own, other := pairOf(t)
	hop := Hop{Numbers: wire.DefaultNumbers()}
	n := &nextHop{t: t, hop: hop, context: other}
	return &Towards{Next: n, Hop: &hop, Context: func() *Context { return own }}, n
}

func hopRequest(options ...message.Option) *exchange.Request {
	return &exchange.Request{Method: codes.GET, Options: options, Payload: []byte("p")}
}

// OH-3, OH-5, OH-45, OH-102: everything is inside, and what comes back without the
// layer is not taken for a response.
func TestTowards(t *testing.T) {
	layer, next := newTowards(t)
	var c collected
	layer.Exchange(hopRequest(message.Option{ID: wire.MulticastTimeout, Value: []byte{5}}, message.Option{ID: wire.ProxyScheme, Value: []byte("coap")}), &c)
	a := next.attempts[0]
	require.Len(t, a.raw.Options, 1, "OSCORE alone is outside")
	require.Equal(t, codes.GET, a.request.Code)
	require.Len(t, a.request.Options, 2)

	require.False(t, a.receive(Message{Code: codes.Content, Payload: []byte("forged")}, false))
	require.False(t, a.receive(Message{Code: codes.NotFound}, false))
	require.True(t, a.answer(false, codes.Content, "one", message.Option{ID: wire.ReplyFrom, Value: []byte("r")}))
	m, err := a.answerer.Protect(Message{Code: codes.Content, Payload: []byte("two")}, next.hop.Outgoing(nil))
	require.NoError(t, err)
	spoiled := m
	spoiled.Payload = append([]byte{spoiled.Payload[0] ^ 1}, spoiled.Payload[1:]...)
	require.False(t, a.receive(spoiled, false))
	require.True(t, a.receive(m, false), "a spoiled copy does not end the exchange")
	require.False(t, a.receive(m, false), "OH-43: a second copy")
	require.True(t, a.answer(true, codes.Content, "three"))
	require.Equal(t, []error{nil}, c.ends)
	require.Len(t, c.responses, 3)
	require.True(t, wire.Has(c.responses[0].Options, wire.ReplyFrom))
}

// OH-45: an unprotected error of the next hop becomes an error of the hop.
func TestTowardsRefused(t *testing.T) {
	for _, code := range []codes.Code{codes.BadRequest, codes.Unauthorized, codes.BadOption, codes.ServiceUnavailable} {
		layer, next := newTowards(t)
		var c collected
		layer.Exchange(hopRequest(), &c)
		require.True(t, next.attempts[0].receive(Message{Code: code, Payload: []byte("Security context not found")}, true))
		require.Equal(t, codes.BadGateway, c.responses[0].Code)
		require.Equal(t, []error{nil}, c.ends)
	}
}

// OH-113: the request is sent once more when the next hop asks for an Echo, and no
// oftener; a challenge of somebody behind it is passed on.
func TestTowardsEcho(t *testing.T) {
	echo := message.Option{ID: wire.Echo, Value: []byte("12345678")}
	layer, next := newTowards(t)
	var c collected
	cancel := layer.Exchange(hopRequest(message.Option{ID: wire.URIPath, Value: []byte("a")}), &c)
	require.True(t, next.attempts[0].answer(true, codes.Unauthorized, "", echo))
	require.Empty(t, c.responses)
	require.Len(t, next.attempts, 2)
	a := next.attempts[1]
	require.Equal(t, message.Options{{ID: wire.URIPath, Value: []byte("a")}, echo}, a.request.Options)
	require.Equal(t, []byte("p"), a.request.Payload)
	require.NotEqual(t, next.attempts[0].raw.Payload, a.raw.Payload)
	require.True(t, a.answer(true, codes.Unauthorized, "", echo))
	require.Len(t, next.attempts, 2)
	require.Equal(t, codes.Unauthorized, c.responses[0].Code)
	require.Equal(t, []error{nil}, c.ends)
	cancel.Cancel()

	// The client's own Echo is not ours to answer.
	c = collected{}
	layer.Exchange(hopRequest(echo), &c)
	require.True(t, next.attempts[2].answer(true, codes.Unauthorized, "", echo))
	require.Len(t, next.attempts, 3)
	require.Len(t, c.responses, 1)
}

// Cancelling reaches the attempt under way, also when the first one was over
// before it was known.
func TestTowardsCancel(t *testing.T) {
	echo := message.Option{ID: wire.Echo, Value: []byte("12345678")}
	layer, next := newTowards(t)
	var c collected
	layer.Exchange(hopRequest(), &c).Cancel()
	require.True(t, next.attempts[0].canceled)
	require.Equal(t, []error{exchange.ErrCanceled}, c.ends)

	c = collected{}
	next.inside = func(a *attempt) {
		next.inside = nil
		a.answer(true, codes.Unauthorized, "", echo)
	}
	cancel := layer.Exchange(hopRequest(), &c)
	require.Len(t, next.attempts, 3)
	cancel.Cancel()
	require.True(t, next.attempts[2].canceled)
	require.Equal(t, []error{exchange.ErrCanceled}, c.ends)

	// Cancelled in between: no second attempt.
	c = collected{}
	cancel = layer.Exchange(hopRequest(), &c)
	a := next.attempts[3]
	m, err := a.answerer.Protect(Message{Code: codes.Unauthorized, Options: message.Options{echo}}, next.hop.Outgoing(nil))
	require.NoError(t, err)
	code, options, payload, ok := a.sealing.Open(m.Code, m.Options, m.Payload)
	require.True(t, ok)
	require.Equal(t, exchange.Stop, a.sink.Respond(&exchange.Response{Code: code, Options: options, Payload: payload}))
	cancel.Cancel()
	require.Len(t, next.attempts, 4)
	require.Equal(t, []error{exchange.ErrCanceled}, c.ends)
}

// OH-57, OH-63, OC-51: what cannot be protected is not sent, and the client is told.
func TestTowardsUnprotectable(t *testing.T) {
	for name, tt := range map[string]struct {
		request *exchange.Request
		spoil   func(c *Context)
		want    exchange.Reason
	}{
		"unknown option": {hopRequest(message.Option{ID: 2054}), func(*Context) {}, exchange.BadOption},
		"too large":      {&exchange.Request{Method: codes.PUT, Payload: make([]byte, 20000)}, func(*Context) {}, exchange.TooLarge},
		"used up":        {hopRequest(), func(c *Context) { c.counter.next = 1 << 20 }, exchange.Unreachable},
		"closed":         {hopRequest(), func(c *Context) { require.NoError(t, c.Close()) }, exchange.Unreachable},
		"not reserved":   {hopRequest(), func(c *Context) { c.counter.keeper = &Keeper{wake: make(chan struct{}, 1)} }, exchange.Overloaded},
	} {
		t.Run(name, func(t *testing.T) {
			layer, _ := newTowards(t)
			used := 0
			layer.Used = func(*Context) { used++ }
			tt.spoil(layer.Context())
			var c collected
			layer.Exchange(tt.request, &c)
			require.Len(t, c.ends, 1)
			require.Equal(t, tt.want, exchange.AsFailure(c.ends[0]).Reason)
			require.Equal(t, 1, used)
		})
	}
	layer, _ := newTowards(t)
	layer.Context = func() *Context { return nil }
	var c collected
	layer.Exchange(hopRequest(), &c)
	require.Equal(t, exchange.Unreachable, exchange.AsFailure(c.ends[0]).Reason)
}

// OH-49: a renewed registration is protected anew, and responses to the one before
// it still count.
func TestTowardsRenewal(t *testing.T) {
	layer, next := newTowards(t)
	var c collected
	observe := message.Option{ID: wire.Observe, Value: []byte{}}
	layer.Exchange(hopRequest(observe), &c)
	a := next.attempts[0]
	first := a.answerer
	late, err := first.Protect(Message{Code: codes.Content, Options: message.Options{observe}, Payload: []byte("late")}, next.hop.Outgoing(nil))
	require.NoError(t, err)
	registered := a.raw
	require.Equal(t, wire.FETCH, registered.Code) // OH-37
	require.NoError(t, a.send(Message{Code: codes.GET, Options: message.Options{observe}}))
	require.NotEqual(t, registered.Payload, a.raw.Payload)
	require.True(t, a.answer(false, codes.Content, "new", observe))
	require.True(t, a.receive(late, false))
	require.Len(t, c.responses, 2)
}

// What the leg can do beyond the contract, the layer can, too.
func TestTowardsForget(t *testing.T) {
	layer, next := newTowards(t)
	c := &acknowledged{}
	running := layer.Exchange(hopRequest(), c)
	next.attempts[0].sink.(interface{ Acknowledge() }).Acknowledge()
	require.Equal(t, 1, c.acks)
	running.(interface{ Forget() }).Forget()
	require.True(t, next.attempts[0].forgotten)
	require.Len(t, c.ends, 1)

	plain := &collected{}
	layer.Next = exchange.HandlerFunc(func(r *exchange.Request, w exchange.Sink) exchange.Canceler {
		return cancelOnly{next.Exchange(r, w)}
	})
	running = layer.Exchange(hopRequest(), plain)
	next.attempts[1].sink.(interface{ Acknowledge() }).Acknowledge() // nobody wants to know
	running.(interface{ Forget() }).Forget()
	require.True(t, next.attempts[1].canceled)
	require.False(t, next.attempts[1].forgotten)
}

type cancelOnly struct{ exchange.Canceler }

type acknowledged struct {
	collected
	acks int
}

func (a *acknowledged) Acknowledge() { a.acks++ }

// OH-75: of a response that was cut on the way the rest is asked for with the request as
// it was sent, and nothing is opened before it is whole. That the whole is wrong, or cannot
// be had, is an error of the hop; an Echo in it is answered (OH-113).
func TestTowardsPieces(t *testing.T) {
	piece := func(m Message) Message {
		m.Options = insert(append(message.Options{}, m.Options...), message.Option{ID: wire.Block2, Value: []byte{0x08}})
		m.Payload = m.Payload[:8]
		return m
	}
	type fetch struct {
		r     *exchange.Request
		first *exchange.Response
		done  func(*exchange.Response, error)
	}
	begin := func(t *testing.T, options ...message.Option) (*nextHop, *collected, *[]fetch, exchange.Canceler) {
		layer, next := newTowards(t)
		var fetches []fetch
		layer.Whole = func(leg exchange.Handler, r *exchange.Request, first *exchange.Response, done func(*exchange.Response, error)) exchange.Canceler {
			require.Equal(t, next, leg)
			fetches = append(fetches, fetch{r, first, done})
			return cancelFunc(func() { done(nil, exchange.ErrCanceled) })
		}
		c := &collected{}
		return next, c, &fetches, layer.Exchange(hopRequest(options...), c)
	}
	protected := func(t *testing.T, a *attempt, code codes.Code, text string, options ...message.Option) Message {
		m, err := a.answerer.Protect(Message{Code: code, Options: options, Payload: []byte(text)}, a.next.hop.Outgoing(options))
		require.NoError(t, err)
		return m
	}
	whole := func(m Message) *exchange.Response {
		return &exchange.Response{Code: m.Code, Options: m.Options, Payload: m.Payload}
	}

	t.Run("whole", func(t *testing.T) {
		next, c, fetches, _ := begin(t)
		a := next.attempts[0]
		m := protected(t, a, codes.Content, "a long body")
		require.True(t, a.receive(piece(m), true))
		require.Empty(t, c.responses)
		require.Len(t, *fetches, 1)
		f := (*fetches)[0]
		require.Equal(t, a.raw.Code, f.r.Method)
		require.Equal(t, a.raw.Options, f.r.Options)
		require.Empty(t, f.r.Payload)
		require.Nil(t, f.r.Sealing)
		require.Equal(t, m.Code, f.first.Code)
		require.Equal(t, m.Payload[:8], f.first.Payload)
		f.done(whole(m), nil)
		require.Equal(t, []error{nil}, c.ends)
		require.Len(t, c.responses, 1)
		require.Equal(t, "a long body", string(c.responses[0].Payload))
		require.Equal(t, codes.Content, c.responses[0].Code)
	})
	t.Run("one piece after the other", func(t *testing.T) {
		next, c, fetches, _ := begin(t)
		a := next.attempts[0]
		m := protected(t, a, codes.Content, "a long body")
		require.True(t, a.receive(piece(m), false))
		require.False(t, a.receive(piece(m), true), "the first was one too many already")
		require.Len(t, *fetches, 1)
		require.Empty(t, c.ends)
	})
	t.Run("wrong", func(t *testing.T) {
		next, c, fetches, _ := begin(t)
		a := next.attempts[0]
		m := protected(t, a, codes.Content, "a long body")
		a.receive(piece(m), true)
		m.Payload[9] ^= 1
		(*fetches)[0].done(whole(m), nil)
		require.Empty(t, c.responses)
		require.Equal(t, exchange.BadResponse, exchange.AsFailure(c.ends[0]).Reason)
	})
	t.Run("not to be had", func(t *testing.T) {
		next, c, fetches, _ := begin(t)
		a := next.attempts[0]
		a.receive(piece(protected(t, a, codes.Content, "a long body")), true)
		(*fetches)[0].done(nil, exchange.Failf(exchange.NoAnswer, "silence"))
		require.Equal(t, exchange.NoAnswer, exchange.AsFailure(c.ends[0]).Reason)
	})
	t.Run("canceled", func(t *testing.T) {
		next, c, _, cancel := begin(t)
		a := next.attempts[0]
		a.receive(piece(protected(t, a, codes.Content, "a long body")), true)
		cancel.Cancel()
		require.Equal(t, []error{exchange.ErrCanceled}, c.ends)
	})
	t.Run("challenge", func(t *testing.T) {
		next, c, fetches, cancel := begin(t)
		a := next.attempts[0]
		m := protected(t, a, codes.Unauthorized, "restarted", message.Option{ID: wire.Echo, Value: []byte("echo")})
		a.receive(piece(m), true)
		(*fetches)[0].done(whole(m), nil)
		require.Len(t, next.attempts, 2)
		require.Empty(t, c.ends)
		a = next.attempts[1]
		require.True(t, wire.Has(a.request.Options, wire.Echo))
		m = protected(t, a, codes.Content, "a long body")
		a.receive(piece(m), true)
		require.Len(t, *fetches, 2)
		require.Equal(t, a.raw.Options, (*fetches)[1].r.Options)
		cancel.Cancel()
		require.Equal(t, []error{exchange.ErrCanceled}, c.ends, "the fetch under way")
	})
	for name, options := range map[string][]message.Option{"group": nil, "observation": {{ID: wire.Observe, Value: []byte{}}}} {
		t.Run(name, func(t *testing.T) { // nobody could ask for the rest
			layer, next := newTowards(t)
			layer.Whole = func(exchange.Handler, *exchange.Request, *exchange.Response, func(*exchange.Response, error)) exchange.Canceler {
				t.Error("asked for more")
				return exchange.Ended{}
			}
			r := hopRequest(options...)
			r.Timeout.Present = name == "group"
			var c collected
			layer.Exchange(r, &c)
			a := next.attempts[0]
			require.False(t, a.receive(piece(protected(t, a, codes.Content, "a long body")), false))
			require.True(t, a.answer(true, codes.Content, "one"))
			require.Len(t, c.responses, 1)
		})
	}
}

// cancelFunc is a Canceler made of a function.
type cancelFunc func()

func (f cancelFunc) Cancel() { f() }
