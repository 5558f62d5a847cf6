package chain

import (
	"encoding/hex"
	"net/netip"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

const server1, server2 = "198.51.100.1:5683", "[2001:db8::2]:61616"

// GP-91, GP-92, GP-93, GP-100: the next proxy is told T”, and the exchange ends
// at T' with nothing after it, while the Token stays in use until T.
func TestGroup(t *testing.T) {
	inBench(t, nil, func(b *bench) {
		b.trip = 1300 * time.Millisecond
		c, r := b.group(5)
		s := b.only()
		require.EqualValues(t, 4, s.told(t))
		require.Equal(t, exchange.Timeout{Seconds: 7, Present: true}, s.request.Timeout)
		require.Equal(t, netip.MustParseAddrPort(first), s.request.Target.Addr)
		require.False(t, s.request.Target.Group)
		require.True(t, s.request.Confirmable)
		uri, _ := wire.First(s.request.Options, wire.ProxyURI)
		require.Equal(t, "coap://224.0.1.187/a", string(uri))
		s.ack()
		s.respond(codes.Content, replyFrom(server1))
		b.after(4500 * time.Millisecond)
		s.respond(codes.Content, replyFrom(server2)) // between T'' and T': the way here takes its time
		require.Empty(t, c.ended())
		b.after(499 * time.Millisecond)
		require.Empty(t, c.ended())
		b.after(time.Millisecond)
		require.Equal(t, []error{nil}, c.ended())
		require.Equal(t, 5*time.Second, c.when().Sub(r.Arrival))
		s.respond(codes.Content, replyFrom(server1))
		require.EqualValues(t, 1, b.stats.Late.Load())
		require.False(t, s.wasCanceled() || s.wasForgotten(), "the Token is kept for T")
		s.end(nil)
		require.Len(t, c.ended(), 1)
		require.Len(t, c.got(), 2)
		for i, want := range []string{server1, server2} {
			p := c.got()[i]
			require.Equal(t, netip.MustParseAddrPort(want), p.From)
			require.Nil(t, p.ReplyFrom, "the same bytes are made of the address")
			require.EqualValues(t, 5683, p.GroupPort)
			require.False(t, wire.Has(p.Options, wire.ReplyFrom))
		}
		require.Zero(t, b.engine.Scheduled())
	})
}

// GP-92: a T' of 0 is passed on as 0; of what comes back only an error counts.
func TestSilent(t *testing.T) {
	inBench(t, nil, func(b *bench) {
		c, _ := b.group(0)
		s := b.only()
		require.EqualValues(t, 0, s.told(t))
		require.Equal(t, exchange.Timeout{Present: true}, s.request.Timeout)
		s.respond(codes.Content, replyFrom(server1))
		s.ack()
		s.end(nil)
		require.Equal(t, []error{nil}, c.ended())
		require.Empty(t, c.got())

		c, _ = b.group(0)
		b.leg.all()[1].respond(codes.Unauthorized)
		require.Len(t, c.got(), 1)
		require.Equal(t, []error{nil}, c.ended())

		c, _ = b.group(0) // nobody there
		b.after(time.Minute)
		require.Equal(t, []error{nil}, c.ended())
		require.EqualValues(t, 1, b.stats.Downs.Load())
	})
}

// GP-96: no T” is left, and nothing is forwarded.
func TestTooShortHere(t *testing.T) {
	inBench(t, nil, func(b *bench) {
		c, _ := b.group(1)
		f := c.failure(t)
		require.Equal(t, exchange.TimeoutTooShort, f.Reason)
		require.EqualValues(t, 2, f.MinTimeout)
		c, _ = b.group(3, func(r *exchange.Request) { r.PreviousHop = 2500 * time.Millisecond })
		require.EqualValues(t, 4, c.failure(t).MinTimeout)
		require.Empty(t, b.leg.all())
	})
}

// GP-97, GP-98: a refusal of the timeout.
func TestTooShortBehind(t *testing.T) {
	t.Run("asks for more", func(t *testing.T) {
		inBench(t, nil, func(b *bench) {
			c, _ := b.group(5, func(r *exchange.Request) { r.PreviousHop = 1500 * time.Millisecond })
			s := b.only()
			require.EqualValues(t, 3, s.told(t))
			s.respond(codes.ProxyingNotSupported, timeout(9))
			f := c.failure(t)
			require.Equal(t, exchange.TimeoutTooShort, f.Reason)
			require.EqualValues(t, 11, f.MinTimeout)
			require.True(t, s.wasForgotten(), "the next proxy has ended it itself")
			require.EqualValues(t, 1, b.stats.TooShort.Load())
		})
	})
	t.Run("gets more, once", func(t *testing.T) {
		inBench(t, func(h *Hop) { h.MaxTimeout = 3 }, func(b *bench) {
			c, _ := b.group(30)
			require.EqualValues(t, 3, b.only().told(t))
			b.only().respond(codes.ProxyingNotSupported, timeout(20))
			all := b.leg.all()
			require.Len(t, all, 2)
			require.True(t, all[0].wasForgotten())
			require.EqualValues(t, 20, all[1].told(t))
			require.EqualValues(t, 31, all[1].request.Timeout.Seconds)
			all[1].respond(codes.ProxyingNotSupported, timeout(25))
			require.EqualValues(t, 26, c.failure(t).MinTimeout)
			require.EqualValues(t, 1, b.stats.Repeats.Load())
		})
	})
	t.Run("gets more, and it works", func(t *testing.T) {
		inBench(t, func(h *Hop) { h.Margin = 10 }, func(b *bench) {
			c, r := b.group(30)
			b.only().respond(codes.ProxyingNotSupported, timeout(20))
			s := b.leg.all()[1]
			s.respond(codes.Content, replyFrom(server1))
			b.leg.all()[0].respond(codes.Content, replyFrom(server1)) // of the attempt that is over
			b.after(30 * time.Second)
			require.Len(t, c.got(), 1)
			require.Equal(t, []error{nil}, c.ended())
			require.Equal(t, 30*time.Second, c.when().Sub(r.Arrival))
			require.EqualValues(t, 1, b.stats.Excess.Load())
		})
	})
	// A 5.05 without the option is passed on as it is (GP-98).
	t.Run("says nothing", func(t *testing.T) {
		inBench(t, nil, func(b *bench) {
			c, _ := b.group(5)
			b.only().respond(codes.ProxyingNotSupported)
			require.Equal(t, []error{nil}, c.ended())
			require.Equal(t, codes.ProxyingNotSupported, c.got()[0].Code)
			require.Zero(t, c.got()[0].GroupPort)
		})
	})
	for name, o := range map[string]message.Option{
		"what it was told":   timeout(4),
		"less":               timeout(0),
		"more than there is": timeout(4294967295),
		"no number":          {ID: wire.MulticastTimeout, Value: []byte{1, 2, 3, 4, 5}},
	} {
		t.Run("nonsense: "+name, func(t *testing.T) {
			inBench(t, nil, func(b *bench) {
				c, _ := b.group(5)
				b.only().respond(codes.ProxyingNotSupported, o)
				require.Equal(t, exchange.BadResponse, c.failure(t).Reason)
				require.EqualValues(t, 1, b.stats.Nonsense.Load())
			})
		})
	}
}

// What is no proxy, or one that does not know Multicast-Timeout.
func TestMisbehaving(t *testing.T) {
	t.Run("one response that names nobody", func(t *testing.T) {
		inBench(t, nil, func(b *bench) {
			c, _ := b.group(60)
			b.only().respond(codes.Content)
			require.Equal(t, exchange.BadResponse, c.failure(t).Reason)
			require.EqualValues(t, 1, b.stats.Unnamed.Load())
			require.True(t, b.only().wasForgotten())
		})
	})
	t.Run("asks for the timeout it was given", func(t *testing.T) {
		inBench(t, nil, func(b *bench) {
			c, _ := b.group(60)
			b.only().respond(codes.BadRequest, timeout(0))
			require.Equal(t, exchange.BadResponse, c.failure(t).Reason)
			require.EqualValues(t, 1, b.stats.Nonsense.Load())
		})
	})
	t.Run("errors in the middle", func(t *testing.T) {
		inBench(t, nil, func(b *bench) {
			c, _ := b.group(60)
			s := b.only()
			s.respond(codes.Content, replyFrom(server1))
			s.respond(codes.ServiceUnavailable)
			s.respond(codes.ProxyingNotSupported, timeout(99))
			s.respond(codes.Content)
			s.respond(codes.NotFound, replyFrom(server2)) // a server's, which is no error of the exchange
			require.Len(t, c.got(), 2)
			require.Empty(t, c.ended())
			require.EqualValues(t, 3, b.stats.Excess.Load())
		})
	})
	t.Run("its own error", func(t *testing.T) {
		inBench(t, nil, func(b *bench) {
			c, _ := b.group(60)
			s := b.only()
			s.respond(codes.Unauthorized, message.Option{ID: wire.MaxAge})
			s.respond(codes.Unauthorized)
			require.Len(t, c.got(), 1)
			require.Equal(t, []error{nil}, c.ended())
			require.False(t, c.got()[0].From.IsValid())
			require.EqualValues(t, 1, b.stats.Late.Load()+b.stats.Excess.Load())
		})
	})
	t.Run("malformed Reply-From", func(t *testing.T) { // GP-10
		inBench(t, nil, func(b *bench) {
			c, _ := b.group(60)
			b.only().respond(codes.Content, message.Option{ID: wire.ReplyFrom, Value: []byte("nonsense")})
			require.Equal(t, "nonsense", string(c.got()[0].ReplyFrom))
			require.False(t, c.got()[0].From.IsValid())
			require.EqualValues(t, 1, b.stats.Malformed.Load())
		})
	})
}

// GP-101: the bytes of Reply-From pass unchanged, whatever they name.
func TestNames(t *testing.T) {
	item2 := wire.ReplyFromValue{Server: wire.URI{Scheme: "coap+tcp", Addr: netip.MustParseAddr("203.0.113.1"), Port: 5683},
		Ref: &wire.ReplyFromRef{Path: []string{"dev", "1"}}}.Append(nil)
	for _, tt := range []struct {
		name, value string
		from        string
		kept        bool // the bytes cannot be made of the address
	}{
		{"address", hex.EncodeToString(wire.AppendReplyFrom(nil, 0, netip.MustParseAddrPort(server2))), server2, false},
		{"zone", hex.EncodeToString(wire.AppendReplyFrom(nil, 0, netip.MustParseAddrPort("[fe80::1%3]:5683"))), "[fe80::1%3]:5683", true},
		{"port written though standard", "8220" + "82" + "44c6336401" + "191633", "198.51.100.1:5683", true},
		{"another scheme", hex.EncodeToString(wire.AppendReplyFrom(nil, 6, netip.MustParseAddrPort(server1))), "", true},
		{"a second item (GP-53)", hex.EncodeToString(item2), "", true},
		{"a name", "8220" + "82" + "6164" + "67" + hex.EncodeToString([]byte("example")), "", true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			inBench(t, nil, func(b *bench) {
				value, err := hex.DecodeString(tt.value)
				require.NoError(t, err)
				c, _ := b.group(9)
				b.only().respond(codes.Content, message.Option{ID: wire.ReplyFrom, Value: value})
				require.Len(t, c.got(), 1)
				p := c.got()[0]
				var from netip.AddrPort
				if tt.from != "" {
					from = netip.MustParseAddrPort(tt.from)
				}
				require.Equal(t, from, p.From)
				if tt.kept {
					require.Equal(t, value, p.ReplyFrom)
				} else {
					require.Nil(t, p.ReplyFrom)
				}
				require.Zero(t, b.stats.Malformed.Load())
			})
		})
	}
}

