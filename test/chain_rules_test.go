package test

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// An HTTP server behind two proxies is asked for the URI as the client wrote it: an
// encoded delimiter means something else there than a plain one (FP-39).
func TestChainToHTTPServer(t *testing.T) {
	t.Parallel()
	origin := newWebServer(t)
	allowed := `forward: ["http://127.0.0.0/8:*"]`
	behind := startProxy(t, group0, settings{client: allowed})
	p := startProxy(t, group0, settings{client: allowed, top: nextHop("coap://"+behind.addr().String(), "")})
	p.waitFor("next hop is up")
	c := newClient(t, here, clientAddr, p.addr())
	in := c.ask(get(coap.CON, origin.URL+"/a%2Fb%3B/c?q=1%2B2&r=%26"))
	require.Equal(t, coap.CodeOf(2, 5), in.Code, "%q", in.Payload)
	require.Equal(t, `"/a%2Fb%3B/c?q=1%2B2&r=%26"`, string(in.Payload))
	in = c.ask(&coap.Message{Type: coap.CON, Code: coap.GET, Options: append(path("x", "y z"), coap.Opt(coap.URIHost, "127.0.0.1"),
		coap.Opt(coap.ProxyScheme, "http"), coap.Uint(coap.URIPort, uint32(portOf(t, origin.URL))), coap.Opt(coap.URIQuery, "q=1"))})
	require.Equal(t, coap.CodeOf(2, 5), in.Code, "%q", in.Payload)
	require.Equal(t, `"/x/y%20z?q=1"`, string(in.Payload))
	require.Len(t, origin.requests(), 2)
}

// portOf is the port of a URI.
func portOf(t *testing.T, uri string) (port int) {
	t.Helper()
	_, err := fmt.Sscan(uri[strings.LastIndex(uri, ":")+1:], &port)
	require.NoError(t, err)
	return port
}

// storing are proxies behind each other that store responses; the last one knows who
// is in the group.
func storing(t *testing.T, group netip.AddrPort, servers []*server, n int) []*proxy {
	t.Helper()
	var list []string
	for _, m := range servers {
		list = append(list, fmt.Sprintf("%q", m.addr().String()))
	}
	return chained(t, group, n, func(i int, s *settings) {
		s.cache = "enabled: true"
		s.client = `forward: ["coap://127.0.0.0/8:*"]`
		if i == n-1 {
			s.group = "nstart: 16\nleisure: 1s\nprobing_rate: 0\nmembers: [" + strings.Join(list, ", ") + "]"
		}
	})
}

// follow is a request for a server that a Reply-From names, by Proxy-Cri (GP-117).
func follow(in incoming, options ...coap.Option) *coap.Message {
	value := in.All(coap.ReplyFrom)[0]
	cri := append(append([]byte{0x83}, value[1:]...), 0x81, 0x61, 'x') // its path is /x
	return &coap.Message{Type: coap.CON, Code: coap.GET, Options: append(options, coap.Opt(coap.ProxyCRI, string(cri)))}
}

