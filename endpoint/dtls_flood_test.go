package endpoint

import (
	"container/list"
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"github.com/stretchr/testify/require"
)

// withCookie returns the second ClientHello after a HelloVerifyRequest
// (RFC 6347 §4.2.1).
func withCookie(t *testing.T, hello, verify []byte) []byte {
	const record, handshake, version, random = 13, 12, 2, 32
	at := record + handshake + version
	require.Greater(t, len(verify), at)
	cookie := verify[at+1 : at+1+int(verify[at])]
	at = record + handshake + version + random
	at += 1 + int(hello[at]) // the session ID
	require.Zero(t, hello[at])
	out := append(append(append([]byte{}, hello[:at]...), byte(len(cookie))), cookie...)
	out = append(out, hello[at+1:]...)
	binary.BigEndian.PutUint16(out[9:], 1) // sequence number of the record
	binary.BigEndian.PutUint16(out[11:], uint16(len(out)-record))
	length := uint32(len(out) - record - handshake)
	for _, field := range []int{record + 1, record + 9} { // of the message and of the fragment
		out[field], out[field+1], out[field+2] = byte(length>>16), byte(length>>8), byte(length)
	}
	binary.BigEndian.PutUint16(out[record+4:], 1) // number of the message
	return out
}

// stall begins a handshake from an address, shows the cookie and then says nothing.
func stall(t *testing.T, hello []byte, from net.IP, to *net.UDPAddr) {
	buf := make([]byte, 4096)
	c, err := net.DialUDP("udp", &net.UDPAddr{IP: from}, to)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	_, err = c.Write(hello)
	require.NoError(t, err)
	require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
	n, err := c.Read(buf)
	require.NoError(t, err)
	_, err = c.Write(withCookie(t, hello, buf[:n]))
	require.NoError(t, err)
	_, err = c.Read(buf) // the flight that it does not answer
	require.NoError(t, err)
}

// A few addresses that show their cookies and then say nothing keep nobody out.
func TestDTLSStalledHandshakes(t *testing.T) {
	b := newDTLSBench(t, DTLSCredentials{Key: meterKey}, func(c *DTLSConfig) { c.Limits.Handshakes = 4 })
	hello := captureHello(t)
	to, err := net.ResolveUDPAddr("udp", b.addr())
	require.NoError(t, err)
	for range 4 {
		stall(t, hello, net.IPv4(127, 0, 0, 2), to)
	}
	refused := b.config.Stats.Refused.Load()
	require.NoError(t, b.ask(pskClient("meter", "secret")))
	require.Greater(t, b.config.Stats.Refused.Load(), refused, "one has given way")
}

// Any number of addresses that do so keep nobody out who has been here before.
func TestDTLSFamiliarClients(t *testing.T) {
	b := newDTLSBench(t, DTLSCredentials{Key: meterKey}, func(c *DTLSConfig) { c.Limits.Handshakes = 4 })
	require.NoError(t, b.ask(pskClient("meter", "secret")))
	hello := captureHello(t)
	to, err := net.ResolveUDPAddr("udp", b.addr())
	require.NoError(t, err)
	for i := range 4 {
		stall(t, hello, net.IPv4(127, 0, 0, byte(2+i)), to)
	}
	refused := b.config.Stats.Refused.Load()
	require.NoError(t, b.ask(pskClient("meter", "secret")))
	require.EqualValues(t, refused+1, b.config.Stats.Refused.Load(), "one has given way")
}

