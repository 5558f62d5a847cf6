package httpbridge

import (
	"bytes"
	"net/http"
	"slices"
	"strconv"
	"unicode/utf8"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

const methodQuery = "QUERY"

// coapMethod is the CoAP method for an HTTP method (HC-20).
func coapMethod(method string, query bool) (codes.Code, bool) {
	switch method {
	case http.MethodGet, http.MethodHead:
		return codes.GET, true
	case http.MethodPost:
		return codes.POST, true
	case http.MethodPut:
		return codes.PUT, true
	case http.MethodDelete:
		return codes.DELETE, true
	case http.MethodPatch:
		return wire.PATCH, true
	case methodQuery:
		return wire.FETCH, query
	}
	return 0, false
}

// statusOf is the table of section 3 of the HC rules. The codes that depend on
// more than themselves are in translation.of.
func statusOf(code codes.Code) int {
	switch code {
	case codes.Created:
		return http.StatusCreated
	case codes.Deleted, codes.Changed, codes.Content:
		return http.StatusOK
	case codes.Unauthorized:
		return http.StatusForbidden
	case codes.Forbidden, codes.NotFound, codes.NotAcceptable, wire.Conflict, codes.PreconditionFailed, codes.RequestEntityTooLarge,
		codes.UnsupportedMediaType, wire.UnprocessableEntity, codes.TooManyRequests, codes.NotImplemented, codes.BadGateway,
		codes.ServiceUnavailable, codes.GatewayTimeout, wire.HopLimitReached: // HTTP has the same numbers; the last one: FP-55
		return 100*int(code>>5) + int(code&0x1f)
	case codes.RequestEntityIncomplete, codes.ProxyingNotSupported: // between proxy and server
		return http.StatusBadGateway
	}
	switch code >> 5 { // HC-30
	case 4:
		return http.StatusBadRequest
	case 5:
		return http.StatusInternalServerError
	}
	return http.StatusBadGateway
}

// answer is a response in HTTP terms.
type answer struct {
	status int
	fields http.Header
	body   []byte
}

// translation is what a request has to do with the form of its responses.
type translation struct {
	front *Front
	place *place
	// listed are the entity tags of If-None-Match.
	listed [][]byte
	// critical: the request carries options that came straight from a header
	// field and that a server may have to refuse.
	critical bool
	// private: the response is for this client alone (HC-51).
	private bool
	reading bool // GET, HEAD, QUERY
	// protected: the request is protected end to end (OH-77).
	protected bool
	// self is the proxy as the client knows it, where servers are announced.
	self wire.URI
	// values is room for those of header fields; see field.
	values []string
}

// field is what a header field with one value is set to. The first few come out of
// the room that the translation has, others are allocated.
func (t *translation) field(value string) []string {
	n := len(t.values)
	if n == cap(t.values) {
		return []string{value}
	}
	t.values = append(t.values, value)
	return t.values[n : n+1 : n+1]
}

// of translates the response of a server. group marks one of many. ok is false
// for a 2.03 in a group without a stored response (HC-80).
func (t *translation) of(p *exchange.Response, group bool) (a answer, ok bool) {
	return t.into(make(http.Header, 8), p, group)
}

// into is of with the fields put into h.
func (t *translation) into(h http.Header, p *exchange.Response, group bool) (a answer, ok bool) {
	a = answer{fields: h, body: p.Payload}
	if t.protected {
		if sealed, ok := protectedAnswer(p, a.fields); ok {
			t.freshness(sealed.fields, p)
			return sealed, true
		}
	}
	isError := p.Code>>5 >= 4
	tag, tagged := wire.First(p.Options, wire.ETag)
	if tagged && len(tag) >= 1 && len(tag) <= 8 {
		a.fields["Etag"] = t.field(formatETag(tag))
	} else {
		tagged = false
	}
	if group && partial(p.Options) {
		return answer{status: http.StatusBadGateway, fields: http.Header{"Cache-Control": {"no-store"}, "Content-Type": {plainText}},
			body: []byte("the body is longer than one message, and the rest of it could not be fetched")}, true
	}
	unchanged := slices.ContainsFunc(t.listed, func(l []byte) bool { return tagged && bytes.Equal(l, tag) })
	switch {
	case p.Code == codes.Valid:
		if group || len(t.listed) == 0 {
			a.status = http.StatusBadGateway // nobody asked: HC-22
			a.body = []byte("the server confirmed a response that the proxy does not have")
			delete(h, "Etag")
			h["Cache-Control"], h["Content-Type"] = []string{"no-store"}, []string{plainText}
			return a, !group
		}
		a.status = http.StatusNotModified // HC-55
	case p.Code == codes.Content && t.reading && unchanged && !group:
		a.status = http.StatusNotModified
	case p.Code == codes.BadOption:
		a.status = http.StatusInternalServerError
		if t.critical {
			a.status = http.StatusBadRequest
		}
	case p.Code == codes.MethodNotAllowed:
		a.status = http.StatusBadRequest
		if !wire.Has(p.Options, wire.ContentFormat) && utf8.Valid(p.Payload) {
			a.body = []byte("CoAP server returned 4.05")
			if len(p.Payload) > 0 {
				a.body = append(append(a.body, ": "...), p.Payload...)
			}
		}
	default:
		a.status = statusOf(p.Code)
	}
	if (p.Code == codes.Deleted || p.Code == codes.Changed) && len(p.Payload) == 0 {
		a.status = http.StatusNoContent
	}
	t.freshness(a.fields, p)
	if p.Code == codes.Created {
		if location, ok := t.location(p); ok {
			a.fields["Location"] = t.field(location)
		}
	}
	switch p.Code {
	case codes.ServiceUnavailable, codes.TooManyRequests:
		a.fields["Retry-After"] = t.field(strconv.FormatUint(uint64(maxAge(p.Options)), 10))
	}
	if a.status == http.StatusNotModified || a.status == http.StatusNoContent {
		a.body = nil
		return a, true
	}
	mediaType, coding := contentType(p.Options, isError, utf8.Valid(a.body)) // HC-31, HC-43
	a.fields["Content-Type"] = t.field(mediaType)
	if coding != "" {
		a.fields["Content-Encoding"] = t.field(coding)
	}
	return a, true
}

// partial reports whether a response is but a part of a body (GC-54): there is no way to
// ask for the others in HTTP.
func partial(options message.Options) bool {
	value, ok := wire.First(options, wire.Block2)
	if !ok {
		return false
	}
	b, err := wire.ParseBlock(value)
	return err != nil || b.More || b.Num > 0
}

// freshness writes Cache-Control (HC-50, HC-51).
func (t *translation) freshness(h http.Header, p *exchange.Response) {
	var value string
	switch p.Code {
	case codes.Created, codes.Deleted, codes.Changed:
		value = "no-store"
	default:
		if age := maxAge(p.Options); age == 0 {
			value = "no-cache"
		} else {
			value = "max-age=" + strconv.FormatUint(uint64(age), 10)
		}
		if t.private {
			value = "private, " + value
		}
	}
	h["Cache-Control"] = t.field(value)
}

// maxAge is the remaining freshness in seconds, 60 without the option (HC-50).
func maxAge(options message.Options) uint32 {
	value, ok := wire.First(options, wire.MaxAge)
	if !ok {
		return 60
	}
	seconds, _ := wire.Uint(value)
	return seconds
}

// location is the hosting URI of what a request created. A server that says it is
// at a segment that a URI cannot have (RFC 7252 §5.10.7), or at an empty first one,
// which on a route would make a URI of another host, is not believed. That of an announced
// server has a location at this proxy already.
func (t *translation) location(p *exchange.Response) (string, bool) {
	u := t.place.uri
	if p.From.IsValid() && p.GroupPort != 0 {
		u.Host, u.Addr, u.Port = "", p.From.Addr().Unmap(), p.From.Port()
	}
	u.Path, u.Query = nil, nil
	for segment := range wire.All(p.Options, wire.LocationPath) {
		if string(segment) == "." || string(segment) == ".." || len(u.Path) == 0 && len(segment) == 0 {
			return "", false
		}
		u.Path = append(u.Path, string(segment))
	}
	for item := range wire.All(p.Options, wire.LocationQuery) {
		u.Query = append(u.Query, string(item))
	}
	if len(u.Path) == 0 && len(u.Query) == 0 {
		return "", false
	}
	if t.place.server != nil || t.announces(p) {
		return requestTarget(u), true
	}
	return t.front.mapping.hosting(t.place, u), true
}

// announces reports whether the server of a response was announced to the client of a
// route: its Reply-From is of this proxy's making.
func (t *translation) announces(p *exchange.Response) bool {
	return p.GroupPort != 0 && t.place.route != nil && t.place.route.Name != ""
}

// server is the URI of a response's server as the client is to know it, without the
// path of what was asked for: the server's own, or, of one that was announced, one at
// this proxy, as which the client goes on (HC-85). It reports false if nobody is known
// to have sent the response.
func (t *translation) server(p *exchange.Response) (wire.URI, bool) {
	u := t.self
	switch {
	case t.announces(p):
		v, err := wire.ParseReplyFrom(p.ReplyFrom)
		if err != nil || v.Ref == nil {
			return u, false
		}
		u.Path = v.Ref.Path
	case !p.From.IsValid():
		return u, false
	case t.place.server != nil:
		u.Path = t.place.server
	default:
		u = wire.URI{Scheme: t.place.uri.Scheme, Addr: t.front.zoned(p.From).Addr(), Port: p.From.Port()}
	}
	return u, true
}

// source is the URI of what a group's member has sent: that of its server, with the
// path that it was asked for (Content-Location).
func (t *translation) source(p *exchange.Response) (wire.URI, bool) {
	u, ok := t.server(p)
	u.Path = append(slices.Clip(u.Path), t.place.uri.Path...)
	u.Query = t.place.uri.Query
	return u, ok
}
