package endpoint

import (
	"bytes"
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/wire"
)

// FP-89: our CSM comes first and says what we can do; requests are answered in
// the order and with the Tokens they came with.
func TestStreamServes(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStreamBench(t, nil)
		p := b.peer()
		csm := p.expect(codes.CSM)
		size, _ := wire.First(csm.Options, wire.CSMMaxMessageSize)
		n, _ := wire.Uint(size)
		require.EqualValues(t, b.config.Limits.Message, n)
		require.True(t, wire.Has(csm.Options, wire.CSMBlockWiseTransfer))

		p.send(&wire.Message{Code: codes.CSM})
		p.send(&wire.Message{}) // Empty: ignored
		p.send(streamRequest("a", "echo", "one"))
		m := p.expect(codes.Content)
		require.Equal(t, "a", string(m.Token))
		require.Equal(t, "one", string(m.Payload))

		p.send(streamRequest("b", "relay", "xyz"))
		for _, want := range []string{"x", "y", "z"} {
			m := p.expect(codes.Content)
			require.Equal(t, "b"+want, string(m.Token)+string(m.Payload))
		}
		p.send(streamRequest("123456789", "echo", ""))
		p.expect(codes.BadRequest) // FP-83
		require.Nil(t, b.handler.proven(0), "nobody has proven anything")
		require.Equal(t, b.handler.origin(0), b.handler.origin(1))

		q := b.settled()
		q.send(streamRequest("a", "echo", ""))
		q.expect(codes.Content)
		require.NotEqual(t, b.handler.origin(0), b.handler.origin(2), "Tokens belong to a connection")
	})
}

// Many messages in one segment and one message in many.
func TestStreamSegments(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStreamBench(t, nil)
		p := b.settled()
		var all []byte
		for range 100 {
			all, _ = streamRequest("t", "echo", strings.Repeat("p", 1000)).AppendFrame(all)
		}
		go func() {
			for len(all) > 0 {
				n := min(len(all), 777)
				_, _ = p.Write(all[:n])
				all = all[n:]
			}
		}()
		for range 100 {
			require.Len(t, p.expect(codes.Content).Payload, 1000)
		}
		single, _ := streamRequest("t", "echo", "bytewise").AppendFrame(nil)
		for i := range single {
			_, err := p.Write(single[i : i+1])
			require.NoError(t, err)
		}
		require.Equal(t, "bytewise", string(p.expect(codes.Content).Payload))
	})
}

// What aborts a connection (RFC 8323 §3.3, §5.2, §5.6), and that it is the end.
func TestStreamAborts(t *testing.T) {
	critical := message.Options{{ID: 1}}
	for name, v := range map[string]struct {
		first bool // instead of a CSM
		send  []byte
		why   string
		bad   uint32
	}{
		"request before CSM":     {first: true, send: frameOf(streamRequest("a", "echo", "")), why: "CSM"},
		"ping before CSM":        {first: true, send: frameOf(&wire.Message{Code: codes.Ping}), why: "CSM"},
		"critical option in CSM": {first: true, send: frameOf(&wire.Message{Code: codes.CSM, Options: critical}), why: "critical", bad: 1},
		"bad Max-Message-Size":   {first: true, send: frameOf(&wire.Message{Code: codes.CSM, Options: message.Options{{ID: wire.CSMMaxMessageSize, Value: make([]byte, 5)}}}), why: "Max-Message-Size", bad: 2},
		"critical in Ping":       {send: frameOf(&wire.Message{Code: codes.Ping, Options: critical}), why: "critical"},
		"critical in Release":    {send: frameOf(&wire.Message{Code: codes.Release, Options: critical}), why: "critical"},
		"reserved token length":  {send: []byte{0x0f, 0x01}, why: "token length"},
		"options broken":         {send: []byte{0x20, 0x01, 0xb2, 'a'}, why: "format"},
		"reserved class":         {send: []byte{0x00, 0x21}, why: "class"},
		"too long":               {send: []byte{0xf0, 0xff, 0xff, 0xff, 0xff, 0x01}, why: "Max-Message-Size"},
		"just too long":          {send: []byte{0xe0, 0xff, 0xff, 0x02, 'x'}, why: "Max-Message-Size"},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newStreamBench(t, func(c *StreamConfig, _ *ServerLimits) { c.Limits.Message = 60000 })
				p := b.peer()
				p.expect(codes.CSM)
				if !v.first {
					p.send(&wire.Message{Code: codes.CSM})
				}
				_, err := p.Write(v.send)
				require.NoError(t, err)
				m := p.expect(codes.Abort)
				require.Contains(t, string(m.Payload), v.why)
				bad, has := wire.First(m.Options, wire.AbortBadCSMOption)
				n, _ := wire.Uint(bad)
				require.Equal(t, v.bad, n)
				require.Equal(t, v.bad != 0, has)
				p.expectEnd()
				require.EqualValues(t, 1, b.config.Stats.AbortsSent.Load())
				require.Zero(t, b.handler.served(), "nothing was served")
			})
		})
	}
}

