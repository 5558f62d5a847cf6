package endpoint_test

import (
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/endpoint"
	"coapproxy/endpoint/memnet"
	"coapproxy/wire"
)

// RFC 7252 §5.2.1, FP-30
func TestPiggybackedResponse(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		e := b.serve(answering{})
		client := b.raw(clientAddr, serverAddr)
		client.send(con(codes.GET, 7))
		m := client.one()
		require.Equal(t, message.Acknowledgement, m.Type)
		require.Equal(t, codes.Content, m.Code)
		require.EqualValues(t, 7, m.ID)
		require.Equal(t, []byte{0, 7}, m.Token)
		require.Equal(t, answer, m.Payload)
		require.Zero(t, e.Pending())
		pass(time.Hour)
		client.none()
	})
}

// RFC 7252 §5.2.3: a NON request gets a NON response with a Message ID of the
// server's.
func TestNonResponse(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		e := b.serve(answering{})
		client := b.raw(clientAddr, serverAddr)
		var ids []uint16
		for i := range uint16(3) {
			client.send(non(codes.GET, 100+i))
			m := client.one()
			require.Equal(t, message.NonConfirmable, m.Type)
			require.Equal(t, []byte{0, byte(100 + i)}, m.Token)
			ids = append(ids, m.ID)
		}
		require.Equal(t, []uint16{ids[0], ids[0] + 1, ids[0] + 2}, ids)
		require.Zero(t, e.Pending())
	})
}

// FP-30: with no answer within the processing delay of 500 ms an empty ACK goes
// out, and the response is a message of its own (RFC 7252 §5.2.2).
func TestSeparateResponse(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		var h keeping
		e := b.serve(&h)
		client := b.raw(clientAddr, serverAddr)
		client.send(con(codes.GET, 7))
		in := h.one(t)
		pass(500*time.Millisecond - 1)
		client.none()
		pass(1)
		requireEmpty(t, message.Acknowledgement, 7, client.one())

		var w fates
		in.Respond(content("late"), message.Confirmable, &w)
		b.engine.Flush()
		m := client.one()
		require.Equal(t, message.Confirmable, m.Type)
		require.Equal(t, []byte{0, 7}, m.Token)
		require.Equal(t, "late", string(m.Payload))
		require.Equal(t, 1, e.Pending())
		client.send(emptyOf(message.Acknowledgement, m.ID))
		require.Equal(t, []uint16{m.ID}, w.acked())
		require.Zero(t, e.Pending())
		require.Zero(t, b.engine.Scheduled())
		pass(time.Hour)
		client.none()
	})
}

// An answer that comes in time leaves no deadline behind.
func TestResponseWithinProcessingDelay(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		var h keeping
		b.serve(&h)
		client := b.raw(clientAddr, serverAddr)
		client.send(con(codes.GET, 7))
		in := h.one(t)
		require.Equal(t, 1, b.engine.Scheduled())
		pass(499 * time.Millisecond)
		in.Respond(content("in time"), message.Confirmable, nil)
		b.engine.Flush()
		require.Zero(t, b.engine.Scheduled())
		require.Equal(t, message.Acknowledgement, client.one().Type)
		pass(time.Hour)
		client.none()
	})
}

