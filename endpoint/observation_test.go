package endpoint_test

import (
	"errors"
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/wire"
)

// observing is a registration at serverAddr.
func observing() *exchange.Request {
	r := to(serverAddr, true)
	r.Options = append(message.Options{{ID: message.Observe}}, r.Options...)
	return r
}

// observe starts an observation.
func (b *bed) observe(c *endpoint.Client, r *exchange.Request) (*sink, exchange.Canceler) {
	s := &sink{t: b.t, keeps: true}
	cancel := c.Exchange(r, s)
	b.engine.Flush()
	synctest.Wait()
	return s, cancel
}

// bodies are the payloads of the responses so far.
func (s *sink) bodies() (all []string) {
	synctest.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, p := range s.responses {
		all = append(all, string(p.Payload))
	}
	return all
}

// notification is a message to the observation of a request.
func notification(request wire.Message, typ message.Type, id uint16, n uint32, body string, maxAge ...byte) wire.Message {
	m := wire.Message{Type: typ, Code: codes.Content, ID: id, Token: request.Token, Payload: []byte(body),
		Options: message.Options{{ID: message.Observe, Value: wire.AppendUint(nil, n)}}}
	for _, seconds := range maxAge {
		m.Options = append(m.Options, message.Option{ID: message.MaxAge, Value: []byte{seconds}})
	}
	return m
}

func observeValue(t *testing.T, m wire.Message) uint32 {
	t.Helper()
	v, ok := wire.ObserveOf(m.Options)
	require.True(t, ok)
	return v
}

// FP-62, FP-64, FP-67, FP-71, FP-92: an observation keeps its Token, drops what
// was overtaken and repeated, hands on what is the same, holds up nobody, and
// is deregistered with the same Token and port.
func TestObservation(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		c, server := b.client(), b.rawServer()
		s, cancel := b.observe(c, observing())
		m := server.one()
		require.Zero(t, observeValue(t, m))
		server.send(notification(m, message.Acknowledgement, m.ID, 10, "one"))
		server.send(notification(m, message.NonConfirmable, 1, 11, "two"))
		server.send(notification(m, message.NonConfirmable, 1, 12, "the same message again"))
		server.send(notification(m, message.NonConfirmable, 2, 9, "overtaken"))
		server.send(notification(m, message.NonConfirmable, 3, 12, "two"))
		require.Equal(t, []string{"one", "two", "two"}, s.bodies())
		require.EqualValues(t, 1, b.stats.NotificationsOld.Load())
		require.EqualValues(t, 1, b.stats.Observations.Load())
		server.none()
		server.send(notification(m, message.Confirmable, 4, 13, "three"))
		requireEmpty(t, message.Acknowledgement, 4, server.one())

		plain, _ := b.ask(c, to(serverAddr, true)) // NSTART is 1
		other := server.one()
		require.NotEqual(t, m.Token, other.Token)
		server.send(answerTo(other, message.Acknowledgement, other.ID))
		plain.answered()

		pass(10 * time.Second)
		cancel.Cancel()
		b.engine.Flush()
		off := server.one()
		require.Equal(t, m.Token, off.Token)
		require.Equal(t, message.Confirmable, off.Type)
		require.EqualValues(t, 1, observeValue(t, off))
		require.Equal(t, m.Options[1:], off.Options[1:])
		require.Equal(t, []error{exchange.ErrCanceled}, s.ends)
		server.send(wire.Message{Type: message.Acknowledgement, ID: off.ID, Code: codes.Content, Token: off.Token})
		b.requireIdle(c)
		require.Zero(t, b.stats.Observations.Load())

		// One that was under way, or a server that did not hear it (FP-67).
		server.send(notification(m, message.NonConfirmable, 5, 14, "four"))
		requireEmpty(t, message.Reset, 5, server.one())
		require.Len(t, s.bodies(), 4)
	})
}

