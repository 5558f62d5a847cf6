package httpbridge

import (
	"context"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// origin is an HTTP server, and a leg to it.
type origin struct {
	t   *testing.T
	leg *Leg
	url string
	to  exchange.Target

	mu       sync.Mutex
	requests []*http.Request
	bodies   []string
	handle   http.HandlerFunc
}

func newOrigin(t *testing.T, secure bool, change func(*LegConfig)) *origin {
	t.Helper()
	o := &origin{t: t, handle: func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "hello") }}
	s := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		o.mu.Lock()
		o.requests, o.bodies = append(o.requests, r), append(o.bodies, string(body))
		handle := o.handle
		o.mu.Unlock()
		handle(w, r)
	}))
	c := LegConfig{Engine: exchange.NewEngine(), Stats: &LegStats{}, Log: zap.NewNop(), Pseudonym: "gw"}
	s.Config.ErrorLog = log.New(io.Discard, "", 0)
	if secure {
		s.StartTLS()
		c.Roots = x509.NewCertPool()
		c.Roots.AddCert(s.Certificate())
	} else {
		s.Start()
	}
	t.Cleanup(s.Close)
	if change != nil {
		change(&c)
	}
	ctx, cancel := context.WithCancel(t.Context())
	o.leg = NewLeg(ctx, c)
	t.Cleanup(func() { cancel(); o.leg.Wait() })
	u, err := url.Parse(s.URL)
	require.NoError(t, err)
	o.url = s.URL
	o.to = exchange.Target{Scheme: u.Scheme, Addr: netip.MustParseAddrPort(u.Host)}
	return o
}

// outcome is the sink of one exchange.
type outcome struct {
	responses []*exchange.Response
	err       error
	done      chan struct{}
}

func (o *outcome) Respond(p *exchange.Response) exchange.Verdict {
	o.responses = append(o.responses, p.Clone())
	return exchange.Continue
}

func (o *outcome) End(err error) { o.err = err; close(o.done) }

func (o *origin) request(method codes.Code, path, payload string, options ...message.Option) *exchange.Request {
	r := &exchange.Request{ID: 1, Method: method, Payload: []byte(payload), Target: o.to, Client: knownClient}
	r.Options = insertOption(r.Options, wire.ProxyURI, []byte(o.url+path))
	for _, p := range options {
		r.Options = insertOption(r.Options, p.ID, p.Value)
	}
	return r
}

func (o *origin) carryOut(r *exchange.Request) (*exchange.Response, error) {
	o.t.Helper()
	w := &outcome{done: make(chan struct{})}
	o.leg.Exchange(r, w)
	select {
	case <-w.done:
	case <-time.After(10 * time.Second):
		require.Fail(o.t, "no end")
	}
	if len(w.responses) == 0 {
		return nil, w.err
	}
	require.Len(o.t, w.responses, 1)
	require.NoError(o.t, w.err)
	return w.responses[0], nil
}

func (o *origin) ask(method codes.Code, path, payload string, options ...message.Option) *exchange.Response {
	o.t.Helper()
	p, err := o.carryOut(o.request(method, path, payload, options...))
	require.NoError(o.t, err)
	return p
}

func (o *origin) last() *http.Request {
	o.mu.Lock()
	defer o.mu.Unlock()
	require.NotEmpty(o.t, o.requests)
	return o.requests[len(o.requests)-1]
}

func optionOf(p *exchange.Response, id message.OptionID) string {
	v, ok := wire.First(p.Options, id)
	if !ok {
		return "-"
	}
	return string(v)
}

// HC-21: the methods that HTTP has go out as they are.
func TestLegMethods(t *testing.T) {
	for _, x := range []struct {
		method codes.Code
		query  bool
		want   string // "": 4.05
		code   codes.Code
	}{
		{codes.GET, false, "GET", codes.Content}, {codes.POST, false, "POST", codes.Changed}, {codes.PUT, false, "PUT", codes.Changed},
		{codes.DELETE, false, "DELETE", codes.Deleted}, {wire.PATCH, false, "PATCH", codes.Changed},
		{wire.FETCH, false, "", codes.MethodNotAllowed}, {wire.FETCH, true, "QUERY", codes.Content}, {wire.IPATCH, true, "", codes.MethodNotAllowed},
	} {
		o := newOrigin(t, false, func(c *LegConfig) { c.Query = x.query })
		p := o.ask(x.method, "/a", "")
		require.Equal(t, x.code, p.Code, x.want)
		if x.want != "" {
			require.Equal(t, x.want, o.last().Method)
			require.Equal(t, "CoAP/1 gw", o.last().Header.Get("Via")) // HC-106, FP-55
			continue
		}
		require.Empty(t, o.requests)
	}
}

