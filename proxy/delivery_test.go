package proxy

import (
	"fmt"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
)

// paced is a client entry with few confirmable responses at a time.
func paced(outstanding, queue int) func(*setup) {
	return func(s *setup) {
		s.access.Clients[0].Identity.Delivery = exchange.Delivery{Outstanding: outstanding, Queue: queue}
	}
}

// payloads returns what the responses among the received messages say.
func payloads(got []received) []string {
	texts := []string{}
	for _, m := range got {
		if m.Type == con {
			texts = append(texts, string(m.Payload))
		}
	}
	return texts
}

// respondAll has a server answer a request with numbered responses.
func respondAll(a *peer, q received, from, to int) {
	for i := from; i <= to; i++ {
		a.answer(q, non, fmt.Sprint(i))
	}
}

// GP-33: eight confirmable responses wait for their ACK at a time; each ACK
// lets the next one go.
func TestConfirmablePacing(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		g.prove(userAddr)
		c.ask(groupGet(con, "t", 60))
		respondAll(a, a.request(), 1, 12)
		got := c.take()
		require.Equal(t, []string{"1", "2", "3", "4", "5", "6", "7", "8"}, payloads(got))
		first := got[1:]
		c.react(first[4], ack)
		got = c.take()
		require.Equal(t, []string{"9"}, payloads(got))
		c.react(got[0], ack)
		c.react(got[0], ack) // the same ACK again is worth nothing
		c.react(first[0], ack)
		require.Equal(t, []string{"10", "11"}, payloads(c.take()))
		require.EqualValues(t, 11, g.stats.Relayed.Load())
		for _, m := range first {
			c.react(m, ack)
		}
		for _, m := range c.take() {
			c.react(m, ack)
		}
		require.EqualValues(t, 12, g.stats.Relayed.Load())
		require.Zero(t, g.stats.DeliveryDropped.Load())
	})
}

// GP-33, GP-61: the queue behind them is bounded, what is beyond is dropped and
// counted.
func TestDeliveryQueue(t *testing.T) {
	inGateway(t, paced(1, 2), func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(groupGet(con, "t", 60))
		respondAll(a, a.request(), 1, 5)
		var texts []string
		for range 5 {
			for _, m := range c.take() {
				if m.Type == con {
					texts = append(texts, string(m.Payload))
					c.react(m, ack)
				}
			}
		}
		require.Equal(t, []string{"1", "2", "3"}, texts)
		require.EqualValues(t, 2, g.stats.DeliveryDropped.Load())
	})
}

// One at a time is the least.
func TestLeastPacing(t *testing.T) {
	inGateway(t, paced(0, 1), func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(groupGet(con, "t", 60))
		respondAll(a, a.request(), 1, 2)
		got := c.expect("ACK", "CON 2.05 "+from1+" |1")
		c.react(got[1], ack)
		c.react(c.expect("CON 2.05 " + from1 + " |2")[0], ack)
	})
}

// GP-33: no response is sent for the first time after T'; one that was sent
// before is repeated as RFC 7252 says, until it is acknowledged.
func TestNoFirstTransmissionAfterT(t *testing.T) {
	inGateway(t, paced(1, 10), func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(groupGet(con, "t", 1))
		respondAll(a, a.request(), 1, 4)
		c.expect("ACK", "CON 2.05 "+from1+" |1")
		g.after(time.Second)
		require.EqualValues(t, 3, g.stats.Late.Load())
		g.after(2 * time.Second)
		again := c.expect("CON 2.05 " + from1 + " |1")
		c.react(again[0], ack)
		g.after(time.Minute)
		c.expect()
	})
}

// What is left of an ended exchange makes room for the client's other ones.
func TestEndedExchangeLeavesQueue(t *testing.T) {
	inGateway(t, paced(1, 3), func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(groupGet(con, "t", 1))
		respondAll(a, a.request(), 1, 4)
		g.after(time.Second)
		c.take()
		c.ask(groupGet(con, "u", 60))
		respondAll(a, a.request(), 5, 7)
		require.Zero(t, g.stats.DeliveryDropped.Load())
		g.after(2 * time.Second)
		var texts []string
		for range 4 {
			for _, m := range c.take() {
				if m.Type == con {
					texts = append(texts, string(m.Payload))
					c.react(m, ack)
				}
			}
		}
		require.Equal(t, []string{"1", "5", "6", "7"}, texts)
	})
}

// The responses of two exchanges of one client share the bound; two clients, or
// two ports, do not.
func TestPacingPerClient(t *testing.T) {
	inGateway(t, paced(2, 10), func(g *gateway) {
		c, d := g.peer(userAddr), g.peer("203.0.113.5:40001")
		g.prove(userAddr)
		g.prove("203.0.113.5:40001")
		a := g.peer(member1, "224.0.1.187")
		c.ask(groupGet(con, "t", 60))
		respondAll(a, a.request(), 1, 2)
		c.ask(groupGet(con, "u", 60))
		respondAll(a, a.request(), 3, 4)
		d.ask(groupGet(con, "t", 60))
		respondAll(a, a.request(), 5, 6)
		require.Equal(t, []string{"1", "2"}, payloads(c.take()))
		require.Equal(t, []string{"5", "6"}, payloads(d.take()))
	})
}

