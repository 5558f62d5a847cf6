package test

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// Well-known groups (GC-1).
var (
	group4    = netip.MustParseAddr("224.0.1.187")
	linkLocal = netip.MustParseAddr("ff02::fd")
	realm     = netip.MustParseAddr("ff03::fd")
	site      = netip.MustParseAddr("ff05::fd")
)

const coapPort = 5683

// devices starts a server in each of the lab's first n server hosts: a member of
// all well-known groups, with its three addresses.
func (l *lab) devices(n int, handle handler) []*server {
	var out []*server
	for i := 1; i <= n; i++ {
		out = append(out, serve(l.t, fmt.Sprintf("sv%d", i), place{host: l.sv(i), iface: "eth0", port: coapPort,
			addrs: []netip.Addr{sv6(i), svLL(i), sv4(i)}, groups: []netip.Addr{group4, linkLocal, realm, site}}, handle))
	}
	return out
}

// labGroups are configuration entries for the well-known groups.
const labGroups = `
- {name: v4, uri: "coap://224.0.1.187", interfaces: [eth1], leisure: 1s, nstart: 16, probing_rate: 0}
- {name: link, uri: "coap://[ff02::fd]", interfaces: [eth1], leisure: 1s, nstart: 16, probing_rate: 0}
- {name: realm, uri: "coap://[ff03::fd]", interfaces: [eth1], leisure: 1s, nstart: 16, probing_rate: 0}
- {name: site, uri: "coap://[ff05::fd]", interfaces: [eth1], leisure: 1s, nstart: 16, probing_rate: 0}
`

// labSettings are those of a proxy between the lab's two segments.
func labSettings() settings {
	return settings{
		listen: "- coap://[fd00:c::1]\n- coap://10.77.0.1\n- coap://[fe80::1%eth0]",
		clients: `
- name: segment
  networks: ["fd00:c::/64", "10.77.0.0/16", "fe80::/64"]
  groups: "*"
`,
		groups: labGroups,
	}
}

// startProxy starts a proxy in the lab's proxy host.
func (l *lab) startProxy(s settings) *proxy {
	return startProxyIn(l.t, l.px(), s.yaml(netip.AddrPort{}))
}

// client6, client4 and clientLL are clients in the i-th client host.
func (l *lab) client6(i int) *client {
	return newClient(l.t, l.cl(i), cl6(i), netip.AddrPortFrom(pxClients6, coapPort))
}

func (l *lab) client4(i int) *client {
	return newClient(l.t, l.cl(i), cl4(i), netip.AddrPortFrom(pxClients4, coapPort))
}

func (l *lab) clientLL(i int) *client {
	zone := strconv.Itoa(l.cl(i).index(l.t, "eth0"))
	return newClient(l.t, l.cl(i), clLL(i).WithZone(zone), netip.AddrPortFrom(pxLL.WithZone(zone), coapPort))
}

