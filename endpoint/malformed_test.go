package endpoint_test

import (
	"encoding/hex"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"

	"coapproxy/endpoint"
	"coapproxy/endpoint/memnet"
	"coapproxy/wire"
)

// RFC 7252 §3, §4.2 and §4.3, byte by byte: a CON that cannot be processed is
// rejected with a RST, everything else with silence.
func TestMalformedMessages(t *testing.T) {
	const silence = ""
	for _, tt := range []struct {
		name, datagram, reply string
	}{
		{"nothing", "", silence},
		{"three bytes", "400100", silence},
		{"version 0", "00010007", silence},
		{"version 2", "80010007", silence},
		{"version 3, as the first byte of many other protocols", "c0010007", silence},
		{"ping", "40000007", "70000007"},
		{"empty NON", "50000007", silence},
		{"empty ACK", "60000007", silence},
		{"RST", "70000007", silence},
		{"ping with a Token", "4100000701", "70000007"},
		{"ping with a payload", "40000007ff01", "70000007"},
		{"ping with one byte more", "4000000700", "70000007"},
		{"empty NON with one byte more", "5000000700", silence},
		{"RST with a payload", "70000007ff01", silence},
		{"RST with a code", "70450007", silence},
		{"ACK with a request", "60010007", silence},
		{"reserved class 1, CON", "40200007", "70000007"},
		{"reserved class 1, NON", "50200007", silence},
		{"reserved class 1, ACK", "60200007", silence},
		{"reserved class 6, CON", "40c00007", "70000007"},
		{"reserved class 7, CON", "40e10007", "70000007"},
		{"reserved class 7, NON", "50e10007", silence},
		{"Token length 15, CON", "4f010007", "70000007"},
		{"Token length 15, NON", "5f010007", silence},
		{"Token cut off, CON", "44010007010203", "70000007"},
		{"Token cut off, NON", "54010007010203", silence},
		{"Token length cut off, CON", "4e01000701", "70000007"},
		{"option cut off, CON", "40010007b4", "70000007"},
		{"option cut off, NON", "50010007b4", silence},
		{"option delta 15, CON", "40010007f1", "70000007"},
		{"option length 15, CON", "400100071f", "70000007"},
		{"extended option delta cut off, CON", "40010007d0", "70000007"},
		{"payload marker without payload, CON", "40010007ff", "70000007"},
		{"payload marker without payload, NON", "50010007ff", silence},
		{"payload marker without payload, ACK", "60450007ff", silence},
		{"response nobody asked for, CON", "40450007", "70000007"},
		{"response nobody asked for, NON", "50450007", silence},
		{"response nobody asked for, ACK", "60450007", silence},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBed(t, func(t *testing.T, b *bed) {
				e := b.serve(handlerFunc(func(*endpoint.Reception, *wire.Message) { t.Error("delivered") }))
				client := b.raw(clientAddr, serverAddr)
				datagram, err := hex.DecodeString(tt.datagram)
				require.NoError(t, err)
				for range 2 { // nothing of it is remembered
					client.sendBytes(serverAddr, datagram)
					var replies []string
					for _, d := range client.conn.Received() {
						replies = append(replies, hex.EncodeToString(d.Data))
					}
					require.Equal(t, tt.reply, strings.Join(replies, ","))
				}
				entries, _ := e.Remembered()
				require.Zero(t, entries)
				resets := uint64(2)
				if tt.reply == silence {
					resets = 0
				}
				require.Equal(t, resets, b.stats.ResetsSent.Load())
				require.EqualValues(t, 2, b.stats.Received.Load())
			})
		})
	}
}

// A request is nothing for a port that serves nobody.
func TestRequestToClientPort(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		b.serve(nil, func(c *endpoint.Config) {
			c.Requests = nil
			c.Responses = responsesFunc(func(endpoint.Peer, *wire.Message) bool { return true })
		})
		peer := b.raw(clientAddr, serverAddr)
		peer.send(con(codes.GET, 1))
		requireEmpty(t, message.Reset, 1, peer.one())
		peer.send(non(codes.GET, 2))
		peer.none()
	})
}

// RFC 7252 §4.2: a datagram that does not fit the receive buffer is a format
// error; what was cut off might have been anything.
func TestTruncatedDatagram(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		conn, err := b.network.Host(serverAddr.Addr()).Listen(serverAddr, memnet.Options{MaxDatagram: 20})
		require.NoError(t, err)
		b.serveOn(conn, answering{})
		client := b.raw(clientAddr, serverAddr)
		m := con(codes.PUT, 1)
		m.Payload = make([]byte, 13)
		client.send(m)
		require.Equal(t, codes.Content, client.one().Code)
		m.ID, m.Payload = 2, make([]byte, 14)
		client.send(m)
		requireEmpty(t, message.Reset, 2, client.one())
		m.ID, m.Type = 3, message.NonConfirmable
		client.send(m)
		client.none()
		require.EqualValues(t, 2, b.stats.Malformed.Load())
	})
}

// failingConn fails to read a few times before each time it reads something.
type failingConn struct {
	*memnet.Conn
	failures, failed int
}

func (c *failingConn) ReadBatch(batch []endpoint.Datagram) (int, error) {
	if c.failed < c.failures {
		c.failed++
		return 0, &net.OpError{Op: "read", Err: syscall.ENOMEM}
	}
	c.failed = 0
	return c.Conn.ReadBatch(batch)
}

// Reading goes on after an error, and less eagerly the longer it lasts.
func TestReadErrors(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		core, logs := observer.New(zap.WarnLevel)
		b.serveOn(&failingConn{Conn: b.listen(serverAddr), failures: 12}, answering{}, func(c *endpoint.Config) { c.Log = zap.New(core) })
		client := b.raw(clientAddr, serverAddr)
		for id := range uint16(3) {
			pass(3023*time.Millisecond - 1) // 1, 2, 4 ... 512 ms, and 1 s twice
			client.send(con(codes.GET, id))
			client.none()
			pass(1)
			require.Equal(t, codes.Content, client.one().Code)
			require.GreaterOrEqual(t, logs.Len(), 12*int(id+1))
		}
		require.Equal(t, "read failed", logs.All()[0].Message)
	})
}

// The connection is closed when the context ends, and Serve ends, also when it
// waits after an error.
func TestServeEndsWithContext(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		conn := b.listen(serverAddr)
		b.serveOn(conn, answering{})
		b.serveOn(&failingConn{Conn: b.listen(strange), failures: 1 << 30}, answering{}, func(c *endpoint.Config) { c.Log = zap.NewNop() })
		pass(time.Minute)
		b.end()
		b.wg.Wait()
		require.ErrorIs(t, conn.Close(), net.ErrClosed)
	})
}

// Closing the connection ends Serve, too.
func TestServeEndsWithConnection(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		conn := b.listen(netip.AddrPortFrom(serverAddr.Addr(), 1))
		e := endpoint.New(endpoint.Config{Conn: conn, Engine: b.engine, Stats: b.stats, Log: zap.NewNop()})
		ended := make(chan error)
		go func() { ended <- e.Serve(b.ctx) }()
		require.NoError(t, conn.Close())
		require.NoError(t, <-ended)
	})
}
