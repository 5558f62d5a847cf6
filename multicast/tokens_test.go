package multicast

import (
	"math/rand/v2"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/stretchr/testify/require"
)

// GC-21, GC-37: a freed Token waits for more than 500 s, for nobody knows how
// long servers take. GC-24: no more than the limit of them wait.
func TestFreedTokens(t *testing.T) {
	now := time.Now()
	f := newFreedTokens(3)
	for token := range uint64(3) {
		require.True(t, f.add(token, now.Add(time.Duration(token)*time.Second)))
	}
	require.False(t, f.add(99, now.Add(500*time.Second)), "the list is full")
	require.False(t, f.has(99))
	for token := range uint64(3) {
		require.True(t, f.has(token))
	}
	require.True(t, f.add(3, now.Add(501*time.Second)))
	require.False(t, f.has(0))
	require.True(t, f.has(1))
	require.True(t, f.add(4, now.Add(503*time.Second)))
	require.False(t, f.has(2))
	require.True(t, f.has(3))
}

// The list stays small however many Tokens have passed through it.
func TestFreedTokensMemory(t *testing.T) {
	now := time.Now()
	f := newFreedTokens(10)
	for token := range uint64(100_000) {
		require.True(t, f.add(token, now.Add(time.Duration(token)*time.Minute)))
	}
	require.LessOrEqual(t, len(f.held), 10)
	require.LessOrEqual(t, cap(f.order), 64)
}

// GC-22: Tokens are 8 bytes, and differ from all that are in use or were used
// on the same port lately.
func TestTokensDiffer(t *testing.T) {
	inSite(t, nil, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		seen := make(map[string]bool)
		for i := range 200 {
			s.ask(get(nodes4, uint32(i%2)*1000))
			q := a.request()
			require.Len(t, q.Token, 8)
			require.False(t, seen[string(q.Token)])
			seen[string(q.Token)] = true
		}
	})
}

// A Token that happens to come up again is skipped while it is in use, and while
// it waits (GC-21).
func TestTokensAreSkipped(t *testing.T) {
	inSite(t, nil, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		seen := make(map[string]bool)
		for _, seconds := range []uint32{0, 10, 10, 0} {
			s.leg.tokens = rand.NewChaCha8([32]byte{})
			s.ask(get(nodes4, seconds))
			q := a.request()
			require.False(t, seen[string(q.Token)])
			seen[string(q.Token)] = true
		}
	})
}

// GC-24: a port whose list is full is replaced. Exchanges that it still serves
// go on; it is closed behind the last of them.
func TestPortRotation(t *testing.T) {
	inSite(t, func(c *Config) { c.ReuseList = 2 }, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		long, _ := s.ask(get(nodes4, 60))
		first := a.request()
		for range 3 { // the third does not fit the list
			s.ask(get(nodes4, 0))
			require.Equal(t, first.from, a.request().from)
		}
		require.EqualValues(t, 1, s.stats.Rotations.Load())

		other, _ := s.ask(get(nodes4, 10))
		second := a.request()
		require.NotEqual(t, first.from, second.from)
		a.answer(first, non, "old port")
		a.answer(second, non, "new port")
		require.Equal(t, []string{"old port"}, long.got())
		require.Equal(t, []string{"new port"}, other.got())

		// The Token of one port is nothing on another.
		stray := second
		stray.from = first.from
		a.answer(stray, con, "stray")
		require.Equal(t, []message.Type{rst}, a.replies())
		require.EqualValues(t, 1, s.stats.Unknown.Load())

		s.after(60 * time.Second)
		require.False(t, long.open())
		a.answer(first, con, "closed")
		require.Empty(t, a.replies())
		s.idle()
	})
}

// What is late on a replaced port is late, too (GP-59).
func TestLateOnReplacedPort(t *testing.T) {
	inSite(t, func(c *Config) { c.ReuseList = 1 }, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		s.ask(get(nodes4, 60))
		a.request()
		s.ask(get(nodes4, 0))
		late := a.request()
		s.ask(get(nodes4, 0))
		a.request()
		require.EqualValues(t, 1, s.stats.Rotations.Load())
		a.answer(late, non, "late")
		require.EqualValues(t, 1, s.stats.Late.Load())
	})
}
