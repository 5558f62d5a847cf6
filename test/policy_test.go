package test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

func loopback(last byte) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 0, last}) }

// Each client gets the group options of its generation (GP-127).
func TestDialects(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 3, content)
	p := startProxy(t, group, settings{
		clients: `
- {name: new, networks: [127.0.0.2], groups: "*"}
- {name: old, networks: [127.0.0.3], groups: "*", dialect: legacy}
- {name: preset, networks: [127.0.0.4], groups: "*", dialect: legacy, preset_timeout: 60s}
- {name: both, networks: [127.0.0.5], groups: "*", dialect: both}
`,
		proxy: "option_numbers: {legacy_timeout: 2054}",
	})
	uri := groupURI(group, "/x")
	second := coap.Uint(2054, 60)
	for _, tt := range []struct {
		name    string
		from    byte
		option  []coap.Option
		numbers []uint16 // of the options in the responses, in their order
	}{
		{"new", 2, []coap.Option{timeout(60)}, []uint16{coap.ReplyFrom}},
		{"old", 3, []coap.Option{timeout(60)}, []uint16{coap.ForwardingOld}},
		{"old, second number", 3, []coap.Option{second}, []uint16{coap.ForwardingOld}},
		{"preset", 4, nil, []uint16{coap.ForwardingOld}},
		{"both", 5, []coap.Option{timeout(60)}, []uint16{coap.ForwardingOld, coap.ReplyFrom}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			c := newClient(t, here, loopback(tt.from), p.addr())
			seen := make(map[netip.AddrPort]bool)
			for _, in := range c.gatherN(get(coap.NON, uri, tt.option...), len(servers)) {
				var numbers []uint16
				for _, o := range in.Options {
					numbers = append(numbers, o.Number)
					read := coap.ReplyFromServer
					if o.Number == coap.ForwardingOld {
						read = coap.ForwardingServer // GP-120, GP-124
					}
					server, err := read(o.Value)
					require.NoError(t, err)
					seen[server] = true
				}
				require.Equal(t, tt.numbers, numbers)
			}
			require.Len(t, seen, len(servers)) // both options name the same server
		})
	}
	for _, s := range servers {
		for _, r := range s.requests() {
			require.False(t, r.Has(2054))
		}
	}
	// The legacy client without a preset has to say how long it waits (GP-26),
	// and the second number is nobody else's.
	require.Equal(t, coap.CodeOf(4, 0), newClient(t, here, loopback(3), p.addr()).ask(get(coap.CON, uri)).Code)
}

// GP-26 says what a legacy client is missing under the number it knows.
func TestGroupOptionNumbers(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, content)
	p := startProxy(t, group, settings{proxy: "option_numbers: {multicast_timeout: 65002, reply_from: 65004}"}) // GP-1
	c := newClient(t, here, clientAddr, p.addr())
	for _, in := range c.gatherN(get(coap.NON, groupURI(group, "/x"), coap.Uint(65002, 60)), len(servers)) {
		require.Len(t, in.Options, 1)
		require.Equal(t, uint16(65004), in.Options[0].Number)
	}
	in := c.ask(get(coap.CON, groupURI(group, "/x")))
	require.Equal(t, coap.CodeOf(4, 0), in.Code)
	require.True(t, in.Has(65002))
}

