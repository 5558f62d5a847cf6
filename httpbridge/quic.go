package httpbridge

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// verifyAbove is how many handshakes may be under way before clients have to show
// that their address is theirs: one round trip more for them, and no state at all for
// forged ones (RFC 9000 §8.1.2).
const verifyAbove = 32

// What a client may send that nobody has read yet. It grows from the first to the
// second as long as it is read quickly (HC-97).
const (
	streamWindow, maxStreamWindow = 32 << 10, 128 << 10
	connWindow, maxConnWindow     = 64 << 10, 256 << 10
)

// serveQUIC takes QUIC connections until ctx ends, and then waits for their requests
// until over ends. Early data is not accepted at all: replayed, even a GET would make
// a whole group answer.
func (l *Listener) serveQUIC(ctx, over context.Context, s *http3.Server) error {
	var handshakes atomic.Int64
	transport := &quic.Transport{Conn: l.udp,
		VerifySourceAddress: func(net.Addr) bool { return handshakes.Load() >= verifyAbove },
		ConnContext: func(ctx context.Context, client *quic.ClientInfo) (context.Context, error) {
			release, ok := l.conns.take(addrPortOf(client.RemoteAddr).Addr())
			if !ok {
				return nil, errTooMany
			}
			handshakes.Add(1)
			done := sync.OnceFunc(func() { handshakes.Add(-1) })
			context.AfterFunc(ctx, func() { done(); release() })
			return context.WithValue(ctx, handshakeDone{}, done), nil
		}}
	defer transport.Close()
	ln, err := transport.Listen(http3.ConfigureTLSConfig(l.tls), &quic.Config{Allow0RTT: false,
		HandshakeIdleTimeout: l.config.HeaderTimeout, MaxIdleTimeout: l.config.IdleTimeout,
		MaxIncomingStreams: int64(l.config.MaxStreams), MaxIncomingUniStreams: 8,
		InitialStreamReceiveWindow: streamWindow, MaxStreamReceiveWindow: maxStreamWindow,
		InitialConnectionReceiveWindow: connWindow, MaxConnectionReceiveWindow: maxConnWindow})
	if err != nil {
		return err
	}
	defer ln.Close()
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		c, err := ln.Accept(ctx)
		if err != nil {
			return err
		}
		c.Context().Value(handshakeDone{}).(func())()
		conns.Go(func() { l.serveConn(ctx, over, s, c) })
	}
}

// handshakeDone is the key of what a connection calls when it is one.
type handshakeDone struct{}

var errTooMany = errors.New("too many connections")

// serveConn serves the streams of a connection. http3 would do that itself, but give
// the client all the time of the world for the header of a request, on as many streams
// as it may open (HC-97). What it would do beyond that is a GOAWAY in the end, which
// cannot be sent from outside; each request that comes too late is told by its error
// code that it may be sent again.
func (l *Listener) serveConn(ctx, over context.Context, s *http3.Server, c *quic.Conn) {
	raw, err := s.NewRawServerConn(c)
	if err != nil {
		_ = c.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeInternalError), "")
		return
	}
	peer := addrPortOf(c.RemoteAddr()).Addr()
	idle := newIdleTimer(l.config.IdleTimeout, func() { _ = c.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "idle timeout") })
	defer idle.stop()
	var running, requests sync.WaitGroup
	running.Go(func() {
		for {
			stream, err := c.AcceptUniStream(context.Background()) //nolint:contextcheck // as long as the connection lasts
			if err != nil {
				return
			}
			running.Go(func() { raw.HandleUnidirectionalStream(stream) })
		}
	})
	for {
		stream, err := c.AcceptStream(ctx)
		if err != nil {
			break // ctx or the connection has ended
		}
		release, ok := l.streams.take(peer)
		if !ok {
			reject(stream)
			continue
		}
		_ = stream.SetReadDeadline(time.Now().Add(l.config.HeaderTimeout)) // sender moves it for the body
		idle.begin()
		requests.Go(func() {
			defer release()
			defer idle.end()
			raw.HandleRequestStream(stream)
		})
	}
	running.Go(func() {
		for {
			stream, err := c.AcceptStream(over)
			if err != nil {
				return
			}
			reject(stream)
		}
	})
	select { // closing takes away what has not arrived yet, also of responses that are written
	case <-over.Done():
	case <-c.Context().Done():
	}
	_ = raw.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeNoError), "")
	requests.Wait()
	running.Wait()
}

// reject tells the client that a request was not looked at, so that it may be sent
// again (RFC 9114 §4.1.1).
func reject(s *quic.Stream) {
	s.ReleaseStreamCredit()
	s.CancelRead(quic.StreamErrorCode(http3.ErrCodeRequestRejected))
	s.CancelWrite(quic.StreamErrorCode(http3.ErrCodeRequestRejected))
}

// idleTimer ends a connection that has had no request for a time. That of http3 goes
// on where a request ends after its connection, and keeps all of that alive: a
// megabyte for every twenty connections of a client that opens one after another.
type idleTimer struct {
	pause time.Duration

	mu       sync.Mutex
	timer    *time.Timer
	requests int
	stopped  bool
}

func newIdleTimer(pause time.Duration, expired func()) *idleTimer {
	return &idleTimer{pause: pause, timer: time.AfterFunc(pause, expired)}
}

// begin and end are called for each request.
func (t *idleTimer) begin() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.requests++
	t.timer.Stop()
}

func (t *idleTimer) end() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.requests--; t.requests == 0 && !t.stopped {
		t.timer.Reset(t.pause)
	}
}

// stop is called with the end of the connection.
func (t *idleTimer) stop() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.stopped = true
	t.timer.Stop()
}
