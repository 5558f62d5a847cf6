package multicast

import (
	"net/netip"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

const (
	con = message.Confirmable
	non = message.NonConfirmable
	ack = message.Acknowledgement
	rst = message.Reset
)

// Responses are relayed as they come until T' after the request arrived, and
// not a moment longer (GP-31, GP-32). A response does not free the Token
// (GC-20), silence is no error (GP-38, GC-30).
func TestWindow(t *testing.T) {
	inSite(t, nil, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		w, _ := s.ask(get(nodes4, 10))
		q := a.request()
		require.Equal(t, codes.GET, q.Code)
		require.Len(t, q.Token, 8) // GC-22
		require.Equal(t, netip.MustParseAddr("192.0.2.1"), q.from.Addr())

		a.answer(q, non, "at once")
		s.after(5 * time.Second)
		a.answer(q, non, "in time")
		s.after(5*time.Second - 1)
		a.answer(q, non, "just in time")
		require.Equal(t, []string{"at once", "in time", "just in time"}, w.got())
		require.True(t, w.open())

		began := time.Now()
		s.after(1)
		require.False(t, w.open())
		require.NoError(t, w.err)
		require.Equal(t, began.Add(1), w.ended)
		require.EqualValues(t, 3, s.stats.Responses.Load())
	})
}

// GP-59: what comes after T' is counted; a NON response is dropped silently, a
// CON one reset, also when it is repeated.
func TestLateResponses(t *testing.T) {
	inSite(t, nil, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		w, _ := s.ask(get(nodes4, 10))
		q := a.request()
		s.after(10 * time.Second)
		a.answer(q, non, "late")
		require.Empty(t, a.replies())
		a.answer(q, con, "late")
		require.Equal(t, []message.Type{rst}, a.replies())
		a.id--
		a.answer(q, con, "late")
		require.Equal(t, []message.Type{rst}, a.replies())
		require.Empty(t, w.got())
		require.EqualValues(t, 2, s.stats.Late.Load())
		require.Zero(t, s.stats.Unknown.Load())
	})
}

// Exchanges that end at nearly the same time end together (GP-32). What comes before
// that and after T' is late as ever (GP-59), for those whose T' is over.
func TestEndTogether(t *testing.T) {
	inSite(t, func(c *Config) { c.Groups[0].NStart = 1 }, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		s.after(time.Millisecond)
		first, _ := s.ask(get(nodes4, 20))
		s.after(time.Millisecond)
		waiting, _ := s.ask(get(nodes4, 20))
		s.after(time.Millisecond / 2)
		sharing, _ := s.ask(get(nodes4, 20))
		a.answer(a.request(), non, "one") // and so the next one has its turn
		q := a.request()
		s.after(20*time.Second - 250*time.Microsecond)
		a.answer(q, con, "two")
		require.Equal(t, []message.Type{ack}, a.replies())
		require.Empty(t, waiting.got(), "its T' is over")
		require.Equal(t, []string{"two"}, sharing.got())
		require.EqualValues(t, 1, s.stats.Late.Load())
		s.after(time.Millisecond)
		a.answer(q, con, "three")
		require.Equal(t, []message.Type{rst}, a.replies())
		require.Equal(t, []string{"two"}, sharing.got())
		require.EqualValues(t, 2, s.stats.Late.Load())

		require.Equal(t, []string{"one"}, first.got())
		for _, w := range []*recorder{first, waiting, sharing} {
			require.True(t, w.open())
		}
		s.after(4750 * time.Microsecond)
		for _, w := range []*recorder{first, waiting, sharing} {
			require.False(t, w.open())
			require.NoError(t, w.err)
		}
	})
}

// What one server sends: CON responses are acknowledged (GC-12), several
// responses are several (GP-58, GC-34), duplicates on the message layer are
// none (GC-16), and the port is free (GC-17).
func TestResponsesOfOneServer(t *testing.T) {
	inSite(t, nil, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		other := s.member("192.0.2.11:61616")
		w, _ := s.ask(get(nodes4, 600))
		q := a.request()

		a.answer(q, con, "one")
		require.Equal(t, []message.Type{ack}, a.replies())
		a.id--
		a.answer(q, con, "one") // repeated: the ACK was lost
		require.Equal(t, []message.Type{ack}, a.replies())
		a.answer(q, non, "two")
		a.id--
		a.answer(q, non, "two")
		a.answer(q, non, "two") // the same again, as a message of its own
		other.id = a.id
		other.answer(q, non, "other port, same Message ID")
		require.Equal(t, []string{"one", "two", "two", "other port, same Message ID"}, w.got())
		require.Equal(t, netip.MustParseAddrPort("192.0.2.11:61616"), w.responses[3].From)
		require.EqualValues(t, 5683, w.responses[3].GroupPort)
		require.EqualValues(t, 2, s.messages.Duplicates.Load())

		// A Message ID is remembered for NON_LIFETIME and EXCHANGE_LIFETIME.
		s.after(145*time.Second - 1)
		a.answer(received{Message: q.Message, from: q.from}, non, "fresh")
		a.id = 1
		a.answer(q, non, "two, too early to be another")
		s.after(1)
		a.id = 1
		a.answer(q, non, "another")
		require.Equal(t, []string{"fresh", "another"}, w.got()[4:])
	})
}

