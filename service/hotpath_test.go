package service

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"coapproxy/blockwise"
	"coapproxy/config"
	"coapproxy/endpoint"
	"coapproxy/proxy"
	"coapproxy/wire"
)

// benchConfig is what `make bench` measures with: everybody on the loopback may do
// what the load does.
const benchConfig = `
listen: ["coap://127.0.0.1:0"]
clients:
  - {name: load, networks: [127.0.0.0/8], forward: ["coap://127.0.0.1:*"]}
proxy: {allow_loopback: true, client_types: keep}
limits:
  nstart_targets: [{target: "127.0.0.1:5700", nstart: 4096}]
cache: {enabled: false}
control: {socket: off}
`

// turns is a PacketConn without a kernel: what one side has written is what the
// other has to do next.
type turns struct {
	local netip.AddrPort
	read  chan int // so many datagrams are there to be read
	fill  func(d *endpoint.Datagram, i int)
	wrote func(batch []endpoint.Datagram)
	once  sync.Once
}

func (t *turns) ReadBatch(batch []endpoint.Datagram) (int, error) {
	n, ok := <-t.read
	if !ok {
		return 0, net.ErrClosed
	}
	for i := range n {
		t.fill(&batch[i], i)
	}
	return n, nil
}

func (t *turns) WriteBatch(batch []endpoint.Datagram) (int, error) {
	t.wrote(batch)
	return len(batch), nil
}

func (t *turns) LocalAddr() netip.AddrPort { return t.local }

func (t *turns) Close() error {
	t.once.Do(func() { close(t.read) })
	return nil
}

// BenchmarkUnicast is an uncached exchange through all layers of the proxy, without
// the system calls: 16 requests come at a time, and so do their responses.
func BenchmarkUnicast(b *testing.B) {
	for _, bm := range []struct {
		name string
		typ  message.Type
	}{{"NON", message.NonConfirmable}, {"CON", message.Confirmable}} {
		b.Run(bm.name, func(b *testing.B) { benchmarkUnicast(b, bm.typ) })
	}
}

// answering is a port of the proxy to an origin that answers what is written.
func answering(origin netip.AddrPort, typ message.Type) *turns {
	first := byte(0x58) // a NON with a Token of 8 bytes
	if typ == message.Confirmable {
		first = 0x68 // an ACK
	}
	// A ring: what is written may come in several parts, one while another is read.
	responses := make([][]byte, 4*endpoint.BatchSize)
	made, read := 0, 0
	// Who writes holds what the reader wants before it reads on, and never waits for it.
	up := &turns{local: netip.MustParseAddrPort("0.0.0.0:40000"), read: make(chan int, len(responses))}
	up.fill = func(d *endpoint.Datagram, _ int) {
		*d = endpoint.Datagram{Peer: endpoint.PeerOf(origin), Data: responses[read]}
		read = (read + 1) % len(responses)
	}
	up.wrote = func(requests []endpoint.Datagram) {
		for _, d := range requests {
			r := append(responses[made][:0], first, byte(codes.Content))
			r = append(r, d.Data[2:12]...) // Message ID and Token
			r = append(r, 0xd0, 1, 0xff)   // Max-Age 0
			responses[made] = append(r, "0123456789abcdef"...)
			made = (made + 1) % len(responses)
		}
		up.read <- len(requests)
	}
	return up
}

func benchmarkUnicast(b *testing.B, typ message.Type) {
	const batch, clients = 16, 32
	c, err := config.Parse("bench.yaml", []byte(benchConfig))
	require.NoError(b, err)
	p, err := startOn(b.Context(), c, nil, zap.NewNop())
	require.NoError(b, err)
	defer p.Stop(zap.NewNop())
	ctx, cancel := context.WithCancel(b.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()

	origin := netip.MustParseAddrPort("127.0.0.1:5700")
	open := func(context.Context, netip.Addr) (endpoint.PacketConn, error) { return answering(origin, typ), nil }
	client, err := endpoint.NewClient(ctx, endpoint.ClientConfig{Engine: p.engine, Params: endpoint.DefaultParams(), Dedup: dedupOf(c), Stats: &p.stats.messages,
		Log: zap.NewNop(), KeepType: true, NStart: nstartOf(c), Queue: c.Limits.UpstreamQueue, TimeoutCON: c.Limits.ResponseTimeoutCon,
		TimeoutNON: c.Limits.ResponseTimeout, Ports: 4096, Servers: maxServers, Open: open})
	require.NoError(b, err)
	defer client.Wait()
	defer cancel()
	p.serving.Load().route.Unicast = proxy.Legs{"coap": blockwise.NewUpstream(client, maxBody)}

	// The clients ask again when they have their answers.
	var requests [clients][]byte
	for i := range requests {
		m := wire.Message{Type: typ, Code: codes.GET, Token: make([]byte, 4), Options: message.Options{
			{ID: wire.ProxyURI, Value: []byte("coap://127.0.0.1:5700/x/" + strconv.Itoa(i))}}}
		requests[i], err = m.Append(nil)
		require.NoError(b, err)
	}
	next, got := 0, 0
	id := uint16(0)
	down := &turns{local: netip.MustParseAddrPort("127.0.0.1:5683"), read: make(chan int, 1)}
	done := make(chan struct{}, 1)
	down.fill = func(d *endpoint.Datagram, _ int) {
		data := requests[next]
		id++
		binary.BigEndian.PutUint16(data[2:], id)
		*d = endpoint.Datagram{Peer: endpoint.PeerOf(netip.AddrPortFrom(origin.Addr(), uint16(50000+next))), Data: data}
		next = (next + 1) % clients
	}
	down.wrote = func(out []endpoint.Datagram) {
		if got += len(out); got == batch {
			got = 0
			done <- struct{}{}
		}
	}
	e := endpoint.New(endpoint.Config{Conn: down, Engine: p.engine, Requests: p.front, Params: endpoint.DefaultParams(),
		Dedup: dedupOf(c), MaxToken: c.Limits.MaxToken, Stats: &p.stats.messages, Log: zap.NewNop()})
	wg.Go(func() { _ = e.Serve(ctx) })

	b.ReportAllocs()
	for b.Loop() {
		down.read <- batch
		<-done
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*batch), "ns/exchange")
}
