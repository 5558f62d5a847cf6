package proxy

import (
	"testing"

	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"coapproxy/endpoint"
)

// The IDs that are known are those that were added last, whatever was between them.
func TestRelayedIDs(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		var s relayedIDs
		var all []uint16
		limit := rapid.IntRange(1, 40).Draw(t, "limit")
		id := rapid.Uint16().Draw(t, "first")
		for range rapid.IntRange(1, 100).Draw(t, "responses") {
			s.add(id, limit)
			all = append(all, id)
			id += rapid.SampledFrom([]uint16{1, 1, 1, 2, 7}).Draw(t, "step") // others take IDs, too
		}
		known := make(map[uint16]bool)
		for _, id := range all[max(len(all)-limit, 0):] {
			known[id] = true
		}
		for candidate := all[0] - 3; candidate != id+3; candidate++ {
			require.Equal(t, known[candidate], s.has(candidate), "%d of %v", candidate, all)
		}
	})
}

// A RST stops the exchange that the message belongs to, and no other of the client.
func TestRelayingTellsExchangesApart(t *testing.T) {
	r := make(relaying)
	var client endpoint.Origin
	a, b := &groupRequest{key: clientToken{origin: client, token: "a"}}, &groupRequest{key: clientToken{origin: client, token: "b"}}
	r.add(a)
	r.add(b)
	a.watched.add(1, 10)
	b.watched.add(2, 10)
	a.watched.add(3, 10)
	require.Same(t, a, r.who(client, 1))
	require.Same(t, b, r.who(client, 2))
	require.Same(t, a, r.who(client, 3))
	require.Nil(t, r.who(client, 4))
	r.remove(a)
	r.remove(a)
	require.Nil(t, r.who(client, 1))
	require.Same(t, b, r.who(client, 2))
	r.remove(b)
	require.Empty(t, r)
}
