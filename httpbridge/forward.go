package httpbridge

import (
	"compress/gzip"
	"errors"
	"io"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// forward makes the exchange.Request and carries it out.
func (x *call) forward() *problem {
	f, h := x.front, x.r.Header
	own, hops := readVia(h["Via"], f.Pseudonym)
	if own { // FP-55
		f.Stats.Failures[exchange.HopLimitReached].Add(1)
		return failureProblem(&exchange.Failure{Reason: exchange.HopLimitReached, Detail: f.Identifier})
	}
	method, ok := coapMethod(x.r.Method, f.Query)
	if !ok {
		return refuse(http.StatusNotImplemented, "the method "+quoteMethod(x.r.Method)+" has no counterpart in CoAP here",
			"use one of "+allowedMethods) // HC-20
	}
	if secure(x.place.uri) && x.r.TLS == nil && !f.SecureFromPlain {
		return refuse(http.StatusForbidden, "coaps targets are not reached from plain HTTP", "use https") // HC-102
	}
	timeout, refusal := parseTimeout(h[fieldTimeout])
	if refusal != nil {
		return refusal
	}
	if !timeout.Present {
		timeout = x.place.timeout // HC-92
	}
	q := &x.query
	q.call, q.method, q.timeout, q.stored = x, method, timeout, readCacheControl(h["Cache-Control"])
	if hops > 0 {
		q.add(wire.HopLimit, []byte{hops}) // HC-106
	}
	if refusal := q.read(); refusal != nil {
		return refusal
	}
	if q.watch && !(timeout.Present && timeout.Seconds == 0) { // GP-36
		return q.events()
	}
	if timeout.Present {
		f.Stats.GroupRequests.Add(1)
		return q.group()
	}
	if patience := q.waitOf(); patience > 0 {
		return q.wait(patience)
	}
	return q.unicast()
}

// query is a request in CoAP terms.
type query struct {
	*call
	method  codes.Code
	timeout exchange.Timeout
	options message.Options // without Accept and Proxy-Uri
	accept  []uint16        // the Accept values to try (HC-42)
	form    form            // of the answer to a group request
	watch   bool            // server-sent events are wanted
	stored  exchange.Stored
	payload []byte
	kept    int              // bytes of the budget
	asked   exchange.Request // what was handed on last; layers have changed it
	sent    message.Options  // with which it was
	translation
}

// read reads the header and the body.
func (q *query) read() *problem {
	if refusal := q.readConditions(); refusal != nil {
		return refusal
	}
	if refusal := q.readAccept(); refusal != nil {
		return refusal
	}
	if refusal := q.readOSCORE(); refusal != nil {
		return refusal
	}
	return q.readBody()
}

// readConditions reads the fields of RFC 9110 section 13 and Group-ETag.
func (q *query) readConditions() *problem {
	h := q.r.Header
	q.translation = translation{front: q.call.front, place: q.call.place, values: make([]string, 0, 6), reading: q.method == codes.GET || q.method == wire.FETCH,
		private: q.proven != ByNetwork || secure(q.call.place.uri)} // HC-51
	if p := q.call.place; p.server != nil || p.route != nil && p.route.Name != "" {
		q.self = q.origin()
	}
	if values := h["If-Match"]; len(values) > 0 { // HC-54
		tags, any, _ := entityTags(values)
		switch {
		case any:
			q.add(wire.IfMatch, nil)
		case len(tags) == 0:
			return refuse(http.StatusPreconditionFailed, "If-Match has no entity tag of a response of this proxy", "")
		}
		for _, tag := range tags {
			q.add(wire.IfMatch, tag)
		}
		q.critical = true
	}
	if values := h["If-None-Match"]; len(values) > 0 { // HC-53
		tags, any, _ := entityTags(values)
		switch {
		case q.reading:
			q.listed = tags
			for _, tag := range tags {
				q.add(wire.ETag, tag)
			}
		case any:
			q.add(wire.IfNoneMatch, nil)
			q.critical = true
		default:
			return refuse(http.StatusBadRequest, "CoAP knows If-None-Match with entity tags for reading only", "use If-None-Match: *")
		}
	}
	if q.timeout.Present {
		for _, tag := range parseGroupETags(h[fieldGroupETag]) {
			q.add(q.call.front.Numbers.GroupETag, tag) // HC-81
		}
	}
	return nil
}

// add keeps the options sorted.
func (q *query) add(id message.OptionID, value []byte) {
	if value == nil {
		value = []byte{}
	}
	q.options = insertOption(q.options, id, value)
}

// insertOption puts an option behind all of the same or a lower number.
func insertOption(options message.Options, id message.OptionID, value []byte) message.Options {
	i := len(options)
	for i > 0 && options[i-1].ID > id {
		i--
	}
	return slices.Insert(options, i, message.Option{ID: id, Value: value})
}

// readAccept reads Accept and Accept-Encoding (HC-40, HC-42).
func (q *query) readAccept() *problem {
	ranges := parseAccept(q.r.Header["Accept"])
	if q.reading && q.r.Method != http.MethodHead && q.r.ProtoAtLeast(1, 1) {
		ranges, q.watch = takeEvents(ranges)
	}
	if q.timeout.Present && !q.watch {
		q.form, ranges = formOf(ranges, q.r)
	}
	coding := ""
	for _, e := range parseAccept(q.r.Header["Accept-Encoding"]) {
		if e.name == "identity" && e.q == 0 {
			coding = "deflate" // else the plain form, which every server may have
		}
	}
	var ok bool
	if q.accept, ok = q.call.front.media.accepted(ranges, coding); !ok {
		return refuse(http.StatusNotAcceptable, "application/coap-payload is not served", "accept the media type itself") // HC-44
	}
	q.critical = q.critical || len(q.accept) > 0
	return nil
}

// readBody reads the request body and its type (HC-40, HC-41, HC-48). A client
// that waits for 100 Continue is told to go on here, after everything that can
// be known without the body was checked (HC-98).
func (q *query) readBody() *problem {
	r, limit := q.r, q.call.front.Limits.RequestBody
	hasBody := r.ContentLength != 0 && r.Body != nil && r.Body != http.NoBody
	switch q.method {
	case codes.GET, codes.DELETE:
		if hasBody && (r.ContentLength > 0 || r.ProtoMajor < 3) { // over HTTP/3 the length is unknown without a body, too
			return refuse(http.StatusBadRequest, "a "+r.Method+" request has no body here", "")
		}
		return nil
	case wire.FETCH:
		if !hasBody || first(r.Header, "Content-Type") == "" {
			return refuse(http.StatusBadRequest, "QUERY needs a body and its Content-Type", "") // HC-20
		}
	}
	if r.ContentLength > int64(limit) {
		return tooLarge(limit)
	}
	coding := strings.ToLower(strings.TrimSpace(strings.Join(r.Header["Content-Encoding"], ",")))
	stored := coding
	if coding == "identity" || coding == "gzip" || coding == "x-gzip" {
		stored = ""
	}
	switch stored {
	case "", "deflate":
	default:
		return refuse(http.StatusUnsupportedMediaType, "this Content-Encoding is not served", "send the body as it is, or with gzip") // HC-48
	}
	if value := first(r.Header, "Content-Type"); value != "" && !q.protected {
		n, ok := q.call.front.media.format(value, stored)
		if !ok {
			return refuse(http.StatusUnsupportedMediaType, "the Content-Type has no CoAP Content-Format",
				"use one that CoAP knows, such as text/plain, application/json, application/cbor or application/octet-stream") // HC-41
		}
		q.add(wire.ContentFormat, wire.AppendUint(nil, uint32(n)))
		q.critical = true
	} else if stored == "deflate" {
		return refuse(http.StatusUnsupportedMediaType, "Content-Encoding without Content-Type", "")
	}
	if !hasBody {
		return nil
	}
	return q.receive(limit, coding == "gzip" || coding == "x-gzip")
}

func tooLarge(limit int) *problem {
	f := exchange.Failf(exchange.TooLarge, "the body is too large")
	f.Limit = uint32(limit)
	p := failureProblem(f)
	p.close = true
	return p
}

// receive reads the body within its limits of size and time (HC-97).
func (q *query) receive(limit int, compressed bool) *problem {
	size := limit
	if q.r.ContentLength >= 0 && !compressed {
		size = int(q.r.ContentLength)
	}
	if !q.call.front.budget.take(size) {
		return refuse(http.StatusServiceUnavailable, "too many bodies are being received", "").retryAfter(time.Second)
	}
	q.kept = size
	var body io.Reader = http.MaxBytesReader(q.w, q.r.Body, int64(limit))
	if compressed {
		unpacked, err := gzip.NewReader(body)
		if err != nil {
			return q.unreadable(err, limit)
		}
		body = unpacked
	}
	payload, err := io.ReadAll(io.LimitReader(body, int64(limit)+1))
	switch {
	case err != nil:
		return q.unreadable(err, limit)
	case len(payload) > limit:
		return tooLarge(limit) // HC-48: it grew when it was unpacked
	}
	q.payload = payload
	q.send.received()
	return nil
}

func (q *query) unreadable(err error, limit int) *problem {
	var long *http.MaxBytesError
	switch {
	case errors.As(err, &long):
		return tooLarge(limit)
	case errors.Is(err, os.ErrDeadlineExceeded):
		q.call.front.Stats.SlowSenders.Add(1)
		p := refuse(http.StatusRequestTimeout, "the body did not come in time", "")
		p.close = true
		return p
	}
	p := refuse(http.StatusBadRequest, "the body cannot be read", "")
	p.close = true
	return p
}

// request makes the exchange.Request with the n-th of the Accept values to try. It
// is good until the next call.
func (q *query) request(n int, echo []byte) *exchange.Request {
	options := append(q.sent[:0], q.options...)
	if n < len(q.accept) {
		options = insertOption(options, wire.Accept, wire.AppendUint([]byte{}, uint32(q.accept[n])))
	}
	p, route := q.call.place, ""
	switch {
	case p.server != nil:
		for _, segment := range p.uri.Path {
			options = insertOption(options, wire.URIPath, []byte(segment))
		}
		for _, item := range p.uri.Query {
			options = insertOption(options, wire.URIQuery, []byte(item))
		}
	default:
		options = insertOption(options, wire.ProxyURI, p.text)
		if p.route != nil {
			route = p.route.Name
		}
	}
	if echo != nil {
		options = insertOption(options, wire.Echo, echo)
	}
	q.sent = options
	q.asked = exchange.Request{ID: q.id, Method: q.method, Options: options, Payload: q.payload,
		Confirmable: !q.timeout.Present, Route: route, Timeout: q.timeout, Client: q.client, Peer: q.peer, Local: q.local(), Scheme: scheme(q.r),
		Secured: q.r.TLS != nil || q.call.front.SecureFromPlain, // HC-102, FP-87
		Arrival: time.Now(), BodyLimit: q.call.front.Limits.ResponseBody, Stored: q.stored}
	return &q.asked
}

// scheme of the listener that took a request.
func scheme(r *http.Request) string {
	if r.TLS != nil {
		return "https"
	}
	return "http"
}
