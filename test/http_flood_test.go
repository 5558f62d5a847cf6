package test

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/quic-go/qpack"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/quic-go/quic-go/quicvarint"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// floodTime is how long each flood lasts, unless the proxy ends the connection before.
const floodTime = time.Second

// h2Conn is a bare HTTP/2 connection.
type h2Conn struct {
	net.Conn
	*http2.Framer
	path  string
	block bytes.Buffer
	hpack *hpack.Encoder
}

func dialH2(t *testing.T, a *authority, at, path string) *h2Conn {
	t.Helper()
	c, err := tls.Dial("tcp", at, &tls.Config{RootCAs: roots(t, a), ServerName: "127.0.0.1", NextProtos: []string{"h2"}, MinVersion: tls.VersionTLS13})
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	require.NoError(t, c.SetDeadline(time.Now().Add(time.Minute)))
	_, err = c.Write([]byte(http2.ClientPreface))
	require.NoError(t, err)
	h := &h2Conn{Conn: c, Framer: http2.NewFramer(c, c), path: path}
	h.hpack = hpack.NewEncoder(&h.block)
	require.NoError(t, h.WriteSettings())
	return h
}

func roots(t *testing.T, a *authority) *x509.CertPool {
	pool := x509.NewCertPool()
	text, err := os.ReadFile(a.path("ca.pem"))
	require.NoError(t, err)
	require.True(t, pool.AppendCertsFromPEM(text))
	return pool
}

func (h *h2Conn) head(method string, more ...string) []byte {
	h.block.Reset()
	fields := append([]string{":method", method, ":scheme", "https", ":authority", "127.0.0.1", ":path", h.path}, more...)
	for i := 0; i < len(fields); i += 2 {
		_ = h.hpack.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]}) // to a buffer
	}
	return bytes.Clone(h.block.Bytes())
}

func (h *h2Conn) request(stream uint32, ends bool, method string, more ...string) error {
	return h.WriteHeaders(http2.HeadersFrameParam{StreamID: stream, BlockFragment: h.head(method, more...), EndStream: ends, EndHeaders: true})
}

// What HTTP/2 lets a client send for nothing costs the proxy nothing that lasts: floods
// of requests that are reset, of headers without end, of frames that say nothing, and
// streams whose responses nobody takes (HC-97).
func TestHTTP2Floods(t *testing.T) {
	t.Parallel()
	origin := single(t, content)
	a := newAuthority(t)
	s := privately(web(a, "", forwarding.client))
	s.log = "info"
	p := startProxy(t, group0, s)
	path := "/hc/coap://" + origin.addr().String() + "/x"
	at := p.addrs[2].String()
	floods := map[string]func(h *h2Conn, n uint32) error{
		"reset": func(h *h2Conn, n uint32) error {
			return errors.Join(h.request(2*n+1, true, "GET"), h.WriteRSTStream(2*n+1, http2.ErrCodeCancel))
		},
		"reset uploads": func(h *h2Conn, n uint32) error {
			return errors.Join(h.request(2*n+1, false, "PUT", "content-type", "text/plain", "content-length", "1000000"),
				h.WriteData(2*n+1, false, make([]byte, 1000)), h.WriteRSTStream(2*n+1, http2.ErrCodeCancel))
		},
		"continuation": func(h *h2Conn, n uint32) error {
			if n == 0 {
				return h.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: h.head("GET"), EndStream: true})
			}
			h.block.Reset()
			for i := range 100 {
				if err := h.hpack.WriteField(hpack.HeaderField{Name: fmt.Sprint("x-", n, "-", i), Value: strings.Repeat("a", 40), Sensitive: true}); err != nil {
					return err
				}
			}
			return h.WriteContinuation(1, false, h.block.Bytes())
		},
		"settings": func(h *h2Conn, n uint32) error {
			return h.WriteSettings(http2.Setting{ID: http2.SettingHeaderTableSize, Val: n})
		},
		"ping": func(h *h2Conn, _ uint32) error { return h.WritePing(false, [8]byte{1}) },
		"priority": func(h *h2Conn, n uint32) error {
			return h.WritePriority(2*n+1, http2.PriorityParam{StreamDep: 2*n + 3})
		},
		"empty data": func(h *h2Conn, n uint32) error {
			if n == 0 {
				return h.request(1, false, "PUT", "content-type", "text/plain")
			}
			return h.WriteData(1, false, nil)
		},
		"no window": func(h *h2Conn, n uint32) error {
			if n == 0 {
				return h.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
			}
			return h.request(2*n+1, true, "GET")
		},
	}
	for name, flood := range floods {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := dialH2(t, a, at, path)
			for n, until := uint32(0), time.Now().Add(floodTime); time.Now().Before(until); n++ {
				if err := flood(h, n); err != nil {
					break // the proxy had enough, which it may
				}
			}
			eventually(t, func() bool { return must200Soon(p.addrs[1], path) }, "the others being served")
		})
	}
	t.Cleanup(func() { calmAfter(t, p) })
}