// The URI goes out as it was written: in HTTP an encoded delimiter may mean
// something else than the plain one.
func TestLegTarget(t *testing.T) {
	o := newOrigin(t, false, nil)
	for _, path := range []string{"/a%2Fb//c/?q=1+2%2B3&&x=%26", "/", "/?", "/%7Euser/;v=1"} {
		o.ask(codes.GET, path, "")
		require.Equal(t, path, o.last().RequestURI)
		require.Equal(t, strings.TrimPrefix(o.url, "http://"), o.last().Host)
	}
	o.ask(codes.GET, "", "")
	require.Equal(t, "/", o.last().RequestURI)
}

// HC-32, HC-33: every status has its code.
func TestLegCodes(t *testing.T) {
	o := newOrigin(t, false, nil)
	status := 0
	o.handle = func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(status) }
	for _, x := range []struct {
		method codes.Code
		status int
		code   string // "": the exchange fails
	}{
		{codes.GET, 200, "2.05"}, {codes.POST, 200, "2.04"}, {codes.PUT, 200, "2.04"}, {wire.PATCH, 200, "2.04"}, {codes.DELETE, 200, "2.02"},
		{codes.POST, 201, "2.01"}, {codes.PUT, 201, "2.01"}, {codes.PUT, 204, "2.04"}, {codes.DELETE, 204, "2.02"},
		{codes.GET, 304, "2.03"}, {codes.DELETE, 404, "2.02"}, {codes.DELETE, 410, "2.02"},
		{codes.GET, 400, "4.00"}, {codes.GET, 401, "4.01"}, {codes.GET, 403, "4.03"}, {codes.GET, 404, "4.04"}, {codes.GET, 405, "4.05"},
		{codes.GET, 406, "4.06"}, {codes.GET, 409, "4.09"}, {codes.GET, 412, "4.12"}, {codes.GET, 413, "4.13"}, {codes.GET, 415, "4.15"},
		{codes.GET, 422, "4.22"}, {codes.GET, 429, "4.29"}, {codes.GET, 402, "4.00"}, {codes.GET, 418, "4.00"},
		{codes.PUT, 408, "4.08"}, {codes.GET, 408, "4.00"},
		{codes.GET, 500, "5.00"}, {codes.GET, 501, "5.01"}, {codes.GET, 502, "5.02"}, {codes.GET, 503, "5.03"}, {codes.GET, 504, "5.04"},
		{codes.GET, 508, "5.08"} /* FP-55 */, {codes.GET, 505, "5.02"}, {codes.GET, 599, "5.02"}, {codes.GET, 300, "5.02"},
		{codes.GET, 206, ""}, {codes.GET, 299, ""}, // HC-34
	} {
		payload := ""
		if x.method == codes.PUT {
			payload = "x"
		}
		status = x.status
		p, err := o.carryOut(o.request(x.method, "/", payload))
		if x.code == "" {
			require.Equal(t, exchange.BadResponse, exchange.AsFailure(err).Reason, x.status)
			continue
		}
		require.NoError(t, err)
		require.True(t, strings.HasPrefix(wire.CodeString(p.Code), x.code), "%v %d: %s", x.method, x.status, wire.CodeString(p.Code))
		require.Equal(t, o.to.Addr, p.From)
	}
}

// HC-40, HC-46: types of requests, and of responses.
func TestLegFormats(t *testing.T) {
	o := newOrigin(t, false, nil)
	o.ask(codes.PUT, "/", `{}`, option(wire.ContentFormat, "\x32"))
	require.Equal(t, "application/json", o.last().Header.Get("Content-Type"))
	require.Equal(t, "{}", o.bodies[0])
	for _, x := range []struct{ contentType, format, accept, code string }{
		{"application/json; charset=utf-8", "\x32", "-", "2.05"},
		{"text/plain", "", "-", "2.05"},
		{"text/html", "-", "-", "2.05"},
		{"application/json", "\x32", "\x32", "2.05"},
		{"application/cbor", "-", "\x32", "4.06"},
		{"text/html", "-", "\x32", "4.06"},
	} {
		o.handle = func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", x.contentType)
			_, _ = io.WriteString(w, "x")
		}
		var options []message.Option
		if x.accept != "-" {
			options = append(options, option(wire.Accept, x.accept))
		}
		p := o.ask(codes.GET, "/", "", options...)
		require.True(t, strings.HasPrefix(wire.CodeString(p.Code), x.code), x.contentType)
		require.Equal(t, x.format, optionOf(p, wire.ContentFormat), x.contentType)
	}
	require.Equal(t, "application/json", o.last().Header.Get("Accept"))
	o.handle = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Encoding", "gzip")
		_, _ = io.WriteString(w, "x")
	}
	_, err := o.carryOut(o.request(codes.GET, "/", ""))
	require.Equal(t, exchange.BadResponse, exchange.AsFailure(err).Reason)
}

