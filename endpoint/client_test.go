package endpoint_test

import (
	"context"
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/endpoint"
	"coapproxy/endpoint/memnet"
	"coapproxy/exchange"
	"coapproxy/wire"
)

// RFC 7252 §5.2.1
func TestClientPiggybackedResponse(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		c, server := b.client(), b.rawServer()
		s, _ := b.ask(c, to(serverAddr, true))
		m := server.one()
		require.Equal(t, message.Confirmable, m.Type)
		require.Equal(t, codes.GET, m.Code)
		require.Equal(t, message.Options{{ID: message.URIPath, Value: []byte("r")}}, m.Options)
		reply := answerTo(m, message.Acknowledgement, m.ID)
		reply.Options = message.Options{{ID: message.ETag, Value: []byte{1}}}
		server.send(reply)
		p := s.answered()
		require.Equal(t, codes.Content, p.Code)
		require.Equal(t, reply.Options, p.Options)
		require.Equal(t, reply.Payload, p.Payload)
		require.Equal(t, serverAddr, p.From)
		require.Zero(t, p.GroupPort)
		b.requireIdle(c)
		pass(time.Hour)
		server.none()
	})
}

// FP-31, FP-83: the type onward, and Tokens that are random and not too long.
func TestClientTypes(t *testing.T) {
	for _, tt := range []struct {
		keep, confirmable bool
		want              message.Type
	}{
		{true, true, message.Confirmable},
		{true, false, message.NonConfirmable},
		{false, true, message.Confirmable},
		{false, false, message.Confirmable},
	} {
		inBed(t, func(t *testing.T, b *bed) {
			c := b.client(func(c *endpoint.ClientConfig) { c.KeepType = tt.keep })
			server := b.rawServer()
			tokens, ids := make(map[string]bool), make(map[uint16]bool)
			var high byte
			for range 50 {
				s, _ := b.ask(c, to(serverAddr, tt.confirmable))
				m := server.one()
				require.Equal(t, tt.want, m.Type)
				require.Len(t, m.Token, 8)
				tokens[string(m.Token)], ids[m.ID] = true, true
				high |= m.Token[0]
				server.send(answerTo(m, message.NonConfirmable, m.ID))
				s.answered()
			}
			require.Len(t, tokens, 50)
			require.Len(t, ids, 50)
			require.NotZero(t, high)
			require.Equal(t, 1, c.Ports())
			b.requireIdle(c)
		})
	}
}

// RFC 7252 §5.2.2: an empty ACK stops the retransmission, the response comes
// in a message of its own and is acknowledged if it is confirmable.
func TestClientSeparateResponse(t *testing.T) {
	for _, typ := range []message.Type{message.Confirmable, message.NonConfirmable} {
		inBed(t, func(t *testing.T, b *bed) {
			c, server := b.client(), b.rawServer()
			s, _ := b.ask(c, to(serverAddr, true))
			m := server.one()
			server.send(emptyOf(message.Acknowledgement, m.ID))
			pass(80 * time.Second)
			server.none()
			s.running()
			server.send(answerTo(m, typ, 77))
			s.answered()
			if typ == message.Confirmable {
				requireEmpty(t, message.Acknowledgement, 77, server.one())
				server.send(answerTo(m, typ, 77)) // the ACK was lost
				requireEmpty(t, message.Acknowledgement, 77, server.one())
			}
			server.none()
			b.requireIdle(c)
		})
	}
}

// RFC 7252 §5.2.2: a response implies the ACK that was lost.
func TestClientResponseImpliesAck(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		c, server := b.client(), b.rawServer()
		s, _ := b.ask(c, to(serverAddr, true))
		m := server.one()
		server.send(answerTo(m, message.NonConfirmable, 77))
		s.answered()
		b.requireIdle(c)
		server.send(emptyOf(message.Acknowledgement, m.ID)) // it was only late
		pass(time.Hour)
		server.none()
	})
}

// A request that is lost is sent again, one that is answered twice ends once.
func TestClientRetransmits(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		c, server := b.client(), b.rawServer()
		s, _ := b.ask(c, to(serverAddr, true))
		first := server.one()
		pass(10 * time.Second)
		again := server.got()
		require.Equal(t, []wire.Message{first, first}, again)
		server.send(answerTo(first, message.Acknowledgement, first.ID))
		server.send(answerTo(first, message.Acknowledgement, first.ID))
		s.answered()
		b.requireIdle(c)
		pass(time.Hour)
		server.none()
	})
}

