package httpbridge

import (
	"context"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// tcpPair is a connection, its own side as a Listener has it.
func tcpPair(t *testing.T) (near *tcpConn, far *net.TCPConn) {
	l, err := net.ListenTCP("tcp", &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	defer l.Close()
	far, err = net.DialTCP("tcp", nil, l.Addr().(*net.TCPAddr))
	require.NoError(t, err)
	c, err := l.AcceptTCP()
	require.NoError(t, err)
	near, err = newTCPConn(c)
	require.NoError(t, err)
	t.Cleanup(func() { _, _ = near.Close(), far.Close() })
	return near, far
}

func TestTCPConn(t *testing.T) {
	near, far := tcpPair(t)
	// More than the buffers of the sockets hold, so that Write has to wait.
	const size = 16 << 20
	written := make(chan error, 1)
	go func() {
		_, err := near.Write(make([]byte, size))
		written <- err
	}()
	n, err := io.CopyN(io.Discard, far, size)
	require.NoError(t, err)
	require.EqualValues(t, size, n)
	require.NoError(t, <-written)

	var b [10]byte
	require.NoError(t, near.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
	_, err = near.Read(b[:])
	var timeout net.Error
	require.ErrorAs(t, err, &timeout)
	require.True(t, timeout.Timeout())
	require.NoError(t, near.SetReadDeadline(time.Time{}))

	_, err = far.Write([]byte("abc"))
	require.NoError(t, err)
	require.NoError(t, far.CloseWrite())
	got, err := io.ReadAll(near)
	require.NoError(t, err)
	require.Equal(t, "abc", string(got))

	require.NoError(t, far.SetLinger(0))
	require.NoError(t, far.Close())
	require.Eventually(t, func() bool { _, err := near.Write(b[:]); return err != nil }, 20*time.Second, time.Millisecond)
	require.NoError(t, near.Close())
	_, err = near.Read(b[:])
	require.ErrorIs(t, err, net.ErrClosed)
}

// The timer of a watch is not waited for here: look is what it calls.
func TestWatch(t *testing.T) {
	begin := func(t *testing.T) (w *watch, gone chan struct{}, far *net.TCPConn) {
		near, far := tcpPair(t)
		gone = make(chan struct{}, 1)
		w = &watch{socket: near, gone: func() { gone <- struct{}{} }}
		w.begin()
		return w, gone, far
	}
	t.Run("client goes", func(t *testing.T) {
		w, gone, far := begin(t)
		w.look()
		require.NoError(t, far.Close())
		<-gone
	})
	t.Run("client has gone, and left something to read", func(t *testing.T) {
		w, gone, far := begin(t)
		_, err := far.Write([]byte("GET / HTTP/1.1\r\n"))
		require.NoError(t, err)
		w.look()
		require.NoError(t, far.Close())
		<-gone
	})
	t.Run("request ends", func(t *testing.T) {
		w, gone, far := begin(t)
		w.look()
		w.look() // nobody else waits
		require.True(t, w.end())
		require.False(t, w.end())
		_, err := far.Write([]byte("abc"))
		require.NoError(t, err)
		var b [10]byte
		n, err := w.socket.Read(b[:])
		require.NoError(t, err)
		require.Equal(t, "abc", string(b[:n]))
		require.Empty(t, gone)
	})
	t.Run("between requests", func(t *testing.T) {
		w, gone, far := begin(t)
		require.False(t, w.end())
		w.look()
		require.NoError(t, far.Close())
		require.Nil(t, w.waiting)
		require.Empty(t, gone)
	})
	t.Run("connection is closed", func(t *testing.T) {
		w, gone, _ := begin(t)
		w.look()
		require.NoError(t, w.socket.Close())
		w.close()
		<-gone
		w.begin()
		w.look() // nobody waits any more: TestMain would find out
	})
}

// A request that takes so long that somebody watches its client leaves the connection
// as it was: it serves others, and is closed when it is idle (HC-97).
func TestWatchedRequests(t *testing.T) {
	f, chain := newFront(t, nil)
	exchanges := chain.keepsRunning()
	c := dial(t, serve(t, f, func(c *ListenConfig) { c.IdleTimeout = 300 * time.Millisecond }))
	for range 2 {
		c.write("GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", someTarget)
		x := <-exchanges
		time.Sleep(2 * watchAfter) // real sockets: there is no virtual time
		x.sink.Respond(content("late"))
		x.end(nil)
		w, body := c.response()
		require.Equal(t, 200, w.StatusCode)
		require.Equal(t, "late", body)
	}
	c.closed()
	require.Zero(t, f.Stats.Disconnects.Load())
}

// The request of a client that goes away without a word is over.
func TestHangUpOnSocket(t *testing.T) {
	a := newAuthority(t)
	for name, change := range map[string]func(*ListenConfig){"plain": nil, "TLS": func(c *ListenConfig) { a.server(t)(c); c.TLS.NoHTTP3 = true }} {
		t.Run(name, func(t *testing.T) {
			f, chain := newFront(t, nil)
			exchanges := chain.keepsRunning()
			client, base := plainClient(t), "http://"+serve(t, f, change)
			if change != nil {
				client, base = client1(t, a.client()), "https"+base[len("http"):]
			}
			ctx, cancel := context.WithCancel(t.Context())
			r, err := http.NewRequestWithContext(ctx, http.MethodPut, base, http.NoBody)
			require.NoError(t, err)
			r.URL.Opaque = someTarget
			failed := make(chan error, 1)
			go func() {
				w, err := client.Do(r)
				if err == nil {
					_ = w.Body.Close()
				}
				failed <- err
			}()
			x := <-exchanges
			cancel()
			require.Error(t, <-failed)
			<-x.done
			require.Eventually(t, func() bool { return f.Stats.Disconnects.Load() == 1 }, 20*time.Second, time.Millisecond)
		})
	}
}
