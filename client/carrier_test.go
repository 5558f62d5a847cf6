package client

import (
	"context"
	"io"
	"net"
	"net/netip"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/endpoint"
	"coapproxy/wire"
)

// dialTCP returns a client and the server's end of its connection, on which the
// server has sent what is given.
func dialTCP(t *testing.T, first string) (*Client, net.Conn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	t.Cleanup(func() { _ = l.Close() })
	accepted := make(chan net.Conn, 1)
	go func() {
		conn, err := l.Accept()
		if err == nil {
			_, err = io.WriteString(conn, first)
		}
		if err == nil {
			accepted <- conn
		}
		close(accepted)
	}()
	c, err := Dial(t.Context(), l.Addr().(*net.TCPAddr).AddrPort(), Config{Way: Way{Scheme: "coap+tcp"}})
	require.NoError(t, err)
	t.Cleanup(c.Close)
	server := <-accepted
	require.NotNil(t, server)
	t.Cleanup(func() { _ = server.Close() })
	return c, server
}

const emptyCSM = "\x00\xe1"

// readCSM takes what the client says of itself.
func readCSM(t *testing.T, server net.Conn) {
	t.Helper()
	var head [2]byte
	_, err := io.ReadFull(server, head[:])
	require.NoError(t, err)
	require.Equal(t, byte(0xe1), head[1])
	_, err = io.CopyN(io.Discard, server, int64(head[0]>>4))
	require.NoError(t, err)
}

func TestConnection(t *testing.T) {
	ask := func(ctx context.Context, c *Client) ([]*Response, error) {
		return collect(ctx, t, c, &Request{Method: codes.GET, URI: "coap+tcp://" + c.Peer().String() + "/x", Confirmable: true})
	}
	// serve answers one request with what is given; the Token goes where it is.
	serve := func(t *testing.T, server net.Conn, answer func(token []byte)) {
		readCSM(t, server)
		var m [12]byte // lengths, Code, Token, Uri-Path: x
		_, err := io.ReadFull(server, m[:])
		require.NoError(t, err)
		require.Equal(t, []byte{0x28, 1}, m[:2])
		answer(m[2:10])
	}
	t.Run("a response", func(t *testing.T) {
		c, server := dialTCP(t, emptyCSM)
		done := make(chan struct{})
		go func() {
			defer close(done)
			serve(t, server, func(token []byte) { _, _ = server.Write(append(append([]byte{0x28, 0x45}, token...), 0xff, 'x')) })
		}()
		got, err := ask(t.Context(), c)
		<-done
		require.NoError(t, err)
		require.Len(t, got, 1)
		require.Equal(t, "x", string(got[0].Payload))
		require.Equal(t, "coap+tcp", got[0].Scheme)
	})
	t.Run("the connection ends", func(t *testing.T) {
		c, server := dialTCP(t, emptyCSM)
		done := make(chan struct{})
		go func() {
			defer close(done)
			serve(t, server, func([]byte) { _ = server.Close() })
		}()
		_, err := ask(t.Context(), c)
		<-done
		require.ErrorIs(t, err, endpoint.ErrUndeliverable)
		require.ErrorContains(t, err, "the connection has ended")
		_, err = ask(t.Context(), c)
		require.ErrorContains(t, err, "the connection has ended", "and stays so")
	})
	t.Run("another server", func(t *testing.T) {
		c, server := dialTCP(t, emptyCSM)
		readCSM(t, server)
		_, err := c.send(endpoint.PeerOf(netip.MustParseAddrPort("127.0.0.1:9")), &wire.Message{Code: codes.GET}, 0, 1)
		require.ErrorIs(t, err, errOtherPlace)
	})
	t.Run("no connection", func(t *testing.T) {
		_, err := Dial(t.Context(), netip.MustParseAddrPort("127.0.0.1:1"), Config{Way: Way{Scheme: "coap+tcp"}})
		require.ErrorContains(t, err, "refused")
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		defer l.Close()
		canceled, cancel := context.WithCancel(t.Context())
		go func() {
			conn, err := l.Accept()
			if err == nil {
				_, _ = conn.Read(make([]byte, 1)) // and no CSM
				cancel()
				_, _ = io.Copy(io.Discard, conn)
				_ = conn.Close()
			}
		}()
		_, err = Dial(canceled, l.Addr().(*net.TCPAddr).AddrPort(), Config{Way: Way{Scheme: "coap+tcp"}})
		require.ErrorIs(t, err, context.Canceled)
	})
	t.Run("another scheme than the server's", func(t *testing.T) {
		c, _ := dialTCP(t, emptyCSM)
		_, err := collect(t.Context(), t, c, &Request{Method: codes.GET, URI: "coaps://192.0.2.1/x", Confirmable: true})
		require.ErrorIs(t, err, ErrRequest)
	})
}
