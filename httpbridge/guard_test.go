package httpbridge

import (
	"bufio"
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"sync/atomic"
	"testing"
	"testing/iotest"
	"time"

	"github.com/stretchr/testify/require"
)

// script is a connection on which these bytes arrive.
type script struct {
	net.Conn
	io.Reader
}

// noConn is what a script needs of a connection.
type noConn struct{ net.Conn }

func (noConn) LocalAddr() net.Addr { return nil }

func (noConn) RemoteAddr() net.Addr { return nil }

func (s script) Read(p []byte) (int, error) { return s.Reader.Read(p) }

func guardOver(r io.Reader) (*guard, *atomic.Uint64) {
	refused := new(atomic.Uint64)
	return newGuard(script{Conn: noConn{}, Reader: r}, nil, guardConfig{maxHead: 1000, refused: refused}), refused
}

const goodHead = "GET / HTTP/1.1\r\nHost: h\r\n\r\n"

func TestGuardPasses(t *testing.T) {
	for _, x := range []string{
		"", goodHead, goodHead + goodHead,
		"GET / HTTP/1.0\r\n\r\n",
		"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\n\r\nhello" + goodHead,
		"POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\t0\r\n\r\n" + goodHead,
		"POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\n\r\n\n" + goodHead,
		"POST / HTTP/1.1\r\nTransfer-Encoding: Chunked\r\n\r\n5;a=b\r\nhello\r\nA\r\n0123456789\r\n0\r\nX: y\r\n\r\n" + goodHead,
		"POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"GET / HTTP/1.1\r\nX-Content-Length: 5\r\nX: a:b\r\n\r\n",
		"GET / HT", // cut short
	} {
		for _, r := range []io.Reader{strings.NewReader(x), iotest.OneByteReader(strings.NewReader(x))} {
			g, refused := guardOver(r)
			b, err := io.ReadAll(g)
			require.NoError(t, err)
			if strings.HasSuffix(x, "HT") {
				x = "" // a head is held back until it is whole
			}
			require.Equal(t, x, string(b))
			require.Zero(t, refused.Load())
		}
	}
}

func TestGuardRefuses(t *testing.T) { // HC-104
	post := "POST / HTTP/1.1\r\nHost: h\r\n"
	for _, x := range []struct{ name, in, reason string }{
		{"both lengths", post + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", "both Content-Length"},
		{"both lengths, the other way round", post + "transfer-encoding: chunked\r\ncontent-length: 5\r\n\r\n0\r\n\r\n", "both Content-Length"},
		{"two lengths", post + "Content-Length: 5\r\nContent-Length: 5\r\n\r\nhello", "repeated"},
		{"list of lengths", post + "Content-Length: 5, 5\r\n\r\nhello", "malformed"},
		{"signed length", post + "Content-Length: +5\r\n\r\nhello", "malformed"},
		{"huge length", post + "Content-Length: 9999999999999999\r\n\r\n", "malformed"},
		{"no length", post + "Content-Length:\r\n\r\n", "malformed"},
		{"two codings", post + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", "Transfer-Encoding"},
		{"gzip, chunked", post + "Transfer-Encoding: gzip, chunked\r\n\r\n", "Transfer-Encoding"},
		{"identity", post + "Transfer-Encoding: identity\r\n\r\n", "Transfer-Encoding"},
		{"xchunked", post + "Transfer-Encoding: xchunked\r\n\r\n", "Transfer-Encoding"},
		{"vertical tab", post + "Transfer-Encoding: \vchunked\r\n\r\n", "Transfer-Encoding"},
		{"coding in HTTP/1.0", "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n", "Transfer-Encoding"},
		{"space before the colon", post + "Transfer-Encoding : chunked\r\n\r\n", "proper name"},
		{"continued line", post + "X: a\r\n Content-Length: 5\r\n\r\n", "proper name"},
		{"continued with a tab", post + "X: a\r\n\tb\r\n\r\n", "proper name"},
		{"no colon", post + "Content-Length\r\n\r\n", "proper name"},
		{"bare LF", post + "X: a\nContent-Length: 5\r\n\r\nhello", "CR LF"},
		{"bare LF everywhere", "GET / HTTP/1.1\nHost: h\n\n", "CR LF"},
		{"bare CR", post + "X: a\rContent-Length: 5\r\n\r\nhello", "CR LF"},
		{"NUL", post + "X: a\x00b\r\n\r\n", "CR LF"},
		{"empty line first", "\r\n" + goodHead, "empty line"},
		{"three words", "GET / x HTTP/1.1\r\n\r\n", "request line"},
		{"two spaces", "GET  / HTTP/1.1\r\n\r\n", "request line"},
		{"HTTP/0.9", "GET /\r\n\r\n", "request line"},
		{"HTTP/2 without TLS", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "request line"},
		{"TLS", "\x16\x03\x01\x00\xa5\x01\x00\x00\xa1\x03\x03\r\n\r\n", "CR LF"},
		{"long header", post + "X: " + strings.Repeat("a", 1000) + "\r\n\r\n", "too long"},
		{"endless header", strings.Repeat("a", 2000), "too long"},
	} {
		t.Run(x.name, func(t *testing.T) {
			for _, before := range []string{"", goodHead, "POST / HTTP/1.1\r\nContent-Length: 2\r\n\r\nab"} {
				for _, r := range []io.Reader{strings.NewReader(before + x.in + goodHead), iotest.OneByteReader(strings.NewReader(before + x.in + goodHead))} {
					g, refused := guardOver(r)
					b, err := io.ReadAll(g)
					require.NoError(t, err)
					own, ok := bytes.CutPrefix(b, []byte(before))
					require.True(t, ok)
					require.EqualValues(t, 1, refused.Load())
					request, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(own)))
					require.NoError(t, err)
					require.Equal(t, g.target, request.RequestURI)
					require.True(t, request.Close)
					require.Contains(t, request.Header.Get("Reason"), x.reason)
					require.Equal(t, 1, bytes.Count(own, []byte("HTTP/1.1")), "something after the refusal")
				}
			}
		})
	}
}

