package test

import (
	"fmt"
	"net/netip"
	"os/exec"
	"slices"
	"strings"
	"syscall"
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
	for request := range 2 { // GP-94, GP-95; the round trip can be more than a second on a machine that is slow
		left := any(5.0)
		for _, p := range proxies[:2] {
			e := p.logged("next hop", 3)[1+request]
			require.Equal(t, left, e["asked"])
			require.Less(t, e["told"], e["asked"])
			left = e["told"]
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

// A next hop that does not behave: the client gets its error at once, or what can
// be used, and a counter says which next hop it was.
func TestMisbehavingHop(t *testing.T) {
	t.Parallel()
	named := coap.Option{Number: coap.ReplyFrom, Value: []byte{0x82, 0x20, 0x81, 0x44, 192, 0, 2, 66}}
	answer := func(code coap.Code, options ...coap.Option) handler {
		return func(s *server, r *request) { s.answer(r, coap.Message{Code: code, Options: options}) }
	}
	late := func(s *server, r *request) {
		s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Options: []coap.Option{named}, Payload: []byte("in time")})
		for range 6 {
			time.Sleep(500 * time.Millisecond)
			s.send(r, coap.Message{Type: coap.NON, ID: s.nextID(), Code: coap.CodeOf(2, 5), Options: []coap.Option{named}})
		}
	}
	twice := func(s *server, r *request) {
		for _, text := range []string{"one", "two"} {
			s.send(r, coap.Message{Type: coap.NON, ID: s.nextID(), Code: coap.CodeOf(2, 5), Options: []coap.Option{named}, Payload: []byte(text)})
		}
	}
	for _, tt := range []struct {
		name      string
		handle    handler
		code      coap.Code
		responses int
		counter   string
	}{
		{"no proxy at all", with("a server's"), coap.CodeOf(5, 2), 1, "next_hop_responses_unnamed_total{next}"},
		{"refuses every proxy request", answer(coap.CodeOf(5, 5)), coap.CodeOf(5, 5), 1, ""},
		{"knows no Proxy-Uri", answer(coap.CodeOf(4, 2)), coap.CodeOf(4, 2), 1, ""},
		{"too short, and what it has been told", answer(coap.CodeOf(5, 5), timeout(2)), coap.CodeOf(5, 2), 1, "next_hop_responses_nonsense_total{next}"},
		{"too short, and no number", answer(coap.CodeOf(5, 5), coap.Opt(coap.MulticastTimeout, "12345")), coap.CodeOf(5, 2), 1, "next_hop_responses_nonsense_total{next}"},
		{"wants what it has", answer(coap.CodeOf(4, 0), timeout(0)), coap.CodeOf(5, 2), 1, "next_hop_responses_nonsense_total{next}"},
		{"answers twice", twice, coap.CodeOf(2, 5), 2, ""},
		{"goes on after the time", late, coap.CodeOf(2, 5), 6, "next_hop_responses_late_total{next}"},
		{"silent", silent, coap.CodeOf(5, 4), 1, "next_hop_downs_total{next}"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			probed := paths(map[string]handler{".well-known": code(4, 4, "")})
			hop := single(t, func(s *server, r *request) {
				switch {
				case r.Has(coap.ProxyURI):
					tt.handle(s, r)
				case tt.name != "silent" || len(s.requests()) == 1: // it falls silent
					probed(s, r)
				}
			})
			group := netip.AddrPortFrom(group4, 5999)
			p := startProxy(t, group, settings{groups: fmt.Sprintf("- {name: devices, uri: %q}", "coap://"+group.String()), cache: "enabled: false",
				client: `forward: ["coap://127.0.2.9"]`, top: nextHop("coap://"+hop.addr().String(), ", timeout: 1s")})
			p.waitFor("next hop is up")
			c := newClient(t, here, clientAddr, p.addr())
			sent := time.Now()
			responses := c.gather(get(coap.NON, groupURI(group, "/x"), timeout(3)), 4*time.Second)
			require.NotEmpty(t, responses)
			require.Equal(t, tt.code, responses[0].Code, "%q", responses[0].Payload)
			for _, in := range responses {
				require.Less(t, in.at.Sub(sent), 3900*time.Millisecond) // GP-100
			}
			require.LessOrEqual(t, len(responses), tt.responses)
			if tt.counter != "" {
				eventually(t, func() bool { return counted(p, tt.counter) > 0 }, "%s", tt.counter)
			}
			if tt.name == "silent" { // also long after attempts to find it have been given up
				for range 4 {
					in := c.ask(get(coap.CON, "coap://127.0.2.9/x"))
					require.Equal(t, coap.CodeOf(5, 4), in.Code)
					require.Equal(t, "the next proxy does not answer", string(in.Payload))
					p.waitFor("next hop is down")
					c.nothing(2 * time.Second)
				}
			}
		})
	}
}

