package endpoint

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// outcome is the sink of one exchange.
type outcome struct {
	mu       sync.Mutex
	response *exchange.Response
	err      error
	ended    bool
	done     chan struct{}
}

func newOutcome() *outcome { return &outcome{done: make(chan struct{})} }

func (o *outcome) Respond(p *exchange.Response) exchange.Verdict {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.response != nil || o.ended {
		panic("a second response, or one after the end")
	}
	o.response = p.Clone()
	return exchange.Stop
}

func (o *outcome) End(err error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.ended {
		panic("ended twice")
	}
	o.ended, o.err = true, err
	close(o.done)
}

func (o *outcome) failure(t *testing.T) *exchange.Failure {
	t.Helper()
	<-o.done
	require.Nil(t, o.response)
	var f *exchange.Failure
	require.ErrorAs(t, o.err, &f)
	return f
}

func (o *outcome) content(t *testing.T) *exchange.Response {
	t.Helper()
	<-o.done
	require.NoError(t, o.err)
	require.NotNil(t, o.response)
	return o.response
}

var pipeServer = netip.MustParseAddrPort("192.0.2.1:5683")

// clientBench is a StreamClient that connects to a pipeListener.
type clientBench struct {
	*testing.T
	*StreamClient
	listener *pipeListener
	shutdown context.CancelFunc
	dials    atomic.Int32
}

func newClientBench(t *testing.T, change func(*StreamClientConfig)) *clientBench {
	b := &clientBench{T: t, listener: newPipeListener()}
	c := StreamClientConfig{
		StreamConfig: testStreamConfig(t), Timeout: 30 * time.Second, Connections: 4, Calls: 8,
		Unused: time.Hour, RetryMin: time.Second, RetryMax: 8 * time.Second,
		Dial: func(ctx context.Context, server netip.AddrPort) (net.Conn, error) {
			b.dials.Add(1)
			ours, theirs := net.Pipe()
			select {
			case b.listener.conns <- pipeConn{theirs, net.TCPAddrFromAddrPort(pipeServer)}:
				return pipeConn{ours, net.TCPAddrFromAddrPort(server)}, nil
			case <-b.listener.closed:
				return nil, errors.New("connection refused")
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		},
	}
	if change != nil {
		change(&c)
	}
	ctx, cancel := context.WithCancel(t.Context())
	b.shutdown = cancel
	var err error
	b.StreamClient, err = NewStreamClient(ctx, c)
	require.NoError(t, err)
	t.Cleanup(func() { cancel(); b.Wait(); require.Zero(t, c.Stats.Open.Load()) })
	return b
}

// accept is the server's end of the next connection.
func (b *clientBench) accept() *streamPeer {
	b.Helper()
	c, err := b.listener.Accept()
	require.NoError(b, err)
	b.Cleanup(func() { _ = c.Close() })
	return &streamPeer{T: b.T, Conn: c}
}

func (b *clientBench) settled() *streamPeer {
	p := b.accept()
	p.expect(codes.CSM)
	p.send(&wire.Message{Code: codes.CSM})
	return p
}

func (b *clientBench) get(path, payload string) (*outcome, exchange.Canceler) {
	return b.getFrom(pipeServer, path, payload)
}

func (b *clientBench) getFrom(server netip.AddrPort, path, payload string) (*outcome, exchange.Canceler) {
	o := newOutcome()
	c := b.Exchange(&exchange.Request{
		Method: codes.GET, Options: pathOptions(path), Payload: []byte(payload), Arrival: time.Now(),
		Target: exchange.Target{Scheme: "coap+tcp", Addr: server},
	}, o)
	b.config.Engine.Flush()
	return o, c
}

// One connection for all requests; what waits for it goes out in order after the
// server's CSM; responses come in any order.
func TestStreamClient(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newClientBench(t, nil)
		first, _ := b.get("a", "1")
		second, _ := b.get("b", "2")
		p := b.accept()
		p.expect(codes.CSM)
		p.send(&wire.Message{Code: codes.CSM})
		one, two := p.expect(codes.GET), p.expect(codes.GET)
		require.Equal(t, "1", string(one.Payload))
		require.Equal(t, "2", string(two.Payload))
		require.Equal(t, "b", string(two.Options[0].Value))
		p.send(&wire.Message{Code: codes.Content, Token: two.Token, Payload: []byte("two")})
		p.send(&wire.Message{Code: codes.NotFound, Token: one.Token})
		p.send(&wire.Message{Code: codes.NotFound, Token: one.Token}) // nobody waits
		got := second.content(t)
		require.Equal(t, "two", string(got.Payload))
		require.Equal(t, pipeServer, got.From)
		require.Equal(t, codes.NotFound, first.content(t).Code)

		third, _ := b.get("c", "")
		p.send(&wire.Message{Code: codes.Valid, Token: p.expect(codes.GET).Token})
		require.Equal(t, codes.Valid, third.content(t).Code)
		require.EqualValues(t, 1, b.dials.Load())
		require.EqualValues(t, 1, b.config.Stats.Ignored.Load())
		p.send(streamRequest("x", "echo", ""))
		p.expect(codes.NotImplemented)
	})
}

