package exchange

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"
)

type waiter struct {
	Turn
	name string
}

// Clients take turns, however many requests each of them has waiting; a newcomer
// waits for one round.
func TestTurns(t *testing.T) {
	var queue []*waiter
	served := uint64(7)
	add := func(name, client string) {
		var addr netip.Addr
		if client != "" {
			addr = netip.MustParseAddr(client)
		}
		out, displaced, ok := Enqueue(queue, &waiter{name: name}, addr, served, 100)
		require.True(t, ok)
		require.Nil(t, displaced)
		queue = out
	}
	names := func() (out []string) {
		for _, w := range queue {
			out = append(out, w.name)
		}
		return out
	}
	for _, name := range []string{"a1", "a2", "a3", "a4"} {
		add(name, "192.0.2.1")
	}
	add("b1", "192.0.2.2")
	add("c1", "2001:db8::1")
	add("c2", "2001:db8::2") // the same network of 64 bits
	add("b2", "192.0.2.2")
	add("nobody's", "")
	add("nobody's too", "")
	require.Equal(t, []string{"a1", "b1", "c1", "nobody's", "nobody's too", "a2", "c2", "b2", "a3", "a4"}, names())
	served = queue[0].Round()
	queue = queue[1:]
	add("d1", "192.0.2.4")
	require.Equal(t, []string{"b1", "c1", "nobody's", "nobody's too", "a2", "c2", "b2", "d1", "a3", "a4"}, names())
}

// Where the queue is full, whoever has several requests waiting gives way to who has
// fewer, and never the other way round.
func TestTurnsBounded(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		const limit = 6
		var queue []*waiter
		var served uint64
		count := func(client netip.Addr) (n int) {
			for _, w := range queue {
				if w.client == client {
					n++
				}
			}
			return n
		}
		takenBack := make(map[netip.Addr]bool) // clients that have something waiting behind what has left
		t.Repeat(map[string]func(*rapid.T){
			"ask": func(t *rapid.T) {
				client := netip.AddrFrom4([4]byte{192, 0, 2, byte(rapid.IntRange(1, 4).Draw(t, "client"))})
				before, own := len(queue), count(client)
				if own == 0 {
					delete(takenBack, client)
				}
				w := &waiter{}
				var displaced *waiter
				var ok bool
				queue, displaced, ok = Enqueue(queue, w, client, served, limit)
				switch {
				case before < limit:
					require.True(t, ok)
					require.Nil(t, displaced)
				case ok:
					require.NotNil(t, displaced)
					require.NotEqual(t, client, displaced.client)
					require.Greater(t, displaced.round, w.round)
					require.True(t, count(displaced.client) > 0 || takenBack[displaced.client], "others of it wait")
				default:
					require.LessOrEqual(t, queue[len(queue)-1].round, w.round)
					require.True(t, own > 0 || w.round == served+1, "who has nothing waiting is in the next round")
				}
			},
			"serve": func(t *rapid.T) {
				if len(queue) == 0 {
					t.Skip()
				}
				served = queue[0].Round()
				queue = queue[1:]
			},
			"leave": func(t *rapid.T) {
				if len(queue) == 0 {
					t.Skip()
				}
				i := rapid.IntRange(0, len(queue)-1).Draw(t, "which")
				takenBack[queue[i].client] = true
				queue = append(queue[:i:i], queue[i+1:]...)
			},
			"": func(t *rapid.T) {
				require.LessOrEqual(t, len(queue), limit)
				for i := 1; i < len(queue); i++ {
					require.LessOrEqual(t, queue[i-1].round, queue[i].round)
				}
			},
		})
	})
}
