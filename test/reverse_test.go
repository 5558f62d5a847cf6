package test

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
	"coapproxy/wire"
)

// tcpClient is a CoAP client over TCP.
type tcpClient struct {
	t    *testing.T
	conn net.Conn
	n    byte
}

// connectTCP connects from a host to a server and exchanges CSMs.
func connectTCP(t *testing.T, h *host, to netip.AddrPort) *tcpClient {
	t.Helper()
	c := &tcpClient{t: t}
	h.do(t, func() {
		var err error
		c.conn, err = net.Dial("tcp", to.String())
		require.NoError(t, err)
	})
	t.Cleanup(func() { _ = c.conn.Close() })
	require.NoError(t, c.conn.SetDeadline(time.Now().Add(30*time.Second)))
	sendFrame(t, c.conn, &coap.Message{Code: 0xe1}) // CSM
	return c
}

// send sends a request with a Token of its own.
func (c *tcpClient) send(method coap.Code, options ...coap.Option) []byte {
	c.t.Helper()
	c.n++
	m := &coap.Message{Type: coap.NON, Code: method, Token: []byte{0xc0, c.n}, Options: options}
	sendFrame(c.t, c.conn, m)
	return m.Token
}

// next returns the next message that is no signal.
func (c *tcpClient) next() *coap.Message {
	c.t.Helper()
	for {
		if m := readFrame(c.t, c.conn); m.Code>>5 != 7 {
			return m
		}
	}
}

// ask sends a request and returns its response.
func (c *tcpClient) ask(options ...coap.Option) *coap.Message {
	c.t.Helper()
	token := c.send(coap.GET, options...)
	m := c.next()
	require.Equal(c.t, token, m.Token)
	return m
}

// gather sends a request to a group and returns the first n responses by what is
// in them, with the Reply-From of each.
func (c *tcpClient) gather(n int, options ...coap.Option) map[string]string {
	c.t.Helper()
	token := c.send(coap.GET, options...)
	out := make(map[string]string)
	for len(out) < n {
		m := c.next()
		require.Equal(c.t, token, m.Token)
		require.Equal(c.t, coap.CodeOf(2, 5), m.Code, "%v", m)
		require.Len(c.t, m.All(coap.ReplyFrom), 1)
		out[string(m.Payload)] = hex.EncodeToString(m.All(coap.ReplyFrom)[0])
	}
	return out
}

// path is the options of a path.
func path(segments ...string) []coap.Option {
	var out []coap.Option
	for _, s := range segments {
		out = append(out, coap.Opt(coap.URIPath, s))
	}
	return out
}

// criHost is a CBOR address, and a port when it is not 0, as an authority.
func criHost(addr netip.Addr, port uint16) string {
	ip := hex.EncodeToString(addr.AsSlice())
	if port == 0 {
		return fmt.Sprintf("81%x%s", 0x40+addr.BitLen()/8, ip)
	}
	return fmt.Sprintf("82%x%s19%04x", 0x40+addr.BitLen()/8, ip, port)
}

