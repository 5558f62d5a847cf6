package test

import (
	"context"
	"crypto/x509"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

type shownStatus struct {
	Version   string
	Ready     bool
	Config    string
	Listeners []string
	Clients   []struct {
		Name     string
		Requests int
		Last     *string
		Running  int `json:"group_exchanges"`
	}
	Groups []struct {
		Name, URI  string
		Interfaces []string
		Heard      int
	}
	Exchanges struct {
		Running  int
		Outcomes map[string]int
	}
	Cache    *struct{ Entries, Hits, Misses int }
	Refusals map[string]int
	Warnings []string
}

// What an operator asks first, and a new configuration by command.
func TestStatusAndReload(t *testing.T) {
	t.Parallel()
	_, group := members(t, 3, content)
	socket, keys := controlSocket(t)
	s := settings{control: keys, clients: `
- {name: asks, networks: [127.0.0.2], groups: "*"}
- {name: silent, networks: [127.0.0.3], groups: "*"}
`}
	p := startProxy(t, group, s)
	c := newClient(t, here, loopback(2), p.addr())
	c.gatherN(get(coap.NON, groupURI(group, "/x"), timeout(60)), 3)
	require.Equal(t, coap.CodeOf(4, 1), newClient(t, here, loopback(9), p.addr()).ask(get(coap.CON, groupURI(group, "/x"), timeout(1))).Code)

	st := shown[shownStatus](t, "status", "--socket", socket)
	require.True(t, st.Ready)
	require.Equal(t, p.config, st.Config)
	require.Equal(t, []string{"coap://" + p.addr().String()}, st.Listeners)
	require.Equal(t, "asks", st.Clients[0].Name)
	require.Equal(t, 1, st.Clients[0].Requests)
	require.Equal(t, 1, st.Clients[0].Running)
	require.NotNil(t, st.Clients[0].Last)
	require.Nil(t, st.Clients[1].Last)
	require.Equal(t, 3, st.Groups[0].Heard)
	require.Equal(t, []string{"lo"}, st.Groups[0].Interfaces)
	require.Equal(t, map[string]int{"denied": 1}, st.Refusals)
	require.Equal(t, 1, st.Exchanges.Running)
	require.Equal(t, map[string]int{"group refused": 1}, st.Exchanges.Outcomes)
	require.Nil(t, st.Cache)
	require.Empty(t, st.Warnings)

	out := run(t, here, program, "status", "--config", p.config)
	require.Zero(t, out.code, out.stderr)
	for _, want := range []string{"listeners\n  coap://" + p.addr().String(), `(?m)^  asks +1 +1 +20`, `(?m)^  silent +0 +0 +never`,
		`(?m)^  devices +3 +lo +coap://` + group.String(), `(?m)^exchanges +1 running, 0 waiting`, `(?m)^cache +off`, `(?m)^  denied +1`} {
		require.Regexp(t, want, out.stdout)
	}

	s.clients = "- {name: asks, networks: [127.0.0.2], groups: \"*\"}"
	s.limits = "exchanges: 5"
	p.rewrite(s.yaml(group))
	out = run(t, here, program, "reload", "--config", p.config)
	require.Zero(t, out.code, out.stderr)
	require.Equal(t, "read again; 1 change\n  clients.silent removed\ntakes effect at the next start only:\n  limits.exchanges changed\n", out.stdout)
	st = shown[shownStatus](t, "status", "--socket", socket)
	require.Len(t, st.Clients, 1)
	require.Equal(t, []string{"limits.exchanges was changed in the file and takes effect at the next start"}, st.Warnings)

	p.rewrite("listen: [nonsense]\nlimits: {exchanges: 0}\ncontrol: {" + keys + "}\n")
	for _, how := range []string{"--config=" + p.config, "--socket=" + socket} {
		out = run(t, here, program, "reload", how)
		require.Equal(t, 1, out.code)
		require.Regexp(t, `config.yaml:1: listen\[0\]: `, out.stderr)
		require.Regexp(t, `config.yaml:2: limits.exchanges: 0 is out of range`, out.stderr)
		require.Contains(t, out.stderr, "refused; the proxy goes on as it was")
	}
	eventually(t, func() bool { return len(p.entries("configuration refused, the one before stays")) == 2 }, "for the log to tell, too")
	out = run(t, here, program, "status", "--config", p.config) // which is when one wants to ask
	require.Zero(t, out.code, out.stderr)
	require.Contains(t, out.stderr, p.config+" has mistakes")
	require.Contains(t, out.stdout, "warning: the configuration file was refused")
	st = shown[shownStatus](t, "status", "--socket", socket)
	require.Len(t, st.Clients, 1)
	require.Contains(t, strings.Join(st.Warnings, "\n"), "the configuration file was refused")
}

// Nobody reads the log, and its pipe is full: requests are answered all the same,
// and SIGTERM ends the proxy.
func TestLogNobodyReads(t *testing.T) {
	t.Parallel()
	origin := single(t, content)
	port := newSocketPort(t)
	s := forwarding
	s.listen = "- coap://127.0.0.1:" + port
	file := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(file, []byte(s.yaml(group0)), 0o600))
	r, w, err := os.Pipe()
	require.NoError(t, err)
	defer r.Close()
	cmd := exec.Command(program, "serve", "--config", file)
	cmd.Stderr = w
	ended := make(chan struct{})
	require.NoError(t, startTied(cmd, func() { close(ended) }))
	require.NoError(t, w.Close())
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
	c := newClient(t, here, clientAddr, netip.MustParseAddrPort("127.0.0.1:"+port))
	eventually(t, func() bool { // it listens when it answers a ping
		c.send(&coap.Message{Type: coap.CON, ID: 0x50})
		return c.next(50*time.Millisecond) != nil
	}, "for the proxy to listen")
	for c.next(meanwhile) != nil { // the answers to further pings
	}
	for range 1000 { // a few lines each, more than a pipe takes
		require.Equal(t, coap.CodeOf(2, 5), c.ask(get(coap.CON, fmt.Sprintf("coap://%v/x", origin.addr()))).Code)
	}
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-ended:
	case <-time.After(patience):
		require.Fail(t, "it does not end")
	}
	require.Zero(t, cmd.ProcessState.ExitCode())
}

