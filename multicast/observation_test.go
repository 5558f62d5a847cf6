package multicast

import (
	"fmt"
	"net"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/wire"
)

// observing is a registration with a group.
func observing(group string, seconds uint32) *exchange.Request {
	r := get(group, seconds)
	r.Options = append(message.Options{{ID: wire.Observe}}, r.Options...)
	return r
}

// notify sends a notification to a registration.
func (m *member) notify(to received, number byte, payload string, maxAge ...byte) {
	m.id++
	options := message.Options{{ID: wire.Observe, Value: []byte{number}}}
	if maxAge != nil {
		options = append(options, message.Option{ID: wire.MaxAge, Value: maxAge})
	}
	m.send(to.from, &wire.Message{Type: non, Code: codes.Content, ID: m.id, Token: to.Token, Options: options, Payload: []byte(payload)})
}

// GC-42, GC-48, GC-49, GP-64, GP-66: the Token stays in use beyond T' for those that
// have registered, and ends with a group request that says so. Whoever keeps sending
// is reset.
func TestObservationBeyondTheWindow(t *testing.T) {
	inSite(t, nil, func(s *site) {
		a, b := s.member("192.0.2.11:5683", "224.0.1.187"), s.member("192.0.2.12:5683", "224.0.1.187")
		w, cancel := s.ask(observing(nodes4, 10))
		q, qb := a.request(), b.request()
		a.notify(q, 1, "a1")
		b.answer(qb, non, "plain")
		s.after(11 * time.Second)
		a.notify(q, 2, "a2")
		a.notify(q, 1, "overtaken") // GC-43
		b.answer(qb, non, "late")   // it has not registered
		require.Equal(t, []string{"a1", "plain", "a2"}, w.got())
		require.EqualValues(t, 1, s.stats.NotificationsOld.Load())
		cancel.Cancel()
		s.engine.Flush()
		off := a.request()
		require.Equal(t, q.Token, off.Token)
		value, ok := wire.ObserveOf(off.Options)
		require.True(t, ok)
		require.EqualValues(t, wire.ObserveDeregister, value)
		b.request()
		a.notify(q, 3, "a3")
		require.Equal(t, []message.Type{message.Reset}, a.replies())
		require.Zero(t, s.stats.Observations.Load())
	})
}

// The bound of observations: a registration beyond it is a plain request. The bound of
// members of one: of further ones nothing is handed on, and it is counted.
func TestObservationBounds(t *testing.T) {
	inSite(t, func(c *Config) {
		c.Observations = 1
		c.Groups[0].MaxResponses, c.Groups[0].MaxBytes = 2*maxObserved, 1<<24
	}, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		w, cancel := s.ask(observing(nodes4, 10))
		q := a.request()
		other := observing(nodes4, 10)
		other.Options = append(other.Options, message.Option{ID: wire.URIQuery, Value: []byte("other")})
		s.ask(other)
		require.False(t, wire.Has(a.request().Options, wire.Observe))
		require.EqualValues(t, 1, s.stats.ObservationsRefused.Load())

		a.notify(q, 1, "first")
		for i := range maxObserved {
			m := s.member(fmt.Sprintf("198.51.%d.%d:5683", 101+i>>8, i&0xff))
			m.notify(q, 1, "x")
			require.NoError(t, m.Close())
		}
		require.Len(t, w.got(), maxObserved)
		require.EqualValues(t, 1, s.stats.Excess.Load())
		a.notify(q, 2, "still")
		require.Len(t, w.got(), maxObserved+1)
		cancel.Cancel()
		s.engine.Flush()
		require.Zero(t, s.stats.Observations.Load())
		again, _ := s.ask(observing(nodes4, 10)) // there is room again
		require.True(t, again.open())
		require.EqualValues(t, 1, s.stats.Observations.Load())
	})
}

// GC-46: the interface goes while a group is observed. The registration cannot be sent
// again when Max-Age is over, which is counted; the members that are not heard any more
// are forgotten, and with the last one the observation ends. Where the interface is
// back by then, it goes on.
func TestObservationWithoutInterface(t *testing.T) {
	for _, back := range []bool{false, true} {
		t.Run(fmt.Sprint("back ", back), func(t *testing.T) {
			inSite(t, nil, func(s *site) {
				var gone atomic.Bool
				require.NoError(t, s.leg.Prepare("nodes", netip.MustParseAddr("224.0.1.187")))
				s.opened[0].conn.Refuse(func(*endpoint.Datagram) error {
					if gone.Load() {
						return net.ErrWriteToConnected
					}
					return nil
				})
				a := s.member("192.0.2.11:5683", "224.0.1.187")
				w, _ := s.ask(observing(nodes4, 5))
				q := a.request()
				a.notify(q, 9, "a1", 10)
				gone.Store(true)
				s.after(26 * time.Second) // Max-Age, and the pause
				require.Empty(t, a.heard())
				require.EqualValues(t, 1, s.stats.ObservationsRenewed.Load())
				require.EqualValues(t, 1, s.messages.SendFailed.Load())
				require.True(t, w.open())
				gone.Store(!back)
				if back {
					a.notify(q, 10, "a2", 10) // it has not forgotten us
					s.after(26 * time.Second)
					again := a.request()
					require.Equal(t, q.Token, again.Token)
					a.notify(again, 1, "a3", 10)
					require.Equal(t, []string{"a1", "a2", "a3"}, w.got())
				}
				s.after(2 * time.Minute)
				w.failure(exchange.NoAnswer)
				require.EqualValues(t, 1, s.stats.MembersLost.Load())
			})
		})
	}
}
