package proxy

import (
	"bytes"
	"errors"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"go.uber.org/zap"

	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/wire"
)

// Route is the last layer: it chooses the leg, rewrites the options for it, and
// checks what comes back before it goes any further up.
type Route struct {
	Group   exchange.Handler
	Unicast exchange.Handler
	// NextHop gets the requests for next proxies; nil if there are none.
	NextHop exchange.Handler
	Numbers *wire.Numbers
	// HopLimit is inserted where a request has none (FP-53).
	HopLimit uint8
	// Identifier names this proxy in the payload of a 5.08 (FP-54); no spaces.
	Identifier string
	// GroupBody returns the largest request payload towards a group in bytes
	// (GC-56).
	GroupBody func(*exchange.Request) int
	HoldBack  *HoldBack
	// ForwardNoResponse tells servers, too, which responses their client does not
	// want (FP-84).
	ForwardNoResponse bool
	Log               *zap.Logger

	running atomic.Int64
}

// Running is the number of exchanges that have been handed to a leg and not
// ended.
func (t *Route) Running() int { return int(t.running.Load()) }

// Exchange implements exchange.Handler.
func (t *Route) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	if r.Stored.Only { // no cache has answered (HC-57)
		return exchange.Fail(w, exchange.Failf(exchange.NoAnswer, "no fresh response is stored"))
	}
	if r.Target.Group {
		if f := t.fitsGroup(r); f != nil {
			return exchange.Fail(w, f)
		}
	} else if f := t.HoldBack.check(r); f != nil {
		return exchange.Fail(w, f)
	}
	scratch := optionScratch.Get().(*message.Options)
	defer putScratch(scratch)
	options, f := t.onward(r, (*scratch)[:0])
	*scratch = options
	if f != nil {
		return exchange.Fail(w, f)
	}
	s := checks.Get().(*checked)
	*s = checked{sink: w, route: t, id: r.ID, observes: wire.IsRegistration(r.Method, options), onward: r.Target.NextHop != ""}
	t.running.Add(1)
	leg := t.Unicast
	if r.Target.Group {
		s.group, leg = true, t.Group
	} else {
		s.told = t.ForwardNoResponse && wire.Has(options, wire.NoResponse)
		s.held = t.HoldBack.key(r)
		r.Timeout = exchange.Timeout{} // it means nothing to a single server (GP-28)
	}
	if s.onward {
		if leg = t.NextHop; leg == nil { // there were next proxies when the server was announced, or heard
			return exchange.Fail(s, exchange.Failf(exchange.Unreachable, "the next proxy that leads there is not configured any more"))
		}
	}
	r.Options = options
	return leg.Exchange(r, s)
}

// fitsGroup refuses request bodies that do not go into one multicast message
// (GC-52, GC-56).
func (t *Route) fitsGroup(r *exchange.Request) *exchange.Failure {
	limit := t.GroupBody(r)
	tooLarge := len(r.Payload) > limit
	if value, ok := wire.First(r.Options, wire.Block1); ok {
		b, err := wire.ParseBlock(value)
		if err != nil {
			return badOption(wire.Block1, "Block1 is malformed")
		}
		tooLarge = tooLarge || b.Num > 0 || b.More
	}
	if !tooLarge {
		return nil
	}
	f := exchange.Failf(exchange.TooLarge, "a group request must fit one message")
	f.Limit = uint32(limit)
	return f
}

// onward appends the options of the request for the next hop to options
// (FP-24, GC-72). Block2 goes on: a client may ask a group for blocks (GC-50).
// So does Hop-Limit, less one: a member of a group may be a proxy (GC-75).
func (t *Route) onward(r *exchange.Request, options message.Options) (message.Options, *exchange.Failure) {
	group, onward := r.Target.Group, r.Target.NextHop != ""
	hop := []byte{t.HopLimit}
	var hopPlaced, noResponse bool
	for _, o := range r.Options {
		if !hopPlaced && o.ID > wire.HopLimit {
			options, hopPlaced = append(options, message.Option{ID: wire.HopLimit, Value: hop}), true
		}
		switch o.ID {
		case wire.HopLimit:
			if len(o.Value) == 1 && !hopPlaced { // a surplus one goes through as unknown (FP-22)
				if o.Value[0] <= 1 {
					t.Log.Warn("hop limit reached", zap.Uint64("exchange", r.ID), zap.Stringer("client", r.Peer))
					return options, &exchange.Failure{Reason: exchange.HopLimitReached, Detail: t.Identifier} // FP-52
				}
				options, hopPlaced = append(options, message.Option{ID: wire.HopLimit, Value: []byte{o.Value[0] - 1}}), true
				continue
			}
		case wire.MaxAge:
			continue // it means nothing in a request
		case wire.Observe:
			// A registration goes on as the proxy's own (FP-24, FP-62); that a
			// client ends one is a matter of its hop (FP-67). With T' = 0 there is
			// nothing to observe (GP-36).
			if !wire.IsRegistration(r.Method, r.Options) || group && r.Timeout.Seconds == 0 {
				continue
			}
		case wire.Block1:
			if group {
				continue // fitsGroup saw that it is whole
			}
		case wire.NoResponse:
			if !group && !t.tellsServer(r, o.Value) {
				continue // FP-84
			}
			noResponse = true // GP-35
		case t.Numbers.GroupETag:
			if group && !onward {
				continue // GP-30, and GP-104 for a next proxy
			}
		}
		options = append(options, o)
	}
	if !hopPlaced {
		options = append(options, message.Option{ID: wire.HopLimit, Value: hop})
	}
	if onward { // which gets the target with all of it (FP-39)
		return options, nil
	}
	if r.Target.Host != "" {
		options = insertOption(options, wire.URIHost, []byte(r.Target.Host)) // GC-72
	}
	if group && r.Timeout.Seconds == 0 && !noResponse {
		options = insertOption(options, wire.NoResponse, []byte{wire.NoResponseAll}) // GP-35
	}
	return options, nil
}

