package chain

import (
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

var errRefused = &exchange.Failure{Reason: exchange.Unreachable, Err: errors.New("refused")}

// messages are the log's lines about health.
func (b *bench) messages() []string {
	var out []string
	for _, e := range b.log.All() {
		if e.Message == "next hop is up" || e.Message == "next hop is down" {
			out = append(out, e.Message)
		}
	}
	return out
}

// A request for one server, and who is named as the server.
func TestSingle(t *testing.T) {
	inBench(t, nil, func(b *bench) {
		c, r := b.request(codes.PUT)
		s := b.only()
		require.Equal(t, exchange.Timeout{}, s.request.Timeout)
		require.Equal(t, netip.MustParseAddrPort(first), s.request.Target.Addr)
		s.respond(codes.Changed)
		s.end(nil)
		require.Equal(t, []error{nil}, c.ended())
		require.Equal(t, r.Target.Addr, c.got()[0].From)
		require.Zero(t, b.engine.Scheduled())

		c, _ = b.request(codes.GET)
		s = b.leg.all()[1]
		c.cancel.Cancel()
		c.cancel.Cancel()
		require.True(t, s.wasCanceled())
		require.Equal(t, []error{exchange.ErrCanceled}, c.ended())
		require.Equal(t, []string{"next hop is up"}, b.messages())
	})
}

// A next proxy that is slow is not one that is down.
func TestSlow(t *testing.T) {
	inBench(t, nil, func(b *bench) {
		c, _ := b.request(codes.GET)
		s := b.only()
		s.ack()
		b.after(90 * time.Second)
		require.Empty(t, c.ended())
		s.end(&exchange.Failure{Reason: exchange.NoAnswer, Detail: "of the leg"})
		require.Equal(t, "of the leg", c.failure(t).Detail)
		require.Zero(t, b.stats.Downs.Load())

		// A body in blocks is acknowledged where nobody sees it.
		c, _ = b.request(codes.PUT)
		b.after(time.Minute)
		require.Empty(t, c.ended())
		b.leg.all()[1].respond(codes.Changed)
		b.leg.all()[1].end(nil)
		require.Equal(t, []error{nil}, c.ended())
	})
}

// A next proxy that falls silent: 5.04 when its time is over, 5.04 at once from
// then on, and requests again when it is back.
func TestSilence(t *testing.T) {
	inBench(t, nil, func(b *bench) {
		b.leg.lose(first, nil)
		c, r := b.request(codes.GET)
		b.after(9999 * time.Millisecond)
		require.Empty(t, c.ended())
		b.after(time.Millisecond)
		require.Equal(t, exchange.NoAnswer, c.failure(t).Reason)
		require.NotErrorIs(t, c.failure(t), exchange.ErrCanceled, "nothing would be said to the client")
		require.Equal(t, 10*time.Second, c.when().Sub(r.Arrival))
		require.EqualValues(t, 0, b.stats.Up.Load())
		require.EqualValues(t, 1, b.stats.Downs.Load())

		c, _ = b.request(codes.GET)
		require.Equal(t, exchange.NoAnswer, c.failure(t).Reason)
		c, _ = b.group(60)
		require.Equal(t, exchange.NoAnswer, c.failure(t).Reason)
		require.EqualValues(t, 2, b.stats.Refused.Load())

		// Pauses grow, from the end of one attempt to the next one.
		n := len(b.leg.probed())
		b.after(10 * time.Minute)
		var pauses []time.Duration
		for i := n + 1; i < len(b.leg.probed()); i++ {
			pauses = append(pauses, b.leg.probed()[i].Sub(b.leg.probed()[i-1])-probeTimeout)
		}
		require.GreaterOrEqual(t, len(pauses), 8)
		require.Equal(t, []time.Duration{2 * time.Second, 4 * time.Second, 8 * time.Second, 16 * time.Second, 32 * time.Second, time.Minute}, pauses[:6])

		c, _ = b.request(codes.GET)
		require.Equal(t, exchange.NoAnswer, c.failure(t).Reason)
		require.NotErrorIs(t, c.failure(t), exchange.ErrCanceled, "attempts to find it have been given up")
		b.leg.restore(first)
		b.after(time.Minute)
		require.EqualValues(t, 1, b.stats.Up.Load())
		require.Equal(t, []string{"next hop is up", "next hop is down", "next hop is up"}, b.messages())
		c, _ = b.request(codes.GET)
		require.Empty(t, c.ended())
		b.leg.all()[len(b.leg.all())-1].end(nil)
	})
}

// A connection that is lost after the request was written to it: the hop is looked
// for, and is down when it is not found.
func TestLostConnection(t *testing.T) {
	inBench(t, nil, func(b *bench) {
		for i := range 2 {
			c, _ := b.group(60)
			s := b.leg.all()[i]
			b.after(time.Millisecond)
			s.ack()
			if i == 1 {
				b.leg.lose(first, errRefused)
			}
			probes := len(b.leg.probed())
			s.end(errRefused)
			require.Equal(t, exchange.Unreachable, c.failure(t).Reason)
			require.Len(t, b.leg.probed(), probes+1)
			b.after(time.Millisecond)
			require.EqualValues(t, i, b.stats.Downs.Load())
		}
	})
}

// One that is refused gets 5.02, at once.
func TestRefused(t *testing.T) {
	inBench(t, nil, func(b *bench) {
		b.leg.lose(first, errRefused)
		for range 3 {
			c, _ := b.request(codes.GET)
			require.Equal(t, exchange.Unreachable, c.failure(t).Reason)
			require.Equal(t, "the next proxy cannot be reached", c.failure(t).Detail)
		}
		require.Len(t, b.leg.all(), 1)
	})
}

// A group request that nobody acknowledges gets its error while the client still
// waits, however short that is.
func TestGroupSilence(t *testing.T) {
	for _, tt := range []struct {
		asked uint32
		ends  time.Duration
	}{{2, time.Second}, {5, 4 * time.Second}, {60, 10 * time.Second}} {
		inBench(t, nil, func(b *bench) {
			b.leg.lose(first, nil)
			c, r := b.group(tt.asked)
			b.after(time.Minute)
			require.Equal(t, exchange.NoAnswer, c.failure(t).Reason)
			require.Equal(t, tt.ends, c.when().Sub(r.Arrival))
			require.EqualValues(t, 1, b.stats.Downs.Load(), "the attempt to find it says so later")
		})
	}
	// One that is acknowledged is silent because nobody is in the group (GP-38).
	inBench(t, nil, func(b *bench) {
		c, _ := b.group(5)
		b.only().ack()
		b.after(time.Minute)
		require.Equal(t, []error{nil}, c.ended())
		require.Zero(t, b.stats.Downs.Load())
	})
}

// The other address is used while the preferred one is down, for requests on
// their way if they are safe.
func TestFailover(t *testing.T) {
	t.Run("safe request", func(t *testing.T) {
		inBench(t, withBackup, func(b *bench) {
			b.leg.lose(first, errRefused)
			c, _ := b.request(codes.GET)
			require.Empty(t, c.ended())
			all := b.leg.all()
			require.Len(t, all, 2)
			require.Equal(t, netip.MustParseAddrPort(second), all[1].request.Target.Addr)
			require.Equal(t, all[0].request.Options, all[1].request.Options)
			all[1].respond(codes.Content)
			all[1].end(nil)
			require.Equal(t, []error{nil}, c.ended())
			require.EqualValues(t, 1, b.stats.Failovers.Load())
			require.EqualValues(t, 1, b.stats.Up.Load())

			c, _ = b.request(codes.POST) // at once now
			require.Equal(t, netip.MustParseAddrPort(second), b.leg.all()[2].request.Target.Addr)
			c.cancel.Cancel()

			b.leg.restore(first)
			b.after(2 * time.Second)
			c, _ = b.request(codes.GET)
			require.Equal(t, netip.MustParseAddrPort(first), b.leg.all()[3].request.Target.Addr)
			c.cancel.Cancel()
		})
	})
	t.Run("unsafe request", func(t *testing.T) {
		inBench(t, withBackup, func(b *bench) {
			b.leg.lose(first, errRefused)
			c, _ := b.request(codes.POST)
			require.Equal(t, exchange.Unreachable, c.failure(t).Reason)
			require.Len(t, b.leg.all(), 1)
		})
	})
	t.Run("both are down", func(t *testing.T) {
		inBench(t, withBackup, func(b *bench) {
			b.leg.lose(first, errRefused)
			b.leg.lose(second, nil)
			c, _ := b.request(codes.GET)
			b.after(10 * time.Second)
			require.Equal(t, exchange.NoAnswer, c.failure(t).Reason)
			require.Len(t, b.leg.all(), 2)
			require.EqualValues(t, 0, b.stats.Up.Load())
		})
	})
	t.Run("canceled between", func(t *testing.T) {
		inBench(t, withBackup, func(b *bench) {
			b.leg.lose(first, nil)
			c, _ := b.request(codes.GET)
			b.after(3 * time.Second)
			c.cancel.Cancel()
			b.after(time.Minute)
			require.Equal(t, []error{exchange.ErrCanceled}, c.ended())
			require.Len(t, b.leg.all(), 1)
		})
	})
	t.Run("group request", func(t *testing.T) {
		inBench(t, withBackup, func(b *bench) {
			b.leg.lose(first, nil)
			c, r := b.group(6)
			b.after(3 * time.Second)
			all := b.leg.all()
			require.Len(t, all, 2)
			require.True(t, all[0].wasForgotten())
			require.EqualValues(t, 5, all[0].told(t))
			require.EqualValues(t, 2, all[1].told(t), "half of the time is over, and a second is the client's")
			all[1].respond(codes.Content, replyFrom(server1))
			b.after(time.Minute)
			require.Len(t, c.got(), 1)
			require.Equal(t, []error{nil}, c.ended())
			require.Equal(t, 6*time.Second, c.when().Sub(r.Arrival))
		})
	})
	t.Run("group request, too late", func(t *testing.T) {
		inBench(t, withBackup, func(b *bench) {
			b.leg.lose(first, nil)
			c, _ := b.group(2)
			b.after(time.Minute)
			require.Equal(t, exchange.NoAnswer, c.failure(t).Reason)
			require.Len(t, b.leg.all(), 1)
		})
	})
	t.Run("connection lost in the middle", func(t *testing.T) {
		inBench(t, withBackup, func(b *bench) {
			c, _ := b.group(60)
			b.only().respond(codes.Content, replyFrom(server1))
			b.after(time.Second)
			b.only().end(errRefused)
			require.Len(t, b.leg.all(), 1, "what came would come again")
			require.Len(t, c.ended(), 1)
		})
	})
}

// A next proxy known by name: looked up at the start, and again when it is down.
func TestNamed(t *testing.T) {
	named := func(h *Hop) {
		h.Addresses = []Address{{Scheme: "coap", Host: "proxy.example", Addr: netip.AddrPortFrom(netip.Addr{}, 5683)}}
	}
	inBench(t, named, func(b *bench) {
		c, _ := b.request(codes.GET)
		require.Equal(t, exchange.Unreachable, c.failure(t).Reason)
		require.Empty(t, b.leg.all())
		b.leg.name("192.0.2.9")
		b.after(time.Minute)
		c, _ = b.request(codes.GET)
		s := b.only()
		require.Equal(t, exchange.Target{Scheme: "coap", Host: "proxy.example", Addr: netip.MustParseAddrPort(first)}, s.request.Target)
		require.Equal(t, 16, b.chain.NStart(netip.MustParseAddrPort(first)))
		require.Zero(t, b.chain.NStart(netip.MustParseAddrPort(second)))
		c.cancel.Cancel()

		b.leg.lose(first, errRefused)
		b.leg.name("192.0.2.10")
		b.request(codes.GET)
		b.after(2 * time.Second)
		c, _ = b.request(codes.GET)
		all := b.leg.all()
		require.Equal(t, netip.MustParseAddrPort(second), all[len(all)-1].request.Target.Addr)
		c.cancel.Cancel()
		b.leg.name("") // the name server is gone, and the address stays
		b.leg.lose(second, errRefused)
		b.request(codes.GET)
		b.leg.restore(second)
		b.after(2 * time.Second)
		c, _ = b.request(codes.GET)
		require.Empty(t, c.ended())
		c.cancel.Cancel()
	})
}

// A hop that is not configured any more, where a server was announced before.
func TestUnknownHop(t *testing.T) {
	inBench(t, nil, func(b *bench) {
		c, _ := b.send(&exchange.Request{Method: codes.GET, Target: exchange.Target{NextHop: "other"}})
		require.Equal(t, exchange.Unreachable, c.failure(t).Reason)
	})
}

// A new configuration: what is known of an address stays known, one is counted
// once, and the Chain that is replaced tells nothing any more.
func TestHandOver(t *testing.T) {
	inBench(t, withBackup, func(b *bench) {
		b.leg.lose(second, errRefused)
		b.chain.hops["next"].peers[1].look()
		b.after(time.Minute)
		require.EqualValues(t, 1, b.stats.Up.Load())
		said := len(b.messages())
		old := b.chain.hops["next"].peers

		begin := func(change func(*Hop)) *Chain {
			h := b.chain.hops["next"].Hop
			h.Leg, h.Whole = nil, nil
			change(&h)
			config := b.chain.config
			config.Hops = []Hop{h}
			return New(b.chain.ctx, config)
		}
		next := begin(func(*Hop) {})
		require.EqualValues(t, 1, b.stats.Up.Load(), "it has not begun")
		HandOver(b.chain, next)
		require.EqualValues(t, 1, b.stats.Up.Load())
		_, f := next.hops["next"].choose(next.hops["next"].peers[0])
		require.Equal(t, exchange.Unreachable, f.Reason, "the second one is known to be down")
		b.after(5 * time.Minute)
		require.Len(t, b.messages(), said, "nothing has changed")

		downs := b.stats.Downs.Load()
		old[0].failed(time.Now(), unreachable(errRefused)) // a request under way in the old one
		require.False(t, old[0].usable())
		require.Equal(t, downs, b.stats.Downs.Load())
		require.EqualValues(t, 1, b.stats.Up.Load())
		old[0].later(time.Millisecond)
		probes := len(b.leg.probed())
		b.after(time.Second)
		require.Len(t, b.leg.probed(), probes, "it is looked for no more")

		moved := begin(func(h *Hop) { h.Addresses = h.Addresses[1:] })
		HandOver(next, moved)
		require.EqualValues(t, 0, b.stats.Up.Load())
		b.leg.restore(second)
		b.after(2 * time.Minute)
		require.EqualValues(t, 1, b.stats.Up.Load())
		require.Equal(t, "next hop is up", b.messages()[len(b.messages())-1])
		HandOver(moved, nil)
		require.EqualValues(t, 0, b.stats.Up.Load())
		next.Wait()
		moved.Wait()
		require.EqualValues(t, 0, b.stats.Up.Load())
	})
}

// GP-94: what the leg has measured or, before that, no more than the quickest
// answer has taken.
func TestRoundTripToHop(t *testing.T) {
	inBench(t, nil, func(b *bench) {
		require.Zero(t, b.chain.RoundTrip("other"))
		p := b.chain.hops["next"].peers[0]
		for _, took := range []time.Duration{1500 * time.Millisecond, 2 * time.Second, 1200 * time.Millisecond} {
			s := &probe{peer: p, sent: time.Now()}
			b.after(took)
			s.Respond(&exchange.Response{Code: codes.NotFound})
		}
		require.Equal(t, 1200*time.Millisecond, b.chain.RoundTrip("next"))
		c, _ := b.group(5)
		require.EqualValues(t, 7, b.only().request.Timeout.Seconds)
		c.cancel.Cancel()
		b.trip = 2500 * time.Millisecond
		require.Equal(t, b.trip, b.chain.RoundTrip("next"))
		c, _ = b.group(5)
		require.EqualValues(t, 8, b.leg.all()[1].request.Timeout.Seconds)
		c.cancel.Cancel()
	})
}

// A session that is not to be had: its end says why, long after the hop counts as
// down, and the reason stays while nothing better is known.
func TestHandshake(t *testing.T) {
	inBench(t, func(h *Hop) { h.Addresses[0].Scheme = "coaps" }, func(b *bench) {
		b.leg.lose(first, nil)
		p := b.chain.hops["next"].peers[0]
		p.check(nil)
		b.after(probeTimeout)
		require.False(t, p.usable())
		c, _ := b.request(codes.GET)
		require.Equal(t, exchange.NoAnswer, c.failure(t).Reason)
		b.after(10 * time.Second)
		b.leg.probing().end(&exchange.Failure{Reason: exchange.Unreachable, Err: errors.New("another key")})
		for range 10 { // attempts that tell less
			c, _ = b.request(codes.GET)
			require.Equal(t, exchange.Unreachable, c.failure(t).Reason)
			require.ErrorContains(t, c.failure(t), "another key")
			b.after(2 * time.Second)
		}
		require.Equal(t, 1, b.log.FilterMessage("next hop is still down").Len())
		require.Equal(t, 1, b.log.FilterMessage("next hop is down").Len())
		require.EqualValues(t, 1, b.stats.Downs.Load())
		b.after(time.Minute)
		b.leg.restore(first)
		b.after(2 * time.Minute)
		require.True(t, p.usable())
	})
}

// A target that a hop announced as its own (GP-102, GP-118) is asked for where it
// is, without any Proxy option, and of nobody else. The hop's health counts where
// that is the hop's own address.
func TestAnnouncedByHop(t *testing.T) {
	inBench(t, withBackup, func(b *bench) {
		options := message.Options{{ID: wire.URIHost, Value: []byte("192.0.2.77")}, {ID: wire.URIPath, Value: []byte("a")}}
		ask := func(to string) *client {
			// The leg of the test takes a request without a Proxy option for an attempt to find the hop.
			c, _ := b.send(&exchange.Request{Method: codes.GET, Form: exchange.FormServer, Options: insert(slices.Clone(options), wire.ProxyScheme, nil),
				Target: exchange.Target{Scheme: "coap", Addr: netip.MustParseAddrPort(to), NextHop: "next"}})
			return c
		}
		for i, to := range []string{first, "192.0.2.9:6001"} {
			c := ask(to)
			s := b.leg.all()[i]
			require.Equal(t, netip.MustParseAddrPort(to), s.request.Target.Addr)
			require.Len(t, s.request.Options, 3)
			s.respond(codes.Content)
			s.end(nil)
			require.Equal(t, []error{nil}, c.ended())
		}
		b.leg.lose(first, errRefused)
		for range 2 {
			require.Equal(t, exchange.Unreachable, ask(first).failure(t).Reason)
		}
		require.Len(t, b.leg.all(), 3, "not by the other address, and not again while it is down")
		require.EqualValues(t, 1, b.stats.Refused.Load())
	})
}