// GP-101, GP-127: a next proxy of the older generation.
func TestOlderHop(t *testing.T) {
	inBench(t, func(h *Hop) { h.Dialect = exchange.Legacy }, func(b *bench) {
		c, _ := b.group(9)
		s := b.only()
		value, ok := wire.First(s.request.Options, 2050)
		require.True(t, ok)
		require.Equal(t, []byte{8}, value)
		require.False(t, wire.Has(s.request.Options, wire.MulticastTimeout))
		s.respond(codes.Content, forwarding(server1))
		tcp := message.Option{ID: wire.ResponseForwarding, Value: wire.AppendResponseForwarding(nil, 3, netip.MustParseAddrPort(server2))}
		s.respond(codes.Content, tcp)
		s.respond(codes.Content)                                                                     // GP-123
		s.respond(codes.Content, message.Option{ID: wire.ResponseForwarding, Value: []byte{0x80}})   // GP-124
		s.respond(codes.Content, message.Option{ID: wire.ResponseForwarding}, replyFrom("[::1]:99")) // both, and one is of use
		require.Len(t, c.got(), 5)
		require.Equal(t, netip.MustParseAddrPort("[::1]:99"), c.got()[4].From)
		require.Equal(t, netip.MustParseAddrPort(server1), c.got()[0].From)
		v, err := wire.ParseReplyFrom(c.got()[1].ReplyFrom)
		require.NoError(t, err)
		require.Equal(t, "coap+tcp://[2001:db8::2]:61616", v.ServerURI())
		require.False(t, c.got()[1].From.IsValid())
		for _, p := range c.got() {
			require.False(t, wire.Has(p.Options, wire.ResponseForwarding))
		}
	})
}

