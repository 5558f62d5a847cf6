package test

import (
	"fmt"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// untilPayload takes messages until one has a payload, and reports whether that
// came in time.
func (c *client) untilPayload(want string, within time.Duration) bool {
	c.t.Helper()
	var instead []string
	for end := time.Now().Add(within); ; {
		in := c.next(time.Until(end))
		if in == nil {
			c.t.Logf("instead of %q came %q", want, instead)
			return false
		}
		if string(in.Payload) == want {
			return true
		}
		instead = append(instead, fmt.Sprint(in.at.Format("05.000 "), in.Message))
	}
}

// Observers over WebSocket and DTLS, of one server and of a group; a connection
// that ends ends its observation (FP-67), and its group's (GP-45).
func TestObserveOverWebSocket(t *testing.T) {
	t.Parallel()
	o := newObservable(60)
	servers, group := members(t, 2, o.handle)
	p := startProxy(t, group, settings{listen: "- coap+ws://127.0.0.1:0", client: `forward: ["coap://127.0.0.0/8:*"]`})
	c := newStreamClient(t, "coap+ws", p.addr(), nil, 1152)
	origin := single(t, o.handle)
	require.True(t, c.ask(observe(coap.NON, "coap://"+origin.addr().String()+"/x")).Has(coap.Observe))
	last := uint64(0)
	first := c.ask(observe(coap.NON, groupURI(group, "/x"), timeout(1)))
	for range servers[1:] {
		in, err := c.conn.take()
		require.NoError(t, err)
		require.Equal(t, first.Token, in.Token)
	}
	time.Sleep(1500 * time.Millisecond) // T' is over
	for _, s := range append(servers, origin) {
		o.set(s, "later")
		in, err := c.conn.take()
		require.NoError(t, err)
		require.Equal(t, s.name+" later", string(in.Payload))
		number, ok := in.Option(coap.Observe)
		require.True(t, ok)
		if s != origin {
			require.Greater(t, number.Uint(), last) // GP-67
			last = number.Uint()
		}
		require.Equal(t, s != origin, in.Has(coap.ReplyFrom))
	}
	c.conn.close()
	for _, s := range append(servers, origin) {
		eventually(t, func() bool { return o.count(s) == 0 }, "%s is still observed", s.name)
	}
}

// A client over DTLS observes a whole group, beyond T' (GP-64), with a number of its own
// in each notification (GP-67); the end of its session ends that (GP-45).
func TestObserveGroupOverDTLS(t *testing.T) {
	t.Parallel()
	o := newObservable(60)
	servers, group := members(t, 2, o.handle)
	keys := keyFile(t, "identity: gw\nkey: %q\n", fmt.Sprintf("%x", sharedKey))
	p := startProxy(t, group, settings{listen: "- coaps://127.0.0.1:0", clients: "- name: gateway\n  psk: gw\n  groups: \"*\"", top: "credentials: {psk: " + keys + "}"})
	c := newDatagramClient(t, here, p.addr(), pskOptions("gw")...)
	last := uint64(0)
	seen := make(map[string]bool)
	note := func(in *coap.Message) {
		t.Helper()
		require.NotNil(t, in)
		require.True(t, in.Has(coap.ReplyFrom))
		number, ok := in.Option(coap.Observe)
		require.True(t, ok)
		require.Greater(t, number.Uint(), last)
		last = number.Uint()
		seen[string(in.Payload)] = true
	}
	next := func() *coap.Message {
		for until := time.Now().Add(patience); time.Now().Before(until); {
			if in := c.take(until); in != nil && in.Code != coap.Empty {
				return in
			}
		}
		return nil
	}
	first := c.ask(observe(coap.CON, groupURI(group, "/x"), timeout(1)))
	note(first)
	note(next())
	require.Len(t, seen, 2)
	eventually(t, func() bool {
		return len(p.entries("group exchange ended")) > 0 || o.count(servers[0])+o.count(servers[1]) == 2
	}, "both are observed")
	time.Sleep(1500 * time.Millisecond) // T' is over
	for _, s := range servers {
		o.set(s, "later")
		in := next()
		note(in)
		require.Equal(t, first.Token, in.Token)
		require.Equal(t, s.name+" later", string(in.Payload))
	}
	require.NoError(t, c.conn.Close())
	for _, s := range servers {
		eventually(t, func() bool { return o.count(s) == 0 }, "%s is still observed", s.name)
	}
}

// Servers over WebSocket and the other connections are observed, and registered with
// again over a new connection when the old one breaks (FP-65); the last client gone ends
// it (FP-67).
func TestObservedOverConnections(t *testing.T) {
	t.Parallel()
	ca := newCertAuthority(t, "servers")
	cert := ca.issue("origin", forServer)
	p := startProxy(t, group0, settings{client: everyScheme, proxy: "require_secure_client: false", top: "credentials: {servers: {authorities: " + ca.file + "}}"})
	for _, scheme := range allSchemes[2:] {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			o := newStreamOrigin(t, scheme, cert, 1152)
			o.keep("x", []byte("first"))
			c := newClient(t, here, clientAddr, p.addr())
			in := c.ask(observe(coap.CON, o.uri("x")))
			require.True(t, in.Has(coap.Observe))
			require.Equal(t, "first", string(in.Payload))
			o.notify("x", []byte("second"))
			require.Equal(t, "second", string(c.expect().Payload))
			o.drop()
			eventually(t, func() bool { return o.observed("x") }, "it is registered with again")
			require.True(t, c.untilPayload("second", patience))
			o.notify("x", []byte("third"))
			require.True(t, c.untilPayload("third", patience))
			require.Equal(t, 2, o.connections())
			m := get(coap.NON, o.uri("x"), coap.Uint(coap.Observe, 1))
			m.Token = in.Token
			c.send(c.fresh(m))
			eventually(t, func() bool { return !o.observed("x") }, "it is still observed")
		})
	}
}

