package httpbridge

import (
	"crypto/tls"
	"net/http"
	"net/http/httptest"

	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// tlsRequest is a request that came over TLS.
func tlsRequest(f http.Handler, target string, fields ...string) *httptest.ResponseRecorder {
	return tlsDo(f, "GET", target, fields...)
}

// tlsDo is a request that came over TLS.
func tlsDo(f http.Handler, method, target string, fields ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "/", http.NoBody)
	r.RequestURI, r.Host, r.TLS, r.RemoteAddr = target, "localhost", &tls.ConnectionState{}, "198.51.100.1:1"
	for _, field := range fields {
		name, value, _ := strings.Cut(field, ": ")
		r.Header.Add(name, value)
	}
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	return w
}

func TestWhoIsAsking(t *testing.T) { // HC-75
	f, chain := newFront(t, func(c *Config) {
		c.Clients = testAuthentication(t, nil)
		c.Mapping.Forward = true
	})
	w := tlsRequest(f, someTarget)
	require.Equal(t, 401, w.Code)
	require.Equal(t, []string{`Bearer realm="coapproxy"`, `Basic realm="coapproxy", charset="UTF-8"`}, w.Header().Values("Www-Authenticate"))
	require.Equal(t, 401, tlsRequest(f, someTarget, "Authorization: Bearer x").Code)
	require.Equal(t, 401, tlsRequest(f, "/.well-known/core").Code) // HC-101
	w = tlsRequest(f, "coap://192.0.2.7/temp")
	require.Equal(t, 407, w.Code)
	require.Len(t, w.Header().Values("Proxy-Authenticate"), 2)
	require.EqualValues(t, 4, f.Stats.Unauthenticated.Load())
	require.Equal(t, 403, do(f, "GET", someTarget, "", "Authorization: Bearer s3cr3t").Code, "without TLS") // HC-100
	require.Zero(t, chain.count())

	require.Equal(t, 200, tlsRequest(f, someTarget, "Authorization: Bearer s3cr3t").Code)
	require.Equal(t, "dashboard", chain.last().Client.Name)
	require.Equal(t, 200, tlsRequest(f, "coap://192.0.2.7/temp", "Proxy-Authorization: Bearer s3cr3t").Code)
	require.Equal(t, 407, tlsRequest(f, "coap://192.0.2.7/temp", "Authorization: Bearer s3cr3t").Code)

	f, _ = newFront(t, func(c *Config) { c.Clients = &Authentication{} })
	require.Equal(t, 403, tlsRequest(f, someTarget).Code, "nothing to ask for")
}

func TestCORS(t *testing.T) { // HC-90
	const origin = "https://dashboard.example"
	f, chain := newFront(t, func(c *Config) { c.Origins = Origins{Allow: []string{origin}, Credentials: true} })
	w := do(f, "OPTIONS", groupTarget, "", "Origin: "+origin, "Access-Control-Request-Method: GET", "Access-Control-Request-Headers: multicast-timeout")
	require.Equal(t, 204, w.Code)
	require.Equal(t, origin, w.Header().Get("Access-Control-Allow-Origin"))
	require.Equal(t, "true", w.Header().Get("Access-Control-Allow-Credentials"))
	require.Equal(t, "GET, HEAD, POST, PUT, PATCH, DELETE", w.Header().Get("Access-Control-Allow-Methods"))
	for _, field := range []string{"Content-Type", "Accept", "If-Match", "If-None-Match", "Multicast-Timeout", "Group-ETag", "Prefer"} {
		require.Contains(t, w.Header().Get("Access-Control-Allow-Headers"), field)
	}
	w = do(f, "GET", someTarget, "", "Origin: "+origin)
	require.Equal(t, origin, w.Header().Get("Access-Control-Allow-Origin"))
	require.Contains(t, w.Header().Values("Vary"), "Origin") // HC-58
	require.Contains(t, w.Header().Values("Vary"), "Accept") // HC-58
	for _, field := range []string{"ETag", "Location", "Multicast-Timeout", "Reply-From", "Group-ETag", "Retry-After"} {
		require.Contains(t, w.Header().Get("Access-Control-Expose-Headers"), field)
	}
	require.Equal(t, 200, do(f, "PUT", someTarget, "x", "Origin: "+origin, "Sec-Fetch-Site: cross-site").Code)
	count := chain.count()
	w = do(f, "GET", "/nothing", "", "Origin: "+origin)
	require.Equal(t, origin, w.Header().Get("Access-Control-Allow-Origin"), "errors can be read, too")

	w = do(f, "OPTIONS", groupTarget, "", "Origin: https://evil.example", "Access-Control-Request-Method: GET")
	require.Equal(t, 501, w.Code)
	require.Empty(t, w.Header().Get("Access-Control-Allow-Origin"))
	w = do(f, "GET", someTarget, "", "Origin: https://evil.example")
	require.Empty(t, w.Header().Get("Access-Control-Allow-Origin"))
	require.Equal(t, count+1, chain.count())

	f, _ = newFront(t, nil)                                                                    // off by default
	require.Equal(t, []string{"Accept"}, do(f, "GET", someTarget, "").Header().Values("Vary")) // HC-58
	require.Equal(t, 501, do(f, "OPTIONS", groupTarget, "", "Origin: "+origin, "Access-Control-Request-Method: GET").Code)
	f, _ = newFront(t, func(c *Config) { c.Origins = Origins{Allow: []string{"*"}} })
	require.Equal(t, "*", do(f, "GET", someTarget, "", "Origin: "+origin).Header().Get("Access-Control-Allow-Origin"))
	for _, bad := range []Origins{{Allow: []string{"*"}, Credentials: true}, {Allow: []string{"dashboard.example"}}, {Allow: []string{"https://x/"}}} {
		_, err := NewFront(Config{Origins: bad})
		require.Error(t, err)
	}
}