// FP-67, FP-92: a server with many observations hears of the end of each when they
// end together, one request at a time, behind the requests of others; of what it is
// too slow for it is not told, and that is counted.
func TestManyObservationsEnd(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		const many = 8 // more than the queue holds
		c, server := b.client(), b.rawServer()
		var cancels []exchange.Canceler
		tokens := make(map[string]bool)
		for range many {
			_, cancel := b.observe(c, observing())
			m := server.one()
			server.send(notification(m, message.Acknowledgement, m.ID, 10, "one"))
			cancels = append(cancels, cancel)
			tokens[string(m.Token)] = true
		}
		for _, cancel := range cancels {
			cancel.Cancel()
		}
		b.engine.Flush()
		synctest.Wait()
		require.Equal(t, many-1, c.Queued())
		told := func(m wire.Message) {
			require.EqualValues(t, 1, observeValue(t, m))
			require.True(t, tokens[string(m.Token)])
			delete(tokens, string(m.Token))
		}
		first := server.one()
		told(first)
		s, _ := b.ask(c, to(serverAddr, true)) // of another client, which need not wait for all that
		server.send(answerTo(first, message.Acknowledgement, first.ID))
		m := server.one()
		require.False(t, wire.Has(m.Options, wire.Observe))
		server.send(answerTo(m, message.Acknowledgement, m.ID))
		s.answered()
		for len(tokens) > 3 {
			m := server.one()
			told(m)
			server.send(answerTo(m, message.Acknowledgement, m.ID))
		}
		pass(100 * time.Second) // the server is away: one after the other is repeated in vain
		b.requireIdle(c)
		require.EqualValues(t, 1, b.stats.DeregistrationsUnsent.Load())
	})
}

// FP-62, FP-66: what ends an observation.
func TestObservationEnds(t *testing.T) {
	for _, tt := range []struct {
		name string
		last func(m wire.Message) wire.Message
	}{
		{"an error", func(m wire.Message) wire.Message {
			n := notification(m, message.NonConfirmable, 77, 12, "gone")
			n.Code = codes.NotFound
			return n
		}},
		{"no Observe", func(m wire.Message) wire.Message {
			n := notification(m, message.NonConfirmable, 77, 12, "gone")
			n.Options = nil
			return n
		}},
	} {
		for _, first := range []bool{true, false} {
			t.Run(fmt.Sprint(tt.name, first), func(t *testing.T) {
				inBed(t, func(t *testing.T, b *bed) {
					c, server := b.client(), b.rawServer()
					s, cancel := b.observe(c, observing())
					m := server.one()
					want := []string{"gone"}
					if !first {
						server.send(notification(m, message.Acknowledgement, m.ID, 10, "one"))
						want = []string{"one", "gone"}
					}
					server.send(tt.last(m))
					require.Equal(t, want, s.bodies())
					require.Equal(t, []error{nil}, s.ends)
					b.requireIdle(c)
					cancel.Cancel()
					b.engine.Flush()
					server.none()
				})
			})
		}
	}
}

// FP-65: the registration is repeated with the same Token, 5 to 15 s after
// Max-Age, and the server may have begun to count anew.
func TestObservationIsRenewed(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		c, server := b.client(), b.rawServer()
		s, cancel := b.observe(c, observing())
		m := server.one()
		server.send(notification(m, message.Acknowledgement, m.ID, 1000, "one", 20))
		pass(19 * time.Second)
		server.send(notification(m, message.NonConfirmable, 1, 1001, "two", 30))
		pass(35*time.Second - time.Millisecond)
		server.none()
		pass(10*time.Second + time.Millisecond)
		again := server.got()[0]
		require.Equal(t, m.Token, again.Token)
		require.NotEqual(t, m.ID, again.ID)
		require.Equal(t, m.Options, again.Options)
		server.send(notification(again, message.Acknowledgement, again.ID, 3, "three", 60))
		require.Equal(t, []string{"one", "two", "three"}, s.bodies())
		require.EqualValues(t, 1, b.stats.ObservationsRenewed.Load())
		cancel.Cancel()
		b.engine.Flush()
		off := server.one()
		server.send(answerTo(off, message.Acknowledgement, off.ID))
		b.requireIdle(c)
	})
}

