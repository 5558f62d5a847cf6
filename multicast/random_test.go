package multicast

import (
	"fmt"
	"math/rand/v2"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// Whatever happens in whatever order, every exchange ends once, at T' at the
// latest, no sink is called twice at a time or after its end, and nothing is
// left in any table. Now and then the leg is stopped in the middle.
func TestAnyOrder(t *testing.T) {
	for seed := range uint64(300) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			random := rand.New(rand.NewPCG(seed, 0))
			inSite(t, func(c *Config) {
				g := &c.Groups[0]
				bothInterfaces(c)
				g.NStart, g.Queue, g.Repeat = 1+random.IntN(3), random.IntN(5), Repeat(random.IntN(3))
				g.MaxResponses, g.ProbingRate, c.ReuseList = 1+random.IntN(4), random.IntN(2), 1+random.IntN(4)
			}, func(s *site) { anyOrder(s, random) })
		})
	}
}

func anyOrder(s *site, random *rand.Rand) {
	a := s.member("192.0.2.11:5683", "224.0.1.187")
	var requests []received
	var cancelers []exchange.Canceler
	due := make(map[*recorder]time.Time)
	for range 40 {
		switch n := random.IntN(100); {
		case n < 30:
			r := distinct(fmt.Sprint(random.IntN(3)), uint32(random.IntN(20)))
			w, c := s.ask(r, func(w *recorder) { w.verdict = exchange.Verdict(random.IntN(5) / 4) })
			due[w] = r.Arrival.Add(r.Timeout.Duration())
			cancelers = append(cancelers, c)
		case n < 65 && len(requests) > 0:
			a.answer(requests[random.IntN(len(requests))], message.Type(random.IntN(2)), fmt.Sprint(n))
		case n < 75 && len(cancelers) > 0:
			cancelers[random.IntN(len(cancelers))].Cancel()
			s.engine.Flush()
		case n < 99:
			s.after(time.Duration(random.IntN(8000)) * time.Millisecond)
		case n == 99:
			s.shut()
			for _, g := range s.leg.groups {
				g.outstanding = 0 // nobody fires the deadlines of the slots any more
			}
		}
		for _, q := range a.heard() {
			if wire.IsRequest(q.Code) {
				requests = append(requests, q)
			}
		}
		for w, at := range due {
			if !time.Now().Before(at) {
				require.False(s.t, w.open(), "an exchange outlives its T'")
				delete(due, w)
			}
		}
	}
}