// GP-104, GP-85, GP-103: the tag of a complete set comes from the last proxy and
// goes back to it; a proxy in between has none of its own. Observing the group does
// not get in its way, nor does an Early Stop.
func TestChainGroupETag(t *testing.T) {
	t.Parallel()
	o := newObservable(60)
	servers, group := members(t, 3, o.handle)
	proxies := storing(t, group, servers, 3)
	c, watch := newClient(t, here, clientAddr, proxies[0].addr()), newClient(t, here, clientAddr, proxies[0].addr())
	uri := groupURI(group, "/x")
	tagOf := func() (tag []byte) {
		for round := 0; tag == nil && round < 3; round++ {
			c := newClient(t, here, clientAddr, proxies[0].addr())
			for _, in := range c.gatherN(get(coap.NON, uri, timeout(30)), len(servers)) {
				if values := in.All(coap.GroupETag); len(values) == 1 {
					tag = values[0]
				}
			}
		}
		require.NotEmpty(t, tag)
		return tag
	}
	tag := tagOf()
	asked := len(servers[0].requests())
	in := c.ask(get(coap.CON, uri, timeout(30), coap.Option{Number: coap.GroupETag, Value: tag}))
	require.Equal(t, coap.CodeOf(2, 3), in.Code)
	require.False(t, in.Has(coap.ReplyFrom))
	require.Equal(t, [][]byte{tag}, in.All(coap.GroupETag))
	age, ok := in.Option(coap.MaxAge)
	require.True(t, ok && age.Uint() <= 60)
	require.Len(t, servers[0].requests(), asked, "nothing is sent to the group")

	registered := watch.gatherN(observe(coap.NON, uri, timeout(30)), len(servers))
	o.set(servers[1], "changed")
	require.Equal(t, "member2 changed", string(watch.expect().Payload))
	in = newClient(t, here, clientAddr, proxies[0].addr()).gatherN(get(coap.NON, uri, timeout(30), coap.Option{Number: coap.GroupETag, Value: tag}), 1)[0]
	require.Equal(t, coap.CodeOf(2, 5), in.Code, "the set is another one now")
	watch.send(watch.fresh(&coap.Message{Type: coap.NON, Code: coap.GET, Token: registered[0].Token, Options: []coap.Option{timeout(0)}}))
	for _, p := range proxies {
		p.waitFor("early stop")
	}
	for _, m := range servers {
		eventually(t, func() bool { return o.count(m) == 0 }, "%s is still observed", m.name)
	}
	newer := tagOf()
	require.NotEqual(t, tag, newer)
	require.Equal(t, coap.CodeOf(2, 3), c.ask(get(coap.CON, uri, timeout(30), coap.Option{Number: coap.GroupETag, Value: newer})).Code)

	// Who wants to observe is registered, also where it knows the set already: one 2.03
	// for all of them could register nobody.
	again := newClient(t, here, clientAddr, proxies[0].addr())
	for _, in := range again.gatherN(observe(coap.NON, uri, timeout(30), coap.Option{Number: coap.GroupETag, Value: newer}), len(servers)) {
		require.Equal(t, coap.CodeOf(2, 5), in.Code)
		require.True(t, in.Has(coap.Observe))
	}
	o.set(servers[0], "after")
	require.Equal(t, "member1 after", string(again.expect().Payload))
}

// GC-50, GC-51: a client that asks a group for blocks gets the first of each server,
// and the others from the server itself, through the chain; who asks for no blocks
// gets whole bodies, whatever the caches have from others.
func TestChainBlocks(t *testing.T) {
	t.Parallel()
	body := pattern(300)
	servers, group := members(t, 2, func(s *server, r *request) {
		if r.Has(coap.Block2) {
			blockwise(body, 2, coap.Opt(coap.ETag, s.name))(s, r)
			return
		}
		with(string(body), coap.Opt(coap.ETag, s.name))(s, r)
	})
	proxies := storing(t, group, servers, 2)
	c := newClient(t, here, clientAddr, proxies[0].addr())
	for range 2 {
		for _, in := range c.gatherN(get(coap.NON, groupURI(group, "/x"), timeout(30), block(coap.Block2, 0, false, 2)), len(servers)) {
			require.Equal(t, coap.CodeOf(2, 5), in.Code)
			require.Equal(t, uint64(8|2), lastOption(t, in, coap.Block2).Uint())
			whole := bytes.Clone(in.Payload)
			for num := uint32(1); len(whole) < len(body); num++ {
				got := c.ask(follow(in, block(coap.Block2, num, false, 2)))
				require.Equal(t, coap.CodeOf(2, 5), got.Code, "%q", got.Payload)
				require.Equal(t, uint64(num), lastOption(t, got, coap.Block2).Uint()>>4)
				whole = append(whole, got.Payload...)
			}
			require.Equal(t, body, whole)
		}
		for _, in := range c.gatherN(get(coap.NON, groupURI(group, "/x"), timeout(30)), len(servers)) {
			require.False(t, in.Has(coap.Block2))
			require.Equal(t, body, in.Payload)
		}
	}
}

