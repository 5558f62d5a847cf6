package test

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// hopLink is a way between two proxies of a chain: a transport, and the credentials
// with which each end knows the other.
type hopLink struct {
	name, scheme string
	secret       string // psk, certificate or nothing
}

var links = []hopLink{
	{"coap", "coap", ""}, {"coaps by key", "coaps", "psk"}, {"coaps by certificate", "coaps", "certificate"},
	{"coap+tcp", "coap+tcp", ""}, {"coaps+tcp", "coaps+tcp", "certificate"}, {"coap+ws", "coap+ws", ""}, {"coaps+ws", "coaps+ws", "certificate"},
}

// linkKeys are the credentials of both ends of links.
type linkKeys struct {
	proxies, sites *certAuthority
	own, site      pair
	psk, hops      string // the files of either end
}

func newLinkKeys(t *testing.T) *linkKeys {
	t.Helper()
	k := &linkKeys{proxies: newCertAuthority(t, "proxies"), sites: newCertAuthority(t, "sites")}
	k.own, k.site = k.proxies.issue("proxy", forServer), k.sites.issue("site", withURI("urn:dev:site"))
	key := hex.EncodeToString([]byte(sharedKey))
	k.psk, k.hops = keyFile(t, "identity: site\nkey: %q\n", key), keyFile(t, "host: 127.0.0.1\nidentity: site\nkey: %q\n", key)
	return k
}

// behind are the settings of the proxy behind a link, which may be at an address.
func (k *linkKeys) behind(l hopLink, at string) settings {
	s := settings{listen: fmt.Sprintf("- %s://%s", l.scheme, at), proxy: "identifier: behind", cache: "enabled: false"}
	who := map[string]string{"": "networks: [127.0.0.0/8]", "psk": "psk: site", "certificate": "certificate: uri:urn:dev:site"}[l.secret]
	s.clients = fmt.Sprintf("- {name: site, %s, groups: \"*\", forward: [\"coap://127.0.2.0/24:*\"]}", who)
	if l.secret != "" {
		s.top = fmt.Sprintf("credentials: {psk: %s, certificate: %s, key: %s, client_authorities: %s}", k.psk, k.own.cert, k.own.key, k.sites.file)
	}
	return s
}

// before are the settings of the proxy before a link.
func (k *linkKeys) before(l hopLink, group netip.AddrPort, to netip.AddrPort, more string) settings {
	s := settings{client: `forward: ["coap://127.0.0.0/8:*"]`, groups: fmt.Sprintf("- {name: devices, uri: \"coap://%v\"}", group), cache: "enabled: false",
		proxy: "identifier: before", top: nextHop(l.uri(to), more)}
	switch l.secret {
	case "psk":
		s.top += fmt.Sprintf("\ncredentials: {servers: {authorities: %s, psk: %s}}", k.proxies.file, k.hops)
	case "certificate":
		s.top += fmt.Sprintf("\ncredentials: {servers: {authorities: %s, certificate: %s, key: %s}}", k.proxies.file, k.site.cert, k.site.key)
	}
	return s
}

func (l hopLink) uri(at netip.AddrPort) string { return l.scheme + "://" + at.String() }