// Every family and scope, and the follow-ups to what Reply-From says.
func TestHosts(t *testing.T) {
	inLab(t, "3", func(t *testing.T, l *lab) {
		devices := l.devices(3, content)
		p := l.startProxy(labSettings())
		warned := p.logged("clients are identified by their source address alone; anybody who can send from these networks may use the proxy", 1) // GP-24
		require.Equal(t, "warn", warned[0].text("level"))
		eth1 := strconv.Itoa(l.px().index(t, "eth1"))
		tests := []struct {
			group  netip.Addr
			client *client
			server func(i int) netip.Addr
			hops   int
			uri    string
		}{
			{group4, l.client4(0), sv4, 1, "coap://224.0.1.187/v4"},
			{linkLocal, l.client6(0), func(i int) netip.Addr { return svLL(i).WithZone(eth1) }, 1, "coap://[ff02::fd%25eth1]/link"},
			{realm, l.clientLL(0), sv6, 16, "coap://[ff03::fd]/realm"},
			{site, l.client6(0), sv6, 16, "coap://[ff05::fd]:5683/site"},
			{site, l.client4(0), sv6, 16, "coap://[FF05:0::fd]/site4"}, // GC-2: the families of the legs differ
		}
		for _, tt := range tests {
			t.Run(tt.uri, func(t *testing.T) {
				responses := tt.client.gatherN(get(coap.NON, tt.uri, timeout(60)), len(devices))
				var got []netip.AddrPort
				for _, in := range responses {
					got = append(got, serverOf(t, in))
				}
				slices.SortFunc(got, netip.AddrPort.Compare)
				for i := range devices {
					require.Equal(t, netip.AddrPortFrom(tt.server(i+1), coapPort), got[i]) // GP-52, GP-57
				}
				path := tt.uri[strings.LastIndex(tt.uri, "/"):]
				for _, d := range devices {
					r := d.requestsTo(path)
					require.Len(t, r, 1)
					require.Equal(t, tt.group, r[0].to)
					require.Equal(t, tt.hops, r[0].hops) // GC-6
				}

				// GP-117: the Reply-From's CRI in Proxy-Cri, with a path.
				value := slices.Clone(responses[0].All(coap.ReplyFrom)[0])
				value[0]++
				follow := tt.client.ask(&coap.Message{Type: coap.CON, Code: coap.GET,
					Options: []coap.Option{coap.Opt(coap.ProxyCRI, append(value, 0x81, 0x64, 'm', 'o', 'r', 'e'))}})
				require.Equal(t, coap.CodeOf(2, 5), follow.Code, "%s %q", hex.EncodeToString(value), follow.Payload)
				require.Equal(t, strings.TrimSuffix(string(responses[0].Payload), path)+"/more", string(follow.Payload))
				require.False(t, follow.Has(coap.ReplyFrom))
			})
		}

		// GP-57: without a zone, the interface on which the server was last heard.
		c := l.client6(0)
		in := c.ask(get(coap.CON, "coap://[fe80::5:2]/again"))
		require.Equal(t, "sv2/again", string(in.Payload))
		// FP-11: what was not heard stays out of bounds.
		for _, uri := range []string{"coap://[fe80::5:9%25eth1]/x", "coap://[fe80::5:2%25eth0]/x", "coap://[fd00:5::9]/x", "coap://[fd00:5::5:2]:1/x"} {
			require.Equal(t, coap.CodeOf(4, 1), c.ask(get(coap.CON, uri)).Code, uri)
		}
		// FP-8: the proxy's own addresses.
		require.Equal(t, coap.CodeOf(4, 4), c.ask(get(coap.CON, "coap://[fd00:c::1]/x")).Code)

		// aiocoap writes IPv6 addresses into Uri-Host without brackets, zone and
		// all. Multicast-Timeout 2, Uri-Host, Uri-Port, Uri-Path r, Proxy-Scheme.
		c.sendHex("42011002a1b2" + "2102" + "1d00" + hexOf("ff02::fd%eth1") + "421633" + "4172" + "d40f" + hexOf("coap"))
		require.Equal(t, coap.Message{Type: coap.ACK, ID: 0x1002, Token: []byte{}}, *c.expect().Message)
		for range devices {
			in := c.expect()
			require.Equal(t, coap.CON, in.Type)
			require.True(t, serverOf(t, in).Addr().IsLinkLocalUnicast())
		}
		require.False(t, devices[0].requestsTo("/r")[0].Has(coap.URIHost)) // GC-72
	})
}

// GP-57: the zone in Reply-From can be left out.
func TestNoZone(t *testing.T) {
	inLab(t, "1", func(t *testing.T, l *lab) {
		l.devices(1, content)
		s := labSettings()
		s.listen, s.proxy = "- coap://[fd00:c::1]", "zone_in_reply_from: false"
		l.startProxy(s)
		c := l.client6(0)
		in := c.gatherN(get(coap.NON, "coap://[ff02::fd]/x", timeout(60)), 1)[0]
		require.Equal(t, netip.AddrPortFrom(svLL(1), coapPort), serverOf(t, in))
		require.Equal(t, "sv1/y", string(c.ask(get(coap.CON, "coap://[fe80::5:1]/y")).Payload))
	})
}