func TestCrossSite(t *testing.T) { // HC-91
	for _, x := range []struct {
		name, method string
		fields       []string
		status       int
	}{
		{"curl", "POST", nil, 200},
		{"own page", "POST", []string{"Origin: http://localhost:8080", "Sec-Fetch-Site: same-origin"}, 200},
		{"own page, older browser", "POST", []string{"Origin: http://localhost:8080"}, 200},
		{"address bar", "DELETE", []string{"Sec-Fetch-Site: none"}, 200},
		{"form of a foreign page", "POST", []string{"Origin: https://evil.example", "Sec-Fetch-Site: cross-site"}, 403},
		{"older browser", "POST", []string{"Origin: https://evil.example"}, 403},
		{"sandboxed page", "POST", []string{"Origin: null"}, 403},
		{"neighbour", "PUT", []string{"Sec-Fetch-Site: same-site"}, 403},
		{"reading", "GET", []string{"Origin: https://evil.example", "Sec-Fetch-Site: cross-site"}, 200},
		{"name of a stranger", "GET", []string{"Host: evil.example:8080"}, 421},
		{"address", "GET", []string{"Host: 127.0.0.1:8080"}, 200},
		{"IPv6 address", "GET", []string{"Host: [::1]:8080"}, 200},
		{"IPv6 address without port", "GET", []string{"Host: [::1]"}, 200},
		{"name in the configuration", "GET", []string{"Host: GW.example"}, 200},
	} {
		t.Run(x.name, func(t *testing.T) {
			f, chain := newFront(t, func(c *Config) { c.Origins.Hosts = []string{"gw.example"} })
			w := do(f, x.method, someTarget, "", x.fields...)
			require.Equal(t, x.status, w.Code, w.Body)
			require.Equal(t, x.status == 200, chain.count() == 1)
		})
	}
	f, _ := newFront(t, func(c *Config) { c.Clients = provenClients{} })
	require.Equal(t, 200, do(f, "POST", someTarget, "", "Origin: https://evil.example", "Authorization: Bearer x").Code)
	require.Equal(t, 403, do(f, "POST", someTarget, "", "Origin: https://evil.example", "Authorization: Basic x").Code)
	require.Equal(t, 200, do(f, "GET", someTarget, "", "Host: other.example").Code)
}

func TestCore(t *testing.T) { // HC-14
	f, _ := newFront(t, nil)
	for query, found := range map[string]bool{"": true, "?rt=core.hc": true, "?rt=core.*": true, "?href=/hc/": true, "?rt=other": false, "?foo": false} {
		w := do(f, "GET", "/.well-known/core"+query, "")
		require.Equal(t, 200, w.Code)
		require.Equal(t, "application/link-format", w.Header().Get("Content-Type"))
		want := ""
		if found {
			want = `</hc/>;rt="core.hc"`
		}
		require.Equal(t, want, w.Body.String(), query)
		require.Equal(t, want, w.Header().Get("Link"))
	}
	require.Equal(t, 405, do(f, "PUT", "/.well-known/core", "x").Code)
	require.Empty(t, do(f, "HEAD", "/.well-known/core", "").Body.String())
	f, _ = newFront(t, func(c *Config) { c.Mapping.Templates = []string{"?uri={+tu}"} })
	require.Equal(t, `</hc/>;rt="core.hc";hct="?uri={+tu}"`, do(f, "GET", "/.well-known/core", "").Body.String())
	require.Equal(t, `</hc/>;rt="core.hc";hct="?uri={+tu}";anchor="https://gw.example"`, f.CoreLink("https://gw.example"))
}

// A Front that takes the place of another one has its own rules; what is under
// way counts for both.
func TestSuccessor(t *testing.T) {
	f, chain := newFront(t, func(c *Config) { c.Limits.Exchanges = 1 })
	exchanges := chain.keepsRunning()
	done := make(chan *httptest.ResponseRecorder, 1)
	go func() { done <- do(f, "GET", someTarget, "") }()
	running := <-exchanges

	c := f.Config
	c.Mapping.Prefix = "/coap/"
	next, err := f.Successor(c)
	require.NoError(t, err)
	require.Equal(t, 404, do(next, "GET", someTarget, "").Code)
	require.Equal(t, 503, do(next, "GET", "/coap/coap://192.0.2.7/temp", "").Code, "the one before still counts")
	running.end(nil)
	require.Equal(t, 504, (<-done).Code)
	require.Zero(t, next.Drain(t.Context()))
	require.Equal(t, 503, do(f, "GET", someTarget, "").Code)

	c.Mapping.Prefix = "no"
	_, err = f.Successor(c)
	require.Error(t, err)
}
