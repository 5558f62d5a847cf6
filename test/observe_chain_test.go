package test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// GP-105: each proxy of a chain observes at the next one, for all its clients.
// Notifications of a single server come through, a registration is renewed when
// Max-Age is over and nothing came, and the last client gone ends it everywhere.
func TestObserveThroughChain(t *testing.T) {
	t.Parallel()
	for name, cache := range map[string]string{"plain": "enabled: false", "cached": "enabled: true"} {
		for _, n := range []int{2, 3} {
			t.Run(fmt.Sprint(name, " ", n), func(t *testing.T) {
				t.Parallel()
				o := newObservable(2)
				origin := single(t, o.handle)
				proxies := chained(t, netip.AddrPortFrom(group4, 5999), n, func(_ int, s *settings) { s.cache = cache })
				uri := "coap://" + origin.addr().String() + "/x"
				c, other := newClient(t, here, clientAddr, proxies[0].addr()), newClient(t, here, clientAddr, proxies[0].addr())
				first := c.ask(observe(coap.CON, uri))
				require.Equal(t, "server ", string(first.Payload))
				require.True(t, first.Has(coap.Observe))
				second := other.ask(observe(coap.NON, uri))
				require.True(t, second.Has(coap.Observe))
				require.Equal(t, 1, o.count(origin))
				for i := range 3 {
					o.set(origin, fmt.Sprint(i))
					in := c.expect()
					require.Equal(t, fmt.Sprint("server ", i), string(in.Payload))
					require.True(t, in.Has(coap.Observe))
				}
				eventually(t, func() bool { return string(other.expect().Payload) == "server 2" }, "the newest")

				// The server forgets its observers: the last proxy notices, and the others
				// get what it then gets (FP-65).
				o.mu.Lock()
				clear(o.observers)
				o.state[origin] = "forgetful"
				o.mu.Unlock()
				in := c.next(40 * time.Second)
				require.NotNil(t, in, "no renewal")
				require.Equal(t, "server forgetful", string(in.Payload))
				o.set(origin, "again")
				eventually(t, func() bool { return string(c.expect().Payload) == "server again" }, "a notification after the renewal")
				require.Equal(t, 1, o.count(origin))

				end := func(c *client, token []byte) {
					m := get(coap.NON, uri, coap.Uint(coap.Observe, 1))
					m.Token = token
					c.send(c.fresh(m))
				}
				end(c, first.Token)
				end(other, second.Token)
				eventually(t, func() bool { return o.count(origin) == 0 }, "it is still observed")
				require.GreaterOrEqual(t, o.deregistered(), 1)
			})
		}
	}
}

// GP-105 for a group: registered through one or two proxies in between, relayed
// after T' with the names of the servers, and ended by an Early Stop (GP-103).
func TestObserveGroupThroughChain(t *testing.T) {
	t.Parallel()
	for name, cache := range map[string]string{"plain": "enabled: false", "cached": "enabled: true"} {
		for _, n := range []int{2, 3} {
			t.Run(fmt.Sprint(name, " ", n), func(t *testing.T) {
				t.Parallel()
				o := newObservable(60)
				servers, group := members(t, 3, o.handle)
				proxies := chained(t, group, n, func(_ int, s *settings) { s.cache = cache })
				c, late := newClient(t, here, clientAddr, proxies[0].addr()), newClient(t, here, loopback(2), proxies[0].addr())
				uri := groupURI(group, "/x")
				first := c.gatherN(observe(coap.NON, uri, timeout(3)), len(servers))
				require.Len(t, payloads(t, first), len(servers))
				for _, in := range first {
					require.True(t, in.Has(coap.Observe))
				}
				c.nothing(4 * time.Second) // T' is over, in all proxies
				number := uint64(0)
				for i, s := range servers {
					o.set(s, fmt.Sprint("after ", i))
					in := c.expect()
					require.Equal(t, fmt.Sprintf("%s after %d", s.name, i), string(in.Payload))
					require.Equal(t, s.addr(), serverOf(t, in)) // GP-63, GP-101
					v, ok := in.Option(coap.Observe)
					require.True(t, ok)
					require.Greater(t, v.Uint(), number)
					number = v.Uint()
				}
				var states []string
				others := late.gatherN(observe(coap.NON, uri, timeout(3)), len(servers)) // GP-68
				for _, in := range others {
					states = append(states, string(in.Payload))
				}
				require.ElementsMatch(t, []string{"member1 after 0", "member2 after 1", "member3 after 2"}, states)
				require.Len(t, servers[0].requests(), 1)

				stop := func(c *client, token []byte) {
					c.send(c.fresh(&coap.Message{Type: coap.NON, Code: coap.GET, Token: token, Options: []coap.Option{timeout(0)}}))
				}
				stop(c, first[0].Token)
				proxies[0].waitFor("early stop")
				o.set(servers[2], "one left")
				require.Equal(t, "member3 one left", string(late.expect().Payload))
				c.nothing(meanwhile)
				stop(late, others[0].Token)
				for _, s := range servers {
					eventually(t, func() bool { return o.count(s) == 0 }, "%s is still observed", s.name)
				}
				for _, p := range proxies[1:] { // GP-103
					p.waitFor("early stop")
				}
			})
		}
	}
}