// GC-7, GC-8: the interfaces of a group are those of its entry, and a zone in
// the URI picks one of them.
func TestInterfaces(t *testing.T) {
	inLab(t, "2 --clients 2", func(t *testing.T, l *lab) {
		devices := l.devices(2, content)
		devices = append(devices, serve(t, "cl1", place{host: l.cl(1), iface: "eth0", port: coapPort,
			addrs: []netip.Addr{cl6(1), clLL(1), cl4(1)}, groups: []netip.Addr{group4, linkLocal, site}}, content))
		s := labSettings()
		s.groups = strings.ReplaceAll(labGroups, "[eth1]", "[eth0, eth1]")
		l.startProxy(s)
		c := l.client6(0)
		for _, tt := range []struct {
			uri     string
			answers []string
		}{
			{"coap://[ff05::fd]/a", []string{"cl1", "sv1", "sv2"}},
			{"coap://224.0.1.187/b", []string{"cl1", "sv1", "sv2"}},
			{"coap://[ff02::fd]/c", []string{"cl1", "sv1", "sv2"}},
			{"coap://[ff02::fd%25eth1]/d", []string{"sv1", "sv2"}},
			{"coap://[ff02::fd%25eth0]/e", []string{"cl1"}},
			{"coap://[ff05::fd%25eth0]/f", []string{"cl1"}},
		} {
			responses := c.gatherJust(get(coap.NON, tt.uri, timeout(60)), len(tt.answers))
			path := tt.uri[strings.LastIndex(tt.uri, "/"):]
			var got []string
			for _, in := range responses {
				got = append(got, strings.TrimSuffix(string(in.Payload), path))
			}
			slices.Sort(got)
			require.Equal(t, tt.answers, got, tt.uri)
			var tokens [][]byte
			for _, d := range devices {
				for _, r := range d.requestsTo(path) {
					tokens = append(tokens, r.Token)
				}
			}
			require.Len(t, tokens, len(tt.answers))
			for _, token := range tokens {
				require.Equal(t, tokens[0], token) // GC-8
			}
		}
		require.Equal(t, coap.CodeOf(5, 2), c.ask(get(coap.CON, "coap://[ff02::fd%25lo]/x", timeout(1))).Code)
	})
}

// A wildcard listener answers from the address it was asked on, whatever the
// kernel would choose.
func TestWildcardListener(t *testing.T) {
	inLab(t, "1", func(t *testing.T, l *lab) {
		l.devices(1, after(700*time.Millisecond, content))
		px := l.px()
		px.run(t, "ip", "addr", "add", "fd00:c::99/64", "dev", "eth0", "nodad")
		px.run(t, "ip", "addr", "add", "10.77.0.99/16", "dev", "eth0")
		px.run(t, "ip", "addr", "add", "fe80::99/64", "dev", "eth0", "nodad")
		s := labSettings()
		s.listen, s.limits = "- coap://0.0.0.0\n- coap://[::]", "nstart: 16"
		p := l.startProxy(s)
		p.logged("listening on every interface", 2)
		for _, addr := range []string{"fd00:c::1", "fd00:c::99", "10.77.0.1", "10.77.0.99", "fe80::1", "fe80::99"} {
			t.Run(addr, func(t *testing.T) {
				t.Parallel()
				asked := netip.MustParseAddr(addr)
				c := l.client6(0)
				switch {
				case asked.Is4():
					c = l.client4(0)
				case asked.IsLinkLocalUnicast():
					c = l.clientLL(0)
					asked = asked.WithZone(c.proxy.Addr().Zone())
				}
				c.proxy = netip.AddrPortFrom(asked, coapPort)
				uri := "coap://224.0.1.187/x"
				for _, in := range []incoming{
					c.ask(get(coap.CON, "coap://[fd00:5::77]/x")),    // piggybacked
					c.gatherN(get(coap.NON, uri, timeout(60)), 1)[0], // NON response
					c.gatherN(get(coap.CON, uri, timeout(60)), 1)[0], // separate CON response
					c.ask(get(coap.CON, "coap://10.78.1.1/y")),       // after an empty ACK
				} {
					require.Equal(t, c.proxy, in.from)
				}
				// FP-8: every address of the host is the proxy's own.
				require.Equal(t, coap.CodeOf(4, 4), c.ask(get(coap.CON, "coap://[fd00:5::2]/x")).Code)
			})
		}
	})
}