// GC-31: successes and errors are relayed as they are, with all their options.
func TestErrorsAreResponses(t *testing.T) {
	inSite(t, nil, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		w, _ := s.ask(get(nodes4, 10))
		q := a.request()
		a.send(q.from, &wire.Message{Type: non, Code: codes.NotFound, ID: 1, Token: q.Token,
			Options: message.Options{{ID: wire.MaxAge, Value: []byte{7}}, {ID: wire.Echo, Value: []byte("e")}}, Payload: []byte("no")})
		require.Equal(t, []string{"no"}, w.got())
		p := w.responses[0]
		require.Equal(t, codes.NotFound, p.Code)
		require.Equal(t, message.Options{{ID: wire.MaxAge, Value: []byte{7}}, {ID: wire.Echo, Value: []byte("e")}}, p.Options)
	})
}

// GP-50: only the Token on the group's socket matches, whoever sends it. A
// confirmable response that belongs to nothing is reset.
func TestUnknownTokens(t *testing.T) {
	inSite(t, func(c *Config) { c.Groups[0].Interfaces = []string{"eth0", "eth1"} }, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		w, _ := s.ask(get("224.0.1.187:5683", 10))
		heard := a.heard()
		require.Len(t, heard, 2)
		q := heard[0]
		only, _ := s.ask(func() *exchange.Request {
			r := get("224.0.1.187:5683", 10)
			r.Target.Addr = netip.MustParseAddrPort("[ff02::fd%eth1]:5683")
			return r
		}())

		wrong := q
		wrong.Token = append([]byte{^q.Token[0]}, q.Token[1:]...)
		a.answer(wrong, non, "wrong")
		require.Empty(t, a.replies())
		a.answer(wrong, con, "wrong")
		require.Equal(t, []message.Type{rst}, a.replies())
		for _, token := range [][]byte{nil, q.Token[:7], append([]byte{0}, q.Token...)} {
			a.send(q.from, &wire.Message{Type: con, Code: codes.Content, ID: uint16(100 + len(token)), Token: token})
			require.Equal(t, []message.Type{rst}, a.replies())
		}
		require.EqualValues(t, 5, s.stats.Unknown.Load())

		// The right Token on the socket of another request.
		sixth := s.member("[2001:db8::11]:5683", "ff02::fd")
		elsewhere := received{from: s.opened[2].conn.LocalAddr()}
		elsewhere.from = netip.AddrPortFrom(netip.MustParseAddr("2001:db8:1::1"), elsewhere.from.Port())
		elsewhere.Token = q.Token
		sixth.answer(elsewhere, con, "other socket")
		require.Equal(t, []message.Type{rst}, sixth.replies())
		require.Empty(t, w.got())
		require.Empty(t, only.got())
	})
}

// GC-15: a server that does not know multicast resets the request. That means
// nothing for the exchange.
func TestResetIsIgnored(t *testing.T) {
	inSite(t, nil, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		w, _ := s.ask(get(nodes4, 10))
		q := a.request()
		a.send(q.from, &wire.Message{Type: rst, ID: q.ID})
		a.send(q.from, &wire.Message{Type: ack, ID: q.ID})
		a.send(q.from, &wire.Message{Type: ack, Code: codes.Content, ID: q.ID, Token: q.Token})
		require.True(t, w.open())
		require.EqualValues(t, 3, s.messages.Ignored.Load())
		a.answer(q, non, "still there")
		require.Equal(t, []string{"still there"}, w.got())
	})
}

// A port of the group leg serves nobody.
func TestRequestsAreRejected(t *testing.T) {
	inSite(t, nil, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		s.ask(get(nodes4, 10))
		q := a.request()
		a.send(q.from, &wire.Message{Type: con, Code: codes.GET, ID: 1, Token: q.Token})
		require.Equal(t, []message.Type{rst}, a.replies())
		a.send(q.from, &wire.Message{Type: non, Code: codes.GET, ID: 2, Token: q.Token})
		require.Empty(t, a.replies())
	})
}

