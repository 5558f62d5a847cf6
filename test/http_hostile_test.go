package test

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/quic-go/http3"
	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// nghttp, over HTTP/2: a stream of parts, and two requests in one connection.
func TestHTTP2(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 3, content)
	p := startProxy(t, group, web(newAuthority(t), "", ""))
	out := run(t, here, "nghttp", "-v", "--no-dep", "-H", "multicast-timeout: 1", "-H", "prefer: stream-parts",
		fmt.Sprintf("https://%v/hc/%s", p.addrs[2], groupURI(group, "/a")), fmt.Sprintf("https://%v/hc/%s", p.addrs[2], groupURI(group, "/b")))
	require.Zero(t, out.code, out.stderr)
	require.Len(t, regexp.MustCompile(`:status: 200`).FindAllString(out.stdout, -1), 2, out.stdout)
	require.Len(t, regexp.MustCompile(`preference-applied: stream-parts`).FindAllString(out.stdout, -1), 2)
	require.NotContains(t, out.stdout, "RST_STREAM")
	for _, s := range servers {
		for _, path := range []string{"/a", "/b"} {
			require.Contains(t, out.stdout, fmt.Sprintf("member%d%s", s.addr().Addr().As4()[3], path))
		}
	}
	require.GreaterOrEqual(t, strings.Count(out.stdout, "recv DATA frame"), 2*len(servers), "a part when it comes (HC-88)")
}

// quic-go's client, over HTTP/3, which a response over TCP has announced.
func TestHTTP3(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 3, content)
	a := newAuthority(t)
	p := startProxy(t, group, web(a, "", ""))
	url := "https://" + p.addrs[2].String() + "/hc/" + groupURI(group, "/temp")
	require.Contains(t, curl(t, "--cacert", a.path("ca.pem"), url, "-H", "Multicast-Timeout: 0"), fmt.Sprintf(`alt-svc: h3=":%d"`, p.addrs[2].Port()))
	roots := x509.NewCertPool()
	text, err := os.ReadFile(a.path("ca.pem"))
	require.NoError(t, err)
	require.True(t, roots.AppendCertsFromPEM(text))
	transport := &http3.Transport{TLSClientConfig: &tls.Config{RootCAs: roots, MinVersion: tls.VersionTLS13}}
	defer transport.Close()
	for _, prefer := range []string{"", "stream-parts"} {
		r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, url, nil)
		require.NoError(t, err)
		r.Header.Set("Multicast-Timeout", "1")
		r.Header.Set("Prefer", prefer)
		w, err := transport.RoundTrip(r)
		require.NoError(t, err)
		require.Equal(t, 200, w.StatusCode)
		require.Equal(t, 3, w.ProtoMajor)
		require.Equal(t, prefer, w.Header.Get("Preference-Applied"))
		body, err := io.ReadAll(w.Body)
		require.NoError(t, err)
		require.NoError(t, w.Body.Close())
		require.Equal(t, len(servers), strings.Count(string(body), "HTTP/1.1 200 OK\r\n"), "%s", body)
	}
}

// webConn is a bare connection to an HTTP listener.
type webConn struct {
	net.Conn
	t *testing.T
	r *bufio.Reader
}

func dialWeb(t *testing.T, at netip.AddrPort) *webConn {
	t.Helper()
	c, err := net.Dial("tcp", at.String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(patience)))
	return &webConn{c, t, bufio.NewReader(c)}
}

func (c *webConn) write(format string, args ...any) {
	c.t.Helper()
	_, err := fmt.Fprintf(c, format, args...)
	require.NoError(c.t, err)
}

// response reads the next response.
func (c *webConn) response() (status int, body string) {
	c.t.Helper()
	w, err := http.ReadResponse(c.r, nil)
	require.NoError(c.t, err)
	defer w.Body.Close()
	b, err := io.ReadAll(w.Body)
	require.NoError(c.t, err)
	return w.StatusCode, string(b)
}

// ended checks that the proxy closes the connection without another word.
func (c *webConn) ended() {
	c.t.Helper()
	rest, err := io.ReadAll(c.r)
	require.NotErrorIs(c.t, err, os.ErrDeadlineExceeded, "still open")
	require.Empty(c.t, string(rest))
}