// tellsServer reports whether the No-Response of a request goes on to its single
// server (FP-84). That of a registration does not: clients with other wishes share
// it, and its end must not be kept from them. HTTP servers always answer.
func (t *Route) tellsServer(r *exchange.Request, value []byte) bool {
	_, valid := wire.Uint(value)
	return t.ForwardNoResponse && valid && len(value) == 1 && !wire.IsRegistration(r.Method, r.Options) &&
		r.Target.Scheme != "http" && r.Target.Scheme != "https"
}

// checked is the sink that sees responses first. It is lent for the time until End.
type checked struct {
	sink  exchange.Sink
	route *Route
	id    uint64
	group bool
	// observes: Observe was asked for.
	observes bool
	// onward: it is from a next proxy.
	onward bool
	// told: its server knows which responses are not wanted.
	told bool
	held holdKey
	end  error // replaces the regular end
}

// Respond implements exchange.Sink. What can be processed is the client's
// business, a challenge with Echo, too (GC-76).
func (c *checked) Respond(p *exchange.Response) exchange.Verdict {
	if f := checkResponse(p); f != nil {
		c.route.Log.Info("unusable response", zap.Uint64("exchange", c.id), zap.Stringer("server", p.From), zap.String("reason", f.Detail))
		if !c.group || p.GroupPort == 0 {
			c.end = f
			return exchange.Stop
		}
		bad := failureResponse(f, c.route.Numbers) // GP-60
		bad.From, bad.ReplyFrom, bad.GroupPort = p.From, p.ReplyFrom, p.GroupPort
		bad.Options = insertOption(bad.Options, wire.MaxAge, nil) // it says nothing about the next response
		return c.sink.Respond(bad)
	}
	if slices.ContainsFunc(p.Options, c.drops) {
		q := *p
		q.Options = slices.DeleteFunc(slices.Clone(p.Options), c.drops)
		p = &q
	}
	switch {
	case p.Code == wire.HopLimitReached:
		return c.hopLimitReached(p)
	case p.Code == codes.TooManyRequests && !c.group:
		c.route.HoldBack.hold(c.held, p)
	}
	return c.sink.Respond(p)
}

// drops reports whether a response goes on without an option: Observe where nobody was
// registered (FP-24), and Group-ETag from a member, which cannot know the set of
// responses that it would stand for (GP-84).
func (c *checked) drops(o message.Option) bool {
	return o.ID == wire.Observe && !c.observes || o.ID == c.route.Numbers.GroupETag && c.group && !c.onward
}

// End implements exchange.Sink. A server that was told to keep its response to
// itself may have done so; that it did not acknowledge the request says otherwise
// (FP-84).
func (c *checked) End(err error) {
	c.route.running.Add(-1)
	switch {
	case c.end != nil:
		err = c.end
	case c.told && err != nil && !errors.Is(err, exchange.ErrCanceled) && !errors.Is(err, endpoint.ErrNoAck) &&
		exchange.AsFailure(err).Reason == exchange.NoAnswer:
		err = nil
	}
	w := c.sink
	*c = checked{}
	checks.Put(c)
	w.End(err)
}

var checks = sync.Pool{New: func() any { return new(checked) }}

// hopLimitReached puts this proxy's name in front of the list in a 5.08. One that
// has been here before is not passed on: the client gets one of this proxy's own,
// which names the loop once (FP-54).
func (c *checked) hopLimitReached(p *exchange.Response) exchange.Verdict {
	own := []byte(c.route.Identifier)
	names := bytes.Split(p.Payload, []byte{' '})
	if i := slices.IndexFunc(names, func(n []byte) bool { return bytes.Equal(n, own) }); i >= 0 {
		c.route.Log.Warn("forwarding loop", zap.Uint64("exchange", c.id), zap.ByteString("path", p.Payload))
		if c.group && p.GroupPort != 0 {
			return exchange.Continue
		}
		path := append([][]byte{own}, names[:i]...)
		c.end = &exchange.Failure{Reason: exchange.HopLimitReached, Detail: string(bytes.Join(path, []byte{' '}))}
		return exchange.Stop
	}
	if len(own)+1+len(p.Payload) > maxHopPath {
		return c.sink.Respond(p)
	}
	q := *p
	q.Payload = append(make([]byte, 0, len(own)+1+len(p.Payload)), own...)
	if len(p.Payload) > 0 {
		q.Payload = append(append(q.Payload, ' '), p.Payload...)
	}
	return c.sink.Respond(&q)
}

// maxHopPath keeps a 5.08 within one packet of any path (FP-54).
const maxHopPath = 1024
