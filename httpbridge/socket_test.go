package httpbridge

import (
	"bufio"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// raw is a bare connection to a Listener.
type raw struct {
	net.Conn
	t testing.TB
	r *bufio.Reader
}

func dial(t testing.TB, addr string) *raw {
	c, err := net.Dial("tcp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(10*time.Second)))
	return &raw{c, t, bufio.NewReader(c)}
}

func (c *raw) write(format string, args ...any) {
	_, err := fmt.Fprintf(c, format, args...)
	require.NoError(c.t, err)
}

// response reads the next response.
func (c *raw) response() (reply, string) {
	w, err := http.ReadResponse(c.r, nil)
	require.NoError(c.t, err)
	defer w.Body.Close()
	b, err := io.ReadAll(w.Body)
	require.NoError(c.t, err)
	return replyOf(w), string(b)
}

// closed checks that nothing more comes.
func (c *raw) closed() {
	b, err := io.ReadAll(c.r)
	require.Empty(c.t, string(b))
	require.NotErrorIs(c.t, err, os.ErrDeadlineExceeded, "still open")
}

// The request target reaches the mapping as it was sent (HC-5, HC-4, HC-11).
func TestRawTargets(t *testing.T) {
	f, chain := newFront(t, func(c *Config) { c.Mapping.Forward = true })
	c := dial(t, serve(t, f, nil))
	for target, want := range map[string]string{
		"/hc/coap://192.0.2.7//a/./b%2Fc":        "", // HC-13
		"/hc/coap://192.0.2.7//a//b%2Fc":         "coap://192.0.2.7//a//b%2Fc",
		"/hc/coap://[2001:db8::1]:61616/":        "coap://[2001:db8::1]:61616/",
		"/hc/coap://%5B2001:db8::1%5D/x":         "coap://[2001:db8::1]/x",
		"/hc/?target_uri=coap://h/x?a&b":         "coap://h/x?a&b",
		"coap://192.0.2.7/forward":               "coap://192.0.2.7/forward",
		"coap://[fe80::1%25eth0]/":               "coap://[fe80::1%25eth0]/",
		"http://127.0.0.1/hc/coap://192.0.2.7/x": "coap://192.0.2.7/x",
		"/hc/coap:/192.0.2.7/x":                  "",
		"/hc/../hc/coap://192.0.2.7/x":           "",
	} {
		count := chain.count()
		c.write("GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", target)
		w, body := c.response()
		if want == "" {
			require.Equal(t, 400, w.StatusCode, target)
			require.Equal(t, count, chain.count())
			continue
		}
		require.Equal(t, 200, w.StatusCode, body)
		require.Equal(t, want, proxyURI(chain.last()))
	}
	c.write("OPTIONS * HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
	w, _ := c.response()
	require.Equal(t, 501, w.StatusCode) // HC-20
	c.write("CONNECT 192.0.2.7:5683 HTTP/1.1\r\nHost: 192.0.2.7:5683\r\n\r\n")
	w, _ = c.response()
	require.GreaterOrEqual(t, w.StatusCode, 400)
}

// A request with two readings is answered with 400, its connection closed, and
// nothing after it executed; what came before is answered as if it were not
// there (HC-104).
func TestSmuggling(t *testing.T) {
	f, chain := newFront(t, nil)
	addr := serve(t, f, nil)
	good := "GET /hc/coap://192.0.2.7/good HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
	evil := "GET /hc/coap://192.0.2.7/evil HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
	for name, bad := range map[string]string{
		"CL.TE":    "POST /hc/coap://192.0.2.7/bad HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: %d\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"TE.TE":    "POST /hc/coap://192.0.2.7/bad HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: cow\r\n\r\n%d\r\n\r\n",
		"obs-fold": "POST /hc/coap://192.0.2.7/bad HTTP/1.1\r\nHost: 127.0.0.1\r\nX: y\r\n Content-Length: %d\r\n\r\n",
		"bare CR":  "POST /hc/coap://192.0.2.7/bad HTTP/1.1\r\nHost: 127.0.0.1\r\nX: y\rContent-Length: %d\r\n\r\n",
		"bare LF":  "POST /hc/coap://192.0.2.7/bad HTTP/1.1\r\nHost: 127.0.0.1\r\nX: y\nContent-Length: %d\n\n",
		"0.9":      "GET /hc/coap://192.0.2.7/bad%d\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c := dial(t, addr)
			count, malformed := chain.count(), f.Stats.Malformed.Load()
			c.write("%s", good+fmt.Sprintf(bad, len(evil)+5)+evil)
			w, body := c.response()
			require.Equal(t, 200, w.StatusCode)
			require.Equal(t, "21.5", body)
			w, body = c.response()
			require.Equal(t, 400, w.StatusCode)
			require.True(t, w.Close)
			require.NotEmpty(t, body)
			c.closed()
			require.Equal(t, count+1, chain.count())
			require.Equal(t, "coap://192.0.2.7/good", proxyURI(chain.last()))
			require.Equal(t, malformed+1, f.Stats.Malformed.Load())
		})
	}
}

// The guard's own request cannot be made from outside.
func TestRefusedPathIsSecret(t *testing.T) {
	f, _ := newFront(t, nil)
	c := dial(t, serve(t, f, nil))
	c.write("GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nReason: mine\r\n\r\n", refusedPath)
	w, _ := c.response()
	require.Equal(t, 404, w.StatusCode)
}

func TestPipelining(t *testing.T) {
	f, _ := newFront(t, nil)
	c := dial(t, serve(t, f, nil))
	const requests = 50
	for range requests {
		c.write("PUT %s HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n0\r\n\r\n", someTarget)
	}
	for range requests {
		w, _ := c.response()
		require.Equal(t, 200, w.StatusCode)
	}
}

// The body is asked for after everything that can be known without it (HC-98).
func TestExpectContinue(t *testing.T) {
	f, chain := newFront(t, nil)
	c := dial(t, serve(t, f, nil))
	c.write("PUT %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n", someTarget)
	line, err := c.r.ReadString('\n')
	require.NoError(t, err)
	require.Equal(t, "HTTP/1.1 100 Continue\r\n", line)
	_, err = c.r.ReadString('\n')
	require.NoError(t, err)
	c.write("ab")
	w, _ := c.response()
	require.Equal(t, 200, w.StatusCode)
	require.Equal(t, "ab", string(chain.last().Payload))

	f, _ = newFront(t, func(c *Config) { c.Clients = &Authentication{} })
	c = dial(t, serve(t, f, nil))
	c.write("PUT %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\nExpect: 100-continue\r\n\r\n", someTarget)
	w, _ = c.response()
	require.Equal(t, 403, w.StatusCode)
}

// Whoever sends slowly gets so much time and no more (HC-97).
func TestSlowSenders(t *testing.T) {
	f, chain := newFront(t, func(c *Config) { c.Limits.ReceiveTimeout = 100 * time.Millisecond })
	addr := serve(t, f, func(c *ListenConfig) { c.HeaderTimeout, c.IdleTimeout = 100*time.Millisecond, 100*time.Millisecond })
	t.Run("nothing", func(t *testing.T) { dial(t, addr).closed() })
	t.Run("header", func(t *testing.T) {
		c := dial(t, addr)
		c.write("GET / HTTP/1.1\r\nHost:")
		b, _ := io.ReadAll(c.r)
		require.NotContains(t, string(b), "200")
	})
	t.Run("idle", func(t *testing.T) {
		c := dial(t, addr)
		c.write("GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", someTarget)
		c.response()
		c.closed()
	})
	count := chain.count()
	t.Run("body", func(t *testing.T) {
		c := dial(t, addr)
		c.write("PUT %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n\r\nab", someTarget)
		w, _ := c.response()
		require.Equal(t, 408, w.StatusCode)
		require.True(t, w.Close)
		c.closed()
		require.EqualValues(t, 1, f.Stats.SlowSenders.Load())
	})
	t.Run("body that nobody wants", func(t *testing.T) {
		c := dial(t, addr)
		c.write("PUT /nothing HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 5\r\n\r\nab")
		w, _ := c.response()
		require.Equal(t, 404, w.StatusCode)
		c.closed()
	})
	t.Run("chunk", func(t *testing.T) {
		c := dial(t, addr)
		c.write("PUT %s HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", someTarget)
		w, _ := c.response()
		require.Equal(t, 400, w.StatusCode)
		c.closed()
	})
	require.Equal(t, count, chain.count())
	require.Eventually(t, func() bool { return f.Stats.Connections.Load() == 0 }, 5*time.Second, time.Millisecond)
}

// A slow body does not shorten the wait for a slow group that follows on the
// same connection.
func TestDeadlinesAreLifted(t *testing.T) {
	f, chain := newFront(t, func(c *Config) {
		c.Limits.ReceiveTimeout, c.Limits.SendTimeout = 50*time.Millisecond, 50*time.Millisecond
	})
	exchanges := chain.keepsRunning()
	c := dial(t, serve(t, f, nil))
	for range 2 {
		c.write("PUT %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 2\r\n\r\nab", someTarget)
		x := <-exchanges
		time.Sleep(120 * time.Millisecond) // real sockets: there is no virtual time
		x.sink.Respond(content("late"))
		x.end(nil)
		w, body := c.response()
		require.Equal(t, 200, w.StatusCode)
		require.Equal(t, "late", body)
	}
}

// The time for sending counts for every response on a connection, not for the first
// one only (HC-97).
func TestUnreadResponses(t *testing.T) {
	f, chain := newFront(t, func(c *Config) { c.Limits.SendTimeout = 300 * time.Millisecond })
	chain.serve = answers(content(strings.Repeat("x", 1<<20)))
	c := dial(t, serve(t, f, nil))
	for range 50 {
		c.write("GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", someTarget)
	}
	require.Eventually(t, func() bool { return f.Stats.Connections.Load() == 1 }, 20*time.Second, time.Millisecond)
	require.Eventually(t, func() bool { return f.Stats.Connections.Load() == 0 }, 20*time.Second, time.Millisecond)
}

func TestConnectionLimits(t *testing.T) { // HC-97
	for _, change := range []func(*ListenConfig){
		func(c *ListenConfig) { c.MaxConns = 3 },
		func(c *ListenConfig) { c.MaxPeerConns = 3 },
	} {
		f, _ := newFront(t, nil)
		addr := serve(t, f, change)
		var open []*raw
		for range 3 {
			c := dial(t, addr)
			c.write("GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", someTarget)
			w, _ := c.response()
			require.Equal(t, 200, w.StatusCode)
			open = append(open, c)
		}
		dial(t, addr).closed()
		require.EqualValues(t, 1, f.Stats.RefusedConns.Load())
		require.EqualValues(t, 3, f.Stats.Connections.Load())
		_ = open[0].Close()
		require.Eventually(t, func() bool { return f.Stats.Connections.Load() == 2 }, 5*time.Second, time.Millisecond)
		c := dial(t, addr)
		c.write("GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", someTarget)
		w, _ := c.response()
		require.Equal(t, 200, w.StatusCode)
	}
}

// Thousands of connections that do nothing neither stop others nor stay.
func TestIdleConnections(t *testing.T) {
	f, _ := newFront(t, nil)
	addr := serve(t, f, func(c *ListenConfig) {
		c.MaxPeerConns, c.HeaderTimeout, c.IdleTimeout = 4000, 500*time.Millisecond, 500*time.Millisecond
	})
	var idle []net.Conn
	for range 1000 {
		c, err := net.Dial("tcp", addr)
		require.NoError(t, err)
		idle = append(idle, c)
	}
	w, _ := get(t, plainClient(t), "http://"+addr, someTarget)
	require.Equal(t, 200, w.StatusCode)
	require.Eventually(t, func() bool { return f.Stats.Connections.Load() <= 1 }, 10*time.Second, 10*time.Millisecond)
	for _, c := range idle {
		_ = c.Close()
	}
}

// A device cannot write into the header (HC-104).
func TestNoHeaderInjection(t *testing.T) {
	f, chain := newFront(t, nil)
	chain.serve = answers(&exchange.Response{Code: codes.Created, From: serverA, Payload: []byte("x\r\nEvil: 1\r\n\r\n"),
		Options: message.Options{option(wire.ETag, "\r\n"), option(wire.LocationPath, "a\r\nEvil: 1")}})
	c := dial(t, serve(t, f, nil))
	c.write("POST %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Length: 0\r\n\r\n", someTarget)
	w, _ := c.response()
	require.Equal(t, 201, w.StatusCode)
	require.Empty(t, w.Header.Get("Evil"))
	require.Equal(t, "/hc/coap://192.0.2.7/a%0D%0AEvil:%201", w.Header.Get("Location"))
	require.False(t, strings.Contains(fmt.Sprint(w.Header), "\n"))
}

// A connection without TLS is not taken for one with TLS: it carries no
// credentials and reaches no coaps target (HC-100, HC-102).
func TestPlainIsPlain(t *testing.T) {
	credentials, err := ReadCredentials(strings.NewReader(fmt.Sprintf("c bearer %x\n", sha256.Sum256([]byte("token")))))
	require.NoError(t, err)
	f, chain := newFront(t, func(c *Config) {
		c.Clients = &Authentication{Credentials: credentials, Client: func(string) *exchange.Identity { return knownClient },
			Network: func(netip.AddrPort) *exchange.Identity { return knownClient }}
	})
	c := dial(t, serve(t, f, nil))
	for _, request := range []string{
		"GET /hc/coap://192.0.2.7/ HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer token\r\n\r\n",
		"GET /hc/coaps://192.0.2.7/ HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n",
	} {
		c.write("%s", request)
		w, body := c.response()
		require.Equal(t, 403, w.StatusCode, body)
	}
	require.Zero(t, chain.count())
}
