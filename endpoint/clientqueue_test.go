package endpoint_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"runtime"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/endpoint"
	"coapproxy/endpoint/memnet"
	"coapproxy/exchange"
	"coapproxy/wire"
)

// numbered is a request with a payload that tells it from others.
func numbered(i int, confirmable bool) *exchange.Request {
	r := to(serverAddr, confirmable)
	r.Payload = fmt.Appendf(nil, "%d", i)
	return r
}

// RFC 7252 §4.7, FP-35, FP-92: so many outstanding requests, the next ones in
// the order they came, and 5.03 for those that find the queue full.
func TestClientQueue(t *testing.T) {
	for _, confirmable := range []bool{true, false} {
		for _, nstart := range []int{1, 3} {
			t.Run(fmt.Sprintf("CON %v NSTART %d", confirmable, nstart), func(t *testing.T) {
				inBed(t, func(t *testing.T, b *bed) {
					const queue = 5
					c := b.client(func(c *endpoint.ClientConfig) {
						c.NStart = func(server netip.AddrPort) int {
							require.Equal(t, serverAddr, server)
							return nstart
						}
						c.Queue = queue
					})
					server := b.rawServer()
					var sinks []*sink
					for i := range nstart + queue {
						r := numbered(i, confirmable)
						s, _ := b.ask(c, r)
						clear(r.Payload) // it was only borrowed
						clear(r.Options[0].Value)
						s.running()
						sinks = append(sinks, s)
					}
					for range 2 {
						s, cancel := b.ask(c, numbered(100, confirmable))
						s.failed(exchange.Overloaded)
						cancel.Cancel()
					}
					begun := server.got()
					require.Len(t, begun, nstart)
					for i := range sinks {
						require.Equal(t, fmt.Sprint(i), string(begun[i].Payload))
						require.Equal(t, "r", string(begun[i].Options[0].Value))
						require.Equal(t, begun[0].Type, begun[i].Type)
						server.send(answerTo(begun[i], message.NonConfirmable, uint16(i)))
						sinks[i].answered()
						begun = append(begun, server.got()...)
						require.Len(t, begun, min(i+1+nstart, len(sinks)))
					}
					b.requireIdle(c)
				})
			})
		}
	}
}

// Servers do not wait for each other.
func TestClientQueuesAreIndependent(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		c := b.client()
		for _, addr := range []netip.AddrPort{serverAddr, strange, netip.AddrPortFrom(strange.Addr(), 61616)} {
			server := b.raw(addr, netip.AddrPort{})
			b.ask(c, to(addr, false))
			server.one()
			b.ask(c, to(addr, false))
			server.none()
		}
	})
}

// RFC 7252 §4.7: a request that was acknowledged is no longer outstanding,
// however long its response takes.
func TestClientAckGivesTurn(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		c, server := b.client(), b.rawServer()
		slow, _ := b.ask(c, numbered(0, true))
		next, _ := b.ask(c, numbered(1, true))
		last, _ := b.ask(c, numbered(2, true))
		m := server.one()
		server.send(emptyOf(message.Acknowledgement, m.ID))
		second := server.one()
		require.Equal(t, "1", string(second.Payload))
		server.send(emptyOf(message.Acknowledgement, m.ID)) // repeated
		server.none()
		server.send(answerTo(m, message.NonConfirmable, 1))
		slow.answered()
		server.none() // its turn was given away already
		server.send(answerTo(second, message.Acknowledgement, second.ID))
		next.answered()
		third := server.one()
		server.send(emptyOf(message.Acknowledgement, third.ID))
		last.running()
		pass(93 * time.Second)
		last.failed(exchange.NoAnswer)
		b.requireIdle(c)
	})
}

