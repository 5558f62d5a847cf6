package multicast

import (
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
)

// GC-80: requests with T' = 0 hold no slot; a bucket per group limits them.
func TestFireAndForget(t *testing.T) {
	inSite(t, func(c *Config) {
		c.Groups[0].NStart, c.Groups[0].FireRate, c.Groups[0].FireBurst, c.Groups[0].ProbingRate = 1, 0.5, 3, 1
	}, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		s.ask(distinct("outstanding", 60))
		a.request()
		for range 3 {
			w, _ := s.ask(get(nodes4, 0))
			require.NoError(t, w.err)
			a.request()
		}
		w, _ := s.ask(get(nodes4, 0))
		require.Equal(t, 2*time.Second, w.failure(exchange.Overloaded).RetryAfter)
		require.EqualValues(t, 1, s.stats.Limited.Load())
		require.Empty(t, a.heard())
		s.after(2 * time.Second)
		w, _ = s.ask(get(nodes4, 0))
		require.NoError(t, w.err)
		a.request()
	})
}

// GC-81: towards a group that has never answered, one byte per second on
// average. One response, and the group is known to be there.
func TestProbingRate(t *testing.T) {
	const (
		requests = 10               // of which the burst lets through so many
		size     = 16 + 1 + 2 + 100 // header and Token, path, payload
	)
	body := func() *exchange.Request {
		r := get(nodes4, 1)
		r.Method, r.Payload = codes.PUT, make([]byte, 100)
		return r
	}
	inSite(t, func(c *Config) { c.Groups[0].ProbingRate = 1 }, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		for range requests {
			w, _ := s.ask(body())
			require.True(t, w.open())
			a.request()
		}
		w, _ := s.ask(body())
		f := w.failure(exchange.Overloaded)
		require.Equal(t, size*time.Second, f.RetryAfter)
		require.Empty(t, a.heard())
		w, _ = s.ask(get(nodes4, 0))
		require.NoError(t, w.err, "the bucket of GC-80 limits these")
		a.request()

		s.after(f.RetryAfter)
		s.ask(body())
		q := a.request()
		w, _ = s.ask(body())
		w.failure(exchange.Overloaded)
		a.answer(q, non, "here")
		for range 2 * requests {
			s.ask(body())
			a.request()
		}
	})
	inSite(t, func(c *Config) { c.Groups[0].ProbingRate = 0 }, func(s *site) {
		for range 2 * requests {
			w, _ := s.ask(body())
			require.True(t, w.open())
		}
	})
}

// GC-36: a client with a shorter T' than servers may take is told once, in the
// log.
func TestShortTimeoutHint(t *testing.T) {
	inSite(t, nil, func(s *site) {
		hints := func() int { return s.log.FilterMessageSnippet("shorter than").Len() }
		ask := func(client string, seconds uint32) {
			r := get(nodes4, seconds)
			r.Client = &exchange.Identity{Name: client}
			s.ask(r)
		}
		ask("patient", 7)
		ask("fire and forget", 0)
		require.Zero(t, hints())
		ask("hasty", 6)
		ask("hasty", 1)
		require.Equal(t, 1, hints())
		ask("hasty, too", 6)
		require.Equal(t, 2, hints())
	})
}