// Every transport between two proxies: single servers, a group with its timeout,
// bodies in blocks, observation of both, Early Stop; and each proxy asks who the
// hop before it is (GP-90 to GP-94, GP-101, GP-103, GP-105).
func TestChainLinks(t *testing.T) {
	t.Parallel()
	k := newLinkKeys(t)
	body := pattern(3000)
	for _, l := range links {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			o := newObservable(60)
			handle := paths(map[string]handler{"body": blockwise(body, 4), "state": o.handle, "slow": after(time.Second, content)})
			servers, group := members(t, 3, handle)
			origin := single(t, handle)
			behind := startProxy(t, group, k.behind(l, "127.0.0.1:0"))
			socket, keys := controlSocket(t)
			s := k.before(l, group, behind.addr(), "")
			s.control = keys
			p := startProxy(t, group, s)
			p.waitFor("next hop is up")
			c := newClient(t, here, clientAddr, p.addr())

			in := c.ask(get(coap.CON, fmt.Sprintf("coap://%v/x", origin.addr())))
			require.Equal(t, "server/x", string(in.Payload), "%v", in.Message)
			put := get(coap.CON, fmt.Sprintf("coap://%v/body", origin.addr()))
			require.Equal(t, coap.CodeOf(2, 5), c.ask(put).Code)

			responses := c.gatherJust(get(coap.NON, groupURI(group, "/x"), timeout(5)), len(servers))
			got := payloads(t, responses)
			for _, m := range servers {
				require.Equal(t, []string{m.name + "/x"}, got[m.addr()]) // GP-101
			}
			var told entry
			eventually(t, func() bool {
				all := p.entries("next hop")
				told = all[len(all)-1]
				return told["asked"] == 5.0
			}, "the request to the next hop")
			require.LessOrEqual(t, told["told"], 4.0) // GP-94; less on a machine that is slow
			require.Len(t, payloads(t, c.gatherN(get(coap.NON, groupURI(group, "/body"), timeout(5)), len(servers))), len(servers))

			// GP-105
			first := c.ask(observe(coap.CON, fmt.Sprintf("coap://%v/state", origin.addr())))
			require.True(t, first.Has(coap.Observe), "%v", first.Message)
			o.set(origin, "one")
			require.Equal(t, "server one", string(c.expect().Payload))
			watch := newClient(t, here, clientAddr, p.addr())
			registered := watch.gatherN(observe(coap.NON, groupURI(group, "/state"), timeout(2)), len(servers))
			watch.nothing(2500 * time.Millisecond) // T' is over
			for i, m := range servers {
				o.set(m, fmt.Sprint("late ", i))
				in := watch.expect()
				require.Equal(t, fmt.Sprintf("%s late %d", m.name, i), string(in.Payload))
				require.Equal(t, m.addr(), serverOf(t, in))
			}
			watch.send(watch.fresh(&coap.Message{Type: coap.NON, Code: coap.GET, Token: registered[0].Token, Options: []coap.Option{timeout(0)}}))
			behind.waitFor("early stop") // GP-103
			for _, m := range servers {
				eventually(t, func() bool { return o.count(m) == 0 }, "%s is still observed", m.name)
			}

			in = c.ask(get(coap.CON, "coap://127.0.3.1/x"))
			require.Equal(t, coap.CodeOf(4, 1), in.Code, "by the one behind: %q", in.Payload) // GP-90
			eventually(t, func() bool { return slices.Contains(behind.refusals(), "denied") }, "in the log of the one behind")

			// GP-94: how far away the hop is, is known and shown.
			type shape struct {
				NextHops []struct {
					RoundTrip float64 `json:"round_trip_seconds"`
				} `json:"next_hops"`
			}
			hops := shown[shape](t, "status", "--socket", socket).NextHops
			require.Len(t, hops, 1)
			require.Positive(t, hops[0].RoundTrip)
			require.Less(t, hops[0].RoundTrip, patience.Seconds())
		})
	}
}