// The three message flows of appendix A of the draft, over several hosts, with
// CoAP over TCP between client and proxy: a client that does not know that it
// speaks to a reverse-proxy learns it from a 4.00, asks the group, and then one of
// the servers that answered (GP-26, GP-53, GP-54, GP-55, GP-56).
func TestAppendixA(t *testing.T) {
	inLab(t, "2", func(t *testing.T, l *lab) {
		devices := l.devices(2, content)
		px6 := "[" + pxClients6.String() + "]"
		tcp := netip.AddrPortFrom(pxClients6, coapPort)
		base := labSettings()
		base.listen = "- coap+tcp://" + px6 + "\n- coap://" + px6
		start := func(t *testing.T, route, proxy string) (*tcpClient, *proxy) {
			s := base
			s.top, s.proxy = "routes:\n"+route, proxy
			p := l.startProxy(s)
			return connectTCP(t, l.cl(0), tcp), p
		}
		// hello is a request without Multicast-Timeout: the answer reveals what it
		// was sent to.
		hello := func(t *testing.T, c *tcpClient, options ...coap.Option) {
			t.Helper()
			before := len(devices[0].requests()) + len(devices[1].requests())
			m := c.ask(options...)
			require.Equal(t, coap.CodeOf(4, 0), m.Code)
			require.Equal(t, [][]byte{{}}, m.All(coap.MulticastTimeout))
			require.Equal(t, "Please use Multicast-Timeout", string(m.Payload))
			require.Equal(t, before, len(devices[0].requests())+len(devices[1].requests())) // GP-26
		}
		item1 := "8226" + criHost(pxClients6, 0) // coap+tcp://P_ADDR

		t.Run("A1", func(t *testing.T) {
			c, p := start(t, `- {name: group1, host: [group1.com], to: "coap://[ff05::fd]"}`, "")
			defer p.stop()
			to := coap.Opt(coap.URIHost, "group1.com")
			hello(t, c, to, path("r")[0])
			got := c.gather(2, timeout(60), to, path("r")[0])
			for i := 1; i <= 2; i++ { // cri'coap+tcp://P_ADDR', cri'//Si_ADDR'
				require.Equal(t, item1+"82f6"+criHost(sv6(i), 0), got[fmt.Sprintf("sv%d/r", i)])
			}
			require.False(t, devices[0].requestsTo("/r")[0].Has(coap.URIHost))
			require.False(t, devices[0].requestsTo("/r")[0].Has(coap.MulticastTimeout)) // GP-28
			for i := 1; i <= 2; i++ {
				for _, host := range []string{sv6(i).String(), "[" + sv6(i).String() + "]"} { // GP-56
					m := c.ask(coap.Opt(coap.URIHost, host), path("r1")[0])
					require.Equal(t, fmt.Sprintf("2.05 sv%d/r1", i), m.Code.String()+" "+string(m.Payload))
					require.False(t, m.Has(coap.ReplyFrom))
				}
			}
			m := c.ask(coap.Opt(coap.URIHost, sv6(1).String()), coap.Uint(coap.URIPort, 7000), path("r1")[0])
			require.Equal(t, coap.CodeOf(4, 4), m.Code) // nobody was announced there
		})
		t.Run("A2", func(t *testing.T) {
			c, p := start(t, `- {name: lamps, listen: ["coap+tcp://`+px6+`"], to: "coap://[ff05::fd]", servers: own-address}`,
				`server_addresses: ["`+px6+`:6000-6002"]`)
			defer p.stop()
			hello(t, c, path("r")[0])
			got := c.gather(2, timeout(60), path("r")[0])
			seen := make(map[string]bool)
			for i := 1; i <= 2; i++ {
				value := got[fmt.Sprintf("sv%d/r", i)]
				require.Contains(t, []string{"8226" + criHost(pxClients6, 6000), "8226" + criHost(pxClients6, 6001)}, value)
				require.False(t, seen[value])
				seen[value] = true
				own := uint16(6000)
				if strings.HasSuffix(value, "1771") {
					own = 6001
				}
				d := connectTCP(t, l.cl(0), netip.AddrPortFrom(pxClients6, own))
				m := d.ask(path("r")...)
				require.Equal(t, fmt.Sprintf("2.05 sv%d/r", i), m.Code.String()+" "+string(m.Payload))
			}
			// By UDP the same group gets announced by UDP, on the same addresses.
			u := l.client6(0)
			in := u.ask(&coap.Message{Type: coap.CON, Code: coap.GET, Options: path("r")})
			require.Equal(t, coap.CodeOf(4, 4), in.Code, "the route is the TCP listener's")
		})
		t.Run("B", func(t *testing.T) {
			l.px().run(t, "sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/forwarding")
			l.cl(0).run(t, "ip", "-6", "route", "replace", "fd00:5::/64", "via", pxClients6.String())
			l.sv(1).run(t, "ip", "-6", "route", "replace", "fd00:c::/64", "via", "fd00:5::2")
			c, p := start(t, `- {name: lamps, path: /lamps, to: "coap://[ff05::fd]/b", servers: direct}`, "")
			defer p.stop()
			hello(t, c, path("lamps", "x")...)
			got := c.gather(2, append([]coap.Option{timeout(60)}, path("lamps", "x")...)...)
			require.Equal(t, "8220"+criHost(sv6(1), 0), got["sv1/b/x"]) // cri'coap://S1_ADDR'
			require.Equal(t, "8220"+criHost(sv6(2), 0), got["sv2/b/x"])
			direct := newClient(t, l.cl(0), cl6(0), netip.AddrPortFrom(sv6(1), coapPort))
			in := direct.ask(&coap.Message{Type: coap.CON, Code: coap.GET, Options: path("r")})
			require.Equal(t, "sv1/r", string(in.Payload))
			m := c.ask(path("lamp")...) // no whole segment of the route
			require.Equal(t, coap.CodeOf(4, 4), m.Code)
		})
	})
}

