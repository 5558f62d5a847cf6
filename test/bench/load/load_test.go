package main

import (
	"net"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/udp/coder"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"coapproxy/test/bench/internal/packet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// peer answers each datagram with those that answer returns, until the test ends.
func peer(t *testing.T, answer func(n int, b []byte) [][]byte) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	done := make(chan struct{})
	t.Cleanup(func() { conn.Close(); <-done })
	go func() {
		defer close(done)
		b := make([]byte, 2048)
		for n := 0; ; n++ {
			k, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			for _, a := range answer(n, b[:k]) {
				_, _ = conn.WriteToUDPAddrPort(a, from)
			}
		}
	}()
	return netip.MustParseAddrPort(conn.LocalAddr().String())
}

func response(typ, code byte, b []byte) []byte {
	h, _ := packet.Parse(b)
	return packet.AppendHeader(nil, typ, code, h.ID, h.Token)
}

func TestCounts(t *testing.T) {
	// Of the first four requests one is lost, one refused, one answered twice and one reset.
	to := peer(t, func(n int, b []byte) [][]byte {
		switch n {
		case 0:
			return nil
		case 1:
			return [][]byte{response(packet.NON, 0xa4, b)}
		case 2:
			r := response(packet.NON, packet.Content, b)
			return [][]byte{r, r, {0xff}}
		case 3:
			return [][]byte{{0x70, 0, b[2], b[3]}}
		}
		return [][]byte{response(packet.NON, packet.Content, b)}
	})
	r, err := run(&settings{to: to, uri: "coap://127.0.0.1/x/{client}", clients: 4, window: 2, duration: 300 * time.Millisecond, timeout: 100 * time.Millisecond})
	require.NoError(t, err)
	require.GreaterOrEqual(t, r.Losses, uint64(2)) // a busy machine may lose more
	require.Equal(t, map[string]uint64{"5.04": 1, "RST": 1}, r.Errors)
	require.GreaterOrEqual(t, r.Strays, uint64(2))
	require.Greater(t, r.Exchanges, uint64(8))
	require.Positive(t, r.P50)
	require.GreaterOrEqual(t, r.P99, r.P50)
}

func TestSeparateResponseIsAcknowledged(t *testing.T) {
	var acks atomic.Int32
	to := peer(t, func(_ int, b []byte) [][]byte {
		if h, _ := packet.Parse(b); h.Type == packet.ACK {
			acks.Add(1)
			return nil
		}
		return [][]byte{{0x60, 0, b[2], b[3]}, response(packet.CON, packet.Content, b)}
	})
	r, err := run(&settings{to: to, uri: "coap://127.0.0.1/x", con: true, clients: 1, window: 1, once: true, timeout: time.Second})
	require.NoError(t, err)
	require.EqualValues(t, 1, r.Exchanges)
	require.EqualValues(t, 1, r.Burst)
	require.Eventually(t, func() bool { return acks.Load() == 1 }, time.Second, time.Millisecond)
}

func TestWarmUp(t *testing.T) {
	to := peer(t, func(n int, b []byte) [][]byte {
		if n == 70 {
			return nil
		}
		return [][]byte{response(packet.NON, packet.Content, b)}
	})
	lost, err := warmUp(&settings{to: to, uri: "coap://127.0.0.1/x", warm: 200, timeout: time.Second})
	require.NoError(t, err)
	require.EqualValues(t, 1, lost)
	require.Equal(t, [4]byte{127, 3, 1, 2}, endpoint(1<<16|1<<8|2))
}

func TestRequest(t *testing.T) {
	s := &settings{uri: "coap://127.0.0.1:5700/x/{client}", con: true}
	m := message.Message{Options: make(message.Options, 0, 8)}
	_, err := coder.DefaultCoder.Decode(s.request(7), &m)
	require.NoError(t, err)
	require.Equal(t, message.Confirmable, m.Type)
	uri, err := m.Options.GetString(message.ProxyURI)
	require.NoError(t, err)
	require.Equal(t, "coap://127.0.0.1:5700/x/7", uri)

	s.direct = true
	m = message.Message{Options: make(message.Options, 0, 8)}
	_, err = coder.DefaultCoder.Decode(s.request(7), &m)
	require.NoError(t, err)
	path, err := m.Options.Path()
	require.NoError(t, err)
	require.Equal(t, "/x/7", path)
}

func TestCheck(t *testing.T) {
	good := settings{to: netip.MustParseAddrPort("127.0.0.1:1"), uri: "coap://127.0.0.1/x", clients: 1, window: 1}
	require.NoError(t, good.check())
	for _, spoil := range []func(*settings){
		func(s *settings) { s.to = netip.MustParseAddrPort("[::1]:1") },
		func(s *settings) { s.clients = 0 },
		func(s *settings) { s.window = 257 },
		func(s *settings) { s.warm = -1 },
		func(s *settings) { s.uri = strings.Repeat("x", 251) },
		func(s *settings) { s.uri = "coap://[" },
	} {
		s := good
		spoil(&s)
		require.Error(t, s.check())
	}
}