// calmAfter checks that nothing is left of floods whose connections are closed.
func calmAfter(t *testing.T, p *proxy) {
	t.Helper()
	eventually(t, func() bool {
		m := p.scrape()
		return m["coapproxy_http_connections"] == 0 && m["coapproxy_http_exchanges"] == 0 && m["go_goroutines"] < 60
	}, "the end of what the floods began")
	require.Less(t, p.scrape()["process_resident_memory_bytes"], 400e6)
}

// h3Header is a HEADERS frame.
func h3Header(path string, extra int) []byte {
	var block bytes.Buffer
	e := qpack.NewEncoder(&block)
	fields := []string{":method", "GET", ":scheme", "https", ":authority", "127.0.0.1", ":path", path}
	for i := range extra {
		fields = append(fields, fmt.Sprint("x-", i), strings.Repeat("a", 100))
	}
	for i := 0; i < len(fields); i += 2 {
		_ = e.WriteField(qpack.HeaderField{Name: fields[i], Value: fields[i+1]}) // to a buffer
	}
	frame := quicvarint.Append([]byte{1}, uint64(block.Len()))
	return append(frame, block.Bytes()...)
}

// HTTP/3 is no better a weapon (HC-97).
func TestHTTP3Floods(t *testing.T) {
	t.Parallel()
	origin := single(t, content)
	a := newAuthority(t)
	s := privately(web(a, "", forwarding.client))
	s.log = "info"
	p := startProxy(t, group0, s)
	path := "/hc/coap://" + origin.addr().String() + "/x"
	whole, big := h3Header(path, 0), h3Header(path, 10000)
	const canceled = quic.StreamErrorCode(http3.ErrCodeRequestCanceled)
	floods := map[string]func(s *quic.Stream){
		"reset":          func(s *quic.Stream) { _, _ = s.Write(whole); s.CancelWrite(canceled); s.CancelRead(canceled) },
		"answer refused": func(s *quic.Stream) { _, _ = s.Write(whole); _ = s.Close(); s.CancelRead(canceled) },
		"nobody reads":   func(s *quic.Stream) { _, _ = s.Write(whole); _ = s.Close() },
		"half a header":  func(s *quic.Stream) { _, _ = s.Write(whole[:5]) },
		"long header":    func(s *quic.Stream) { _, _ = s.Write(big); s.CancelWrite(canceled); s.CancelRead(canceled) },
		"longest header": func(s *quic.Stream) {
			_, _ = s.Write(append(quicvarint.Append([]byte{1}, 1<<60), whole...))
			s.CancelRead(canceled)
			s.CancelWrite(canceled)
		},
	}
	for name, flood := range floods {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			c, err := quic.DialAddr(ctx, p.addrs[2].String(), &tls.Config{RootCAs: roots(t, a), ServerName: "127.0.0.1", NextProtos: []string{http3.NextProtoH3}, MinVersion: tls.VersionTLS13}, nil)
			require.NoError(t, err)
			defer func() { _ = c.CloseWithError(0, "") }()
			control, err := c.OpenUniStream()
			require.NoError(t, err)
			_, err = control.Write([]byte{0, 4, 0}) // empty SETTINGS
			require.NoError(t, err)
			end, stop := context.WithTimeout(ctx, floodTime)
			defer stop()
			for {
				s, err := c.OpenStreamSync(end)
				if err != nil {
					break // the time is over, or the proxy had enough, which it may
				}
				_ = s.SetWriteDeadline(time.Now().Add(20 * time.Second))
				flood(s)
			}
			eventually(t, func() bool { return must200Soon(p.addrs[1], path) }, "the others being served")
		})
	}
	t.Cleanup(func() { calmAfter(t, p) })
}
