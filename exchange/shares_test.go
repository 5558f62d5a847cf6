package exchange

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestShares(t *testing.T) {
	addr := netip.MustParseAddr
	greedy, other := addr("2001:db8::1"), addr("192.0.2.1")
	var s Shares
	n := 0
	for ; s.Take(greedy.Next().Prev(), 16); n++ {
	}
	require.Equal(t, 12, n, "one client alone gets three quarters")
	require.False(t, s.Take(addr("2001:db8::ffff"), 16), "one network of 64 bits is one client")
	for range 3 {
		require.True(t, s.Take(other, 16))
	}
	require.False(t, s.Modest(greedy, 16))
	require.True(t, s.Modest(other, 16))
	require.True(t, s.Modest(netip.Addr{}, 16))
	require.True(t, s.Take(netip.Addr{}, 16), "the proxy itself")
	require.False(t, s.Take(addr("192.0.2.2"), 16), "all are taken")
	s.Give(other)
	require.False(t, s.Take(greedy, 16))
	require.True(t, s.Take(addr("::ffff:192.0.2.1"), 16))
	for range n {
		s.Give(greedy)
	}
	require.Equal(t, 4, s.Total())
	require.True(t, s.Take(greedy, 16))
	require.Len(t, s.of, 3)

	var one Shares // where a quarter is nothing, all is for everybody
	require.True(t, one.Take(other, 1))
	require.False(t, one.Take(other, 1))
}
