package proxy

import (
	"strings"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
	"go.uber.org/zap/zaptest/observer"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// FP-52, FP-53: a request without Hop-Limit gets one, any other one less; where
// nothing would be left it goes nowhere, and the log tells. GC-75: towards a
// group as well.
func TestHopLimit(t *testing.T) {
	for _, request := range []func(options ...message.Option) *exchange.Request{toServer, toGroup} {
		r := func(hops ...string) *exchange.Request {
			if len(hops) == 0 {
				return request()
			}
			return request(opt(wire.HopLimit, hops[0]))
		}
		require.Equal(t, " 16=10", optionsOf(throughRoute(t, r()).request.Options))
		require.Equal(t, " 16=fe", optionsOf(throughRoute(t, r("\xff")).request.Options))
		require.Equal(t, " 16=01", optionsOf(throughRoute(t, r("\x02")).request.Options))
		e := throughRoute(t, r("\x01"))
		require.Nil(t, e.request)
		require.Equal(t, exchange.HopLimitReached, e.failure.Reason)
		require.Equal(t, "gw", e.failure.Detail, "the payload of a 5.08 begins with the proxy's own name") // FP-54
	}
}

// FP-54: the proxy's own name goes in front of the list in a 5.08; a 5.08 that
// has been here is not passed on.
func TestHopLimitReached(t *testing.T) {
	from := addrPort("192.0.2.1:5683")
	long := strings.Repeat("x", maxHopPath-2)
	for name, tt := range map[string]struct {
		payload, want string
		loop          bool
	}{
		"one":           {"other", "gw other", false},
		"several":       {"a b", "gw a b", false},
		"empty":         {"", "gw", false},
		"similar":       {"gw2 agw", "gw gw2 agw", false},
		"loop":          {"gw", "", true},
		"loop, further": {"a gw b", "", true},
		"no room":       {long, long, false},
		"just room":     {long[1:], "gw " + long[1:], false},
	} {
		t.Run(name, func(t *testing.T) {
			p := &exchange.Response{Code: wire.HopLimitReached, Payload: []byte(tt.payload), From: from}
			e := throughRoute(t, toServer(), p)
			if tt.loop {
				require.Empty(t, e.responses)
				require.Equal(t, exchange.HopLimitReached, e.failure.Reason)
			} else {
				require.Equal(t, tt.want, string(e.responses[0].Payload))
				require.Equal(t, tt.payload, string(p.Payload), "responses are borrowed")
			}

			p.GroupPort = 5683
			e = throughRoute(t, toGroup(), p, &exchange.Response{Code: codes.Content, From: from, GroupPort: 5683})
			require.Nil(t, e.failure)
			if tt.loop {
				require.Len(t, e.responses, 1)
			} else {
				require.Equal(t, tt.want, string(e.responses[0].Payload))
				require.Len(t, e.responses, 2)
			}
		})
	}
}

// Both are logged (FP-52, FP-54).
func TestHopLimitLog(t *testing.T) {
	core, logs := observer.New(zapcore.WarnLevel)
	route := &Route{Log: zap.New(core), Identifier: "gw"}
	c := &checked{sink: &end{}, route: route}
	c.hopLimitReached(&exchange.Response{Payload: []byte("gw")})
	require.Equal(t, 1, logs.FilterMessage("forwarding loop").Len())
	r := toServer(opt(wire.HopLimit, "\x01"))
	numbers := wire.DefaultNumbers()
	route.Numbers = &numbers
	_, f := route.onward(r, nil)
	require.NotNil(t, f)
	require.Equal(t, 1, logs.FilterMessage("hop limit reached").Len())
}
