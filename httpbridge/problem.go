package httpbridge

import (
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"strings"
	"time"

	"coapproxy/exchange"
)

// problem is an error of the proxy's own, as its client gets it.
type problem struct {
	status int
	// detail says what is wrong, hint what to change.
	detail, hint string
	// fields are further header fields.
	fields http.Header
	// close ends the connection after the answer.
	close bool
}

func refuse(status int, detail, hint string) *problem {
	return &problem{status: status, detail: detail, hint: hint}
}

func (p *problem) with(name, value string) *problem {
	if p.fields == nil {
		p.fields = make(http.Header)
	}
	p.fields[name] = append(p.fields[name], value)
	return p
}

// retryAfter appends Retry-After in whole seconds, at least one unless d is 0.
func (p *problem) retryAfter(d time.Duration) *problem {
	return p.with("Retry-After", strconv.Itoa(int(math.Ceil(d.Seconds()))))
}

// failureStatus is the one place where a reason of the proxy's own becomes an
// HTTP status. A reason that is not here is an Internal one.
var failureStatus = map[exchange.Reason]int{
	exchange.Internal:         http.StatusInternalServerError,
	exchange.BadRequest:       http.StatusBadRequest,
	exchange.TimeoutMissing:   http.StatusBadRequest, // HC-74
	exchange.TokenReused:      http.StatusBadRequest,
	exchange.Denied:           http.StatusForbidden, // HC-75
	exchange.BadOption:        http.StatusBadRequest,
	exchange.NotFound:         http.StatusNotFound,
	exchange.MethodNotAllowed: http.StatusBadRequest, // as 4.05 in the table of codes
	exchange.TooLarge:         http.StatusRequestEntityTooLarge,
	exchange.Incomplete:       http.StatusBadGateway,
	exchange.TooManyRequests:  http.StatusTooManyRequests, // HC-105
	exchange.GroupsDisabled:   http.StatusForbidden,       // HC-75
	exchange.Unreachable:      http.StatusBadGateway,
	exchange.BadResponse:      http.StatusBadGateway, // HC-22
	exchange.Overloaded:       http.StatusServiceUnavailable,
	exchange.NoAnswer:         http.StatusGatewayTimeout, // HC-22, HC-96
	exchange.NotProxied:       http.StatusNotImplemented, // HC-22
	exchange.TimeoutTooShort:  http.StatusBadGateway,     // as 5.05 in the table of codes
	exchange.HopLimitReached:  http.StatusLoopDetected,
}

// failureHints say what to change, where the reason alone tells.
var failureHints = map[exchange.Reason]string{
	exchange.TimeoutMissing:   "the target is a group: say with the header field Multicast-Timeout how many seconds to wait for responses",
	exchange.Denied:           "this client entry of the proxy's configuration must allow the target",
	exchange.GroupsDisabled:   "the proxy's configuration has no groups",
	exchange.MethodNotAllowed: "use a method that the proxy's configuration allows for this group",
	exchange.NotProxied:       "use a scheme that the proxy serves, such as coap",
	exchange.NoAnswer:         "the server may be off, asleep or behind a lossy link; try again later",
	exchange.TooManyRequests:  "send fewer requests, or wait as Retry-After says",
	exchange.Overloaded:       "wait as Retry-After says",
}

// failureProblem makes the problem for the end of an exchange.
func failureProblem(f *exchange.Failure) *problem {
	status, known := failureStatus[f.Reason]
	if !known {
		status = http.StatusInternalServerError
	}
	p := refuse(status, f.Detail, failureHints[f.Reason])
	switch f.Reason {
	case exchange.TimeoutMissing:
		p.with(fieldTimeout, "") // HC-74
	case exchange.TimeoutTooShort:
		p.with(fieldTimeout, strconv.FormatUint(uint64(f.MinTimeout), 10))
		p.hint = "use at least the Multicast-Timeout of this response"
	case exchange.Overloaded, exchange.TooManyRequests:
		p.retryAfter(max(f.RetryAfter, time.Second))
	case exchange.TooLarge:
		if f.Limit > 0 {
			p.hint = "send at most " + strconv.FormatUint(uint64(f.Limit), 10) + " bytes"
		}
	}
	return p
}

// problemDocument is the body of an error as RFC 9457 has it, with one member
// of our own: what to change.
type problemDocument struct {
	Type   string `json:"type"`
	Title  string `json:"title"`
	Status int    `json:"status"`
	Detail string `json:"detail,omitempty"`
	Hint   string `json:"hint,omitempty"`
}

// document renders p for a client with this Accept field: problem details if it
// names a JSON type, else plain text.
func (p *problem) document(accept []string) (contentType string, body []byte) {
	title := http.StatusText(p.status)
	for _, m := range parseAccept(accept) {
		if m.q > 0 && (m.name == "application/problem+json" || m.name == "application/json") {
			body, err := json.Marshal(problemDocument{"about:blank", title, p.status, p.detail, p.hint})
			if err != nil {
				break
			}
			return "application/problem+json", append(body, '\n')
		}
	}
	text := p.detail
	if text == "" {
		text = title
	}
	if p.hint != "" {
		text += "\n" + p.hint
	}
	return "text/plain; charset=utf-8", []byte(strings.ToValidUTF8(text, "\ufffd") + "\n")
}
