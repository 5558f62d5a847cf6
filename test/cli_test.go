package test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// Exit codes, as `coapproxy serve --help` and the manual of a service manager
// tell them.
const (
	exitFailed = 1
	exitUsage  = 2
	exitConfig = 78
)

func TestUsage(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args   []string
		code   int
		stdout string
		stderr string
	}{
		{nil, exitUsage, "", "usage: coapproxy COMMAND"},
		{[]string{"help"}, 0, "usage: coapproxy COMMAND", ""},
		{[]string{"--help"}, 0, "usage: coapproxy COMMAND", ""},
		{[]string{"sevre"}, exitUsage, "", `unknown command "sevre"`},
		{[]string{"version"}, 0, "coapproxy ", ""},
		{[]string{"version", "x"}, exitUsage, "", "wrong number of arguments"},
		{[]string{"serve", "--help"}, 0, "Exit codes:", ""},
		{[]string{"serve", "--nonsense"}, exitUsage, "", "nonsense"},
		{[]string{"serve", "x"}, exitUsage, "", "wrong number of arguments"},
		{[]string{"check", "a", "b"}, exitUsage, "", "usage: coapproxy check [FILE]"},
		{[]string{"check", "/does/not/exist.yaml"}, exitFailed, "", "/does/not/exist.yaml"},
		{[]string{"serve", "--config", "/does/not/exist.yaml"}, exitConfig, "", "coapproxy init"},
		{[]string{"init", "a", "b"}, exitUsage, "", "usage: coapproxy init"},
		{[]string{"request", "--help"}, 0, "--multicast-timeout SECONDS", ""},
		{[]string{"request", "--timeout", "soon", "GET", "coap://192.0.2.7/"}, exitUsage, "", "write a time such as 5s"},
		{[]string{"request", "GET"}, exitUsage, "", "usage: coapproxy request"},
		{[]string{"demo", "--help"}, 0, "--devices N", ""},
		{[]string{"demo", "--devices", "0"}, exitUsage, "", "--devices 0"},
		{[]string{"cache"}, exitUsage, "", "usage: coapproxy cache show|flush|stats"},
		{[]string{"cache", "--help"}, 0, "usage: coapproxy cache show|flush|stats", ""},
		{[]string{"cache", "shwo"}, exitUsage, "", `unknown command "shwo"`},
		{[]string{"cache", "show", "--help"}, 0, "--group NAME", ""},
		{[]string{"cache", "show", "x"}, exitUsage, "", "wrong number of arguments"},
		{[]string{"cache", "show", "--socket", "/does/not/exist"}, exitFailed, "", "no proxy answers at the control socket /does/not/exist"},
		{[]string{"trace"}, exitUsage, "", "usage: coapproxy trace"},
		{[]string{"trace", "coap://192.0.2.7/"}, exitUsage, "", "--via"},
		{[]string{"trace", "--via", "coap://127.0.0.1", "--max-hops", "0", "coap://192.0.2.7/"}, exitUsage, "", "--max-hops"},
		{[]string{"trace", "--via", "coap://127.0.0.1", "--tries", "0", "coap://192.0.2.7/"}, exitUsage, "", "--tries"},
		{[]string{"decode"}, exitUsage, "", "usage: coapproxy decode"},
	} {
		t.Run(strings.Join(tt.args, " "), func(t *testing.T) {
			out := run(t, here, append([]string{program}, tt.args...)...)
			require.Equal(t, tt.code, out.code, "%s%s", out.stdout, out.stderr)
			require.Contains(t, out.stdout, tt.stdout)
			require.Contains(t, out.stderr, tt.stderr)
			if tt.stdout == "" {
				require.Empty(t, out.stdout)
			}
			if tt.stderr == "" {
				require.Empty(t, out.stderr)
			}
			if tt.code == exitUsage && len(tt.args) > 1 && !strings.HasPrefix(tt.stderr, "unknown command") {
				require.LessOrEqual(t, strings.Count(out.stderr, "\n"), 4, "the mistake stays on the screen")
			}
		})
	}
}