// GP-103: an Early Stop goes on to the next proxy.
func TestStop(t *testing.T) {
	inBench(t, nil, func(b *bench) {
		c, _ := b.group(60)
		s := b.only()
		s.respond(codes.Content, replyFrom(server1))
		c.cancel.Cancel()
		require.Equal(t, []error{exchange.ErrCanceled}, c.ended())
		require.True(t, s.wasCanceled())
		require.EqualValues(t, 1, b.stats.Stopped.Load())
		c.cancel.Cancel()
		s.respond(codes.Content, replyFrom(server1))
		require.Len(t, c.got(), 1)
		require.Zero(t, b.engine.Scheduled())
	})
}

// GP-104: a 2.03 for the whole set is passed back, and ends the exchange.
func TestGroupTag(t *testing.T) {
	inBench(t, nil, func(b *bench) {
		tag := message.Option{ID: wire.GroupETag, Value: []byte("tag")}
		c, _ := b.group(60, func(r *exchange.Request) { r.Options = append(r.Options, tag) })
		s := b.only()
		require.True(t, wire.Has(s.request.Options, wire.GroupETag))
		s.respond(codes.Valid, tag)
		require.Equal(t, []error{nil}, c.ended())
		require.Equal(t, codes.Valid, c.got()[0].Code)
		require.True(t, wire.Has(c.got()[0].Options, wire.GroupETag))
		require.Zero(t, c.got()[0].GroupPort)

		c, _ = b.group(60)
		b.leg.all()[1].respond(codes.Content, tag, replyFrom(server1))
		require.True(t, wire.Has(c.got()[0].Options, wire.GroupETag))
	})
}

