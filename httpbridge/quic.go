package httpbridge

import (
	"context"
	"sync"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// serveQUIC takes QUIC connections until ctx ends, and then waits for their requests
// until over ends. Early data is not accepted at all: replayed, even a GET would make
// a whole group answer.
func (l *Listener) serveQUIC(ctx, over context.Context, s *http3.Server) error {
	transport := &quic.Transport{Conn: l.udp}
	defer transport.Close()
	ln, err := transport.Listen(http3.ConfigureTLSConfig(l.tls), &quic.Config{Allow0RTT: false,
		HandshakeIdleTimeout: l.config.HeaderTimeout, MaxIdleTimeout: l.config.IdleTimeout,
		MaxIncomingStreams: int64(l.config.MaxStreams), MaxIncomingUniStreams: 8})
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
		release, ok := l.conns.take(addrPortOf(c.RemoteAddr()).Addr())
		if !ok {
			_ = c.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeExcessiveLoad), "too many connections")
			continue
		}
		conns.Go(func() {
			defer release()
			l.serveConn(ctx, over, s, c)
		})
	}
}

// serveConn serves the streams of a connection. http3 would do that itself, but give
// the client all the time of the world for the header of a request, on as many streams
// as it may open (HC-97).
func (l *Listener) serveConn(ctx, over context.Context, s *http3.Server, c *quic.Conn) {
	raw, err := s.NewRawServerConn(c)
	if err != nil {
		_ = c.CloseWithError(quic.ApplicationErrorCode(http3.ErrCodeInternalError), "")
		return
	}
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
		_ = stream.SetReadDeadline(time.Now().Add(l.config.HeaderTimeout)) // sender moves it for the body
		requests.Go(func() { raw.HandleRequestStream(stream) })
	}
	running.Go(func() { // what comes now may be sent again elsewhere
		for {
			stream, err := c.AcceptStream(over)
			if err != nil {
				return
			}
			stream.ReleaseStreamCredit()
			stream.CancelRead(quic.StreamErrorCode(http3.ErrCodeRequestRejected))
			stream.CancelWrite(quic.StreamErrorCode(http3.ErrCodeRequestRejected))
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