// GP-127, GP-128, GP-102: a client of the older generation in front of a proxy that
// stands in for the servers behind another one: it gets addresses of the first
// proxy, and they lead to the servers.
func TestChainLegacyRoutes(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, content)
	pool, _ := reserveRun(t, 2)
	proxies := chained(t, group, 2, func(i int, s *settings) {
		if i == 0 {
			s.client = "dialect: legacy"
			s.proxy += fmt.Sprintf("\nserver_addresses: [%q]", pool)
			s.top += fmt.Sprintf("\nroutes:\n- {name: all, path: /all, to: \"coap://%v\", servers: by-host}", group)
		}
	})
	c := newClient(t, here, clientAddr, proxies[0].addr())
	for _, in := range c.gatherN(&coap.Message{Type: coap.NON, Code: coap.GET, Options: append([]coap.Option{timeout(30)}, path("all", "x")...)}, len(servers)) {
		require.False(t, in.Has(coap.ReplyFrom))
		value := in.All(coap.ForwardingOld)
		require.Len(t, value, 1)
		require.Equal(t, "8301d90104447f00000119", fmt.Sprintf("%x", value[0])[:22]) // the proxy's address, and a port
		port := uint16(value[0][11])<<8 | uint16(value[0][12])
		name, _, _ := strings.Cut(string(in.Payload), "/")
		got := newClient(t, here, clientAddr, netip.AddrPortFrom(clientAddr, port)).ask(&coap.Message{Type: coap.CON, Code: coap.GET, Options: path("y")})
		require.Equal(t, name+"/y", string(got.Payload), "%v", got.Message)
	}
}

// FP-42, FP-43, FP-45, FP-46, FP-50, FP-52 in a chain of caches: a response grows old
// once, not once per proxy; a confirmation travels back with the lifetime it gives;
// and a stored response needs no hop.
func TestChainAgeing(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	lifetime := uint32(20)
	origin := single(t, func(s *server, r *request) {
		mu.Lock()
		age := lifetime
		mu.Unlock()
		options := []coap.Option{coap.Opt(coap.ETag, "tag"), coap.Uint(coap.MaxAge, age)}
		for _, o := range r.All(coap.ETag) {
			if string(o) == "tag" {
				s.answer(r, coap.Message{Code: coap.CodeOf(2, 3), Options: options})
				return
			}
		}
		s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Options: options, Payload: []byte("state")})
	})
	proxies := storing(t, netip.AddrPortFrom(group4, 5999), nil, 3)
	uri := fmt.Sprintf("coap://%v/x", origin.addr())
	ages := func(p *proxy, options ...coap.Option) (left float64, in incoming) {
		in = newClient(t, here, clientAddr, p.addr()).ask(get(coap.CON, uri, options...))
		return float64(lastOption(t, in, coap.MaxAge).Uint()), in
	}
	begun := time.Now()
	age, _ := ages(proxies[2])
	require.InDelta(t, 20, age, 1)
	time.Sleep(2500 * time.Millisecond) // a lifetime is whole seconds of the real clock
	for _, p := range []*proxy{proxies[0], proxies[1], proxies[0], proxies[2]} {
		age, in := ages(p)
		require.Equal(t, "state", string(in.Payload))
		old := time.Since(begun).Seconds()
		require.LessOrEqual(t, age, 20-2.5, "older at every proxy")
		require.GreaterOrEqual(t, age, 20-old-3, "each proxy rounds down once")
	}
	require.Len(t, origin.requests(), 1)
	_, in := ages(proxies[0], coap.Uint(coap.HopLimit, 1))
	require.Equal(t, "state", string(in.Payload), "FP-52: it goes no further")
	other := newClient(t, here, clientAddr, proxies[0].addr()).ask(get(coap.CON, uri+"/other", coap.Uint(coap.HopLimit, 1)))
	require.Equal(t, coap.CodeOf(5, 8), other.Code)
	other = newClient(t, here, clientAddr, proxies[0].addr()).ask(get(coap.CON, uri+"/other", coap.Uint(coap.HopLimit, 9)))
	require.Equal(t, coap.CodeOf(2, 5), other.Code, "FP-50: what used up fewer hops says nothing")
	age, in = ages(proxies[0], coap.Opt(coap.ETag, "tag"))
	require.Equal(t, coap.CodeOf(2, 3), in.Code) // FP-46
	require.LessOrEqual(t, age, 17.5)

	// Stale everywhere: one confirmation by the origin, for all of them.
	short := fmt.Sprintf("coap://%v/short", origin.addr())
	mu.Lock()
	lifetime = 1
	mu.Unlock()
	c := newClient(t, here, clientAddr, proxies[0].addr())
	require.Equal(t, coap.CodeOf(2, 5), c.ask(get(coap.CON, short)).Code)
	time.Sleep(1200 * time.Millisecond)
	mu.Lock()
	lifetime = 20
	mu.Unlock()
	in = c.ask(get(coap.CON, short))
	require.Equal(t, coap.CodeOf(2, 5), in.Code) // FP-45: the client did not list it
	require.Equal(t, "state", string(in.Payload))
	require.InDelta(t, 19, lastOption(t, in, coap.MaxAge).Uint(), 1.5)
	asked := origin.requestsTo("/short")
	require.Len(t, asked, 2)
	require.Equal(t, [][]byte{[]byte("tag")}, asked[1].All(coap.ETag))
}

