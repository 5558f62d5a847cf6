package main

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/test/bench/internal/packet"
)

func TestSwap(t *testing.T) {
	r := &relay[netip.AddrPort]{group: netip.MustParseAddrPort("224.0.1.187:5683")}
	client := netip.MustParseAddrPort("127.0.0.1:4000")
	member := netip.MustParseAddrPort("127.1.0.1:5683")
	token := []byte{9, 8, 7, 6}

	b := packet.AppendHeader(nil, packet.NON, packet.GET, 5, token)
	to, ok := r.swap(b, client)
	require.True(t, ok)
	require.Equal(t, r.group, to)
	h, ok := packet.Parse(b)
	require.True(t, ok)
	require.NotEqual(t, token, h.Token)

	// Two members answer with the same Message ID; the client can tell the messages apart.
	seen := map[uint16]bool{}
	for range 2 {
		response := packet.AppendHeader(nil, packet.NON, packet.Content, 77, h.Token)
		to, ok := r.swap(response, member)
		require.True(t, ok)
		require.Equal(t, client, to)
		got, ok := packet.Parse(response)
		require.True(t, ok)
		require.Equal(t, token, got.Token)
		require.False(t, seen[got.ID])
		seen[got.ID] = true
	}

	for _, bad := range [][]byte{nil, {0x40, 1, 0, 0}, {0x44, 1, 0, 0, 1}, {0x4f, 1, 0, 0}, packet.AppendHeader(nil, packet.NON, packet.Content, 1, []byte{77, 77})} {
		_, ok := r.swap(bad, client)
		require.False(t, ok, "% x", bad)
	}
}
