package test

import (
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// webServer is an HTTP server that remembers what it was asked.
type webServer struct {
	*httptest.Server
	mu  sync.Mutex
	got []string
}

func newWebServer(t *testing.T) *webServer {
	s := &webServer{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		s.mu.Lock()
		s.got = append(s.got, fmt.Sprintf("%s %s %s %s", r.Method, r.RequestURI, r.Header.Get("Content-Type"), body))
		s.mu.Unlock()
		switch {
		case r.URL.Path == "/away":
			http.Redirect(w, r, "http://127.0.0.1:1/", http.StatusFound)
		case r.Header.Get("If-None-Match") == `"rev-1"`:
			w.Header().Set("ETag", `"rev-1"`)
			w.WriteHeader(http.StatusNotModified)
		default:
			w.Header().Set("ETag", `"rev-1"`)
			w.Header().Set("Cache-Control", "max-age=60")
			w.Header().Set("Content-Type", "application/json")
			_, _ = fmt.Fprintf(w, "%q", r.RequestURI)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *webServer) requests() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.got...)
}

// CoAP clients reach HTTP servers that their entry allows (RFC 7252 §10.1, HC-21,
// HC-32), and the cache keeps the responses (HC-59).
func TestHTTPServer(t *testing.T) {
	t.Parallel()
	origin := newWebServer(t)
	s := settings{client: `forward: ["http://127.0.0.0/8:*"]`, cache: "enabled: true"}
	p := startProxy(t, group0, s)
	c := newClient(t, here, clientAddr, p.addr())
	uri := origin.URL + "/a%2Fb?q=1%2B2"
	for range 2 {
		in := c.ask(get(coap.CON, uri))
		require.Equal(t, coap.CodeOf(2, 5), in.Code, "%s", in.Payload)
		require.Equal(t, `"/a%2Fb?q=1%2B2"`, string(in.Payload))
		require.Equal(t, []byte{50}, in.All(coap.ContentFormat)[0])
		require.Len(t, in.All(coap.ETag)[0], 8)
	}
	require.Equal(t, []string{"GET /a%2Fb?q=1%2B2  "}, origin.requests(), "the second one came from the cache")
	in := c.ask(get(coap.CON, uri, coap.Opt(coap.Accept, []byte{60})))
	require.Equal(t, coap.CodeOf(4, 6), in.Code)

	put := get(coap.CON, origin.URL+"/x", coap.Opt(coap.ContentFormat, []byte{}))
	put.Code, put.Payload = coap.PUT, []byte("on")
	require.Equal(t, coap.CodeOf(2, 4), c.ask(put).Code)
	require.Equal(t, "PUT /x text/plain; charset=utf-8 on", origin.requests()[len(origin.requests())-1])

	require.Equal(t, coap.CodeOf(5, 2), c.ask(get(coap.CON, origin.URL+"/away")).Code)
	require.Equal(t, coap.CodeOf(4, 1), c.ask(get(coap.CON, strings.Replace(origin.URL, "http", "https", 1)+"/")).Code)
	require.Equal(t, coap.CodeOf(4, 1), c.ask(get(coap.CON, "http://192.0.2.1/")).Code)
}

// Without such an entry the proxy does not speak HTTP to servers at all, and what
// names and redirections lead to is checked (HC-103).
func TestHTTPServerDenied(t *testing.T) {
	t.Parallel()
	origin := newWebServer(t)
	c := newClient(t, here, clientAddr, startProxy(t, group0, forwarding).addr())
	require.Equal(t, coap.CodeOf(5, 5), c.ask(get(coap.CON, origin.URL+"/")).Code) // FP-7

	port := origin.URL[strings.LastIndexByte(origin.URL, ':')+1:]
	s := settings{client: `forward: ["http://inside.test:*", "http://127.0.3.0/24:*"]`, proxy: "allow_link_local: false",
		names: "inside.test: [127.0.0.1]\nmetadata.test: [169.254.169.254]", top: "http: {redirects: 3}"}
	p := startProxy(t, group0, s)
	c = newClient(t, here, clientAddr, p.addr())
	require.Equal(t, coap.CodeOf(2, 5), c.ask(get(coap.CON, "http://inside.test:"+port+"/")).Code)
	require.Equal(t, coap.CodeOf(4, 1), c.ask(get(coap.CON, "http://metadata.test/")).Code)
	require.Equal(t, coap.CodeOf(4, 1), c.ask(get(coap.CON, "http://inside.test:"+port+"/away")).Code, "redirected to where the client may not go")
}

// What the proxy tells its operator over HTTP is not for its clients, even where they
// may be forwarded to everything (FP-8).
func TestOwnMetrics(t *testing.T) {
	t.Parallel()
	p := startProxy(t, group0, privately(settings{client: `forward: ["http://*:*"]`}))
	c := newClient(t, here, clientAddr, p.addr())
	at := p.entries("metrics")[0].text("uri")
	for _, uri := range []string{at, strings.Replace(at, "127.0.0.1", "localhost", 1), strings.Replace(at, "127.0.0.1", "[::ffff:127.0.0.1]", 1)} {
		r := c.ask(&coap.Message{Type: coap.CON, Code: coap.GET, Options: []coap.Option{coap.Opt(coap.ProxyURI, uri)}})
		require.Equal(t, "4.04", r.Code.String(), "%s: %s", uri, r.Payload)
	}
	status, _ := p.private("/metrics")
	require.Equal(t, 200, status)
}

// The proxy stands in for an HTTP server as it does for CoAP servers: the path and the
// query of the request go behind the path of the route (HC-21, FP-1).
func TestHTTPServerByRoute(t *testing.T) {
	t.Parallel()
	origin := newWebServer(t)
	p := startProxy(t, group0, settings{client: `forward: ["http://127.0.0.0/8:*"]`, top: fmt.Sprintf("routes:\n- {name: web, path: /web, to: %q}", origin.URL+"/api")})
	c := newClient(t, here, clientAddr, p.addr())
	in := c.ask(&coap.Message{Type: coap.CON, Code: coap.GET, Options: []coap.Option{
		coap.Opt(coap.URIPath, "web"), coap.Opt(coap.URIPath, "a/b"), coap.Opt(coap.URIQuery, "q=1&2")}})
	require.Equal(t, coap.CodeOf(2, 5), in.Code, "%s", in.Payload)
	require.Equal(t, `"/api/a%2Fb?q=1%262"`, string(in.Payload))
	in = c.ask(&coap.Message{Type: coap.CON, Code: coap.PUT, Options: []coap.Option{coap.Opt(coap.URIPath, "web"), coap.Opt(coap.ContentFormat, []byte{})}, Payload: []byte("on")})
	require.Equal(t, coap.CodeOf(2, 4), in.Code, "%s", in.Payload)
	require.Equal(t, "PUT /api text/plain; charset=utf-8 on", origin.requests()[1])
}