func frameOf(m *wire.Message) []byte {
	f, err := m.AppendFrame(nil)
	if err != nil {
		panic(err)
	}
	return f
}

// A CSM that never comes costs a connection for a limited time only, and so does
// a header that is never finished.
func TestStreamNoCSM(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStreamBench(t, nil)
		start := time.Now()
		p, q := b.peer(), b.peerFrom("192.0.2.10:40000")
		q.expect(codes.CSM)
		_, err := q.Write([]byte{0xd0})
		require.NoError(t, err)
		p.expect(codes.CSM)
		require.Contains(t, string(p.expect(codes.Abort).Payload), "CSM")
		require.Contains(t, string(q.expect(codes.Abort).Payload), "CSM")
		require.Equal(t, b.config.Limits.Handshake, time.Since(start))
		p.expectEnd()
		require.EqualValues(t, 2, b.config.Stats.HandshakeTimeouts.Load())
	})
}

// RFC 8323 §5.4: a Pong has the Token of its Ping; Custody waits for what came
// before.
func TestStreamPing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStreamBench(t, nil)
		p := b.settled()
		custody := message.Options{{ID: wire.PingCustody}}
		p.send(&wire.Message{Code: codes.Ping, Token: []byte("t1")})
		m := p.expect(codes.Pong)
		require.Equal(t, "t1", string(m.Token))
		require.Empty(t, m.Options)
		p.send(&wire.Message{Code: codes.Ping, Token: []byte("t2"), Options: custody})
		require.True(t, wire.Has(p.expect(codes.Pong).Options, wire.PingCustody))

		p.send(streamRequest("r", "hang", ""))
		p.send(&wire.Message{Code: codes.Ping, Token: []byte("t3"), Options: custody})
		p.send(&wire.Message{Code: codes.Ping, Token: []byte("t4"), Options: custody})
		m = p.expect(codes.Pong)
		require.Equal(t, "t4", string(m.Token), "one Pong may wait")
		require.Empty(t, m.Options)
		b.handler.hanging[0].Respond(&wire.Message{Code: codes.Content}, message.NonConfirmable, nil)
		b.config.Engine.Flush()
		p.expect(codes.Content)
		m = p.expect(codes.Pong)
		require.Equal(t, "t3", string(m.Token))
		require.True(t, wire.Has(m.Options, wire.PingCustody))
	})
}

// A silent peer is asked, and its connection ended when it says nothing.
func TestStreamIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStreamBench(t, nil)
		start := time.Now()
		p := b.settled()
		p.send(streamRequest("r", "hang", ""))
		p.expect(codes.Ping)
		require.Equal(t, b.config.Limits.Idle, time.Since(start))
		p.send(&wire.Message{Code: codes.Pong})
		p.expect(codes.Ping)
		require.Equal(t, 2*b.config.Limits.Idle, time.Since(start))
		p.expectEnd()
		require.Equal(t, 2*b.config.Limits.Idle+b.config.Limits.Pong, time.Since(start))
		synctest.Wait()
		_, gone := b.handler.count()
		require.Equal(t, 1, gone)
		require.EqualValues(t, 1, b.config.Stats.PeersSilent.Load())
	})
}

// GP-44: a connection that closes ends what it asked for, and only that.
func TestStreamGone(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStreamBench(t, nil)
		p, q := b.settled(), b.settled()
		p.send(streamRequest("1", "hang", ""))
		p.send(streamRequest("2", "hang", ""))
		p.send(streamRequest("3", "echo", ""))
		q.send(streamRequest("1", "hang", ""))
		p.expect(codes.Content)
		synctest.Wait()
		hanging, gone := b.handler.count()
		require.Equal(t, 3, hanging)
		require.Zero(t, gone)
		require.NoError(t, p.Close())
		synctest.Wait()
		_, gone = b.handler.count()
		require.Equal(t, 2, gone, "answered requests have nothing to be canceled")

		in := b.handler.hanging[0]
		in.Respond(&wire.Message{Code: codes.Content}, message.NonConfirmable, nil) // to nobody
		in.Finish()
		in.CancelWhenGone(streamCancel{b.handler})
		_, gone = b.handler.count()
		require.Equal(t, 3, gone, "the client has gone already")
	})
}

