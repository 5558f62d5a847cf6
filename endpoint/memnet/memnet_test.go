package memnet_test

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"coapproxy/endpoint"
	"coapproxy/endpoint/memnet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	a1    = netip.MustParseAddr("192.0.2.1")
	a2    = netip.MustParseAddr("192.0.2.2")
	b     = netip.MustParseAddr("198.51.100.1")
	group = netip.MustParseAddr("224.0.1.187")
)

func listen(t *testing.T, h *memnet.Host, local string, o memnet.Options) *memnet.Conn {
	t.Helper()
	c, err := h.Listen(netip.MustParseAddrPort(local), o)
	require.NoError(t, err)
	return c
}

// arrivals reads the data of all datagrams that wait.
func arrivals(c *memnet.Conn) (data []string) {
	for _, d := range c.Received() {
		data = append(data, string(d.Data))
	}
	return data
}

func TestAddresses(t *testing.T) {
	n := memnet.New()
	host := n.Host(a1, a2)
	wild := listen(t, host, "0.0.0.0:5683", memnet.Options{})
	peer := listen(t, n.Host(b), "198.51.100.1:0", memnet.Options{})
	require.NotZero(t, peer.LocalAddr().Port())

	require.NoError(t, peer.Send(netip.AddrPortFrom(a2, 5683), []byte("q")))
	got := wild.Received()
	require.Len(t, got, 1)
	require.Equal(t, peer.LocalAddr(), got[0].Peer.Addr)
	require.Equal(t, a2, got[0].Path.Local)

	for _, tt := range []struct {
		path endpoint.Path
		from netip.Addr
		err  error
	}{
		{endpoint.Path{}, a1, nil},
		{endpoint.Path{Local: a2}, a2, nil},
		{endpoint.Path{Local: b}, netip.Addr{}, syscall.EINVAL},
	} {
		sent, err := wild.WriteBatch([]endpoint.Datagram{{Peer: got[0].Peer, Path: tt.path, Data: []byte("r")}})
		require.ErrorIs(t, err, tt.err)
		if tt.err != nil {
			require.Zero(t, sent)
			continue
		}
		require.Equal(t, netip.AddrPortFrom(tt.from, 5683), peer.Received()[0].Peer.Addr)
	}

	_, err := host.Listen(netip.AddrPortFrom(a1, 5683), memnet.Options{})
	require.ErrorIs(t, err, syscall.EADDRINUSE)
	_, err = host.Listen(netip.AddrPortFrom(b, 5683), memnet.Options{})
	require.ErrorIs(t, err, syscall.EADDRNOTAVAIL)
	require.ErrorIs(t, wild.Send(netip.MustParseAddrPort("[2001:db8::1]:5683"), nil), syscall.EAFNOSUPPORT)
}

func TestZones(t *testing.T) {
	n := memnet.New()
	server := listen(t, n.Host(netip.MustParseAddr("fe80::1%lo")), "[::]:5683", memnet.Options{})
	client := listen(t, n.Host(netip.MustParseAddr("fe80::2%lo")), "[fe80::2]:9", memnet.Options{})
	require.NoError(t, client.Send(netip.MustParseAddrPort("[fe80::1]:5683"), nil))
	got := server.Received()
	require.Len(t, got, 1)
	require.Equal(t, netip.MustParseAddrPort("[fe80::2%lo]:9"), got[0].Peer.Addr)
	require.Equal(t, netip.MustParseAddr("fe80::1%lo"), got[0].Path.Local)
}

func TestGroups(t *testing.T) {
	n := memnet.New()
	sender := listen(t, n.Host(a1), "192.0.2.1:5683", memnet.Options{})
	member := listen(t, n.Host(a2), "192.0.2.2:5683", memnet.Options{})
	other := listen(t, n.Host(b), "198.51.100.1:5683", memnet.Options{})
	sender.Join(group)
	member.Join(group)
	require.NoError(t, sender.Send(netip.AddrPortFrom(group, 5683), []byte("q")))
	require.NoError(t, sender.Send(netip.AddrPortFrom(group, 61616), []byte("other port")))
	require.Empty(t, sender.Received())
	require.Empty(t, other.Received())
	got := member.Received()
	require.Len(t, got, 1)
	require.Equal(t, group, got[0].Path.Local)
}

