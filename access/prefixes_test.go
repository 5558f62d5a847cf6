package access

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// FP-37, HC-105: each source network has a budget of its own.
func TestPrefixes(t *testing.T) {
	p := newPrefixes(1, 2)
	now := time.Unix(1_000_000, 0)
	ask := func(peer string) bool { return p.exceeded(netip.MustParseAddr(peer), now) == nil }
	for _, peer := range []string{"192.0.2.1", "2001:db8::1"} {
		require.True(t, ask(peer))
		require.True(t, ask(peer))
		require.False(t, ask(peer), peer)
	}
	require.True(t, ask("192.0.2.2"), "another address is another client")
	require.False(t, ask("::ffff:192.0.2.1"), "the same client in another form")
	require.False(t, ask("2001:db8::ffff:2"), "one host has 64 bits to choose from")
	require.True(t, ask("2001:db8:0:1::1"))
	require.True(t, p.exceeded(netip.Addr{}, now) == nil)
	now = now.Add(time.Second)
	require.True(t, ask("192.0.2.1"))
	require.False(t, ask("192.0.2.1"))
	for i := range 2 * maxPrefixes {
		ask(fmt.Sprintf("10.%d.%d.%d", i>>16, i>>8&255, i&255))
	}
	require.Equal(t, maxPrefixes, p.known.Len())
	require.Nil(t, newPrefixes(0, 1).exceeded(netip.MustParseAddr("192.0.2.1"), now), "no limit")
}