// routed is a proxy on loopback with routes to a group of members.
func routed(t *testing.T, group netip.AddrPort, routes string, s settings) *proxy {
	t.Helper()
	s.top = "routes:\n" + strings.ReplaceAll(routes, "GROUP", group.String())
	return startProxy(t, group, s)
}

// Servers announced by path: the address stays with the proxy (GP-112), longer
// paths and other methods reach the server (GP-56), and so does what its answers
// call a location. Over UDP, with an address of the proxy behind a NAT.
func TestServersByPath(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, func(s *server, r *request) {
		if r.Code == coap.POST {
			s.answer(r, coap.Message{Code: coap.CodeOf(2, 1), Options: []coap.Option{coap.Opt(8, "new"), coap.Opt(8, "1")}})
			return
		}
		content(s, r)
	})
	p := routed(t, group, `- {name: all, path: /devices, to: "coap://GROUP", servers: by-path, announce: "198.51.100.9:5555"}`,
		settings{proxy: "servers_path: /s/x"})
	c := newClient(t, here, clientAddr, p.addr())
	responses := c.gatherN(&coap.Message{Type: coap.NON, Code: coap.GET, Options: append([]coap.Option{timeout(30)}, path("devices", "t")...)}, 2)
	prefix := "82208244c633640919" + "15b3" + "82f583617361786a"
	for _, in := range responses {
		value := hex.EncodeToString(in.All(coap.ReplyFrom)[0])
		require.True(t, strings.HasPrefix(value, prefix), "%s", value)
		require.NotContains(t, value, "7f0001") // no address of a member
		id, err := hex.DecodeString(strings.TrimPrefix(value, prefix))
		require.NoError(t, err)
		name, _, _ := strings.Cut(string(in.Payload), "/")
		got := c.ask(&coap.Message{Type: coap.CON, Code: coap.GET, Options: path("s", "x", string(id), "deep", "er")})
		require.Equal(t, name+"/deep/er", string(got.Payload))
		got = c.ask(&coap.Message{Type: coap.CON, Code: coap.POST, Options: path("s", "x", string(id))})
		require.Equal(t, coap.CodeOf(2, 1), got.Code)
		require.Equal(t, [][]byte{[]byte("s"), []byte("x"), id, []byte("new"), []byte("1")}, got.All(8))
	}
	require.Len(t, servers[0].requestsTo("/t"), 1)
	got := c.ask(&coap.Message{Type: coap.CON, Code: coap.GET, Options: path("s", "x", "0123456789")})
	require.Equal(t, coap.CodeOf(4, 4), got.Code)
}