// Only the server that was asked, with the Token it was given, on the port it
// was asked from, can answer.
func TestClientForeignResponses(t *testing.T) {
	for _, confirmable := range []bool{true, false} {
		inBed(t, func(t *testing.T, b *bed) {
			c := b.client()
			b.ask(c, to(strange, false)) // opens the port
			server := b.rawServer()
			s, _ := b.ask(c, to(serverAddr, confirmable))
			m := server.one()
			port := server.to

			elsewhere := b.raw(netip.AddrPortFrom(serverAddr.Addr(), 61616), port)
			server.conn, elsewhere.conn = elsewhere.conn, server.conn
			for i, forged := range []wire.Message{
				answerTo(m, message.NonConfirmable, 1),
				answerTo(m, message.Confirmable, 2),
				answerTo(m, message.Acknowledgement, m.ID),
			} {
				server.send(forged) // from another port
				got := server.got()
				if forged.Type == message.Confirmable {
					require.Len(t, got, 1)
					requireEmpty(t, message.Reset, 2, got[0])
				} else {
					require.Empty(t, got, i)
				}
			}
			server.conn, elsewhere.conn = elsewhere.conn, server.conn
			s.running()
			host := b.raw(strange, port)
			host.send(answerTo(m, message.Confirmable, 3))
			requireEmpty(t, message.Reset, 3, host.one())
			s.running()
		})
		inBed(t, func(t *testing.T, b *bed) {
			c, server := b.client(), b.rawServer()
			s, _ := b.ask(c, to(serverAddr, confirmable))
			m := server.one()
			for i, token := range [][]byte{nil, {1}, append([]byte{m.Token[0] + 1}, m.Token[1:]...), m.Token[:7], append(m.Token[:8:8], 0)} {
				wrong := answerTo(m, message.Confirmable, uint16(10+i))
				wrong.Token = token
				server.send(wrong)
				requireEmpty(t, message.Reset, wrong.ID, server.one())
				wrong.Type, wrong.ID = message.NonConfirmable, wrong.ID+100
				server.send(wrong)
				server.none()
			}
			s.running()
			server.send(answerTo(m, message.NonConfirmable, 3))
			s.answered()
			b.requireIdle(c)
		})
	}
}

// A response must come to the port the request was sent from.
func TestClientResponseToAnotherPort(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		c, server := b.client(), b.rawServer()
		first, _ := b.ask(c, to(serverAddr, false))
		server.send(answerTo(server.one(), message.NonConfirmable, 1))
		first.answered()
		other := server.to
		c.UseMessageIDs(serverAddr, 1<<16)
		server.to = netip.AddrPort{}
		s, _ := b.ask(c, to(serverAddr, false))
		m := server.one()
		require.NotEqual(t, other, server.to)
		server.sendTo(other, answerTo(m, message.Confirmable, 2))
		requireEmpty(t, message.Reset, 2, server.one())
		s.running()
		server.send(answerTo(m, message.Confirmable, 3))
		s.answered()
		b.requireIdle(c)
	})
}

// RFC 7252 §4.2: a response that comes too late is rejected: a CON with a RST.
func TestClientLateResponse(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		c, server := b.client(), b.rawServer()
		s, cancel := b.ask(c, to(serverAddr, true))
		m := server.one()
		server.send(emptyOf(message.Acknowledgement, m.ID))
		cancel.Cancel()
		require.ErrorIs(t, s.ended(), exchange.ErrCanceled)
		server.send(answerTo(m, message.Confirmable, 7))
		requireEmpty(t, message.Reset, 7, server.one())
		server.send(answerTo(m, message.NonConfirmable, 8))
		server.send(answerTo(m, message.Acknowledgement, m.ID))
		server.none()
		b.requireIdle(c)
	})
}

