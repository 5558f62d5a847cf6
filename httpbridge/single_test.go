package httpbridge

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// What is lent to a request from a pool is not given to the next one while anybody
// still has it: responses come late, and clients leave before they do.
func TestSinglesAreNotShared(t *testing.T) {
	var late sync.WaitGroup
	f, _ := newFront(t, func(c *Config) {
		c.Limits.ClientExchanges = 1 << 20
		c.Next = exchange.HandlerFunc(func(r *exchange.Request, w exchange.Sink) exchange.Canceler {
			uri, _ := wire.First(r.Options, wire.ProxyURI)
			p := content("answer to "+string(uri), option(wire.ETag, string(uri[len(uri)-4:])))
			delay := time.Duration(r.ID%3) * time.Millisecond
			late.Go(func() {
				time.Sleep(delay)
				w.Respond(p)
				w.Respond(content("one too many"))
				w.End(nil)
				p.Payload[0], p.Options[0].Value[0] = 'X', 'X' // it was borrowed
			})
			return exchange.Ended{}
		})
	})
	var clients sync.WaitGroup
	for i := range 8 {
		clients.Go(func() {
			for j := range 100 {
				uri := fmt.Sprintf("coap://192.0.2.7/%d/%04d", i, j)
				ctx, cancel := context.WithCancel(t.Context())
				r := httptest.NewRequestWithContext(ctx, http.MethodGet, "/", http.NoBody)
				r.RequestURI, r.Host = "/hc/"+uri, "localhost"
				if j%2 == 1 {
					time.AfterFunc(time.Duration(j%4)*500*time.Microsecond, cancel)
				}
				w := httptest.NewRecorder()
				f.ServeHTTP(w, r)
				if body := w.Body.String(); j%2 == 0 || body != "" {
					if body != "answer to "+uri || !strings.Contains(w.Header().Get("Etag"), fmt.Sprintf("%x", uri[len(uri)-4:])) {
						t.Errorf("%s: %q, %v", uri, body, w.Header())
					}
				}
				cancel()
			}
		})
	}
	clients.Wait()
	late.Wait()
	require.Zero(t, f.Drain(t.Context()))
	require.EqualValues(t, f.Limits.TotalBytes, f.budget.left.Load())
}

func TestPlacesAreRemembered(t *testing.T) {
	m, err := newMapping(Mapping{Routes: []Route{{Path: []string{"lamp"}, Target: "coap://192.0.2.1/l"}}})
	require.NoError(t, err)
	targets := []string{"/hc/coap://192.0.2.7/a", "/hc/coap://192.0.2.7/b", "/lamp/x?y", "/.well-known/core?rt=x"}
	for range 3 {
		for _, target := range targets {
			p, refusal := m.find(target, addressed{host: "h"})
			require.Nil(t, refusal)
			want, _ := m.resolve(target, addressed{host: "h"})
			require.Equal(t, want, *p)
		}
	}
	_, refusal := m.find("/nothing", addressed{host: "h"})
	require.NotNil(t, refusal)
	_, refusal = m.find("/nothing", addressed{host: "h"})
	require.NotNil(t, refusal, "what is refused is not remembered")

	m, err = newMapping(Mapping{Routes: []Route{{Host: "a.example", Path: nil, Target: "coap://192.0.2.1"}, {Host: "b.example", Path: nil, Target: "coap://192.0.2.2"}}})
	require.NoError(t, err)
	for range 3 {
		a, _ := m.find("/x", addressed{host: "a.example"})
		b, _ := m.find("/x", addressed{host: "b.example:8080"})
		require.Equal(t, "coap://192.0.2.1/x", string(a.text))
		require.Equal(t, "coap://192.0.2.2/x", string(b.text))
	}
}