// What was announced is good again after a restart, orderly or not, by path and at
// addresses of the proxy's (GP-56, GP-102).
func TestAnnouncedServersOutliveRestarts(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, content)
	port, pool := newSocketPorts(t), newSocketPorts(t)
	file := filepath.Join(t.TempDir(), "targets.json")
	p := routed(t, group, `- {name: paths, path: /a, to: "coap://GROUP", servers: by-path}
- {name: own, path: /b, to: "coap://GROUP", servers: own-address}`, settings{listen: fmt.Sprintf("- coap://127.0.0.1:%d", port),
		proxy: fmt.Sprintf("server_addresses: [\"127.0.0.1:%d-%d\"]\nserver_targets: %s", pool, pool+1, file)})
	c := newClient(t, here, clientAddr, p.addr())
	gather := func(at string) map[string][]byte {
		out := make(map[string][]byte)
		for _, in := range c.gatherN(&coap.Message{Type: coap.NON, Code: coap.GET, Options: append([]coap.Option{timeout(1)}, path(at, "t")...)}, len(servers)) {
			name, _, _ := strings.Cut(string(in.Payload), "/")
			out[name] = in.All(coap.ReplyFrom)[0]
		}
		require.Len(t, out, len(servers))
		return out
	}
	byPath, own := gather("a"), gather("b")
	followUp := func() {
		t.Helper()
		for _, s := range servers {
			id := byPath[s.name][len(byPath[s.name])-10:]
			got := c.ask(&coap.Message{Type: coap.CON, Code: coap.GET, Options: path("servers", string(id), "x")})
			require.Equal(t, s.name+"/x", string(got.Payload), "%v", got.Message)
			at, err := coap.ReplyFromServer(own[s.name])
			require.NoError(t, err)
			got = newClient(t, here, clientAddr, at).ask(&coap.Message{Type: coap.CON, Code: coap.GET, Options: path("x")})
			require.Equal(t, s.name+"/x", string(got.Payload), "%v", got.Message)
		}
	}
	followUp()
	var kept []struct{ ID string }
	eventually(t, func() bool {
		data, err := os.ReadFile(file)
		return err == nil && json.Unmarshal(data, &kept) == nil && len(kept) == 2 && strings.Count(string(data), `"at"`) == 2 && kept[0].ID != "" && kept[1].ID != ""
	}, "the file")
	info, err := os.Stat(file)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	for _, orderly := range []bool{false, true} {
		if orderly {
			p.stop()
		} else {
			p.kill()
		}
		p = serveFile(t, here, p.config)
		require.EqualValues(t, 2, p.entries("announced servers read")[0]["servers"])
		followUp()
	}
	require.NoError(t, os.WriteFile(file, []byte("{"), 0o600))
	p.kill()
	require.NoError(t, os.WriteFile(file, []byte("{"), 0o600))
	p = serveFile(t, here, p.config)
	p.logged("announced servers of before are forgotten", 1)
	damaged, err := os.ReadFile(file + ".damaged")
	require.NoError(t, err)
	require.Equal(t, "{", string(damaged))
	id := byPath[servers[0].name][len(byPath[servers[0].name])-10:]
	got := c.ask(&coap.Message{Type: coap.CON, Code: coap.GET, Options: path("servers", string(id), "x")})
	require.Equal(t, coap.CodeOf(4, 4), got.Code)
	require.Equal(t, "this server is not known here any more; ask its group again", string(got.Payload))
}

// A server that answers from another port is told apart by Uri-Port (GP-9).
func TestServersByHostAndPort(t *testing.T) {
	t.Parallel()
	_, group := members(t, 2, content)
	p := routed(t, group, `- {name: all, host: [nodes.example], to: "coap://GROUP/base"}`, settings{})
	c := newClient(t, here, clientAddr, p.addr())
	responses := c.gatherN(&coap.Message{Type: coap.NON, Code: coap.GET,
		Options: append([]coap.Option{timeout(30), coap.Opt(coap.URIHost, "nodes.example")}, path("t")...)}, 2)
	for _, in := range responses {
		name, _, _ := strings.Cut(string(in.Payload), "/")
		require.Equal(t, name+"/base/t", string(in.Payload))
		addr := memberAddr(int(name[len(name)-1] - '0'))
		require.Equal(t, fmt.Sprintf("82208244%x19%04x82f68244%x19%04x", p.addr().Addr().AsSlice(), p.addr().Port(), addr.AsSlice(), group.Port()),
			hex.EncodeToString(in.All(coap.ReplyFrom)[0]))
		got := c.ask(&coap.Message{Type: coap.CON, Code: coap.GET, Options: append([]coap.Option{
			coap.Opt(coap.URIHost, addr.String()), coap.Uint(coap.URIPort, uint32(group.Port()))}, path("u")...)})
		require.Equal(t, name+"/u", string(got.Payload))
	}
}