// Whatever ends a request gives the next one its turn.
func TestClientEveryEndGivesTurn(t *testing.T) {
	for _, tt := range []struct {
		name string
		end  func(server *raw, m wire.Message, cancel exchange.Canceler)
	}{
		{"response", func(server *raw, m wire.Message, _ exchange.Canceler) {
			server.send(answerTo(m, message.NonConfirmable, 1))
		}},
		{"RST", func(server *raw, m wire.Message, _ exchange.Canceler) { server.send(emptyOf(message.Reset, m.ID)) }},
		{"cancellation", func(_ *raw, _ wire.Message, cancel exchange.Canceler) { cancel.Cancel() }},
		{"timeout", func(*raw, wire.Message, exchange.Canceler) { pass(93 * time.Second) }},
	} {
		for _, confirmable := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s CON %v", tt.name, confirmable), func(t *testing.T) {
				inBed(t, func(t *testing.T, b *bed) {
					c, server := b.client(), b.rawServer()
					_, cancel := b.ask(c, numbered(0, confirmable))
					first := server.one()
					late := numbered(1, confirmable)
					late.Arrival = late.Arrival.Add(time.Hour)
					s, _ := b.ask(c, late)
					tt.end(server, first, cancel)
					b.engine.Flush()
					var second wire.Message
					for _, m := range server.got() {
						if m.ID != first.ID {
							second = m
						}
					}
					require.Equal(t, "1", string(second.Payload))
					server.send(answerTo(second, message.NonConfirmable, 2))
					s.answered()
					b.requireIdle(c)
				})
			})
		}
	}
}

// A request that waits may end before its turn, and the others keep theirs.
func TestClientEndWhileWaiting(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		c, server := b.client(), b.rawServer()
		b.ask(c, numbered(0, false))
		first := server.one()
		var sinks []*sink
		var cancels []exchange.Canceler
		for i := range 3 {
			r := numbered(1+i, false)
			r.Arrival = r.Arrival.Add(time.Duration(i-1) * time.Second)
			s, cancel := b.ask(c, r)
			sinks, cancels = append(sinks, s), append(cancels, cancel)
		}
		cancels[1].Cancel()
		require.ErrorIs(t, sinks[1].ended(), exchange.ErrCanceled)
		sinks[0].running()
		pass(30 * time.Second) // the first two have had their time, and the third gets its turn
		sinks[0].failed(exchange.NoAnswer)
		sinks[2].running()
		third := server.one()
		require.Equal(t, "3", string(third.Payload))
		server.send(answerTo(first, message.NonConfirmable, 1)) // too late
		server.send(answerTo(third, message.NonConfirmable, 2))
		sinks[2].answered()
		b.requireIdle(c)
	})
}