// A first configuration: written, checked, served, and it works as it is.
func TestInit(t *testing.T) {
	inLab(t, "1", func(t *testing.T, l *lab) { // where port 5683 is free
		dir := filepath.Join(t.TempDir(), "etc")
		px := l.px()
		out := run(t, px, program, "init", dir)
		require.Zero(t, out.code, out.stderr)
		require.Contains(t, out.stdout, "coapproxy serve --config") // what to do next
		entries, err := os.ReadDir(dir)
		require.NoError(t, err)
		require.Len(t, entries, 2)
		secrets := make(map[string]string)
		for _, e := range entries {
			info, err := e.Info()
			require.NoError(t, err)
			require.Equal(t, os.FileMode(0o600), info.Mode().Perm(), e.Name())
			require.Contains(t, out.stdout, filepath.Join(dir, e.Name()))
			data, err := os.ReadFile(filepath.Join(dir, e.Name()))
			require.NoError(t, err)
			secrets[e.Name()] = string(data)
		}
		again := run(t, px, program, "init", dir)
		require.Equal(t, exitFailed, again.code)
		require.Contains(t, again.stderr, "exist")
		other := filepath.Join(t.TempDir(), "other")
		require.Zero(t, run(t, px, program, "init", other).code)
		for _, name := range []string{"psk.yaml"} {
			require.NotEmpty(t, secrets[name])
			data, err := os.ReadFile(filepath.Join(other, name))
			require.NoError(t, err)
			require.NotEqual(t, secrets[name], string(data), "a fresh secret")
		}

		file := filepath.Join(dir, "config.yaml")
		out = run(t, px, program, "check", file)
		require.Zero(t, out.code, out.stderr)
		require.Contains(t, out.stdout, "ok")

		member := serve(t, "member", place{host: px, iface: "lo", port: coapPort, addrs: []netip.Addr{memberAddr(1)}, groups: []netip.Addr{group4}}, content)
		p := start(t, px, "coapproxy", program, "serve", "--config", file)
		p.waitFor(" ready ") // for people, not for machines
		require.Equal(t, 2, strings.Count(p.text(), " listening "))
		c := newClient(t, px, clientAddr, netip.AddrPortFrom(clientAddr, coapPort))
		in := c.gatherN(get(coap.CON, "coap://224.0.1.187/x", timeout(60)), 1)[0]
		require.Equal(t, member.addr(), serverOf(t, in))
		require.Equal(t, "member/y", string(c.ask(get(coap.CON, "coap://127.0.1.1/y")).Payload))
		require.Equal(t, coap.CodeOf(4, 1), c.ask(get(coap.CON, "coap://127.0.1.2/y")).Code)
		p.signal(syscall.SIGTERM)
		require.Zero(t, p.wait())
	})
}

// Every mistake on a line of its own: file, line, key, what to write instead.
func TestCheck(t *testing.T) {
	t.Parallel()
	file := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(file, []byte(`listen:
  - coap://127.0.0.1
  - coap://127.0.0.1:5683
clients:
  - name: c
    networks: [127.0.0.1]
    gruops: [g]
    max_exchanges: many
groups:
  - name: g
    uri: coap://192.0.2.1
    interfaces: [no-such-interface]
limits:
  grace: 1 hour
`), 0o600))
	problems := []string{
		`3: listen\[1\]: .*listen\[0\] in line 2.*; remove one of them`,
		`7: clients\[0\].gruops: unknown key; did you mean groups\?`,
		`8: clients\[0\].max_exchanges: must be a whole number, not the text "many"`,
		`11: groups\[0\].uri: 192.0.2.1 is not a multicast address; write e.g. coap://224.0.1.187`,
		`12: groups\[0\].interfaces\[0\]: this host has no interface no-such-interface; .*`,
		`14: limits.grace: "1 hour" is not a duration; write e.g. 90s, .*`,
	}
	for command, code := range map[string]int{"check": exitFailed, "serve": exitConfig} {
		args := []string{program, command, file}
		if command == "serve" {
			args = []string{program, command, "--config", file}
		}
		out := run(t, here, args...)
		require.Equal(t, code, out.code, command)
		require.Empty(t, out.stdout)
		lines := strings.Split(strings.TrimSpace(out.stderr), "\n")
		require.Len(t, lines, len(problems), out.stderr)
		for i, want := range problems {
			require.Regexp(t, "^"+regexp.QuoteMeta(file)+":"+want+"$", lines[i])
		}
	}
}

