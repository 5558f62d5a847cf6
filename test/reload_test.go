package test

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// rewrite replaces the proxy's configuration file.
func (p *proxy) rewrite(yaml string) {
	p.t.Helper()
	require.NoError(p.t, os.WriteFile(p.config, []byte(yaml), 0o600))
}

// hangup has the proxy read its configuration again and returns the line of the
// log that tells how that went.
func (p *proxy) hangup() entry {
	p.t.Helper()
	outcomes := func() []entry {
		return append(p.entries("configuration read again"), p.entries("configuration refused, the one before stays")...)
	}
	before := len(outcomes())
	p.signal(syscall.SIGHUP)
	eventually(p.t, func() bool { return len(outcomes()) > before }, "for the configuration to be read again")
	good, bad := p.entries("configuration read again"), p.entries("configuration refused, the one before stays")
	if len(bad) == 0 || len(good) > 0 && good[len(good)-1].text("ts") > bad[len(bad)-1].text("ts") {
		return good[len(good)-1]
	}
	return bad[len(bad)-1]
}

// reload is rewrite and hangup, which has to succeed.
func (p *proxy) reload(yaml string) entry {
	p.t.Helper()
	p.rewrite(yaml)
	e := p.hangup()
	require.Equal(p.t, "configuration read again", e.text("msg"), "%v", e)
	return e
}

// strings is a list in an entry.
func (e entry) strings(key string) []string {
	var out []string
	data, _ := json.Marshal(e[key])
	_ = json.Unmarshal(data, &out)
	return out
}

// holding answers when the test lets it.
func holding() (release func(), h handler) {
	held := make(chan struct{})
	return func() { close(held) }, func(s *server, r *request) {
		<-held
		content(s, r)
	}
}

// What runs is not disturbed by a new configuration; what comes after is judged
// by it alone.
func TestReload(t *testing.T) {
	t.Parallel()
	releaseGroup, answer := holding()
	servers, group := members(t, 3, answer)
	releaseServer, answer := holding()
	origin := single(t, answer)
	s := settings{
		clients: `
- {name: stays, networks: [127.0.0.2], groups: "*", forward: ["coap://127.0.0.0/8:*"]}
- {name: goes, networks: [127.0.0.3], groups: "*", forward: ["coap://127.0.0.0/8:*"]}
`,
		limits: "grace: 1s",
	}
	p := startProxy(t, group, s)
	stays, goes, comes := newClient(t, here, loopback(2), p.addr()), newClient(t, here, loopback(3), p.addr()), newClient(t, here, loopback(4), p.addr())
	refused := func(c *client, m *coap.Message) {
		t.Helper()
		require.Equal(t, coap.CodeOf(4, 1), c.ask(m).Code)
	}
	uri := groupURI(group, "/x")
	refused(comes, get(coap.CON, uri, timeout(20)))

	toGroup := goes.fresh(get(coap.NON, uri, timeout(20)))
	goes.send(toGroup)
	toServer := stays.fresh(get(coap.CON, fmt.Sprintf("coap://%v/y", origin.addr())))
	stays.send(toServer)
	eventually(t, func() bool {
		for _, s := range append(servers, origin) {
			if len(s.requests()) == 0 {
				return false
			}
		}
		return true
	}, "for the requests to arrive")

	s.clients = `
- {name: stays, networks: [127.0.0.2], groups: "*"}
- {name: comes, networks: [127.0.0.4], groups: "*"}
`
	e := p.reload(s.yaml(group))
	require.Equal(t, []string{"clients.stays changed", "clients.comes added", "clients.goes removed"}, e.strings("changed"))

	releaseGroup()
	releaseServer()
	for range servers {
		in := goes.expect()
		require.Equal(t, toGroup.Token, in.Token)
		require.Equal(t, coap.CodeOf(2, 5), in.Code)
	}
	in := stays.expect()
	if in.Code == coap.Empty {
		in = stays.expect()
	}
	require.Equal(t, toServer.Token, in.Token)
	require.Equal(t, coap.CodeOf(2, 5), in.Code)
	refused(goes, get(coap.CON, uri, timeout(2)))
	refused(stays, get(coap.CON, fmt.Sprintf("coap://%v/z", origin.addr())))
	require.Len(t, comes.gatherN(get(coap.NON, uri, timeout(2)), len(servers)), len(servers))
	require.Len(t, stays.gatherN(get(coap.NON, uri, timeout(2)), len(servers)), len(servers))
	require.Len(t, p.addrs, 1)
}