// A hop that dies without a goodbye and returns: errors at once, then everything as
// before, and observations go on. While it is away it is looked for ever less often.
func TestChainLinkDies(t *testing.T) {
	t.Parallel()
	k := newLinkKeys(t)
	for _, l := range links {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			o := newObservable(2)
			servers, group := members(t, 2, content)
			origin := single(t, paths(map[string]handler{"state": o.handle}))
			behind := startProxy(t, group, k.behind(l, "127.0.0.1:0"))
			at := behind.addr()
			p := startProxy(t, group, k.before(l, group, at, ", timeout: 2s, retry_max: 2s"))
			p.waitFor("next hop is up")
			c, watch := newClient(t, here, clientAddr, p.addr()), newClient(t, here, clientAddr, p.addr())
			require.Len(t, c.gatherN(get(coap.NON, groupURI(group, "/a"), timeout(5)), 2), 2)
			require.True(t, watch.ask(observe(coap.CON, fmt.Sprintf("coap://%v/state", origin.addr()))).Has(coap.Observe))

			behind.kill()
			sent := time.Now()
			in := c.gatherN(get(coap.NON, groupURI(group, "/b"), timeout(10)), 1)[0]
			require.Contains(t, []coap.Code{coap.CodeOf(5, 2), coap.CodeOf(5, 4)}, in.Code)
			require.Less(t, in.at.Sub(sent), 9*time.Second)
			require.Contains(t, string(in.Payload), "next proxy")
			p.waitFor("next hop is down")
			for _, m := range []*coap.Message{get(coap.CON, fmt.Sprintf("coap://%v/x", origin.addr())), get(coap.NON, groupURI(group, "/c"), timeout(10))} {
				sent = time.Now()
				in = c.ask(m)
				require.Contains(t, []coap.Code{coap.CodeOf(5, 2), coap.CodeOf(5, 4)}, in.Code)
				require.Less(t, in.at.Sub(sent), 2*time.Second, "at once")
			}
			n := p.counters()
			require.Positive(t, n["next_hop_downs_total{next}"])
			require.Zero(t, n["next_hop_up{next}"])
			require.GreaterOrEqual(t, n["next_hop_requests_refused_total{next}"], 2.0)

			startProxy(t, group, k.behind(l, at.String()))
			eventually(t, func() bool { return len(p.entries("next hop is up")) == 2 }, "the next hop")
			require.Len(t, c.gatherN(get(coap.NON, groupURI(group, "/d"), timeout(10)), 2), 2)
			require.Len(t, servers[0].requestsTo("/d"), 1)
			o.set(origin, "new")
			// The registration is repeated when the session is lost, or Max-Age over; who
			// waits for that too long is told, and registers again.
			for found := false; !found; {
				in := watch.next(3 * patience)
				require.NotNil(t, in, "the observation does not go on")
				if in.Code>>5 == 5 {
					watch.send(watch.fresh(observe(coap.NON, fmt.Sprintf("coap://%v/state", origin.addr()))))
				}
				found = string(in.Payload) == "server new"
			}
		})
	}
}

// Failover to a second hop over each transport, when the first dies without a
// goodbye: the client of a request that may be repeated sees nothing of it.
func TestChainLinkFailover(t *testing.T) {
	t.Parallel()
	k := newLinkKeys(t)
	for _, l := range links[1:] {
		t.Run(l.name, func(t *testing.T) {
			t.Parallel()
			servers, group := members(t, 2, content)
			origin := single(t, content)
			last := []*proxy{startProxy(t, group, k.behind(l, "127.0.0.1:0")), startProxy(t, group, k.behind(l, "127.0.0.1:0"))}
			p := startProxy(t, group, k.before(l, group, last[0].addr(), fmt.Sprintf(", timeout: 2s, backup: %q", l.uri(last[1].addr()))))
			eventually(t, func() bool { return len(p.entries("next hop is up")) == 2 }, "both next hops")
			c := newClient(t, here, clientAddr, p.addr())
			require.Len(t, c.gatherN(get(coap.NON, groupURI(group, "/a"), timeout(5)), 2), 2)
			require.Empty(t, last[1].entries("multicast"))
			last[0].kill()
			require.Len(t, c.gatherN(get(coap.NON, groupURI(group, "/b"), timeout(60)), 2), 2)
			last[1].logged("multicast", 1)
			require.Len(t, servers[0].requestsTo("/b"), 1)
			require.Equal(t, "server/c", string(c.ask(get(coap.CON, fmt.Sprintf("coap://%v/c", origin.addr()))).Payload))
			require.EqualValues(t, 1, p.counters()["next_hop_up{next}"])
			p.waitFor("next hop is down")
		})
	}
}

