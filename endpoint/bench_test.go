package endpoint_test

import (
	"context"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"coapproxy/endpoint"
	"coapproxy/endpoint/memnet"
	"coapproxy/exchange"
	"coapproxy/wire"
)

// answering is a RequestHandler that answers every request at once.
type answering struct{}

var answer = []byte("21.5 C")

func (answering) HandleRequest(rx *endpoint.Reception, m *wire.Message) {
	var in endpoint.Incoming
	in.Accept(rx, m)
	in.Respond(&wire.Message{Code: codes.Content, Options: m.Options[:0], Payload: answer}, message.NonConfirmable, nil)
}

// window is a Sink that keeps a number of exchanges running.
type window struct{ tokens chan struct{} }

func (w window) Respond(*exchange.Response) exchange.Verdict { return exchange.Continue }
func (w window) End(error)                                   { w.tokens <- struct{}{} }

// One request and its response, through a Client and a server's Endpoint: both
// ends of two legs, without the system calls.
func BenchmarkExchange(b *testing.B) {
	for _, bm := range []struct {
		name        string
		confirmable bool
	}{{"NON", false}, {"CON", true}} {
		b.Run(bm.name, func(b *testing.B) {
			network := memnet.New()
			engine := exchange.NewEngine()
			ctx, cancel := context.WithCancel(b.Context())
			var wg sync.WaitGroup
			defer wg.Wait()
			defer cancel()
			wg.Go(func() { engine.Run(ctx) })

			server := netip.MustParseAddrPort("192.0.2.1:5683")
			conn, err := network.Host(server.Addr()).Listen(server, memnet.Options{})
			require.NoError(b, err)
			s := endpoint.New(endpoint.Config{Conn: conn, Engine: engine, Requests: answering{}, Params: endpoint.DefaultParams(),
				Dedup: endpoint.DefaultDedupLimits(), MaxToken: 8, Stats: &endpoint.Stats{}, Log: zap.NewNop()})
			wg.Go(func() { _ = s.Serve(ctx) })

			const outstanding = 32
			host := network.Host(netip.MustParseAddr("198.51.100.1"))
			c, err := endpoint.NewClient(ctx, endpoint.ClientConfig{Engine: engine, Params: endpoint.DefaultParams(),
				Dedup: endpoint.DefaultDedupLimits(), Stats: &endpoint.Stats{}, Log: zap.NewNop(), KeepType: true,
				Open: func(_ context.Context, wildcard netip.Addr) (endpoint.PacketConn, error) {
					return host.Listen(netip.AddrPortFrom(wildcard, 0), memnet.Options{})
				},
				NStart: func(netip.AddrPort) int { return outstanding }, TimeoutCON: time.Minute, TimeoutNON: time.Minute,
				Ports: 256, Servers: 16})
			require.NoError(b, err)
			defer c.Wait()
			defer cancel()

			w := window{make(chan struct{}, outstanding)}
			for range outstanding {
				w.tokens <- struct{}{}
			}
			r := exchange.Request{Method: codes.GET, Options: message.Options{{ID: message.URIPath, Value: []byte("temperature")}},
				Confirmable: bm.confirmable, Target: exchange.Target{Addr: server}}
			b.ReportAllocs()
			for b.Loop() {
				if len(w.tokens) == 0 {
					engine.Flush()
				}
				<-w.tokens
				r.Arrival = time.Now()
				c.Exchange(&r, w)
			}
			engine.Flush()
			for range outstanding {
				<-w.tokens
			}
		})
	}
}
