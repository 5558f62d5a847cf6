package proxy

import (
	"fmt"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// FP-36: a 4.29 is relayed with its Max-Age; until that is over similar requests
// of the same client are answered from memory.
func TestHoldBack(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1)
		ask := func(m wire.Message) { c.ask(m) }
		get := func(options ...message.Option) wire.Message {
			return msg(con, codes.GET, "t", append(options, uri("coap://192.0.2.11/r?q"))...)
		}
		ask(get())
		a.respond(a.request(), ack, codes.TooManyRequests, "slow down", opt(wire.MaxAge, "\x0a"))
		c.expect("ACK 4.29 14=0a |slow down")
		g.after(2500 * time.Millisecond)
		ask(get())
		c.expect("ACK 4.29 14=08 |the server asked to wait")
		ask(get(opt(wire.Accept, "\x32")))
		c.expect("ACK 4.29 14=08 |the server asked to wait")
		a.expect()

		again := g.peer("203.0.113.5:40001") // from another port, as many a client asks each time
		again.ask(get())
		again.expect("ACK 4.29 14=08 |the server asked to wait")

		// Others are not concerned: another method, URI, server, client.
		d := g.peer("203.0.113.6:40000")
		for _, tt := range []struct {
			from *peer
			m    wire.Message
		}{
			{c, msg(con, codes.POST, "t", uri("coap://192.0.2.11/r?q"))},
			{c, msg(con, codes.GET, "t", uri("coap://192.0.2.11/r"))},
			{c, msg(con, codes.GET, "t", uri("coap://192.0.2.11/rq"))},
			{c, msg(con, codes.GET, "t", uri("coap://boiler.example/r?q"))},
			{d, get()},
		} {
			tt.from.ask(tt.m)
			a.answer(a.request(), ack, "fine")
			tt.from.expect("ACK 2.05 |fine")
		}

		g.after(7500*time.Millisecond - 1)
		ask(get())
		c.expect("ACK 4.29 14=01 |the server asked to wait")
		g.after(1)
		ask(get())
		a.answer(a.request(), ack, "fine")
		c.expect("ACK 2.05 |fine")
	})
}

// A 4.29 without Max-Age holds for the default of 60 s, one of 0 for no time. In
// a group it is one server's.
func TestHoldBackTimes(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		ask := func(options ...message.Option) {
			c.ask(msg(con, codes.GET, "t", uri(serverURI)))
			a.respond(a.request(), ack, codes.TooManyRequests, "", options...)
			c.take()
		}
		ask(opt(wire.MaxAge, ""))
		ask()
		g.after(59 * time.Second)
		c.ask(msg(con, codes.GET, "t", uri(serverURI)))
		c.expect("ACK 4.29 14=01 |the server asked to wait")
		g.after(time.Second)
		ask()

		for range 2 {
			c.ask(groupGet(non, "g", 1))
			a.respond(a.request(), non, codes.TooManyRequests, "")
			c.expect("NON 4.29 " + from1)
			g.after(10 * time.Second)
		}
	})
}

// The memory is bounded, and keys tell segments apart.
func TestHoldBackMemory(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHoldBack()
		p := &exchange.Response{Code: codes.TooManyRequests}
		request := func(i int, options ...message.Option) *exchange.Request {
			r := toServer(options...)
			r.Peer, r.Arrival = netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), uint16(i)), time.Now()
			return r
		}
		for i := range 2 * maxHoldBacks {
			h.hold(h.key(request(i)), p)
		}
		require.Equal(t, maxHoldBacks, h.until.Len())
		require.Nil(t, h.check(request(0)))
		require.NotNil(t, h.check(request(2*maxHoldBacks-1)))
		time.Sleep(time.Minute)
		require.Nil(t, h.check(request(2*maxHoldBacks-1)))
		require.Equal(t, maxHoldBacks-1, h.until.Len())

		keys := make(map[holdKey]string)
		for _, options := range [][]message.Option{
			nil, {opt(wire.URIPath, "")}, {opt(wire.URIPath, "ab")}, {opt(wire.URIPath, "a"), opt(wire.URIPath, "b")},
			{opt(wire.URIPath, "a\x0b\x01b")}, {opt(wire.URIPath, "a\x0bb")}, {opt(wire.URIQuery, "ab")}, {opt(wire.URIPath, "a"), opt(wire.URIQuery, "b")}, {opt(wire.URIPathAbbrev, "ab")},
		} {
			k := h.key(request(1, options...))
			require.Empty(t, keys[k])
			keys[k] = fmt.Sprint(options)
			require.Equal(t, k, h.key(request(1, append(options, opt(60000, "x"))...)))
		}
	})
}
