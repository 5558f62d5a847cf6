package endpoint_test

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/endpoint"
	"coapproxy/endpoint/memnet"
	"coapproxy/wire"
)

// sightings records when datagrams were sent to an address.
type sightings struct {
	mu    sync.Mutex
	times []time.Time
	data  []string
}

func (s *sightings) watch(b *bed, to netip.AddrPort) {
	b.network.Shape(func(_, dest netip.AddrPort, data []byte) []time.Duration {
		if dest == to {
			s.mu.Lock()
			s.times = append(s.times, time.Now())
			s.data = append(s.data, string(data))
			s.mu.Unlock()
		}
		return memnet.At(0)
	})
}

func (s *sightings) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.times)
}

// sendCON sends a confirmable message to clientAddr.
func sendCON(t *testing.T, b *bed, e *endpoint.Endpoint, w endpoint.Watcher) uint16 {
	t.Helper()
	id := e.NextID(clientAddr)
	m := wire.Message{Type: message.Confirmable, Code: codes.Content, ID: id, Token: []byte("token"), Payload: []byte("payload")}
	require.NoError(t, e.Send(endpoint.PeerOf(clientAddr), endpoint.Path{}, &m, w))
	b.engine.Flush()
	return id
}

// RFC 7252 §4.2: ACK_TIMEOUT times a random factor, doubled MAX_RETRANSMIT
// times; the same bytes each time; given up after at most MAX_TRANSMIT_WAIT.
func TestRetransmission(t *testing.T) {
	var firsts []time.Duration
	for range 40 {
		inBed(t, func(t *testing.T, b *bed) {
			e := b.serve(answering{})
			b.raw(clientAddr, serverAddr)
			var s sightings
			s.watch(b, clientAddr)
			var w fates
			start := time.Now()
			id := sendCON(t, b, e, &w)
			for len(w.failed()) == 0 {
				pass(100 * time.Millisecond)
			}
			total := time.Since(start)
			require.Len(t, s.times, 5)
			first := s.times[1].Sub(s.times[0])
			require.GreaterOrEqual(t, first, 2*time.Second)
			require.LessOrEqual(t, first, 3*time.Second)
			firsts = append(firsts, first)
			for i := 2; i < 5; i++ {
				require.Equal(t, first<<(i-1), s.times[i].Sub(s.times[i-1]))
				require.Equal(t, s.data[0], s.data[i])
			}
			require.InDelta(t, 31*first, total, float64(100*time.Millisecond))
			require.LessOrEqual(t, total, 93*time.Second+100*time.Millisecond) // MAX_TRANSMIT_WAIT
			require.ErrorIs(t, w.failed()[id], endpoint.ErrNoAck)
			require.Empty(t, w.acked())
			require.Zero(t, e.Pending())
			require.Zero(t, b.engine.Scheduled())
			require.EqualValues(t, 4, b.stats.Retransmissions.Load())
			require.EqualValues(t, 1, b.stats.Timeouts.Load())
		})
	}
	slices.Sort(firsts)
	require.Less(t, firsts[0], 2300*time.Millisecond, "the random factor is not used")
	require.Greater(t, firsts[len(firsts)-1], 2700*time.Millisecond)
}

// Other parameters are respected.
func TestTransmissionParameters(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		e := b.serve(answering{}, func(c *endpoint.Config) {
			c.Params = endpoint.Params{AckTimeout: 100 * time.Millisecond, AckRandomFactor: 1, MaxRetransmit: 2}
		})
		b.raw(clientAddr, serverAddr)
		var s sightings
		s.watch(b, clientAddr)
		var w fates
		id := sendCON(t, b, e, &w)
		pass(700*time.Millisecond - 1)
		require.Equal(t, 3, s.count())
		require.Empty(t, w.failed())
		pass(1)
		require.ErrorIs(t, w.failed()[id], endpoint.ErrNoAck)
	})
}

