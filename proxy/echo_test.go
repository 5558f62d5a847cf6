package proxy

import (
	"cmp"
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/wire"
)

// challenged has the clients of the entry prove their addresses.
func challenged(s *setup) { s.access.Clients[0].Identity.ProveAddress = true }

// challengeIn returns the challenge of a response.
func challengeIn(t testing.TB, m received) string {
	t.Helper()
	require.Equal(t, codes.Unauthorized, m.Code, "%s", describe(&m.Message))
	value, ok := wire.First(m.Options, wire.Echo)
	require.True(t, ok)
	require.Empty(t, m.Payload)
	maxAge, ok := wire.First(m.Options, wire.MaxAge)
	require.True(t, ok)
	require.Empty(t, maxAge) // GP-27
	return string(value)
}

// FP-81: what may have many or large responses waits for the proof; who gives it is
// remembered, for a time.
func TestChallenge(t *testing.T) {
	inGateway(t, challenged, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(groupGet(con, "t", 60))
		echo := challengeIn(t, c.take()[0])
		a.expect()
		c.ask(groupGet(con, "u", 60, opt(wire.Echo, echo)))
		q := a.expect("NON 0.01 11=72 16=10")[0] // our own value is removed
		a.answer(q, non, "1")
		a.answer(q, non, "2")
		for _, m := range c.expect("ACK", "CON 2.05 "+from1+" |1", "CON 2.05 "+from1+" |2")[1:] {
			c.react(m, ack)
		}
		c.ask(msg(con, codes.POST, "v", uri("coap://192.0.2.11/p")))
		a.answer(a.request(), ack, "")
		c.expect("ACK 2.05")

		g.after(time.Hour)
		c.ask(msg(con, codes.POST, "w", uri("coap://192.0.2.11/p"), opt(wire.Echo, echo))) // too old, and still ours
		challengeIn(t, c.take()[0])
		a.expect()
		require.EqualValues(t, 2, g.stats.Challenges.Load())
		require.EqualValues(t, 1, g.stats.Proven.Load())
	})
}

// FP-81, FP-86: nobody observes by an address that is not proven, however the zero is
// written.
func TestUnprovenObserver(t *testing.T) {
	inGateway(t, challenged, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1)
		for i, zero := range []string{"", "\x00", "\x00\x00\x00"} {
			c.ask(msg(con, codes.GET, fmt.Sprint(i), uri(serverURI), opt(wire.Observe, zero)))
			challengeIn(t, c.take()[0])
		}
		a.expect()
		require.Zero(t, g.stats.Observers.Load())
	})
}

// A challenge is good for the address and port that it was made for, and for a
// minute.
func TestChallengeIsOnesOwn(t *testing.T) {
	inGateway(t, challenged, func(g *gateway) {
		c, other, a := g.peer(userAddr), g.peer("203.0.113.5:40001"), g.peer(member1, "224.0.1.187")
		c.ask(groupGet(non, "t", 1))
		echo := challengeIn(t, c.take()[0])
		other.ask(groupGet(non, "t", 1, opt(wire.Echo, echo)))
		challengeIn(t, other.take()[0])
		broken := []byte(echo)
		broken[11]++
		c.ask(groupGet(non, "t", 1, opt(wire.Echo, string(broken))))
		challengeIn(t, c.take()[0])
		g.after(62 * time.Second)
		c.ask(groupGet(non, "t", 1, opt(wire.Echo, echo)))
		challengeIn(t, c.take()[0])
		a.expect()
	})
}

// FP-81: a safe request to one server is carried out, and only a long answer is
// replaced by a challenge. FP-80: the challenge of a server is none of the proxy's,
// and its answer is passed on. FP-82: the proxy itself does not answer it.
func TestChallengeAfterwards(t *testing.T) {
	inGateway(t, challenged, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1)
		get := func(token string, more ...message.Option) received {
			c.ask(msg(con, codes.GET, token, append(more, uri("coap://192.0.2.11/"))...))
			return a.request()
		}
		a.answer(get("a"), ack, "short")
		c.expect("ACK 2.05 |short")
		a.respond(get("b"), ack, codes.Unauthorized, "", opt(wire.Echo, "server"))
		c.expect("ACK 4.01 252=736572766572")
		q := get("c", opt(wire.Echo, "server"))
		require.Equal(t, "CON 0.01 16=10 252=736572766572", describe(&q.Message))
		a.answer(q, ack, strings.Repeat("x", 500))
		echo := challengeIn(t, c.take()[0])
		a.answer(get("d", opt(wire.Echo, echo)), ack, strings.Repeat("x", 500))
		c.expect("ACK 2.05 |" + strings.Repeat("x", 500))
		// A separate answer to an unproven peer is sent once (FP-86).
		g.after(time.Hour)
		q = get("e")
		a.react(q, ack)
		g.after(5 * time.Second)
		a.answer(q, non, "separate")
		c.expect("ACK", "NON 2.05 |separate")
		g.after(time.Minute)
		c.expect()
	})
}

