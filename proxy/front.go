package proxy

import (
	"errors"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"go.uber.org/zap"

	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/wire"
)

// Authenticator tells who a client is by its transport address and by what it
// has proven in a handshake, which is nil for nothing; nil if unknown.
type Authenticator interface {
	Identify(peer netip.AddrPort, proven *exchange.Security) *exchange.Identity
}

// FrontConfig says what a Front is made of.
type FrontConfig struct {
	// Next gets the requests, and Clients knows who makes them, until Serve names
	// others.
	Next    exchange.Handler
	Clients Authenticator
	Numbers *wire.Numbers
	Engine  *exchange.Engine
	// ZoneInReplyFrom writes the zone of link-local servers into Reply-From
	// (GP-57).
	ZoneInReplyFrom bool
	// MaxExchanges bounds the exchanges under way; more get 5.03.
	MaxExchanges int
	// MaxObservers bounds the observations of all clients; a registration beyond
	// it is a plain request.
	MaxObservers int
	// MaxEnded bounds the Tokens of ended group exchanges that are remembered
	// (GP-43).
	MaxEnded int
	// Protected is how requests with an OSCORE option are served, until Serve says
	// otherwise; nil: as requests with any other option that is not known.
	Protected *Protection
	Stats     *Stats
	Log       *zap.Logger
}

// Front is the CoAP side towards clients: it implements
// endpoint.RequestHandler for every port that serves clients, over datagrams and
// connections (FP-89).
type Front struct {
	FrontConfig
	service atomic.Pointer[service]
	zones   zoneText
	active  atomic.Int64
	idle    chan struct{} // see Drain
	closed  atomic.Bool   // Drain was called
	epoch   time.Time     // see moment

	// What is granted to sources of protected messages that fail (OH-65, OC-54).
	answers *budget
	forgers *forgers

	echoes *echoes

	mu         sync.Mutex
	running    map[clientToken]*groupRequest
	relaying   relaying
	observers  observers
	ended      *endedTokens
	waiting    int // responses in deliveries and pacers
	deliveries map[endpoint.Origin]*delivery
	pacers     map[netip.Addr]*pacer
}

// service is who the clients are and where their requests go: read once per
// request, since an identity means something only to the layers that made it.
type service struct {
	next      exchange.Handler
	clients   Authenticator
	protected *Protection
}

// NewFront returns a Front.
func NewFront(c FrontConfig) *Front {
	f := &Front{FrontConfig: c, idle: make(chan struct{}, 1), running: make(map[clientToken]*groupRequest), relaying: make(relaying),
		observers: newObservers(), epoch: time.Now().Add(-longAgo),
		echoes: newEchoes(), ended: newEndedTokens(c.MaxEnded), deliveries: make(map[endpoint.Origin]*delivery), pacers: make(map[netip.Addr]*pacer),
		answers: newBudget(layerAnswerRate, layerAnswerBurst), forgers: newForgers()}
	f.Serve(c.Next, c.Clients, c.Protected)
	return f
}

// Serve makes further requests go to next, made by those whom clients knows; the
// protected ones as protected says, nil for none. Exchanges that have begun go on
// as they are. Safe for concurrent use.
func (f *Front) Serve(next exchange.Handler, clients Authenticator, protected *Protection) {
	f.service.Store(&service{next, clients, protected})
}

var _ endpoint.RequestHandler = (*Front)(nil)