// A configuration with any mistake, in the file or on this host, changes nothing.
func TestReloadRefused(t *testing.T) {
	t.Parallel()
	origin := single(t, content)
	taken := mustSocket(t, here, netip.MustParseAddrPort("127.0.0.1:0"))
	p := startProxy(t, group0, forwarding)
	c := newClient(t, here, clientAddr, p.addr())
	serves := func() {
		t.Helper()
		require.Equal(t, coap.CodeOf(2, 5), c.ask(get(coap.CON, fmt.Sprintf("coap://%v/x", origin.addr()))).Code)
	}
	serves()
	listening := func(uri string) settings {
		s := forwarding
		s.client = "" // which would make every further request fail
		s.listen = "- coap://127.0.0.1:0\n- " + uri
		return s
	}
	for _, tt := range []struct {
		name, yaml string
		want       []string
	}{
		{"two mistakes", "listen: [coap://127.0.0.1:99999]\nlimits: {exchanges: 0}\n", []string{`config.yaml:1: listen\[0\]: `, `config.yaml:2: limits.exchanges: 0 is out of range`}},
		{"no YAML", "listen: [", []string{"config.yaml:"}},
		{"port in use", listening(fmt.Sprintf("coap://%v", taken.local)).yaml(group0), []string{"listen on coap://127.0.0.1:.*address already in use"}},
		{"no such keys", listening("coaps://127.0.0.1:0").yaml(group0) + "credentials: {psk: /nowhere}\n", []string{"/nowhere"}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			files := p.files()
			p.rewrite(tt.yaml)
			e := p.hangup()
			require.Equal(t, "configuration refused, the one before stays", e.text("msg"))
			said := strings.Join(append(e.strings("problems"), e.text("error")), "\n")
			for _, want := range tt.want {
				require.Regexp(t, want, said)
			}
			serves()
			require.Equal(t, files, p.files(), "open files")
		})
	}
	require.NoError(t, os.Remove(p.config))
	require.Contains(t, p.hangup().text("error"), "no such file")
	serves()
}

// Listeners come and go; those that stay keep their sockets and connections.
func TestReloadListeners(t *testing.T) {
	t.Parallel()
	origin := single(t, content)
	s := overTCP(forwarding)
	p := startProxy(t, group0, s)
	get := get(coap.CON, fmt.Sprintf("coap://%v/x", origin.addr()))
	asks := func(at netip.AddrPort) {
		t.Helper()
		require.Equal(t, coap.CodeOf(2, 5), newClient(t, here, clientAddr, at).ask(get).Code)
	}
	udp, tcp := p.addrs[0], p.addrs[1]
	asks(udp)
	conn := dialTCP(t, tcp)
	connected := func() {
		t.Helper()
		sendFrame(t, conn, get)
		for {
			if in := readFrame(t, conn); in.Code>>5 != 7 { // its CSM
				require.Equal(t, coap.CodeOf(2, 5), in.Code)
				return
			}
		}
	}
	connected()

	// One more, with a port of its own.
	s.listen += "\n- coap://127.0.0.2:0"
	require.Equal(t, []string{"listen coap://127.0.0.2:0 added"}, p.reload(s.yaml(group0)).strings("changed"))
	added := p.entries("listening")[2].text("uri")
	second, err := netip.ParseAddrPort(strings.TrimPrefix(added, "coap://"))
	require.NoError(t, err)
	asks(udp)
	asks(second)
	connected()

	// It goes, and so does its socket.
	files := p.files()
	p.reload(overTCP(forwarding).yaml(group0))
	require.Equal(t, added, p.entries("not listening any more")[0].text("uri"))
	free := mustSocket(t, here, second)
	free.close()
	asks(udp)
	connected()
	eventually(t, func() bool { return p.files() < files }, "for the socket to be closed")

	// Every address instead of one: that one has to make room. And back.
	wide := forwarding
	wide.listen = fmt.Sprintf("- coap://0.0.0.0:%d\n- coap+tcp://127.0.0.1:0", udp.Port())
	p.reload(wide.yaml(group0))
	asks(udp)
	asks(netip.AddrPortFrom(loopback(9), udp.Port()))
	narrow := forwarding
	narrow.listen = fmt.Sprintf("- coap://%v\n- coap+tcp://127.0.0.1:0", udp)
	p.reload(narrow.yaml(group0))
	asks(udp)
	connected()

	// An address that had to make room for nothing comes back.
	taken := mustSocket(t, here, netip.MustParseAddrPort("127.0.0.1:0"))
	wide.listen += fmt.Sprintf("\n- coap://%v", taken.local)
	p.rewrite(wide.yaml(group0))
	require.Contains(t, p.hangup().text("error"), "address already in use")
	asks(udp)
}