// Who may do what: groups, methods and targets per client, the longest prefix
// deciding who it is (GP-23, FP-85).
func TestPermissions(t *testing.T) {
	t.Parallel()
	_, group := members(t, 1, content)
	server := single(t, content)
	target := server.addr()
	p := startProxy(t, group, settings{
		clients: fmt.Sprintf(`
- {name: net, networks: [127.0.0.0/24], groups: [devices], methods: [PUT], follow_up: false}
- {name: one, networks: [127.0.0.2], groups: "*"}
- {name: forwarder, networks: [127.0.0.3], forward: ["coap://127.0.2.1:%d"]}
- {name: anyport, networks: [127.0.0.4], forward: ["coap://127.0.2.0/24:*"]}
- {name: every, networks: [127.0.0.5], forward: ["coap://*:*"]}
- {name: nothing, networks: [127.0.0.6]}
`, target.Port()),
		group: "methods: [GET, PUT]\nnstart: 16\nleisure: 1s",
	})
	groupGet := get(coap.CON, groupURI(group, "/g"), timeout(60))
	groupPut := get(coap.CON, groupURI(group, "/p"), timeout(60))
	groupPut.Code = coap.PUT
	heard := get(coap.CON, fmt.Sprintf("coap://%v:%d/heard", memberAddr(1), group.Port()))
	forward := get(coap.CON, fmt.Sprintf("coap://%v/f", target))
	const ok = "2.05"
	for _, tt := range []struct {
		from    byte
		name    string
		request *coap.Message
		want    string
	}{
		{2, "group", groupGet, ok},
		{2, "heard in the group (FP-11)", heard, ok},
		{2, "not heard, not listed", forward, "4.01"},
		{7, "method of the group, not the client's (GC-70)", groupGet, "4.05"},
		{7, "method of the client", groupPut, ok},
		{7, "heard, but no follow-up (GP-112)", heard, "4.01"},
		{3, "no group", groupGet, "4.01"},
		{3, "target", forward, ok},
		{3, "other target", heard, "4.01"},
		{4, "network", forward, ok},
		{5, "every target", forward, ok},
		{5, "no group, though every target", groupGet, "4.01"},
		{6, "known, nothing allowed", forward, "4.01"},
	} {
		c := newClient(t, here, loopback(tt.from), p.addr())
		require.Equal(t, tt.want, c.ask(tt.request).Code.String(), "client %d, %s", tt.from, tt.name)
	}
	stranger := newClient(t, here, netip.MustParseAddr("127.9.9.9"), p.addr())
	require.Equal(t, coap.CodeOf(4, 1), stranger.ask(groupGet).Code)
	require.Equal(t, coap.CodeOf(4, 1), stranger.ask(forward).Code)
	p.logged("every program on this host may use the proxy", 6)
}

// FP-11: addresses that are out of bounds whatever the list says.
func TestAddressRules(t *testing.T) {
	t.Parallel()
	server := single(t, content)
	p := startProxyIn(t, here, fmt.Sprintf(`
listen: ["coap://127.0.0.1:0"]
clients: [{name: all, networks: [127.0.0.1], forward: ["coap://*:*"]}]
names: {server.example: [%v]}
log: {format: json}
`, server.addr().Addr()))
	c := newClient(t, here, clientAddr, p.addr())
	for _, host := range []string{server.addr().Addr().String(), "server.example", "localhost", "255.255.255.255", "0.0.0.0", "[::]", "[fe80::1%25lo]"} {
		in := c.ask(get(coap.CON, fmt.Sprintf("coap://%s:%d/x", host, server.addr().Port())))
		require.Equal(t, coap.CodeOf(4, 1), in.Code, "%s: %q", host, in.Payload)
	}
	require.Empty(t, server.requests())
}

// GC-32, GC-33, GP-35, FP-84.
func TestNoResponse(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, named(map[string]handler{"member1": content, "member2": code(4, 4, "")}))
	p := startProxy(t, group, settings{
		clients: `
- {name: a, networks: [127.0.0.1], groups: "*"}
- {name: b, networks: [127.0.0.2], groups: "*", allow_no_response_zero: true}
`})
	c := newClient(t, here, clientAddr, p.addr())
	no := func(path string, v uint32) *coap.Message {
		return get(coap.NON, groupURI(group, path), timeout(60), coap.Uint(coap.NoResponse, v))
	}
	responses := c.gatherJust(no("/no2", 2), 1)
	require.Equal(t, coap.CodeOf(4, 4), responses[0].Code)
	require.Len(t, c.gatherN(no("/zero", 0), 2), 2)
	require.Len(t, newClient(t, here, loopback(2), p.addr()).gatherN(no("/zeroed", 0), 2), 2)
	r := servers[0].requestsTo("/no2")[0]
	v, ok := r.Option(coap.NoResponse)
	require.True(t, ok)
	require.Equal(t, uint64(2), v.Uint())
	require.False(t, servers[0].requestsTo("/zero")[0].Has(coap.NoResponse))
	require.True(t, servers[0].requestsTo("/zeroed")[0].Has(coap.NoResponse))

	// Towards one server the client's leg alone obeys it.
	in := c.fresh(get(coap.CON, "coap://"+servers[0].addr().String()+"/unicast", coap.Uint(coap.NoResponse, 2)))
	c.send(in)
	require.Equal(t, coap.Message{Type: coap.ACK, ID: in.ID, Token: []byte{}}, *c.expect().Message)
	c.nothing(meanwhile)
	require.False(t, servers[0].requestsTo("/unicast")[0].Has(coap.NoResponse))
}

