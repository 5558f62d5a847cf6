package client

import (
	"context"
	"errors"
	"iter"
	"net"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/wire"
)

// ErrNoAnswer ends a request whose peer did not answer in time.
var ErrNoAnswer = errors.New("no answer in time")

// Do sends a request when the loop over it begins and yields the responses as
// they come, each when its body is complete.
//
// A request without Multicast-Timeout yields one response; with Observe, and if
// its first response is a notification, all notifications until an error one.
// A request with Multicast-Timeout yields every response until that time is
// over, counted from when the peer is known to have the request, and a margin
// with it (GP-114); an error that the proxy made itself ends it at once, as does
// the 2.03 that confirms a Group-ETag (GP-39, GP-85). With a 2.xx response to
// Observe it goes on after that time (GP-64). Responses whose blocks are still
// being fetched are waited for beyond the end.
//
// An error comes last: one that wraps ErrRequest when nothing could be sent,
// ErrNoAnswer, endpoint.ErrReset, endpoint.ErrNoAck or endpoint.ErrUndeliverable
// when nothing came back, the cause of ctx when it ended first, net.ErrClosed
// after Close. Without an error the exchange ran to its regular end.
//
// Ending the loop or ctx ends the exchange: its Token is freed, and the peer is
// told with an Early Stop Request (GP-40) or a deregistration (RFC 7641 §3.6).
func (c *Client) Do(ctx context.Context, r *Request) iter.Seq2[*Response, error] {
	return func(yield func(*Response, error) bool) {
		a, err := c.ask(ctx, r)
		if err != nil {
			yield(nil, err)
			return
		}
		defer a.end()
		a.run(ctx, yield)
	}
}

// asking is one exchange under way. It is used by one goroutine.
type asking struct {
	client  *Client
	request *Request
	message *wire.Message // as sent
	call    *call
	fetches *fetches
	timer   *time.Timer

	open      bool // the Token is in use
	arrived   bool // the peer is known to have the request
	observing bool
	received  int
	order     map[string]notified // by server (GP-67)
}

// notified is the latest notification of one server.
type notified struct {
	sequence uint32
	at       time.Duration
}

// ask sends the request.
func (c *Client) ask(ctx context.Context, r *Request) (*asking, error) {
	if c.ctx.Err() != nil {
		return nil, net.ErrClosed
	}
	if ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	uri, err := r.parse(c.config.Way.Scheme)
	if err != nil {
		return nil, err
	}
	m, err := r.message(uri, r.Form, c.peer.Addr, &c.config.Numbers)
	if err != nil {
		return nil, err
	}
	waiting := 1
	if r.Timeout.Present || r.Observe {
		waiting = maxWaiting
	}
	k, err := c.send(c.peer, m, uri.u.Port, waiting)
	if err != nil {
		return nil, err
	}
	a := &asking{client: c, request: r, message: m, call: k, open: true, timer: time.NewTimer(r.Patience()),
		fetches: c.newFetches(ctx, r, way{peer: c.peer, form: r.Form, uri: uri})}
	if r.Timeout.Present && !r.Confirmable {
		a.arrive() // nothing will tell
	}
	return a, nil
}

// run yields until the exchange is over.
func (a *asking) run(ctx context.Context, yield func(*Response, error) bool) {
	for a.open || a.fetches.pending > 0 || len(a.call.responses) > 0 {
		var p *Response
		var err error
		select {
		case p = <-a.call.responses:
			p = a.take(p)
		case p = <-a.fetches.done:
			a.fetches.pending--
		case err = <-a.call.fate:
			if err == nil {
				a.arrive()
			} else {
				a.free() // there is nobody to be told
			}
		case <-a.timer.C:
			err = a.expire()
		case <-ctx.Done():
			err = context.Cause(ctx)
		case <-a.client.ctx.Done():
			err = net.ErrClosed
		}
		switch {
		case err != nil:
			a.stop()
			yield(nil, err)
			return
		case p != nil && !yield(p, nil):
			a.stop()
			return
		}
	}
}

