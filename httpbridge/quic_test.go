package httpbridge

import (
	"context"
	"errors"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/stretchr/testify/require"
)

// A request over HTTP/3 has no more time for its header than over the other versions,
// however many streams it is begun on (HC-97).
func TestSlowHeadersOverHTTP3(t *testing.T) {
	a := newAuthority(t)
	f, _ := newFront(t, nil)
	addr := serve(t, f, func(c *ListenConfig) {
		a.server(t)(c)
		c.HeaderTimeout = 500 * time.Millisecond
	})
	config := a.client()
	config.NextProtos, config.ServerName = []string{http3.NextProtoH3}, "localhost"
	c, err := quic.DialAddr(t.Context(), addr, config, nil)
	require.NoError(t, err)
	defer func() { _ = c.CloseWithError(0, "") }()
	for range 3 {
		stream, err := c.OpenStream()
		require.NoError(t, err)
		_, err = stream.Write([]byte{1, 20, 0}) // the beginning of a HEADERS frame
		require.NoError(t, err)
		require.NoError(t, stream.SetReadDeadline(time.Now().Add(20*time.Second)))
		_, err = stream.Read(make([]byte, 10))
		var reset *quic.StreamError
		require.ErrorAs(t, err, &reset)
		require.True(t, reset.Remote)
		require.EqualValues(t, http3.ErrCodeRequestIncomplete, reset.ErrorCode)
	}
	require.NoError(t, c.Context().Err(), "the connection is fine")
}

// deaf is a socket of a client that never hears anything, as one with a forged address.
type deaf struct {
	net.PacketConn
	retries *atomic.Int64 // that came for it
}

func (d deaf) ReadFrom(p []byte) (int, net.Addr, error) {
	for {
		n, _, err := d.PacketConn.ReadFrom(p)
		if err != nil {
			return n, nil, err
		}
		if p[0]&0xf0 == 0xf0 { // a long header of type Retry
			d.retries.Add(1)
		}
	}
}

// Forged addresses neither fill the memory nor keep anybody out: when handshakes pile
// up, a client has to show that it hears us, and nothing is kept until it does (HC-97).
func TestForgedAddressesOverHTTP3(t *testing.T) {
	a := newAuthority(t)
	f, _ := newFront(t, nil)
	addr := serve(t, f, func(c *ListenConfig) {
		a.server(t)(c)
		c.MaxPeerConns, c.HeaderTimeout = verifyAbove+5, time.Minute
	})
	server, err := net.ResolveUDPAddr("udp", addr)
	require.NoError(t, err)
	config := a.client()
	config.NextProtos, config.ServerName = []string{http3.NextProtoH3}, "localhost"
	ctx, cancel := context.WithCancel(t.Context())
	var forgers sync.WaitGroup
	defer func() { cancel(); forgers.Wait() }()
	const more = 20
	var retries atomic.Int64
	for range verifyAbove + more {
		socket, err := net.ListenPacket("udp", "127.0.0.1:0")
		require.NoError(t, err)
		forgers.Go(func() {
			transport := &quic.Transport{Conn: deaf{socket, &retries}}
			c, err := transport.Dial(ctx, server, config, &quic.Config{HandshakeIdleTimeout: time.Minute})
			if err == nil {
				_ = c.CloseWithError(0, "")
			}
			_ = transport.Close()
			_ = socket.Close()
		})
	}
	require.Eventually(t, func() bool { return retries.Load() >= more }, 20*time.Second, time.Millisecond)
	require.EqualValues(t, verifyAbove, f.Stats.Connections.Load())
	w, _ := get(t, client3(t, a.client()), "https://"+addr, someTarget)
	require.Equal(t, 200, w.StatusCode)
	cancel()
	forgers.Wait()
}

// However many connections a client opens, the requests that it begins on them have
// a bound of its own (HC-97).
func TestManyStreamsOverHTTP3(t *testing.T) {
	a := newAuthority(t)
	f, _ := newFront(t, func(c *Config) { c.Limits.ClientExchanges = 2 })
	addr := serve(t, f, func(c *ListenConfig) {
		a.server(t)(c)
		c.HeaderTimeout = time.Minute
	})
	config := a.client()
	config.NextProtos, config.ServerName = []string{http3.NextProtoH3}, "localhost"
	begin := func(c *quic.Conn) *quic.Stream {
		stream, err := c.OpenStream()
		require.NoError(t, err)
		_, err = stream.Write([]byte{1, 20, 0}) // the beginning of a HEADERS frame
		require.NoError(t, err)
		require.NoError(t, stream.SetReadDeadline(time.Now().Add(20*time.Second)))
		return stream
	}
	var conns [2]*quic.Conn
	for i := range conns {
		c, err := quic.DialAddr(t.Context(), addr, config, nil)
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.CloseWithError(0, "") })
		conns[i] = c
		for range 4 {
			begin(c)
		}
		require.Eventually(t, func() bool { return f.Stats.Streams.Load() == int64(4*(i+1)) }, 20*time.Second, time.Millisecond)
	}
	_, err := begin(conns[0]).Read(make([]byte, 10))
	var reset *quic.StreamError
	require.ErrorAs(t, err, &reset)
	require.EqualValues(t, http3.ErrCodeRequestRejected, reset.ErrorCode, "it may be sent again")
	require.EqualValues(t, 1, f.Stats.RefusedStreams.Load())
	_ = conns[0].CloseWithError(0, "")
	require.Eventually(t, func() bool { return f.Stats.Streams.Load() == 4 }, 20*time.Second, time.Millisecond)
	w, _ := get(t, client3(t, a.client()), "https://"+addr, someTarget)
	require.Equal(t, 200, w.StatusCode)
}

// A connection without requests is closed, even if the client keeps it alive; and
// nothing keeps what was closed (HC-97).
func TestIdleOverHTTP3(t *testing.T) {
	a := newAuthority(t)
	f, _ := newFront(t, nil)
	addr := serve(t, f, func(c *ListenConfig) {
		a.server(t)(c)
		c.IdleTimeout = 300 * time.Millisecond
	})
	config := a.client()
	config.NextProtos, config.ServerName = []string{http3.NextProtoH3}, "localhost"
	var closed *quic.ApplicationError
	for range 5 {
		c, err := quic.DialAddr(t.Context(), addr, config, &quic.Config{KeepAlivePeriod: 50 * time.Millisecond})
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.CloseWithError(0, "") })
		client := (&http3.Transport{}).NewClientConn(c)
		r, err := http.NewRequestWithContext(t.Context(), "GET", "https://localhost/", http.NoBody)
		require.NoError(t, err)
		began := time.Now()
		w, err := client.RoundTrip(r)
		require.NoError(t, err)
		_ = w.Body.Close()
		select {
		case <-c.Context().Done():
		case <-time.After(20 * time.Second):
			t.Fatal("the connection stays")
		}
		require.GreaterOrEqual(t, time.Since(began), 300*time.Millisecond)
		if errors.As(context.Cause(c.Context()), &closed) {
			break
		} // else the machine was so busy that nothing kept it alive
	}
	require.NotNil(t, closed)
	require.EqualValues(t, http3.ErrCodeNoError, closed.ErrorCode)

	timer := newIdleTimer(time.Hour, func() {})
	timer.begin()
	timer.begin()
	timer.end()
	require.False(t, timer.timer.Stop(), "a request is running")
	timer.end()
	require.True(t, timer.timer.Stop(), "none is")
	timer.begin()
	timer.stop()
	timer.end()
	require.False(t, timer.timer.Stop(), "the connection has ended")
}