// HC-59: freshness and entity tags.
func TestLegFreshness(t *testing.T) {
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	at := func(d time.Duration) string { return now.Add(d).Format(http.TimeFormat) }
	for _, x := range []struct {
		name   string
		fields []string
		want   uint32
	}{
		{"nothing known", nil, 0},
		{"max-age", []string{"Cache-Control: max-age=100"}, 100},
		{"quoted", []string{`Cache-Control: Max-Age="100"`}, 100},
		{"for shared caches", []string{"Cache-Control: s-maxage=10, max-age=100"}, 10},
		{"whatever the order", []string{"Cache-Control: max-age=100", "Cache-Control: s-maxage=10"}, 10},
		{"aged on the way", []string{"Cache-Control: max-age=100", "Age: 30"}, 70},
		{"aged by its date", []string{"Cache-Control: max-age=100", "Date: " + at(-40*time.Second)}, 60},
		{"too old", []string{"Cache-Control: max-age=100", "Age: 300"}, 0},
		{"Expires", []string{"Date: " + at(-10*time.Second), "Expires: " + at(50*time.Second)}, 50},
		{"Expires 0", []string{"Expires: 0"}, 0},
		{"private", []string{"Cache-Control: private, max-age=100"}, 0},
		{"no-store", []string{"Cache-Control: no-store, max-age=100"}, 0},
		{"no-cache", []string{"Cache-Control: max-age=100, no-cache"}, 0},
		{"malformed", []string{"Cache-Control: max-age=x"}, 0},
		{"varies by anything", []string{"Cache-Control: max-age=100", "Vary: *"}, 0},
		{"varies by Accept", []string{"Cache-Control: max-age=100", "Vary: Accept"}, 100},
		{"from the future", []string{"Cache-Control: max-age=100", "Date: " + at(time.Hour)}, 100},
	} {
		h := make(http.Header)
		for _, f := range x.fields {
			name, value, _ := strings.Cut(f, ": ")
			h.Add(name, value)
		}
		require.Equal(t, x.want, freshness(h, now), x.name)
	}
}

func TestLegTags(t *testing.T) {
	o := newOrigin(t, false, nil)
	tag := ""
	o.handle = func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("ETag", tag)
		w.Header().Set("Cache-Control", "max-age=7")
		w.Header().Set("Content-Type", "text/plain")
		if strings.Contains(r.Header.Get("If-None-Match"), tag) {
			w.WriteHeader(304)
			return
		}
		_, _ = io.WriteString(w, "body")
	}
	tag = `"dead"`
	require.Equal(t, "\xde\xad", optionOf(o.ask(codes.GET, "/", ""), wire.ETag))
	tag = `W/"dead"`
	require.Equal(t, "-", optionOf(o.ask(codes.GET, "/", ""), wire.ETag)) // weak ones are dropped
	tag = `"a-long-tag-of-somebody's own"`
	known := optionOf(o.ask(codes.GET, "/", ""), wire.ETag)
	require.Len(t, known, 8)

	p := o.ask(codes.GET, "/", "", option(wire.ETag, known))
	require.Equal(t, codes.Valid, p.Code)
	require.Equal(t, "\x07", optionOf(p, wire.MaxAge))
	require.Equal(t, known, optionOf(p, wire.ETag))
	require.Equal(t, tag, o.last().Header.Get("If-None-Match"), "the server's own form is remembered")
	o.leg.tags.Purge() // after a restart
	p = o.ask(codes.GET, "/", "", option(wire.ETag, known))
	require.Equal(t, codes.Valid, p.Code, "the client has it")
	require.Empty(t, p.Payload)

	o.ask(codes.PUT, "/", "x", option(wire.IfMatch, known))
	require.Equal(t, tag, o.last().Header.Get("If-Match"))
	o.ask(codes.PUT, "/", "x", option(wire.IfMatch, ""))
	require.Equal(t, "*", o.last().Header.Get("If-Match"))
	o.ask(codes.PUT, "/", "x", option(wire.IfNoneMatch, ""))
	require.Equal(t, "*", o.last().Header.Get("If-None-Match"))
}

