package endpoint_test

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap/zaptest"

	"coapproxy/endpoint"
	"coapproxy/endpoint/memnet"
	"coapproxy/exchange"
	"coapproxy/wire"
)

// client makes a Client on a host of its own, with NSTART 1 and a short queue.
// When the test is over nothing may be left of its exchanges.
func (b *bed) client(change ...func(*endpoint.ClientConfig)) *endpoint.Client {
	b.t.Helper()
	host := b.network.Host(clientAddr.Addr(), netip.MustParseAddr("2001:db8::c"))
	config := endpoint.ClientConfig{Engine: b.engine, Params: endpoint.DefaultParams(), Dedup: endpoint.DefaultDedupLimits(),
		Stats: b.stats, Log: zaptest.NewLogger(b.t), KeepType: true,
		Open: func(_ context.Context, wildcard netip.Addr) (endpoint.PacketConn, error) {
			return host.Listen(netip.AddrPortFrom(wildcard, 0), memnet.Options{Errors: true})
		},
		NStart: func(netip.AddrPort) int { return 1 }, Queue: 3, TimeoutCON: 93 * time.Second, TimeoutNON: 30 * time.Second,
		Ports: 4, Servers: 16, Observations: 8}
	for _, f := range change {
		f(&config)
	}
	c, err := endpoint.NewClient(b.ctx, config)
	require.NoError(b.t, err)
	b.t.Cleanup(c.Wait)
	return c
}

// requireIdle requires that nothing is left of any exchange of c.
func (b *bed) requireIdle(c *endpoint.Client) {
	b.t.Helper()
	synctest.Wait()
	calls, outstanding, waiting, busy, pending := c.Load()
	require.Zero(b.t, calls, "calls")
	require.Zero(b.t, outstanding, "outstanding")
	require.Zero(b.t, waiting, "waiting")
	require.Zero(b.t, busy, "busy")
	require.Zero(b.t, pending, "pending")
	require.Zero(b.t, b.engine.Scheduled(), "deadlines")
}

// to is a request to a server.
func to(server netip.AddrPort, confirmable bool) *exchange.Request {
	return &exchange.Request{Method: codes.GET, Options: message.Options{{ID: message.URIPath, Value: []byte("r")}},
		Confirmable: confirmable, Target: exchange.Target{Scheme: "coap", Addr: server}, Arrival: time.Now()}
}

// ask starts a request and flushes.
func (b *bed) ask(c *endpoint.Client, r *exchange.Request) (*sink, exchange.Canceler) {
	s := &sink{t: b.t}
	cancel := c.Exchange(r, s)
	b.engine.Flush()
	synctest.Wait()
	return s, cancel
}

// sink is a Sink that keeps what it gets and watches over the contract: calls
// are serialised, End comes exactly once and last.
type sink struct {
	t       *testing.T
	respond func() // called inside Respond
	keeps   bool   // wants more than one response

	mu        sync.Mutex
	inside    bool
	responses []*exchange.Response
	ends      []error
}

func (s *sink) enter(what string) (leave func()) {
	s.mu.Lock()
	if s.inside {
		s.t.Error(what + " beside another call")
	}
	if len(s.ends) > 0 {
		s.t.Error(what + " after End")
	}
	s.inside = true
	s.mu.Unlock()
	return func() {
		s.mu.Lock()
		s.inside = false
		s.mu.Unlock()
	}
}

func (s *sink) Respond(p *exchange.Response) exchange.Verdict {
	defer s.enter("Respond")()
	s.mu.Lock()
	s.responses = append(s.responses, p.Clone())
	s.mu.Unlock()
	if s.respond != nil {
		s.respond()
	}
	if s.keeps {
		return exchange.Continue
	}
	return exchange.Stop
}

func (s *sink) End(err error) {
	defer s.enter("End")()
	s.mu.Lock()
	s.ends = append(s.ends, err)
	s.mu.Unlock()
}

// over reports whether the exchange has ended.
func (s *sink) over() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.ends) > 0
}

// running requires that the exchange has not ended and has had no response.
func (s *sink) running() {
	s.t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	require.Empty(s.t, s.responses)
	require.Empty(s.t, s.ends)
}

// answered requires the regular end and returns the response.
func (s *sink) answered() *exchange.Response {
	s.t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	require.Equal(s.t, []error{nil}, s.ends)
	require.Len(s.t, s.responses, 1)
	return s.responses[0]
}

// ended requires an end without a response and returns its error.
func (s *sink) ended() error {
	s.t.Helper()
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	require.Empty(s.t, s.responses)
	require.Len(s.t, s.ends, 1)
	return s.ends[0]
}

// failed requires an end for the reason.
func (s *sink) failed(reason exchange.Reason) *exchange.Failure {
	s.t.Helper()
	err := s.ended()
	var f *exchange.Failure
	require.ErrorAs(s.t, err, &f)
	require.Equal(s.t, reason.String(), f.Reason.String())
	require.NotEmpty(s.t, f.Detail)
	if reason == exchange.Overloaded && f.Detail != "shutting down" {
		require.Positive(s.t, f.RetryAfter)
	}
	return f
}

// answerTo is a response to a request, in a message of the given type.
func answerTo(request wire.Message, typ message.Type, id uint16) wire.Message {
	return wire.Message{Type: typ, Code: codes.Content, ID: id, Token: request.Token, Payload: []byte("21.5 C")}
}

// server is a raw peer at serverAddr that answers whom it heard last.
func (b *bed) rawServer() *raw {
	b.t.Helper()
	return b.raw(serverAddr, netip.AddrPort{})
}