// 64 servers that answer at once, and all of them are heard.
func TestManyServers(t *testing.T) {
	inLab(t, "64", func(t *testing.T, l *lab) {
		devices := l.devices(64, content)
		l.startProxy(labSettings())
		for i, m := range []*coap.Message{
			get(coap.NON, "coap://[ff05::fd]/v6", timeout(60)),
			get(coap.NON, "coap://224.0.1.187/v4", timeout(60)),
			get(coap.CON, "coap://[ff02::fd]/con", timeout(60)),
		} {
			got := payloads(t, l.client6(0).gatherN(m, len(devices)))
			require.Len(t, got, len(devices), "request %d", i)
		}
		for _, d := range devices {
			require.Len(t, d.requests(), 3)
		}
	})
}

// Loss, delay and duplication between the proxy and its servers: no response
// twice, most of them once, and confirmable requests arrive.
func TestImpairedLinks(t *testing.T) {
	inLab(t, "64 --loss 6 --delay 20 --jitter 10 --dup 5", func(t *testing.T, l *lab) {
		devices := l.devices(64, func(s *server, r *request) {
			time.Sleep(time.Duration(rand.IntN(500)) * time.Millisecond)
			content(s, r)
		})
		l.startProxy(labSettings())
		c := l.client6(0)
		responses := c.gather(get(coap.NON, "coap://[ff05::fd]/x", timeout(4)), 4200*time.Millisecond)
		got := payloads(t, responses)
		// 0.94² of 64 are 56; below 42 is beyond bad luck.
		require.GreaterOrEqual(t, len(got), 42, "servers heard")
		twice := 0
		for _, d := range devices {
			twice += max(0, len(d.requestsTo("/x"))-1)
		}
		// A server here answers a request that the network doubled twice, as two
		// messages; a message that is doubled is relayed once (GC-16, GP-58).
		require.LessOrEqual(t, len(responses), len(got)+twice)

		type outcome struct {
			server netip.AddrPort
			in     incoming
		}
		outcomes := make(chan outcome)
		n := 0
		for server := range got {
			c := l.client6(0)
			go func() {
				m := c.fresh(get(coap.NON, "coap://"+server.String()+"/y"))
				c.send(m)
				if in := c.next(3 * patience); in != nil {
					outcomes <- outcome{server, *in}
					return
				}
				outcomes <- outcome{server: server}
			}()
			if n++; n == 16 {
				break
			}
		}
		lost := 0 // five transmissions in a row: that is one of 50,000 for each server
		for range n {
			if o := <-outcomes; o.in.Message == nil || o.in.Code != coap.CodeOf(2, 5) {
				t.Logf("%v: %v", o.server, o.in.Message)
				lost++
			}
		}
		require.LessOrEqual(t, lost, 1)
	})
}

