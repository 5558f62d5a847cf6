package httpbridge

import (
	"errors"
	"net/http"
	"runtime"
	"strconv"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// unicast carries out a request with one response.
func (q *query) unicast() *problem {
	var t tries
	for {
		again, refusal := q.try(&t)
		if !again {
			return refusal
		}
	}
}

// tries is what has come of a request that is sent again because of its response.
type tries struct {
	n    int    // of the Accept values
	echo []byte // nil: none was asked for
}

// try carries out one exchange and responds, or says that there has to be another.
func (q *query) try(t *tries) (again bool, _ *problem) {
	f := q.call.front
	box := f.newSingle()
	defer box.leave()
	cancel := f.Next.Exchange(q.request(t.n, t.echo), box)
	// Others that can go on right now have requests to send, too: all of them leave
	// with one call.
	runtime.Gosched()
	f.Engine.Flush()
	p, ok, err := box.wait(q.r.Context().Done())
	switch {
	case !ok:
		f.Stats.Disconnects.Add(1)
		if !isSafe(q.r.Method) { // the result of a safe one is of use to a cache: HC-60
			cancel.Cancel()
			f.Engine.Flush()
		}
		return false, nil
	case err != nil:
		return false, q.failed(err)
	case p == nil:
		return false, failureProblem(exchange.Failf(exchange.NoAnswer, "no response"))
	}
	challenge, challenged := wire.First(p.Options, wire.Echo)
	switch {
	case p.Code == codes.Unauthorized && challenged:
		if isSafe(q.r.Method) && t.echo == nil {
			t.echo = append([]byte{}, challenge...)
			return true, nil
		}
		refusal := refuse(http.StatusServiceUnavailable, "the server wants proof that the request is fresh", "send it again").retryAfter(0)
		refusal.close = true
		return false, refusal // HC-99
	case p.Code == codes.NotAcceptable && isSafe(q.r.Method) && t.n+1 < len(q.accept):
		t.n++
		return true, nil // HC-42
	}
	q.respond(p)
	if e := f.Log.Check(zap.DebugLevel, "response"); e != nil {
		e.Write(zap.Uint64("exchange", q.id), zap.String("code", wire.CodeString(p.Code)), zap.Stringer("server", p.From))
	}
	return false, nil
}

// failed counts the end of an exchange that failed and makes its problem.
func (q *query) failed(err error) *problem {
	failure := exchange.AsFailure(err)
	switch {
	case errors.Is(err, exchange.ErrCanceled):
		failure = exchange.Failf(exchange.Overloaded, "the proxy stopped the exchange")
	case errors.Is(err, errSlowReader{}): // before the client could read anything
		failure = exchange.Failf(exchange.Overloaded, "too much waits to be sent")
	}
	f := q.call.front
	f.Stats.Failures[failure.Reason].Add(1)
	if failure.Err != nil {
		f.Log.Info("exchange failed", zap.Uint64("exchange", q.id), zap.Stringer("reason", failure.Reason), zap.NamedError("cause", failure.Err))
	}
	return failureProblem(failure)
}

// respond writes the response of one server, or of the proxy itself, as the
// response to the HTTP request.
func (q *query) respond(p *exchange.Response) {
	h := q.w.Header()
	a, _ := q.into(h, p, false)
	q.call.front.varies(h)
	if value, ok := wire.First(p.Options, q.call.front.Numbers.MulticastTimeout); ok {
		seconds, _ := wire.Uint(value)
		h[fieldTimeout] = []string{strconv.FormatUint(uint64(seconds), 10)}
		if seconds == 0 {
			h[fieldTimeout] = []string{""} // HC-73
		}
	}
	if a.body != nil {
		h["Content-Length"] = q.field(strconv.Itoa(len(a.body)))
	}
	q.w.WriteHeader(a.status)
	if q.r.Method != http.MethodHead {
		_, _ = q.send.Write(a.body)
	}
}
