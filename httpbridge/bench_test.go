package httpbridge

import (
	"net/http"
	"net/http/httptest"
	"testing"

	"coapproxy/exchange"
)

// discard is a ResponseWriter that keeps nothing.
type discard struct{ header http.Header }

func (d *discard) Header() http.Header { return d.header }

func (d *discard) Write(b []byte) (int, error) { return len(b), nil }

func (d *discard) WriteHeader(int) {}

// What a GET costs between net/http and the layers behind the front.
func BenchmarkGet(b *testing.B) {
	f, _ := newFront(b, func(c *Config) {
		c.Identifier = "gw1"
		p := content("sixteen bytes...")
		c.Next = exchange.HandlerFunc(func(_ *exchange.Request, w exchange.Sink) exchange.Canceler {
			w.Respond(p)
			w.End(nil)
			return exchange.Ended{}
		})
	})
	r := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
	r.RequestURI, r.Host = someTarget, "localhost:8080"
	w := &discard{make(http.Header)}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.header)
		f.ServeHTTP(w, r)
	}
}
