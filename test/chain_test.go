package test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// chained starts n proxies on the loopback interface behind each other, the first
// one first. Only the last one reaches the group; change may change the settings
// of each.
func chained(t *testing.T, group netip.AddrPort, n int, change func(i int, s *settings)) []*proxy {
	t.Helper()
	all := make([]*proxy, n)
	for i := n - 1; i >= 0; i-- {
		s := settings{client: `forward: ["coap://127.0.2.0/24:*"]`, proxy: fmt.Sprintf("identifier: proxy%d", i+1)}
		if i < n-1 {
			s.groups = fmt.Sprintf("- {name: devices, uri: %q}", "coap://"+group.String())
			s.top = nextHop("coap://"+all[i+1].addr().String(), "")
		}
		if change != nil {
			change(i, &s)
		}
		all[i] = startProxy(t, group, s)
	}
	for _, p := range all[:n-1] {
		p.waitFor("next hop is up")
	}
	return all
}

// nextHop is a next hop for everything, with further keys.
func nextHop(uri, more string) string {
	return fmt.Sprintf("next_hop:\n- {name: next, uri: %q, targets: [\"*\"]%s}", uri, more)
}

// GP-91 to GP-95, GP-100, GP-101: what one proxy does, three do. Every proxy
// behind has a second less, all servers are heard, under the same name, and T' is
// what the client said.
func TestChain(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 5, content)
	proxies := chained(t, group, 3, nil)
	c := newClient(t, here, clientAddr, proxies[0].addr())
	for _, kind := range []coap.Type{coap.CON, coap.NON} {
		path := fmt.Sprintf("/k%d", kind)
		responses := c.gatherJust(get(kind, groupURI(group, path), timeout(5)), len(servers))
		got := payloads(t, responses)
		require.Len(t, got, len(servers))
		for _, s := range servers {
			require.Equal(t, []string{s.name + path}, got[s.addr()]) // GP-101
			require.Len(t, s.requestsTo(path), 1)
			require.Equal(t, 14, int(s.requestsTo(path)[0].All(coap.HopLimit)[0][0])) // FP-52
		}
		for _, in := range responses {
			addr := serverOf(t, in).Addr().As4()
			require.Equal(t, fmt.Sprintf("82208244%x19%04x", addr[:], group.Port()), fmt.Sprintf("%x", in.All(coap.ReplyFrom)[0]))
			require.Equal(t, kind, in.Type)
		}
	}
	for i, p := range proxies[:2] {
		for _, e := range p.entries("next hop")[1:] {
			require.EqualValues(t, 5-i, e["asked"])
			require.EqualValues(t, 4-i, e["told"]) // GP-94, GP-95
		}
	}
	// GP-117: the follow-up goes the way the response came, by Proxy-Cri.
	responses := c.gatherN(get(coap.NON, groupURI(group, "/x"), timeout(60)), len(servers))
	for _, in := range responses {
		value := in.All(coap.ReplyFrom)[0]
		cri := append(append([]byte{0x83}, value[1:]...), 0x81, 0x61, 'y')
		follow := c.ask(&coap.Message{Type: coap.CON, Code: coap.GET, Options: []coap.Option{coap.Opt(coap.ProxyCRI, string(cri))}})
		require.Equal(t, coap.CodeOf(2, 5), follow.Code, "%q", follow.Payload)
		require.Regexp(t, `^member\d/y$`, string(follow.Payload))
		require.False(t, follow.Has(coap.ReplyFrom))
	}
}

// GP-96, GP-98: the smallest T' of a chain, by asking for less and less. A client
// that does as it is told gets through (GP-99).
func TestChainTooShort(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, content)
	proxies := chained(t, group, 3, nil)
	c := newClient(t, here, clientAddr, proxies[0].addr())
	seconds := uint32(1)
	for _, want := range []uint32{2, 3} {
		in := c.ask(get(coap.CON, groupURI(group, "/x"), timeout(seconds)))
		require.Equal(t, coap.CodeOf(5, 5), in.Code)
		require.False(t, in.Has(coap.ReplyFrom))
		m, ok := in.Option(coap.MulticastTimeout)
		require.True(t, ok)
		seconds = uint32(m.Uint())
		require.Equal(t, want, seconds)
		require.Empty(t, servers[0].requests(), "nothing is forwarded to the group")
	}
	require.Len(t, c.gatherN(get(coap.NON, groupURI(group, "/x"), timeout(seconds)), 2), 2)
}