// The example in the repository is a configuration like any other.
func TestExampleConfiguration(t *testing.T) {
	t.Parallel()
	out := run(t, here, program, "check", "../config.example.yaml")
	require.Zero(t, out.code, out.stderr)
}

// What listens, in one line each, soon after the start.
func TestServe(t *testing.T) {
	t.Parallel()
	_, group := members(t, 1, content)
	s := settings{listen: "- coap://127.0.0.1:0\n- coap://127.0.0.2:0\n- coap://[::1]:0", log: "info"}
	file := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(file, []byte(s.yaml(group)), 0o600))
	began := time.Now()
	p := serveFile(t, here, file)
	c := newClient(t, here, clientAddr, p.addr())
	c.ping()
	took := time.Since(began)
	t.Logf("first answer %v after the start", took)
	require.Less(t, took, patience/2) // wanted: 100 ms; this machine may be busy
	p.logged("listening", 3)
	for _, e := range p.entries("listening") {
		require.InDelta(t, 208<<10, e["receive_buffer"], 16<<10) // what was got is told
	}
	require.Equal(t, netip.MustParseAddr("::1"), p.addrs[2].Addr())
	six := newClient(t, here, netip.IPv6Loopback(), p.addrs[2])
	six.ping()
	for _, e := range p.entries("") {
		require.NotEmpty(t, e.text("ts"))
		require.NotEmpty(t, e.text("msg"))
	}

	// SIGINT is as good as SIGTERM.
	p.signal(os.Interrupt)
	require.Zero(t, p.wait())
	p.logged("stopped", 1)
}

// SIGUSR1 writes the counters to the log, and so does the end.
func TestCounters(t *testing.T) {
	t.Parallel()
	_, group := members(t, 3, content)
	p := startProxy(t, group, settings{log: "info"})
	c := newClient(t, here, clientAddr, p.addr())
	c.gatherN(get(coap.NON, groupURI(group, "/x"), timeout(60)), 3)
	c.ask(get(coap.NON, groupURI(group, "/x")))
	p.signal(syscall.SIGUSR1)
	eventually(t, func() bool { return len(p.entries("counters")) == 1 }, "the counters")
	e := p.entries("counters")[0]
	for name, want := range map[string]float64{"proxy_requests_total": 2, "proxy_group_requests_total": 1, "proxy_responses_relayed_total": 3,
		"proxy_group_exchanges": 1, "group_requests_total": 1, "group_responses_total": 3, "proxy_failures_total{timeout_missing}": 1} {
		require.Equal(t, want, e[name], name)
	}
	p.stop()
	p.logged("counters", 2)
}

// What cannot be listened on is said, with the exit code for what may work
// later.
func TestListenFails(t *testing.T) {
	t.Parallel()
	taken := mustSocket(t, here, netip.MustParseAddrPort("127.0.0.1:0"))
	for name, tt := range map[string]struct{ listen, want string }{
		"port in use":           {fmt.Sprintf("- coap://%v", taken.local), taken.local.String()},
		"not an address here":   {"- coap://192.0.2.77", "192.0.2.77"},
		"not an address here 6": {"- coap://[2001:db8::77]", "2001:db8::77"},
		"second port in use":    {fmt.Sprintf("- coap://127.0.0.1:0\n- coap://%v", taken.local), taken.local.String()},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			file := filepath.Join(t.TempDir(), "config.yaml")
			require.NoError(t, os.WriteFile(file, []byte(settings{listen: tt.listen}.yaml(netip.AddrPort{})), 0o600))
			p := start(t, here, "coapproxy", program, "serve", "--config", file)
			require.Equal(t, exitFailed, p.wait())
			require.Contains(t, p.text(), tt.want)
			require.NotContains(t, p.text(), `"ready"`)
		})
	}
}