// What an Incoming does depends on what it has done before.
func TestIncoming(t *testing.T) {
	const acknowledged, piggybacked, separateNON, separateCON = "ACK", "ACK 2.05", "NON 2.05", "CON 2.05"
	ack := func(in *endpoint.Incoming) { in.Ack() }
	ackLater := func(in *endpoint.Incoming) { in.AckLater() }
	finish := func(in *endpoint.Incoming) { in.Finish() }
	respond := func(typ message.Type) func(*endpoint.Incoming) {
		return func(in *endpoint.Incoming) { in.Respond(content("x"), typ, nil) }
	}
	respondNON, respondCON := respond(message.NonConfirmable), respond(message.Confirmable)
	type steps []func(*endpoint.Incoming)
	for _, tt := range []struct {
		name  string
		typ   message.Type
		steps steps
		want  []string
	}{
		{"CON: ACK, response", message.Confirmable, steps{ack, respondNON}, []string{acknowledged, separateNON}},
		{"CON: ACK twice", message.Confirmable, steps{ack, ack}, []string{acknowledged}},
		{"CON: ACK, ACK later", message.Confirmable, steps{ack, ackLater}, []string{acknowledged}},
		{"CON: ACK, confirmable response, unwatched", message.Confirmable, steps{ack, respondCON}, []string{acknowledged, separateCON}},
		{"CON: response twice", message.Confirmable, steps{respondCON, respondCON}, []string{piggybacked}},
		{"CON: response, finish", message.Confirmable, steps{respondCON, finish}, []string{piggybacked}},
		{"CON: response, ACK later", message.Confirmable, steps{respondCON, ackLater, ack}, []string{piggybacked}},
		{"CON: finish", message.Confirmable, steps{finish, ackLater}, []string{acknowledged}},
		{"CON: finish, response", message.Confirmable, steps{finish, respondCON, finish}, []string{acknowledged}},
		{"NON: ACK", message.NonConfirmable, steps{ack, ackLater}, nil},
		{"NON: finish", message.NonConfirmable, steps{finish, respondNON}, nil},
		{"NON: ACK, response", message.NonConfirmable, steps{ack, respondNON}, []string{separateNON}},
		{"NON: confirmable response", message.NonConfirmable, steps{respondCON}, []string{separateCON}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBed(t, func(t *testing.T, b *bed) {
				e := b.serve(handlerFunc(func(rx *endpoint.Reception, m *wire.Message) {
					in := &endpoint.Incoming{}
					in.Accept(rx, m)
					require.Equal(t, rx.Origin(), in.Origin())
					for _, step := range tt.steps {
						step(in)
					}
				}))
				client := b.raw(clientAddr, serverAddr)
				client.send(request(tt.typ, codes.GET, 7))
				pass(time.Second)
				var got []string
				for _, m := range client.got() {
					s := map[message.Type]string{message.Acknowledgement: "ACK", message.NonConfirmable: "NON", message.Confirmable: "CON"}[m.Type]
					if m.Code != codes.Empty {
						s += " 2.05"
						require.Equal(t, []byte{0, 7}, m.Token)
					}
					if m.Type == message.Acknowledgement {
						require.EqualValues(t, 7, m.ID)
					} else {
						client.send(emptyOf(message.Acknowledgement, m.ID))
					}
					got = append(got, s)
				}
				require.Equal(t, tt.want, got)
				require.Zero(t, e.Pending())
				require.Zero(t, b.engine.Scheduled())
			})
		})
	}
}

// A reply leaves from the address that was asked, and what it repeats does so
// too.
func TestReplyLeavesFromAddressAsked(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		first, second := serverAddr.Addr(), netip.MustParseAddr("192.0.2.77")
		conn, err := b.network.Host(first, second).Listen(netip.AddrPortFrom(netip.IPv4Unspecified(), 5683), memnet.Options{})
		require.NoError(t, err)
		e := b.serveOn(conn, answering{})
		require.Equal(t, conn.LocalAddr(), e.LocalAddr())
		client := b.raw(clientAddr, serverAddr)
		replies := 0
		for _, typ := range []message.Type{message.Confirmable, message.NonConfirmable} {
			for _, local := range []netip.Addr{first, second, second} {
				to := netip.AddrPortFrom(local, 5683)
				client.sendTo(to, request(typ, codes.GET, uint16(typ)))
				for _, d := range client.conn.Received() {
					require.Equal(t, to, d.Peer.Addr)
					replies++
				}
			}
		}
		// A Message ID is one of the client and one address (RFC 7252 §4.4):
		// of each three requests one is a repetition.
		require.EqualValues(t, 2, b.stats.Duplicates.Load())
		require.Equal(t, 5, replies, "all but the repeated NON request")
	})
}