// counted is the value of a counter.
func counted(p *proxy, name string) float64 {
	n := len(p.entries("counters"))
	p.signal(syscall.SIGUSR1)
	eventually(p.t, func() bool { return len(p.entries("counters")) > n }, "the counters")
	all := p.entries("counters")
	v, _ := all[len(all)-1][name].(float64)
	return v
}

// GP-101, GP-127: a client and a next hop of the older generation in one chain
// with proxies of this one.
func TestChainDialects(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 3, content)
	legacy := chained(t, group, 3, func(i int, s *settings) {
		s.cache = "enabled: false"
		switch i {
		case 1: // its next hop is of the older generation
			s.top = strings.Replace(s.top, "]}", "], dialect: legacy}", 1)
		case 2:
			s.client += "\ndialect: legacy"
		}
	})
	c := newClient(t, here, clientAddr, legacy[0].addr())
	got := payloads(t, c.gatherJust(get(coap.NON, groupURI(group, "/new"), timeout(60)), len(servers)))
	for _, s := range servers {
		require.Equal(t, []string{s.name + "/new"}, got[s.addr()])
	}
	for _, in := range c.gatherN(get(coap.NON, groupURI(group, "/new2"), timeout(60)), len(servers)) {
		require.False(t, in.Has(coap.ForwardingOld))
	}
	// An old client in front of the same next hop of the older generation.
	old := startProxy(t, group, settings{client: "dialect: legacy", cache: "enabled: false", groups: fmt.Sprintf("- {name: devices, uri: %q}", "coap://"+group.String()),
		top: nextHop("coap://"+legacy[1].addr().String(), "")})
	old.waitFor("next hop is up")
	c = newClient(t, here, clientAddr, old.addr())
	responses := c.gatherJust(get(coap.NON, groupURI(group, "/old"), timeout(60)), len(servers))
	for _, in := range responses {
		require.False(t, in.Has(coap.ReplyFrom))
		require.Len(t, in.All(coap.ForwardingOld), 1)
		require.Equal(t, "8301d9010444", fmt.Sprintf("%x", in.All(coap.ForwardingOld)[0])[:12], "GP-120, with a port")
	}
}

// startChain starts proxies on the lab's proxy hosts, the last one first.
func (l *lab) startChain(n int, more func(i int, s *settings)) []*proxy {
	all := make([]*proxy, n)
	for i := n - 1; i >= 0; i-- {
		s := labSettings()
		s.cache = "enabled: false"
		s.proxy = fmt.Sprintf("identifier: px%d", i+1)
		if i > 0 {
			s.listen = fmt.Sprintf("- coap://[fd00:b%d::1]", i)
			s.clients = fmt.Sprintf("- {name: previous, networks: [\"fd00:b%d::/64\"], groups: \"*\", con_outstanding: 64}", i)
		}
		if i < n-1 {
			s.groups = strings.ReplaceAll(labGroups, "interfaces: [eth1], ", "")
			s.top = nextHop(fmt.Sprintf("coap://[fd00:b%d::1]", i+1), ", timeout: 3s")
		}
		if more != nil {
			more(i, &s)
		}
		all[i] = startProxyIn(l.t, l.host(pxName(i)), s.yaml(netip.AddrPort{}))
	}
	for _, p := range all[:n-1] {
		p.waitFor("next hop is up")
	}
	return all
}

func pxName(i int) string {
	if i == 0 {
		return "px"
	}
	return fmt.Sprintf("px%d", i+1)
}

