package httpbridge

import (
	"errors"
	"net/http"
	"strconv"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// unicast carries out a request with one response.
func (q *query) unicast() *problem {
	f := q.call.front
	var echo []byte
	for try := 0; ; {
		p, refusal := q.ask(q.request(try, echo))
		if p == nil {
			return refusal
		}
		again := isSafe(q.r.Method)
		challenge, challenged := wire.First(p.Options, wire.Echo)
		switch {
		case p.Code == codes.Unauthorized && challenged:
			if again && echo == nil {
				echo = append([]byte{}, challenge...)
				continue
			}
			refusal := refuse(http.StatusServiceUnavailable, "the server wants proof that the request is fresh", "send it again").retryAfter(0)
			refusal.close = true
			return refusal // HC-99
		case p.Code == codes.NotAcceptable && again && try+1 < len(q.accept):
			try++
			continue // HC-42
		}
		q.respond(p)
		if e := f.Log.Check(zap.DebugLevel, "response"); e != nil {
			e.Write(zap.Uint64("exchange", q.id), zap.String("code", wire.CodeString(p.Code)), zap.Stringer("server", p.From))
		}
		return nil
	}
}

// ask carries out one exchange. Both results are nil when the client has gone.
func (q *query) ask(r *exchange.Request) (*exchange.Response, *problem) {
	f := q.call.front
	box := newInbox(1, f.Limits.ResponseBody+maxOptions, f.budget, f.begun())
	defer box.leave()
	box.once = true
	cancel := f.Next.Exchange(r, box)
	f.Engine.Flush()
	p, ok, err := box.next(q.r.Context(), nil)
	switch {
	case ok:
		return p.Response, nil
	case q.r.Context().Err() != nil:
		f.Stats.Disconnects.Add(1)
		if !isSafe(q.r.Method) { // the result of a safe one is of use to a cache: HC-60
			cancel.Cancel()
			f.Engine.Flush()
		}
		return nil, nil
	case err == nil:
		return nil, failureProblem(exchange.Failf(exchange.NoAnswer, "no response"))
	}
	return nil, q.failed(err)
}

// maxOptions is room for the options of a response.
const maxOptions = 16 << 10

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
	h["Vary"] = append(h["Vary"], "Accept") // HC-58
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