// RFC 8323 §5.5: what is open when the peer releases the connection is still
// answered, then it is closed.
func TestStreamReleaseOfPeer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStreamBench(t, nil)
		p := b.settled()
		p.send(streamRequest("1", "hang", ""))
		p.send(&wire.Message{Code: codes.Release})
		synctest.Wait()
		b.handler.hanging[0].Respond(&wire.Message{Code: codes.Content}, message.NonConfirmable, nil)
		b.config.Engine.Flush()
		p.expect(codes.Content)
		p.expectEnd()

		idle := b.settled()
		idle.send(&wire.Message{Code: codes.Release})
		idle.expectEnd()
	})
}

// Shutting down says Release and does not wait for peers that do not care.
func TestStreamShutdown(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStreamBench(t, nil)
		p, deaf := b.settled(), b.settled()
		p.send(streamRequest("1", "hang", ""))
		synctest.Wait()
		start := time.Now()
		b.shutdown()
		p.expect(codes.Release)
		p.expectEnd()
		_ = deaf
		<-b.served
		require.LessOrEqual(t, time.Since(start), b.config.Limits.Write+b.config.Limits.Linger)
		_, gone := b.handler.count()
		require.Equal(t, 1, gone)
	})
}

// A peer that does not read costs the bytes of the queue, then its connection.
func TestStreamSlowReader(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStreamBench(t, func(c *StreamConfig, _ *ServerLimits) { c.Limits.Queue = 100 << 10; c.Limits.Write = time.Hour })
		p, other := b.settled(), b.settled()
		go func() {
			for i := 0; ; i++ {
				if _, err := p.Write(frameOf(streamRequest("t", "echo", strings.Repeat("p", 1000)))); err != nil {
					return
				}
			}
		}()
		synctest.Wait()
		require.EqualValues(t, 1, b.config.Stats.QueueFull.Load())
		require.EqualValues(t, 1, b.config.Stats.Open.Load())
		other.send(streamRequest("a", "echo", ""))
		other.expect(codes.Content)
	})
}

// A write that makes no progress ends the connection.
func TestStreamWriteDeadline(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStreamBench(t, nil)
		p := b.settled()
		p.send(streamRequest("t", "echo", "never read"))
		time.Sleep(b.config.Limits.Write + time.Millisecond)
		synctest.Wait()
		require.Zero(t, b.config.Stats.Open.Load())
	})
}

func TestStreamPeerMaxMessageSize(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStreamBench(t, nil)
		p := b.settled()
		p.send(streamRequest("t", "echo", strings.Repeat("p", 1200)))
		m := p.expect(codes.InternalServerError)
		require.Contains(t, string(m.Payload), "Max-Message-Size")
		require.EqualValues(t, 1, b.config.Stats.ResponsesTooBig.Load())
		p.send(&wire.Message{Code: codes.CSM, Options: message.Options{{ID: wire.CSMMaxMessageSize, Value: wire.AppendUint(nil, 2000)}}})
		p.send(&wire.Message{Code: codes.CSM}) // says nothing new
		p.send(streamRequest("t", "echo", strings.Repeat("p", 1200)))
		p.expect(codes.Content)
	})
}

func TestStreamRequestLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStreamBench(t, func(c *StreamConfig, _ *ServerLimits) { c.Limits.Requests = 2 })
		p := b.settled()
		p.send(streamRequest("1", "hang", ""))
		p.send(streamRequest("2", "hang", ""))
		p.send(streamRequest("3", "hang", ""))
		require.Equal(t, "3", string(p.expect(codes.ServiceUnavailable).Token))
		b.handler.hanging[1].Finish()
		p.send(streamRequest("4", "echo", ""))
		p.expect(codes.Content)
	})
}