// A hop that does not accept us, or that we do not accept: the client gets a clear
// error, and the operator learns the cause.
func TestChainLinkCredentials(t *testing.T) {
	t.Parallel()
	k := newLinkKeys(t)
	other := newLinkKeys(t)
	wrongKey := keyFile(t, "host: 127.0.0.1\nidentity: site\nkey: %q\n", hex.EncodeToString([]byte("another one at 16")))
	stranger := keyFile(t, "host: 127.0.0.1\nidentity: stranger\nkey: %q\n", hex.EncodeToString([]byte(sharedKey)))
	nobody := k.sites.issue("nobody", withURI("urn:dev:nobody"))
	for _, l := range links {
		for name, credentials := range map[string]string{
			"wrong key":         fmt.Sprintf("{psk: %s}", wrongKey),
			"unknown identity":  fmt.Sprintf("{psk: %s}", stranger),
			"foreign authority": fmt.Sprintf("{authorities: %s, certificate: %s, key: %s}", other.proxies.file, k.site.cert, k.site.key),
		} {
			if l.secret == "" || strings.Contains(credentials, "psk") != (l.secret == "psk") {
				continue
			}
			t.Run(l.name+", "+name, func(t *testing.T) {
				t.Parallel()
				group := netip.AddrPortFrom(group4, 5999)
				behind := startProxy(t, group, k.behind(l, "127.0.0.1:0"))
				s := k.before(l, group, behind.addr(), ", timeout: 3s")
				s.top = nextHop(l.uri(behind.addr()), ", timeout: 3s") + "\ncredentials: {servers: " + credentials + "}"
				p := startProxy(t, group, s)
				p.waitFor("next hop is down")
				c := newClient(t, here, clientAddr, p.addr())
				refused := func(want coap.Code, text string) {
					for _, m := range []*coap.Message{get(coap.CON, "coap://127.0.2.1/x"), get(coap.CON, groupURI(group, "/c"), timeout(10))} {
						in := c.ask(m)
						require.Equal(t, want, in.Code, "%q", in.Payload)
						require.Equal(t, text, string(in.Payload))
					}
				}
				line := "next hop is down"
				if l.secret == "psk" { // two sides with different keys cannot read each other: that looks like silence at first
					refused(coap.CodeOf(5, 4), "the next proxy does not answer")
					line = "next hop is still down"
					until := time.Now().Add(2 * patience) // a handshake may take 20 s
					for len(p.entries(line)) == 0 && time.Now().Before(until) {
						time.Sleep(100 * time.Millisecond)
					}
				}
				refused(coap.CodeOf(5, 2), "the next proxy cannot be reached")
				e := p.entries(line)[0]
				require.Equal(t, "warn", e.text("level"))
				require.NotEmpty(t, e.text("cause"), "%v", e)
				if l.secret == "psk" {
					require.Contains(t, e.text("cause"), "the server has another key, or is silent")
				}
				require.Zero(t, p.counters()["next_hop_up{next}"])
				p.logged("next hop is down", 1)
			})
		}
		// The transport is fine, and the hop knows nobody of that name: each request is
		// answered, by a proxy that is up (GP-90).
		if l.secret != "certificate" {
			continue
		}
		t.Run(l.name+", unknown client", func(t *testing.T) {
			t.Parallel()
			group := netip.AddrPortFrom(group4, 5999)
			behind := startProxy(t, group, k.behind(l, "127.0.0.1:0"))
			s := k.before(l, group, behind.addr(), "")
			s.top = strings.Replace(strings.Replace(s.top, k.site.cert, nobody.cert, 1), k.site.key, nobody.key, 1)
			p := startProxy(t, group, s)
			p.waitFor("next hop is up")
			c := newClient(t, here, clientAddr, p.addr())
			for _, m := range []*coap.Message{get(coap.CON, "coap://127.0.2.1/x"), get(coap.CON, groupURI(group, "/c"), timeout(10))} {
				in := c.ask(m)
				require.Equal(t, coap.CodeOf(4, 1), in.Code, "%q", in.Payload)
			}
			eventually(t, func() bool { return slices.Contains(behind.refusals(), "denied") }, "the refusal")
		})
	}
}