// HandleRequest implements endpoint.RequestHandler.
func (f *Front) HandleRequest(rx *endpoint.Reception, m *wire.Message) {
	f.Stats.Requests.Add(1)
	if rx.Path.Local.IsMulticast() {
		silence(rx, m)
		return
	}
	serving := f.service.Load()
	var removed layers
	if p := serving.protected; p != nil && wire.Has(m.Options, wire.OSCORE) {
		var done bool
		if m, removed, done = f.unprotect(p, rx, m); done {
			return
		}
	}
	client := serving.clients.Identify(rx.Peer.Addr, removed.proven(rx))
	hop, failure := f.readHop(m.Code, m.Options, client)
	hop.context = removed.context()
	options := m.Options
	if hop.echo && rx.Unproven() {
		var answered bool
		if options, answered = f.echoes.take(options, rx.Peer.Addr, rx.Now); answered {
			f.Stats.Proven.Add(1)
		}
	}
	hop.allowance = f.allow(rx, client, len(removed) > 0)
	if hop.timeout.Present && hop.local || f.Stats.Running.Load() > 0 {
		if f.stopEarly(rx, m, &hop) {
			return
		}
	}
	if !hop.timeout.Present && client != nil && client.Dialect == exchange.Legacy && client.PresetTimeout > 0 {
		hop.timeout = exchange.Timeout{Seconds: uint32(client.PresetTimeout / time.Second), Present: true} // GP-127
	}
	r := requests.Get().(*exchange.Request)
	defer func() { *r = exchange.Request{}; requests.Put(r) }()
	*r = exchange.Request{
		ID: f.Engine.NextID(), Method: m.Code, Options: options, Payload: m.Payload,
		Confirmable: m.Type == message.Confirmable, Client: client, Peer: rx.Peer.Addr, Local: rx.Local(), Scheme: rx.Scheme(), Secured: rx.Secured() || len(removed) > 0,
		Timeout: hop.timeout, Arrival: rx.Now, BodyLimit: rx.MaxPayload(), BERT: rx.BERT(),
	}
	if len(removed) > 0 {
		r.Secured, r.BERT = true, false
		r.BodyLimit = min(r.BodyLimit, maxLayeredPayload)
		if failure == nil && removed.wornOut() && (hop.timeout.Present || wire.Has(m.Options, wire.Observe)) {
			failure = &exchange.Failure{Reason: exchange.Overloaded, Detail: "the security context is nearly used up: renew it", RetryAfter: time.Minute} // OC-55
		}
	}
	if hop.timeout.Present {
		r.PreviousHop = rx.RoundTrip() // GP-94
	}
	if ce := f.Log.Check(zap.DebugLevel, "request"); ce != nil {
		ce.Write(zap.Uint64("exchange", r.ID), zap.Stringer("client", r.Peer), zap.String("method", wire.CodeString(r.Method)),
			zap.Uint32("timeout", r.Timeout.Seconds), zap.Bool("group", r.Timeout.Present))
	}
	switch {
	case f.active.Add(1) > int64(f.MaxExchanges):
		failure = &exchange.Failure{Reason: exchange.Overloaded, Detail: "too many exchanges are running", RetryAfter: time.Second}
	case f.closed.Load():
		failure = &exchange.Failure{Reason: exchange.Overloaded, Detail: "shutting down", RetryAfter: 10 * time.Second}
	}
	if failure == nil && client != nil && hop.allowance != nil && hop.allowance.mayAnswerMuch(r) {
		x := &request{front: f, id: r.ID, client: client, noResponse: hop.noResponse}
		x.in.Accept(rx, m)
		x.in.NotDone()
		x.Respond(f.challenge(rx.Peer.Addr)) // FP-81
		x.End(nil)
		return
	}
	if hop.timeout.Present {
		f.beginGroup(rx, m, r, &hop, serving.next, failure)
		return
	}
	old := f.replaced(rx, m, &hop)
	if failure == nil && f.registers(r, &hop, old != nil) {
		f.observe(rx, m, r, &hop, serving.next, old)
		if old != nil {
			old.end(nil)
		}
		return
	}
	if old != nil {
		old.end(nil)
	}
	x := plainRequests.Get().(*request)
	x.front, x.id, x.client, x.noResponse, x.problem, x.allowance = f, r.ID, client, hop.noResponse, hop.problem, hop.allowance
	x.users.Store(2)
	x.in.Accept(rx, m)
	if failure != nil {
		x.End(failure)
		x.release()
		return
	}
	x.in.CancelWhenGone(serving.next.Exchange(r, x))
	x.in.AckLater()
	x.release()
}

// plainRequests lends the sinks of plain requests.
var plainRequests = sync.Pool{New: func() any { return new(request) }}

// release ends one of the two uses of a lent request: that of HandleRequest, and that
// of its exchange, which can be over before the other. Where something may still
// refer to the request it is left to the garbage collector.
func (x *request) release() {
	if x.users.Add(-1) != 0 || !x.in.Alone() {
		return
	}
	*x = request{}
	plainRequests.Put(x)
}

// silence ends a request that was sent to a group: the proxy is a member of
// none in which it has something to say, and an error would be one of many
// (GC-95).
func silence(rx *endpoint.Reception, m *wire.Message) {
	var in endpoint.Incoming
	in.Accept(rx, m)
	in.Finish()
}

// requests lends the structs that handlers borrow.
var requests = sync.Pool{New: func() any { return new(exchange.Request) }}