// Who gives way: the oldest of those that have most, or a slow one, or nobody.
func TestDTLSMakeWay(t *testing.T) {
	for name, tt := range map[string]struct {
		addrs  []string // of handshakes, the oldest first
		known  []string // from where somebody has proven who it is
		slow   int      // so many of them are
		closes int      // so many that gave way have not ended
		want   int      // index, -1: nobody
	}{
		"the crowd":          {addrs: []string{"192.0.2.2", "192.0.2.1", "192.0.2.1", "192.0.2.1"}, want: 1},
		"a /64 is one":       {addrs: []string{"192.0.2.2", "2001:db8::1", "2001:db8::2", "2001:db8::3"}, want: 1},
		"nobody has most":    {addrs: []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"}, want: -1},
		"a slow one":         {addrs: []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"}, slow: 1, want: 0},
		"its own are most":   {addrs: []string{"192.0.2.9", "192.0.2.9", "192.0.2.9", "192.0.2.1"}, want: -1},
		"a stranger":         {addrs: []string{"192.0.2.3", "192.0.2.1", "192.0.2.2", "192.0.2.4"}, known: []string{"192.0.2.3", "192.0.2.9"}, want: 1},
		"nobody strange":     {addrs: []string{"192.0.2.1", "192.0.2.2"}, known: []string{"192.0.2.1", "192.0.2.2", "192.0.2.9"}, want: -1},
		"to a stranger":      {addrs: []string{"192.0.2.1", "192.0.2.2", "192.0.2.3", "192.0.2.4"}, known: []string{"192.0.2.1"}, want: -1},
		"too many are going": {addrs: []string{"192.0.2.1", "192.0.2.1", "192.0.2.1", "192.0.2.1"}, closes: 4, want: -1},
	} {
		t.Run(name, func(t *testing.T) {
			d := newTable(t, tt.known...)
			d.handshakes = len(tt.addrs) + tt.closes
			var all []*list.Element
			for i, a := range tt.addrs {
				s := &dtlsSession{owner: d, addr: netip.AddrPortFrom(netip.MustParseAddr(a), 1), begun: time.Now(), cancel: func() {}}
				if i < tt.slow {
					s.begun = s.begun.Add(-slowHandshake)
				}
				s.element = d.proving.PushBack(s)
				all = append(all, s.element)
			}
			require.Equal(t, tt.want >= 0, d.makeWay(peerPrefix(netip.MustParseAddr("192.0.2.9"))))
			d.wg.Wait()
			for i, e := range all {
				require.Equal(t, i == tt.want, e.Value.(*dtlsSession).element == nil, i)
			}
		})
	}
}

// newTable is what a DTLSConn of four handshakes knows of them, and from where somebody
// has proven who it is.
func newTable(t *testing.T, known ...string) *DTLSConn {
	familiar, err := simplelru.NewLRU[netip.Prefix, struct{}](8, nil)
	require.NoError(t, err)
	for _, a := range known {
		familiar.Add(peerPrefix(netip.MustParseAddr(a)), struct{}{})
	}
	return &DTLSConn{DTLSConfig: DTLSConfig{Limits: DTLSLimits{Handshakes: 4}, Stats: &DTLSStats{}}, familiar: familiar}
}

// So many that gave way and have not ended yet are all there may be.
func TestDTLSOpeningIsBounded(t *testing.T) {
	d := newTable(t, "192.0.2.9")
	for from, most := range map[string]int{"192.0.2.1:1": 8, "192.0.2.9:1": 16} {
		d.opening = most
		require.Nil(t, d.accept(netip.MustParseAddrPort(from), Path{}))
	}
	require.EqualValues(t, 2, d.Stats.Refused.Load())
}

// Forged addresses, however many, take neither the time that a client needs to show its
// cookie nor the places of those who have been here before.
func TestDTLSForgedHellos(t *testing.T) {
	b := newDTLSBench(t, DTLSCredentials{Key: meterKey}, func(c *DTLSConfig) { c.Limits.Handshakes = 4 })
	require.NoError(t, b.ask(pskClient("meter", "secret")))
	hello := captureHello(t)
	to, err := net.ResolveUDPAddr("udp", b.addr())
	require.NoError(t, err)
	var forgers []*net.UDPConn
	for i := range 20 {
		c, err := net.DialUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 1, byte(1+i))}, to)
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		forgers = append(forgers, c)
	}
	ctx, cancel := context.WithCancel(t.Context())
	var flood sync.WaitGroup
	defer func() { cancel(); flood.Wait() }()
	flood.Go(func() {
		for i := 0; ctx.Err() == nil; i++ {
			_, _ = forgers[i%len(forgers)].Write(hello)
			time.Sleep(100 * time.Microsecond) // real sockets: there is no virtual time
		}
	})
	before := b.config.Stats.Handshakes.Load()
	began := time.Now()
	for range 5 {
		require.NoError(t, b.ask(pskClient("meter", "secret")))
	}
	begun := b.config.Stats.Handshakes.Load() - before
	require.LessOrEqual(t, begun, uint64(5+4*(2+time.Since(began)/helloTime)), "four at a time")
}
