package endpoint

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"
)

// loopbacks are the loopback addresses of this machine: IPv4, and IPv6 where
// there is one.
func loopbacks(t *testing.T) []netip.Addr {
	all := []netip.Addr{netip.MustParseAddr("127.0.0.1")}
	pc, err := net.ListenPacket("udp6", "[::1]:0")
	if err != nil {
		t.Logf("no IPv6 loopback here, IPv4 only: %v", err)
		return all
	}
	require.NoError(t, pc.Close())
	return append(all, netip.IPv6Loopback())
}

func listenUDP(t *testing.T, local netip.Addr, o UDPOptions) *UDPConn {
	t.Helper()
	u, err := ListenUDP(t.Context(), netip.AddrPortFrom(local, 0), o)
	require.NoError(t, err)
	t.Cleanup(func() { _ = u.Close() })
	return u
}

// plain is a socket without any of this package's code.
func plainSocket(t *testing.T, local netip.Addr) *net.UDPConn {
	t.Helper()
	c, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(local, 0)))
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(time.Minute))) // of a test that fails
	return c
}

// unspecified is the wildcard of the family of a.
func unspecified(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// Batches are written and read whole and in order.
func TestUDPBatches(t *testing.T) {
	for _, local := range loopbacks(t) {
		x, y := listenUDP(t, local, UDPOptions{ReceiveBuffer: 1 << 20, SendBuffer: 1 << 20}), listenUDP(t, local, UDPOptions{ReceiveBuffer: 1 << 20})
		require.Equal(t, local, x.LocalAddr().Addr())
		require.NotZero(t, x.LocalAddr().Port())
		batch := make([]Datagram, 2*BatchSize)
		for i := range batch {
			batch[i] = Datagram{Peer: Peer{Addr: y.LocalAddr()}, Data: bytes.Repeat([]byte{byte(i)}, i)}
		}
		batch[3].Peer = PeerOf(y.LocalAddr())
		n, err := x.WriteBatch(batch)
		require.NoError(t, err)
		require.Equal(t, BatchSize, n, "no more than a batch at a time")
		n, err = x.WriteBatch(batch[BatchSize:])
		require.NoError(t, err)
		require.Equal(t, BatchSize, n)

		read := make([]Datagram, BatchSize)
		for next := 0; next < len(batch); {
			n, err := y.ReadBatch(read[:min(len(read), 1+next)])
			require.NoError(t, err)
			require.Positive(t, n)
			for _, d := range read[:n] {
				require.Equal(t, string(batch[next].Data), string(d.Data))
				require.Equal(t, x.LocalAddr(), d.Peer.Addr)
				require.False(t, d.Truncated)
				require.Equal(t, Path{}, d.Path)
				next++
			}
		}
		require.Positive(t, x.ReceiveBuffer())
	}
}

// A reply from a wildcard socket leaves from the address that was asked.
func TestUDPPacketInfo(t *testing.T) {
	loopback, err := net.InterfaceByName("lo")
	require.NoError(t, err)
	asked := loopbacks(t)
	asked = append(asked, netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("127.1.2.3"))
	for _, local := range asked {
		u := listenUDP(t, unspecified(local), UDPOptions{PacketInfo: true})
		require.True(t, u.LocalAddr().Addr().IsUnspecified())
		client := plainSocket(t, local)
		to := netip.AddrPortFrom(local, u.LocalAddr().Port())
		for _, via := range []string{"peer as read", "peer by address"} {
			_, err := client.WriteToUDPAddrPort([]byte("q"), to)
			require.NoError(t, err)
			batch := make([]Datagram, 1)
			n, err := u.ReadBatch(batch)
			require.NoError(t, err)
			require.Equal(t, 1, n)
			require.Equal(t, Path{Local: local, Interface: loopback.Index}, batch[0].Path)
			if via == "peer by address" {
				batch[0].Peer = Peer{Addr: batch[0].Peer.Addr}
			}
			_, err = u.WriteBatch([]Datagram{{Peer: batch[0].Peer, Path: batch[0].Path, Data: []byte("r")}})
			require.NoError(t, err)
			_, from, err := client.ReadFromUDPAddrPort(make([]byte, 10))
			require.NoError(t, err)
			require.Equal(t, to, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
		}
	}
}

// Datagrams longer than the receive buffer are marked, and cost the next one
// nothing.
func TestUDPLongDatagram(t *testing.T) {
	for _, local := range loopbacks(t) {
		u := listenUDP(t, local, UDPOptions{})
		client := plainSocket(t, local)
		for _, length := range []int{maxDatagram, maxDatagram + 1, 60000, 5} {
			_, err := client.WriteToUDPAddrPort(make([]byte, length), u.LocalAddr())
			require.NoError(t, err)
		}
		batch := make([]Datagram, BatchSize)
		for got := 0; got < 4; {
			n, err := u.ReadBatch(batch)
			require.NoError(t, err)
			for _, d := range batch[:n] {
				require.Len(t, d.Data, []int{maxDatagram, maxDatagram, maxDatagram, 5}[got])
				require.Equal(t, []bool{false, true, true, false}[got], d.Truncated)
				got++
			}
		}
	}
}

// Closing ends a reader, and writing fails from then on.
func TestUDPCloseWhileReading(t *testing.T) {
	u := listenUDP(t, netip.MustParseAddr("127.0.0.1"), UDPOptions{Errors: true})
	ended := make(chan error)
	go func() {
		_, err := u.ReadBatch(make([]Datagram, 1))
		ended <- err
	}()
	require.NoError(t, u.Close())
	require.ErrorIs(t, <-ended, net.ErrClosed)
	_, err := u.WriteBatch([]Datagram{{Peer: Peer{Addr: u.LocalAddr()}, Data: []byte("x")}})
	require.ErrorIs(t, err, net.ErrClosed)
	_, err = u.ReadBatch(make([]Datagram, 1))
	require.ErrorIs(t, err, net.ErrClosed)
}

// Closing may race with flushes.
func TestUDPCloseWhileFlushing(t *testing.T) {
	for range 20 {
		u := listenUDP(t, netip.MustParseAddr("127.0.0.1"), UDPOptions{Errors: true})
		o := newOutbox(u)
		o.failed = func(_ *Datagram, err error) { t.Error(err) }
		var wg sync.WaitGroup
		for range 3 {
			wg.Go(func() {
				for range 50 {
					_ = o.putBytes(Peer{Addr: u.LocalAddr()}, Path{}, []byte("x"))
					o.engine.Flush()
				}
			})
		}
		wg.Go(func() { _ = u.Close() })
		wg.Wait()
		o.engine.Flush()
		require.EqualValues(t, 150, o.stats.Sent.Load()+o.stats.SendDropped.Load())
	}
}

// crowded is a socket whose buffer has no room until release is closed.
type crowded struct {
	batchConn
	conn    *net.UDPConn
	release chan struct{}
	err     error
}

func (c *crowded) WriteBatch(batch []mmsghdr, flags int) (int, error) {
	if flags&unix.MSG_DONTWAIT != 0 {
		return 0, os.NewSyscallError("sendmmsg", c.err)
	}
	raw, err := c.conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	err = raw.Write(func(uintptr) bool {
		select {
		case <-c.release:
			return true
		default:
			return false
		}
	})
	if err != nil {
		return 0, err
	}
	return c.batchConn.WriteBatch(batch, flags)
}

// A full socket buffer is waited for, but not forever.
func TestUDPFullSocketBuffer(t *testing.T) {
	for _, tt := range []struct {
		name string
		err  error
		room bool
		want error
	}{
		{"room comes", unix.EAGAIN, true, nil},
		{"no room", unix.EAGAIN, false, os.ErrDeadlineExceeded},
		{"no room in the interface's queue", unix.ENOBUFS, false, os.ErrDeadlineExceeded},
	} {
		t.Run(tt.name, func(t *testing.T) {
			u := listenUDP(t, netip.MustParseAddr("127.0.0.1"), UDPOptions{Errors: true})
			c := &crowded{batchConn: u.batch, conn: u.conn, release: make(chan struct{}), err: tt.err}
			u.batch = c
			if tt.room {
				close(c.release)
			}
			start := time.Now()
			n, err := u.WriteBatch([]Datagram{{Peer: Peer{Addr: u.LocalAddr()}, Data: []byte("x")}})
			require.ErrorIs(t, err, tt.want)
			require.Less(t, time.Since(start), 10*time.Second)
			if tt.want != nil {
				require.Zero(t, n)
				u.batch = c.batchConn // the deadline is off again
				time.Sleep(time.Millisecond)
				n, err = u.WriteBatch([]Datagram{{Peer: Peer{Addr: u.LocalAddr()}, Data: []byte("x")}})
				require.NoError(t, err)
			}
			require.Equal(t, 1, n)
		})
	}
}

// ICMP errors come back as datagrams of our own, each to its peer, and neither
// keep anything from being sent to others nor are taken for their failure.
func TestUDPErrors(t *testing.T) {
	const closed, rounds = 7, 20
	for _, local := range loopbacks(t) {
		u := listenUDP(t, unspecified(local), UDPOptions{Errors: true})
		good := listenUDP(t, local, UDPOptions{ReceiveBuffer: 1 << 20})
		var gone []netip.AddrPort
		for range closed {
			c := plainSocket(t, local)
			gone = append(gone, netip.AddrPortFrom(local, c.LocalAddr().(*net.UDPAddr).AddrPort().Port()))
			require.NoError(t, c.Close())
		}
		back := make(chan string, closed*rounds)
		var wg sync.WaitGroup
		wg.Go(func() {
			batch := make([]Datagram, BatchSize)
			for {
				n, err := u.ReadBatch(batch)
				if err != nil {
					if !errors.Is(err, net.ErrClosed) {
						t.Error(err)
					}
					return
				}
				for _, d := range batch[:n] {
					if !errors.Is(d.Undeliverable, ErrUndeliverable) || d.Truncated {
						t.Errorf("%+v", d)
					}
					back <- fmt.Sprint(d.Peer.Addr, " ", string(d.Data))
				}
			}
		})
		var batch []Datagram
		want := make(map[string]int)
		for r := range rounds {
			for _, g := range gone {
				batch = append(batch, Datagram{Peer: Peer{Addr: g}, Data: fmt.Appendf(nil, "round %d", r)})
				want[fmt.Sprint(g, " round ", r)]++
			}
			batch = append(batch, Datagram{Peer: Peer{Addr: good.LocalAddr()}, Data: fmt.Appendf(nil, "good %d", r)})
		}
		for rest := batch; len(rest) > 0; {
			n, err := u.WriteBatch(rest)
			require.NoError(t, err)
			rest = rest[n:]
		}
		read := make([]Datagram, BatchSize)
		for next := 0; next < rounds; {
			n, err := good.ReadBatch(read)
			require.NoError(t, err)
			for _, d := range read[:n] {
				require.Equal(t, fmt.Sprint("good ", next), string(d.Data))
				next++
			}
		}
		// The kernel limits how many ICMP errors it makes, so that not all of
		// them come, but none that did stays in the socket's error queue.
		timeout := time.After(10 * time.Second)
		for got := 0; got < closed; got++ {
			select {
			case b := <-back:
				want[b]--
				require.GreaterOrEqual(t, want[b], 0, b)
			case <-timeout:
				t.Fatalf("only %d errors", got)
			}
		}
		require.NoError(t, u.Close())
		wg.Wait()
	}
}

// refusing is a socket that counts how often writing was told of an ICMP error,
// or swallowed one.
type refusing struct {
	batchConn
	told  int
	echos int // made up, before the first datagram is sent
}

func (r *refusing) WriteBatch(batch []mmsghdr, flags int) (n int, err error) {
	if r.echos > 0 {
		r.echos--
		return 0, os.NewSyscallError("sendmmsg", unix.ECONNREFUSED)
	}
	n, err = r.batchConn.WriteBatch(batch, flags)
	if errors.Is(err, unix.ECONNREFUSED) || n < len(batch) {
		r.told++
	}
	return n, err
}

// The kernel tells of an ICMP error once. When that was the writer, the reader
// learns what came back all the same.
func TestUDPErrorNoticedByWriter(t *testing.T) {
	local := netip.MustParseAddr("127.0.0.1")
	u := listenUDP(t, local, UDPOptions{Errors: true})
	r := &refusing{batchConn: u.batch}
	u.batch = r
	closed := plainSocket(t, local)
	gone := closed.LocalAddr().(*net.UDPAddr).AddrPort()
	require.NoError(t, closed.Close())
	good := plainSocket(t, local).LocalAddr().(*net.UDPAddr).AddrPort()

	for start := time.Now(); r.told == 0; {
		require.Less(t, time.Since(start), 10*time.Second, "no ICMP error")
		n, err := u.WriteBatch([]Datagram{{Peer: Peer{Addr: gone}, Data: []byte("gone")}, {Peer: Peer{Addr: good}, Data: []byte("good")}})
		require.NoError(t, err)
		require.Equal(t, 2, n)
	}
	batch := make([]Datagram, BatchSize)
	read := make(chan error, 1)
	go func() {
		_, err := u.ReadBatch(batch)
		read <- err
	}()
	select {
	case err := <-read:
		require.NoError(t, err)
	case <-time.After(10 * time.Second):
		t.Fatal("the error queue is not read")
	}
	require.ErrorIs(t, batch[0].Undeliverable, ErrUndeliverable)
	require.Equal(t, gone, batch[0].Peer.Addr)
	require.Equal(t, "gone", string(batch[0].Data))

	// The reader is as patient as before.
	go func() {
		_, err := u.ReadBatch(batch)
		read <- err
	}()
	time.Sleep(time.Millisecond)
	_, err := plainSocket(t, local).WriteToUDPAddrPort([]byte("y"), u.LocalAddr())
	require.NoError(t, err)
	require.NoError(t, <-read)
}

// An ICMP error told to the writer is most often that of an earlier datagram.
func TestUDPEchoes(t *testing.T) {
	for echos, want := range map[int]int{0: 1, 1: 1, maxEchoes: 1, maxEchoes + 1: 0} {
		u := listenUDP(t, netip.MustParseAddr("127.0.0.1"), UDPOptions{Errors: true})
		u.batch = &refusing{batchConn: u.batch, echos: echos}
		n, err := u.WriteBatch([]Datagram{{Peer: Peer{Addr: u.LocalAddr()}, Data: []byte("x")}})
		require.Equal(t, want, n)
		require.Equal(t, want == 0, errors.Is(err, unix.ECONNREFUSED))
	}
}

// A datagram that cannot be sent is the one that fails.
func TestUDPSendFails(t *testing.T) {
	u := listenUDP(t, netip.MustParseAddr("127.0.0.1"), UDPOptions{Errors: true})
	good := Datagram{Peer: Peer{Addr: u.LocalAddr()}, Data: []byte("x")}
	for _, bad := range []Datagram{
		{Peer: good.Peer, Data: make([]byte, 1<<16)},                                  // EMSGSIZE
		{Peer: Peer{Addr: netip.MustParseAddrPort("192.0.2.1:9")}, Data: []byte("x")}, // from loopback: EINVAL
	} {
		n, err := u.WriteBatch([]Datagram{good, good, bad, good})
		require.Error(t, err)
		require.Equal(t, 2, n)
		n, err = u.WriteBatch([]Datagram{good})
		require.NoError(t, err)
		require.Equal(t, 1, n)
	}
}

func TestListenUDPErrors(t *testing.T) {
	u := listenUDP(t, netip.MustParseAddr("127.0.0.1"), UDPOptions{})
	_, err := ListenUDP(t.Context(), u.LocalAddr(), UDPOptions{})
	require.ErrorIs(t, err, unix.EADDRINUSE)
	_, err = ListenUDP(t.Context(), netip.MustParseAddrPort("192.0.2.1:0"), UDPOptions{})
	require.ErrorIs(t, err, unix.EADDRNOTAVAIL)
	_, err = ListenUDP(t.Context(), netip.MustParseAddrPort("127.0.0.1:0"),
		UDPOptions{Multicast: &MulticastOptions{Interface: &net.Interface{Index: 1 << 30}}})
	require.ErrorContains(t, err, "set up UDP socket 127.0.0.1:")
}

// GC-6, GC-7: datagrams to a group leave by the interface that was named, with
// the hop limit that was named.
func TestUDPMulticast(t *testing.T) {
	loopback, err := net.InterfaceByName("lo")
	require.NoError(t, err)
	group := net.IPv4(239, 255, 72, 52)
	member, err := net.ListenMulticastUDP("udp4", loopback, &net.UDPAddr{IP: group})
	require.NoError(t, err)
	t.Cleanup(func() { _ = member.Close() })
	info := ipv4.NewPacketConn(member)
	require.NoError(t, info.SetControlMessage(ipv4.FlagTTL|ipv4.FlagInterface, true))
	require.NoError(t, member.SetDeadline(time.Now().Add(time.Minute)))

	u := listenUDP(t, netip.MustParseAddr("127.0.0.1"), UDPOptions{Multicast: &MulticastOptions{Interface: loopback, HopLimit: 3, Loopback: true}})
	to := netip.AddrPortFrom(netip.AddrFrom4([4]byte(group.To4())), uint16(member.LocalAddr().(*net.UDPAddr).Port))
	n, err := u.WriteBatch([]Datagram{{Peer: PeerOf(to), Data: []byte("everybody")}})
	require.NoError(t, err)
	require.Equal(t, 1, n)
	buf := make([]byte, 100)
	n, control, from, err := info.ReadFrom(buf)
	require.NoError(t, err)
	require.Equal(t, "everybody", string(buf[:n]))
	require.Equal(t, 3, control.TTL)
	require.Equal(t, loopback.Index, control.IfIndex)
	require.Equal(t, u.LocalAddr(), from.(*net.UDPAddr).AddrPort())
}