// FP-69: a server confirms by a 2.03 what a client says that it has; that is the short
// form for those that said so, and the whole for the others, with one registration.
func TestNotificationsInShortForm(t *testing.T) {
	t.Parallel()
	for _, cache := range []string{"enabled: false", "enabled: true"} {
		t.Run(cache, func(t *testing.T) {
			t.Parallel()
			var registration atomic.Pointer[request]
			origin := single(t, func(s *server, r *request) {
				registration.Store(r)
				s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Payload: []byte("one"),
					Options: []coap.Option{coap.Opt(coap.ETag, "e1"), coap.Uint(coap.Observe, 1), coap.Uint(coap.ContentFormat, 0)}})
			})
			s := forwarding
			s.cache = cache
			p := startProxy(t, group0, s)
			uri := "coap://" + origin.addr().String() + "/x"
			has, hasNot := newClient(t, here, clientAddr, p.addr()), newClient(t, here, clientAddr, p.addr())
			require.Equal(t, "one", string(has.ask(observe(coap.CON, uri, coap.Opt(coap.ETag, "e1"))).Payload))
			require.Equal(t, "one", string(hasNot.ask(observe(coap.CON, uri)).Payload))
			notify := func(number uint32, m coap.Message) {
				m.Type, m.ID = coap.CON, origin.nextID()
				m.Options = append(m.Options, coap.Uint(coap.Observe, number))
				origin.send(registration.Load(), m)
			}
			expect := func(c *client, code coap.Code, payload, etag string) {
				t.Helper()
				in := c.expect()
				require.Equal(t, code, in.Code)
				require.Equal(t, payload, string(in.Payload))
				require.Equal(t, [][]byte{[]byte(etag)}, in.All(coap.ETag))
				require.True(t, in.Has(coap.Observe))
			}
			notify(2, coap.Message{Code: coap.CodeOf(2, 5), Payload: []byte("two"), Options: []coap.Option{coap.Opt(coap.ETag, "e2"), coap.Uint(coap.ContentFormat, 0)}})
			expect(has, coap.CodeOf(2, 5), "two", "e2")
			expect(hasNot, coap.CodeOf(2, 5), "two", "e2")
			notify(3, coap.Message{Code: coap.CodeOf(2, 5), Payload: []byte("one"), Options: []coap.Option{coap.Opt(coap.ETag, "e1"), coap.Uint(coap.ContentFormat, 0)}})
			expect(has, coap.CodeOf(2, 5), "one", "e1")
			expect(hasNot, coap.CodeOf(2, 5), "one", "e1")
			notify(4, coap.Message{Code: coap.CodeOf(2, 3), Options: []coap.Option{coap.Opt(coap.ETag, "e1")}})
			expect(has, coap.CodeOf(2, 3), "", "e1")
			expect(hasNot, coap.CodeOf(2, 5), "one", "e1")
			require.Len(t, origin.requests(), 1)
		})
	}
}