// An ACK and a RST stop the retransmission, at any time, if they are from the
// peer and have the Message ID; nothing else does.
func TestWhatStopsRetransmission(t *testing.T) {
	const after = 10 * time.Second // two retransmissions
	acknowledged := func(t *testing.T, w *fates, id uint16) {
		require.Equal(t, []uint16{id}, w.acked())
		require.Empty(t, w.failed())
	}
	reset := func(t *testing.T, w *fates, id uint16) {
		require.Empty(t, w.acked())
		require.ErrorIs(t, w.failed()[id], endpoint.ErrReset)
	}
	nothing := func(t *testing.T, w *fates, _ uint16) {
		require.Empty(t, w.acked())
		require.Empty(t, w.failed())
	}
	for _, tt := range []struct {
		name  string
		from  netip.AddrPort
		reply func(id uint16) wire.Message
		stops bool
		check func(*testing.T, *fates, uint16)
	}{
		{"ACK", clientAddr, func(id uint16) wire.Message { return emptyOf(message.Acknowledgement, id) }, true, acknowledged},
		{"RST", clientAddr, func(id uint16) wire.Message { return emptyOf(message.Reset, id) }, true, reset},
		{"ACK with a response", clientAddr, func(id uint16) wire.Message {
			return wire.Message{Type: message.Acknowledgement, Code: codes.Content, ID: id}
		}, true, acknowledged},
		{"ACK with a request", clientAddr, func(id uint16) wire.Message {
			return wire.Message{Type: message.Acknowledgement, Code: codes.GET, ID: id}
		}, false, nothing},
		{"RST with a code", clientAddr, func(id uint16) wire.Message {
			return wire.Message{Type: message.Reset, Code: codes.Content, ID: id}
		}, false, nothing},
		{"ACK for another message", clientAddr, func(id uint16) wire.Message { return emptyOf(message.Acknowledgement, id+1) }, false, nothing},
		{"RST for another message", clientAddr, func(id uint16) wire.Message { return emptyOf(message.Reset, id+1) }, false, nothing},
		{"ACK from another port", netip.AddrPortFrom(clientAddr.Addr(), 9), func(id uint16) wire.Message { return emptyOf(message.Acknowledgement, id) }, false, nothing},
		{"RST from another host", strange, func(id uint16) wire.Message { return emptyOf(message.Reset, id) }, false, nothing},
		{"NON with the Message ID", clientAddr, func(id uint16) wire.Message { return emptyOf(message.NonConfirmable, id) }, false, nothing},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBed(t, func(t *testing.T, b *bed) {
				e := b.serve(answering{})
				conn := b.listen(clientAddr)
				var s sightings
				s.watch(b, clientAddr)
				var w fates
				id := sendCON(t, b, e, &w)
				pass(after)
				sent := s.count()
				require.Equal(t, 3, sent)
				reply := tt.reply(id)
				data, err := reply.Append(nil)
				require.NoError(t, err)
				if tt.from != clientAddr {
					conn = b.listen(tt.from)
				}
				require.NoError(t, conn.Send(serverAddr, data))
				synctest.Wait()
				tt.check(t, &w, id)
				if tt.stops {
					require.Zero(t, e.Pending())
					require.Zero(t, b.engine.Scheduled())
				} else {
					require.Equal(t, 1, e.Pending())
				}
				require.NoError(t, conn.Send(serverAddr, data)) // repeated
				synctest.Wait()
				tt.check(t, &w, id)
				if tt.stops {
					pass(time.Hour)
					require.Equal(t, sent, s.count())
				} else {
					pass(time.Minute)
					require.Equal(t, 5, s.count())
				}
			})
		})
	}
}

// A NON message can be reset but not acknowledged, and whoever waits for that
// says when it is over.
func TestWatchedNON(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		e := b.serve(answering{})
		client := b.raw(clientAddr, serverAddr)
		var w fates
		send := func() uint16 {
			m := non(codes.Content, e.NextID(clientAddr))
			require.NoError(t, e.Send(endpoint.PeerOf(clientAddr), endpoint.Path{}, &m, &w))
			b.engine.Flush()
			require.Equal(t, m, client.one())
			return m.ID
		}
		id := send()
		client.send(emptyOf(message.Acknowledgement, id))
		require.Empty(t, w.acked())
		pass(time.Hour)
		require.Equal(t, 1, e.Pending())
		client.send(emptyOf(message.Reset, id))
		require.ErrorIs(t, w.failed()[id], endpoint.ErrReset)
		require.Zero(t, e.Pending())

		id = send()
		e.Settle(clientAddr, id)
		client.send(emptyOf(message.Reset, id))
		require.NotContains(t, w.failed(), id)
		require.Zero(t, e.Pending())
		client.none()
		require.EqualValues(t, 1, b.stats.ResetsReceived.Load())
		require.EqualValues(t, 2, b.stats.Ignored.Load())
	})
}