// hop is what the options of a request say to this proxy alone.
type hop struct {
	timeout    exchange.Timeout
	noResponse uint32
	// local: none of the options that name a target (GP-40).
	local bool
	// proxy: it is a proxy request (FP-1).
	proxy bool
	// problem: errors are wanted as problem details (FP-38).
	problem bool
	// echo: there is an Echo option.
	echo bool
	// allowance is what may be sent to an address that is not proven, nil for no
	// limit (FP-86).
	allowance *allowance
	// registers: it has Observe 0, for GET or FETCH.
	registers bool
	// replaces is the group observation that it ends or takes the place of.
	replaces *groupRequest
	// further: it asks for a further block of a response (RFC 7959 §2.4).
	further bool
	// context names the OSCORE layers that were removed; empty for none.
	context string
}

// maxLayeredPayload bounds the response body in one message inside OSCORE layers,
// which a datagram has to hold with the layers round it (OC-51, OH-75).
const maxLayeredPayload = 1024

const problemDetails = 257 // application/concise-problem-details+cbor

// readHop reads the options of a request that concern the client's hop.
func (f *Front) readHop(method codes.Code, options message.Options, client *exchange.Identity) (hop, *exchange.Failure) {
	h := hop{local: true}
	var failure *exchange.Failure
	second := legacyTimeout(client, f.Numbers)
	for _, o := range options {
		switch o.ID {
		case wire.URIHost, wire.URIPort, wire.URIPath, wire.URIQuery, wire.URIPathAbbrev:
			h.local = false
		case wire.ProxyURI, wire.ProxyScheme, wire.ProxyCRI, wire.ProxySchemeNumber:
			h.local, h.proxy = false, true
		case wire.Echo:
			h.echo = true
		case wire.NoResponse:
			if len(o.Value) <= 1 {
				h.noResponse, _ = wire.Uint(o.Value)
			}
		case wire.Observe:
			h.registers = wire.IsRegistration(method, options)
		case wire.Block2:
			b, err := wire.ParseBlock(o.Value)
			h.further = err == nil && b.Num > 0
		case wire.Accept:
			v, ok := wire.Uint(o.Value)
			h.problem = ok && v == problemDetails
		case f.Numbers.MulticastTimeout, second:
			if o.ID == 0 {
				continue // that is no option, and no second number
			}
			seconds, ok := wire.Uint(o.Value)
			if !ok || h.timeout.Present {
				failure = badOption(o.ID, "option %d (Multicast-Timeout) is malformed or repeated", o.ID) // GP-3
				continue
			}
			h.timeout = exchange.Timeout{Seconds: seconds, Present: true}
		}
	}
	if !h.proxy {
		failure = nil // an elective option of a request for the proxy itself
	}
	return h, failure
}

// legacyTimeout is the second number of Multicast-Timeout where the client may
// use it, else 0 (GP-127).
func legacyTimeout(client *exchange.Identity, numbers *wire.Numbers) message.OptionID {
	if client == nil || client.Dialect == exchange.Draft07 {
		return 0
	}
	return numbers.LegacyTimeout
}

// request is a request with one response; it is the sink of its exchange.
type request struct {
	users      atomic.Int32 // of a lent one; see release
	front      *Front
	in         endpoint.Incoming
	id         uint64
	noResponse uint32
	problem    bool
	outcome    outcome
	allowance  *allowance
	target     located // for the log
	client     *exchange.Identity
}

// Locate implements exchange.Locator.
func (x *request) Locate(t *exchange.Target) { x.target = located{t.Scheme, t.Host, t.Addr} }

// Respond implements exchange.Sink.
func (x *request) Respond(p *exchange.Response) exchange.Verdict {
	if x.outcome == silent {
		x.outcome = outcomeOf(p.Code)
		x.send(p)
	}
	return exchange.Stop
}

// End implements exchange.Sink.
func (x *request) End(err error) {
	switch {
	case x.outcome != silent:
	case errors.Is(err, exchange.ErrCanceled): // the client's session or connection has ended
		x.in.Finish()
	case err != nil:
		if notDone[exchange.AsFailure(err).Reason] {
			x.in.NotDone()
		}
		x.send(x.front.fail(x.id, x.in.Peer.Addr, x.client, &x.target, err, x.problem))
	default:
		x.in.Finish()
	}
	f := x.front
	f.Stats.Exchanges[unicastExchange][x.outcome.ended(err)].Add(1)
	x.release()
	f.done()
}