// Routes to single servers: by host, by path and by listener, the first that
// matches; the client's list of targets holds (FP-7), and so do the rules for
// options of a proxy (FP-20).
func TestUnicastRoutes(t *testing.T) {
	t.Parallel()
	one, two, three := single(t, content), serve(t, "two", place{host: here, addrs: []netip.Addr{netip.MustParseAddr("127.0.2.2")}}, content),
		serve(t, "three", place{host: here, addrs: []netip.Addr{netip.MustParseAddr("127.0.2.3")}}, content)
	p := startProxy(t, group0, settings{client: fmt.Sprintf("forward: [\"coap://%v\", \"coap://%v\"]", one.addr(), two.addr()),
		listen: "- coap://127.0.0.1:0\n- coap+tcp://127.0.0.1:0",
		top: fmt.Sprintf(`routes:
- {name: a, host: [one.example, 192.0.2.1], to: "coap://%v/in/side"}
- {name: b, path: /x/y, to: "coap://%v"}
- {name: c, path: /three, to: "coap://%v"}
- {name: d, listen: ["coap+tcp://127.0.0.1:0"], to: "coap://%v"}`, one.addr(), two.addr(), three.addr(), two.addr())})
	c := newClient(t, here, clientAddr, p.addr())
	for _, test := range []struct {
		name    string
		options []coap.Option
		want    string
	}{
		{"host", append([]coap.Option{coap.Opt(coap.URIHost, "ONE.example")}, path("x", "y")...), "2.05 server/in/side/x/y"},
		{"address", []coap.Option{coap.Opt(coap.URIHost, "192.0.2.1")}, "2.05 server/in/side"},
		{"path", path("x", "y", "z"), "2.05 two/z"},
		{"path, nothing left", path("x", "y"), "2.05 two"},
		{"other path", path("x", "z"), "4.04"},
		{"target not allowed", path("three"), "4.01"},
		{"another listener's", nil, "4.04"},
		{"unsafe option", append(path("x", "y"), coap.Opt(2050, "")), "4.02"}, // FP-20
		{"dots", path("x", "y", ".."), "4.02"},                                // FP-28
	} {
		in := c.ask(&coap.Message{Type: coap.CON, Code: coap.GET, Options: test.options})
		got := in.Code.String()
		if in.Code>>5 == 2 {
			got += " " + string(in.Payload)
		}
		require.Equal(t, test.want, got, test.name)
	}
	require.Empty(t, three.requests())
	require.Equal(t, "two/any", string(connectTCP(t, here, p.addrs[1]).ask(path("any")...).Payload))
}