func TestLegLocation(t *testing.T) {
	o := newOrigin(t, false, nil)
	for to, want := range map[string][]string{"/a%20b/c?x=1": {"a b", "c"}, "item": {"new", "item"}, "http://other.example/": nil, "": nil, "%zz": nil} {
		o.handle = func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Location", to)
			w.WriteHeader(201)
		}
		var got []string
		p := o.ask(codes.POST, "/new/", "")
		for v := range wire.All(p.Options, wire.LocationPath) {
			got = append(got, string(v))
		}
		require.Equal(t, want, got, to)
	}
}

// Errors carry what the server says as a diagnostic text (HC-31), Retry-After as
// Max-Age.
func TestLegErrors(t *testing.T) {
	o := newOrigin(t, false, nil)
	o.handle = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Retry-After", "30")
		http.Error(w, strings.Repeat("ö", 1000), http.StatusServiceUnavailable)
	}
	p := o.ask(codes.GET, "/", "")
	require.Equal(t, codes.ServiceUnavailable, p.Code)
	require.Equal(t, "\x1e", optionOf(p, wire.MaxAge))
	require.Equal(t, strings.Repeat("ö", 512), string(p.Payload))
	o.handle = func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/html")
		w.WriteHeader(404)
		_, _ = io.WriteString(w, "<html>")
	}
	require.Equal(t, "HTTP 404 Not Found", string(o.ask(codes.GET, "/", "").Payload))
}

// HC-33, HC-34: redirections are followed only where that is permitted, so often, and
// only for reading.
func TestLegRedirects(t *testing.T) {
	serve := func(o *origin) {
		o.handle = func(w http.ResponseWriter, r *http.Request) {
			switch r.URL.Path {
			case "/from":
				http.Redirect(w, r, "/to?x=1", http.StatusFound)
			case "/loop":
				http.Redirect(w, r, "/loop", http.StatusTemporaryRedirect)
			case "/file":
				http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
			default:
				_, _ = io.WriteString(w, r.RequestURI)
			}
		}
	}
	o := newOrigin(t, false, nil)
	serve(o)
	_, err := o.carryOut(o.request(codes.GET, "/from", ""))
	require.Equal(t, exchange.BadResponse, exchange.AsFailure(err).Reason)
	require.Len(t, o.requests, 1)

	var asked []string
	denied := false
	o = newOrigin(t, false, func(c *LegConfig) {
		c.Redirect = func(_ context.Context, r *exchange.Request, to *url.URL) (exchange.Target, error) {
			asked = append(asked, to.String())
			if denied {
				return exchange.Target{}, exchange.Failf(exchange.Denied, "no")
			}
			return r.Target, nil
		}
	})
	serve(o)
	require.Equal(t, "/to?x=1", string(o.ask(codes.GET, "/from", "").Payload))
	require.Equal(t, []string{o.url + "/to?x=1"}, asked)
	_, err = o.carryOut(o.request(codes.GET, "/loop", ""))
	require.Equal(t, exchange.BadResponse, exchange.AsFailure(err).Reason)
	require.Len(t, o.requests, 2+6)
	for _, method := range []codes.Code{codes.POST, codes.PUT, codes.DELETE} {
		_, err = o.carryOut(o.request(method, "/from", ""))
		require.Equal(t, exchange.BadResponse, exchange.AsFailure(err).Reason)
	}
	_, err = o.carryOut(o.request(codes.GET, "/file", ""))
	require.Equal(t, exchange.BadResponse, exchange.AsFailure(err).Reason)
	denied = true
	_, err = o.carryOut(o.request(codes.GET, "/from", ""))
	require.Equal(t, exchange.Denied, exchange.AsFailure(err).Reason)
}

// Certificates are verified, for the name in the URI.
func TestLegTLS(t *testing.T) {
	o := newOrigin(t, true, nil)
	require.Equal(t, "hello", string(o.ask(codes.GET, "/", "").Payload))
	r := o.request(codes.GET, "/", "")
	r.Options = message.Options{option(wire.ProxyURI, fmt.Sprintf("https://other.test:%d/", o.to.Addr.Port()))}
	r.Target.Host = "other.test"
	_, err := o.carryOut(r)
	f := exchange.AsFailure(err)
	require.Equal(t, exchange.Unreachable, f.Reason)
	require.Contains(t, f.Detail, "certificate")
	r.Options = message.Options{option(wire.ProxyURI, fmt.Sprintf("https://example.com:%d/", o.to.Addr.Port()))} // in httptest's certificate
	p, err := o.carryOut(r)
	require.NoError(t, err)
	require.Equal(t, codes.Content, p.Code)
	require.Equal(t, fmt.Sprintf("example.com:%d", o.to.Addr.Port()), o.last().Host)

	o = newOrigin(t, true, func(c *LegConfig) { c.Roots = x509.NewCertPool() })
	_, err = o.carryOut(o.request(codes.GET, "/", ""))
	require.Equal(t, exchange.Unreachable, exchange.AsFailure(err).Reason)
}