// FP-81: the entries of trusted networks are exempt, and so is T' = 0, to which
// nothing comes back.
func TestNoChallenge(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(groupGet(non, "t", 1))
		a.answer(a.request(), non, "")
		c.expect("NON 2.05 " + from1)
	})
	inGateway(t, challenged, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(groupGet(con, "t", 0))
		a.request()
		c.expect("ACK")
	})
}

// FP-86: until its address is proven a peer gets no more than three times the bytes
// that came from it, headers of IP and UDP counted, whatever it sends and however
// often; as an entry that must prove its address, and as nobody.
func TestAmplification(t *testing.T) {
	core := []message.Option{opt(wire.URIPath, ".well-known"), opt(wire.URIPath, "core")}
	requests := map[string]wire.Message{
		"smallest":        {Type: con, Code: codes.GET},
		"ping":            {Type: con},
		"group":           groupGet(con, "t", 60),
		"group, NON":      groupGet(non, "t", 60),
		"no timeout":      msg(con, codes.GET, "t", uri(nodesURI)),
		"unicast":         msg(con, codes.GET, "t", uri("coap://192.0.2.11/")),
		"unicast, NON":    msg(non, codes.GET, "t", uri("coap://192.0.2.11/")),
		"post":            msg(con, codes.POST, "t", uri("coap://192.0.2.11/")),
		"observe":         msg(con, codes.GET, "t", opt(wire.Observe, ""), uri("coap://192.0.2.11/")),
		"core":            msg(con, codes.GET, "", core...),
		"problem details": msg(con, codes.GET, "t", opt(wire.Accept, "\x01\x01"), opt(wire.ProxyURI, "x")),
		"options":         msg(con, codes.GET, "", opt(2053, "")),
		"other scheme":    msg(con, codes.GET, "", opt(wire.ProxyScheme, "coap+x")),
		"method":          {Type: con, Code: 31},
		"stop":            earlyStop(con, "t"),
		"long token":      {Type: con, Code: codes.GET, Token: []byte("123456789")},
	}
	answers := map[string]int{}
	for n := 20; n < 200; n += 4 {
		name := fmt.Sprintf("unicast, %d bytes", n)
		requests[name], answers[name] = requests["unicast"], n
	}
	for who, from := range map[string]string{"to be proven": userAddr, "nobody": "198.51.100.77:40000", "nobody, IPv6": "[2001:db8:66::1]:40000"} {
		for name, m := range requests {
			t.Run(who+"/"+name, func(t *testing.T) {
				inGateway(t, challenged, func(g *gateway) {
					c, a := g.peer(from), g.peer(member1, "224.0.1.187")
					headers := 28
					if c.LocalAddr().Addr().Is6() {
						headers = 48
					}
					in, out, received := 0, 0, 0
					send := func(m wire.Message) {
						data, err := m.Append(nil)
						require.NoError(t, err)
						in += len(data) + headers
						to := proxy4
						if headers > 28 {
							to = proxy6
						}
						c.transmit(netip.AddrPortFrom(netip.MustParseAddr(to), 5683), &m)
						for _, q := range a.take() { // the server answers at length, and late
							if wire.IsRequest(q.Code) {
								a.react(q, ack)
								g.after(10 * time.Second)
								a.answer(q, non, strings.Repeat("x", cmp.Or(answers[name], 1000)))
							}
						}
						for range 3 {
							g.after(time.Minute) // and the proxy repeats what it does
						}
						for _, d := range c.Received() {
							out += len(d.Data) + headers
							received++
						}
						require.LessOrEqual(t, out, 3*in, "after %s", describe(&m))
					}
					m := m
					m.ID = 7
					send(m)
					if m.Type == con {
						require.NotZero(t, received)
					}
					// What repeats only the Message ID gets no reply made for a longer one.
					for range 5 {
						send(wire.Message{Type: con, Code: codes.GET, ID: 7})
					}
				})
			})
		}
	}
}

// The responses to a group go out one at a time until the client has acknowledged
// one, wherever it is trusted (FP-86).
func TestFirstAcknowledgement(t *testing.T) {
	inGateway(t, paced(4, 10), func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(member1, "224.0.1.187")
		c.ask(groupGet(con, "t", 60))
		respondAll(a, a.request(), 1, 7)
		got := c.expect("ACK", "CON 2.05 "+from1+" |1")
		c.react(got[1], ack)
		all := c.take()
		require.Equal(t, []string{"2", "3", "4", "5"}, payloads(all))
		for _, m := range all {
			c.react(m, ack)
		}
		for _, m := range c.take() {
			c.react(m, ack)
		}
	})
}

// The table of proven peers is bounded.
func TestProvenBounded(t *testing.T) {
	e, now := newEchoes(), time.Now()
	for i := range maxProven + 100 {
		peer := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), 5683)
		rest, answered := e.take(message.Options{{ID: wire.ETag}, {ID: wire.Echo, Value: e.value(peer, now)}, {ID: wire.Echo, Value: []byte("other")}}, peer, now)
		require.True(t, answered)
		require.Len(t, rest, 2)
		require.True(t, e.has(peer, now))
		require.False(t, e.has(peer, now.Add(provenFor)))
	}
	require.Equal(t, maxProven, e.proven.Len())
}
