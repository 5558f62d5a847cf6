package service

import (
	"context"
	"encoding/binary"
	"fmt"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"coapproxy/blockwise"
	"coapproxy/config"
	"coapproxy/endpoint"
	"coapproxy/multicast"
	"coapproxy/wire"
)

// groupBenchConfig is benchConfig for a group.
const groupBenchConfig = `
listen: ["coap://127.0.0.1:0"]
clients:
  - {name: load, networks: [127.0.0.0/8], groups: [bench], max_exchanges: 65536}
groups:
  - {name: bench, uri: "coap://224.0.1.187:5700", interfaces: [lo], loopback: true, nstart: 4096, leisure: 1s, probing_rate: 0}
proxy: {client_types: keep}
cache: {enabled: false}
control: {socket: off}
`

// BenchmarkGroup is a request to a group of 10 and its responses through all layers
// of the proxy, without the system calls: 1,020 exchanges run at a time, as in
// `make bench`, and all end at their T', which the benchmark waits for. What counts is
// therefore the time of the processor and not that of the clock.
func BenchmarkGroup(b *testing.B) {
	const members, batch, running, clients = 10, 6, 1020, 20
	c, err := config.Parse("bench.yaml", []byte(groupBenchConfig))
	require.NoError(b, err)
	p, err := startOn(b.Context(), c, nil, zap.NewNop())
	require.NoError(b, err)
	defer p.Stop(zap.NewNop())
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	up := groupAnswering(members)
	leg, err := multicast.New(ctx, multicast.Config{Engine: p.engine, Groups: groupsOf(c), Dedup: dedupOf(c), ReuseList: c.Limits.ReuseList,
		Stats: &p.stats.groups, EndpointStats: &p.stats.messages, Log: zap.NewNop(),
		Open: func(context.Context, netip.AddrPort, endpoint.MulticastOptions) (endpoint.PacketConn, error) {
			return up, nil
		}})
	require.NoError(b, err)
	defer leg.Wait()
	defer cancel()
	p.serving.Load().route.Group = &blockwise.Continuation{Group: leg, Engine: p.engine, Stats: &p.stats.bodies, Log: zap.NewNop()}

	request := wire.Message{Type: message.NonConfirmable, Code: codes.GET, Token: make([]byte, 4), Options: message.Options{
		{ID: p.numbers.MulticastTimeout, Value: []byte{1}}, {ID: wire.ProxyURI, Value: []byte("coap://224.0.1.187:5700/b?00000000")}}}
	if p.numbers.MulticastTimeout > wire.ProxyURI {
		request.Options[0], request.Options[1] = request.Options[1], request.Options[0]
	}
	var requests [batch][]byte
	for i := range requests {
		requests[i], err = request.Append(nil)
		require.NoError(b, err)
	}
	number, got := uint32(0), 0
	down := &turns{local: netip.MustParseAddrPort("127.0.0.1:5683"), read: make(chan int, 1)}
	done := make(chan struct{}, 1)
	down.fill = func(d *endpoint.Datagram, i int) {
		number++
		data := requests[i]
		binary.BigEndian.PutUint16(data[2:], uint16(number))
		binary.BigEndian.PutUint32(data[4:], number)
		copy(data[len(data)-8:], fmt.Sprintf("%08x", number))
		*d = endpoint.Datagram{Peer: endpoint.PeerOf(netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), uint16(50000+number%clients))), Data: data}
	}
	down.wrote = func(out []endpoint.Datagram) {
		if got += len(out); got == batch*members {
			got = 0
			done <- struct{}{}
		}
	}
	e := endpoint.New(endpoint.Config{Conn: down, Engine: p.engine, Requests: p.front, Params: endpoint.DefaultParams(),
		Dedup: dedupOf(c), MaxToken: c.Limits.MaxToken, Stats: &p.stats.messages, Log: zap.NewNop()})
	wg.Go(func() { _ = e.Serve(ctx) })

	b.ReportAllocs()
	before := processorTime(b)
	for b.Loop() {
		for range running / batch {
			down.read <- batch
			<-done
		}
		for p.front.Active() > 0 {
			time.Sleep(10 * time.Millisecond)
		}
	}
	b.ReportMetric(float64(processorTime(b)-before)/float64(b.N*running), "cpu-ns/exchange")
}

// groupAnswering is a port of the proxy to a group whose members answer what is
// written, one after the other.
func groupAnswering(members int) *turns {
	// A ring: what is written may come in several parts, one while another is read.
	responses := make([]endpoint.Datagram, 4*endpoint.BatchSize)
	made, read := 0, 0
	id := uint32(0)
	up := &turns{local: netip.MustParseAddrPort("127.0.0.1:40000"), read: make(chan int, 1)}
	up.fill = func(d *endpoint.Datagram, _ int) {
		*d = responses[read]
		read = (read + 1) % len(responses)
	}
	up.wrote = func(requests []endpoint.Datagram) {
		for m := range members {
			for _, d := range requests {
				id++ // more of them than a member has IDs are from another one
				r := append(responses[made].Data[:0], 0x58, byte(codes.Content), byte(id>>8), byte(id))
				r = append(r, d.Data[4:12]...) // Token
				r = append(r, 0xd0, 1, 0xff)   // Max-Age 0
				from := netip.AddrFrom4([4]byte{127, byte(1 + id>>16), 0, byte(m + 1)})
				responses[made] = endpoint.Datagram{Peer: endpoint.PeerOf(netip.AddrPortFrom(from, 5700)), Data: append(r, "0123456789abcdef"...)}
				made = (made + 1) % len(responses)
			}
		}
		up.read <- members * len(requests)
	}
	return up
}

// processorTime is what the process has used so far.
func processorTime(b *testing.B) time.Duration {
	var u syscall.Rusage
	require.NoError(b, syscall.Getrusage(syscall.RUSAGE_SELF, &u))
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
