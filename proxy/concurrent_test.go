package proxy

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/endpoint"
	"coapproxy/wire"
)

// Clients and servers that wait for nobody: requests, responses, stops, resets,
// timeouts and repetitions meet on several goroutines.
func TestConcurrency(t *testing.T) {
	inGateway(t, func(s *setup) {
		s.access.Clients[0].Identity.Delivery.Outstanding = 2
		s.resolver = newNameServer(300 * time.Millisecond)
		for i := range s.groups {
			s.groups[i].NStart, s.groups[i].Queue = 3, 4
		}
	}, func(g *gateway) {
		var players, clients sync.WaitGroup
		var peers []*peer
		play := func(p *peer, on func(p *peer, m *wire.Message, to *endpoint.Datagram)) {
			peers = append(peers, p)
			players.Go(func() { p.play(on) })
		}
		for _, local := range []string{member1, "192.0.2.12:5683"} {
			play(g.peer(local, "224.0.1.187"), serve)
		}
		for i := range 6 {
			random := rand.New(rand.NewPCG(uint64(i), 0))
			c := g.peer(fmt.Sprintf("203.0.113.%d:40000", i+1))
			play(c, func(p *peer, m *wire.Message, from *endpoint.Datagram) {
				switch {
				case m.Type == con && m.ID%5 != 0:
					p.reply(from, &wire.Message{Type: ack, ID: m.ID})
				case m.Type == non && m.ID%7 == 0:
					p.reply(from, &wire.Message{Type: rst, ID: m.ID})
				}
			})
			clients.Go(func() { pester(c, random) })
		}
		clients.Wait()
		g.after(3 * time.Minute)
		for _, p := range peers {
			require.NoError(t, p.Close())
		}
		players.Wait()
		for _, n := range []uint64{g.stats.EarlyStops.Load(), g.stats.ResetStops.Load(), g.stats.TokenReuses.Load(), g.stats.Relayed.Load(), g.groups.Queued.Load()} {
			require.NotZero(t, n)
		}
	})
}

// play reads until the connection is closed.
func (c *peer) play(on func(p *peer, m *wire.Message, from *endpoint.Datagram)) {
	batch := make([]endpoint.Datagram, 16)
	for {
		n, err := c.ReadBatch(batch)
		if err != nil {
			return
		}
		for i := range batch[:n] {
			var m wire.Message
			if m.Decode(batch[i].Data) == nil {
				on(c, &m, &batch[i])
			}
		}
	}
}

func (c *peer) reply(to *endpoint.Datagram, m *wire.Message) {
	if data, err := m.Append(nil); err == nil {
		_ = c.Send(to.Peer.Addr, data)
	}
}

// serve answers a request twice if it came by multicast, else once.
func serve(p *peer, m *wire.Message, from *endpoint.Datagram) {
	switch {
	case m.Type == con && wire.IsRequest(m.Code):
		p.reply(from, &wire.Message{Type: ack, Code: codes.Content, ID: m.ID, Token: slices.Clone(m.Token)})
	case wire.IsRequest(m.Code):
		for range 2 {
			p.id++
			p.reply(from, &wire.Message{Type: non, Code: codes.Content, ID: p.id, Token: slices.Clone(m.Token)})
		}
	}
}

// pester sends requests of all kinds.
func pester(c *peer, random *rand.Rand) {
	targets := []string{nodesURI, nodesURI, nodesURI + "?q", serverURI, "coap://nodes.example/r", "coap://server.example/r", "coap://nowhere.example/r"}
	for i := range 120 {
		typ := con
		if random.IntN(2) == 0 {
			typ = non
		}
		token := fmt.Sprint(random.IntN(6))
		m := msg(typ, codes.GET, token, timeout(uint32(random.IntN(8))), uri(targets[random.IntN(len(targets))]))
		if random.IntN(6) == 0 {
			m = earlyStop(typ, token)
		}
		m.ID = uint16(1000 + i)
		if data, err := m.Append(nil); err == nil {
			_ = c.Send(addrPort(proxy4+":5683"), data)
		}
		if random.IntN(3) == 0 {
			time.Sleep(time.Duration(random.IntN(2000)) * time.Millisecond)
		}
	}
}