// What cannot be carried out, and what takes too long or too much.
func TestLegFailures(t *testing.T) {
	o := newOrigin(t, false, func(c *LegConfig) { c.Body, c.Timeout, c.Requests = 100, 200*time.Millisecond, 1 })
	o.handle = func(w http.ResponseWriter, _ *http.Request) { _, _ = w.Write(make([]byte, 101)) }
	_, err := o.carryOut(o.request(codes.GET, "/", ""))
	require.Equal(t, exchange.BadResponse, exchange.AsFailure(err).Reason)
	require.EqualValues(t, 1, o.leg.Stats.TooLong.Load())

	release := make(chan struct{})
	o.mu.Lock()
	o.handle = func(_ http.ResponseWriter, r *http.Request) {
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}
	o.mu.Unlock()
	_, err = o.carryOut(o.request(codes.GET, "/", ""))
	require.Equal(t, exchange.NoAnswer, exchange.AsFailure(err).Reason)

	// One request at a time, and what is canceled makes room.
	w := &outcome{done: make(chan struct{})}
	running := o.leg.Exchange(o.request(codes.GET, "/", ""), w)
	_, err = o.carryOut(o.request(codes.GET, "/", ""))
	require.Equal(t, exchange.Overloaded, exchange.AsFailure(err).Reason)
	running.Cancel()
	running.Cancel()
	<-w.done
	require.ErrorIs(t, w.err, exchange.ErrCanceled)
	require.Empty(t, w.responses)
	close(release)

	r := o.request(codes.GET, "/", "", option(65001, "x")) // critical, unknown
	_, err = o.carryOut(r)
	require.Equal(t, exchange.BadOption, exchange.AsFailure(err).Reason)

	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	gone := l.Addr().(*net.TCPAddr).AddrPort()
	require.NoError(t, l.Close())
	r = o.request(codes.GET, "/", "")
	r.Target.Addr = gone
	_, err = o.carryOut(r)
	require.Equal(t, exchange.Unreachable, exchange.AsFailure(err).Reason)
	require.Zero(t, o.leg.Pending())
	require.Zero(t, o.leg.Stats.Running.Load())
}

// One client alone leaves a quarter of the requests to others.
func TestLegShares(t *testing.T) {
	o := newOrigin(t, false, func(c *LegConfig) { c.Requests = 4 })
	release := make(chan struct{})
	o.handle = func(http.ResponseWriter, *http.Request) { <-release }
	ask := func(peer string) *outcome {
		w := &outcome{done: make(chan struct{})}
		r := o.request(codes.GET, "/", "")
		r.Peer = netip.AddrPortFrom(netip.MustParseAddr(peer), 5683)
		o.leg.Exchange(r, w)
		return w
	}
	refused := func(w *outcome) {
		t.Helper()
		<-w.done
		require.Equal(t, exchange.Overloaded, exchange.AsFailure(w.err).Reason)
	}
	running := []*outcome{ask("2001:db8::1"), ask("2001:db8::1"), ask("2001:db8::1")}
	refused(ask("2001:db8::1"))
	refused(ask("2001:db8::2")) // its /64 is one client
	running = append(running, ask("192.0.2.1"))
	refused(ask("192.0.2.2")) // there is no more room at all
	close(release)
	for _, w := range running {
		<-w.done
		require.Len(t, w.responses, 1)
	}
}

// Whatever name the URI has, the address that was permitted is dialled.
func TestLegDialsTarget(t *testing.T) {
	o := newOrigin(t, false, nil)
	r := o.request(codes.GET, "/", "")
	r.Options = message.Options{option(wire.ProxyURI, "http://127.0.0.1:1/x")}
	p, err := o.carryOut(r)
	require.NoError(t, err)
	require.Equal(t, codes.Content, p.Code)
	require.Equal(t, "127.0.0.1:1", o.last().Host)
	for _, host := range []string{"a.example", "::1", "", "192.0.2.1"} {
		name, at, err := unpin(pinned(host, netip.MustParseAddrPort("[fe80::1%eth0]:80")))
		require.NoError(t, err)
		require.Equal(t, host, name)
		require.Equal(t, "[fe80::1%eth0]:80", at.String())
	}
}