// Servers that are dead in several ways do not hold up the others.
func TestDeadServers(t *testing.T) {
	inLab(t, "4", func(t *testing.T, l *lab) {
		l.devices(1, content)
		for i, handle := range []handler{silent, content, content} {
			serve(t, fmt.Sprintf("sv%d", i+2), place{host: l.sv(i + 2), iface: "eth0", port: coapPort,
				addrs: []netip.Addr{sv6(i + 2), svLL(i + 2), sv4(i + 2)}, groups: []netip.Addr{group4, site}}, handle)
		}
		s := labSettings()
		s.clients = strings.Replace(s.clients, "groups:", "forward: [\"coap://[fd00:5::]/64:*\"]\n  groups:", 1)
		s.limits = "response_timeout_con: 2s"
		l.startProxy(s)
		c := l.client6(0)
		require.Len(t, payloads(t, c.gatherJust(get(coap.NON, "coap://[ff05::fd]/before", timeout(60)), 3)), 3)
		l.sv(3).run(t, "nft", "add table inet t; add chain inet t i { type filter hook input priority 0; }; add rule inet t i udp dport 5683 drop")
		l.sv(4).run(t, "ip", "link", "set", "eth0", "down")
		got := payloads(t, c.gatherJust(get(coap.NON, "coap://[ff05::fd]/x", timeout(60)), 1))
		require.Equal(t, map[netip.AddrPort][]string{netip.AddrPortFrom(sv6(1), coapPort): {"sv1/x"}}, got)

		var clients []*client
		for i := 2; i <= 4; i++ { // at the same time
			c := l.client6(0)
			c.send(c.fresh(get(coap.NON, fmt.Sprintf("coap://[%v]/x", sv6(i)))))
			clients = append(clients, c)
		}
		require.Equal(t, "sv1/y", string(c.ask(get(coap.CON, fmt.Sprintf("coap://[%v]/y", sv6(1)))).Payload))
		for i, c := range clients {
			in := c.expect()
			require.Contains(t, []string{"5.04", "5.02"}, in.Code.String(), "sv%d", i+2) // FP-32, FP-34
		}
		require.Equal(t, coap.CodeOf(5, 2), c.ask(get(coap.CON, fmt.Sprintf("coap://[%v]:9/x", sv6(1)))).Code) // port closed
	})
}

// A client whose host falls silent in the middle of an exchange (no ICMP, no
// ACK): the exchange ends with its time, and the others do not notice.
func TestVanishedHost(t *testing.T) {
	inLab(t, "3 --clients 2", func(t *testing.T, l *lab) {
		l.devices(3, after(300*time.Millisecond, content))
		p := l.startProxy(settings{
			listen:  labSettings().listen[:len("- coap://[fd00:c::1]")],
			clients: labSettings().clients, groups: labGroups,
		})
		gone, stays := l.client6(0), l.client6(1)
		gone.send(gone.fresh(get(coap.CON, "coap://[ff05::fd]/gone", timeout(3))))
		require.Equal(t, coap.ACK, gone.expect().Type)
		l.cl(0).run(t, "nft", "add table inet t; add chain inet t i { type filter hook input priority 0; }; add rule inet t i udp sport 5683 drop")
		before := p.files()
		require.Len(t, stays.gatherN(get(coap.CON, "coap://[ff05::fd]/stays", timeout(3)), 3), 3)
		eventually(t, func() bool { return len(p.entries("group exchange ended")) == 2 }, "the end of both exchanges")
		require.Equal(t, before, p.files())
		p.stop()
		require.Zero(t, p.entries("stopped")[0]["exchanges_cut_off"])
	})
}