// FP-65: a server that is away for a while keeps its observers, one that stays
// away loses them, with a failure that says so.
func TestObservationOfAServerThatIsAway(t *testing.T) {
	t.Run("for a while", func(t *testing.T) {
		inBed(t, func(t *testing.T, b *bed) {
			c, server := b.client(), b.rawServer()
			s, cancel := b.observe(c, observing())
			m := server.one()
			server.send(notification(m, message.Acknowledgement, m.ID, 1, "one", 10))
			pass(3 * time.Minute) // registrations and their retransmissions
			require.False(t, s.over())
			server.got()
			var all []wire.Message
			for len(all) == 0 {
				pass(time.Second)
				all = server.got()
			}
			last := all[len(all)-1]
			for _, again := range all {
				require.Equal(t, m.Token, again.Token)
			}
			server.send(notification(last, message.Acknowledgement, last.ID, 1, "two", 100))
			require.Equal(t, []string{"one", "two"}, s.bodies())
			cancel.Cancel()
			b.engine.Flush()
			off := server.one()
			server.send(answerTo(off, message.Acknowledgement, off.ID))
			b.requireIdle(c)
		})
	})
	t.Run("for good", func(t *testing.T) {
		inBed(t, func(t *testing.T, b *bed) {
			c, server := b.client(), b.rawServer()
			s, _ := b.observe(c, observing())
			m := server.one()
			server.send(notification(m, message.Acknowledgement, m.ID, 1, "one", 10))
			pass(20 * time.Minute)
			require.Equal(t, []string{"one"}, s.bodies())
			require.Len(t, s.ends, 1)
			var f *exchange.Failure
			require.ErrorAs(t, s.ends[0], &f)
			require.Equal(t, exchange.NoAnswer, f.Reason)
			require.EqualValues(t, 4, b.stats.ObservationsRenewed.Load())
			b.requireIdle(c)
		})
	})
	t.Run("and rejects what it does not know", func(t *testing.T) {
		inBed(t, func(t *testing.T, b *bed) {
			c, server := b.client(), b.rawServer()
			s, _ := b.observe(c, observing())
			m := server.one()
			server.send(notification(m, message.Acknowledgement, m.ID, 1, "one", 10))
			pass(25 * time.Second)
			again := server.got()[0]
			server.send(emptyOf(message.Reset, again.ID))
			var f *exchange.Failure
			require.ErrorAs(t, s.ends[0], &f)
			require.Equal(t, exchange.Unreachable, f.Reason)
			b.requireIdle(c)
		})
	})
}

// A session that is lost, as over DTLS, is followed by a registration over the
// next one, with the same Token.
func TestObservationSurvivesItsSession(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		c, server := b.client(), b.rawServer()
		s, cancel := b.observe(c, observing())
		m := server.one()
		server.send(notification(m, message.Acknowledgement, m.ID, 1, "one", 200))
		other, _ := b.ask(c, to(serverAddr, true))
		server.one()
		c.PeerGone(c.Port(0), endpoint.PeerOf(serverAddr), time.Now(), errors.New("closed"))
		other.failed(exchange.Unreachable)
		pass(3 * time.Second)
		again := server.got()[0]
		require.Equal(t, m.Token, again.Token)
		server.send(notification(again, message.Acknowledgement, again.ID, 1, "two"))
		require.Equal(t, []string{"one", "two"}, s.bodies())
		cancel.Cancel()
		b.engine.Flush()
		pass(5 * time.Minute) // nobody answers that
		b.requireIdle(c)
	})
}

// A first response that does not come ends it as any other request (FP-32).
func TestObservationWithoutAnswer(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		c := b.client()
		b.rawServer()
		s, _ := b.observe(c, observing())
		pass(2 * time.Minute)
		s.failed(exchange.NoAnswer)
		b.requireIdle(c)
	})
}

// A sink that wants no more, and a client that closes.
func TestObservationIsGivenUp(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		c, server := b.client(), b.rawServer()
		s := &sink{t: b.t} // wants one
		c.Exchange(observing(), s)
		b.engine.Flush()
		m := server.one()
		server.send(notification(m, message.Acknowledgement, m.ID, 1, "one"))
		s.answered()
		require.EqualValues(t, 1, observeValue(t, server.one()))
		s, _ = b.observe(c, observing())
		b.end()
		c.Wait()
		require.Len(t, s.ends, 1)
		require.Zero(t, b.stats.Observations.Load())
	})
}

// The bound of observations: who comes too late gets one response.
func TestObservationsAreBounded(t *testing.T) {
	inBed(t, func(t *testing.T, b *bed) {
		c := b.client(func(c *endpoint.ClientConfig) {
			c.Observations = 1
			c.Servers = 1 // and the server of an observation is never forgotten
		})
		server := b.rawServer()
		first, cancel := b.observe(c, observing())
		m := server.one()
		server.send(notification(m, message.Acknowledgement, m.ID, 1, "one"))
		second, _ := b.observe(c, observing())
		n := server.one()
		require.False(t, wire.Has(n.Options, wire.Observe))
		server.send(answerTo(n, message.Acknowledgement, n.ID))
		second.answered()
		require.EqualValues(t, 1, b.stats.ObservationsRefused.Load())
		elsewhere, _ := b.ask(c, to(strange, false))
		server.send(notification(m, message.NonConfirmable, 9, 2, "two"))
		require.Equal(t, []string{"one", "two"}, first.bodies())
		cancel.Cancel()
		b.engine.Flush()
		off := server.one()
		server.send(answerTo(off, message.Acknowledgement, off.ID))
		pass(time.Minute)
		require.True(t, elsewhere.over())
		b.requireIdle(c)
	})
}

