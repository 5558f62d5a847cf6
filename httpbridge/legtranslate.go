package httpbridge

import (
	"bytes"
	"crypto/sha256"
	"io"
	"mime"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// method is the HTTP method for a CoAP one (HC-21).
func (l *Leg) method(code codes.Code) (string, bool) {
	switch code {
	case codes.GET:
		return http.MethodGet, true
	case codes.POST:
		return http.MethodPost, true
	case codes.PUT:
		return http.MethodPut, true
	case codes.DELETE:
		return http.MethodDelete, true
	case wire.PATCH:
		return http.MethodPatch, true
	case wire.FETCH:
		return methodQuery, l.Query
	}
	return "", false
}

// checkOptions refuses critical options that HTTP has nothing for.
func (l *Leg) checkOptions(r *exchange.Request) *exchange.Failure {
	for _, o := range r.Options {
		switch o.ID {
		case wire.ProxyURI, wire.URIHost, wire.URIPath, wire.URIQuery, wire.IfMatch, wire.IfNoneMatch, wire.ContentFormat, wire.Accept, wire.Block1, wire.Block2:
			continue
		}
		if wire.Critical(o.ID) {
			f := exchange.Failf(exchange.BadOption, "option %d has no counterpart in HTTP", o.ID)
			f.Option = o.ID
			return f
		}
	}
	return nil
}

// fields sets the header fields of a request (RFC 7252 §10.1).
func (l *Leg) fields(h http.Header, r *exchange.Request, target *url.URL) {
	h.Set("User-Agent", "coapproxy")
	if l.Pseudonym != "" {
		h.Set("Via", viaField(l.Pseudonym, r.Options)) // HC-106, FP-55
	}
	var matches, none []string
	for _, o := range r.Options {
		number, _ := wire.Uint(o.Value)
		switch o.ID {
		case wire.ContentFormat:
			mediaType, coding := contentType(message.Options{o}, false, false)
			h.Set("Content-Type", mediaType)
			if coding != "" {
				h.Set("Content-Encoding", coding)
			}
		case wire.Accept:
			if name, known := wire.ContentFormatName(uint16(number)); known && number <= 0xffff {
				mediaType, coding := splitCoding(name)
				h.Set("Accept", mediaType)
				if coding != "" {
					h.Set("Accept-Encoding", coding)
				}
			}
		case wire.ETag:
			none = append(none, l.originTag(target, o.Value))
		case wire.IfMatch:
			if len(o.Value) == 0 {
				matches = []string{"*"}
			} else if !slices.Contains(matches, "*") {
				matches = append(matches, l.originTag(target, o.Value))
			}
		case wire.IfNoneMatch:
			none = []string{"*"}
		}
	}
	if len(matches) > 0 {
		h.Set("If-Match", strings.Join(matches, ", "))
	}
	if len(none) > 0 {
		h.Set("If-None-Match", strings.Join(none, ", "))
	}
}

// originTag is the entity tag of an HTTP server for one of CoAP.
func (l *Leg) originTag(target *url.URL, tag []byte) string {
	if known, ok := l.tags.Get(target.String() + " " + string(tag)); ok {
		return known
	}
	return formatETag(tag)
}

// coapTag is the CoAP entity tag for one of an HTTP server, nil for a weak one or
// none (HC-59).
func (l *Leg) coapTag(target *url.URL, text string) []byte {
	if len(text) < 2 || text[0] != '"' || text[len(text)-1] != '"' {
		return nil
	}
	if tag, ok := decodeETag(text); ok {
		return tag
	}
	sum := sha256.Sum256([]byte(text[1 : len(text)-1]))
	tag := sum[:8]
	l.tags.Add(target.String()+" "+string(tag), text)
	return tag
}

// codeOf is the code for a status (HC-32, HC-33), 0 for what a server may not
// send.
func codeOf(status int, method codes.Code, hasBody bool) codes.Code {
	switch status {
	case http.StatusOK, http.StatusAccepted, http.StatusNonAuthoritativeInfo, http.StatusNoContent, http.StatusResetContent:
		switch method {
		case codes.DELETE:
			return codes.Deleted
		case codes.GET, wire.FETCH:
			return codes.Content
		}
		return codes.Changed
	case http.StatusCreated:
		return codes.Created
	case http.StatusNotModified:
		return codes.Valid
	case http.StatusNotFound, http.StatusGone:
		if method == codes.DELETE {
			return codes.Deleted // HC-32
		}
	case http.StatusRequestTimeout:
		if hasBody {
			return codes.RequestEntityIncomplete
		}
	}
	switch status {
	case http.StatusBadRequest, http.StatusUnauthorized, http.StatusForbidden, http.StatusNotFound, http.StatusMethodNotAllowed,
		http.StatusNotAcceptable, http.StatusConflict, http.StatusPreconditionFailed, http.StatusRequestEntityTooLarge,
		http.StatusUnsupportedMediaType, http.StatusUnprocessableEntity, http.StatusTooManyRequests:
		return codes.Code(4<<5 | (status - 400))
	case http.StatusInternalServerError, http.StatusNotImplemented, http.StatusBadGateway, http.StatusServiceUnavailable,
		http.StatusGatewayTimeout, http.StatusLoopDetected:
		return codes.Code(5<<5 | (status - 500))
	}
	switch status / 100 {
	case 4:
		return codes.BadRequest
	case 3, 5:
		return codes.BadGateway
	}
	return 0
}

// translate makes the CoAP response. The body of response is read, not closed.
func (l *Leg) translate(response *http.Response, r *exchange.Request, where exchange.Target, target *url.URL) (*exchange.Response, error) {
	code := codeOf(response.StatusCode, r.Method, len(r.Payload) > 0)
	if code == 0 { // HC-34: 1xx, 206 and the like
		return nil, exchange.Failf(exchange.BadResponse, "the HTTP server answered with the status %d", response.StatusCode)
	}
	body, err := io.ReadAll(io.LimitReader(response.Body, int64(l.Body)+1))
	switch {
	case err != nil:
		return nil, err
	case len(body) > l.Body:
		l.Stats.TooLong.Add(1)
		return nil, exchange.Failf(exchange.BadResponse, "the response of the HTTP server is longer than %d bytes", l.Body)
	}
	p := &exchange.Response{Code: code, Payload: body, From: where.Addr}
	if code>>5 >= 4 {
		l.asError(p, response)
		return p, nil
	}
	h := response.Header
	tag := l.coapTag(target, h.Get("ETag"))
	if tag != nil {
		p.Options = append(p.Options, message.Option{ID: wire.ETag, Value: tag})
	}
	switch code {
	case codes.Content, codes.Valid:
		age := freshness(h, time.Now())
		p.Options = insertOption(p.Options, wire.MaxAge, wire.AppendUint([]byte{}, age)) // HC-59
	case codes.Created:
		p.Options = location(p.Options, h.Get("Location"), target)
	}
	asked := func(o message.Option) bool { return o.ID == wire.ETag && bytes.Equal(o.Value, tag) }
	if code == codes.Content && tag != nil && slices.ContainsFunc(r.Options, asked) {
		p.Code = codes.Valid // the server does not know the tag that the client has of it
	}
	if p.Code == codes.Valid || len(body) == 0 {
		p.Payload = nil
		return p, nil
	}
	return p, l.asFormat(p, r, h)
}

// asFormat finds the Content-Format of the body, and sees to it that it is the one
// asked for.
func (l *Leg) asFormat(p *exchange.Response, r *exchange.Request, h http.Header) error {
	coding := strings.ToLower(strings.TrimSpace(h.Get("Content-Encoding")))
	if coding == "identity" {
		coding = ""
	}
	if coding != "" && coding != "deflate" {
		return exchange.Failf(exchange.BadResponse, "the HTTP server encodes its response unasked")
	}
	format, known := uint16(0), false
	if mediaType := h.Get("Content-Type"); mediaType != "" {
		format, known = l.media.format(mediaType, coding)
	}
	switch {
	case known:
		p.Options = insertOption(p.Options, wire.ContentFormat, wire.AppendUint([]byte{}, uint32(format)))
	case coding != "":
		return exchange.Failf(exchange.BadResponse, "the HTTP server encodes its response in a way that CoAP has no number for")
	}
	accept, ok := wire.First(r.Options, wire.Accept)
	if !ok {
		return nil
	}
	if wanted, _ := wire.Uint(accept); !known || wanted != uint32(format) { // RFC 7252 §5.10.4
		*p = exchange.Response{Code: codes.NotAcceptable, From: p.From, Payload: []byte("the HTTP server answers in another format")}
	}
	return nil
}

// asError makes the diagnostic payload of an error (HC-31).
func (l *Leg) asError(p *exchange.Response, response *http.Response) {
	const most = 1024 // fits one message
	name, _, _ := mime.ParseMediaType(response.Header.Get("Content-Type"))
	switch {
	case name == "text/plain" && response.Header.Get("Content-Encoding") == "" && utf8.Valid(p.Payload):
		p.Payload = bytes.TrimRight(p.Payload, "\r\n") // and names in a 5.08 stay apart
		for len(p.Payload) > most {
			_, size := utf8.DecodeLastRune(p.Payload)
			p.Payload = p.Payload[:len(p.Payload)-size]
		}
	case response.StatusCode/100 == 3:
		p.Payload = []byte("the HTTP server redirects, and that is not followed")
	default:
		p.Payload = []byte("HTTP " + strconv.Itoa(response.StatusCode) + " " + http.StatusText(response.StatusCode))
	}
	if p.Code == codes.ServiceUnavailable || p.Code == codes.TooManyRequests {
		seconds, err := strconv.ParseUint(response.Header.Get("Retry-After"), 10, 32)
		if err == nil {
			p.Options = message.Options{{ID: wire.MaxAge, Value: wire.AppendUint([]byte{}, uint32(seconds))}}
		}
	}
}

// location turns where something was created into options, if it is on the same
// server.
func location(options message.Options, text string, target *url.URL) message.Options {
	to, err := target.Parse(text)
	if text == "" || err != nil || to.Scheme != target.Scheme || to.Host != target.Host {
		return options
	}
	u, err := wire.ParseURI(to.Scheme + "://" + to.Host + to.EscapedPath() + queryOf(to))
	if err != nil {
		return options
	}
	for _, segment := range u.Path {
		if segment == "." || segment == ".." || len(segment) > 255 {
			return options
		}
	}
	for _, segment := range u.Path {
		options = insertOption(options, wire.LocationPath, []byte(segment))
	}
	for _, item := range u.Query {
		if len(item) <= 255 {
			options = insertOption(options, wire.LocationQuery, []byte(item))
		}
	}
	return options
}

func queryOf(u *url.URL) string {
	if u.RawQuery == "" {
		return ""
	}
	return "?" + u.RawQuery
}

// freshness is for how many seconds a shared cache may use a response (HC-59, RFC
// 9111 §4.2): 0 if the server does not say.
func freshness(h http.Header, now time.Time) uint32 {
	lifetime, known := time.Duration(0), false
	shared := false
	for _, value := range h.Values("Cache-Control") {
		for _, directive := range splitList(value) {
			name, argument, _ := strings.Cut(directive, "=")
			switch strings.ToLower(strings.TrimSpace(name)) {
			case "no-store", "no-cache", "private":
				return 0
			case "s-maxage", "max-age":
				s := strings.EqualFold(strings.TrimSpace(name), "s-maxage")
				if shared && !s {
					continue
				}
				seconds, err := strconv.ParseUint(strings.Trim(strings.TrimSpace(argument), `"`), 10, 31)
				if err != nil {
					return 0
				}
				lifetime, known, shared = time.Duration(seconds)*time.Second, true, s
			}
		}
	}
	date, err := http.ParseTime(h.Get("Date"))
	if err != nil || date.After(now) {
		date = now
	}
	if expires := h.Get("Expires"); !known && expires != "" {
		until, err := http.ParseTime(expires)
		if err != nil {
			return 0
		}
		lifetime, known = until.Sub(date), true
	}
	if !known || slices.ContainsFunc(h.Values("Vary"), func(v string) bool { return strings.Contains(v, "*") }) {
		return 0
	}
	age := now.Sub(date).Truncate(time.Second)
	if seconds, err := strconv.ParseUint(h.Get("Age"), 10, 31); err == nil {
		age = max(age, time.Duration(seconds)*time.Second)
	}
	return uint32(max(lifetime-age, 0) / time.Second)
}