// FP-84: servers hear of No-Response where that is configured; what they keep to
// themselves is nothing to tell the client, and what they do not, it does not get.
func TestNoResponseForwarded(t *testing.T) {
	t.Parallel()
	server := single(t, func(s *server, r *request) {
		if r.Path() == "/obeys" {
			if r.Type == coap.CON {
				s.send(r, coap.Message{Type: coap.ACK, ID: r.ID})
			}
			return
		}
		content(s, r)
	})
	p := startProxy(t, netip.AddrPort{}, settings{client: `forward: ["coap://127.0.2.1:*"]`, proxy: "forward_no_response: true",
		limits: "response_timeout_con: 1s\nresponse_timeout: 1s\nnstart: 1"})
	c := newClient(t, here, clientAddr, p.addr())
	for _, path := range []string{"/obeys", "/does-not"} {
		m := c.fresh(get(coap.CON, fmt.Sprintf("coap://%v%s", server.addr(), path), coap.Uint(coap.NoResponse, 2)))
		c.send(m)
		require.Equal(t, coap.Message{Type: coap.ACK, ID: m.ID, Token: []byte{}}, *c.expect().Message)
		c.nothing(1500 * time.Millisecond)
		v, ok := server.requestsTo(path)[0].Option(coap.NoResponse)
		require.True(t, ok)
		require.Equal(t, uint64(2), v.Uint())
	}
	require.Empty(t, p.refusals())
}

// GC-84: a client behind a slow link gets non-confirmable responses at its rate, as
// many as fit before T'.
func TestResponseRate(t *testing.T) {
	t.Parallel()
	_, group := members(t, 5, content)
	p := startProxy(t, group, settings{client: "response_rate: 2\nresponse_burst: 2"})
	c := newClient(t, here, clientAddr, p.addr())
	m := get(coap.NON, groupURI(group, "/x"), timeout(1))
	began := time.Now()
	got := c.gather(m, 2*time.Second)
	require.GreaterOrEqual(t, len(got), 2)
	require.LessOrEqual(t, len(got), 4)
	for i, in := range got {
		require.GreaterOrEqual(t, in.at.Sub(began), time.Duration(max(i-1, 0))*450*time.Millisecond)
	}
	require.Len(t, c.gatherN(get(coap.NON, groupURI(group, "/y"), timeout(20)), 5), 5)
}

