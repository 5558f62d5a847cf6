package endpoint_test

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/endpoint"
	"coapproxy/wire"
)

// GP-94: the round trip to a peer is that of messages sent once, smoothed (RFC 6298
// §2), and the handler learns it with the next request.
func TestRoundTrips(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		table, err := endpoint.NewRoundTrips(2)
		require.NoError(t, err)
		table.Measure(true)
		var seen []time.Duration
		e := b.serve(handlerFunc(func(rx *endpoint.Reception, m *wire.Message) {
			seen = append(seen, rx.RoundTrip())
			var in endpoint.Incoming
			in.Accept(rx, m)
			in.Finish()
		}), func(c *endpoint.Config) { c.RoundTrips = table })
		peer := b.raw(clientAddr, serverAddr)
		peer.send(non(codes.GET, 1))

		acked := func(after time.Duration) {
			id := sendCON(t, b, e, watcherFuncs{})
			pass(after)
			peer.send(emptyOf(message.Acknowledgement, id))
			peer.got()
		}
		acked(1600 * time.Millisecond)
		peer.send(non(codes.GET, 2))
		acked(800 * time.Millisecond)
		peer.send(non(codes.GET, 3))
		acked(5 * time.Second) // after a repetition: nobody knows which one it is for
		// A response that took its time says nothing about the way.
		id := sendCON(t, b, e, watcherFuncs{})
		pass(time.Second)
		peer.send(wire.Message{Type: message.Acknowledgement, Code: codes.Content, ID: id, Token: []byte("x")})
		peer.send(non(codes.GET, 4))
		require.Equal(t, []time.Duration{0, 1600 * time.Millisecond, 1500 * time.Millisecond, 1500 * time.Millisecond}, seen)

		for i := range 2 { // the table is bounded
			table.Note(netip.AddrPortFrom(netip.MustParseAddr("203.0.113.1"), uint16(i+1)), time.Second)
		}
		require.Zero(t, table.Of(clientAddr))
		require.Equal(t, time.Second, table.Of(netip.MustParseAddrPort("203.0.113.1:1")))
		require.Zero(t, (*endpoint.RoundTrips)(nil).Of(clientAddr))
	})
}

// watcherFuncs takes no interest.
type watcherFuncs struct{}

func (watcherFuncs) Acknowledged(uint16)  {}
func (watcherFuncs) Failed(uint16, error) {}

// GP-94: what the kernel knows of a TCP connection counts.
func TestTCPRoundTrip(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	client, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	defer client.Close()
	server, err := l.Accept()
	require.NoError(t, err)
	defer server.Close()
	d := endpoint.TCPRoundTrip(server)
	require.Positive(t, d)
	require.Less(t, d, time.Second)
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	require.Zero(t, endpoint.TCPRoundTrip(a))
}