// A RST ends the exchange at once: nothing of it follows, and the client's
// other exchange goes on.
func TestResetWithQueue(t *testing.T) {
	inGateway(t, paced(1, 10), func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(groupGet(con, "t", 60))
		respondAll(a, a.request(), 1, 4)
		c.ask(groupGet(con, "u", 60))
		respondAll(a, a.request(), 5, 5)
		got := c.expect("ACK", "CON 2.05 "+from1+" |1", "ACK")
		c.react(got[1], rst)
		require.Equal(t, []string{"5"}, payloads(c.take()))
	})
}

// Lost responses and lost ACKs: every response arrives, none is sent more often
// than RFC 7252 allows.
func TestLossyClient(t *testing.T) {
	inGateway(t, paced(4, 100), func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(groupGet(con, "t", 600))
		respondAll(a, a.request(), 1, 20)
		seen, copies := make(map[string]int), 0
		for range 300 {
			for _, m := range c.take() {
				if m.Type != con {
					continue
				}
				copies++
				seen[string(m.Payload)]++
				if copies%3 == 0 { // two of three ACKs get lost
					c.react(m, ack)
				}
			}
			g.after(time.Second)
		}
		require.Len(t, seen, 20)
		for payload, n := range seen {
			require.LessOrEqual(t, n, 5, payload)
		}
	})
}

// A response that cannot even be queued for sending is counted and makes room
// for the next.
func TestUnencodableResponse(t *testing.T) {
	inGateway(t, paced(1, 1), func(g *gateway) {
		c := g.peer(userAddr)
		g.front.Serve(exchange.HandlerFunc(func(_ *exchange.Request, w exchange.Sink) exchange.Canceler {
			w.Respond(&exchange.Response{Code: codes.Content, GroupPort: 5683, Options: message.Options{{ID: 9}, {ID: 1}}})
			w.End(nil)
			return exchange.Ended{}
		}), g.front.Clients, nil)
		c.ask(groupGet(con, "t", 60))
		c.expect("ACK")
		require.EqualValues(t, 1, g.stats.DeliveryDropped.Load())
	})
}

// slowly is a client entry with a rate of non-confirmable responses.
func slowly(rate float64, burst, queue int) func(*setup) {
	return func(s *setup) {
		s.access.Clients[0].Identity.Delivery = exchange.Delivery{Outstanding: 8, Queue: queue, Rate: rate, Burst: burst}
	}
}

// said returns what the non-confirmable responses among the received messages say.
func said(got []received) []string {
	texts := []string{}
	for _, m := range got {
		if m.Type == non && m.Code != 0 {
			texts = append(texts, string(m.Payload))
		}
	}
	return texts
}

// GC-84: non-confirmable responses leave at the client's rate, a burst at once, in
// the order they came; what does not fit before T' is dropped and counted.
func TestResponseRate(t *testing.T) {
	inGateway(t, slowly(2, 3, 100), func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(groupGet(non, "t", 2))
		respondAll(a, a.request(), 1, 12)
		require.Equal(t, []string{"1", "2", "3"}, said(c.take()))
		g.after(time.Second / 2)
		require.Equal(t, []string{"4"}, said(c.take()))
		g.after(time.Second)
		require.Equal(t, []string{"5", "6"}, said(c.take()))
		g.after(time.Second / 2)
		require.Empty(t, said(c.take()), "T' is over")
		require.EqualValues(t, 6, g.stats.Late.Load())
		require.EqualValues(t, 9, g.stats.Paced.Load())
		require.EqualValues(t, 6, g.stats.Relayed.Load())
		require.Zero(t, g.front.Waiting())
		g.after(time.Minute)
		c.expect()
		// The bucket is full again, and other clients have their own.
		other := g.peer("203.0.113.9:7000")
		for _, asker := range []*peer{c, other} {
			asker.ask(groupGet(non, "u", 2))
			respondAll(a, a.request(), 1, 4)
			require.Equal(t, []string{"1", "2", "3"}, said(asker.take()))
		}
	})
}

// GC-84: the queue is bounded, and confirmable responses have their own pace.
func TestResponseRateBounds(t *testing.T) {
	inGateway(t, slowly(1, 1, 2), func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		g.prove(userAddr)
		c.ask(groupGet(non, "t", 60))
		respondAll(a, a.request(), 1, 5)
		require.EqualValues(t, 2, g.stats.DeliveryDropped.Load())
		g.after(10 * time.Second)
		require.Equal(t, []string{"1", "2", "3"}, said(c.take()))
		c.ask(groupGet(con, "u", 60))
		respondAll(a, a.request(), 1, 4)
		got := c.take()
		require.Equal(t, []string{"1", "2", "3", "4"}, payloads(got))
		for _, m := range got[1:] {
			c.react(m, ack)
		}
	})
}

// GP-41, GP-44, GC-84: what waits for its turn is not sent after an Early Stop or a
// RST.
func TestResponseRateStopped(t *testing.T) {
	inGateway(t, slowly(1, 1, 100), func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(groupGet(non, "t", 60))
		respondAll(a, a.request(), 1, 5)
		require.Equal(t, []string{"1"}, said(c.take()))
		c.ask(msg(con, codes.GET, "t", opt(2, "")))
		c.expect("ACK")
		g.after(10 * time.Second)
		c.expect()
		require.EqualValues(t, 4, g.stats.Late.Load())

		c.ask(groupGet(non, "u", 60))
		respondAll(a, a.request(), 1, 5)
		first := c.take()
		g.after(time.Second)
		second := c.take()
		require.Equal(t, []string{"1", "2"}, append(said(first), said(second)...))
		c.react(second[0], message.Reset)
		g.after(10 * time.Second)
		c.expect()
		require.Zero(t, g.front.Waiting())
	})
}