// A delayed datagram arrives when its time has come, and datagrams with the
// same delay stay in order.
func TestFate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		x := listen(t, n.Host(a1), "192.0.2.1:1", memnet.Options{})
		y := listen(t, n.Host(b), "198.51.100.1:2", memnet.Options{})
		n.Shape(func(from, to netip.AddrPort, data []byte) []time.Duration {
			require.Equal(t, x.LocalAddr(), from)
			require.Equal(t, y.LocalAddr(), to)
			switch data[0] {
			case 'l':
				return memnet.Lost()
			case 'd':
				return memnet.At(0, time.Second)
			default:
				return memnet.At(time.Second)
			}
		})
		for _, s := range []string{"1", "lost", "2", "doubled", "3", "4"} {
			require.NoError(t, x.Send(y.LocalAddr(), []byte(s)))
		}
		require.Equal(t, []string{"doubled"}, arrivals(y))
		time.Sleep(time.Second - 1)
		synctest.Wait()
		require.Empty(t, arrivals(y))
		time.Sleep(time.Nanosecond)
		synctest.Wait()
		require.Equal(t, []string{"1", "2", "doubled", "3", "4"}, arrivals(y))
		n.Shape(nil)
		require.NoError(t, x.Send(y.LocalAddr(), []byte("at once")))
		require.Equal(t, []string{"at once"}, arrivals(y))
	})
}

func TestBounds(t *testing.T) {
	n := memnet.New()
	x := listen(t, n.Host(a1), "192.0.2.1:1", memnet.Options{Errors: true})
	y := listen(t, n.Host(b), "198.51.100.1:2", memnet.Options{Queue: 2, MaxDatagram: 3})
	for _, s := range []string{"abcd", "e", "f"} {
		require.NoError(t, x.Send(y.LocalAddr(), []byte(s)))
	}
	batch := make([]endpoint.Datagram, 8)
	count, err := y.ReadBatch(batch)
	require.NoError(t, err)
	require.Equal(t, 2, count)
	require.Equal(t, "abc", string(batch[0].Data))
	require.True(t, batch[0].Truncated)
	require.False(t, batch[1].Truncated)

	// Nobody listens: the sender hears of it if it asked.
	require.NoError(t, x.Send(netip.AddrPortFrom(b, 3), []byte("gone")))
	back := x.Received()
	require.Len(t, back, 1)
	require.ErrorIs(t, back[0].Undeliverable, endpoint.ErrUndeliverable)
	require.Equal(t, netip.AddrPortFrom(b, 3), back[0].Peer.Addr)
	require.NoError(t, y.Send(netip.AddrPortFrom(a1, 3), []byte("gone")))
	require.Empty(t, y.Received())
	require.NoError(t, x.Send(netip.MustParseAddrPort("203.0.113.1:1"), []byte("no such host")))
	require.Empty(t, x.Received())

	full := errors.New("full")
	x.Refuse(func(d *endpoint.Datagram) error {
		if d.Data[0] == '2' {
			return full
		}
		return nil
	})
	sent, err := x.WriteBatch([]endpoint.Datagram{
		{Peer: endpoint.PeerOf(y.LocalAddr()), Data: []byte("1")},
		{Peer: endpoint.PeerOf(y.LocalAddr()), Data: []byte("2")},
	})
	require.Equal(t, 1, sent)
	require.ErrorIs(t, err, full)
	require.Equal(t, []string{"1"}, arrivals(y))
}

// Closing ends a reader that waits.
func TestClose(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := memnet.New()
		h := n.Host(a1)
		x := listen(t, h, "192.0.2.1:1", memnet.Options{})
		y := listen(t, h, "192.0.2.1:2", memnet.Options{})
		ended := make(chan error)
		for _, c := range []*memnet.Conn{x, y} {
			go func() {
				_, err := c.ReadBatch(make([]endpoint.Datagram, 1))
				ended <- err
			}()
		}
		synctest.Wait()
		require.NoError(t, x.Close())
		require.ErrorIs(t, <-ended, net.ErrClosed)
		n.Close()
		require.ErrorIs(t, <-ended, net.ErrClosed)
		require.ErrorIs(t, x.Close(), net.ErrClosed)
		require.ErrorIs(t, x.Send(y.LocalAddr(), nil), net.ErrClosed)
		listen(t, h, "192.0.2.1:1", memnet.Options{}) // the address is free again
	})
}