func (x *request) send(p *exchange.Response) {
	if wire.Suppressed(x.noResponse, p.Code) { // FP-84
		x.in.Finish()
		return
	}
	x.front.Stats.Responses.Add(1)
	separate := message.NonConfirmable
	if x.in.Confirmable && x.allowance == nil { // which would be exceeded by repetitions (FP-86)
		separate = message.Confirmable
	}
	p = x.front.fit(x.allowance, &x.in, p)
	x.in.Respond(&wire.Message{Code: p.Code, Options: p.Options, Payload: p.Payload}, separate, nil)
	if ce := x.front.Log.Check(zap.DebugLevel, "response"); ce != nil {
		ce.Write(zap.Uint64("exchange", x.id), zap.String("code", wire.CodeString(p.Code)), zap.Stringer("target", x.target), serverField(p))
	}
}

// fail logs and counts a failure and makes its response.
func (f *Front) fail(id uint64, peer netip.AddrPort, client *exchange.Identity, target *located, err error, problem bool) *exchange.Response {
	failure := exchange.AsFailure(err)
	f.Stats.Failures[failure.Reason].Add(1)
	write := f.Log.Info
	if failure.Reason == exchange.Internal {
		write = f.Log.Error
	}
	write("request refused", zap.Uint64("exchange", id), zap.Stringer("client", peer), zap.String("name", nameOf(client)), targetField(target, failure),
		zap.Stringer("reason", failure.Reason), zap.String("detail", failure.Detail), keyField(failure), zap.NamedError("cause", failure.Err))
	p := failureResponse(failure, f.Numbers)
	if problem && failure.Reason != exchange.HopLimitReached { // whose payload is more than a diagnostic (FP-54)
		asProblemDetails(p, failure)
	}
	return p
}

// located is what a log tells of where a request goes.
type located struct {
	scheme, host string
	addr         netip.AddrPort
}

// String implements fmt.Stringer.
func (l located) String() string {
	return exchange.Target{Scheme: l.scheme, Host: l.host, Addr: l.addr}.String()
}

// targetField names the target of a failure in the log, or what the client asked for
// where that is none.
func targetField(target *located, failure *exchange.Failure) zap.Field {
	if target.scheme == "" && failure.Asked != "" {
		return zap.String("target", failure.Asked)
	}
	return zap.Stringer("target", *target)
}

// keyField names the key of the configuration that denied.
func keyField(failure *exchange.Failure) zap.Field {
	if failure.Key == "" {
		return zap.Skip()
	}
	return zap.String("key", failure.Key)
}

// serverField names the server of a response in the log, if it has one.
func serverField(p *exchange.Response) zap.Field {
	if !p.From.IsValid() {
		return zap.Skip()
	}
	return zap.Stringer("server", p.From)
}

// nameOf is the name of a client's entry, empty for nobody.
func nameOf(client *exchange.Identity) string {
	if client == nil {
		return ""
	}
	return client.Name
}

// asProblemDetails rewrites the diagnostic payload of an error as concise
// problem details (RFC 9290, FP-38).
func asProblemDetails(p *exchange.Response, failure *exchange.Failure) {
	p.Options = insertOption(p.Options, wire.ContentFormat, wire.AppendUint(nil, problemDetails))
	if failure.Reason == exchange.BadOption && failure.Option != 0 {
		p.Payload = appendProblemOption(nil, failure.Option)
		return
	}
	p.Payload = appendProblemTitle(nil, failure.Detail)
}

// Active is the number of exchanges under way.
func (f *Front) Active() int { return int(f.active.Load()) }

// Draining reports whether new requests are refused.
func (f *Front) Draining() bool { return f.closed.Load() }

// Waiting is the number of responses that wait for their client's ACKs, or for
// their turn at its rate.
func (f *Front) Waiting() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.waiting
}

// done counts an exchange that has ended.
func (f *Front) done() {
	if f.active.Add(-1) == 0 {
		select {
		case f.idle <- struct{}{}:
		default:
		}
	}
}

// Drain refuses new requests from now on and waits until those under way have
// ended or stop is closed. It reports how many were left.
func (f *Front) Drain(stop <-chan struct{}) int {
	f.closed.Store(true)
	f.endObservers()
	for {
		left := int(f.active.Load())
		if left == 0 {
			return 0
		}
		select {
		case <-f.idle:
		case <-stop:
			return int(f.active.Load())
		}
	}
}