// A peer that serves nobody says so (RFC 8323 §3.3).
func TestStreamNoServer(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newStreamBench(t, func(c *StreamConfig, _ *ServerLimits) { c.Requests = nil })
		p := b.settled()
		p.send(streamRequest("1", "echo", ""))
		p.expect(codes.NotImplemented)
		p.send(&wire.Message{Code: codes.Content, Token: []byte("?")}) // matches nothing
		p.send(&wire.Message{Code: 7<<5 | 31})                         // unknown, without critical options
		p.send(&wire.Message{Code: codes.Ping})
		p.expect(codes.Pong)
		require.EqualValues(t, 2, b.config.Stats.Ignored.Load())
		p.send(&wire.Message{Code: codes.Abort, Payload: []byte("why")})
		p.expectEnd()
	})
}

func TestStreamServerLimits(t *testing.T) {
	for name, v := range map[string]struct {
		limits ServerLimits
		from   []string // the last one is refused
		settle bool
	}{
		"in total":          {ServerLimits{Connections: 2, PerPeer: 9, Handshakes: 9}, []string{"192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"}, true},
		"per peer":          {ServerLimits{Connections: 9, PerPeer: 2, Handshakes: 9}, []string{"192.0.2.1:1", "192.0.2.2:1", "192.0.2.1:2", "192.0.2.1:3"}, true},
		"per IPv6 network":  {ServerLimits{Connections: 9, PerPeer: 1, Handshakes: 9}, []string{"[2001:db8::1]:1", "[2001:db8:0:1::1]:1", "[2001:db8::ffff:1]:1"}, true},
		"under way":         {ServerLimits{Connections: 9, PerPeer: 9, Handshakes: 2}, []string{"192.0.2.1:1", "192.0.2.2:1", "192.0.2.3:1"}, false},
		"under way, zoned?": {ServerLimits{Connections: 9, PerPeer: 1, Handshakes: 9}, []string{"[fe80::1%eth0]:1", "[fe80::2%eth0]:1"}, false},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				b := newStreamBench(t, func(_ *StreamConfig, l *ServerLimits) { *l = v.limits })
				var first *streamPeer
				for i, from := range v.from {
					p := b.peerFrom(from)
					if i == len(v.from)-1 {
						p.expectEnd()
						break
					}
					p.expect(codes.CSM)
					if v.settle {
						p.send(&wire.Message{Code: codes.CSM})
						synctest.Wait()
					}
					if first == nil {
						first = p
					}
				}
				require.EqualValues(t, 1, b.config.Stats.Refused.Load())
				_ = first.Close()
				synctest.Wait()
				b.peerFrom(v.from[0]).expect(codes.CSM) // the place is free again
			})
		})
	}
}

// FuzzStream feeds a connection with arbitrary bytes: it ends or serves, never
// panics, and what it sends is frames.
func FuzzStream(f *testing.F) {
	csm := frameOf(&wire.Message{Code: codes.CSM})
	f.Add(append(csm, frameOf(streamRequest("a", "relay", "123"))...))
	f.Add(append(csm, 0x0f, 1))
	f.Add(frameOf(&wire.Message{Code: codes.Ping}))
	f.Add(append(csm, frameOf(&wire.Message{Code: codes.Release})...))
	f.Fuzz(func(t *testing.T, data []byte) {
		c := testStreamConfig(t)
		c.Requests = &streamHandler{}
		s := newStream(c, NewStreamServer(c, DefaultServerLimits()), nil)
		s.place = &place{server: NewStreamServer(c, DefaultServerLimits())}
		conn := &deafConn{in: bytes.NewReader(data)}
		s.conn = &netTransport{conn: conn, raw: conn}
		_ = s.run(context.Background(), time.Now().Add(time.Minute))
		sent := conn.out.Bytes()
		for len(sent) > 0 {
			n, err := wire.FrameLen(sent)
			require.NoError(t, err)
			if n > uint64(len(sent)) {
				break
			}
			require.NoError(t, (&wire.Message{}).DecodeFrame(sent[:n]))
			sent = sent[n:]
		}
	})
}

// deafConn delivers what it was made with and keeps what is written.
type deafConn struct {
	net.Conn
	in  io.Reader
	out bytes.Buffer
}

func (c *deafConn) Read(b []byte) (int, error)       { return c.in.Read(b) }
func (c *deafConn) Write(b []byte) (int, error)      { return c.out.Write(b) }
func (c *deafConn) SetReadDeadline(time.Time) error  { return nil }
func (c *deafConn) SetWriteDeadline(time.Time) error { return nil }
func (c *deafConn) Close() error                     { return nil }
