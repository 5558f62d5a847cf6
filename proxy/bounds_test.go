package proxy

import (
	"fmt"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/endpoint"
	"coapproxy/wire"
)

// The exchanges under way are bounded; one more gets 5.03 (FP-34), and another
// can follow when one has ended.
func TestMaxExchanges(t *testing.T) {
	inGateway(t, func(s *setup) { s.front.MaxExchanges = 2 }, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		const full = "5.03 14=01 |too many exchanges are running"
		c.ask(groupGet(non, "a", 5))
		c.ask(msg(con, codes.GET, "b", uri(serverURI)))
		a.take()
		c.ask(groupGet(con, "c", 5))
		c.expect("ACK " + full)
		c.ask(msg(con, codes.GET, "d", uri(serverURI)))
		c.expect("ACK " + full)
		c.ask(groupGet(non, "e", 0, opt(wire.NoResponse, "\x1a")))
		c.expect()
		a.expect()
		c.ask(earlyStop(non, "a")) // is always possible
		c.ask(groupGet(con, "f", 5))
		c.expect("ACK")
	})
}

// Drain refuses what is new and waits for what is under way, but not longer
// than it is told.
func TestDrain(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(groupGet(non, "a", 10))
		c.ask(groupGet(non, "b", 20))
		q := a.take()
		left := make(chan int)
		first, second := make(chan struct{}), make(chan struct{})
		go func() { left <- g.front.Drain(first) }()
		synctest.Wait()

		c.ask(groupGet(con, "c", 10))
		c.expect("ACK 5.03 14=0a |shutting down")
		c.ask(msg(con, codes.GET, "d", uri(serverURI)))
		c.expect("ACK 5.03 14=0a |shutting down")
		a.expect()
		a.answer(q[0], non, "still relayed")
		c.expect("NON 2.05 " + from1 + " |still relayed")

		g.after(15 * time.Second)
		close(first)
		require.Equal(t, 1, <-left)
		go func() { left <- g.front.Drain(second) }()
		g.after(5 * time.Second)
		require.Zero(t, <-left)
		require.Zero(t, g.front.Drain(second))
	})
}

// The end of the process ends every exchange, wherever it is.
func TestEndOfProcess(t *testing.T) {
	inGateway(t, func(s *setup) {
		s.resolver = newNameServer(time.Hour)
		for i := range s.groups {
			s.groups[i].NStart = 1
		}
	}, func(g *gateway) {
		c := g.peer(userAddr)
		g.peer(member1, "224.0.1.187")
		c.ask(groupGet(con, "a", 600))
		c.ask(msg(con, codes.GET, "b", timeout(600), uri(nodesURI+"?waiting")))
		c.ask(msg(non, codes.GET, "c", uri(serverURI)))
		c.ask(msg(non, codes.GET, "d", uri("coap://server.example/r")))
		require.EqualValues(t, 4, g.front.active.Load())
		g.shut()
		require.Zero(t, g.front.active.Load())
		g.sinks.check()
	})
}

// The Tokens of ended exchanges are remembered for EXCHANGE_LIFETIME, and not
// more than the limit of them (GP-43).
func TestEndedTokens(t *testing.T) {
	key := func(i int) *clientToken {
		return &clientToken{token: fmt.Sprint(i)}
	}
	now := time.Now()
	e := newEndedTokens(3)
	for i := range 4 {
		e.add(key(i), now.Add(time.Duration(i)*time.Second))
	}
	at := now.Add(4 * time.Second)
	require.False(t, e.has(key(0), at))
	for i := 1; i < 4; i++ {
		require.True(t, e.has(key(i), at))
	}
	e.add(key(1), at) // again
	require.True(t, e.has(key(1), now.Add(endpoint.ExchangeLifetime+4*time.Second-1)))
	require.False(t, e.has(key(1), now.Add(endpoint.ExchangeLifetime+4*time.Second)))
	require.False(t, e.has(key(2), now.Add(endpoint.ExchangeLifetime+2*time.Second)))
	for i := range 100_000 {
		e.add(key(i), now.Add(time.Duration(i)*time.Minute))
		require.LessOrEqual(t, len(e.when), 3)
	}
	require.LessOrEqual(t, cap(e.order), 64)
}

// Many exchanges of many clients in virtual time: all end, and inGateway finds
// the tables empty.
func TestManyClients(t *testing.T) {
	inGateway(t, func(s *setup) {
		for i := range s.groups {
			s.groups[i].NStart, s.groups[i].Queue = 4, 4
		}
	}, func(g *gateway) {
		a := g.peer(member1, "224.0.1.187")
		var clients []*peer
		for i := range 20 {
			clients = append(clients, g.peer(fmt.Sprintf("203.0.113.%d:40000", i+10)))
		}
		for round := range 20 {
			for i, c := range clients {
				typ := con
				if i%2 == 0 {
					typ = non
				}
				c.ask(msg(typ, codes.GET, fmt.Sprint(round), timeout(uint32((i+round)%7)), uri(fmt.Sprintf("%s?%d", nodesURI, i%5))))
				if i%6 == 0 {
					c.ask(earlyStop(non, fmt.Sprint(round-1)))
				}
			}
			for _, q := range a.take() {
				if wire.IsRequest(q.Code) {
					for range 3 {
						a.answer(q, non, "r")
					}
				}
			}
			for i, c := range clients {
				for j, m := range c.take() {
					switch {
					case m.Type == con && i%3 != 0:
						c.react(m, ack)
					case i%5 == 0 && j == 1 && m.Code != codes.Empty:
						c.react(m, rst)
					}
				}
			}
			g.after(time.Duration(round) * 300 * time.Millisecond)
		}
		require.NotZero(t, g.groups.Shared.Load())
		require.NotZero(t, g.stats.EarlyStops.Load())
		require.NotZero(t, g.stats.ResetStops.Load())
	})
}