// notifySocket is the socket on which a service manager hears how its service is.
func notifySocket(t *testing.T) (path string, heard func() string) {
	t.Helper()
	folder, err := os.MkdirTemp("", "notify")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	path = filepath.Join(folder, "s")
	l, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	require.NoError(t, err)
	var mu sync.Mutex
	var all strings.Builder
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		buf := make([]byte, 4096)
		for {
			n, err := l.Read(buf)
			if err != nil {
				return
			}
			mu.Lock()
			all.Write(append(buf[:n:n], '\n'))
			mu.Unlock()
		}
	}()
	t.Cleanup(func() { _ = l.Close(); <-ended })
	return path, func() string {
		mu.Lock()
		defer mu.Unlock()
		return all.String()
	}
}

// A service manager is told when the proxy is ready, reloads, lives and stops, and
// may have opened its sockets: they are used, and nothing sent to them before is
// lost.
func TestServiceManager(t *testing.T) {
	t.Parallel()
	origin := single(t, content)
	udp, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	defer udp.Close()
	tcp, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer tcp.Close()
	http, err := (&net.ListenConfig{}).Listen(context.Background(), "tcp4", "127.0.0.1:0")
	require.NoError(t, err)
	defer http.Close()
	spare, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	defer spare.Close()
	var files []*os.File
	for _, s := range []interface{ File() (*os.File, error) }{udp, tcp.(*net.TCPListener), http.(*net.TCPListener), spare} {
		f, err := s.File()
		require.NoError(t, err)
		files = append(files, f)
	}
	at := netip.MustParseAddrPort(udp.LocalAddr().String())

	s := forwarding
	s.listen = fmt.Sprintf("- coap://%v\n- coap+tcp://%v\n- http://%v", at, tcp.Addr(), http.Addr())
	file := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(file, []byte(s.yaml(group0)), 0o600))
	socket, heard := notifySocket(t)
	c := newClient(t, here, clientAddr, at)
	early := c.fresh(get(coap.CON, fmt.Sprintf("coap://%v/x", origin.addr())))
	c.send(early) // the proxy does not run yet

	p := &proxy{process: &process{t: t, name: "coapproxy", ended: make(chan struct{}), grown: make(chan struct{})}, config: file}
	// LISTEN_PID is the process's own, which a shell knows and exec keeps.
	p.cmd = exec.Command("sh", "-c", `LISTEN_PID=$$ exec "$@"`, "sh", program, "serve", "--config", file)
	p.cmd.Env = append(os.Environ(), fmt.Sprintf("LISTEN_FDS=%d", len(files)), "NOTIFY_SOCKET="+socket, "WATCHDOG_USEC=300000")
	p.cmd.ExtraFiles = files
	p.cmd.Stdout, p.cmd.Stderr = p.process, p.process
	require.NoError(t, startTied(p.cmd, func() { close(p.ended) }))
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("coapproxy wrote:\n%s", p.text())
		}
	})
	for _, f := range files {
		require.NoError(t, f.Close())
	}
	in := c.expect()
	if in.Code == coap.Empty { // the ACK of a slow moment
		in = c.expect()
	}
	require.Equal(t, early.Token, in.Token)
	require.Equal(t, coap.CodeOf(2, 5), in.Code)
	eventually(t, func() bool { return strings.Contains(heard(), "READY=1\n") }, "for it to be ready")
	eventually(t, func() bool { return strings.Count(heard(), "WATCHDOG=1\n") >= 2 }, "for the watchdog to be told")
	conn := dialTCP(t, netip.MustParseAddrPort(tcp.Addr().String()))
	sendFrame(t, conn, get(coap.CON, fmt.Sprintf("coap://%v/x", origin.addr())))
	for readFrame(t, conn).Code != coap.CodeOf(2, 5) { // its CSM
	}
	web, err := net.Dial("tcp", http.Addr().String())
	require.NoError(t, err)
	require.NoError(t, web.Close())
	unused := p.logged("no listener of the configuration has the address of this socket of the service manager", 1)
	require.Equal(t, spare.LocalAddr().String(), unused[0].text("address"))

	// A listener that goes and comes back uses the socket that was passed.
	without := s
	without.listen = fmt.Sprintf("- coap+tcp://%v", tcp.Addr())
	p.reload(without.yaml(group0))
	told := regexp.MustCompile(`READY=1\n(.*\n)*RELOADING=1\nMONOTONIC_USEC=\d+\n(.*\n)*READY=1`)
	eventually(t, func() bool { return told.MatchString(heard()) }, "for the service manager to be told of the reload")
	p.reload(s.yaml(group0))
	require.Equal(t, coap.CodeOf(2, 5), c.ask(get(coap.CON, fmt.Sprintf("coap://%v/y", origin.addr()))).Code)

	p.stop()
	require.Contains(t, heard(), "STOPPING=1\n")
}