// More ETags than anybody keeps (GP-80) go to the group, and the confirmation of the
// last of them comes back, by way of proxies that have stored nothing of it.
func TestChainManyETags(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, func(s *server, r *request) {
		for _, o := range r.All(coap.ETag) {
			if string(o) == "e11"+s.name[len(s.name)-1:] {
				s.answer(r, coap.Message{Code: coap.CodeOf(2, 3), Options: []coap.Option{{Number: coap.ETag, Value: o}}})
				return
			}
		}
		s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Options: []coap.Option{coap.Opt(coap.ETag, "new")}, Payload: []byte(s.name)})
	})
	proxies := storing(t, group, servers, 2)
	c := newClient(t, here, clientAddr, proxies[0].addr())
	var etags []coap.Option
	for i := range 11 {
		etags = append(etags, coap.Opt(coap.ETag, fmt.Sprintf("e%d", i)))
	}
	etags = append(etags, coap.Opt(coap.ETag, "e111"))
	codes := make(map[netip.AddrPort]string)
	for _, in := range c.gatherN(get(coap.NON, groupURI(group, "/x"), append(etags, timeout(30))...), len(servers)) {
		codes[serverOf(t, in)] = in.Code.String()
	}
	require.Equal(t, map[netip.AddrPort]string{servers[0].addr(): "2.03", servers[1].addr(): "2.05"}, codes)
	got := c.ask(get(coap.CON, fmt.Sprintf("coap://%v/y", servers[0].addr()), etags...))
	require.Equal(t, coap.CodeOf(2, 3), got.Code)
	require.Equal(t, []byte("e111"), got.All(coap.ETag)[0])
}

// FP-80, FP-82, GC-76: a challenge of a server, alone or in a group, is the client's
// to answer, through all proxies; none of them stores it or answers for it.
func TestChainEcho(t *testing.T) {
	t.Parallel()
	challenging := func(s *server, r *request) {
		if o, ok := r.Option(echoOption); ok && string(o.Value) == "fresh "+s.name {
			content(s, r)
			return
		}
		s.answer(r, coap.Message{Code: coap.CodeOf(4, 1), Options: []coap.Option{coap.Opt(echoOption, "fresh "+s.name)}})
	}
	servers, group := members(t, 2, challenging)
	origin := single(t, challenging)
	proxies := storing(t, group, servers, 3)
	c := newClient(t, here, clientAddr, proxies[0].addr())
	uri := fmt.Sprintf("coap://%v/x", origin.addr())
	in := c.ask(get(coap.CON, uri))
	require.Equal(t, coap.CodeOf(4, 1), in.Code)
	require.Equal(t, "fresh server", string(in.All(echoOption)[0]))
	require.Equal(t, "server/x", string(c.ask(get(coap.CON, uri, coap.Opt(echoOption, "fresh server"))).Payload))

	for _, in := range c.gatherN(get(coap.NON, groupURI(group, "/x"), timeout(30)), len(servers)) {
		require.Equal(t, coap.CodeOf(4, 1), in.Code)
		echo := in.All(echoOption)
		require.Len(t, echo, 1)
		got := c.ask(follow(in, coap.Opt(echoOption, string(echo[0]))))
		require.Equal(t, strings.TrimPrefix(string(echo[0]), "fresh ")+"/x", string(got.Payload))
	}
}