// Cancel ends an exchange once, at any stage, and is harmless after its end.
func TestClientCancel(t *testing.T) {
	for _, confirmable := range []bool{true, false} {
		stage := func(name string, f func(t *testing.T, b *bed, c *endpoint.Client, server *raw)) {
			t.Run(fmt.Sprintf("%s CON %v", name, confirmable), func(t *testing.T) {
				inBed(t, func(t *testing.T, b *bed) {
					c, server := b.client(), b.rawServer()
					f(t, b, c, server)
					b.requireIdle(c)
					pass(time.Hour)
					server.none()
				})
			})
		}
		stage("queued", func(t *testing.T, b *bed, c *endpoint.Client, server *raw) {
			_, first := b.ask(c, numbered(0, confirmable))
			s, cancel := b.ask(c, numbered(1, confirmable))
			cancel.Cancel()
			cancel.Cancel()
			require.ErrorIs(t, s.ended(), exchange.ErrCanceled)
			first.Cancel()
			require.Equal(t, "0", string(server.one().Payload))
		})
		stage("not flushed", func(t *testing.T, b *bed, c *endpoint.Client, server *raw) {
			s := &sink{t: t}
			c.Exchange(to(serverAddr, confirmable), s).Cancel()
			require.ErrorIs(t, s.ended(), exchange.ErrCanceled)
			b.engine.Flush()
			server.one()
		})
		stage("sent", func(t *testing.T, b *bed, c *endpoint.Client, server *raw) {
			s, cancel := b.ask(c, to(serverAddr, confirmable))
			m := server.one()
			cancel.Cancel()
			require.ErrorIs(t, s.ended(), exchange.ErrCanceled)
			server.send(answerTo(m, message.NonConfirmable, 1))
			server.send(emptyOf(message.Reset, m.ID))
			require.ErrorIs(t, s.ended(), exchange.ErrCanceled)
		})
		stage("acknowledged", func(t *testing.T, b *bed, c *endpoint.Client, server *raw) {
			s, cancel := b.ask(c, to(serverAddr, confirmable))
			server.send(emptyOf(message.Acknowledgement, server.one().ID))
			cancel.Cancel()
			require.ErrorIs(t, s.ended(), exchange.ErrCanceled)
		})
		stage("answered", func(t *testing.T, b *bed, c *endpoint.Client, server *raw) {
			s, cancel := b.ask(c, to(serverAddr, confirmable))
			server.send(answerTo(server.one(), message.NonConfirmable, 1))
			s.answered()
			cancel.Cancel()
			s.answered()
		})
		stage("inside Respond", func(t *testing.T, b *bed, c *endpoint.Client, server *raw) {
			s := &sink{t: t}
			cancel := c.Exchange(to(serverAddr, confirmable), s)
			b.engine.Flush()
			s.respond = cancel.Cancel
			server.send(answerTo(server.one(), message.NonConfirmable, 1))
			s.answered()
		})
		stage("a new exchange inside Respond", func(t *testing.T, b *bed, c *endpoint.Client, server *raw) {
			s, next := &sink{t: t}, &sink{t: t}
			s.respond = func() { c.Exchange(numbered(1, confirmable), next) }
			c.Exchange(numbered(0, confirmable), s)
			b.engine.Flush()
			server.send(answerTo(server.one(), message.NonConfirmable, 1))
			s.answered()
			m := server.one()
			require.Equal(t, "1", string(m.Payload))
			server.send(answerTo(m, message.NonConfirmable, 2))
			next.answered()
		})
	}
}

// FP-91: when the Message IDs of a port are used up another port is opened, and
// when those of all ports are, requests fail until IDs are free again.
func TestClientPortPool(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		const ports = 3
		c := b.client(func(c *endpoint.ClientConfig) { c.Ports = ports })
		server := b.rawServer()
		seen := make(map[netip.AddrPort]bool)
		ask := func() {
			t.Helper()
			s, _ := b.ask(c, to(serverAddr, false))
			server.to = netip.AddrPort{}
			m := server.one()
			seen[server.to] = true
			server.send(answerTo(m, message.NonConfirmable, uint16(len(seen))))
			s.answered()
		}
		ask()
		for n := range ports {
			require.Equal(t, n+1, c.Ports())
			require.Len(t, seen, n+1)
			c.UseMessageIDs(serverAddr, 1<<16)
			if n < ports-1 {
				ask()
			}
		}
		c.UseMessageIDs(serverAddr, 1<<16)
		for range 2 {
			s, _ := b.ask(c, to(serverAddr, false))
			s.failed(exchange.Overloaded)
		}
		require.EqualValues(t, 2, b.stats.PortsExhausted.Load())
		require.Equal(t, ports, c.Ports())
		b.requireIdle(c)
		pass(endpoint.ExchangeLifetime)
		ask()
		require.Equal(t, ports, c.Ports())
		b.requireIdle(c)
	})
}

// Requests that wait fail, too, when no Message ID is left for them, each once.
func TestClientPortsExhaustedWhileWaiting(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		c, server := b.client(func(c *endpoint.ClientConfig) { c.Ports = 1 }), b.rawServer()
		first, _ := b.ask(c, numbered(0, false))
		var waiting []*sink
		for i := range 3 {
			s, _ := b.ask(c, numbered(1+i, false))
			waiting = append(waiting, s)
		}
		c.UseMessageIDs(serverAddr, 1<<16)
		server.send(answerTo(server.one(), message.NonConfirmable, 1))
		first.answered()
		for _, s := range waiting {
			s.failed(exchange.Overloaded)
		}
		b.requireIdle(c)
	})
}

