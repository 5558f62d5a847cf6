package main

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"coapproxy/test/bench/internal/packet"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func noTime() time.Duration { return 0 }

func TestEveryMemberAnswersOnceWithinTheSpread(t *testing.T) {
	const count, spread = 50, 20
	m := &members{clock: noTime, spread: spread, source: make([][]byte, count), ring: make([][]answer, spread+2)}
	m.take(nil, 7) // the clock has run for a while
	for range 2 {
		m.schedule(&inquiry{})
	}
	heard := make([]int, count)
	for now := int64(8); now <= 8+spread; now++ {
		for _, a := range m.take(nil, now) {
			heard[a.member]++
		}
	}
	require.Equal(t, slices.Repeat([]int{2}, count), heard)
	require.Empty(t, m.take(nil, 100))
}

func TestHandle(t *testing.T) {
	s := &settings{members: 3, timeout: 1, duration: -1} // no exchange follows
	a := &asker{crowd: newCrowd(s, noTime), running: map[uint32]*exchange{5: {heard: make([]bool, 3)}}}
	message := func(code byte, token uint32, member uint32) []byte {
		b := packet.AppendHeader(nil, packet.NON, code, 1, binary.BigEndian.AppendUint32(nil, token))
		b = append(b, 0xff)
		b = binary.BigEndian.AppendUint64(b, uint64(time.Millisecond))
		b = binary.BigEndian.AppendUint32(b, member)
		return append(b, 0, 0, 0, 0)
	}
	for _, b := range [][]byte{
		message(packet.Content, 5, 0),
		message(packet.Content, 5, 0), // a duplicate
		message(packet.Content, 6, 1), // another exchange
		message(packet.Content, 5, 3), // no such member
		message(0x80, 5, 1),           // the proxy's own
		{0x40}, {0x60, 0, 0, 1},
	} {
		require.NoError(t, a.handle(b, 3*time.Millisecond))
	}
	require.EqualValues(t, 1, a.total.Responses)
	require.EqualValues(t, 1, a.total.Duplicates)
	require.EqualValues(t, 2, a.total.Errors)
	require.InDelta(t, 2*time.Millisecond, a.latency.Quantile(0.5), float64(time.Millisecond)/16)

	require.NoError(t, a.handle(message(packet.Content, 5, 1), time.Second+lateBy+1))
	require.EqualValues(t, 1, a.total.Late)
	require.Zero(t, a.total.Exchanges)
	require.NoError(t, a.handle(message(packet.Content, 5, 2), time.Second))
	require.EqualValues(t, 1, a.total.Exchanges)
	require.EqualValues(t, 1, a.total.Complete)
	require.Empty(t, a.running)

	a.running[9] = &exchange{heard: make([]bool, 3)}
	require.NoError(t, a.expire(time.Second))
	require.Len(t, a.running, 1)
	require.NoError(t, a.expire(2*time.Second))
	require.Empty(t, a.running)
	require.EqualValues(t, 2, a.total.Exchanges)
	require.EqualValues(t, 1, a.total.Complete)
}

// relay is a proxy for the test: it sends requests to the group's port on this host and responses back.
func relay(t *testing.T, group netip.AddrPort) netip.AddrPort {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	done := make(chan struct{})
	t.Cleanup(func() { conn.Close(); <-done })
	go func() {
		defer close(done)
		clients := map[string]netip.AddrPort{}
		b := make([]byte, 2048)
		for {
			n, from, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			h, _ := packet.Parse(b[:n])
			to := clients[string(h.Token)]
			if packet.IsRequest(h.Code) {
				clients[string(h.Token)] = from
				to = netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), group.Port())
			}
			_, _ = conn.WriteToUDPAddrPort(b[:n], to)
		}
	}()
	return netip.MustParseAddrPort(conn.LocalAddr().String())
}

func TestRun(t *testing.T) {
	probe, err := net.ListenUDP("udp4", &net.UDPAddr{})
	require.NoError(t, err)
	group := netip.AddrPortFrom(netip.MustParseAddr("224.0.1.187"), uint16(probe.LocalAddr().(*net.UDPAddr).Port))
	probe.Close()
	s := &settings{
		to: relay(t, group), group: group, ifname: "lo", members: 12, spread: 30 * time.Millisecond,
		clients: 3, window: 2, timeout: 1, duration: 300 * time.Millisecond,
	}
	require.NoError(t, s.check())
	r, err := run(s)
	require.NoError(t, err)
	require.Positive(t, r.Exchanges)
	require.Equal(t, r.Exchanges, r.Complete)
	require.Equal(t, r.Exchanges*12, r.Responses)
	require.Zero(t, r.Lost())
	require.Zero(t, r.Duplicates)
	require.Positive(t, r.P50)
}

func TestCheck(t *testing.T) {
	good := settings{
		to: netip.MustParseAddrPort("127.0.0.1:1"), group: netip.MustParseAddrPort("224.0.1.187:1"),
		members: 1, clients: 1, window: 1, timeout: 1,
	}
	require.NoError(t, good.check())
	for _, spoil := range []func(*settings){
		func(s *settings) { s.to = netip.AddrPort{} },
		func(s *settings) { s.group = s.to },
		func(s *settings) { s.members = 0 },
		func(s *settings) { s.spread = -1 },
		func(s *settings) { s.window = 0 },
		func(s *settings) { s.timeout = 256 },
	} {
		s := good
		spoil(&s)
		require.Error(t, s.check())
	}
}
