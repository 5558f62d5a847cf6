package endpoint

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

// FP-91, RFC 7252 §4.4: whatever the rate, an ID of a port is not used again
// within EXCHANGE_LIFETIME, IDs are sequential, and none is refused without
// need: a port always has three quarters of its IDs.
func TestMessageIDsAgainstModel(t *testing.T) {
	start := time.Now()
	rapid.Check(t, func(t *rapid.T) {
		const ports = 3
		var l idLane
		var lastUse [ports][1 << 16]time.Time
		var next [ports]uint16
		now := start
		for range rapid.IntRange(1, 20).Draw(t, "bursts") {
			n := rapid.IntRange(1, 100_000).Draw(t, "burst")
			gap := time.Duration(rapid.IntRange(0, 10_000).Draw(t, "gap in µs")) * time.Microsecond
			for range n {
				now = now.Add(gap)
				port, id, ok := l.take(now, ports)
				if !ok {
					recent := 0
					for p := range lastUse {
						for _, used := range lastUse[p] {
							if !used.IsZero() && now.Sub(used) < ExchangeLifetime {
								recent++
							}
						}
					}
					if recent < ports*(1<<16)*3/4 {
						t.Fatalf("refused although only %d IDs are in use", recent)
					}
					break
				}
				if used := lastUse[port][id]; !used.IsZero() {
					if now.Sub(used) < ExchangeLifetime {
						t.Fatalf("ID %d of port %d used again after %v", id, port, now.Sub(used))
					}
				}
				if len(l.spaces) > port && !lastUse[port][next[port]-1].IsZero() && id != next[port] {
					t.Fatalf("ID %d follows %d", id, next[port]-1)
				}
				lastUse[port][id], next[port] = now, id+1
			}
			now = now.Add(time.Duration(rapid.IntRange(0, 300).Draw(t, "pause in s")) * time.Second)
		}
	})
}

// FP-91: further ports are used only when they are needed, and the first ones
// again when the last is used up.
func TestMessageIDPorts(t *testing.T) {
	var l idLane
	now := time.Now()
	takeAll := func() (port, n int) {
		first := -1
		for {
			p, _, ok := l.take(now, 3)
			if first < 0 {
				first = p
			}
			if !ok || p != first {
				return first, n
			}
			n++
		}
	}
	for want := range 3 {
		port, n := takeAll()
		require.Equal(t, want, port)
		require.InDelta(t, 1<<16, n, 1<<12+1)
	}
	_, _, ok := l.take(now, 3)
	require.False(t, ok)
	require.Len(t, l.spaces, 3)
	now = now.Add(ExchangeLifetime - 1)
	_, _, ok = l.take(now, 3)
	require.False(t, ok)
	now = now.Add(1)
	_, _, ok = l.take(now, 3)
	require.True(t, ok)
}

func TestMessageIDsOfServers(t *testing.T) {
	lanes := newIDLanes()
	server := netip.MustParseAddrPort("192.0.2.1:5683")
	require.Same(t, lanes.of(server), lanes.of(server))
	used := make(map[*idLane]bool)
	for port := range uint16(4096) {
		used[lanes.of(netip.AddrPortFrom(server.Addr(), port))] = true
	}
	require.Greater(t, len(used), 900, "servers share few lanes")
}