// Settle stops a retransmission without a word to the watcher.
func TestSettle(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		e := b.serve(answering{})
		client := b.raw(clientAddr, serverAddr)
		var w fates
		id := sendCON(t, b, e, &w)
		client.one()
		e.Settle(clientAddr, id)
		e.Settle(clientAddr, id)
		pass(time.Hour)
		client.none()
		require.Empty(t, w.failed())
		require.Zero(t, b.engine.Scheduled())
	})
}

// A message that is settled while its time is up is settled.
func TestSettleWhileExpiring(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		e := b.serve(answering{}, func(c *endpoint.Config) {
			c.Params = endpoint.Params{AckTimeout: time.Second, AckRandomFactor: 1}
		})
		b.raw(clientAddr, serverAddr)
		// Of two that are given up at the same time, the first settles the other.
		w := settling{e: e}
		for range 2 {
			id := sendCON(t, b, e, &w)
			w.mu.Lock()
			w.ids = append(w.ids, id)
			w.mu.Unlock()
		}
		pass(time.Minute)
		require.EqualValues(t, 1, w.told.Load())
	})
}

// settling is a Watcher that settles all messages when it is told of one.
type settling struct {
	e    *endpoint.Endpoint
	told atomic.Int32
	mu   sync.Mutex
	ids  []uint16
}

func (w *settling) Acknowledged(uint16) {}

func (w *settling) Failed(uint16, error) {
	w.told.Add(1)
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, id := range w.ids {
		w.e.Settle(clientAddr, id)
	}
}

// A confirmable message that nobody watches is retransmitted all the same.
func TestUnwatchedSeparateResponse(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		var h keeping
		e := b.serve(&h)
		client := b.raw(clientAddr, serverAddr)
		client.send(con(codes.GET, 7))
		in := h.one(t)
		in.Ack()
		in.Respond(content("x"), message.Confirmable, nil)
		b.engine.Flush()
		pass(3 * time.Second)
		all := client.got()
		require.Len(t, all, 3)
		require.Equal(t, all[1], all[2])
		client.send(emptyOf(message.Reset, all[1].ID))
		pass(time.Hour)
		client.none()
		require.Zero(t, e.Pending())
	})
}

// A message that cannot be encoded is not waited for.
func TestSendError(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		e := b.serve(answering{})
		var w fates
		for _, typ := range []message.Type{message.Confirmable, message.NonConfirmable} {
			m := wire.Message{Type: typ, Code: codes.GET, Options: message.Options{{ID: 11}, {ID: 3}}}
			require.ErrorIs(t, e.Send(endpoint.PeerOf(clientAddr), endpoint.Path{}, &m, &w), wire.ErrUnsorted)
		}
		require.Zero(t, e.Pending())
		require.Zero(t, b.engine.Scheduled())
		pass(time.Hour)
		require.Empty(t, w.failed())
	})
}

// FP-91: towards clients Message IDs are sequential, and when they wrap within
// EXCHANGE_LIFETIME it is counted. A confirmable message whose ID is used again
// before it was acknowledged is given up, and its watcher told.
func TestMessageIDWrap(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		e := b.serve(answering{})
		b.raw(clientAddr, serverAddr)
		var old, current fates
		first := sendCON(t, b, e, &old)
		e.SkipMessageIDs(0xffff)
		require.Equal(t, first, sendCON(t, b, e, &current))
		pass(93 * time.Second)
		require.ErrorIs(t, old.failed()[first], endpoint.ErrNoAck)
		require.ErrorIs(t, current.failed()[first], endpoint.ErrNoAck)
		require.EqualValues(t, 4, b.stats.Retransmissions.Load(), "the new one's")
		require.Zero(t, e.Pending())
		require.Zero(t, b.engine.Scheduled())

		require.Zero(t, b.stats.MessageIDWraps.Load())
		for range 3 << 16 {
			e.NextID(clientAddr)
		}
		require.EqualValues(t, 2, b.stats.MessageIDWraps.Load(), "the first of three is long after the one before")
		pass(endpoint.ExchangeLifetime)
		for range 1 << 16 {
			e.NextID(clientAddr)
		}
		require.EqualValues(t, 2, b.stats.MessageIDWraps.Load())
	})
}

