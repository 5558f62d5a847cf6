package multicast

import (
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
)

// GC-40: a request is repeated at most once, after one Leisure and a round
// trip, with the same Token: with the same Message ID for those who missed it,
// with another one for everybody, which is for safe methods only.
func TestRepeat(t *testing.T) {
	const wait = 5*time.Second + roundTrip
	for name, tt := range map[string]struct {
		repeat   Repeat
		method   codes.Code
		repeated bool
	}{
		"off":           {NoRepeat, codes.GET, false},
		"same ID":       {SameMessageID, codes.GET, true},
		"same ID, POST": {SameMessageID, codes.POST, true},
		"new ID":        {NewMessageID, codes.GET, true},
		"new ID, PUT":   {NewMessageID, codes.PUT, false},
	} {
		t.Run(name, func(t *testing.T) {
			inSite(t, func(c *Config) { c.Groups[0].Repeat = tt.repeat }, func(s *site) {
				a := s.member("192.0.2.11:5683", "224.0.1.187")
				r := distinct("q", 600)
				r.Method, r.Payload = tt.method, []byte("body")
				w, _ := s.ask(r)
				q := a.request()
				s.after(wait - 1)
				require.Empty(t, a.heard())
				s.after(1)
				if !tt.repeated {
					require.Empty(t, a.heard())
					return
				}
				again := a.request()
				require.Equal(t, tt.repeat == SameMessageID, q.ID == again.ID)
				require.Equal(t, q.Token, again.Token)
				require.Equal(t, q.Options, again.Options)
				require.Equal(t, q.Payload, again.Payload)
				require.EqualValues(t, 1, s.stats.Repeats.Load())
				a.answer(again, non, "ok")
				require.Equal(t, []string{"ok"}, w.got())
				s.after(500 * time.Second)
				require.Empty(t, a.heard())
			})
		})
	}
}

// What has ended is not repeated, and what has waited is.
func TestRepeatAndQueue(t *testing.T) {
	inSite(t, func(c *Config) { oneAtATime(c); c.Groups[0].Repeat = SameMessageID }, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		_, c := s.ask(distinct("1", 600))
		q := a.request()
		s.ask(distinct("2", 600))
		a.answer(q, non, "")
		second := a.request()
		c.Cancel()
		s.after(5*time.Second + roundTrip)
		require.Equal(t, second.Message, a.request().Message)
	})
}
