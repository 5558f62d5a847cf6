package test

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// proxy is a running coapproxy.
type proxy struct {
	*process
	config string           // its file
	addrs  []netip.AddrPort // its listeners
}

// addr is the proxy's first listener.
func (p *proxy) addr() netip.AddrPort { return p.addrs[0] }

// settings are what a test says about the configuration of its proxy; the rest
// is made for tests on the loopback interface. Each text is YAML, indented as if
// it began a line of its own.
type settings struct {
	listen  string // list items; default: a free port on 127.0.0.1
	clients string // list items; default: everybody on 127.0.0.0/8, every group
	client  string // further keys of the default client
	groups  string // list items; default: the group given, on lo
	group   string // further keys of the default group
	proxy   string // further keys
	limits  string // further keys
	names   string
	top     string // further top-level keys
	cache   string // keys; default: no cache
	control string // keys; default: no control socket
	metrics string // keys; default: nowhere
	log     string // default: debug
}

// indent puts every line of a text under a key.
func indent(by, text string) string {
	text = strings.Trim(text, "\n")
	if text == "" {
		return ""
	}
	return by + strings.ReplaceAll(text, "\n", "\n"+by) + "\n"
}

func (s settings) yaml(group netip.AddrPort) string {
	or := func(text, standard string) string {
		if text == "" {
			return standard
		}
		return text
	}
	var b strings.Builder
	b.WriteString("listen:\n" + indent("  ", or(s.listen, "- coap://127.0.0.1:0")))
	b.WriteString("clients:\n" + or(indent("  ", s.clients),
		"  - name: tester\n    networks: [127.0.0.0/8]\n    groups: \"*\"\n"+indent("    ", s.client)))
	if group.IsValid() || s.groups != "" {
		b.WriteString("groups:\n" + or(indent("  ", s.groups), fmt.Sprintf(
			"  - name: devices\n    uri: coap://%v\n    interfaces: [lo]\n    loopback: true\n%s", group,
			indent("    ", or(s.group, "nstart: 16\nleisure: 1s\nprobing_rate: 0")))))
	}
	if s.names != "" {
		b.WriteString("names:\n" + indent("  ", s.names))
	}
	if s.top != "" {
		b.WriteString(s.top + "\n")
	}
	b.WriteString("cache:\n" + indent("  ", or(s.cache, "enabled: false")))
	b.WriteString("control:\n" + indent("  ", or(s.control, "socket: off")))
	b.WriteString("metrics:\n" + indent("  ", or(s.metrics, `listen: "off"`)))
	b.WriteString("proxy:\n  allow_loopback: true\n" + indent("  ", s.proxy))
	limits := s.limits
	if !strings.Contains(limits, "grace:") {
		limits += "\ngrace: 0s" // tests end when they have seen enough
	}
	b.WriteString("limits:\n  receive_buffer: 208KiB\n" + indent("  ", limits))
	b.WriteString("log:\n  format: json\n  level: " + or(s.log, "debug") + "\n")
	return b.String()
}

// startProxy starts a proxy with a group on the loopback interface, which may
// be none.
func startProxy(t *testing.T, group netip.AddrPort, s settings) *proxy {
	t.Helper()
	return startProxyIn(t, here, s.yaml(group))
}

// startProxyIn starts a proxy in a host and waits until it is ready. At the end
// of the test it has to stop as a service manager would stop it, without having
// logged anything that is a defect.
func startProxyIn(t *testing.T, h *host, yaml string) *proxy {
	t.Helper()
	file := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(file, []byte(yaml), 0o600))
	return serveFile(t, h, file)
}

// serveFile starts a proxy with a configuration file.
func serveFile(t *testing.T, h *host, file string) *proxy {
	t.Helper()
	p := &proxy{process: start(t, h, "coapproxy", program, "serve", "--config", file), config: file}
	t.Cleanup(func() { p.stop() })
	p.waitFor(`"msg":"ready"`)
	for _, e := range p.entries("listening") {
		_, authority, _ := strings.Cut(e.text("uri"), "://")
		addr, err := netip.ParseAddrPort(authority)
		require.NoError(t, err)
		p.addrs = append(p.addrs, addr)
	}
	return p
}

// stop ends the proxy as a service manager does, if it still runs.
func (p *proxy) stop() {
	p.t.Helper()
	if p.running() {
		p.signal(syscall.SIGTERM)
		require.Zero(p.t, p.wait(), "exit code of coapproxy")
	}
	for _, e := range p.entries("") {
		require.NotEqual(p.t, "error", e.text("level"), "the proxy logged an error: %v", e)
	}
	require.NotContains(p.t, p.text(), "panic")
	require.NotContains(p.t, p.text(), "goroutine ")
}

// entry is one line of the proxy's log.
type entry map[string]any

func (e entry) text(key string) string {
	s, _ := e[key].(string)
	return s
}

// entries are the lines of the log with a message, or all.
func (p *proxy) entries(message string) []entry {
	p.t.Helper()
	var out []entry
	for _, line := range p.lines() {
		var e entry
		if line == "" || json.Unmarshal([]byte(line), &e) != nil {
			continue
		}
		if message == "" || e.text("msg") == message {
			out = append(out, e)
		}
	}
	return out
}

// logged waits until the log has n lines with a message, which it writes a moment after
// what they tell of has happened, and returns them. There may not be more.
func (p *proxy) logged(message string, n int) []entry {
	p.t.Helper()
	eventually(p.t, func() bool { return len(p.entries(message)) >= n }, "%d lines %q in the log", n, message)
	all := p.entries(message)
	require.Len(p.t, all, n, "lines %q in the log", message)
	return all
}

// refusals are the reasons of the requests refused so far.
func (p *proxy) refusals() []string {
	var out []string
	for _, e := range p.entries("request refused") {
		out = append(out, e.text("reason"))
	}
	return out
}

// files is how many files and sockets the proxy has open.
func (p *proxy) files() int {
	p.t.Helper()
	all, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", p.cmd.Process.Pid))
	require.NoError(p.t, err)
	return len(all)
}