// OH-102 over a connection: the hop is protected by OSCORE on TCP, for a group, an
// Early Stop and a single server. Nothing else identifies the first proxy.
func TestChainOSCOREOverTCP(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 3, content)
	origin := single(t, content)
	near, far := newOSCOREBed(t), newOSCOREBed(t, "first")
	far.hand("first", near, "second")
	behind := far.start(group, settings{listen: "- coap+tcp://127.0.0.1:0", clients: far.clients("first")})
	s := settings{groups: fmt.Sprintf("- {name: devices, uri: \"coap://%v\"}", group), client: `forward: ["coap://127.0.2.0/24:*"]`,
		top: nextHop("coap+tcp://"+behind.addr().String(), ", oscore: second")}
	require.NoError(t, os.WriteFile(near.config, []byte(s.yaml(netip.AddrPort{})), 0o600))
	p := serveFile(t, here, near.config)
	p.waitFor("next hop is up")
	c := newClient(t, here, clientAddr, p.addr())
	require.Len(t, payloads(t, c.gatherN(get(coap.NON, groupURI(group, "/x"), timeout(5)), len(servers))), len(servers))
	require.Equal(t, "server/y", string(c.ask(get(coap.CON, fmt.Sprintf("coap://%v/y", origin.addr()))).Payload))
	first := c.gatherN(get(coap.NON, groupURI(group, "/z"), timeout(60)), len(servers))[0]
	c.send(c.fresh(&coap.Message{Type: coap.NON, Code: coap.GET, Token: first.Token, Options: []coap.Option{timeout(0)}}))
	p.waitFor("early stop")
	behind.waitFor("early stop")
	require.Empty(t, behind.refusals())
}

// FP-20, FP-21, FP-33: unknown options on every transport, in front of a chain: an
// unsafe one ends at the first proxy, in a request with 4.02 and in a response with
// 5.02; one that is safe to forward reaches the server though it is critical.
func TestChainUnknownOptions(t *testing.T) {
	t.Parallel()
	const unsafe, safe = 65003, 65001 // both critical
	servers, group := members(t, 2, func(s *server, r *request) {
		if strings.HasSuffix(r.Path(), "/strange") {
			with("x", coap.Opt(unsafe, "?"))(s, r)
			return
		}
		with(s.name, coap.Opt(safe, "!"))(s, r)
	})
	origin := single(t, servers[0].handle)
	ca := newCertAuthority(t, "proxies")
	own := ca.issue("proxy", forServer)
	behind := startProxy(t, group, settings{client: `forward: ["coap://127.0.2.0/24:*"]`})
	listen := ""
	for _, scheme := range allSchemes {
		listen += fmt.Sprintf("- %s://127.0.0.1:0\n", scheme)
	}
	p := startProxy(t, group, settings{listen: listen, client: `forward: ["coap://127.0.2.0/24:*"]`, groups: fmt.Sprintf("- {name: devices, uri: \"coap://%v\"}", group),
		top: nextHop("coap://"+behind.addr().String(), "") + fmt.Sprintf("\ncredentials: {certificate: %s, key: %s}", own.cert, own.key)})
	p.waitFor("next hop is up")
	for i, scheme := range allSchemes {
		if scheme == "coaps" {
			continue // the same front as coap's; the tests have no DTLS of their own
		}
		ask := func(m *coap.Message) *coap.Message {
			switch {
			case scheme == "coap":
				return newClient(t, here, clientAddr, p.addrs[i]).ask(m).Message
			case strings.HasPrefix(scheme, "coaps"):
				return newStreamClient(t, scheme, p.addrs[i], tlsOf(t, ca, pair{}, alpnOf(scheme)), 1152).ask(m)
			}
			return newStreamClient(t, scheme, p.addrs[i], nil, 1152).ask(m)
		}
		for _, uri := range []string{fmt.Sprintf("coap://%v/x", origin.addr()), groupURI(group, "/x")} {
			n := len(origin.requests()) + len(servers[0].requests())
			in := ask(get(coap.CON, uri, coap.Opt(unsafe, "?"), timeout(30)))
			require.Equal(t, coap.CodeOf(4, 2), in.Code, "%s %s", scheme, uri)
			require.Contains(t, string(in.Payload), "65003")
			require.Equal(t, n, len(origin.requests())+len(servers[0].requests()))
			in = ask(get(coap.CON, uri, coap.Opt(safe, "?"), timeout(30)))
			require.Equal(t, coap.CodeOf(2, 5), in.Code, "%s %s %q", scheme, uri, in.Payload)
			require.Equal(t, [][]byte{[]byte("!")}, in.All(safe))
			in = ask(get(coap.CON, strings.Replace(uri, "/x", "/strange", 1), timeout(30)))
			require.Equal(t, coap.CodeOf(5, 2), in.Code, "%s %s", scheme, uri)
			require.Equal(t, strings.Contains(uri, group.String()), in.Has(coap.ReplyFrom)) // GP-60
		}
	}
	last := origin.requestsTo("/x")
	require.True(t, last[len(last)-1].Has(safe))
}