// libcoap's client over DTLS observes libcoap's server over every transport that
// has.
func TestObserveSecuredWithLibcoap(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, "coap-server-openssl")
	keys := keyFile(t, "identity: gw\nkey: %q\n", fmt.Sprintf("%x", sharedKey))
	p := startProxy(t, group0, settings{listen: "- coaps://127.0.0.1:0", clients: "- name: gateway\n  psk: gw\n  " + everyScheme,
		top: "credentials: {psk: " + keys + ", servers: {authorities: " + o.ca.file + ", psk: " + o.psk + "}}"})
	var all []*process
	for _, scheme := range []string{"coap", "coaps", "coap+tcp", "coaps+tcp"} {
		all = append(all, start(t, here, "coap-client", "coap-client-openssl", "-s", "3", "-B", "8", "-k", sharedKey, "-u", "gw",
			"-P", "coaps://"+p.addr().String(), o.uri(scheme, "time")))
	}
	for _, c := range all {
		require.Zero(t, c.wait(), "%s", c.text())
		require.GreaterOrEqual(t, strings.Count(c.text(), ":"), 6, "three times of day: %s", c.text())
	}
	p.logged("observation", len(all))
}

// A server that is killed and started again while it is observed, over every transport
// that it has: the proxy opens what is lost and registers again, and its clients go on
// (FP-65).
func TestObservedServerIsKilled(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"coap", "coaps", "coap+tcp", "coaps+tcp"} {
		t.Run(scheme, func(t *testing.T) {
			t.Parallel()
			o := startOrigin(t, "coap-server-openssl")
			p := startProxy(t, group0, settings{client: everyScheme, proxy: "require_secure_client: false",
				top: "credentials: {servers: {authorities: " + o.ca.file + ", psk: " + o.psk + "}}"})
			c := newClient(t, here, clientAddr, p.addr())
			first := c.ask(observe(coap.CON, o.uri(scheme, "time")))
			require.True(t, first.Has(coap.Observe), "%v", first.Message)
			c.expect() // once a second
			o.kill()
			o.run(t, "coap-server-openssl")
			for c.next(time.Second/2) != nil { // what was on its way
			}
			for range 3 {
				in := c.next(45 * time.Second)
				require.NotNil(t, in, "the observation does not go on")
				require.Equal(t, first.Token, in.Token)
				require.Equal(t, coap.CodeOf(2, 5), in.Code)
				require.True(t, in.Has(coap.Observe))
			}
		})
	}
}

// 5 % of all packets are lost, on all links: every observer gets to know the last
// state of every server, because a client that registered with a CON is notified
// with CONs, and the proxy asks servers again when Max-Age is over.
func TestObserveWithLoss(t *testing.T) {
	inLab(t, "3 --clients 2 --loss 5 --delay 10 --on all", func(t *testing.T, l *lab) {
		o := newObservable(2)
		devices := l.devices(3, o.handle)
		s := labSettings()
		s.clients += "  forward: [\"coap://*:*\"]\n"
		l.startProxy(s)
		single := observe(coap.CON, fmt.Sprintf("coap://[%v]/x", sv6(1)))
		whole := observe(coap.CON, "coap://[ff05::fd]/x", timeout(3))
		type observer struct {
			*client
			registration *coap.Message
			missing      map[string]bool
		}
		var observers []*observer
		register := func(c *observer) { // as a client retransmits
			for range 5 {
				c.send(c.registration)
				if in := c.next(2 * time.Second); in != nil {
					delete(c.missing, string(in.Payload))
					return
				}
			}
			require.FailNow(t, "no answer")
		}
		for i := range 2 {
			for _, m := range []*coap.Message{single, whole} {
				c := &observer{client: l.client6(i), missing: map[string]bool{"sv1 last": true}}
				if m == whole {
					c.missing["sv2 last"], c.missing["sv3 last"] = true, true
				}
				c.registration = c.fresh(&coap.Message{Type: m.Type, Code: m.Code, Options: m.Options})
				register(c)
				observers = append(observers, c)
			}
		}
		for i := range 30 {
			for _, d := range devices {
				o.set(d, fmt.Sprint(i))
			}
			time.Sleep(50 * time.Millisecond)
		}
		for _, d := range devices {
			o.set(d, "last")
		}
		for i, c := range observers {
			for end := time.Now().Add(2 * time.Minute); len(c.missing) > 0; {
				require.True(t, time.Now().Before(end), "observer %d: %v", i, c.missing)
				if in := c.next(20 * time.Second); in != nil {
					delete(c.missing, string(in.Payload))
					continue
				}
				// Now and then a notification is lost five times, and its observer given up
				// (FP-67): one who has heard nothing for much longer than Max-Age registers
				// again (RFC 7641 §3.3.1).
				c.fresh(c.registration)
				register(c)
			}
		}
	})
}