// One request through three proxies to 64 servers: nothing is lost on a clean
// network, and nothing comes after T'.
func TestChainOfHosts(t *testing.T) {
	inLab(t, "64 --proxies 3", func(t *testing.T, l *lab) {
		// A few answer as late as T'' lets them, one too late.
		devices := l.devices(64, func(s *server, r *request) {
			switch {
			case r.Path() == "/slow" && s.name == "sv1":
				time.Sleep(3300 * time.Millisecond)
			case r.Path() == "/slow":
				time.Sleep(500 * time.Millisecond)
			}
			content(s, r)
		})
		l.startChain(3, nil)
		for _, kind := range []coap.Type{coap.NON, coap.CON} {
			c := l.client6(0)
			sent := time.Now()
			responses := c.gather(get(kind, fmt.Sprintf("coap://[ff05::fd]/all%d", kind), timeout(4)), 5*time.Second)
			require.Len(t, payloads(t, responses), len(devices), "servers heard")
			require.Len(t, responses, len(devices))
			for _, in := range responses {
				require.Less(t, in.at.Sub(sent), 4*time.Second)
			}
		}
		// T'' at the last proxy is 3: the one after that is too late there.
		responses := l.client6(0).gather(get(coap.NON, "coap://[ff05::fd]/slow", timeout(5)), 6*time.Second)
		require.Len(t, responses, len(devices)-1)
	})
}

// Loss and delay between all hosts: T' is kept, the links between the proxies lose
// nothing for good, and the previous hop's round trip counts (GP-94).
func TestChainImpaired(t *testing.T) {
	inLab(t, "3 --proxies 2 --clients 2 --loss 5 --delay 30 --on all", func(t *testing.T, l *lab) {
		l.devices(3, content)
		proxies := l.startChain(2, nil)
		heard := 0
		for i := range 8 {
			c := l.client6(i % 2)
			responses := c.gather(get(coap.CON, fmt.Sprintf("coap://[ff05::fd]/%d", i), timeout(4)), 4500*time.Millisecond)
			for _, in := range responses {
				if in.Code == coap.CodeOf(2, 5) && in.Has(coap.ReplyFrom) {
					heard++
				}
			}
		}
		require.Greater(t, heard, 8, "of 24 responses, each with four lossy links of which two are confirmable")
		for _, e := range proxies[0].entries("next hop")[1:] {
			require.LessOrEqual(t, e["told"], 3.0)
		}
	})
}

// A hop that dies and returns, with and without a second one.
func TestChainHopDies(t *testing.T) {
	inLab(t, "2 --proxies 2", func(t *testing.T, l *lab) {
		l.devices(2, content)
		proxies := l.startChain(2, nil)
		c := l.client6(0)
		require.Len(t, c.gatherN(get(coap.NON, "coap://[ff05::fd]/a", timeout(60)), 2), 2)

		// Dead as a host that is switched off: 5.04, later at once.
		drop := "add table inet t; add chain inet t i { type filter hook input priority 0; }; add rule inet t i udp dport 5683 drop"
		l.host("px2").run(t, "nft", drop)
		sent := time.Now()
		in := c.gatherN(get(coap.NON, "coap://[ff05::fd]/b", timeout(60)), 1)[0]
		require.Equal(t, coap.CodeOf(5, 4), in.Code)
		require.InDelta(t, 3, in.at.Sub(sent).Seconds(), 1)
		proxies[0].waitFor("next hop is down")
		sent = time.Now()
		in = c.gatherN(get(coap.NON, "coap://[ff05::fd]/c", timeout(60)), 1)[0]
		require.Equal(t, coap.CodeOf(5, 4), in.Code)
		require.Less(t, in.at.Sub(sent), 2*time.Second)
		l.host("px2").run(t, "nft", "delete table inet t")
		eventually(t, func() bool { return len(proxies[0].entries("next hop is up")) == 2 }, "the next hop")
		require.Len(t, c.gatherN(get(coap.NON, "coap://[ff05::fd]/d", timeout(60)), 2), 2)

		// Ended as a service: the port is closed.
		proxies[1].stop()
		eventually(t, func() bool {
			in := l.client6(0).ask(get(coap.CON, "coap://[fd00:5::5:1]/x"))
			return in.Code == coap.CodeOf(5, 2)
		}, "5.02")
	})
}