// The bounds of one client and one group, and what is said when they are met.
func TestLimits(t *testing.T) {
	t.Parallel()
	_, group := members(t, 5, paths(map[string]handler{"silent": silent}))
	retry := func(t *testing.T, in incoming, code coap.Code) {
		t.Helper()
		require.Equal(t, code, in.Code, "%q", in.Payload)
		maxAge, ok := in.Option(coap.MaxAge)
		require.True(t, ok)
		require.NotZero(t, maxAge.Uint())
		require.False(t, in.Has(coap.ReplyFrom)) // GP-39
	}
	run := func(name string, s settings, f func(t *testing.T, c *client)) {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			p := startProxy(t, group, s)
			f(t, newClient(t, here, clientAddr, p.addr()))
		})
	}
	request := func(path string, seconds uint32) *coap.Message {
		return get(coap.NON, groupURI(group, path), timeout(seconds))
	}

	run("responses (GP-61)", settings{group: "max_responses: 3"}, func(t *testing.T, c *client) {
		c.gatherJust(request("/x", 60), 3)
	})
	run("bytes (GP-61)", settings{group: "max_bytes: 1KiB"}, func(t *testing.T, c *client) {
		require.Len(t, c.gatherN(request("/x", 60), 5), 5)
	})
	run("group rate (GP-113)", settings{limits: "group_rate: 0.01\ngroup_burst: 2"}, func(t *testing.T, c *client) {
		c.gatherN(request("/1", 60), 5)
		c.gatherN(request("/2", 60), 5)
		retry(t, c.ask(request("/3", 60)), coap.CodeOf(4, 29))
		require.Equal(t, coap.CodeOf(2, 5), c.ask(get(coap.CON, fmt.Sprintf("coap://127.0.1.1:%d/u", group.Port()))).Code)
	})
	run("request rate (FP-37)", settings{limits: "request_rate: 0.01\nrequest_burst: 1"}, func(t *testing.T, c *client) {
		c.gatherN(request("/1", 60), 5)
		retry(t, c.ask(get(coap.CON, fmt.Sprintf("coap://127.0.1.1:%d/u", group.Port()))), coap.CodeOf(4, 29))
	})
	run("exchanges of a client (FP-37)", settings{client: "max_exchanges: 2"}, func(t *testing.T, c *client) {
		c.gatherN(request("/1", 30), 5)
		c.gatherN(request("/2", 30), 5)
		retry(t, c.ask(request("/3", 30)), coap.CodeOf(4, 29))
	})
	run("exchanges in all (FP-34)", settings{limits: "exchanges: 2"}, func(t *testing.T, c *client) {
		c.gatherN(request("/1", 30), 5)
		c.gatherN(request("/2", 30), 5)
		retry(t, c.ask(request("/3", 30)), coap.CodeOf(5, 3))
	})
	run("fire and forget (GC-80)", settings{group: "fire_and_forget_rate: 0.01\nfire_and_forget_burst: 1"}, func(t *testing.T, c *client) {
		c.send(c.fresh(request("/1", 0)))
		retry(t, c.ask(request("/2", 0)), coap.CodeOf(5, 3))
		c.gatherN(request("/3", 60), 5)
	})
	run("remembered requests (FP-90)", settings{limits: "dedup_non_idempotent: 2", client: `forward: ["coap://127.0.1.1:*"]`}, func(t *testing.T, c *client) {
		post := func() *coap.Message {
			m := get(coap.CON, fmt.Sprintf("coap://127.0.1.1:%d/u", group.Port()))
			m.Code = coap.POST
			return m
		}
		require.Equal(t, coap.CodeOf(2, 5), c.ask(post()).Code)
		require.Equal(t, coap.CodeOf(2, 5), c.ask(post()).Code)
		retry(t, c.ask(post()), coap.CodeOf(5, 3))
		in := c.ask(get(coap.CON, fmt.Sprintf("coap://127.0.1.1:%d/u", group.Port())))
		require.Equal(t, coap.CodeOf(2, 5), in.Code) // repeating this one does no harm
	})
	run("queue of confirmable responses (GP-33)", settings{client: "con_outstanding: 1\ncon_queue: 2"}, func(t *testing.T, c *client) {
		c.keepMute(true)
		m := c.fresh(request("/x", 60))
		m.Type = coap.CON
		c.send(m)
		require.Equal(t, coap.ACK, c.expect().Type)
		time.Sleep(200 * time.Millisecond) // all five have answered: one sent, two waiting, two dropped
		for range 3 {
			in := c.expect()
			require.Equal(t, coap.CON, in.Type)
			c.send(&coap.Message{Type: coap.ACK, ID: in.ID})
		}
		c.nothing(meanwhile)
	})
	run("probing (GC-81)", settings{group: "probing_rate: 1\nnstart: 64\nmethods: [FETCH]"}, func(t *testing.T, c *client) {
		m := request("/silent", 60)
		m.Code, m.Payload = coap.FETCH, pattern(1000)
		c.send(c.fresh(m))
		second := request("/silent", 60)
		second.Code, second.Payload = coap.FETCH, pattern(1000)
		retry(t, c.ask(second), coap.CodeOf(5, 3))
	})
}