// GC-25: only the sources a group allows may answer.
func TestForeignSources(t *testing.T) {
	inSite(t, func(c *Config) {
		c.Groups[0].AllowedSources = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/28"), netip.MustParsePrefix("fe80::/64")}
	}, func(s *site) {
		a, b := s.member("192.0.2.11:5683", "224.0.1.187"), s.member("192.0.2.99:5683", "224.0.1.187")
		w, _ := s.ask(get(nodes4, 10))
		q := a.request()
		a.answer(q, non, "mine")
		b.request()
		b.answer(q, non, "foreign")
		require.Empty(t, b.replies())
		b.answer(q, con, "foreign")
		require.Equal(t, []message.Type{rst}, b.replies())
		require.Equal(t, []string{"mine"}, w.got())
		require.EqualValues(t, 2, s.stats.Foreign.Load())

		near := s.member("[fe80::9%eth0]:5683", "ff02::fd")
		w, _ = s.ask(get("[ff02::fd]:5683", 10))
		near.answer(near.request(), non, "near")
		require.Equal(t, []string{"near"}, w.got())
	})
}

// GP-61: the responses and bytes of an exchange are bounded; what is beyond is
// dropped and counted, and a smaller response still fits.
func TestResponseLimits(t *testing.T) {
	inSite(t, func(c *Config) { c.Groups[0].MaxResponses, c.Groups[0].MaxBytes = 3, 10 }, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		w, _ := s.ask(get(nodes4, 10))
		q := a.request()
		for _, text := range []string{"eight by", "much too long", "ab", "", "x"} {
			a.answer(q, non, text)
		}
		require.Equal(t, []string{"eight by", "ab", ""}, w.got())
		require.EqualValues(t, 2, s.stats.Excess.Load())
		require.True(t, w.open())
	})
}

// A sink that wants no more ends its exchange; so does a cancellation, whenever
// it comes and however often. What follows is late (GP-41).
func TestStop(t *testing.T) {
	for name, stop := range map[string]func(w *recorder, c func() exchange.Canceler){
		"verdict":     func(w *recorder, _ func() exchange.Canceler) { w.verdict = exchange.Stop },
		"from inside": func(w *recorder, c func() exchange.Canceler) { w.during = func() { c().Cancel(); c().Cancel() } },
		"inside, twice": func(w *recorder, c func() exchange.Canceler) {
			w.during = func() { c().Cancel() }
			w.verdict = exchange.Stop
		},
		"from elsewhere": nil,
	} {
		t.Run(name, func(t *testing.T) {
			inSite(t, nil, func(s *site) {
				a := s.member("192.0.2.11:5683", "224.0.1.187")
				var canceler exchange.Canceler
				w, c := s.ask(get(nodes4, 10), func(w *recorder) {
					if stop != nil {
						stop(w, func() exchange.Canceler { return canceler })
					}
				})
				canceler = c
				q := a.request()
				a.answer(q, non, "one")
				if stop == nil {
					c.Cancel()
				}
				require.False(t, w.open())
				a.answer(q, non, "two")
				require.Equal(t, []string{"one"}, w.got())
				require.EqualValues(t, 1, s.stats.Late.Load())
				if name != "verdict" && name != "inside, twice" {
					require.ErrorIs(t, w.err, exchange.ErrCanceled)
				}
				c.Cancel()
			})
		})
	}
}

// GP-32, GP-35: with T' = 0 the request goes out and the exchange is over: its
// Token is free, every response late.
func TestNoWindow(t *testing.T) {
	inSite(t, nil, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		w, c := s.ask(get(nodes4, 0))
		require.False(t, w.open())
		require.NoError(t, w.err)
		c.Cancel()
		q := a.request()
		a.answer(q, non, "unwanted")
		a.answer(q, con, "unwanted")
		require.Equal(t, []message.Type{rst}, a.replies())
		require.Empty(t, w.got())
		require.EqualValues(t, 2, s.stats.Late.Load())
		require.EqualValues(t, 1, s.stats.Requests.Load())
	})
}

// The end of the process ends every exchange, running or waiting, and begins
// none.
func TestWait(t *testing.T) {
	inSite(t, func(c *Config) { c.Groups[0].NStart = 1 }, func(s *site) {
		running, _ := s.ask(get(nodes4, 60))
		waiting, _ := s.ask(get(nodes4, 60))
		s.stop()
		s.leg.Wait()
		require.ErrorIs(t, running.err, exchange.ErrCanceled)
		require.ErrorIs(t, waiting.err, exchange.ErrCanceled)
		w, _ := s.ask(get(nodes4, 60))
		w.failure(exchange.Overloaded)
		require.Error(t, s.leg.Prepare("nodes", netip.MustParseAddr("ff05::fd")))
		// The clock of the engine has stopped with it, so that the slot that
		// was taken is not given back.
		s.leg.groups["nodes"].outstanding = 0
	})
}
