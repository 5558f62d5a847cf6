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

// oneAtATime is a group with NSTART 1 and a queue of two.
func oneAtATime(c *Config) { c.Groups[0].NStart, c.Groups[0].Queue = 1, 2 }

// distinct returns a GET that no other one is the same as.
func distinct(query string, seconds uint32) *exchange.Request {
	return get(nodes4, seconds, message.Option{ID: wire.URIQuery, Value: []byte(query)})
}

// GC-80: one request to a group is outstanding at a time, until the first
// response; the others wait in their order, and more than the queue takes get
// 5.03.
func TestQueue(t *testing.T) {
	inSite(t, oneAtATime, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		w1, _ := s.ask(distinct("1", 60))
		w2, _ := s.ask(distinct("2", 60))
		w3, _ := s.ask(distinct("3", 60))
		w4, _ := s.ask(distinct("4", 60))
		require.NotZero(t, w4.failure(exchange.Overloaded).RetryAfter)
		require.EqualValues(t, 2, s.stats.Queued.Load())
		require.EqualValues(t, 1, s.stats.QueueFull.Load())

		q1 := a.request()
		a.answer(q1, non, "one")
		q2 := a.request()
		require.Equal(t, "2", string(q2.Options[1].Value))
		require.NotEqual(t, q1.Token, q2.Token)
		a.answer(q1, non, "one more") // frees nothing: its slot has passed on
		require.Empty(t, a.heard())
		a.answer(q2, con, "two")
		got := a.heard() // the ACK, and the third request
		require.Len(t, got, 2)
		require.Equal(t, []string{"one", "one more"}, w1.got())
		require.Equal(t, []string{"two"}, w2.got())
		require.True(t, w3.open())
	})
}

// GC-80, GC-35: without a response a request is outstanding for one Leisure and
// a round trip, also when nobody waits for its responses any more: neither a
// short T' nor a cancellation makes room for more.
func TestSlotTime(t *testing.T) {
	const slot = 5*time.Second + roundTrip
	for name, end := range map[string]func(c exchange.Canceler){
		"running":  func(exchange.Canceler) {},
		"canceled": exchange.Canceler.Cancel,
	} {
		t.Run(name, func(t *testing.T) {
			inSite(t, oneAtATime, func(s *site) {
				a := s.member("192.0.2.11:5683", "224.0.1.187")
				_, c := s.ask(distinct("1", 60))
				a.request()
				s.ask(distinct("2", 60))
				end(c)
				s.after(slot - 1)
				require.Empty(t, a.heard())
				s.after(1)
				a.request()
			})
		})
	}
	inSite(t, oneAtATime, func(s *site) { // T' is over before the slot is
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		w, _ := s.ask(distinct("1", 1))
		a.request()
		s.ask(distinct("2", 60))
		s.after(time.Second)
		require.False(t, w.open())
		require.Empty(t, a.heard())
		s.after(slot - time.Second)
		a.request()
	})
}

// GC-80: time in the queue counts. The window ends T' after the client's
// request arrived, and a request that never had its turn gets 5.03.
func TestTimeInQueue(t *testing.T) {
	inSite(t, oneAtATime, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		s.ask(distinct("1", 60))
		a.request()
		short, _ := s.ask(distinct("2", 3))
		long, _ := s.ask(distinct("3", 10))
		s.after(3*time.Second - 1)
		require.True(t, short.open())
		s.after(1)
		f := short.failure(exchange.Overloaded)
		require.NotZero(t, f.RetryAfter)

		s.after(5*time.Second + roundTrip - 3*time.Second)
		q := a.request()
		require.Equal(t, "3", string(q.Options[1].Value))
		s.after(10*time.Second - 7*time.Second - 1)
		require.True(t, long.open())
		s.after(1)
		require.False(t, long.open())
		require.NoError(t, long.err)
	})
}

// A request that is given up while it waits is never sent, and leaves its
// place to another.
func TestCancelInQueue(t *testing.T) {
	inSite(t, oneAtATime, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		s.ask(distinct("1", 60))
		w2, c2 := s.ask(distinct("2", 60))
		s.ask(distinct("3", 60))
		c2.Cancel()
		require.ErrorIs(t, w2.err, exchange.ErrCanceled)
		s.ask(distinct("4", 60))
		for _, want := range []string{"1", "3", "4"} {
			q := a.request()
			require.Equal(t, want, string(q.Options[1].Value))
			a.answer(q, non, "")
		}
	})
}

// GC-82: identical requests that wait share one multicast. Each keeps its own
// T', and the Token lives until the largest.
func TestSharing(t *testing.T) {
	inSite(t, oneAtATime, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		s.ask(distinct("1", 60))
		first := a.request()
		short, _ := s.ask(distinct("2", 10))
		long, _ := s.ask(distinct("2", 60))
		given, c := s.ask(distinct("2", 60))
		require.EqualValues(t, 2, s.stats.Shared.Load())
		require.EqualValues(t, 1, s.stats.Queued.Load())
		a.answer(first, non, "")
		q := a.request()
		a.answer(q, non, "all three")
		c.Cancel()
		a.answer(q, non, "two")
		s.after(10 * time.Second)
		a.answer(q, non, "one")
		require.Equal(t, []string{"all three", "two"}, short.got())
		require.Equal(t, []string{"all three", "two", "one"}, long.got())
		require.Equal(t, []string{"all three"}, given.got())
		require.False(t, short.open())
		s.after(50 * time.Second)
		require.False(t, long.open())
		a.answer(q, non, "late")
		require.EqualValues(t, 1, s.stats.Late.Load())

		// What has been sent is not shared any more.
		s.ask(distinct("2", 60))
		require.NotEqual(t, q.Token, a.request().Token)
	})
}