// A new configuration moves observations: they are registered anew, and clients
// notice nothing. Clients whose entry has changed, and all when groups or targets
// have, get 5.03 and may register again.
func TestReloadWithObservers(t *testing.T) {
	t.Parallel()
	for _, cache := range []string{"enabled: false", "enabled: true"} {
		t.Run(cache, func(t *testing.T) {
			t.Parallel()
			o := newObservable(60)
			servers, group := members(t, 2, o.handle)
			origin := single(t, o.handle)
			of := func(name, addr string) string {
				return fmt.Sprintf("- {name: %s, networks: [%s], groups: \"*\", forward: [\"coap://127.0.0.0/8:*\"]}\n", name, addr)
			}
			s := settings{clients: of("stays", "127.0.0.2") + of("goes", "127.0.0.3"), cache: cache}
			p := startProxy(t, group, s)
			uri := "coap://" + origin.addr().String() + "/x"
			all := make(map[string]*client) // by what they are
			for i, name := range []string{"stays", "goes"} {
				c, g := newClient(t, here, loopback(byte(i+2)), p.addr()), newClient(t, here, loopback(byte(i+2)), p.addr())
				require.True(t, c.ask(observe(coap.CON, uri)).Has(coap.Observe))
				g.gatherN(observe(coap.NON, groupURI(group, "/x"), timeout(1)), len(servers))
				all[name], all[name+" group"] = c, g
			}
			for _, c := range all {
				c.nothing(1500 * time.Millisecond) // T' is over
			}
			tell := func(state string, who ...string) {
				t.Helper()
				o.set(origin, state)
				o.set(servers[0], state)
				for _, name := range who {
					want := "server " + state
					if strings.HasSuffix(name, "group") {
						want = "member1 " + state
					}
					require.True(t, all[name].untilPayload(want, patience), "%s: %s", name, state)
				}
			}
			registered := func(n int) {
				t.Helper()
				eventually(t, func() bool {
					return len(origin.requestsTo("/x")) >= n && o.count(origin) == 1 && len(servers[0].requestsTo("/x")) >= n && o.count(servers[0]) == 1
				}, "a registration anew")
			}
			tell("before", "stays", "goes", "stays group", "goes group")

			s.limits = "response_timeout_con: 90s" // which concerns nobody who is observing
			p.reload(s.yaml(group))
			registered(3) // and one that ends the one before
			tell("first", "stays", "goes", "stays group", "goes group")

			s.clients = of("stays", "127.0.0.2")
			p.reload(s.yaml(group))
			for _, name := range []string{"goes", "goes group"} {
				in := all[name].expect()
				for in.Code == coap.CodeOf(2, 5) { // as it is registered anew
					in = all[name].expect()
				}
				require.Equal(t, coap.CodeOf(5, 3), in.Code, "%s: %v", name, in.Message)
				require.False(t, in.Has(coap.Observe))
			}
			registered(5)
			tell("second", "stays", "stays group")
			for _, name := range []string{"goes", "goes group"} {
				all[name].nothing(meanwhile)
			}
			require.Equal(t, coap.CodeOf(4, 1), all["goes"].ask(observe(coap.CON, uri)).Code)

			s.names = "other.example: [127.0.2.1]"
			p.reload(s.yaml(group))
			for _, name := range []string{"stays", "stays group"} {
				for {
					if in := all[name].expect(); in.Code != coap.CodeOf(2, 5) {
						require.Equal(t, coap.CodeOf(5, 3), in.Code)
						break
					}
				}
			}
			eventually(t, func() bool { return o.count(origin) == 0 && o.count(servers[0]) == 0 }, "nobody observes any more")
			require.True(t, all["stays"].ask(observe(coap.CON, uri)).Has(coap.Observe))
			tell("third", "stays")
		})
	}
}