// Failover to a second next hop, and back.
func TestChainFailover(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, content)
	last := []*proxy{startProxy(t, group, settings{}), startProxy(t, group, settings{})}
	p := startProxy(t, group, settings{groups: fmt.Sprintf("- {name: devices, uri: %q}", "coap://"+group.String()), cache: "enabled: false",
		top: nextHop("coap://"+last[0].addr().String(), fmt.Sprintf(", backup: %q", "coap://"+last[1].addr().String()))})
	eventually(t, func() bool { return len(p.entries("next hop is up")) == 2 }, "both next hops")
	c := newClient(t, here, clientAddr, p.addr())
	require.Len(t, c.gatherN(get(coap.NON, groupURI(group, "/a"), timeout(60)), 2), 2)
	require.Empty(t, last[1].entries("multicast"))
	listen := last[0].addr()
	last[0].stop()
	// Nothing of it reaches the client (the port is closed: that shows at once).
	require.Len(t, c.gatherN(get(coap.NON, groupURI(group, "/b"), timeout(60)), 2), 2)
	last[1].logged("multicast", 1)
	require.Len(t, servers[0].requestsTo("/b"), 1)
	again := startProxy(t, group, settings{listen: "- coap://" + listen.String()})
	eventually(t, func() bool { return len(p.entries("next hop is up")) == 3 }, "the first next hop again")
	require.Len(t, c.gatherN(get(coap.NON, groupURI(group, "/c"), timeout(60)), 2), 2)
	again.logged("multicast", 1)
}

// libcoap's proxy between two proxies knows nothing of group requests: it hands
// option 2 on as it is, and every response that comes back. The client gets them
// all, with the servers that Reply-From names.
func TestChainThroughLibcoap(t *testing.T) {
	inLab(t, "3 --proxies 3", func(t *testing.T, l *lab) {
		l.devices(3, content)
		s := labSettings()
		s.listen = "- coap://[fd00:b2::1]"
		s.clients = "- {name: previous, networks: [\"fd00:b2::/64\"], groups: \"*\"}"
		lastOne := startProxyIn(t, l.host("px3"), s.yaml(netip.AddrPort{}))
		middle := start(t, l.host("px2"), "coap-server", "coap-server-notls", "-v", "7", "-A", "fd00:b1::1", "-P", "coap://[fd00:b2::1]:5683,px2.example")
		eventually(t, func() bool { return middle.running() }, "libcoap's proxy")
		s = labSettings()
		s.cache = "enabled: false"
		s.groups = strings.ReplaceAll(labGroups, "interfaces: [eth1], ", "")
		s.top = nextHop("coap://[fd00:b1::1]", "")
		first := startProxyIn(t, l.px(), s.yaml(netip.AddrPort{}))
		first.waitFor("next hop is up")
		c := l.client6(0)
		for i, kind := range []coap.Type{coap.NON, coap.CON, coap.NON} {
			responses := c.gather(get(kind, fmt.Sprintf("coap://[ff05::fd]/%d", i), timeout(3)), 3300*time.Millisecond)
			require.Len(t, responses, 3)
			for _, in := range responses {
				require.Equal(t, coap.CodeOf(2, 5), in.Code, "%q", in.Payload)
			}
			require.Len(t, payloads(t, responses), len(responses))
		}
		lastOne.logged("multicast", 3)
		require.Zero(t, counted(first, "next_hop_responses_unnamed_total{next}"))
	})
}

// GP-102: the first proxy stands in for the servers behind the last one too. What
// it announces leads to them through the chain, though they are no targets of the
// next hop.
func TestChainReverse(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 3, content)
	proxies := chained(t, group, 2, func(i int, s *settings) {
		s.cache = "enabled: false"
		if i == 0 {
			s.client = ""
			s.top = strings.Replace(s.top, `"*"`, `"coap://`+group.String()+`"`, 1) +
				fmt.Sprintf("\nroutes:\n- {name: all, path: /devices, to: %q, servers: by-host}", "coap://"+group.String())
		}
	})
	c := newClient(t, here, clientAddr, proxies[0].addr())
	responses := c.gatherN(&coap.Message{Type: coap.NON, Code: coap.GET, Options: []coap.Option{timeout(60), coap.Opt(coap.URIPath, "devices"), coap.Opt(coap.URIPath, "x")}}, len(servers))
	seen := make(map[string]bool)
	for _, in := range responses {
		require.Len(t, in.All(coap.ReplyFrom), 1)
		seen[string(in.All(coap.ReplyFrom)[0])] = true
	}
	require.Len(t, seen, len(servers))
	for _, s := range servers { // GP-53, GP-118: what item 2 says goes into Uri-Host and Uri-Port
		in := c.ask(&coap.Message{Type: coap.CON, Code: coap.GET, Options: []coap.Option{coap.Opt(coap.URIHost, s.addr().Addr().String()),
			coap.Uint(coap.URIPort, uint32(s.addr().Port())), coap.Opt(coap.URIPath, "y")}})
		require.Equal(t, s.name+"/y", string(in.Payload), "%v", in.Message)
	}
	require.GreaterOrEqual(t, counted(proxies[0], "next_hop_requests_total{next}"), float64(1+len(servers)))
}

