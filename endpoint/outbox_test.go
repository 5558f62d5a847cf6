package endpoint

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// script is a PacketConn that is only written to.
type script struct {
	write func(batch []Datagram) (int, error)

	mu      sync.Mutex
	sent    []string
	batches []int
}

func (s *script) WriteBatch(batch []Datagram) (int, error) {
	n, err := len(batch), error(nil)
	if s.write != nil {
		n, err = s.write(batch)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, d := range batch[:n] {
		s.sent = append(s.sent, fmt.Sprint(d.Peer.Addr.Port(), " ", string(d.Data)))
	}
	s.batches = append(s.batches, n)
	return n, err
}

func (s *script) ReadBatch([]Datagram) (int, error) { return 0, net.ErrClosed }
func (s *script) LocalAddr() netip.AddrPort         { return netip.AddrPort{} }
func (s *script) Close() error                      { return nil }

func newOutbox(conn PacketConn) *outbox {
	return &outbox{conn: conn, engine: exchange.NewEngine(), stats: &Stats{}}
}

var outPeer = netip.MustParseAddr("192.0.2.1")

func putNumber(o *outbox, port uint16) error {
	return o.putBytes(Peer{Addr: netip.AddrPortFrom(outPeer, port)}, Path{}, fmt.Appendf(nil, "%d", port))
}

func numbers(n int) (all []string) {
	for i := range n {
		all = append(all, fmt.Sprint(i, " ", i))
	}
	return all
}

// Datagrams leave in order with the next flush, and a full batch at once.
func TestOutbox(t *testing.T) {
	var conn script
	o := newOutbox(&conn)
	for i := range 10 {
		require.NoError(t, putNumber(o, uint16(i)))
	}
	require.Empty(t, conn.sent)
	o.engine.Flush()
	require.Equal(t, numbers(10), conn.sent)
	o.engine.Flush()
	require.Equal(t, []int{10}, conn.batches)

	conn = script{}
	for i := range BatchSize + 3 {
		require.NoError(t, putNumber(o, uint16(i)))
	}
	require.Equal(t, []int{BatchSize}, conn.batches)
	o.engine.Flush()
	require.Equal(t, numbers(BatchSize+3), conn.sent)
	require.EqualValues(t, 10+BatchSize+3, o.stats.Sent.Load())
}

// What has been encoded is shown to whoever keeps a copy; what cannot be
// encoded leaves nothing behind.
func TestOutboxEncodes(t *testing.T) {
	var conn script
	o := newOutbox(&conn)
	var kept []byte
	keep := func(encoded []byte) { kept = slices.Clone(encoded) }
	require.NoError(t, o.put(Peer{}, Path{}, &wire.Message{Type: message.Reset, ID: 0x0102}, keep))
	require.Equal(t, []byte{0x70, 0, 1, 2}, kept)
	bad := &wire.Message{Code: 1, Options: message.Options{{ID: 11}, {ID: 3}}}
	require.ErrorIs(t, o.put(Peer{}, Path{}, bad, func([]byte) { t.Error("kept") }), wire.ErrUnsorted)
	o.engine.Flush()
	require.Equal(t, []string{"0 \x70\x00\x01\x02"}, conn.sent)
}

// A datagram that fails does not keep back those behind it; a socket buffer
// that stays full and a closed connection cost what was gathered, no more.
func TestOutboxErrors(t *testing.T) {
	for _, tt := range []struct {
		name            string
		err             error
		sent            int
		failed, dropped uint64
	}{
		{"one fails", errors.New("no route"), 99, 1, 0},
		{"no room", os.ErrDeadlineExceeded, 7, 0, 93},
		{"closed", &net.OpError{Op: "write", Err: net.ErrClosed}, 7, 0, 93},
	} {
		t.Run(tt.name, func(t *testing.T) {
			conn := &script{}
			conn.write = func(batch []Datagram) (int, error) {
				for i, d := range batch {
					if string(d.Data) == "7" {
						return i, tt.err
					}
				}
				return len(batch), nil
			}
			o := newOutbox(conn)
			var failures []string
			o.failed = func(d *Datagram, err error) {
				require.ErrorIs(t, err, tt.err)
				failures = append(failures, string(d.Data))
			}
			for i := range 100 { // more than one batch: as if another goroutine were writing
				o.queue = append(o.queue, Datagram{Peer: Peer{Addr: netip.AddrPortFrom(outPeer, uint16(i))}, Data: fmt.Appendf(nil, "%d", i)})
			}
			o.Flush()
			require.Len(t, conn.sent, tt.sent)
			require.EqualValues(t, tt.sent, o.stats.Sent.Load())
			require.Len(t, failures, int(tt.failed))
			require.Equal(t, tt.failed, o.stats.SendFailed.Load())
			require.Equal(t, tt.dropped, o.stats.SendDropped.Load())
			conn.write = nil
			require.NoError(t, putNumber(o, 1))
			o.Flush()
			require.Len(t, conn.sent, tt.sent+1)
		})
	}
}

// The queue is bounded while another goroutine writes, and what waits in it
// leaves afterwards, in order.
func TestOutboxBound(t *testing.T) {
	conn := &script{}
	entered, release := make(chan struct{}), make(chan struct{})
	conn.write = func(batch []Datagram) (int, error) {
		if len(conn.batches) == 0 {
			close(entered)
			<-release
		}
		return len(batch), nil
	}
	o := newOutbox(conn)
	require.NoError(t, putNumber(o, 0))
	var wg sync.WaitGroup
	wg.Go(o.Flush)
	<-entered
	o.mu.Lock()
	for i := range BatchSize { // so that putting does not flush, and wait
		o.queue = append(o.queue, Datagram{Peer: Peer{Addr: netip.AddrPortFrom(outPeer, uint16(1+i))}, Data: fmt.Appendf(nil, "%d", 1+i)})
	}
	o.mu.Unlock()
	for i := BatchSize; i < outboxLimit; i++ {
		require.NoError(t, putNumber(o, uint16(1+i)))
	}
	for range 3 {
		require.ErrorIs(t, putNumber(o, 1), errOutboxFull)
	}
	require.EqualValues(t, 3, o.stats.SendDropped.Load())
	close(release)
	wg.Wait()
	o.Flush()
	require.Equal(t, numbers(outboxLimit+1), conn.sent)
	require.Nil(t, o.spare, "a queue that grew is not kept")
}

// Large datagrams do not keep their memory, small ones do.
func TestOutboxReuse(t *testing.T) {
	var conn script
	o := newOutbox(&conn)
	small, large := make([]byte, 200), make([]byte, slotKeep+1)
	for range 10 {
		require.NoError(t, o.putBytes(Peer{}, Path{}, small))
		require.NoError(t, o.putBytes(Peer{}, Path{}, large))
		o.Flush()
	}
	for _, queue := range [][]Datagram{o.queue, o.spare} {
		for _, d := range queue[:cap(queue)] {
			require.LessOrEqual(t, cap(d.Data), slotKeep)
		}
	}
	allocs := testing.AllocsPerRun(100, func() {
		_ = o.putBytes(Peer{}, Path{}, small)
		o.mu.Lock()
		o.queue = o.queue[:0]
		o.mu.Unlock()
	})
	require.Zero(t, allocs)
}

// Gathering, flushing and failing go on at once, and nothing is lost that was
// not counted.
func TestOutboxConcurrently(t *testing.T) {
	const goroutines, each = 6, 3000
	conn := &script{}
	conn.write = func(batch []Datagram) (int, error) {
		for i, d := range batch {
			if len(d.Data) == 2 {
				return i, errors.New("refused")
			}
		}
		return len(batch), nil
	}
	o := newOutbox(conn)
	var wg sync.WaitGroup
	for range goroutines {
		wg.Go(func() {
			for i := range each {
				if putNumber(o, uint16(i)) != nil {
					t.Error("full")
				}
				if i%7 == 0 {
					o.engine.Flush()
				}
			}
			o.engine.Flush()
		})
	}
	wg.Wait()
	require.EqualValues(t, goroutines*90, o.stats.SendFailed.Load(), "10 to 99")
	require.EqualValues(t, goroutines*(each-90), o.stats.Sent.Load())
	require.Len(t, conn.sent, goroutines*(each-90))
}
