package endpoint

import (
	"net"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

// Datagrams that nobody reads fill the buffer, and the kernel drops the rest.
func TestReceiveDrops(t *testing.T) {
	var d ReceiveDrops
	before := d.Read()
	conn, err := ListenUDP(t.Context(), netip.AddrPortFrom(loopback, 0), UDPOptions{ReceiveBuffer: 4096})
	require.NoError(t, err)
	from, err := net.Dial("udp", conn.LocalAddr().String())
	require.NoError(t, err)
	defer from.Close()
	for range 2000 {
		_, _ = from.Write(make([]byte, 1000))
	}
	dropped := d.Read() - before
	require.Greater(t, dropped, uint64(1000))
	require.Equal(t, before+dropped, d.Read(), "each is counted once")
	require.NoError(t, conn.Close())
	require.Equal(t, before+dropped, d.Read(), "and stays counted")
}