// FP-32: 93 s for a confirmable request, 30 s for another, counted from the
// arrival at the proxy.
func TestClientTimeouts(t *testing.T) {
	const queued = 20 * time.Second // before it reached the leg
	for _, tt := range []struct {
		name        string
		confirmable bool
		acked       bool
		timeout     time.Duration
	}{
		{"CON, acknowledged", true, true, 93 * time.Second},
		{"NON", false, false, 30 * time.Second},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBed(t, func(t *testing.T, b *bed) {
				c, server := b.client(), b.rawServer()
				r := to(serverAddr, tt.confirmable)
				time.Sleep(queued)
				s, _ := b.ask(c, r)
				m := server.one()
				if tt.acked {
					server.send(emptyOf(message.Acknowledgement, m.ID))
				}
				pass(tt.timeout - queued - time.Millisecond)
				s.running()
				pass(time.Millisecond)
				s.failed(exchange.NoAnswer)
				b.requireIdle(c)
				pass(time.Hour)
				server.none()
			})
		})
	}
	t.Run("CON, never acknowledged", func(t *testing.T) {
		inBed(t, func(t *testing.T, b *bed) {
			c, server := b.client(), b.rawServer()
			s, _ := b.ask(c, to(serverAddr, true))
			pass(62*time.Second - time.Millisecond) // MAX_TRANSMIT_WAIT without the random factor
			s.running()
			pass(31 * time.Second)
			s.failed(exchange.NoAnswer)
			require.Len(t, server.got(), 5)
			b.requireIdle(c)
		})
	})
	t.Run("over before it began", func(t *testing.T) {
		inBed(t, func(t *testing.T, b *bed) {
			c := b.client()
			r := to(serverAddr, true)
			time.Sleep(time.Hour)
			s, _ := b.ask(c, r)
			s.failed(exchange.NoAnswer)
			b.requireIdle(c)
		})
	})
}

// FP-33: RST.
func TestClientReset(t *testing.T) {
	for _, confirmable := range []bool{true, false} {
		inBed(t, func(t *testing.T, b *bed) {
			c, server := b.client(), b.rawServer()
			s, _ := b.ask(c, to(serverAddr, confirmable))
			m := server.one()
			server.send(emptyOf(message.Reset, m.ID))
			require.ErrorIs(t, s.failed(exchange.Unreachable), endpoint.ErrReset)
			b.requireIdle(c)
		})
	}
}

// FP-34: nobody listens, or there is no way.
func TestClientUnreachable(t *testing.T) {
	for _, confirmable := range []bool{true, false} {
		inBed(t, func(t *testing.T, b *bed) {
			c := b.client()
			b.network.Host(serverAddr.Addr())
			s, _ := b.ask(c, to(serverAddr, confirmable))
			require.ErrorIs(t, s.failed(exchange.Unreachable), endpoint.ErrUndeliverable)
			b.requireIdle(c)
		})
		inBed(t, func(t *testing.T, b *bed) {
			host := b.network.Host(netip.MustParseAddr("2001:db8::9"))
			c := b.client(func(c *endpoint.ClientConfig) {
				c.Open = func(context.Context, netip.Addr) (endpoint.PacketConn, error) { // of the wrong family
					return host.Listen(netip.AddrPortFrom(netip.IPv6Unspecified(), 0), memnet.Options{})
				}
			})
			s, _ := b.ask(c, to(serverAddr, confirmable))
			require.ErrorIs(t, s.failed(exchange.Unreachable), endpoint.ErrUndeliverable)
			require.EqualValues(t, 1, b.stats.SendFailed.Load())
			b.requireIdle(c)
		})
	}
}

// A request that cannot be encoded, has no port to leave by or no room in the
// queue ends at once.
func TestClientCannotSend(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		c := b.client()
		r := to(serverAddr, true)
		r.Options = message.Options{{ID: 11}, {ID: 3}}
		s, cancel := b.ask(c, r)
		require.ErrorIs(t, s.ended(), wire.ErrUnsorted)
		cancel.Cancel()
		b.requireIdle(c)

		empty := c.Port(0).Stuff()
		for _, confirmable := range []bool{true, false} {
			s, _ = b.ask(c, to(serverAddr, confirmable))
			s.failed(exchange.Overloaded)
		}
		require.EqualValues(t, 2, b.stats.SendDropped.Load())
		empty()
		b.requireIdle(c)
	})
	inBed(t, func(t *testing.T, b *bed) {
		cause := errors.New("too many open files")
		c := b.client(func(c *endpoint.ClientConfig) {
			c.Open = func(context.Context, netip.Addr) (endpoint.PacketConn, error) { return nil, cause }
		})
		s, _ := b.ask(c, to(serverAddr, true))
		require.ErrorIs(t, s.failed(exchange.Overloaded), cause)
		b.requireIdle(c)
	})
}

// Each address family has ports of its own.
func TestClientFamilies(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		c := b.client()
		v6 := netip.MustParseAddrPort("[2001:db8::1]:5683")
		for i, addr := range []netip.AddrPort{serverAddr, v6} {
			server := b.raw(addr, netip.AddrPort{})
			s, _ := b.ask(c, to(addr, true))
			m := server.one()
			require.Equal(t, addr.Addr().Is4(), server.to.Addr().Is4())
			server.send(answerTo(m, message.Acknowledgement, m.ID))
			require.Equal(t, addr, s.answered().From)
			require.Equal(t, i+1, c.Ports())
		}
		b.requireIdle(c)
	})
}