// What goes to the journal of systemd has its priority in front of each line.
func TestJournal(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	serve := func(yaml string) (*exec.Cmd, func() string) {
		file, log := filepath.Join(dir, "config.yaml"), filepath.Join(dir, "log")
		require.NoError(t, os.WriteFile(file, []byte(yaml), 0o600))
		f, err := os.Create(log)
		require.NoError(t, err)
		t.Cleanup(func() { _ = f.Close() })
		info, err := f.Stat()
		require.NoError(t, err)
		at := info.Sys().(*syscall.Stat_t)
		cmd := exec.Command(program, "serve", "--config", file)
		cmd.Env = append(os.Environ(), fmt.Sprintf("JOURNAL_STREAM=%d:%d", at.Dev, at.Ino))
		cmd.Stderr = f
		return cmd, func() string {
			data, err := os.ReadFile(log)
			require.NoError(t, err)
			return string(data)
		}
	}
	cmd, log := serve("listen: [nonsense, more]\n")
	var exit *exec.ExitError
	require.ErrorAs(t, cmd.Run(), &exit)
	require.Equal(t, exitConfig, exit.ExitCode())
	require.Regexp(t, `^<3>\S+config.yaml:1: listen\[0\]: .*\n<3>\S+config.yaml:1: listen\[1\]: .*\n$`, log())

	cmd, log = serve("listen: [\"coap://127.0.0.1:0\"]\nmetrics: {listen: off}\ncontrol: {socket: off}\n")
	ended := make(chan struct{})
	require.NoError(t, startTied(cmd, func() { close(ended) }))
	t.Cleanup(func() { _ = cmd.Process.Kill(); <-ended })
	eventually(t, func() bool { return strings.Contains(log(), "<6>INFO ready") }, "for the proxy to be ready")
	require.NoError(t, os.WriteFile(filepath.Join(dir, "config.yaml"), []byte("listen: [nonsense]\n"), 0o600))
	require.NoError(t, cmd.Process.Signal(syscall.SIGHUP))
	eventually(t, func() bool { return strings.Contains(log(), "<4>WARN configuration refused") }, "for the reload")
	require.NoError(t, cmd.Process.Signal(syscall.SIGTERM))
	select {
	case <-ended:
	case <-time.After(patience):
		require.Fail(t, "it does not end")
	}
	for line := range strings.Lines(log()) {
		require.Regexp(t, `^<[3-7]>[A-Z]+ `, line)
	}
}