// FP-32: 5.04 after 30 s from the arrival, also when the connection is not open
// yet; a late response is nobody's.
func TestStreamClientTimeout(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newClientBench(t, nil)
		start := time.Now()
		o, _ := b.get("a", "")
		p := b.settled()
		m := p.expect(codes.GET)
		require.Equal(t, exchange.NoAnswer, o.failure(t).Reason)
		require.Equal(t, 30*time.Second, time.Since(start))
		p.send(&wire.Message{Code: codes.Content, Token: m.Token})
	})
}

func TestStreamClientCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newClientBench(t, nil)
		waiting, c := b.get("never", "")
		c.Cancel()
		c.Cancel()
		<-waiting.done
		require.ErrorIs(t, waiting.err, exchange.ErrCanceled)
		_, c = b.get("sent", "")
		p := b.settled()
		m := p.expect(codes.GET)
		require.Equal(t, "sent", string(m.Options[0].Value))
		c.Cancel()
		p.send(&wire.Message{Code: codes.Content, Token: m.Token})
	})
}

// FP-33, FP-34: a connection that breaks, or never comes about, is 5.02 for
// everything that waits for it, and the next request gets a new one.
func TestStreamClientLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newClientBench(t, nil)
		one, _ := b.get("a", "")
		two, _ := b.get("b", "")
		p := b.settled()
		p.expect(codes.GET)
		p.expect(codes.GET)
		require.NoError(t, p.Close())
		require.Equal(t, exchange.Unreachable, one.failure(t).Reason)
		require.Equal(t, exchange.Unreachable, two.failure(t).Reason)
		require.EqualValues(t, 1, b.config.Stats.Lost.Load())

		three, _ := b.get("c", "")
		q := b.settled()
		q.send(&wire.Message{Code: codes.Content, Token: q.expect(codes.GET).Token})
		three.content(t)
	})
}

// A server that cannot be connected to is left alone for a while that doubles;
// requests are refused at once meanwhile.
func TestStreamClientBackoff(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newClientBench(t, nil)
		_ = b.listener.Close()
		for i, pause := range []time.Duration{1, 2, 4, 8, 8} {
			o, _ := b.get("a", "")
			require.Equal(t, exchange.Unreachable, o.failure(t).Reason)
			require.EqualValues(t, i+1, b.dials.Load())
			time.Sleep(pause*time.Second - 1)
			o, _ = b.get("a", "")
			require.Equal(t, exchange.Unreachable, o.failure(t).Reason)
			require.EqualValues(t, i+1, b.dials.Load(), "too early")
			time.Sleep(time.Nanosecond)
		}
		require.EqualValues(t, 5, b.config.Stats.DialsFailed.Load())
	})
}

// A server whose CSM never comes is one that cannot be connected to.
func TestStreamClientNoCSM(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newClientBench(t, nil)
		start := time.Now()
		o, _ := b.get("a", "")
		p := b.accept()
		p.expect(codes.CSM)
		p.expect(codes.Abort)
		require.Equal(t, b.config.Limits.Handshake, time.Since(start))
		_ = p.Close()
		require.Equal(t, exchange.Unreachable, o.failure(t).Reason)
	})
}

func TestStreamClientBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newClientBench(t, nil)
		for range b.config.Calls {
			b.get("a", "")
		}
		o, _ := b.get("a", "")
		require.Equal(t, exchange.Overloaded, o.failure(t).Reason)
		for i := range b.config.Connections - 1 {
			b.getFrom(netip.AddrPortFrom(pipeServer.Addr(), uint16(i+1)), "a", "")
		}
		o, _ = b.getFrom(netip.AddrPortFrom(pipeServer.Addr(), 99), "a", "")
		require.Equal(t, exchange.Overloaded, o.failure(t).Reason)
		b.shutdown()
		b.Wait()
		o, _ = b.get("a", "")
		require.Equal(t, exchange.Overloaded, o.failure(t).Reason)
	})
}

