package httpbridge

import (
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// fakeChain is a handler whose behaviour a test writes down.
type fakeChain struct {
	t  testing.TB
	mu sync.Mutex
	// requests are copies of what came.
	requests []*exchange.Request
	canceled int
	// serve begins an exchange; the canceler of a running one counts.
	serve func(r *exchange.Request, w exchange.Sink) exchange.Canceler
}

func (c *fakeChain) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	c.mu.Lock()
	c.requests = append(c.requests, r.Clone())
	c.mu.Unlock()
	return c.serve(r, w)
}

func (c *fakeChain) last() *exchange.Request {
	c.mu.Lock()
	defer c.mu.Unlock()
	require.NotEmpty(c.t, c.requests, "nothing was forwarded")
	return c.requests[len(c.requests)-1]
}

func (c *fakeChain) count() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.requests)
}

// answers ends every exchange with these responses.
func answers(responses ...*exchange.Response) func(*exchange.Request, exchange.Sink) exchange.Canceler {
	return func(_ *exchange.Request, w exchange.Sink) exchange.Canceler {
		for _, p := range responses {
			if w.Respond(p) == exchange.Stop {
				break
			}
		}
		w.End(nil)
		return exchange.Ended{}
	}
}

// fails ends every exchange with an error.
func fails(err error) func(*exchange.Request, exchange.Sink) exchange.Canceler {
	return func(_ *exchange.Request, w exchange.Sink) exchange.Canceler { return exchange.Fail(w, err) }
}

// running is an exchange that goes on until it is canceled or ended.
type running struct {
	chain *fakeChain
	sink  exchange.Sink
	once  sync.Once
	done  chan struct{}
}

func (r *running) Cancel() {
	r.once.Do(func() {
		r.chain.mu.Lock()
		r.chain.canceled++
		r.chain.mu.Unlock()
		r.sink.End(exchange.ErrCanceled)
		close(r.done)
	})
}

func (r *running) end(err error) {
	r.once.Do(func() { r.sink.End(err); close(r.done) })
}

// keepsRunning hands every exchange to the test.
func (c *fakeChain) keepsRunning() <-chan *running {
	ch := make(chan *running, 16)
	c.serve = func(_ *exchange.Request, w exchange.Sink) exchange.Canceler {
		r := &running{chain: c, sink: w, done: make(chan struct{})}
		ch <- r
		return r
	}
	return ch
}

var (
	serverA = netip.MustParseAddrPort("192.0.2.7:5683")
	serverB = netip.MustParseAddrPort("[2001:db8::1]:61616")
	serverC = netip.MustParseAddrPort("192.0.2.8:5683")
)

func option(id message.OptionID, value string) message.Option {
	return message.Option{ID: id, Value: []byte(value)}
}

// content is a 2.05 of a single server.
func content(payload string, options ...message.Option) *exchange.Response {
	return &exchange.Response{Code: codes.Content, Options: options, Payload: []byte(payload), From: serverA}
}

// member is a response of a group's member.
func member(from netip.AddrPort, code codes.Code, payload string, options ...message.Option) *exchange.Response {
	return &exchange.Response{Code: code, Options: options, Payload: []byte(payload), From: from, GroupPort: 5683}
}

var knownClient = &exchange.Identity{Name: "test"}

// networkClients knows everybody by the network.
type networkClients struct{}

func (networkClients) Authenticate(Proof) (Who, error) {
	return Who{Client: knownClient, By: ByNetwork}, nil
}

func (networkClients) Begin(string) (string, time.Duration, bool) { return "", 0, false }

func (networkClients) End(string) {}

func (networkClients) Challenges() []string { return nil }

// newFront returns a Front over a fake chain; change may adjust its Config.
func newFront(t testing.TB, change func(*Config)) (*Front, *fakeChain) {
	chain := &fakeChain{t: t, serve: answers(content("21.5"))}
	numbers := wire.DefaultNumbers()
	c := Config{Next: chain, Clients: networkClients{}, Numbers: &numbers, Engine: exchange.NewEngine(),
		Stats: &Stats{}, Log: zaptest.NewLogger(t, zaptest.Level(zap.ErrorLevel))}
	if change != nil {
		change(&c)
	}
	f, err := NewFront(c)
	require.NoError(t, err)
	return f, chain
}

// do sends a request without a socket. Fields are "Name: value".
func do(f http.Handler, method, target, body string, fields ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, "/", strings.NewReader(body))
	if body == "" {
		r.Body, r.ContentLength = http.NoBody, 0
	}
	r.RequestURI, r.Host = target, "localhost:8080"
	for _, field := range fields {
		name, value, _ := strings.Cut(field, ": ")
		if name == "Host" {
			r.Host = value
			continue
		}
		r.Header.Add(strings.TrimSuffix(name, ":"), value)
	}
	w := httptest.NewRecorder()
	func() {
		defer func() {
			if p := recover(); p != nil {
				if err, ok := p.(error); !ok || !errors.Is(err, http.ErrAbortHandler) {
					panic(p)
				}
			}
		}()
		f.ServeHTTP(w, r)
	}()
	return w
}

// proxyURI is the Proxy-Uri of a request.
func proxyURI(r *exchange.Request) string {
	value, _ := wire.First(r.Options, wire.ProxyURI)
	return string(value)
}

// value is an option's value, "-" if there is none.
func value(r *exchange.Request, id message.OptionID) string {
	v, ok := wire.First(r.Options, id)
	if !ok {
		return "-"
	}
	return string(v)
}