// Whoever looks is told that the proxy's own certificate is about to expire.
func TestCertificateExpires(t *testing.T) {
	t.Parallel()
	ca := newCertAuthority(t, "servers")
	end := time.Now().Add(72 * time.Hour).Truncate(time.Second)
	ends := func(at time.Time) func(*x509.Certificate) {
		return func(c *x509.Certificate) {
			forServer(c)
			c.NotBefore, c.NotAfter = end.Add(-96*time.Hour), at
		}
	}
	soon, over := ca.issue("soon", ends(end)), ca.issue("over", ends(end.Add(-80*time.Hour)))
	socket, keys := controlSocket(t)
	s := privately(settings{control: keys, listen: "- coaps+tcp://127.0.0.1:0"})
	use := func(p pair) string {
		s.top = fmt.Sprintf("credentials: {certificate: %s, key: %s}", p.cert, p.key)
		return s.yaml(group0)
	}
	p := startProxyIn(t, here, use(soon))
	text := "credentials.certificate expires at " + end.UTC().Format(time.RFC3339)
	p.waitFor(text)
	require.Equal(t, []string{text}, shown[shownStatus](t, "status", "--socket", socket).Warnings)
	require.InDelta(t, end.Unix(), p.scrape()["coapproxy_certificate_expires_timestamp_seconds"], 0)
	out := run(t, here, program, "check", p.config)
	require.Zero(t, out.code)
	require.Contains(t, out.stderr, "warning: "+text)

	p.reload(use(over))
	p.waitFor("credentials.certificate has expired at ")
	require.Contains(t, strings.Join(shown[shownStatus](t, "status", "--socket", socket).Warnings, "\n"), "credentials.certificate has expired at ")
	p.reload(use(ca.issue("fresh", ends(end.Add(2000*time.Hour)))))
	require.Empty(t, shown[shownStatus](t, "status", "--socket", socket).Warnings)
}

// An interface that is not there is no reason to give up for good, and status names
// one that went away.
func TestInterfaceGone(t *testing.T) {
	inLab(t, "1", func(t *testing.T, l *lab) {
		px := l.px()
		socket, keys := controlSocket(t)
		yaml := settings{control: keys, groups: "- {name: devices, uri: \"coap://224.0.1.187\", interfaces: [late0]}"}.yaml(group0)
		file := filepath.Join(t.TempDir(), "config.yaml")
		require.NoError(t, os.WriteFile(file, []byte(yaml), 0o600))
		out := run(t, px, program, "serve", "--config", file)
		require.Equal(t, exitFailed, out.code, "a service manager shall try again: %s", out.stderr)
		require.Contains(t, out.stderr, "this host has no interface late0")

		run(t, px, "ip", "link", "add", "late0", "type", "veth", "peer", "name", "late1")
		startProxyIn(t, px, yaml)
		warned := func() string { return run(t, px, program, "status", "--socket", socket).stdout }
		require.Contains(t, warned(), "warning: the interface late0 of the group devices is down")
		run(t, px, "ip", "link", "set", "late0", "up")
		require.NotContains(t, warned(), "warning")
		run(t, px, "ip", "link", "del", "late0")
		require.Contains(t, warned(), "warning: the interface late0 of the group devices is not there")
	})
}

// One address cannot use up what a whole network shares (FP-37, GP-113).
func TestPrefixRate(t *testing.T) {
	t.Parallel()
	origin := single(t, content)
	s := privately(forwarding)
	s.limits = "prefix_rate: 0.001\nprefix_burst: 3"
	p := startProxy(t, group0, s)
	m := func() *coap.Message { return get(coap.CON, fmt.Sprintf("coap://%v/x", origin.addr())) }
	c := newClient(t, here, loopback(2), p.addr())
	for range 3 {
		require.Equal(t, coap.CodeOf(2, 5), c.ask(m()).Code)
	}
	in := c.ask(m())
	require.Equal(t, coap.CodeOf(4, 29), in.Code)
	require.NotEmpty(t, in.All(coap.MaxAge))
	require.Equal(t, coap.CodeOf(2, 5), newClient(t, here, loopback(3), p.addr()).ask(m()).Code)
	require.InDelta(t, 1, p.scrape()[`coapproxy_access_limited_total{by="prefix"}`], 0)
}

// The counters of a next hop outlive a configuration, and status shows it.
func TestNextHopStatus(t *testing.T) {
	t.Parallel()
	_, group := members(t, 2, content)
	behind := startProxy(t, group, settings{})
	socket, keys := controlSocket(t)
	s := settings{control: keys, groups: fmt.Sprintf("- {name: devices, uri: %q}", "coap://"+group.String()), top: nextHop("coap://"+behind.addr().String(), "")}
	p := startProxy(t, group, s)
	c := newClient(t, here, clientAddr, p.addr())
	c.gatherN(get(coap.NON, groupURI(group, "/x"), timeout(3)), 2)
	type hops struct {
		NextHops []struct {
			Name, URI               string
			Up, Requests, Responses int
		} `json:"next_hops"`
	}
	up := func() int {
		h := shown[hops](t, "status", "--socket", socket).NextHops
		require.Len(t, h, 1)
		require.Equal(t, "next", h[0].Name)
		require.Equal(t, "coap://"+behind.addr().String(), h[0].URI)
		require.Equal(t, 1, h[0].Requests)
		return h[0].Up
	}
	require.Equal(t, 1, up())
	s.log = "info"
	p.reload(s.yaml(group))
	eventually(t, func() bool { return up() == 1 }, "for the old configuration to end")
	require.Regexp(t, `(?m)^  next +1 +1 +\d+ +\d+\.\d ms +coap://`, run(t, here, program, "status", "--socket", socket).stdout)
}