// Request targets reach the server as they were sent, and nothing else is taken
// for one (HC-5, HC-13); a message with two readings is not carried out, nor is
// what follows it (HC-104).
func TestHTTPRaw(t *testing.T) {
	t.Parallel()
	origin := single(t, content)
	p := startProxy(t, group0, web(newAuthority(t), "", forwarding.client))
	target := "/hc/coap://" + origin.addr().String()
	c := dialWeb(t, p.addrs[1])
	for path, want := range map[string]string{"//x//y": "/x//y", "/a%2Fb": "a/b", "/": "", "?q": "", "/./x": "-", "/../x": "-", "/x/%2e%2e/y": "-"} {
		before := len(origin.requests())
		c.write("GET %s%s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", target, path)
		status, body := c.response()
		if want == "-" {
			require.Equal(t, 400, status, path)
			require.Len(t, origin.requests(), before)
			continue
		}
		require.Equal(t, 200, status, "%s: %s", path, body)
		var segments []string
		for _, s := range origin.requests()[before].All(coap.URIPath) {
			segments = append(segments, string(s))
		}
		require.Equal(t, want, strings.Join(segments, "/"), path)
	}
	for _, bad := range []string{"/hc/coap:/127.0.2.1/", "/hc//coap://127.0.2.1/", "/hc/coap:///x", "/hc/coap://127.0.2.1:0/", "/hc/coap://u@127.0.2.1/", "/hc/coap://127.0.2.1/#f", "x"} {
		c := dialWeb(t, p.addrs[1])
		c.write("GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", bad)
		status, _ := c.response()
		require.Equal(t, 400, status, bad)
	}

	evil := "GET " + target + "/evil HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n"
	for name, head := range map[string]string{
		"both lengths":   "Content-Length: 4\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"two lengths":    "Content-Length: 0\r\nContent-Length: 90\r\n\r\n",
		"odd coding":     "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
		"tab in coding":  "Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
		"space in name":  "Content-Length : 5\r\n\r\n",
		"continued line": "X: y\r\n Transfer-Encoding: chunked\r\n\r\n",
		"bare LF":        "X: y\nTransfer-Encoding: chunked\r\n\r\n",
		"bare CR":        "X: y\rTransfer-Encoding: chunked\r\n\r\n",
		"bad chunk":      "Transfer-Encoding: chunked\r\n\r\n0x0\r\n\r\n",
	} {
		c := dialWeb(t, p.addrs[1])
		c.write("POST %s/bad HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\n%s%s", target, head, evil)
		status, _ := c.response()
		require.Equal(t, 400, status, name)
		c.ended()
	}
	c = dialWeb(t, p.addrs[1])
	c.write("GET %s/x HTTP/1.1\r\nHost: 127.0.0.1\r\nX: %s\r\n\r\n", target, strings.Repeat("x", 20<<10))
	status, body := c.response()
	require.Contains(t, []int{400, 431}, status, body)
	c.ended()
	require.Empty(t, origin.requestsTo("/evil"))
	require.Empty(t, origin.requestsTo("/bad"))
	require.Equal(t, 200, must200(t, p.addrs[1], target+"/good"), "the proxy goes on")
}

func must200(t *testing.T, at netip.AddrPort, target string) int {
	t.Helper()
	c := dialWeb(t, at)
	c.write("GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n", target)
	status, _ := c.response()
	return status
}

// Clients that send slowly, or nothing, or too much, get a bounded share of time
// and connections (HC-97).
func TestHTTPSlowClients(t *testing.T) {
	t.Parallel()
	origin := single(t, content)
	s := web(newAuthority(t), "http: {limits: {header_timeout: 1s, body_timeout: 1s, idle_timeout: 1s, peer_connections: 20, body: 1KiB}}\n", forwarding.client)
	p := startProxy(t, group0, s)
	target := "/hc/coap://" + origin.addr().String() + "/x"

	slowHead, slowBody, idle := dialWeb(t, p.addrs[1]), dialWeb(t, p.addrs[1]), dialWeb(t, p.addrs[1])
	began := time.Now()
	slowHead.write("GET %s HTTP/1.1\r\nHost: 127", target)
	slowBody.write("PUT %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\nContent-Length: 100\r\n\r\nslow", target)
	idle.write("GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", target)
	status, _ := idle.response()
	require.Equal(t, 200, status)
	status, _ = slowBody.response()
	require.Equal(t, 408, status)
	slowBody.ended()
	rest, _ := io.ReadAll(slowHead.r)
	require.Regexp(t, `^(HTTP/1\.1 408 |$)`, string(rest))
	idle.ended()
	require.Less(t, time.Since(began), 15*time.Second)
	require.Empty(t, origin.requestsTo("/slow"))

	long := dialWeb(t, p.addrs[1])
	long.write("PUT %s HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: text/plain\r\nContent-Length: 2000\r\nExpect: 100-continue\r\n\r\n", target)
	status, _ = long.response()
	require.Equal(t, 413, status, "and not 100 before it (HC-98)")

	// More connections than an address may have: the last are closed at once.
	var open []*webConn
	for range 20 {
		open = append(open, dialWeb(t, p.addrs[1]))
	}
	eventually(t, func() bool {
		c, err := net.Dial("tcp", p.addrs[1].String())
		if err != nil {
			return false
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(200 * time.Millisecond))
		_, err = c.Read(make([]byte, 1))
		return err == io.EOF || strings.Contains(fmt.Sprint(err), "reset") //nolint:errorlint // from the connection itself
	}, "a connection too many to be closed")
	for _, c := range open {
		require.NoError(t, c.Close())
	}
	eventually(t, func() bool { return must200Soon(p.addrs[1], target) }, "room for connections again")
}

