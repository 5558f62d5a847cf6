package multicast_test

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/multicast"
)

// silentConn is a network on which nobody answers.
type silentConn struct {
	closed chan struct{}
	once   sync.Once
}

func (c *silentConn) ReadBatch([]endpoint.Datagram) (int, error) {
	<-c.closed
	return 0, net.ErrClosed
}
func (c *silentConn) WriteBatch(batch []endpoint.Datagram) (int, error) { return len(batch), nil }
func (c *silentConn) LocalAddr() netip.AddrPort                         { return netip.MustParseAddrPort("127.0.0.1:40000") }
func (c *silentConn) Close() error                                      { c.once.Do(func() { close(c.closed) }); return nil }

type ending struct{ at chan time.Time }

func (e ending) Respond(*exchange.Response) exchange.Verdict { return exchange.Continue }
func (e ending) End(error)                                   { e.at <- time.Now() }

func TestExtend(t *testing.T) { // GC-82
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(context.Background())
		engine := exchange.NewEngine()
		open := func(context.Context, netip.AddrPort, endpoint.MulticastOptions) (endpoint.PacketConn, error) {
			return &silentConn{closed: make(chan struct{})}, nil
		}
		leg, err := multicast.New(ctx, multicast.Config{Engine: engine, Open: open, Dedup: endpoint.DefaultDedupLimits(), ReuseList: 10,
			Groups: []multicast.Group{{Name: "all", Interfaces: []string{"lo"}, HopLimit: func(netip.Addr) int { return 1 }, NStart: 1, Queue: 1, MaxResponses: 1}},
			Stats:  &multicast.Stats{}, EndpointStats: &endpoint.Stats{}, Log: zap.NewNop()})
		require.NoError(t, err)
		var wg sync.WaitGroup
		wg.Go(func() { engine.Run(ctx) })
		defer func() { cancel(); wg.Wait(); leg.Wait() }()

		start := time.Now()
		end := ending{make(chan time.Time, 2)}
		running := leg.Exchange(&exchange.Request{Method: codes.GET, Arrival: start, Timeout: exchange.Timeout{Seconds: 10, Present: true},
			Target: exchange.Target{Scheme: "coap", Addr: netip.MustParseAddrPort("224.0.1.187:5683"), Group: true, GroupName: "all"}}, end)
		time.Sleep(5 * time.Second)
		extender, ok := running.(exchange.Extender)
		require.True(t, ok)
		require.True(t, extender.Extend(start.Add(25*time.Second)))
		require.Equal(t, 25*time.Second, (<-end.at).Sub(start))
		synctest.Wait()
		require.False(t, extender.Extend(start.Add(time.Minute)), "it is over")
		time.Sleep(time.Minute)
		require.Empty(t, end.at)
	})
}