// GP-105: an observation goes on after T', and what is no notification does not.
func TestObservation(t *testing.T) {
	inBench(t, nil, func(b *bench) {
		observe := message.Option{ID: wire.Observe, Value: []byte{7}}
		c, _ := b.group(5, func(r *exchange.Request) {
			r.Options = append(message.Options{{ID: wire.Observe, Value: []byte{}}}, r.Options...)
		})
		s := b.only()
		require.True(t, wire.Has(s.request.Options, wire.Observe))
		s.respond(codes.Content, observe, replyFrom(server1))
		s.respond(codes.Content, replyFrom(server2))
		b.after(time.Hour)
		require.Empty(t, c.ended())
		s.respond(codes.Content, observe, replyFrom(server1))
		s.respond(codes.Content, replyFrom(server2)) // late
		s.respond(codes.NotFound, replyFrom(server1))
		require.Len(t, c.got(), 4)
		require.EqualValues(t, 1, b.stats.Late.Load())
		c.cancel.Cancel()
		require.Equal(t, []error{exchange.ErrCanceled}, c.ended())
		require.True(t, s.wasCanceled())
	})
}

// GP-57: where clients are not to be told zones, those of a next proxy stay out, too:
// Reply-From is made of the address.
func TestNoZones(t *testing.T) {
	inBench(t, nil, func(b *bench) {
		b.chain.config.Zones = false
		c, _ := b.group(9)
		b.only().respond(codes.Content, replyFrom("[fe80::1%3]:5683"))
		require.Nil(t, c.got()[0].ReplyFrom)
		require.Equal(t, netip.MustParseAddrPort("[fe80::1%3]:5683"), c.got()[0].From)
	})
}
