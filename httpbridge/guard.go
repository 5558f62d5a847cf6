package httpbridge

import (
	"bytes"
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"time"
)

// guard reads HTTP/1 messages along with the server behind it and lets through
// only those whose framing has one meaning (HC-104). It holds a head back until
// it is whole. In place of a message that it refuses the server gets a request
// of the guard's own, which the Front answers with 400, and then the end of the
// connection.
//
// It is stricter than RFC 9112 has to be: no bare CR or LF, no obs-fold, no
// empty line before a request, no content length beside a transfer coding or
// twice, no transfer coding but chunked and none in HTTP/1.0.
type guard struct {
	net.Conn
	guardConfig
	target string // of the guard's own requests; only they have it
	watch  watch
	closed atomic.Bool
	// cut: a message was refused. The server may close a connection that it reads.
	cut atomic.Bool
	// peer and local are the addresses of the connection.
	peer, local netip.AddrPort
	sendBy      time.Time // the write deadline

	// Touched by Read and SetReadDeadline only, which the server does not call twice
	// at a time.
	readBy  time.Time // the read deadline
	waitsBy time.Time // that of the connection
	buf     []byte    // what in and out are parts of
	in      []byte    // read and not judged yet
	scanned int       // bytes of in that are known to be the beginning of a head
	out     []byte    // judged and not handed out yet
	frame   framing
	after   int64 // bytes of the body, or of the chunk, still to come
	err     error
}

// framing is what comes next on a connection.
type framing uint8

const (
	frameHead framing = iota
	frameBody
	frameChunkSize
	frameChunk
	frameChunkEnd
	frameTrailer
	frameRefused
)

// guardBuffer is how much a guard reads at a time, about.
const guardBuffer = 4096

// guardConfig is what a guard needs to know.
type guardConfig struct {
	maxHead  int
	sendTime time.Duration // that a write may take
	refused  *atomic.Uint64
	released func() // called once, by Close
}

// newGuard returns the guard of a connection over a socket, which may be nil: then
// nobody looks for the client's disappearance but the server.
func newGuard(c net.Conn, socket *tcpConn, config guardConfig) *guard {
	var token [16]byte
	_, _ = rand.Read(token[:]) // never fails
	return &guard{Conn: c, guardConfig: config, target: refusedPath + hex.EncodeToString(token[:]), watch: watch{socket: socket},
		peer: addrPortOf(c.RemoteAddr()), local: addrPortOf(c.LocalAddr())}
}

// secureGuard is a guard over TLS. Only it has the method by which the server
// finds out about that: credentials sent in the clear must be seen to be.
type secureGuard struct {
	*guard
	tls *tls.Conn
}

// ConnectionState is the TLS state of the connection.
func (g secureGuard) ConnectionState() tls.ConnectionState { return g.tls.ConnectionState() }

// guardKey finds the guard of a request's connection in its context.
type guardKey struct{}

func withGuard(ctx context.Context, c net.Conn) context.Context {
	g, ok := c.(*guard)
	if s, secure := c.(secureGuard); secure {
		g, ok = s.guard, true
	}
	if !ok {
		return ctx
	}
	ctx, g.watch.gone = context.WithCancel(ctx)
	return context.WithValue(ctx, guardKey{}, g)
}

// refusedPath begins the request target of the guard's own requests; a secret of
// the connection follows.
const refusedPath = "/refused/"

// guardOf is the guard of the connection that a request came on, nil if it has none.
func guardOf(r *http.Request) *guard {
	g, _ := r.Context().Value(guardKey{}).(*guard)
	return g
}

// malformed returns why the guard refused a message, "" for any other request. g may
// be nil.
func (g *guard) malformed(r *http.Request) string {
	if g == nil || r.RequestURI != g.target {
		return ""
	}
	return first(r.Header, "Reason")
}

// Read implements net.Conn.
func (g *guard) Read(p []byte) (int, error) {
	switch {
	case len(p) == 0:
		return 0, nil
	case g.watch.socket == nil:
	case len(p) == 1: // the server has read a request, and would like to know when the client goes
		g.watch.begin()
		return 0, nil
	case g.watch.end():
		g.waitsBy = time.Time{}
	}
	for len(g.out) == 0 {
		if g.judge() {
			continue
		}
		if g.frame == frameRefused {
			return 0, io.EOF
		}
		if g.err != nil {
			err := g.err
			if t, ok := err.(net.Error); ok && t.Timeout() { //nolint:errorlint // as the connection returns it
				g.err = nil // the deadline may be moved
			}
			return 0, err
		}
		if g.waitsBy != g.readBy {
			g.waitsBy = g.readBy
			_ = g.Conn.SetReadDeadline(g.readBy) // fails if Read will
		}
		n, err := g.Conn.Read(g.room())
		g.in, g.err = g.in[:len(g.in)+n], err
	}
	n := copy(p, g.out)
	g.out = g.out[n:]
	return n, nil
}