func must200Soon(at netip.AddrPort, target string) bool {
	c, err := net.Dial("tcp", at.String())
	if err != nil {
		return false
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(2 * time.Second))
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", target)
	w, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return false
	}
	defer w.Body.Close()
	return w.StatusCode == 200
}

// A client that hangs up ends a group exchange as an Early Stop does, so that the
// next one for the group need not wait (HC-83, HC-60); the result of a safe
// unicast request is kept for others (HC-60).
func TestHTTPDisconnect(t *testing.T) {
	t.Parallel()
	for name, fields := range map[string]string{"batch": "", "stream": "Prefer: stream-parts\r\n"} {
		t.Run(name, func(t *testing.T) {
			servers, group := members(t, 1, content)
			s := web(newAuthority(t), "", "")
			s.group = "nstart: 1\nqueue: 0\nleisure: 1s\nprobing_rate: 0"
			p := startProxy(t, group, s)
			c := dialWeb(t, p.addrs[1])
			c.write("POST /hc/%s HTTP/1.1\r\nHost: 127.0.0.1\r\nMulticast-Timeout: 60\r\n%s\r\n", groupURI(group, "/x"), fields)
			status, _ := c.response()
			require.Equal(t, 400, status, "POST is not allowed for the group")
			c.write("GET /hc/%s HTTP/1.1\r\nHost: 127.0.0.1\r\nMulticast-Timeout: 60\r\n%s\r\n", groupURI(group, "/x"), fields)
			eventually(t, func() bool { return len(servers[0].requestsTo("/x")) == 1 }, "the request")
			require.NoError(t, c.Close())
			eventually(t, func() bool {
				next := dialWeb(t, p.addrs[1])
				next.write("GET /hc/%s HTTP/1.1\r\nHost: 127.0.0.1\r\nMulticast-Timeout: 0\r\nConnection: close\r\n\r\n", groupURI(group, "/next"))
				status, _ := next.response()
				return status == 204
			}, "the end of the exchange")
		})
	}
	slow := single(t, after(700*time.Millisecond, with("late", coap.Uint(coap.MaxAge, 60))))
	s := web(newAuthority(t), "", forwarding.client)
	s.cache = "enabled: true"
	p := startProxy(t, group0, s)
	target := "/hc/coap://" + slow.addr().String() + "/x"
	c := dialWeb(t, p.addrs[1])
	c.write("GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", target)
	eventually(t, func() bool { return len(slow.requests()) == 1 }, "the request")
	require.NoError(t, c.Close())
	eventually(t, func() bool { return must200Soon(p.addrs[1], target) }, "the response")
	require.Len(t, slow.requests(), 1, "from the cache, or from the exchange that still ran")
}

// A client that does not read a stream is cut off, and the others are not held up
// (HC-88).
func TestHTTPSlowReader(t *testing.T) {
	t.Parallel()
	big := strings.Repeat("x", 1000)
	_, group := members(t, 1, func(s *server, r *request) {
		if r.Path() == "/flood" {
			for range 20000 {
				s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Payload: []byte(big)})
				time.Sleep(20 * time.Microsecond)
			}
			return
		}
		content(s, r)
	})
	s := web(newAuthority(t), "http: {limits: {queue_bytes: 64KiB, send_timeout: 1s}}\n", "")
	p := startProxy(t, group, s)
	c := dialWeb(t, p.addrs[1])
	require.NoError(t, c.Conn.(*net.TCPConn).SetReadBuffer(4096))
	c.write("GET /hc/%s HTTP/1.1\r\nHost: 127.0.0.1\r\nMulticast-Timeout: 60\r\nPrefer: stream-parts\r\n\r\n", groupURI(group, "/flood"))
	_, err := c.r.ReadString('\n') // it has begun
	require.NoError(t, err)
	require.Contains(t, curl(t, "http://"+p.addrs[1].String()+"/hc/"+groupURI(group, "/x"), "-H", "Multicast-Timeout: 1"), "member1/x")
	eventually(t, func() bool { // it is closed while there is something to read
		_, err := c.Conn.Write([]byte("\r\n"))
		return err != nil
	}, "the slow reader to be cut off")
	require.NoError(t, c.Conn.SetDeadline(time.Now().Add(patience)))
	rest, _ := io.ReadAll(c.r)
	require.NotContains(t, string(rest), "--\r\n0\r\n\r\n", "no end of the document")
	p.stop()
	require.Regexp(t, `"http_slow_readers_total":1`, p.text())
}
