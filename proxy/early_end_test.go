package proxy_test

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/proxy"
	"coapproxy/wire"
)

type anyone struct{}

func (anyone) Identify(netip.AddrPort, *exchange.Security) *exchange.Identity {
	return &exchange.Identity{Name: "anyone", Delivery: exchange.Delivery{Type: exchange.Confirmable, Outstanding: 2, Queue: 100}}
}

// A handler that has all responses at once, a cache, ends the exchange long
// before T': what waits for its turn is delivered all the same (GP-33), unless
// the client stops it (GP-41).
func TestDeliveryOutlivesAnEarlyEnd(t *testing.T) {
	const responses = 20
	for name, stop := range map[string]bool{"delivered": false, "stopped": true} {
		t.Run(name, func(t *testing.T) {
			next := exchange.HandlerFunc(func(_ *exchange.Request, w exchange.Sink) exchange.Canceler {
				for i := range responses {
					w.Respond(&exchange.Response{Code: codes.Content, Payload: []byte{byte(i)},
						From: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(i)}), 5683), GroupPort: 5683})
				}
				w.End(nil)
				return exchange.Ended{}
			})
			client := dialFront(t, next, nil)
			send := func(m *wire.Message) {
				data, err := m.Append(nil)
				require.NoError(t, err)
				_, err = client.Write(data)
				require.NoError(t, err)
			}
			send(&wire.Message{Type: message.NonConfirmable, Code: codes.GET, ID: 1, Token: []byte("t"), Options: message.Options{
				{ID: wire.MulticastTimeout, Value: []byte{60}}, {ID: wire.ProxyURI, Value: []byte("coap://224.0.1.187/x")}}})
			got := 0
			buffer := make([]byte, 1500)
			for got < responses {
				require.NoError(t, client.SetReadDeadline(time.Now().Add(5*time.Second)))
				n, err := client.Read(buffer)
				require.NoError(t, err)
				var m wire.Message
				require.NoError(t, m.Decode(buffer[:n]))
				if m.Code != codes.Content {
					continue
				}
				got++
				if stop && got == 2 {
					send(&wire.Message{Type: message.NonConfirmable, Code: codes.GET, ID: 2, Token: []byte("t"), Options: message.Options{{ID: wire.MulticastTimeout}}})
					send(&wire.Message{Type: message.Acknowledgement, ID: m.ID})
					require.NoError(t, client.SetReadDeadline(time.Now().Add(300*time.Millisecond)))
					_, err = client.Read(buffer)
					require.Error(t, err, "response after the Early Stop")
					return
				}
				if !stop {
					send(&wire.Message{Type: message.Acknowledgement, ID: m.ID})
				}
			}
			require.Equal(t, responses, got)
		})
	}
}

type canceler func()

func (c canceler) Cancel() { c() }

// What was on its way through the layers when the client stopped does not go out any
// more, nor does the reason why they end (GP-41).
func TestNothingAfterAnEarlyStop(t *testing.T) {
	for name, end := range map[string]error{"canceled": exchange.ErrCanceled, "failed": exchange.Failf(exchange.NoAnswer, "too late")} {
		t.Run(name, func(t *testing.T) {
			begun, ended := make(chan struct{}), make(chan struct{})
			next := exchange.HandlerFunc(func(_ *exchange.Request, w exchange.Sink) exchange.Canceler {
				close(begun)
				return canceler(func() {
					for _, port := range []uint16{5683, 0} { // a server's, and one of a proxy behind
						w.Respond(&exchange.Response{Code: codes.Content, From: netip.MustParseAddrPort("192.0.2.1:5683"), GroupPort: port})
					}
					w.End(end)
					close(ended)
				})
			})
			client := dialFront(t, next, nil)
			for id, m := range []*wire.Message{
				{Options: message.Options{{ID: wire.MulticastTimeout, Value: []byte{60}}, {ID: wire.ProxyURI, Value: []byte("coap://224.0.1.187/x")}}},
				{Options: message.Options{{ID: wire.MulticastTimeout}}},
			} {
				m.Type, m.Code, m.ID, m.Token = message.NonConfirmable, codes.GET, uint16(id), []byte("t")
				data, err := m.Append(nil)
				require.NoError(t, err)
				_, err = client.Write(data)
				require.NoError(t, err)
				<-begun
			}
			<-ended
			require.NoError(t, client.SetReadDeadline(time.Now().Add(100*time.Millisecond)))
			_, err := client.Read(make([]byte, 1500))
			require.Error(t, err, "a response after the Early Stop")
		})
	}
}

// GP-94: how far away the previous hop is goes with a group request, for those who
// tell a next proxy how long it has.
func TestGroupRequestKnowsItsPreviousHop(t *testing.T) {
	asked := make(chan time.Duration, 1)
	next := exchange.HandlerFunc(func(r *exchange.Request, w exchange.Sink) exchange.Canceler {
		asked <- r.PreviousHop
		w.End(nil)
		return exchange.Ended{}
	})
	roundTrips, err := endpoint.NewRoundTrips(4)
	require.NoError(t, err)
	roundTrips.Measure(true)
	client := dialFront(t, next, roundTrips)
	peer := client.LocalAddr().(*net.UDPAddr).AddrPort()
	roundTrips.Note(peer, 700*time.Millisecond)
	require.NotZero(t, roundTrips.Of(peer))
	m := wire.Message{Type: message.NonConfirmable, Code: codes.GET, ID: 1, Token: []byte("t"), Options: message.Options{
		{ID: wire.MulticastTimeout, Value: []byte{60}}, {ID: wire.ProxyURI, Value: []byte("coap://224.0.1.187/x")}}}
	data, err := m.Append(nil)
	require.NoError(t, err)
	_, err = client.Write(data)
	require.NoError(t, err)
	select {
	case got := <-asked:
		require.Equal(t, roundTrips.Of(peer), got)
	case <-time.After(20 * time.Second):
		t.Fatal("no request has come")
	}
}

// dialFront returns a client of a front over UDP whose requests next carries out.
func dialFront(t *testing.T, next exchange.Handler, roundTrips *endpoint.RoundTrips) *net.UDPConn {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	t.Cleanup(func() {
		cancel()
		wg.Wait()
	})
	engine, numbers := exchange.NewEngine(), wire.DefaultNumbers()
	wg.Go(func() { engine.Run(ctx) })
	front := proxy.NewFront(proxy.FrontConfig{Next: next, Clients: anyone{}, Numbers: &numbers, Engine: engine, MaxExchanges: 10, MaxEnded: 10,
		Stats: &proxy.Stats{}, Log: zap.NewNop()})
	conn, err := endpoint.ListenUDP(ctx, netip.MustParseAddrPort("127.0.0.1:0"), endpoint.UDPOptions{})
	require.NoError(t, err)
	e := endpoint.New(endpoint.Config{Conn: conn, Engine: engine, Requests: front, Params: endpoint.DefaultParams(), RoundTrips: roundTrips,
		Dedup: endpoint.DefaultDedupLimits(), MaxToken: 8, Stats: &endpoint.Stats{}, Log: zap.NewNop()})
	wg.Go(func() { _ = e.Serve(ctx) })
	client, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(conn.LocalAddr()))
	require.NoError(t, err)
	t.Cleanup(func() { _ = client.Close() })
	return client
}
