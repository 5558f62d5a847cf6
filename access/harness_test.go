package access

import (
	"net/netip"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"coapproxy/exchange"
	"coapproxy/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	allNodes = netip.MustParseAddrPort("224.0.1.187:5683")
	lights   = netip.MustParseAddrPort("[ff05::fd]:5683")
	worker   = netip.MustParseAddrPort("192.0.2.10:40000")
)

// leg is the handler behind a policy: it keeps what reached it.
type leg struct {
	requests []*exchange.Request
	sinks    []exchange.Sink
}

func (l *leg) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	l.requests = append(l.requests, r.Clone())
	l.sinks = append(l.sinks, w)
	return exchange.Ended{}
}

// end ends everything that reached the leg.
func (l *leg) end() {
	for _, w := range l.sinks {
		w.End(nil)
	}
	l.requests, l.sinks = nil, nil
}

// outcome is the sink of a request: how it ended.
type outcome struct {
	responses int
	ends      int
	failure   *exchange.Failure
}

func (o *outcome) Respond(*exchange.Response) exchange.Verdict {
	o.responses++
	return exchange.Continue
}

func (o *outcome) End(err error) {
	o.ends++
	if err != nil {
		o.failure = exchange.AsFailure(err)
	}
}

// config is a policy with two groups and one client that may reach both.
func config(change ...func(*Config)) Config {
	c := Config{
		Clients: []Client{{
			Identity: exchange.Identity{Name: "worker"}, Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")},
			Groups: []string{"nodes", "lights"}, MaxTimeout: time.Hour, MaxExchanges: 2, MaxObservations: 2, FollowUp: true,
		}},
		Groups: []Group{
			{Name: "nodes", Addr: allNodes, Port: 5683, Methods: []codes.Code{codes.GET, wire.FETCH}, MaxTimeout: time.Hour},
			{Name: "lights", Addr: lights, Port: 5683, Methods: []codes.Code{codes.GET, codes.PUT}, MaxTimeout: time.Hour},
		},
		MaxTimeout: 10 * time.Minute, MaxScope: 5,
	}
	for _, f := range change {
		f(&c)
	}
	return c
}

// try sends a request of the client at peer through the policy.
func try(p *Policy, peer netip.AddrPort, r *exchange.Request) *outcome {
	r.Client, r.Peer = p.Identify(peer, nil), peer
	if r.Method == 0 {
		r.Method = codes.GET
	}
	if r.Arrival.IsZero() {
		r.Arrival = time.Now()
	}
	o := &outcome{}
	p.Exchange(r, o)
	return o
}

func toGroup(addr netip.AddrPort, options ...message.Option) *exchange.Request {
	return &exchange.Request{Target: exchange.Target{Scheme: "coap", Addr: addr, Group: true},
		Timeout: exchange.Timeout{Seconds: 60, Present: true}, Options: options}
}

func toServer(addr string) *exchange.Request {
	return &exchange.Request{Target: exchange.Target{Scheme: "coap", Addr: netip.MustParseAddrPort(addr)}}
}

// refused requires that a request ended with the reason, and nothing went on.
func refused(t *testing.T, l *leg, o *outcome, reason exchange.Reason) {
	t.Helper()
	require.Equal(t, 1, o.ends)
	require.NotNil(t, o.failure)
	require.Equal(t, reason.String(), o.failure.Reason.String())
	require.Empty(t, l.requests)
}

// allowed requires that a request was passed on.
func allowed(t *testing.T, l *leg, o *outcome) *exchange.Request {
	t.Helper()
	require.Zero(t, o.ends, "%v", o.failure)
	require.Len(t, l.requests, 1)
	r := l.requests[0]
	l.end()
	return r
}