// What a FETCH says of its body and of what it accepts reaches every member, and
// another body is another request for the caches (FP-41).
func TestChainFetch(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, func(s *server, r *request) {
		accept, _ := r.Option(coap.Accept)
		format, _ := r.Option(coap.ContentFormat)
		s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Options: []coap.Option{coap.Uint(coap.ContentFormat, uint32(accept.Uint()))},
			Payload: fmt.Appendf(nil, "%s %d %q", s.name, format.Uint(), r.Payload)})
	})
	proxies := storing(t, group, servers, 2)
	c := newClient(t, here, clientAddr, proxies[0].addr())
	for _, body := range []string{"[1]", "[2]", "[1]"} {
		for _, accept := range []uint32{60, 50} {
			m := get(coap.NON, groupURI(group, "/x"), timeout(30), coap.Uint(coap.ContentFormat, 60), coap.Uint(coap.Accept, accept))
			m.Code, m.Payload = coap.FETCH, []byte(body)
			for _, in := range c.gatherN(m, len(servers)) {
				require.Equal(t, coap.CodeOf(2, 5), in.Code, "%q", in.Payload)
				require.Equal(t, uint64(accept), lastOption(t, in, coap.ContentFormat).Uint())
				name, _, _ := strings.Cut(string(in.Payload), " ")
				require.Equal(t, fmt.Sprintf("%s 60 %q", name, body), string(in.Payload))
			}
		}
	}
	require.Len(t, servers[0].requests(), 4, "the same requests are answered by the caches")
}