// A group request that a next hop carries out has any number of responses until
// its T' is over, and one with T' = 0 none (GP-64).
func TestGroupRequestToANextHop(t *testing.T) {
	group := func(seconds uint32, confirmable bool) *exchange.Request {
		r := to(serverAddr, confirmable)
		r.Timeout = exchange.Timeout{Seconds: seconds, Present: true}
		return r
	}
	stop := func(c *endpoint.ClientConfig) { c.GroupStop = message.Options{{ID: 2}} }
	respond := func(server *raw, m wire.Message, id uint16, body string) {
		server.send(wire.Message{Type: message.NonConfirmable, Code: codes.Content, ID: id, Token: m.Token, Payload: []byte(body)})
	}
	t.Run("until its time is over", func(t *testing.T) {
		inBed(t, func(t *testing.T, b *bed) {
			c, server := b.client(stop), b.rawServer()
			s, cancel := b.observe(c, group(10, true))
			m := server.one()
			server.send(emptyOf(message.Acknowledgement, m.ID))
			respond(server, m, 1, "a")
			respond(server, m, 1, "a")
			respond(server, m, 2, "b")
			pass(10*time.Second - time.Millisecond)
			require.False(t, s.over())
			pass(time.Millisecond)
			require.Equal(t, []string{"a", "b"}, s.bodies())
			require.Equal(t, []error{nil}, s.ends)
			cancel.Cancel()
			b.engine.Flush()
			b.requireIdle(c)
			server.none()
		})
	})
	t.Run("stopped", func(t *testing.T) { // GP-41
		inBed(t, func(t *testing.T, b *bed) {
			c, server := b.client(stop), b.rawServer()
			s, cancel := b.observe(c, group(10, false))
			m := server.one()
			respond(server, m, 1, "a")
			cancel.Cancel()
			b.engine.Flush()
			off := server.one()
			require.Equal(t, m.Token, off.Token)
			require.Equal(t, message.Options{{ID: 2, Value: []byte{}}}, off.Options)
			server.send(emptyOf(message.Acknowledgement, off.ID))
			require.Equal(t, []error{exchange.ErrCanceled}, s.ends)
			pass(2 * time.Minute)
			b.requireIdle(c)
		})
	})
	t.Run("without responses", func(t *testing.T) {
		inBed(t, func(t *testing.T, b *bed) {
			c, server := b.client(stop), b.rawServer()
			s, _ := b.observe(c, group(0, false))
			server.one()
			require.Equal(t, []error{nil}, s.ends)
			s, _ = b.observe(c, group(0, true))
			m := server.one()
			require.False(t, s.over())
			server.send(emptyOf(message.Acknowledgement, m.ID))
			synctest.Wait()
			require.Equal(t, []error{nil}, s.ends)
			b.requireIdle(c)
			server.none()
		})
	})
	t.Run("observed", func(t *testing.T) { // GP-64
		inBed(t, func(t *testing.T, b *bed) {
			c, server := b.client(stop), b.rawServer()
			r := group(10, false)
			r.Options = append(message.Options{{ID: message.Observe}}, r.Options...)
			s, cancel := b.observe(c, r)
			m := server.one()
			server.send(notification(m, message.NonConfirmable, 1, 5, "a"))
			server.send(notification(m, message.NonConfirmable, 2, 4, "b")) // of another server (GP-67)
			respond(server, m, 3, "c")
			pass(30 * time.Second)
			server.send(notification(m, message.NonConfirmable, 4, 6, "a2"))
			require.Equal(t, []string{"a", "b", "c", "a2"}, s.bodies())
			pass(75 * time.Second) // FP-65
			again := server.got()[0]
			require.Equal(t, m.Token, again.Token)
			server.send(notification(again, message.NonConfirmable, 5, 1, "a3"))
			cancel.Cancel()
			b.engine.Flush()
			require.Equal(t, m.Token, server.one().Token)
			require.Len(t, s.bodies(), 5)
			pass(5 * time.Minute)
			b.requireIdle(c)
		})
	})
	t.Run("observed by nobody", func(t *testing.T) { // GP-64
		inBed(t, func(t *testing.T, b *bed) {
			c, server := b.client(stop), b.rawServer()
			r := group(10, false)
			r.Options = append(message.Options{{ID: message.Observe}}, r.Options...)
			s, _ := b.observe(c, r)
			m := server.one()
			respond(server, m, 3, "c")
			pass(10 * time.Second)
			require.Equal(t, []error{nil}, s.ends)
			b.requireIdle(c)
		})
	})
}