// What the proxy offers itself: its routes, the HTTP side, its other transports,
// each to those who may use it (FP-88, HC-14); filtered, and validated by ETag.
func TestWellKnownCore(t *testing.T) {
	t.Parallel()
	_, group := members(t, 1, content)
	p := startProxy(t, group, settings{listen: "- coap://127.0.0.1:0\n- coap+tcp://127.0.0.1:0\n- http://127.0.0.1:0",
		clients: "  - {name: all, networks: [127.0.0.1], groups: \"*\"}\n  - {name: none, networks: [127.0.0.2]}\n",
		top: fmt.Sprintf(`routes:
- {name: every-lamp, path: /lights/all, to: "coap://%v"}
- {name: named, host: [lamps.example, "2001:db8::7"], path: "/x y", to: "coap://%v"}
- {name: server, path: /server, to: "coap://127.0.0.9"}`, group, group)})
	core := func(from string, more ...coap.Option) incoming {
		c := newClient(t, here, netip.MustParseAddr(from), p.addr())
		return c.ask(&coap.Message{Type: coap.CON, Code: coap.GET, Options: append(path(".well-known", "core"), more...)})
	}
	transports := fmt.Sprintf(`<coap+tcp://%v>;rel="has-proxy";anchor="/",</hc/>;rt="core.hc";anchor="http://%v"`, p.addrs[1], p.addrs[2])
	in := core("127.0.0.1")
	require.Equal(t, fmt.Sprintf(`</lights/all>;title="every-lamp",<coap://lamps.example:%d/x%%20y>;title="named",<coap://[2001:db8::7]:%d/x%%20y>;title="named",%s`,
		p.addr().Port(), p.addr().Port(), transports), string(in.Payload))
	require.Equal(t, transports, string(core("127.0.0.2").Payload))
	require.Empty(t, core("127.0.0.3").Payload)
	require.Equal(t, fmt.Sprintf(`</hc/>;rt="core.hc";anchor="http://%v"`, p.addrs[2]), string(core("127.0.0.1", coap.Opt(coap.URIQuery, "rt=core.h*")).Payload))
	again := core("127.0.0.1", coap.Opt(4, in.All(4)[0]))
	require.Equal(t, coap.CodeOf(2, 3), again.Code)
	block := core("127.0.0.1", coap.Uint(23, 1<<4|2)) // the second block of 64 bytes
	require.Equal(t, in.Payload[64:128], block.Payload)
	require.Equal(t, in.All(4), block.All(4))
}

// A reverse-proxy in front of another proxy: what it announces leads to the server
// through that one, in all three forms (GP-101, GP-102).
func TestReverseInFrontOfAChain(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, content)
	pool := newSocketPort(t)
	inner := startProxy(t, group, settings{client: "forward: []"})
	outer := func(servers string) *proxy {
		s := settings{client: "forward: []", groups: fmt.Sprintf("- {name: devices, uri: \"coap://%v\"}", group),
			proxy: fmt.Sprintf("server_addresses: [\"127.0.0.1:%s\"]", pool)}
		s.top = fmt.Sprintf("next_hop:\n- {name: next, uri: \"coap://%v\", targets: [\"*\"]}\nroutes:\n- {name: r, path: /r, to: \"coap://%v\", servers: %s}",
			inner.addr(), group, servers)
		p := startProxy(t, group, s)
		p.waitFor("next hop is up")
		return p
	}
	for _, kind := range []string{"by-host", "by-path", "own-address"} {
		p := outer(kind)
		c := newClient(t, here, clientAddr, p.addr())
		responses := c.gatherN(&coap.Message{Type: coap.NON, Code: coap.GET, Options: append([]coap.Option{timeout(4)}, path("r", kind)...)}, 2)
		followed := 0
		for _, in := range responses {
			name, _, _ := strings.Cut(string(in.Payload), "/")
			value := in.All(coap.ReplyFrom)[0]
			v, err := wire.ParseReplyFrom(value)
			require.NoError(t, err)
			options := path("follow", kind)
			if v.Ref != nil {
				options = append(path(v.Ref.Path...), options...)
				if v.Ref.Addr.IsValid() {
					options = append([]coap.Option{coap.Opt(coap.URIHost, v.Ref.Addr.String()), coap.Uint(coap.URIPort, uint32(v.Ref.Port))}, options...)
				}
			}
			d := newClient(t, here, clientAddr, netip.AddrPortFrom(v.Server.Addr, v.Server.Port))
			got := d.ask(&coap.Message{Type: coap.CON, Code: coap.GET, Options: options})
			require.Equal(t, name+"/follow/"+kind, string(got.Payload))
			followed++
		}
		require.Equal(t, 2, followed)
		for _, s := range servers {
			for _, in := range s.requestsTo("/follow/" + kind) {
				require.Equal(t, uint64(15), lastOption(t, in, coap.HopLimit).Uint(), "by way of both proxies")
			}
		}
		p.stop()
	}
}

func lastOption(t *testing.T, in incoming, number uint16) coap.Option {
	t.Helper()
	o, ok := in.Option(number)
	require.True(t, ok)
	return o
}