// A body with broken chunks ends early, and nothing after it is a request.
func TestGuardBrokenChunks(t *testing.T) { // HC-104
	head := "POST / HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n"
	for _, body := range []string{"5\r\nhelloX\r\n0\r\n\r\n", "5\nhello\r\n0\r\n\r\n", "-1\r\n", "0x5\r\nhello\r\n", " 5\r\n", "\r\n", "5 \r\nhello\r\n", "ffffffffffffffff\r\n",
		"0\r\nX: a\r\n b\r\n\r\n", "0\r\nX\ry: a\r\n\r\n", "5;" + strings.Repeat("a", 2000) + "\r\nhello\r\n", "\n"} {
		g, refused := guardOver(strings.NewReader(head + body + goodHead))
		b, err := io.ReadAll(g)
		require.NoError(t, err)
		require.EqualValues(t, 1, refused.Load(), body)
		require.Equal(t, 1, bytes.Count(b, []byte("HTTP/1.1")), body)
		r, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(b)))
		require.NoError(t, err)
		_, err = io.ReadAll(r.Body)
		require.Error(t, err, "a body cut short must not look whole")
	}
}

// The deadline of an idle connection can be moved, as the server does to look
// for the end of a connection while a request is carried out.
func TestGuardDeadline(t *testing.T) {
	near, far := net.Pipe()
	defer far.Close()
	released := 0
	g := newGuard(near, nil, guardConfig{maxHead: 1000, refused: new(atomic.Uint64), released: func() { released++ }})
	go func() { _, _ = far.Write([]byte("GET / HTTP")) }()
	var b [100]byte
	require.NoError(t, g.SetReadDeadline(time.Now().Add(20*time.Millisecond)))
	_, err := g.Read(b[:])
	var n net.Error
	require.ErrorAs(t, err, &n)
	require.True(t, n.Timeout())
	require.NoError(t, g.SetReadDeadline(time.Time{}))
	go func() { _, _ = far.Write([]byte("/1.1\r\n\r\n")) }()
	k, err := io.ReadAtLeast(g, b[:], 18)
	require.NoError(t, err)
	require.Equal(t, "GET / HTTP/1.1\r\n\r\n", string(b[:k]))
	require.NoError(t, g.Close())
	require.NoError(t, g.Close())
	require.Equal(t, 1, released)
}

// FuzzGuard: whatever arrives, the server behind the guard sees requests begin
// exactly where the guard does.
func FuzzGuard(f *testing.F) {
	for _, seed := range []string{goodHead, "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n5;a\r\nhello\r\n0\r\nX: y\r\n\r\nGET /2 HTTP/1.1\r\nHost: h\r\n\r\n",
		"PUT / HTTP/1.1\r\nHost: h\r\nContent-Length: 28\r\n\r\n" + goodHead + goodHead, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n"} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		g, _ := guardOver(nil)
		g.in = in
		var stream, heads []byte
		var lines []string
		for len(g.in) > 0 || len(g.out) > 0 {
			before := g.frame
			if !g.judge() {
				break
			}
			if before == frameHead {
				line, _, _ := strings.Cut(string(g.out), "\r\n")
				lines = append(lines, line)
				heads = append(heads, g.out...)
			}
			stream = append(stream, g.out...)
			g.out = nil
		}
		r := bufio.NewReader(bytes.NewReader(stream))
		for i := 0; ; i++ {
			request, err := http.ReadRequest(r)
			if err != nil {
				return // net/http closes the connection
			}
			require.Less(t, i, len(lines), "the server sees a request that the guard does not: %q", heads)
			require.Equal(t, lines[i], request.Method+" "+request.RequestURI+" "+request.Proto)
			if _, err = io.Copy(io.Discard, request.Body); err != nil {
				return
			}
		}
	})
}

// The server closes a connection while it reads from it: it looks for the end of the
// client behind the last request.
func TestGuardClosedWhileReading(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	for range 20 {
		far, err := net.Dial("tcp", l.Addr().String())
		require.NoError(t, err)
		near, err := l.Accept()
		require.NoError(t, err)
		g := newGuard(near, nil, guardConfig{maxHead: 1000, refused: new(atomic.Uint64), released: func() {}})
		read := make(chan struct{})
		go func() {
			defer close(read)
			_, _ = g.Read(make([]byte, 100))
		}()
		_, err = far.Write([]byte("\r\n\r\n"))
		require.NoError(t, err)
		require.NoError(t, far.Close())
		require.NoError(t, g.Close())
		<-read
	}
}