// An HTTP client in front of a chain.
func TestChainBehindHTTP(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 3, content)
	proxies := chained(t, group, 3, func(i int, s *settings) {
		if i == 0 {
			s.listen = "- http://127.0.0.1:0"
		}
	})
	text := curl(t, "http://"+proxies[0].addr().String()+"/hc/"+groupURI(group, "/temp"), "-H", "Multicast-Timeout: 3")
	require.True(t, strings.HasPrefix(text, "HTTP/1.1 200"), text)
	for _, s := range servers {
		require.Contains(t, text, "Content-Location: coap://"+s.addr().String()+"/temp\r\n")
	}
	text = curl(t, "http://"+proxies[0].addr().String()+"/hc/"+groupURI(group, "/temp2"), "-H", "Multicast-Timeout: 1")
	require.Contains(t, text, "Multicast-Timeout: 2\r\n") // GP-96
	server := single(t, content)
	text = curl(t, "http://"+proxies[0].addr().String()+"/hc/coap://"+server.addr().String()+"/x")
	require.Contains(t, text, "server/x")
}

// Other transports between the proxies, bodies in blocks through them, and GP-90:
// each proxy asks who the hop before it is, and what that may do.
func TestChainTransports(t *testing.T) {
	t.Parallel()
	body := pattern(3000)
	servers, group := members(t, 3, blockwise(body, 4))
	for _, scheme := range []string{"coap", "coap+tcp", "coap+ws"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			last := startProxy(t, group, settings{listen: "- " + scheme + "://127.0.0.1:0", client: `forward: ["coap://127.0.2.0/24:*"]`})
			p := startProxy(t, group, settings{client: `forward: ["coap://*:*"]`, groups: fmt.Sprintf("- {name: devices, uri: %q}", "coap://"+group.String()),
				top: nextHop(scheme+"://"+last.addr().String(), "")})
			p.waitFor("next hop is up")
			c := newClient(t, here, clientAddr, p.addr())
			responses := c.gatherN(get(coap.NON, groupURI(group, "/x"), timeout(3)), len(servers))
			require.Len(t, payloads(t, responses), len(servers))
			for _, in := range responses {
				require.Equal(t, coap.CodeOf(2, 5), in.Code)
			}
			require.Equal(t, coap.CodeOf(4, 1), c.ask(get(coap.CON, "coap://127.0.3.1/x")).Code)                       // by the last one
			eventually(t, func() bool { return slices.Contains(last.refusals(), "denied") }, "the refusal in the log") // GP-90
			last.stop()
			eventually(t, func() bool { return c.ask(get(coap.CON, "coap://127.0.2.1:1/y")).Code == coap.CodeOf(5, 2) }, "5.02")
		})
	}
}

// coapproxy trace: every proxy on the way by its name, and none is hidden by one
// that has the resource stored (FP-50).
func TestTrace(t *testing.T) {
	t.Parallel()
	server := single(t, with("21", coap.Uint(coap.MaxAge, 60)))
	group := netip.AddrPortFrom(group4, 5999)
	proxies := chained(t, group, 3, func(_ int, s *settings) { s.cache = "enabled: true" })
	uri := fmt.Sprintf("coap://%v/t", server.addr())
	c := newClient(t, here, clientAddr, proxies[0].addr())
	for range 2 {
		require.Equal(t, "21", string(c.ask(get(coap.CON, uri)).Payload))
	}
	require.Len(t, server.requests(), 1, "it is stored")
	out, err := exec.Command(program, "trace", "--via", "coap://"+proxies[0].addr().String(), uri).CombinedOutput()
	require.NoError(t, err, "%s", out)
	require.Regexp(t, `^trace to coap://127\.0\.2\.1:\d+/t through coap://127\.0\.0\.1:\d+, 16 proxies at most
 1  proxy1 +\d+\.\d ms
 2  proxy2 +\d+\.\d ms
 3  proxy3 +\d+\.\d ms
 4  2\.05 Content +\d+\.\d ms  the server
$`, string(out))
	out, err = exec.Command(program, "trace", "--max-hops", "2", "--via", "coap://"+proxies[0].addr().String(), uri).CombinedOutput()
	require.Error(t, err)
	require.Contains(t, string(out), "not reached within 2 proxies")
}