// However many servers there are, NSTART holds for each of them and their
// Message IDs are not used again.
func TestClientForgetsNoBusyServer(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		c := b.client(func(c *endpoint.ClientConfig) { c.Servers = 2 })
		const servers = 20
		var all []*raw
		var sinks []*sink
		for i := range servers {
			addr := netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(10 + i)}), 5683)
			all = append(all, b.raw(addr, netip.AddrPort{}))
		}
		for range 2 { // one outstanding, one waiting
			for _, server := range all {
				s, _ := b.ask(c, to(server.conn.LocalAddr(), false))
				sinks = append(sinks, s)
			}
		}
		ids := make([]map[uint16]bool, servers)
		for round := range 2 {
			for i, server := range all {
				m := server.one()
				if ids[i] == nil {
					ids[i] = make(map[uint16]bool)
				}
				require.NotContains(t, ids[i], m.ID)
				ids[i][m.ID] = true
				server.send(answerTo(m, message.NonConfirmable, 1))
				sinks[round*servers+i].answered()
			}
		}
		b.requireIdle(c)
	})
}

// When the context has ended nothing is left running, and nothing begins.
func TestClientShutdown(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		c := b.client()
		outstanding, _ := b.ask(c, numbered(0, true))
		waiting, cancel := b.ask(c, numbered(1, true))
		b.end()
		c.Wait()
		outstanding.failed(exchange.Overloaded)
		waiting.failed(exchange.Overloaded)
		cancel.Cancel()
		waiting.failed(exchange.Overloaded)
		s, _ := b.ask(c, numbered(2, true))
		s.failed(exchange.Overloaded)
		b.requireIdle(c)
	})
}

// A request that is canceled while it is being sent, as its turn has come,
// leaves nothing behind. Not in a bubble, for the sake of the locks.
func TestClientCancelWhileSending(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	b := &bed{t: t, ctx: ctx, wg: &wg, network: memnet.New(), engine: exchange.NewEngine(), stats: &endpoint.Stats{}}
	c := b.client()
	defer c.Wait()
	defer cancel()
	conn := b.listen(serverAddr)
	first, second := &sink{t: t}, &sink{t: t}
	c.Exchange(numbered(0, false), first)
	next := c.Exchange(numbered(1, false), second)
	b.engine.Flush()
	var m wire.Message
	d := conn.Received()[0]
	require.NoError(t, m.Decode(d.Data))
	reply, err := (&wire.Message{Type: message.NonConfirmable, Code: codes.Content, Token: m.Token}).Append(nil)
	require.NoError(t, err)

	release := c.Port(0).HoldFates()
	c.UseMessageIDs(serverAddr, 1<<16) // so that the second leaves by another port, which is not held
	require.NoError(t, conn.Send(d.Peer.Addr, reply))
	for c.Waiting(serverAddr) > 0 {
		runtime.Gosched()
	}
	next.Cancel() // it has got its turn, and is about to be sent
	require.True(t, second.over())
	release()
	for !first.over() {
		runtime.Gosched()
	}
	require.Zero(t, c.Port(0).Pending())
	require.Zero(t, c.Port(1).Pending())
}