// GC-94, GC-95, RFC 7252 §8.1: what a request that was sent to a group gets.
func TestRequestsToGroup(t *testing.T) {
	proxyURI := message.Options{{ID: wire.ProxyURI, Value: []byte("coap://[ff02::fd]/")}}
	long := non(codes.GET, 6)
	long.Token = make([]byte, 9)
	for _, tt := range []struct {
		name   string
		m      wire.Message
		served bool
	}{
		{"NON request", non(codes.GET, 1), true},
		{"CON request", con(codes.GET, 2), false},
		{"ping", emptyOf(message.Confirmable, 3), false},
		{"Proxy-Uri", wire.Message{Type: message.NonConfirmable, Code: codes.GET, ID: 4, Options: proxyURI}, false},
		{"Proxy-Scheme", wire.Message{Type: message.NonConfirmable, Code: codes.GET, ID: 5,
			Options: message.Options{{ID: wire.ProxyScheme, Value: []byte("coap")}}}, false},
		{"Proxy-Cri", wire.Message{Type: message.NonConfirmable, Code: codes.GET, ID: 7,
			Options: message.Options{{ID: wire.ProxyCRI, Value: []byte{0x80}}}}, false},
		{"Proxy-Scheme-Number", wire.Message{Type: message.NonConfirmable, Code: codes.GET, ID: 8,
			Options: message.Options{{ID: wire.ProxySchemeNumber}}}, false},
		{"long token", long, false},
		{"CON response", con(codes.Content, 9), false},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBed(t, func(t *testing.T, b *bed) {
				conn, err := b.network.Host(serverAddr.Addr()).Listen(netip.AddrPortFrom(netip.IPv4Unspecified(), 5683), memnet.Options{})
				require.NoError(t, err)
				conn.Join(groupAddr)
				b.serveOn(conn, answering{})
				client := b.raw(clientAddr, netip.AddrPortFrom(groupAddr, 5683))
				client.send(tt.m)
				if tt.served {
					require.Equal(t, answer, client.one().Payload)
				} else {
					client.none()
				}
				require.Zero(t, b.stats.SendFailed.Load())
				client.sendBytes(client.to, []byte{0x40, 0x01, 0, 10, 0xff}) // CON with a format error
				client.none()
			})
		})
	}
}

// FP-83
func TestLongTokens(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		b.serve(answering{}, func(c *endpoint.Config) { c.MaxToken = 20 })
		client := b.raw(clientAddr, serverAddr)
		for id, length := range []int{0, 8, 9, 20, 21, 300} {
			m := con(codes.POST, uint16(id))
			m.Token = make([]byte, length)
			for i := range m.Token {
				m.Token[i] = byte(i)
			}
			for range 2 { // a repetition gets the same
				client.send(m)
				reply := client.one()
				require.Equal(t, message.Acknowledgement, reply.Type)
				require.Equal(t, m.Token, append([]byte{}, reply.Token...))
				want := codes.Content
				if length > 20 {
					want = codes.BadRequest
				}
				require.Equal(t, want, reply.Code, length)
			}
		}
	})
}

// What the last batch before the end has caused leaves: who sees an exchange end
// may end everything, before the flush that follows the batch.
func TestLastBatchLeavesBeforeTheEnd(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		b.serve(handlerFunc(func(rx *endpoint.Reception, m *wire.Message) {
			answering{}.HandleRequest(rx, m)
			b.end()
			for range 1000 { // the end has all the time to come first
				runtime.Gosched()
			}
		}))
		client := b.raw(clientAddr, serverAddr)
		client.send(non(codes.GET, 7))
		pass(time.Second)
		require.Equal(t, answer, client.one().Payload)
	})
}