// GC-80: so many requests to a group at a time; the others wait, and identical
// ones wait together (GC-82).
func TestQueue(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, paths(map[string]handler{"silent": silent}))
	p := startProxy(t, group, settings{group: "leisure: 1s\nqueue: 3\nnstart: 1"})
	request := func(path string, seconds uint32) *coap.Message {
		return get(coap.NON, groupURI(group, path), timeout(seconds))
	}
	one, two, three := newClient(t, here, clientAddr, p.addr()), newClient(t, here, clientAddr, p.addr()), newClient(t, here, clientAddr, p.addr())

	began := time.Now()
	one.send(one.fresh(request("/silent", 20))) // holds the slot for leisure and a round trip
	one.ping()
	x1, x2 := two.fresh(request("/x", 20)), three.fresh(request("/x", 20))
	two.send(x1)
	three.send(x2)
	y := two.fresh(request("/y", 20))
	two.send(y)
	short := one.fresh(request("/short", 1))
	one.send(short)
	one.ping()
	in := one.ask(request("/full", 20))
	require.Equal(t, coap.CodeOf(5, 3), in.Code)
	require.True(t, in.Has(coap.MaxAge))
	in = one.expect() // what the queue has kept until its time was over
	require.Equal(t, short.Token, in.Token)
	require.Equal(t, coap.CodeOf(5, 3), in.Code)
	require.Empty(t, servers[0].requestsTo("/x"))

	got := make(map[string]int)
	for range 4 {
		in := two.expect()
		got[string(in.Token)+" "+string(in.Payload)]++
	}
	require.Equal(t, map[string]int{
		string(x1.Token) + " member1/x": 1, string(x1.Token) + " member2/x": 1,
		string(y.Token) + " member1/y": 1, string(y.Token) + " member2/y": 1,
	}, got)
	for range 2 {
		require.Equal(t, x2.Token, three.expect().Token)
	}
	for _, s := range servers {
		require.Len(t, s.requestsTo("/x"), 1, "identical requests share one")
		require.Empty(t, s.requestsTo("/short"))
		require.Empty(t, s.requestsTo("/full"))
	}
	require.Greater(t, servers[0].requestsTo("/x")[0].at.Sub(began), 900*time.Millisecond)
}

// Names: a group's own, with its addresses, and several groups under one
// (GC-2, GC-72).
func TestNames(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, content)
	second := netip.AddrPortFrom(netip.MustParseAddr("239.255.0.7"), group.Port())
	serveOn(t, "other", []*socket{mustSocket(t, here, netip.MustParseAddrPort("127.0.3.1:0"))},
		[]*socket{mustSocket(t, here, second, membership{second.Addr(), here.index(t, "lo")})}, content)
	p := startProxy(t, group, settings{
		names: "one.example: [224.0.1.187]\ntwo.example: [224.0.1.187, 239.255.0.7]\nserver.example: [127.0.1.1]",
		groups: fmt.Sprintf(`
- {name: g, uri: "coap://%v", interfaces: [lo], loopback: true, nstart: 16, leisure: 1s, probing_rate: 0}
- {name: h, uri: "coap://%v", interfaces: [lo], loopback: true, nstart: 16, leisure: 1s, probing_rate: 0}
`, group, second),
		client: `forward: ["coap://server.example:*"]`,
	})
	c := newClient(t, here, clientAddr, p.addr())
	c.gatherN(get(coap.NON, fmt.Sprintf("coap://ONE.example:%d/one", group.Port()), timeout(60)), 2)
	for _, s := range servers {
		require.Equal(t, []coap.Option{coap.Opt(coap.URIHost, "one.example"), coap.Opt(coap.URIPath, "one"), coap.Uint(coap.HopLimit, 16)},
			s.requestsTo("/one")[0].Options)
	}
	require.Len(t, payloads(t, c.gatherN(get(coap.NON, fmt.Sprintf("coap://two.example:%d/two", group.Port()), timeout(60)), 3)), 3)
	in := c.ask(get(coap.CON, fmt.Sprintf("coap://server.example:%d/s", group.Port())))
	require.Equal(t, "member1/s", string(in.Payload))
	require.Equal(t, [][]byte{[]byte("server.example")}, servers[0].requestsTo("/s")[0].All(coap.URIHost))
	require.Equal(t, coap.CodeOf(5, 2), c.ask(get(coap.CON, "coap://no-such-host.invalid/x")).Code) // FP-34
}

// A group configured by name is the same group under its address (GC-2).
func TestNamedGroupByAddress(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, content)
	p := startProxy(t, group, settings{
		names:  "lights.example: [224.0.1.187]",
		groups: fmt.Sprintf(`- {name: lights, uri: "coap://lights.example:%d", interfaces: [lo], loopback: true, nstart: 16, leisure: 1s}`, group.Port()),
	})
	c := newClient(t, here, clientAddr, p.addr())
	for _, uri := range []string{fmt.Sprintf("coap://lights.example:%d/name", group.Port()), groupURI(group, "/address")} {
		in := c.ask(get(coap.NON, uri, timeout(60)))
		require.Equal(t, coap.CodeOf(2, 5), in.Code, "%s: %q", uri, in.Payload)
		for range servers[1:] {
			c.expect()
		}
	}
}