// dialTCP opens a connection to a listener over TCP.
func dialTCP(t *testing.T, to netip.AddrPort) net.Conn {
	t.Helper()
	conn, err := net.Dial("tcp", to.String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	require.NoError(t, conn.SetDeadline(time.Now().Add(3*patience)))
	sendFrame(t, conn, &coap.Message{Code: 0xe1}) // CSM
	return conn
}

// Keys that size what lives as long as the process are named, as long as the
// file differs from what the proxy was started with.
func TestReloadNeedsRestart(t *testing.T) {
	t.Parallel()
	p := startProxy(t, group0, forwarding)
	s := forwarding
	s.limits = "exchanges: 5"
	s.cache = "enabled: true"
	s.log = "info"
	require.Equal(t, []string{"log.level changed"}, p.reload(s.yaml(group0)).strings("changed"))
	e := p.entries("some of the configuration takes effect at the next start only")
	require.Len(t, e, 1)
	require.Equal(t, []string{"cache.enabled changed", "limits.exchanges changed"}, e[0].strings("keys"))
	require.Empty(t, p.reload(s.yaml(group0)).strings("changed"))
	p.logged("some of the configuration takes effect at the next start only", 2)
	p.reload(forwarding.yaml(group0))
	p.logged("some of the configuration takes effect at the next start only", 2)
}

// A hundred new configurations leave nothing behind, and do not cut off what
// runs before it has to be.
func TestReloadsLeakNothing(t *testing.T) {
	t.Parallel()
	_, group := members(t, 2, content)
	origin := single(t, content)
	s := privately(forwarding)
	s.log = "info"
	p := startProxy(t, group, s)
	c := newClient(t, here, clientAddr, p.addr())
	exercise := func() {
		t.Helper()
		c.gatherN(get(coap.NON, groupURI(group, "/x"), timeout(1)), 2)
		require.Equal(t, coap.CodeOf(2, 5), c.ask(get(coap.CON, fmt.Sprintf("coap://%v/x", origin.addr()))).Code)
	}
	exercise()
	goroutines := p.scrape()["go_goroutines"]
	files := p.files()
	for i := range 20 {
		s.proxy = fmt.Sprintf("hop_limit: %d", i+1)
		p.reload(s.yaml(group))
		exercise()
	}
	resident := p.resident()
	for i := range 80 {
		s.proxy = fmt.Sprintf("hop_limit: %d", i+21)
		p.reload(s.yaml(group))
		exercise()
	}
	growth := 16 << 20
	if raceDetector { // it remembers what every byte was used for
		growth *= 4
	}
	require.Less(t, p.resident(), resident+growth, "bytes of memory")
	eventually(t, func() bool { return p.files() <= files }, "for old sockets to be closed")
	eventually(t, func() bool { return p.scrape()["go_goroutines"] <= goroutines+2 }, "for old goroutines to end")
	require.InDelta(t, 1, p.scrape()["coapproxy_config_generations"], 0)
	p.logged("configuration read again", 100)
}

// resident is the memory of the process in bytes.
func (p *proxy) resident() int {
	p.t.Helper()
	statm, err := os.ReadFile(fmt.Sprintf("/proc/%d/statm", p.cmd.Process.Pid))
	require.NoError(p.t, err)
	pages, err := strconv.Atoi(strings.Fields(string(statm))[1])
	require.NoError(p.t, err)
	return pages * os.Getpagesize()
}