// GP-92, GP-103: a T' of 0 reaches the group, and so does the wish to stop.
func TestChainSilentAndStopped(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, after(300*time.Millisecond, content))
	proxies := chained(t, group, 3, nil)
	c := newClient(t, here, clientAddr, proxies[0].addr())
	m := c.fresh(get(coap.CON, groupURI(group, "/fire"), timeout(0)))
	c.send(m)
	require.Equal(t, coap.ACK, c.expect().Type)
	eventually(t, func() bool { return len(servers[0].requestsTo("/fire")) == 1 }, "the request at the group")
	no, ok := servers[0].requestsTo("/fire")[0].Option(258)
	require.True(t, ok && no.Uint() == 26, "GP-35, at the last proxy")
	c.nothing(meanwhile * 2)

	m = c.fresh(get(coap.NON, groupURI(group, "/stop"), timeout(60)))
	c.send(m)
	eventually(t, func() bool { return len(servers[0].requestsTo("/stop")) == 1 }, "the request at the group")
	c.send(&coap.Message{Type: coap.CON, Code: coap.GET, ID: m.ID + 1, Token: m.Token, Options: []coap.Option{timeout(0)}})
	require.Equal(t, coap.ACK, c.expect().Type)
	proxies[2].waitFor("early stop")
	c.nothing(meanwhile * 2)
	c.id++
	require.Len(t, c.gatherN(get(coap.NON, groupURI(group, "/again"), timeout(60)), 2), 2)
}

// FP-52, FP-53, FP-54: three proxies in a ring. The request goes round until its
// Hop-Limit is used up, and the client is told who is in the loop.
func TestRing(t *testing.T) {
	t.Parallel()
	for name, cache := range map[string]string{"plain": "", "cached": "enabled: true"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			group := netip.AddrPortFrom(group4, 5999)
			loop := reserve(t)
			proxies := chained(t, group, 3, func(i int, s *settings) {
				s.cache, s.group = cache, ""
				switch i {
				case 2:
					s.groups = fmt.Sprintf("- {name: devices, uri: %q}", "coap://"+group.String())
					s.top = nextHop("coap://"+loop.String(), "")
				case 0:
					s.listen = "- coap://" + loop.String()
				}
			})
			proxies[2].waitFor("next hop is up")
			c := newClient(t, here, clientAddr, proxies[0].addr())
			limit := coap.Uint(coap.HopLimit, 9)
			for _, m := range []*coap.Message{get(coap.CON, "coap://127.0.2.9/x"), get(coap.NON, "coap://127.0.2.9/y", limit), get(coap.CON, groupURI(group, "/z"), timeout(60), limit)} {
				in := c.ask(m)
				require.Equal(t, coap.CodeOf(5, 8), in.Code)
				require.Equal(t, "proxy1 proxy2 proxy3", string(in.Payload))
			}
			rounds := 0
			for i, p := range proxies {
				n := len(p.entries("request"))
				require.LessOrEqual(t, n, 1+6+3+3+1, "proxy%d: nothing floods", i+1)
				rounds += n
			}
			// 1 + 16 + 9 + 9 requests arrived, and the attempts to find the next hop.
			require.LessOrEqual(t, rounds, 3+16+9+9+8)
		})
	}
}

// reserve finds a port that is free, and was a moment ago.
func reserve(t *testing.T) netip.AddrPort {
	t.Helper()
	u, err := openSocket(netip.AddrPortFrom(clientAddr, 0))
	require.NoError(t, err)
	defer u.close()
	return u.local
}
