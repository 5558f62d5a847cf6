package proxy

import (
	"testing"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// FP-7: a request goes to the leg of its scheme; without one there is 5.05.
// FP-87: a secure target needs a secured client, unless the operator says
// otherwise. All with the server's answer told apart by the leg.
func TestLegs(t *testing.T) {
	asked := make(map[string]int)
	leg := func(name string) exchange.Handler {
		return exchange.HandlerFunc(func(r *exchange.Request, w exchange.Sink) exchange.Canceler {
			asked[name+" "+r.Target.String()]++
			w.Respond(&exchange.Response{Code: codes.Content, Payload: []byte(name)})
			w.End(nil)
			return exchange.Ended{}
		})
	}
	for _, tt := range []struct {
		target    string
		unsecured bool // FP-87 switched off
		want      string
		asked     string
	}{
		{"coap+tcp://192.0.2.11/r", false, "2.05 Content", "tcp coap+tcp://192.0.2.11:5683"},
		{"coaps://192.0.2.11/r", false, "4.01 Unauthorized", ""},
		{"coaps://192.0.2.11/r", true, "2.05 Content", "secure coaps://192.0.2.11:5684"},
		{"coap+ws://192.0.2.11/r", true, "5.05 Proxying Not Supported", ""},
		{"http://192.0.2.11/r", true, "5.05 Proxying Not Supported", ""},
	} {
		clear(asked)
		inGateway(t, func(s *setup) {
			s.tcp, s.secure = leg("tcp"), leg("secure")
			s.access.UnsecuredClients = tt.unsecured
		}, func(g *gateway) {
			c := g.peer(userAddr)
			c.ask(msg(con, codes.GET, "t", uri(tt.target)))
			got := c.take()
			require.Len(t, got, 1)
			require.Equal(t, tt.want, wire.CodeString(got[0].Code), tt.target)
			if tt.asked == "" {
				require.Empty(t, asked)
				return
			}
			require.Equal(t, map[string]int{tt.asked: 1}, asked)
		})
	}
}