// Where there is no room for another connection, the one that has been unused for the
// longest time gives way.
func TestStreamClientMakesRoom(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newClientBench(t, nil)
		at := func(i int) netip.AddrPort { return netip.AddrPortFrom(pipeServer.Addr(), uint16(i)) }
		unused := make([]*streamPeer, 2)
		for i := range unused {
			o, _ := b.getFrom(at(i), "a", "")
			p := b.settled()
			p.send(&wire.Message{Code: codes.Content, Token: p.expect(codes.GET).Token})
			o.content(t)
			unused[i] = p
			time.Sleep(time.Second)
		}
		for i := len(unused); i <= b.config.Connections; i++ {
			b.getFrom(at(i), "a", "")
			b.settled().expect(codes.GET)
		}
		unused[0].expect(codes.Release)
		unused[0].expectEnd()
		synctest.Wait()
		require.EqualValues(t, 1, b.config.Stats.Evicted.Load())
		require.Equal(t, b.config.Connections, b.shares.Total())
		o, _ := b.getFrom(at(1), "again", "")
		p := unused[1]
		p.send(&wire.Message{Code: codes.Content, Token: p.expect(codes.GET).Token})
		o.content(t)
		b.getFrom(at(99), "a", "")
		b.settled().expect(codes.GET)
		p.expect(codes.Release)
		o, _ = b.getFrom(at(100), "a", "")
		require.Equal(t, exchange.Overloaded, o.failure(t).Reason)
	})
}

// One client alone leaves a quarter of the connections to others.
func TestStreamClientShares(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newClientBench(t, nil)
		from := func(client string, port uint16) *outcome {
			o := newOutcome()
			b.Exchange(&exchange.Request{Method: codes.GET, Options: pathOptions("a"), Arrival: time.Now(), Peer: netip.AddrPortFrom(netip.MustParseAddr(client), 1),
				Target: exchange.Target{Scheme: "coap+tcp", Addr: netip.AddrPortFrom(pipeServer.Addr(), port)}}, o)
			b.config.Engine.Flush()
			return o
		}
		for port := range uint16(3) {
			from("192.0.2.1", port)
		}
		require.Equal(t, exchange.Overloaded, from("192.0.2.1", 3).failure(t).Reason)
		from("192.0.2.2", 4)
		require.Equal(t, b.config.Connections, b.shares.Total())
		require.Equal(t, exchange.Overloaded, from("192.0.2.2", 5).failure(t).Reason)
	})
}

// RFC 8323 §5.5: after the server's Release nothing new is asked of it, what was
// asked is awaited, and a new connection takes over.
func TestStreamClientReleased(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newClientBench(t, nil)
		old, _ := b.get("old", "")
		p := b.settled()
		m := p.expect(codes.GET)
		p.send(&wire.Message{Code: codes.Release})
		synctest.Wait()
		fresh, _ := b.get("new", "")
		q := b.settled()
		q.send(&wire.Message{Code: codes.Content, Token: q.expect(codes.GET).Token})
		fresh.content(t)
		p.send(&wire.Message{Code: codes.Content, Token: m.Token})
		old.content(t)
		p.expect(codes.Release)
		p.expectEnd()
		require.EqualValues(t, 2, b.dials.Load())

		q.send(&wire.Message{Code: codes.Release}) // nothing is open
		q.expectEnd()
	})
}

// A connection that nobody uses is released.
func TestStreamClientUnused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newClientBench(t, func(c *StreamClientConfig) { c.Unused = time.Minute })
		o, _ := b.get("a", "")
		p := b.settled()
		p.send(&wire.Message{Code: codes.Content, Token: p.expect(codes.GET).Token})
		o.content(t)
		time.Sleep(50 * time.Second)
		o, _ = b.get("a", "")
		start := time.Now()
		p.send(&wire.Message{Code: codes.Content, Token: p.expect(codes.GET).Token})
		o.content(t)
		p.expect(codes.Release)
		require.Equal(t, time.Minute, time.Since(start))
		p.expectEnd()
	})
}

func TestStreamClientTooLarge(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newClientBench(t, nil)
		waiting, _ := b.get("a", strings.Repeat("p", 2000))
		p := b.accept()
		p.expect(codes.CSM)
		p.send(&wire.Message{Code: codes.CSM, Options: message.Options{{ID: wire.CSMMaxMessageSize, Value: wire.AppendUint(nil, 1500)}}})
		require.Equal(t, exchange.TooLarge, waiting.failure(t).Reason)
		later, _ := b.get("a", strings.Repeat("p", 2000))
		require.Equal(t, exchange.TooLarge, later.failure(t).Reason)
		b.get("a", strings.Repeat("p", 1400))
		p.expect(codes.GET)
	})
}

// Shutting down says Release; what is unanswered ends.
func TestStreamClientShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newClientBench(t, nil)
		o, _ := b.get("a", "")
		p := b.settled()
		p.expect(codes.GET)
		b.shutdown()
		p.expect(codes.Release)
		_ = p.Close()
		require.Equal(t, exchange.Unreachable, o.failure(t).Reason)
	})
}
