package httpbridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

const (
	eventStream = "text/event-stream"
	// heartbeat is how often a silent stream of events carries a comment, so that
	// nothing on the way takes it for dead (HC-92).
	heartbeat = 15 * time.Second
)

// event is the data of one server-sent event (HC-92).
type event struct {
	element
	// ReplyFrom is the field of that name, of a group's member.
	ReplyFrom string `json:"replyFrom,omitempty"`
	// Fields are further header fields of the response.
	Fields map[string]string `json:"fields,omitempty"`
}

// takeEvents cuts text/event-stream out of an Accept field. ok is false if
// something else is preferred.
func takeEvents(ranges []mediaRange) (rest []mediaRange, ok bool) {
	if len(ranges) == 0 || ranges[0].name != eventStream || ranges[0].q == 0 {
		return ranges, false
	}
	return ranges[1:], true
}

// observe begins the exchange of an observation.
func (q *query) observe(echo []byte) (*inbox, func()) {
	f := q.call.front
	box := newInbox(f.Limits.QueueParts, f.Limits.QueueBytes, f.budget, f.begun())
	r := q.request(0, echo)
	r.Options = insertOption(r.Options, wire.Observe, []byte{})
	cancel := f.Next.Exchange(r, box)
	f.Engine.Flush()
	return box, func() { // what the client leaves is deregistered
		cancel.Cancel()
		f.Engine.Flush()
		box.leave()
	}
}

// events answers with server-sent events, one for each response of an
// observation, of a single server or of a whole group (HC-92).
func (q *query) events() *problem {
	f := q.call.front
	ctx, done := f.whileServing(q.r.Context())
	defer done()
	box, leave := q.observe(nil)
	defer func() { leave() }()
	var first received
	if waiting, _, _ := box.state(); waiting || !q.timeout.Present || !q.call.place.uri.Addr.IsMulticast() {
		// The status of a single server's response is that of ours.
		var ok bool
		var err error
		for asked := false; ; asked = true {
			first, ok, err = box.next(ctx, nil)
			challenge, challenged := q.challenge(first)
			if !challenged || asked {
				break
			}
			leave()
			box, leave = q.observe(challenge) // HC-99: reading is safe
		}
		switch {
		case !ok && ctx.Err() != nil:
			return q.interrupted(ctx)
		case !ok && err != nil:
			return q.failed(err)
		case !ok && !q.timeout.Present:
			return failureProblem(exchange.Failf(exchange.NoAnswer, "no response"))
		case ok && first.Code>>5 != 2 && q.alone(first.Response):
			q.respondAlone(first.Response)
			return nil
		}
	} else if _, ended, err := box.state(); ended && err != nil {
		return q.failed(err)
	}
	h := q.w.Header()
	h["Content-Type"] = []string{eventStream}
	h["Cache-Control"] = []string{"no-store, no-transform"} // HC-89
	h["X-Accel-Buffering"] = []string{"no"}
	f.varies(h)
	q.w.WriteHeader(http.StatusOK)
	f.Stats.EventStreams.Add(1)
	defer f.Stats.EventStreams.Add(-1)
	q.relayEvents(ctx, box, first)
	return nil
}

// challenge is the value of Echo with which a server asks for a fresh request.
func (q *query) challenge(r received) ([]byte, bool) {
	if r.Response == nil || r.Code != codes.Unauthorized || r.GroupPort != 0 {
		return nil, false
	}
	value, ok := wire.First(r.Options, wire.Echo)
	return append([]byte(nil), value...), ok
}

// relayEvents writes events until the observation ends or the client leaves.
func (q *query) relayEvents(ctx context.Context, box *inbox, r received) {
	f := q.call.front
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for id := 0; ; {
		if r.Response != nil {
			if a, ok := q.eventOf(r); ok {
				_, _ = q.send.Write(q.event(id, r, a))
				id++
			}
		}
		if waiting, _, _ := box.state(); !waiting {
			_ = q.send.flush()
		}
		var ok bool
		var err error
		r, ok, err = box.next(ctx, beat.C)
		var slow errSlowReader
		switch {
		case errors.As(err, &slow), q.send.tooSlow():
			f.Stats.SlowReaders.Add(1)
			panic(http.ErrAbortHandler)
		case q.send.err != nil, q.r.Context().Err() != nil: // closing the stream removes the observer
			return
		case ctx.Err() != nil:
			_, _ = q.send.Write(q.lastEvent(errStopping))
			_ = q.send.flush()
			return
		case errors.Is(err, errQuiet):
			_, _ = q.send.Write([]byte(":\n\n"))
		case ok:
		default:
			_, _ = q.send.Write(q.lastEvent(err))
			_ = q.send.flush()
			return
		}
	}
}