// A message that comes back, or that the kernel refuses to send, has failed at
// once, confirmable or not (FP-34).
func TestUndeliverable(t *testing.T) {
	for _, typ := range []message.Type{message.Confirmable, message.NonConfirmable} {
		for _, refused := range []bool{false, true} {
			inBed(t, func(t *testing.T, b *bed) {
				conn, err := b.network.Host(serverAddr.Addr()).Listen(serverAddr, memnet.Options{Errors: true})
				require.NoError(t, err)
				e := b.serveOn(conn, answering{})
				b.network.Host(clientAddr.Addr()) // nobody listens
				if refused {
					conn.Refuse(func(*endpoint.Datagram) error { return syscall.ENETUNREACH })
				}
				var w fates
				m := request(typ, codes.Content, 7)
				require.NoError(t, e.Send(endpoint.PeerOf(clientAddr), endpoint.Path{}, &m, &w))
				b.engine.Flush()
				synctest.Wait()
				require.ErrorIs(t, w.failed()[7], endpoint.ErrUndeliverable)
				require.Equal(t, refused, errors.Is(w.failed()[7], syscall.ENETUNREACH))
				require.Zero(t, e.Pending())
				require.Zero(t, b.engine.Scheduled())
				if refused {
					require.EqualValues(t, 1, b.stats.SendFailed.Load())
				} else {
					require.EqualValues(t, 1, b.stats.Undeliverable.Load())
				}
			})
		}
	}
}

// What is said in answer to a peer has the peer's Message ID: when it cannot be
// delivered, a message of our own with the same ID has not failed.
func TestUndeliverableAnswer(t *testing.T) {
	for _, refused := range []bool{false, true} {
		inBed(t, func(t *testing.T, b *bed) {
			conn, err := b.network.Host(serverAddr.Addr()).Listen(serverAddr, memnet.Options{Errors: true})
			require.NoError(t, err)
			e := b.serveOn(conn, answering{})
			client := b.raw(clientAddr, serverAddr)
			var w fates
			id := sendCON(t, b, e, &w)
			client.one()
			data, err := (&wire.Message{Type: message.Confirmable, ID: id}).Append(nil) // ping
			require.NoError(t, err)
			if refused {
				conn.Refuse(func(*endpoint.Datagram) error { return syscall.EPERM })
				require.NoError(t, client.conn.Send(serverAddr, data))
			} else {
				b.network.Shape(func(from, _ netip.AddrPort, _ []byte) []time.Duration {
					if from == clientAddr {
						return memnet.At(time.Millisecond)
					}
					return memnet.At(0)
				})
				require.NoError(t, client.conn.Send(serverAddr, data))
				require.NoError(t, client.conn.Close())
			}
			pass(time.Second)
			require.EqualValues(t, 1, b.stats.SendFailed.Load()+b.stats.Undeliverable.Load())
			require.Empty(t, w.failed())
			require.Equal(t, 1, e.Pending())
		})
	}
}

// An ICMP error may quote no more than the header of the message.
func TestUndeliverableQuotedInPart(t *testing.T) {
	for length := range 12 {
		inBed(t, func(t *testing.T, b *bed) {
			conn := &returning{Conn: b.listen(serverAddr), cut: length, back: make(chan []byte, 1)}
			e := b.serveOn(conn, answering{})
			var w fates
			id := sendCON(t, b, e, &w)
			synctest.Wait()
			if length < 4 {
				require.Empty(t, w.failed())
			} else {
				require.ErrorIs(t, w.failed()[id], endpoint.ErrUndeliverable)
			}
		})
	}
}

// returning returns what it is to send, cut off.
type returning struct {
	*memnet.Conn
	cut  int
	back chan []byte
}

func (c *returning) WriteBatch(batch []endpoint.Datagram) (int, error) {
	c.back <- slices.Clone(batch[0].Data[:c.cut])
	return 1, nil
}

func (c *returning) ReadBatch(batch []endpoint.Datagram) (int, error) {
	data, open := <-c.back
	if !open {
		return 0, net.ErrClosed
	}
	batch[0] = endpoint.Datagram{Peer: endpoint.PeerOf(clientAddr), Data: data, Undeliverable: endpoint.ErrUndeliverable}
	return 1, nil
}

func (c *returning) Close() error {
	close(c.back)
	return c.Conn.Close()
}