// room is where the next bytes go: behind those that were not judged yet. All
// of out has been handed out.
func (g *guard) room() []byte {
	if g.buf == nil {
		g.buf = make([]byte, guardBuffer)
	}
	if len(g.in) == 0 {
		g.in = g.buf[:0]
	} else if cap(g.in)-len(g.in) < guardBuffer/4 {
		if len(g.in) > len(g.buf)/2 {
			g.buf = make([]byte, 2*len(g.buf)) // at most twice maxHead
		}
		g.in = g.buf[:copy(g.buf, g.in)]
	}
	return g.in[len(g.in):cap(g.in)]
}

// judge moves something from in to out. It reports false when that needs more
// input, or nothing will come any more.
func (g *guard) judge() bool {
	if len(g.in) == 0 || g.frame == frameRefused {
		return false
	}
	switch g.frame {
	case frameHead:
		return g.judgeHead()
	case frameBody, frameChunk:
		n := min(g.after, int64(len(g.in)))
		g.pass(int(n))
		if g.after -= n; g.after == 0 {
			if g.frame == frameBody {
				g.frame = frameHead
			} else {
				g.frame = frameChunkEnd
			}
		}
		return true
	}
	line, ok := g.line()
	if !ok {
		return g.frame == frameRefused
	}
	switch g.frame {
	case frameChunkEnd:
		if len(line) > 0 {
			return g.abort()
		}
		g.frame = frameChunkSize
	case frameChunkSize:
		size, ok := chunkSize(line)
		if !ok {
			return g.abort()
		}
		g.frame, g.after = frameChunk, size
		if size == 0 {
			g.frame = frameTrailer
		}
	case frameTrailer:
		if len(line) == 0 {
			g.frame = frameHead
		} else if line[0] == ' ' || line[0] == '\t' {
			return g.abort()
		}
	}
	g.pass(len(line) + 2)
	return true
}

// pass lets n bytes through.
func (g *guard) pass(n int) {
	g.out = g.in[:n:n]
	g.in, g.scanned = g.in[n:], 0
}

// abort ends the connection inside a message: what the server reads of the body
// is cut short.
func (g *guard) abort() bool {
	g.cutOff()
	return true
}

// maxChunkLine bounds chunk sizes with their extensions, and trailer lines.
const maxChunkLine = 1024

// line returns the next line of a chunked body without its end.
func (g *guard) line() ([]byte, bool) {
	end := bytes.IndexByte(g.in, '\n')
	switch {
	case end < 0 && len(g.in) <= maxChunkLine:
		return nil, false
	case end < 1 || end > maxChunkLine || g.in[end-1] != '\r' || bytes.IndexByte(g.in[:end-1], '\r') >= 0:
		g.abort()
		return nil, false
	}
	return g.in[:end-1], true
}

// chunkSize reads a chunk size, perhaps with extensions.
func chunkSize(line []byte) (int64, bool) {
	digits, _, _ := bytes.Cut(line, []byte{';'})
	if len(digits) == 0 || len(digits) > 15 {
		return 0, false
	}
	var n int64
	for _, c := range digits {
		switch {
		case '0' <= c && c <= '9':
			c -= '0'
		case 'a' <= c|0x20 && c|0x20 <= 'f':
			c = c | 0x20 - 'a' + 10
		default:
			return 0, false
		}
		n = n<<4 | int64(c)
	}
	return n, true
}

// judgeHead judges a request line and header as soon as they are whole.
func (g *guard) judgeHead() bool {
	from := max(g.scanned-3, 0)
	end := bytes.Index(g.in[from:], []byte("\r\n\r\n"))
	head := g.in
	if end >= 0 {
		end += from
		head = g.in[:end+2]
	}
	g.scanned = len(g.in)
	switch {
	case len(head) > g.maxHead:
		return g.refuse("the header is too long")
	case bytes.HasPrefix(head, []byte("\r\n")) || bytes.HasPrefix(head, []byte("\n")):
		return g.refuse("an empty line before the request")
	case bareLineEnd(head, from, end >= 0):
		return g.refuse("a line does not end in CR LF")
	case end < 0:
		return false
	}
	chunked, length, reason := readFraming(head)
	if reason != "" {
		return g.refuse(reason)
	}
	switch {
	case chunked:
		g.frame = frameChunkSize
	case length > 0:
		g.frame, g.after = frameBody, length
	}
	g.pass(end + 4)
	return true
}

