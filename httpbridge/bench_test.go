package httpbridge

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message/codes"

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

// What a response of a group costs in a batch of 100.
func BenchmarkBatch(b *testing.B) {
	var members []*exchange.Response
	for i := range 100 {
		members = append(members, member(netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 5683), codes.Content, "sixteen bytes..."))
	}
	f, _ := newFront(b, func(c *Config) {
		c.Identifier = "gw1"
		c.Next = exchange.HandlerFunc(func(_ *exchange.Request, w exchange.Sink) exchange.Canceler {
			for _, p := range members {
				w.Respond(p)
			}
			w.End(nil)
			return exchange.Ended{}
		})
	})
	r := httptest.NewRequest(http.MethodGet, "/", http.NoBody)
	r.RequestURI, r.Host = groupTarget, "localhost:8080"
	r.Header[fieldTimeout] = []string{"2"}
	w := &discard{make(http.Header)}
	b.ReportAllocs()
	for b.Loop() {
		clear(w.header)
		f.ServeHTTP(w, r)
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*len(members)), "ns/response")
}