// Everything at once, on a bad network, to servers that do as they like: every
// exchange ends once, and nothing is left of any of them.
func TestClientAgainstChaos(t *testing.T) {
	const seed1, seed2 = 7252, 8323
	inBed(t, func(t *testing.T, b *bed) {
		const servers, goroutines, each = 4, 6, 60
		c := b.client(func(c *endpoint.ClientConfig) {
			c.NStart = func(s netip.AddrPort) int { return 1 + int(s.Port())%3 }
			c.Queue, c.Servers = 8, 2
		})
		var mu sync.Mutex
		random := rand.New(rand.NewPCG(seed1, seed2))
		chance := func(n int) int {
			mu.Lock()
			defer mu.Unlock()
			return random.IntN(n)
		}
		b.network.Shape(func(_, _ netip.AddrPort, _ []byte) []time.Duration {
			delay := func() time.Duration { return time.Duration(chance(1000)) * time.Millisecond }
			switch chance(8) {
			case 0:
				return memnet.Lost()
			case 1:
				return memnet.At(delay(), delay())
			default:
				return memnet.At(delay())
			}
		})
		for i := range servers {
			conn := b.listen(netip.AddrPortFrom(serverAddr.Addr(), uint16(5683+i)))
			b.serveOn(conn, handlerFunc(func(rx *endpoint.Reception, m *wire.Message) {
				in := &endpoint.Incoming{}
				in.Accept(rx, m)
				switch chance(5) {
				case 0: // silence
				case 1:
					_ = conn.Send(rx.Peer.Addr, []byte{0x70, 0, byte(m.ID >> 8), byte(m.ID)})
				case 2:
					in.Ack()
					in.Respond(content("separate"), message.Confirmable, nil)
				default:
					in.Respond(content("at once"), message.NonConfirmable, nil)
				}
			}))
		}
		var wg sync.WaitGroup
		var sinks [goroutines][each]sink
		for g := range sinks {
			wg.Go(func() {
				for i := range sinks[g] {
					s := &sinks[g][i]
					s.t = t
					r := to(netip.AddrPortFrom(serverAddr.Addr(), uint16(5683+chance(servers))), chance(2) == 0)
					r.Method = []codes.Code{codes.GET, codes.POST}[chance(2)]
					cancel := c.Exchange(r, s)
					switch chance(4) {
					case 0:
						cancel.Cancel()
					case 1:
						time.AfterFunc(time.Duration(chance(5000))*time.Millisecond, cancel.Cancel)
					}
					b.engine.Flush()
					time.Sleep(time.Duration(chance(8000)) * time.Millisecond)
				}
			})
		}
		wg.Wait()
		pass(5 * time.Minute)
		answered := 0
		for g := range sinks {
			for i := range sinks[g] {
				s := &sinks[g][i]
				s.mu.Lock()
				require.Len(t, s.ends, 1)
				answered += len(s.responses)
				s.mu.Unlock()
			}
		}
		require.Greater(t, answered, goroutines*each/10, "the network is too bad for a test")
		synctest.Wait()
		b.requireIdle(c)
	})
}

// One client cannot keep a server's queue to itself: clients take turns, and where
// the queue is full, the last request of who has most gives way (FP-35).
func TestClientQueueIsShared(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		c := b.client(func(c *endpoint.ClientConfig) {
			c.NStart = func(netip.AddrPort) int { return 1 }
			c.Queue = 4
		})
		server := b.rawServer()
		ask := func(i int, from string) *sink {
			r := numbered(i, true)
			r.Peer = netip.MustParseAddrPort(from)
			s, _ := b.ask(c, r)
			return s
		}
		var greedy []*sink
		for i := range 5 {
			greedy = append(greedy, ask(i, "192.0.2.1:1"))
		}
		ask(5, "192.0.2.1:2").failed(exchange.Overloaded) // another port is no other client
		modest := ask(10, "192.0.2.2:1")
		greedy[4].failed(exchange.Overloaded)
		modest.running()
		require.EqualValues(t, 1, b.stats.Displaced.Load())
		for _, want := range []string{"0", "1", "10", "2", "3"} {
			got := server.got()
			require.Len(t, got, 1)
			require.Equal(t, want, string(got[0].Payload))
			server.send(answerTo(got[0], message.NonConfirmable, got[0].ID))
		}
		modest.answered()
		b.requireIdle(c)
	})
}