// Links that come and go under a running proxy: one that was down, and an
// interface that is another one of the same name.
func TestInterfaceComesAndGoes(t *testing.T) {
	inLab(t, "1", func(t *testing.T, l *lab) {
		px, sv := l.px(), l.sv(1)
		plug := func(own netip.Addr) {
			px.run(t, "ip", "link", "add", "hot0", "type", "veth", "peer", "name", "hot0", "netns", sv.namespace)
			for h, addr := range map[*host]string{px: "10.99.0.1/24", sv: own.String() + "/24"} {
				h.run(t, "ip", "link", "set", "hot0", "up")
				h.run(t, "ip", "addr", "add", addr, "dev", "hot0")
			}
			serve(t, "hot", place{host: sv, iface: "hot0", port: coapPort, addrs: []netip.Addr{own}, groups: []netip.Addr{group4}}, content)
		}
		plug(netip.MustParseAddr("10.99.0.2"))
		s := labSettings()
		s.groups = `- {name: v4, uri: "coap://224.0.1.187", interfaces: [hot0], leisure: 1s, nstart: 16, probing_rate: 0}`
		p := l.startProxy(s)
		c := l.client6(0)
		asked := 0
		answered := func() bool {
			asked++ // by a client of its own: what is late must not disturb
			return len(l.client6(0).gather(get(coap.NON, fmt.Sprintf("coap://224.0.1.187/%d", asked), timeout(1)), meanwhile)) == 1
		}
		require.True(t, answered())
		before := p.files()

		px.run(t, "ip", "link", "set", "hot0", "down")
		c.send(c.fresh(get(coap.NON, "coap://224.0.1.187/down", timeout(1))))
		if in := c.next(meanwhile); in != nil {
			require.Equal(t, coap.CodeOf(5, 2), in.Code) // FP-34
		}
		px.run(t, "ip", "link", "set", "hot0", "up")
		eventually(t, answered, "the group after the link came back")

		px.run(t, "ip", "link", "del", "hot0")
		c.send(c.fresh(get(coap.NON, "coap://224.0.1.187/gone", timeout(1))))
		if in := c.next(meanwhile); in != nil {
			require.Equal(t, coap.CodeOf(5, 2), in.Code)
		}
		plug(netip.MustParseAddr("10.99.0.3"))
		eventually(t, answered, "the group on the new interface")
		eventually(t, func() bool { return p.files() == before }, "%d files open, %d before", p.files(), before)
	})
}

// The same groups over HTTP: a client host asks with curl, IPv4 and IPv6, and each
// server is named by its Reply-From and a URI that can be asked in turn (HC-72,
// HC-85); link-local ones with their zone (GP-57).
func TestHTTPHosts(t *testing.T) {
	inLab(t, "3", func(t *testing.T, l *lab) {
		devices := l.devices(3, content)
		s := labSettings()
		s.listen += "\n- http://[fd00:c::1]:8080\n- http://10.77.0.1:8080"
		p := l.startProxy(s)
		for group, x := range map[string]struct {
			base   string
			server func(i int) netip.Addr
		}{
			"224.0.1.187":         {"http://10.77.0.1:8080/hc/", sv4},
			"%5Bff05::fd%5D":      {"http://[fd00:c::1]:8080/hc/", sv6},
			"[ff03::fd]":          {"http://10.77.0.1:8080/hc/", sv6},
			"%5Bff02::fd%25eth1]": {"http://[fd00:c::1]:8080/hc/", svLL},
		} {
			out := run(t, l.cl(0), "curl", "-sSg", "--max-time", "20", "-H", "Multicast-Timeout: 2", "-H", "Accept: application/json", x.base+"coap://"+group+"/x")
			require.Zero(t, out.code, out.stderr)
			var got []struct {
				Server string
				Status int
			}
			require.NoError(t, json.Unmarshal([]byte(out.stdout), &got), out.stdout)
			require.Len(t, got, len(devices), "%s: %s", group, out.stdout)
			for i := range devices {
				want := wantURI(x.server(i + 1))
				require.True(t, slices.ContainsFunc(got, func(r struct {
					Server string
					Status int
				}) bool {
					return strings.HasPrefix(r.Server, want) && r.Status == 200
				}), "%s in %s", want, out.stdout)
			}
			follow := run(t, l.cl(0), "curl", "-sSg", "--max-time", "20", x.base+got[0].Server+"/y")
			require.Zero(t, follow.code, follow.stderr)
			require.Regexp(t, `^sv\d/y$`, follow.stdout)
		}
		require.Empty(t, p.refusals())
	})
}

// wantURI is how the URI of a server begins.
func wantURI(a netip.Addr) string {
	if a.Is4() {
		return "coap://" + a.String()
	}
	return "coap://[" + a.String()
}