// A shared request waits as long as one client does.
func TestSharingInQueue(t *testing.T) {
	inSite(t, oneAtATime, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		s.ask(distinct("1", 60))
		a.request()
		short, _ := s.ask(distinct("2", 2))
		long, c := s.ask(distinct("2", 60))
		s.after(2 * time.Second)
		short.failure(exchange.Overloaded)
		require.True(t, long.open())
		c.Cancel()
		require.False(t, long.open())
		s.after(5 * time.Second)
		require.Empty(t, a.heard())
	})
}

// GC-82: what has to be the same for two requests to share a multicast.
func TestShareKey(t *testing.T) {
	type change func(r *exchange.Request)
	option := func(id message.OptionID, value string) change {
		return func(r *exchange.Request) { r.Options = append(r.Options, message.Option{ID: id, Value: []byte(value)}) }
	}
	base := func(changes ...change) *exchange.Request {
		r := get(nodes4, 60)
		for _, f := range changes {
			f(r)
		}
		return r
	}
	fetch := func(body string) change {
		return func(r *exchange.Request) { r.Method, r.Payload = wire.FETCH, []byte(body) }
	}
	for name, tt := range map[string]struct {
		a, b *exchange.Request
		same bool
	}{
		"same":                 {base(), base(), true},
		"other T'":             {base(), base(func(r *exchange.Request) { r.Timeout.Seconds = 1 }), true},
		"other Hop-Limit":      {base(option(wire.HopLimit, "\x10")), base(option(wire.HopLimit, "\x07")), true},
		"not in the cache key": {base(option(wire.Size1, "\x01")), base(), true}, // number 60 is NoCacheKey
		"other path":           {base(), base(option(wire.URIPath, "s")), false},
		"split otherwise":      {base(option(wire.URIQuery, "ab")), base(option(wire.URIQuery, "a"), option(wire.URIQuery, "b")), false},
		"other host": {base(), base(func(r *exchange.Request) {
			r.Options = append(message.Options{{ID: wire.URIHost, Value: []byte("h")}}, r.Options...)
		}), false},
		"other ETag":            {base(option(wire.ETag, "1")), base(option(wire.ETag, "2")), false},
		"other No-Response":     {base(option(wire.NoResponse, "\x08")), base(), false},
		"other address":         {base(), func() *exchange.Request { r := base(); r.Target = get(nodes6, 1).Target; return r }(), false},
		"further group":         {base(), base(func(r *exchange.Request) { r.Target.Also = []exchange.GroupAddr{{Addr: get(nodes6, 1).Target.Addr}} }), false},
		"FETCH":                 {base(fetch("q")), base(fetch("q")), true},
		"FETCH, other body":     {base(fetch("q")), base(fetch("r")), false},
		"GET and FETCH":         {base(), base(fetch("")), false},
		"body looks like":       {base(fetch("x\xff\xfe\x00\x01y"), option(0xfffe, "")), base(fetch("x"), option(0xfffe, "y\xff\xfe\x00\x00")), false},
		"body like an option":   {base(fetch("x"), option(wire.URIPath, "r")), base(fetch("x\x00\x0b\x00\x01r")), false},
		"body looks like, more": {base(fetch("\xff\xf1\x00\x01ay")), base(fetch("y"), option(0xfff1, "a")), false},
	} {
		t.Run(name, func(t *testing.T) {
			require.NotEmpty(t, shareKey(tt.a))
			require.Equal(t, tt.same, shareKey(tt.a) == shareKey(tt.b))
		})
	}
	for _, method := range []codes.Code{codes.POST, codes.PUT, codes.DELETE, wire.PATCH, wire.IPATCH, 0x1f} {
		r := base()
		r.Method = method
		require.Empty(t, shareKey(r), "unsafe methods are never merged")
	}
}

// NSTART above 1, and groups that do not wait for each other.
func TestMoreAtATime(t *testing.T) {
	inSite(t, func(c *Config) {
		c.Groups[0].NStart = 2
		other := testGroup("other")
		other.NStart = 1
		c.Groups = append(c.Groups, other)
	}, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		for _, query := range []string{"1", "2", "3"} {
			s.ask(distinct(query, 60))
		}
		require.Len(t, a.heard(), 2)
		r := distinct("4", 60)
		r.Target.GroupName = "other"
		s.ask(r)
		a.request()
	})
}

// One client cannot keep a group's queue to itself: clients take turns, and where
// the queue is full, the last request of who has most gives way (GC-80).
func TestQueueIsShared(t *testing.T) {
	inSite(t, oneAtATime, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		from := func(peer string, r *exchange.Request) *exchange.Request {
			r.Peer = netip.MustParseAddrPort(peer)
			return r
		}
		s.ask(from("203.0.113.1:1", distinct("1", 60)))
		second, _ := s.ask(from("203.0.113.1:1", distinct("2", 60)))
		third, _ := s.ask(from("203.0.113.1:2", distinct("3", 60)))
		modest, _ := s.ask(from("203.0.113.2:1", distinct("4", 60)))
		third.failure(exchange.Overloaded)
		require.EqualValues(t, 1, s.stats.Displaced.Load())
		fourth, _ := s.ask(from("203.0.113.1:1", distinct("5", 60)))
		fourth.failure(exchange.Overloaded)
		for _, want := range []string{"1", "2", "4"} {
			q := a.request()
			require.Equal(t, want, string(q.Options[1].Value))
			a.answer(q, non, want)
		}
		require.Equal(t, []string{"2"}, second.got())
		require.Equal(t, []string{"4"}, modest.got())
	})
}