// bareLineEnd reports whether there is a CR without LF, an LF without CR, or a
// NUL.
func bareLineEnd(head []byte, from int, whole bool) bool {
	for i := from; i < len(head); i++ {
		switch c := head[i]; {
		case c == '\n' && (i == 0 || head[i-1] != '\r'):
			return true
		case c == '\r' && i+1 < len(head) && head[i+1] != '\n', c == '\r' && i+1 == len(head) && whole, c == 0:
			return true
		}
	}
	return false
}

// readFraming finds out how long the body of a message is (RFC 9112 §6). reason
// is set when that has more than one answer.
func readFraming(head []byte) (chunked bool, length int64, reason string) {
	first, rest, _ := bytes.Cut(head, crlf)
	version, ok := requestVersion(first)
	if !ok {
		return false, 0, "not an HTTP/1 request line"
	}
	length = -1
	for len(rest) > 0 {
		var line []byte
		line, rest, _ = bytes.Cut(rest, crlf)
		colon := bytes.IndexByte(line, ':')
		if colon < 1 || bytes.ContainsAny(line[:colon], " \t") {
			return false, 0, "a header line has no proper name, or is continued on a second line" // obs-fold too
		}
		name, value := line[:colon], bytes.Trim(line[colon+1:], " \t")
		switch {
		case sameWord(name, contentLength):
			n, ok := decimalLength(value)
			if !ok || length >= 0 {
				return false, 0, "Content-Length is malformed or repeated"
			}
			length = n
		case sameWord(name, transferEncoding):
			if chunked || !sameWord(value, chunkedCoding) || version == 0 {
				return false, 0, "this Transfer-Encoding is not served"
			}
			chunked = true
		}
	}
	if chunked && length >= 0 {
		return false, 0, "both Content-Length and Transfer-Encoding" // RFC 9112 §6.1
	}
	return chunked, length, ""
}

var (
	crlf             = []byte("\r\n")
	contentLength    = []byte("Content-Length")
	transferEncoding = []byte("Transfer-Encoding")
	chunkedCoding    = []byte("chunked")
)

// sameWord compares without regard to the case of ASCII letters; what else
// Unicode folds into them has more bytes.
func sameWord(a, b []byte) bool { return len(a) == len(b) && bytes.EqualFold(a, b) }

// requestVersion is the minor version of a request line of three words.
func requestVersion(line []byte) (minor byte, ok bool) {
	if bytes.Count(line, []byte{' '}) != 2 {
		return 0, false
	}
	version, ok := bytes.CutPrefix(line[bytes.LastIndexByte(line, ' ')+1:], []byte("HTTP/1."))
	if !ok || len(version) != 1 || version[0] > '1' || version[0] < '0' {
		return 0, false
	}
	return version[0] - '0', true
}

func decimalLength(s []byte) (int64, bool) {
	if len(s) == 0 || len(s) > 15 {
		return 0, false
	}
	var n int64
	for _, c := range s {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// refuse puts the guard's own request in the place of the message that follows.
func (g *guard) refuse(reason string) bool {
	g.cutOff()
	g.out = []byte("GET " + g.target + " HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nReason: " + reason + "\r\n\r\n")
	return true
}

func (g *guard) cutOff() {
	g.refused.Add(1)
	g.frame, g.in = frameRefused, nil
	g.cut.Store(true)
}

// Close implements net.Conn. After a refusal it waits a little for what the
// client is still sending: closing over it would take the answer away.
func (g *guard) Close() error {
	if g.closed.Swap(true) {
		return nil
	}
	defer g.released()
	if c, ok := g.Conn.(*tcpConn); ok && g.cut.Load() {
		if c.CloseWrite() == nil {
			_ = c.SetReadDeadline(time.Now().Add(lingerTime))
			_, _ = io.CopyN(io.Discard, c.TCPConn, lingerBytes)
		}
	}
	defer g.watch.close()
	return g.Conn.Close()
}

const (
	lingerTime  = 500 * time.Millisecond
	lingerBytes = 256 << 10
)