// eventOf translates one notification.
func (q *query) eventOf(r received) (answer, bool) {
	if q.timeout.Present {
		return q.partOf(r)
	}
	return q.of(r.Response, false)
}

func (q *query) event(id int, r received, a answer) []byte {
	e := event{element: q.newElement(r, a), Fields: make(map[string]string)}
	for name, values := range a.fields {
		switch name {
		case "Content-Type", "Content-Length", "Content-Encoding":
		case fieldReplyFrom:
			e.ReplyFrom = values[0]
		case "Etag":
			e.Fields["ETag"] = values[0]
		default:
			e.Fields[name] = values[0]
		}
	}
	data, err := json.Marshal(e) // one line: line breaks are escaped
	if err != nil {              // what is in it was checked
		return nil
	}
	return fmt.Appendf(nil, "id: %d\ndata: %s\n\n", id, data)
}

// lastEvent tells the client that nothing more will come, and why: the resource
// cannot be observed, the server has ended the observation, or the proxy has.
// Without it an EventSource would take the end for a fault of the network and
// ask again. That is what it should do where the proxy has interrupted the
// observation for a while: because it works by another configuration now, or stops.
func (q *query) lastEvent(err error) []byte {
	e := struct {
		Status int    `json:"status,omitempty"`
		Detail string `json:"detail"`
	}{Detail: "the observation has ended"}
	name, retry := "end", ""
	if err != nil {
		p := q.failed(err)
		e.Status, e.Detail = p.status, p.detail
		if p.status == http.StatusServiceUnavailable {
			name, retry = "interrupted", "retry: "+first(p.fields, "Retry-After")+"000\n" // in milliseconds
		}
	}
	data, _ := json.Marshal(e) // a number and a string
	return fmt.Appendf(nil, "%sevent: %s\ndata: %s\n\n", retry, name, data)
}

// maxWait bounds the time of a long-poll.
const maxWait = 10 * time.Minute

// waitOf reads the preference wait=N of a long-poll (HC-92, RFC 7240 §4.3).
func (q *query) waitOf() time.Duration {
	if !q.reading || len(q.listed) == 0 || q.timeout.Present {
		return 0
	}
	n, err := strconv.ParseUint(preferences(q.r.Header["Prefer"])["wait"], 10, 32)
	if err != nil {
		return 0
	}
	return min(time.Duration(n)*time.Second, maxWait)
}

// wait carries out a long-poll: it answers when the representation is another
// one than the client has, or after the time with 304 (HC-92).
func (q *query) wait(patience time.Duration) *problem {
	f := q.call.front
	ctx, done := f.whileServing(q.r.Context())
	defer done()
	over := time.NewTimer(patience)
	defer over.Stop()
	box, leave := q.observe(nil)
	defer func() { leave() }()
	var same *exchange.Response // the last one, which the client has
	for asked := false; ; {
		r, ok, err := box.next(ctx, over.C)
		challenge, challenged := q.challenge(r)
		switch {
		case ctx.Err() != nil:
			return q.interrupted(ctx)
		case challenged && !asked:
			asked = true
			leave()
			box, leave = q.observe(challenge)
		case ok && q.unchanged(r.Response):
			same = r.Response
		case ok:
			q.applied(patience)
			q.respond(r.Response)
			return nil
		case same != nil: // the time is over, or the resource cannot be observed
			if errors.Is(err, errQuiet) {
				q.applied(patience)
			}
			q.respond(same)
			return nil
		case errors.Is(err, errQuiet):
			return failureProblem(exchange.Failf(exchange.NoAnswer, "no response within the time to wait"))
		case err != nil:
			return q.failed(err)
		default:
			return failureProblem(exchange.Failf(exchange.NoAnswer, "no response"))
		}
	}
}

// interrupted is the end of a request whose context has ended: the client has left, or
// the proxy stops.
func (q *query) interrupted(ctx context.Context) *problem {
	if q.r.Context().Err() == nil {
		return q.failed(context.Cause(ctx))
	}
	q.call.front.Stats.Disconnects.Add(1)
	return nil
}

func (q *query) applied(patience time.Duration) {
	q.w.Header()["Preference-Applied"] = []string{"wait=" + strconv.Itoa(int(patience/time.Second))}
	q.w.Header().Add("Vary", "Prefer")
}

// unchanged reports whether the client has the representation of p.
func (q *query) unchanged(p *exchange.Response) bool {
	a, ok := q.of(p, false)
	return ok && a.status == http.StatusNotModified
}
