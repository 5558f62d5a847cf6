package endpoint

import (
	"context"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// unsendable is a connection over which the kernel sends nothing.
type unsendable struct{ PacketConn }

func (unsendable) LocalAddr() netip.AddrPort           { return netip.AddrPortFrom(loopback, 40000) }
func (unsendable) WriteBatch([]Datagram) (int, error)  { return 0, syscall.ENETUNREACH }
func (unsendable) ReadBatch(b []Datagram) (int, error) { select {} }
func (unsendable) Close() error                        { return nil }
func (unsendable) SetReadDeadline(time.Time) error     { return nil }

// What the kernel does not send to a group shows in the log: no member will miss
// it. What it does not send to a client is for the debug log: strangers could
// fill any other.
func TestNotSent(t *testing.T) {
	core, logs := observer.New(zap.DebugLevel)
	var stats Stats
	e := New(Config{Conn: unsendable{}, Engine: exchange.NewEngine(), Params: DefaultParams(), Dedup: DefaultDedupLimits(), Stats: &stats, Log: zap.New(core)})
	for to, want := range map[string]string{"[ff02::fd]:5683": "warn not sent to the group", "192.0.2.1:5683": "debug not sent"} {
		require.NoError(t, e.out.putBytes(PeerOf(netip.MustParseAddrPort(to)), Path{}, []byte{0x50, 1, 0, 1}))
		e.Engine.Flush()
		all := logs.TakeAll()
		require.Len(t, all, 1)
		require.Equal(t, want, all[0].Level.String()+" "+all[0].Message)
		require.Contains(t, all[0].ContextMap()["error"], "unreachable")
	}
	require.EqualValues(t, 2, stats.SendFailed.Load())
}

// finding is a RequestHandler that has sent the message with ID 7 to everybody.
type finding struct{ told chan error }

func (finding) HandleRequest(*Reception, *wire.Message) {}

func (f finding) HandleFailure(_ Origin, id uint16, err error) bool {
	if id != 7 {
		return false
	}
	f.told <- err
	return true
}

// GP-44: who finds out itself which of its messages failed is told of a RST, and of
// what could not be sent.
func TestFailureOfWhatNobodyWatches(t *testing.T) {
	var stats Stats
	engine := exchange.NewEngine()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { engine.Run(ctx) })
	defer wg.Wait()
	defer cancel()
	h := finding{told: make(chan error, 1)}
	e := New(Config{Conn: unsendable{}, Engine: engine, Requests: h, Params: DefaultParams(), Dedup: DefaultDedupLimits(), Stats: &stats, Log: zap.NewNop()})
	client := PeerOf(netip.MustParseAddrPort("192.0.2.1:5683"))
	for _, id := range []byte{7, 8} {
		e.receive(&Datagram{Peer: client, Data: []byte{0x70, 0, 0, id}}, &wire.Message{}, time.Now())
	}
	require.ErrorIs(t, <-h.told, ErrReset)
	require.EqualValues(t, 1, stats.ResetsReceived.Load())
	require.EqualValues(t, 1, stats.Ignored.Load())

	require.NoError(t, e.out.putBytes(client, Path{}, []byte{0x50, 0x45, 0, 7}))
	engine.Flush()
	require.ErrorIs(t, <-h.told, ErrUndeliverable)
}