// arrive notes that the peer has the request: its time T' runs (GP-32), and the
// own time T ends a margin later (GP-114).
func (a *asking) arrive() {
	if a.arrived || !a.request.Timeout.Present {
		return
	}
	a.arrived = true
	if a.request.silent() {
		a.free()
		return
	}
	a.timer.Reset(a.request.Timeout.Duration() + a.client.config.Margin)
}

// take judges a response. It returns nil when the response is not to be yielded
// (yet).
func (a *asking) take(p *Response) *Response {
	a.received++
	sequence, notification := p.observe()
	notification = notification && a.request.Observe
	switch {
	case a.request.Timeout.Present:
		a.arrive()
		if a.received == 1 && p.From == nil && (!p.Success() || p.Code == codes.Valid) {
			a.free() // the proxy's own word: GP-39, GP-85
		}
		a.observing = a.observing || notification // GP-64
	case notification:
		a.observing = true
		a.timer.Stop()
	case a.received > 1 && !a.observing:
		return nil // a second response to a request for one
	default:
		a.free()
	}
	if notification {
		p.Stale = a.isStale(p, sequence)
	}
	if b, more := p.block(); more && b.Num == 0 && p.Success() {
		switch {
		case a.request.Method != codes.GET && a.request.Method != wire.FETCH:
			p.Incomplete = errNotSafe
		case a.fetches.start(p):
			return nil
		default:
			p.Incomplete = errTooMany
		}
	}
	return p
}

// isStale compares a notification with the ones before it of the same server
// (RFC 7641 §3.4, GP-67).
func (a *asking) isStale(p *Response, sequence uint32) bool {
	server := ""
	if p.From != nil {
		server = p.From.ServerURI()
	}
	if a.order == nil {
		a.order = make(map[string]notified)
	}
	last, ok := a.order[server]
	if ok && !fresher(last, notified{sequence, p.Elapsed}) {
		return true
	}
	if ok || len(a.order) < maxWaiting {
		a.order[server] = notified{sequence, p.Elapsed}
	}
	return false
}

// fresher carries out RFC 7641 §3.4.
func fresher(last, next notified) bool {
	const half = 1 << 23
	v1, v2 := last.sequence, next.sequence
	return v1 < v2 && v2-v1 < half || v1 > v2 && v1-v2 > half || next.at > last.at+128*time.Second
}

// expire handles the end of the waiting time.
func (a *asking) expire() error {
	if !a.open || a.observing {
		return nil
	}
	a.free()
	if a.request.Timeout.Present && a.arrived {
		return nil
	}
	if a.received > 0 {
		return nil
	}
	return ErrNoAnswer
}

// free gives up the Token (GP-114, GP-116): what comes now is for nobody.
func (a *asking) free() {
	if a.open {
		a.open = false
		a.timer.Stop()
		a.client.free(a.call)
	}
}

// stop ends an exchange before its time.
func (a *asking) stop() {
	running := a.open
	a.free()
	switch {
	case !running || a.client.ctx.Err() != nil:
	case a.request.Timeout.Present: // GP-40
		a.client.tell(a.call, &wire.Message{Type: a.message.Type, Code: codes.GET,
			Options: message.Options{{ID: a.client.config.Numbers.MulticastTimeout, Value: []byte{}}}})
	case a.observing: // RFC 7641 §3.6
		m := *a.message
		m.Options = append(message.Options(nil), a.message.Options...)
		for i := range m.Options {
			if m.Options[i].ID == wire.Observe {
				m.Options[i].Value = []byte{1}
			}
		}
		a.client.tell(a.call, &m)
	}
}

// end releases everything.
func (a *asking) end() {
	a.free()
	a.fetches.stop()
	a.timer.Stop()
}