// The end: no new requests, running exchanges have their grace, and the port is
// free for the next start.
func TestGracefulStop(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, after(800*time.Millisecond, content))
	port := mustSocket(t, here, netip.MustParseAddrPort("127.0.5.1:0")).local.Port() // free on 127.0.5.2
	s := settings{listen: fmt.Sprintf("- coap://127.0.5.2:%d", port), limits: "grace: 20s"}
	p := startProxy(t, group, s)
	c := newClient(t, here, clientAddr, p.addr())
	running := c.fresh(get(coap.NON, groupURI(group, "/running"), timeout(4)))
	began := time.Now()
	c.send(running)
	eventually(t, func() bool { return len(servers[0].requests()) == 1 }, "the request")
	p.signal(syscall.SIGTERM)
	p.waitFor(`"msg":"stopping"`)
	var refused incoming
	eventually(t, func() bool {
		refused = c.ask(get(coap.CON, groupURI(group, "/late"), timeout(2)))
		return refused.Code == coap.CodeOf(5, 3)
	}, "refusal")
	require.True(t, refused.Has(coap.MaxAge)) // FP-34
	for range servers {
		in := c.expect()
		require.Equal(t, running.Token, in.Token)
		require.Equal(t, coap.CodeOf(2, 5), in.Code)
	}
	require.Zero(t, p.wait())
	require.InDelta(t, 4, time.Since(began).Seconds(), 2, "as long as the exchange, not as long as the grace")
	require.Zero(t, p.entries("stopped")[0]["exchanges_cut_off"])

	s.limits = ""
	// At once again, on the same port.
	second := startProxy(t, group, s)
	require.Equal(t, p.addr(), second.addr())
	require.Len(t, c.gatherN(get(coap.NON, groupURI(group, "/again"), timeout(60)), 2), 2)
	// Killed, too: nothing is left behind that stops the next.
	second.kill()
	third := serveFile(t, here, second.config)
	require.Len(t, c.gatherN(get(coap.NON, groupURI(group, "/third"), timeout(60)), 2), 2)
	third.stop()
}

// The grace has an end.
func TestGraceEnds(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 1, silent)
	p := startProxy(t, group, settings{limits: "grace: 300ms"})
	c := newClient(t, here, clientAddr, p.addr())
	c.send(c.fresh(get(coap.NON, groupURI(group, "/x"), timeout(600))))
	eventually(t, func() bool { return len(servers[0].requests()) == 1 }, "the request")
	began := time.Now()
	p.stop()
	require.Greater(t, time.Since(began), 250*time.Millisecond)
	require.Less(t, time.Since(began), 5*time.Second)
	require.Equal(t, 1.0, p.entries("stopped")[0]["exchanges_cut_off"])
}

// An example of the message of every option is decoded; nonsense is not.
func TestDecode(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		args []string
		code int
		want []string
	}{
		{[]string{"52452003a1b2d8eb82208144c0000207ff6f6b"}, 0, []string{"NON", "2.05 Content", "8195", "a1b2", "248", "Reply-From", "coap://192.0.2.7", "ok"}},
		{[]string{"52", "45", "20 07", "a1b2", "da538201d9010444c0000207", "d88b82208144c0000207ff6f6b"}, 0, []string{"Response-Forwarding", "Reply-From", "coap://192.0.2.7"}},
		{[]string{"52:45:20:04:a1:b2:dd:53:09:82:01:d9:01:04:50:20:01:0d:b8:00:00:00:00:00:00:00:00:00:00:00:01:ff:6f:6b"}, 0, []string{"coap://[2001:db8::1]"}},
		{[]string{"42011001a1b2213cdd140b636f61703a2f2f5b666630353a3a66645d3a353638332f72"}, 0, []string{"CON", "0.01 GET", "Multicast-Timeout", "60 s", "Proxy-Uri", "coap://[ff05::fd]:5683/r"}},
		{[]string{"42011004a1b2213cdddc0a83208150ff0500000000000000000000000000fd816172"}, 0, []string{"Proxy-Cri", "coap://[ff05::fd]/r"}},
		{[]string{"42011007a1b220"}, 0, []string{"Early Stop"}},
		{[]string{"70001234"}, 0, []string{"RST", "4660"}},
		{[]string{"4001000113"}, exitFailed, nil},
		{[]string{"zz"}, exitUsage, []string{"not hex"}},
	} {
		out := run(t, here, append([]string{program, "decode"}, tt.args...)...)
		require.Equal(t, tt.code, out.code, "%v: %s%s", tt.args, out.stdout, out.stderr)
		for _, want := range tt.want {
			require.Contains(t, out.stdout+out.stderr, want)
		}
	}
}
