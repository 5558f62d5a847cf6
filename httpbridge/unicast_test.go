package httpbridge

import (
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

const someTarget = "/hc/coap://192.0.2.7/temp"

func TestMethods(t *testing.T) { // HC-20
	for _, x := range []struct {
		method, body string
		query        bool
		code         codes.Code // 0: 501
	}{
		{"GET", "", false, codes.GET},
		{"HEAD", "", false, codes.GET},
		{"POST", "x", false, codes.POST},
		{"POST", "", false, codes.POST},
		{"PUT", "x", false, codes.PUT},
		{"DELETE", "", false, codes.DELETE},
		{"PATCH", "x", false, wire.PATCH},
		{"QUERY", "x", true, wire.FETCH},
		{"QUERY", "x", false, 0},
		{"OPTIONS", "", false, 0},
		{"TRACE", "", false, 0},
		{"CONNECT", "", false, 0},
		{"PROPFIND", "", false, 0},
	} {
		t.Run(x.method, func(t *testing.T) {
			f, chain := newFront(t, func(c *Config) { c.Query = x.query })
			w := do(f, x.method, someTarget, x.body, "Content-Type: text/plain")
			if x.code == 0 {
				require.Equal(t, 501, w.Code)
				require.Zero(t, chain.count())
				return
			}
			r := chain.last()
			require.Equal(t, x.code, r.Method)
			require.Equal(t, x.body, string(r.Payload))
			require.True(t, r.Confirmable)
			require.False(t, r.Timeout.Present)
			require.Same(t, knownClient, r.Client)
			if x.method == "HEAD" {
				require.Empty(t, w.Body.String())
				require.Equal(t, "4", w.Header().Get("Content-Length"))
			}
		})
	}
}

func TestCodes(t *testing.T) {
	for _, x := range []struct {
		rule    string
		method  string
		code    codes.Code
		options message.Options
		payload string
		fields  []string
		status  int
		want    map[string]string
		body    string
	}{
		{rule: "2.01 outside", method: "POST", code: codes.Created, payload: "made", status: 201, body: "made",
			options: message.Options{option(wire.LocationPath, "a"), option(wire.LocationPath, "..")}, want: map[string]string{"Location": ""}},
		{rule: "2.01 elsewhere", method: "POST", code: codes.Created, payload: "made", status: 201, body: "made",
			options: message.Options{option(wire.LocationPath, ""), option(wire.LocationPath, "evil.example")}, want: map[string]string{"Location": ""}},
		{rule: "2.01", method: "POST", code: codes.Created, payload: "made", status: 201, body: "made",
			options: message.Options{option(wire.LocationPath, "a b"), option(wire.LocationPath, "1"), option(wire.LocationQuery, "x=y")},
			want:    map[string]string{"Location": "/hc/coap://192.0.2.7/a%20b/1?x=y", "Cache-Control": "no-store"}},
		{rule: "2.02", method: "DELETE", code: codes.Deleted, status: 204, want: map[string]string{"Cache-Control": "no-store"}},
		{rule: "2.02", method: "DELETE", code: codes.Deleted, payload: "gone", status: 200, body: "gone"},
		{rule: "2.04", method: "PUT", code: codes.Changed, status: 204},
		{rule: "2.04", method: "PUT", code: codes.Changed, payload: "new", status: 200, body: "new"},
		{rule: "2.03 HC-55", method: "GET", code: codes.Valid, options: message.Options{option(wire.ETag, "\xde\xad"), option(wire.MaxAge, "\x09")},
			fields: []string{`If-None-Match: "dead"`}, status: 304, want: map[string]string{"Etag": `"dead"`, "Cache-Control": "max-age=9"}},
		{rule: "2.03 HC-22", method: "GET", code: codes.Valid, options: message.Options{option(wire.ETag, "\xde\xad")}, status: 502, body: "the server confirmed a response that the proxy does not have"},
		{rule: "2.05 HC-50", method: "GET", code: codes.Content, payload: "21.5", status: 200, body: "21.5",
			want: map[string]string{"Cache-Control": "max-age=60", "Content-Type": "application/octet-stream", "Vary": "Accept"}},
		{rule: "2.05 HC-50", method: "GET", code: codes.Content, options: message.Options{option(wire.MaxAge, "")}, status: 200,
			want: map[string]string{"Cache-Control": "no-cache"}},
		{rule: "2.05 HC-52", method: "GET", code: codes.Content, options: message.Options{option(wire.ETag, "\xde\xad"), option(wire.ContentFormat, "")},
			payload: "x", status: 200, body: "x", want: map[string]string{"Etag": `"dead"`, "Content-Type": "text/plain; charset=utf-8"}},
		{rule: "2.05 HC-53", method: "GET", code: codes.Content, options: message.Options{option(wire.ETag, "\xde\xad")}, payload: "x",
			fields: []string{`If-None-Match: "dead"`}, status: 304},
		{rule: "4.00", method: "GET", code: codes.BadRequest, status: 400},
		{rule: "4.01", method: "GET", code: codes.Unauthorized, status: 403},
		{rule: "4.02", method: "GET", code: codes.BadOption, status: 500},
		{rule: "4.02", method: "GET", code: codes.BadOption, fields: []string{"Accept: text/plain"}, status: 400},
		{rule: "4.03", method: "GET", code: codes.Forbidden, status: 403},
		{rule: "4.04 HC-31", method: "GET", code: codes.NotFound, payload: "no such thing", status: 404, body: "no such thing",
			want: map[string]string{"Content-Type": "text/plain; charset=utf-8", "Cache-Control": "max-age=60"}},
		{rule: "4.04 HC-31", method: "GET", code: codes.NotFound, options: message.Options{option(wire.ContentFormat, "\x32")}, payload: "{}",
			status: 404, body: "{}", want: map[string]string{"Content-Type": "application/json"}},
		{rule: "4.04 HC-31", method: "GET", code: codes.NotFound, payload: "\xff", status: 404, body: "\xff",
			want: map[string]string{"Content-Type": "application/octet-stream"}},
		{rule: "4.05", method: "PUT", code: codes.MethodNotAllowed, status: 400, body: "CoAP server returned 4.05"},
		{rule: "4.05", method: "PUT", code: codes.MethodNotAllowed, payload: "read only", status: 400, body: "CoAP server returned 4.05: read only"},
		{rule: "4.06", method: "GET", code: codes.NotAcceptable, status: 406},
		{rule: "4.08", method: "PUT", code: codes.RequestEntityIncomplete, status: 502},
		{rule: "4.09", method: "PUT", code: wire.Conflict, status: 409},
		{rule: "4.12", method: "PUT", code: codes.PreconditionFailed, status: 412},
		{rule: "4.13", method: "PUT", code: codes.RequestEntityTooLarge, status: 413},
		{rule: "4.15", method: "PUT", code: codes.UnsupportedMediaType, status: 415},
		{rule: "4.22", method: "PUT", code: wire.UnprocessableEntity, status: 422},
		{rule: "4.29", method: "GET", code: codes.TooManyRequests, options: message.Options{option(wire.MaxAge, "\x07")}, status: 429,
			want: map[string]string{"Retry-After": "7"}},
		{rule: "HC-30", method: "GET", code: 4<<5 | 30, status: 400},
		{rule: "HC-30", method: "GET", code: 5<<5 | 30, status: 500},
		{rule: "HC-30", method: "GET", code: 2<<5 | 30, status: 502},
		{rule: "HC-30", method: "GET", code: codes.Continue, status: 502},
		{rule: "5.00", method: "GET", code: codes.InternalServerError, status: 500},
		{rule: "5.01", method: "GET", code: codes.NotImplemented, status: 501},
		{rule: "5.02", method: "GET", code: codes.BadGateway, status: 502},
		{rule: "5.03", method: "GET", code: codes.ServiceUnavailable, status: 503, want: map[string]string{"Retry-After": "60"}},
		{rule: "5.04", method: "GET", code: codes.GatewayTimeout, status: 504},
		{rule: "5.05", method: "GET", code: codes.ProxyingNotSupported, status: 502},
		{rule: "5.08", method: "GET", code: wire.HopLimitReached, status: 508}, // FP-55
	} {
		t.Run(x.rule, func(t *testing.T) {
			f, chain := newFront(t, nil)
			chain.serve = answers(&exchange.Response{Code: x.code, Options: x.options, Payload: []byte(x.payload), From: serverA})
			w := do(f, x.method, someTarget, "", x.fields...)
			require.Equal(t, x.status, w.Code)
			require.Equal(t, x.body, w.Body.String())
			for name, want := range x.want {
				require.Equal(t, want, w.Header().Get(name), name)
			}
			require.Equal(t, "nosniff", w.Header().Get("X-Content-Type-Options"))
		})
	}
}

func TestFailures(t *testing.T) {
	want := map[exchange.Reason]int{
		exchange.Internal: 500, exchange.BadRequest: 400, exchange.TimeoutMissing: 400, exchange.TokenReused: 400, exchange.Denied: 403,
		exchange.BadOption: 400, exchange.NotFound: 404, exchange.MethodNotAllowed: 400, exchange.TooLarge: 413, exchange.Incomplete: 502,
		exchange.TooManyRequests: 429, exchange.GroupsDisabled: 403, exchange.Unreachable: 502, exchange.BadResponse: 502,
		exchange.Overloaded: 503, exchange.NoAnswer: 504, exchange.NotProxied: 501, exchange.TimeoutTooShort: 502, exchange.HopLimitReached: 508,
	} // HC-22, HC-75
	for reason := range exchange.Reason(exchange.Reasons) {
		status, ok := want[reason]
		require.True(t, ok, reason)
		t.Run(reason.String(), func(t *testing.T) {
			f, chain := newFront(t, nil)
			chain.serve = fails(&exchange.Failure{Reason: reason, Detail: "because", RetryAfter: 1500 * time.Millisecond, MinTimeout: 7, Limit: 100})
			w := do(f, "GET", someTarget, "")
			require.Equal(t, status, w.Code)
			require.Contains(t, w.Body.String(), "because")
			require.EqualValues(t, 1, f.Stats.Failures[reason].Load())
			_, timeout := w.Header()["Multicast-Timeout"]
			switch reason {
			case exchange.TimeoutMissing: // HC-74, HC-73
				require.True(t, timeout)
				require.Empty(t, w.Header().Get("Multicast-Timeout"))
			case exchange.TimeoutTooShort:
				require.Equal(t, "7", w.Header().Get("Multicast-Timeout"))
			case exchange.Overloaded, exchange.TooManyRequests: // HC-97
				require.Equal(t, "2", w.Header().Get("Retry-After"))
			default:
				require.False(t, timeout)
			}
		})
	}
	t.Run("cause stays inside", func(t *testing.T) {
		f, chain := newFront(t, nil)
		chain.serve = fails(errors.New("secret"))
		w := do(f, "GET", someTarget, "")
		require.Equal(t, 500, w.Code)
		require.NotContains(t, w.Body.String(), "secret")
	})
	t.Run("no response", func(t *testing.T) {
		f, chain := newFront(t, nil)
		chain.serve = answers()
		require.Equal(t, 504, do(f, "GET", someTarget, "").Code) // HC-22
	})
}

// Errors are problem details for who names JSON, and always say what to change.
func TestProblemDetails(t *testing.T) {
	f, chain := newFront(t, nil)
	chain.serve = fails(exchange.Failf(exchange.TimeoutMissing, "Please use Multicast-Timeout"))
	for accept, want := range map[string]string{
		"": "text/plain; charset=utf-8", "*/*": "text/plain; charset=utf-8", "text/html": "text/plain; charset=utf-8",
		"application/json": "application/problem+json", "text/html, application/problem+json;q=0.5": "application/problem+json",
		"application/json;q=0": "text/plain; charset=utf-8",
	} {
		w := do(f, "GET", someTarget, "", "Accept: "+accept)
		require.Equal(t, 400, w.Code)
		require.Equal(t, want, w.Header().Get("Content-Type"), accept)
		require.Contains(t, w.Body.String(), "header field Multicast-Timeout")
	}
	w := do(f, "GET", someTarget, "", "Accept: application/json")
	require.JSONEq(t, `{"type":"about:blank","title":"Bad Request","status":400,"detail":"Please use Multicast-Timeout",
		"hint":"the target is a group: say with the header field Multicast-Timeout how many seconds to wait for responses"}`, w.Body.String())
	require.Empty(t, do(f, "HEAD", someTarget, "").Body.String())
}

func TestConditions(t *testing.T) {
	for _, x := range []struct {
		rule, method string
		fields       []string
		id           message.OptionID
		values       []string // of that option; nil: refused with
		status       int
	}{
		{"HC-53", "GET", []string{`If-None-Match: "dead", "beef"`, `If-None-Match: "00"`}, wire.ETag, []string{"\xde\xad", "\xbe\xef", "\x00"}, 0},
		{"HC-53", "GET", []string{`If-None-Match: W/"dead"`}, wire.ETag, []string{}, 0},
		{"HC-53", "GET", []string{`If-None-Match: *`}, wire.IfNoneMatch, []string{}, 0},
		{"HC-52", "GET", []string{`If-None-Match: "dea", "", "xyz", dead, "DEAD", "001122334455667788"`}, wire.ETag, []string{}, 0},
		{"HC-53", "PUT", []string{`If-None-Match: *`}, wire.IfNoneMatch, []string{""}, 0},
		{"HC-53", "PUT", []string{`If-None-Match: "dead"`}, wire.IfNoneMatch, nil, 400},
		{"HC-54", "PUT", []string{`If-Match: "dead"`}, wire.IfMatch, []string{"\xde\xad"}, 0},
		{"HC-54", "PUT", []string{`If-Match: "dead", "x"`}, wire.IfMatch, []string{"\xde\xad"}, 0},
		{"HC-54", "PUT", []string{`If-Match: *`}, wire.IfMatch, []string{""}, 0},
		{"HC-54", "PUT", []string{`If-Match: "x"`}, wire.IfMatch, nil, 412},
		{"HC-54", "PUT", []string{`If-Match: W/"dead"`}, wire.IfMatch, nil, 412},
		{"HC-56", "GET", []string{`If-Modified-Since: Mon, 23 Nov 2026 13:00:00 GMT`}, wire.ETag, []string{}, 0},
		{"HC-95", "GET", []string{`Range: bytes=0-1`}, wire.Block2, []string{}, 0},
	} {
		t.Run(x.rule+" "+x.fields[0], func(t *testing.T) {
			f, chain := newFront(t, nil)
			w := do(f, x.method, someTarget, "", x.fields...)
			if x.values == nil {
				require.Equal(t, x.status, w.Code)
				require.Zero(t, chain.count())
				return
			}
			require.Equal(t, 200, w.Code)
			values := []string{}
			for v := range wire.All(chain.last().Options, x.id) {
				values = append(values, string(v))
			}
			require.Equal(t, x.values, values)
			requireSorted(t, chain.last().Options)
		})
	}
}

func requireSorted(t *testing.T, options message.Options) {
	for i := 1; i < len(options); i++ {
		require.LessOrEqual(t, options[i-1].ID, options[i].ID)
	}
}

func TestMediaTypes(t *testing.T) {
	for _, x := range []struct {
		rule, contentType, coding string
		media                     Media
		format                    string // value of Content-Format; "-": 415
	}{
		{"HC-40", "application/json", "", Media{}, "\x32"},
		{"HC-40", "application/cbor", "identity", Media{}, "\x3c"},
		{"HC-40", "application/json", "deflate", Media{}, "\x2b\x2a"},
		{"HC-41", "application/x-www-form-urlencoded", "", Media{}, "-"},
		{"HC-41", "nonsense", "", Media{}, "-"},
		{"HC-46", "Text/Plain;Charset=UTF-8", "", Media{}, ""},
		{"HC-46", "text/plain", "", Media{}, ""},
		{"HC-46", "text/plain; charset=latin1", "", Media{}, "-"},
		{"HC-46", "application/json; charset=utf-8", "", Media{}, "\x32"},
		{"HC-46", `application/cose; cose-type=cose-sign1`, "", Media{}, "\x12"},
		{"HC-44", "application/coap-payload;cf=65001", "", Media{}, "-"},
		{"HC-44", "application/coap-payload;cf=65001", "", Media{PassThrough: true}, "\xfd\xe9"},
		{"HC-44", "application/coap-payload;cf=65536", "", Media{PassThrough: true}, "-"},
		{"HC-45", "application/vnd.x+json", "", Media{Loose: true}, "\x32"},
		{"HC-45", "application/vnd.x+xml", "", Media{Loose: true}, "\x29"},
		{"HC-45", "application/vnd.x+cbor", "", Media{Loose: true}, "\x3c"},
		{"HC-45", "text/xml", "", Media{Loose: true}, "\x29"},
		{"HC-45", "text/csv", "", Media{Loose: true}, ""},
		{"HC-45", "audio/ogg", "", Media{Loose: true}, "\x2a"},
		{"HC-45", "text/csv", "", Media{}, "-"},
		{"HC-48", "application/json", "br", Media{}, "-"},
		{"HC-48", "text/plain", "deflate", Media{}, "-"},
	} {
		t.Run(x.rule+" "+x.contentType, func(t *testing.T) {
			f, chain := newFront(t, func(c *Config) { c.Media = x.media })
			w := do(f, "PUT", someTarget, "{}", "Content-Type: "+x.contentType, "Content-Encoding: "+x.coding)
			if x.format == "-" {
				require.Equal(t, 415, w.Code)
				require.Zero(t, chain.count())
				return
			}
			require.Equal(t, 200, w.Code, w.Body)
			require.Equal(t, x.format, value(chain.last(), wire.ContentFormat))
		})
	}
}

func TestAccept(t *testing.T) {
	for _, x := range []struct {
		rule   string
		fields []string
		media  Media
		accept string // "-": no option; "refused": 406
	}{
		{"HC-42", nil, Media{}, "-"},
		{"HC-42", []string{"Accept: */*"}, Media{}, "-"},
		{"HC-42", []string{"Accept: image/webp"}, Media{}, "-"},
		{"HC-42", []string{"Accept: text/*"}, Media{}, "-"},
		{"HC-42", []string{"Accept: text/html, application/json;q=0.5, application/cbor;q=0.9, */*;q=0.1"}, Media{}, "\x3c"},
		{"HC-42", []string{"Accept: application/json", "Accept: text/plain;q=0.2"}, Media{}, "\x32"},
		{"HC-42", []string{"Accept: application/json;q=0"}, Media{}, "-"},
		{"HC-42", []string{"Accept: application/json;q=x, ,,;, text/plain;q=0.1"}, Media{}, ""},
		{"HC-40", []string{"Accept: application/json", "Accept-Encoding: gzip, deflate"}, Media{}, "\x32"},
		{"HC-40", []string{"Accept: application/json", "Accept-Encoding: deflate, identity;q=0"}, Media{}, "\x2b\x2a"},
		{"HC-44", []string{"Accept: application/coap-payload;cf=65001"}, Media{}, "refused"},
		{"HC-44", []string{"Accept: application/coap-payload;cf=65001"}, Media{PassThrough: true}, "\xfd\xe9"},
	} {
		t.Run(x.rule+" "+strings.Join(x.fields, "; "), func(t *testing.T) {
			f, chain := newFront(t, func(c *Config) { c.Media = x.media })
			w := do(f, "GET", someTarget, "", x.fields...)
			if x.accept == "refused" {
				require.Equal(t, 406, w.Code)
				return
			}
			require.Equal(t, x.accept, value(chain.last(), wire.Accept))
			requireSorted(t, chain.last().Options)
		})
	}
}

// After 4.06 the next type is tried, at most three of them (HC-42).
func TestNextType(t *testing.T) {
	f, chain := newFront(t, nil)
	chain.serve = func(r *exchange.Request, w exchange.Sink) exchange.Canceler {
		if value(r, wire.Accept) == "\x3c" {
			return answers(content("ok", option(wire.ContentFormat, "\x3c")))(r, w)
		}
		return answers(&exchange.Response{Code: codes.NotAcceptable, From: serverA})(r, w)
	}
	w := do(f, "GET", someTarget, "", "Accept: application/json, text/plain;q=0.9, application/cbor;q=0.8, application/xml;q=0.7")
	require.Equal(t, 200, w.Code)
	require.Equal(t, "application/cbor", w.Header().Get("Content-Type"))
	require.Equal(t, 3, chain.count())

	w = do(f, "GET", someTarget, "", "Accept: application/json, text/plain, application/xml, application/cbor")
	require.Equal(t, 406, w.Code)
	require.Equal(t, 6, chain.count())

	w = do(f, "PUT", someTarget, "", "Accept: application/json, application/cbor")
	require.Equal(t, 406, w.Code, "not repeated")
	require.Equal(t, 7, chain.count())
}

func TestResponseTypes(t *testing.T) {
	for _, x := range []struct{ rule, format, contentType, coding string }{
		{"HC-43", "\xfd\xe9", "application/coap-payload;cf=65001", ""},
		{"HC-43", "\x01\x00\x00", "application/octet-stream", ""},
		{"HC-46", "", "text/plain; charset=utf-8", ""},
		{"HC-48", "\x2b\x2a", "application/json", "deflate"},
		{"HC-40", "\x10", `application/cose; cose-type="cose-encrypt0"`, ""},
	} {
		f, chain := newFront(t, nil)
		chain.serve = answers(content("x", option(wire.ContentFormat, x.format)))
		w := do(f, "GET", someTarget, "")
		require.Equal(t, x.contentType, w.Header().Get("Content-Type"))
		require.Equal(t, x.coding, w.Header().Get("Content-Encoding"))
	}
}

func TestBodies(t *testing.T) {
	pack := func(s string) string {
		var b bytes.Buffer
		w := gzip.NewWriter(&b)
		_, _ = w.Write([]byte(s))
		_ = w.Close()
		return b.String()
	}
	limit := func(c *Config) { c.Limits.RequestBody = 100 }
	for _, x := range []struct {
		rule, method, body string
		fields             []string
		status             int
		payload            string
	}{
		{"HC-97", "PUT", strings.Repeat("x", 100), nil, 200, strings.Repeat("x", 100)},
		{"HC-97", "PUT", strings.Repeat("x", 101), nil, 413, ""},
		{"HC-48", "PUT", pack("hello"), []string{"Content-Encoding: gzip", "Content-Type: text/plain"}, 200, "hello"},
		{"HC-48", "PUT", pack(strings.Repeat("x", 101)), []string{"Content-Encoding: gzip"}, 413, ""},
		{"HC-48", "PUT", "no gzip", []string{"Content-Encoding: gzip"}, 400, ""},
		{"HC-20", "GET", "x", nil, 400, ""},
		{"HC-20", "DELETE", "x", nil, 400, ""},
		{"HC-20", "QUERY", "", []string{"Content-Type: text/plain"}, 400, ""},
		{"HC-20", "QUERY", "x", nil, 400, ""},
	} {
		t.Run(x.rule+" "+x.method, func(t *testing.T) {
			f, chain := newFront(t, func(c *Config) { limit(c); c.Query = true })
			w := do(f, x.method, someTarget, x.body, x.fields...)
			require.Equal(t, x.status, w.Code, w.Body)
			if x.status == 200 {
				require.Equal(t, x.payload, string(chain.last().Payload))
				return
			}
			require.Zero(t, chain.count())
		})
	}
}

// A body of unknown length is bounded, too.
func TestChunkedBodyLimit(t *testing.T) { // HC-97
	f, chain := newFront(t, func(c *Config) { c.Limits.RequestBody = 100 })
	r := httptest.NewRequest("PUT", "/", io.MultiReader(strings.NewReader(strings.Repeat("x", 101))))
	r.RequestURI, r.Host, r.ContentLength = someTarget, "localhost", -1
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	require.Equal(t, 413, w.Code)
	require.Zero(t, chain.count())
}

func TestEcho(t *testing.T) { // HC-99
	f, chain := newFront(t, nil)
	chain.serve = func(r *exchange.Request, w exchange.Sink) exchange.Canceler {
		if value(r, wire.Echo) == "fresh" {
			return answers(content("ok"))(r, w)
		}
		return answers(&exchange.Response{Code: codes.Unauthorized, Options: message.Options{option(wire.Echo, "fresh")}, From: serverA})(r, w)
	}
	require.Equal(t, 200, do(f, "GET", someTarget, "").Code)
	require.Equal(t, 2, chain.count())
	w := do(f, "PUT", someTarget, "x")
	require.Equal(t, 503, w.Code)
	require.Equal(t, "0", w.Header().Get("Retry-After"))
	require.Equal(t, "close", w.Header().Get("Connection"))
	require.Equal(t, 3, chain.count())

	chain.serve = answers(&exchange.Response{Code: codes.Unauthorized, Options: message.Options{option(wire.Echo, "fresh")}, From: serverA})
	require.Equal(t, 503, do(f, "GET", someTarget, "").Code, "challenged for ever")
}

func TestPrivate(t *testing.T) { // HC-51
	f, _ := newFront(t, nil)
	require.Equal(t, "max-age=60", do(f, "GET", someTarget, "").Header().Get("Cache-Control"))
	f, _ = newFront(t, func(c *Config) { c.SecureFromPlain = true })
	require.Equal(t, "private, max-age=60", do(f, "GET", "/hc/coaps://192.0.2.7/temp", "").Header().Get("Cache-Control"))
	f, _ = newFront(t, func(c *Config) { c.Clients = provenClients{} })
	require.Equal(t, "private, max-age=60", do(f, "GET", someTarget, "").Header().Get("Cache-Control"))
}

type provenClients struct{ networkClients }

func (provenClients) Authenticate(Proof) (Who, error) {
	return Who{Client: knownClient, By: ByCredentials, Credentials: "test"}, nil
}

func TestSecureFromPlain(t *testing.T) { // HC-102
	f, chain := newFront(t, nil)
	require.Equal(t, 403, do(f, "GET", "/hc/coaps://192.0.2.7/temp", "").Code)
	require.Zero(t, chain.count())
}

func TestVia(t *testing.T) { // HC-106
	f, _ := newFront(t, func(c *Config) { c.Identifier = "gw1" })
	require.Equal(t, "CoAP/1 gw1", do(f, "GET", someTarget, "").Header().Get("Via"))
	_, err := NewFront(Config{Identifier: "a b"})
	require.Error(t, err)
}

// A client that hangs up ends an unsafe exchange; a safe one goes on for the
// cache (HC-60).
func TestHangUp(t *testing.T) {
	for method, canceled := range map[string]int{"GET": 0, "PUT": 1} {
		f, chain := newFront(t, nil)
		exchanges := chain.keepsRunning()
		ctx, cancel := context.WithCancel(t.Context())
		r := httptest.NewRequestWithContext(ctx, method, "/", http.NoBody)
		r.RequestURI, r.Host = someTarget, "localhost"
		over := make(chan struct{})
		go func() { defer close(over); f.ServeHTTP(httptest.NewRecorder(), r) }()
		x := <-exchanges
		cancel()
		<-over
		chain.mu.Lock()
		require.Equal(t, canceled, chain.canceled, method)
		chain.mu.Unlock()
		require.EqualValues(t, 1, f.Stats.Disconnects.Load())
		if canceled == 0 {
			require.Equal(t, exchange.Stop, x.sink.Respond(content("late")))
			require.EqualValues(t, 1, f.exchanges.Load(), "the exchange is still running")
		}
		require.EqualValues(t, f.Limits.TotalBytes, f.budget.left.Load())
		x.end(nil)
		require.Zero(t, f.exchanges.Load())
	}
}

func TestBounds(t *testing.T) { // HC-97
	f, chain := newFront(t, func(c *Config) { c.Limits.Exchanges, c.Limits.ClientExchanges = 4, 1 })
	exchanges := chain.keepsRunning()
	over := make(chan int, 1)
	go func() { over <- do(f, "GET", someTarget, "").Code }()
	x := <-exchanges
	w := do(f, "GET", someTarget, "")
	require.Equal(t, 429, w.Code)
	require.Equal(t, "1", w.Header().Get("Retry-After"))
	f.Limits.ClientExchanges, f.Limits.Exchanges = 10, 1
	w = do(f, "GET", someTarget, "")
	require.Equal(t, 503, w.Code)
	require.Equal(t, "1", w.Header().Get("Retry-After"))
	x.end(exchange.Failf(exchange.NoAnswer, "late"))
	require.Equal(t, 504, <-over)
	require.Empty(t, f.perClient)
}

// What all requests keep is bounded, and given back (HC-97).
func TestTotalBytes(t *testing.T) {
	f, chain := newFront(t, func(c *Config) { c.Limits.TotalBytes = 1000 })
	require.Equal(t, 503, do(f, "PUT", someTarget, strings.Repeat("x", 1001)).Code)
	require.Zero(t, chain.count())
	for range 10 {
		require.Equal(t, 200, do(f, "PUT", someTarget, strings.Repeat("x", 800)).Code)
	}
	chain.serve = answers(content(strings.Repeat("x", 1000)))
	require.Equal(t, 503, do(f, "GET", someTarget, "").Code)
	chain.serve = answers(member(serverA, codes.Content, strings.Repeat("x", 600)), member(serverB, codes.Content, strings.Repeat("x", 600)),
		member(serverA, codes.Content, strings.Repeat("x", 500)))
	for _, more := range []string{"", "Accept: application/json"} {
		w := do(f, "GET", groupTarget, "", "Multicast-Timeout: 2", more)
		require.Equal(t, 200, w.Code)
	}
	require.EqualValues(t, 2, f.Stats.Dropped.Load())
	require.Equal(t, 503, do(f, "GET", groupTarget, "", "Multicast-Timeout: 2", "Prefer: stream-parts").Code)
	require.EqualValues(t, 1000, f.budget.left.Load())
}

func TestDrain(t *testing.T) {
	f, chain := newFront(t, nil)
	exchanges := chain.keepsRunning()
	over := make(chan int, 1)
	go func() { over <- do(f, "GET", someTarget, "").Code }()
	x := <-exchanges
	done, stop := context.WithCancel(t.Context())
	stop()
	require.Equal(t, 2, f.Drain(done), "the request and its exchange")
	require.Equal(t, 503, do(f, "GET", someTarget, "").Code)
	x.end(nil)
	require.Equal(t, 504, <-over)
	<-f.idle

	f, _ = newFront(t, nil)
	require.Zero(t, f.Drain(t.Context()))
}

func TestCacheControlOfRequests(t *testing.T) { // HC-57
	for value, want := range map[string]exchange.Stored{
		"":                                {},
		"no-cache":                        {Confirmed: true},
		"No-Store":                        {Unkept: true},
		"only-if-cached, max-age=5":       {Only: true, Limited: true, MaxAge: 5 * time.Second},
		`max-age="0"`:                     {Limited: true},
		"max-age=9, max-age=3":            {Limited: true, MaxAge: 3 * time.Second},
		"max-age=x, min-fresh=3, private": {},
	} {
		f, chain := newFront(t, nil)
		require.Equal(t, 200, do(f, "GET", someTarget, "", "Cache-Control: "+value).Code)
		require.Equal(t, want, chain.last().Stored, value)
	}
}

// Bodies pass as they are: no transcoding, and links in them still say coap
// (HC-47).
func TestBodiesPassUnchanged(t *testing.T) {
	f, chain := newFront(t, nil)
	links := `<coap://192.0.2.7/a>;rt="x",</b>`
	chain.serve = answers(content(links, option(wire.ContentFormat, "\x28")))
	w := do(f, "GET", "/hc/coap://192.0.2.7/.well-known/core", "")
	require.Equal(t, "application/link-format", w.Header().Get("Content-Type"))
	require.Equal(t, links, w.Body.String())
}
