package endpoint_test

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
	"go.uber.org/zap/zaptest"

	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/wire"
)

// outcome is a Sink that hands on how an exchange went.
type outcome struct {
	from  netip.AddrPort
	ended chan error
}

func (o *outcome) Respond(p *exchange.Response) exchange.Verdict {
	o.from = p.From
	return exchange.Stop
}

func (o *outcome) End(err error) { o.ended <- err }

// Both roles over real sockets: the wildcard listener answers from the address
// that was asked, or else the client would not take the response, and a port
// that nobody listens on is noticed at once (FP-34).
func TestOverUDP(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	engine := exchange.NewEngine()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { engine.Run(ctx) })
	var stats endpoint.Stats
	c, err := endpoint.NewClient(ctx, endpoint.ClientConfig{Engine: engine, Params: endpoint.DefaultParams(), Dedup: endpoint.DefaultDedupLimits(),
		Stats: &stats, Log: zaptest.NewLogger(t), KeepType: true, NStart: func(netip.AddrPort) int { return 1 }, Queue: 10,
		TimeoutCON: time.Minute, TimeoutNON: time.Minute, Ports: 2, Servers: 10,
		Open: func(ctx context.Context, wildcard netip.Addr) (endpoint.PacketConn, error) {
			return endpoint.ListenUDP(ctx, netip.AddrPortFrom(wildcard, 0), endpoint.UDPOptions{Errors: true})
		}})
	require.NoError(t, err)
	defer c.Wait()
	defer cancel()

	asked := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2")}
	if pc, err := net.ListenPacket("udp6", "[::1]:0"); err != nil {
		t.Logf("no IPv6 loopback here, IPv4 only: %v", err)
	} else {
		require.NoError(t, pc.Close())
		asked = append(asked, netip.IPv6Loopback())
	}
	ask := func(to netip.AddrPort, confirmable bool) (netip.AddrPort, error) {
		o := &outcome{ended: make(chan error, 1)}
		c.Exchange(&exchange.Request{Method: codes.GET, Confirmable: confirmable, Target: exchange.Target{Addr: to}, Arrival: time.Now()}, o)
		engine.Flush()
		err := <-o.ended
		return o.from, err
	}
	for _, local := range asked {
		wildcard := netip.IPv4Unspecified()
		if local.Is6() {
			wildcard = netip.IPv6Unspecified()
		}
		conn, err := endpoint.ListenUDP(ctx, netip.AddrPortFrom(wildcard, 0), endpoint.UDPOptions{PacketInfo: true})
		require.NoError(t, err)
		e := endpoint.New(endpoint.Config{Conn: conn, Engine: engine, Params: endpoint.DefaultParams(), Dedup: endpoint.DefaultDedupLimits(),
			MaxToken: 8, Stats: &stats, Log: zaptest.NewLogger(t),
			Requests: handlerFunc(func(rx *endpoint.Reception, m *wire.Message) {
				if rx.Path.Local != local {
					t.Errorf("asked %v, not %v", rx.Path.Local, local)
				}
				var in endpoint.Incoming
				in.Accept(rx, m)
				in.Respond(content("x"), message.NonConfirmable, nil)
			})})
		serving, stop := context.WithCancel(ctx)
		ended := make(chan error)
		go func() { ended <- e.Serve(serving) }()
		to := netip.AddrPortFrom(local, conn.LocalAddr().Port())
		for _, confirmable := range []bool{true, false, true, false} {
			from, err := ask(to, confirmable)
			require.NoError(t, err)
			require.Equal(t, to, from)
		}
		stop()
		require.NoError(t, <-ended)
		for _, confirmable := range []bool{true, false} {
			start := time.Now()
			_, err := ask(to, confirmable)
			require.ErrorIs(t, err, endpoint.ErrUndeliverable)
			require.Equal(t, exchange.Unreachable, exchange.AsFailure(err).Reason)
			require.Less(t, time.Since(start), 10*time.Second, "not the timeout")
		}
	}
	require.Zero(t, stats.SendFailed.Load())
	require.Zero(t, stats.Retransmissions.Load())
}