// GP-57, GP-101, GP-112: link-local servers behind a next hop. The zone in their
// Reply-From is the last proxy's; it goes through unchanged, means nothing to the
// first proxy, and leads to the server in a Proxy-Cri. Without it the way is known
// from where the server was heard. A proxy that stands in for them tells of neither.
func TestChainLinkLocal(t *testing.T) {
	inLab(t, "2 --proxies 2", func(t *testing.T, l *lab) {
		devices := l.devices(2, content)
		l.startChain(2, func(i int, s *settings) {
			if i == 0 {
				s.top += "\nroutes:\n- {name: host, path: /host, to: \"coap://[ff02::fd]\", servers: by-host}\n- {name: path, path: /path, to: \"coap://[ff02::fd]\", servers: by-path}"
			}
		})
		zone := fmt.Sprint(l.host("px2").index(t, "eth1"))
		c := l.client6(0)
		responses := c.gatherN(get(coap.NON, "coap://[ff02::fd]/x", timeout(30)), len(devices))
		for _, in := range responses {
			server := serverOf(t, in)
			require.Equal(t, zone, server.Addr().Zone(), "of the last proxy")
			name := strings.TrimSuffix(string(in.Payload), "/x")
			plain := server.Addr().WithZone("").String()
			for _, m := range []*coap.Message{
				follow(in),
				get(coap.CON, "coap://["+plain+"]/x"),
				{Type: coap.CON, Code: coap.GET, Options: append(path("x"), coap.Opt(coap.URIHost, "["+plain+"]"), coap.Uint(coap.URIPort, coapPort), coap.Opt(coap.ProxyScheme, "coap"))},
			} {
				got := c.ask(m)
				require.Equal(t, name+"/x", string(got.Payload), "%v: %v", m, got.Message)
			}
		}
		for _, route := range []string{"host", "path"} {
			for _, in := range c.gatherN(&coap.Message{Type: coap.NON, Code: coap.GET, Options: append([]coap.Option{timeout(30)}, path(route, "x")...)}, len(devices)) {
				value := in.All(coap.ReplyFrom)[0]
				hosts, _, _ := strings.Cut(string(value), "servers") // the random name after it may look like anything
				require.NotContains(t, hosts, "\x61"+zone, "no zone as a text of CBOR: %x", value)
				to, m := followUp(t, value, "y")
				got := newClient(t, l.cl(0), cl6(0), to).ask(m)
				require.Equal(t, strings.TrimSuffix(string(in.Payload), "/x")+"/y", string(got.Payload), "%v", got.Message)
			}
		}
		// A server that nobody has heard, on the first proxy's own link or behind: 4.00
		// without a zone, as there is no default interface.
		in := c.ask(get(coap.CON, "coap://[fe80::5:99]/x"))
		require.Contains(t, []coap.Code{coap.CodeOf(4, 0), coap.CodeOf(4, 1)}, in.Code, "%q", in.Payload)
	})
}

// The operator of the first proxy has the last word on what its clients are told:
// with zone_in_reply_from off, no zone of a proxy behind goes through either.
func TestChainWithoutZones(t *testing.T) {
	inLab(t, "1 --proxies 2", func(t *testing.T, l *lab) {
		l.devices(1, content)
		l.startChain(2, func(i int, s *settings) {
			if i == 0 {
				s.proxy += "\nzone_in_reply_from: false"
			}
		})
		c := l.client6(0)
		in := c.gatherN(get(coap.NON, "coap://[ff02::fd]/x", timeout(30)), 1)[0]
		require.Equal(t, netip.AddrPortFrom(svLL(1), coapPort), serverOf(t, in))
		require.Equal(t, "sv1/x", string(c.ask(follow(in)).Payload))
	})
}

// FP-39: a next hop that understands Proxy-Scheme alone gets that, however the client
// named the target.
func TestHopForm(t *testing.T) {
	t.Parallel()
	hop := single(t, with("x", aServer))
	group := netip.AddrPortFrom(group4, 5999)
	p := startProxy(t, group, settings{groups: fmt.Sprintf("- {name: devices, uri: %q}", "coap://"+group.String()), client: `forward: ["coap://127.0.2.9"]`,
		top: nextHop("coap://"+hop.addr().String(), ", form: proxy-scheme")})
	p.waitFor("next hop is up")
	c := newClient(t, here, clientAddr, p.addr())
	cri := "\x83\x20\x81\x44\x7f\x00\x02\x09\x81\x61x" // [-1, [127.0.2.9], ["x"]]
	for i, m := range []*coap.Message{
		get(coap.CON, "coap://127.0.2.9/x"),
		{Type: coap.CON, Code: coap.GET, Options: []coap.Option{coap.Opt(coap.ProxyCRI, cri)}},
		get(coap.NON, groupURI(group, "/x"), timeout(5)),
	} {
		require.Equal(t, coap.CodeOf(2, 5), c.gatherN(m, 1)[0].Code)
		asked := hop.requestsTo("/x")
		require.Len(t, asked, i+1)
		in := asked[i]
		require.False(t, in.Has(coap.ProxyURI) || in.Has(coap.ProxyCRI))
		require.Equal(t, "coap", string(lastOption(t, in, coap.ProxyScheme).Value))
		require.Equal(t, map[bool]string{true: group.Addr().String(), false: "127.0.2.9"}[i == 2], string(lastOption(t, in, coap.URIHost).Value))
		require.True(t, in.Has(coap.URIPort)) // FP-5
	}
}
