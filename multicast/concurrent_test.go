package multicast

import (
	"fmt"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/wire"
)

// Requests, responses, cancellations and the end of windows meet on several
// goroutines; the recorders see to the contract of a sink.
func TestConcurrency(t *testing.T) {
	inSite(t, func(c *Config) {
		bothInterfaces(c)
		c.Groups[0].NStart, c.Groups[0].Queue, c.Groups[0].Repeat, c.ReuseList = 3, 8, NewMessageID, 8
	}, func(s *site) {
		a := s.member("192.0.2.11:5683", "224.0.1.187")
		over := make(chan struct{})
		var clients, servers sync.WaitGroup
		servers.Go(func() { answerAll(a, over) })
		for client := range 8 {
			clients.Go(func() {
				for i := range 50 {
					w := &recorder{t: t}
					if i%7 == 0 {
						w.verdict = exchange.Stop
					}
					s.mu.Lock()
					s.sinks = append(s.sinks, w)
					s.mu.Unlock()
					c := s.leg.Exchange(distinct(fmt.Sprint(i%3), uint32(i%5)), w)
					s.engine.Flush()
					if i%3 == 0 {
						c.Cancel()
						s.engine.Flush()
					}
					if i%10 == client {
						time.Sleep(3 * time.Second)
					}
				}
			})
		}
		clients.Wait()
		s.after(time.Minute)
		close(over)
		require.NoError(t, a.Close())
		servers.Wait()
		require.NotZero(t, s.stats.Responses.Load())
		require.NotZero(t, s.stats.Shared.Load())
		require.NotZero(t, s.stats.Rotations.Load())
		synctest.Wait()
	})
}

// answerAll answers every request twice.
func answerAll(a *member, over chan struct{}) {
	batch := make([]endpoint.Datagram, 16)
	for {
		n, err := a.ReadBatch(batch)
		if err != nil {
			<-over
			return
		}
		for _, d := range batch[:n] {
			var q wire.Message
			if q.Decode(d.Data) != nil || !wire.IsRequest(q.Code) {
				continue
			}
			for range 2 {
				a.id++
				data, err := (&wire.Message{Type: non, Code: codes.Content, ID: a.id, Token: q.Token}).Append(nil)
				if err == nil {
					_ = a.Send(d.Peer.Addr, data)
				}
			}
		}
	}
}
