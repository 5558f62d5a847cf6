package test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// startDemo starts the demo and waits until it has shown what it has to show.
func startDemo(t *testing.T, h *host, args ...string) *process {
	t.Helper()
	p := start(t, h, "demo", append([]string{program, "demo"}, args...)...)
	p.waitFor(`(?s)Try in another terminal.*Ctrl-C`)
	return p
}

// The demo: five devices answer one request, and the commands it prints
// work as they stand.
func TestDemo(t *testing.T) {
	t.Parallel()
	p := startDemo(t, here)
	require.Contains(t, p.text(), "5 responses from 5 of 5 devices")
	var commands []string
	for _, m := range regexp.MustCompile(`(?m)^ {5}(\S.* request .*)$`).FindAllStringSubmatch(p.text(), -1) {
		commands = append(commands, m[1])
	}
	require.Len(t, commands, 5)
	commands[4] = strings.Replace(commands[4], "--observe", "--observe --stop-after 11", 1)
	curl := regexp.MustCompile(`(?m)^ {5}(curl .*)$`).FindStringSubmatch(p.text())
	require.NotNil(t, curl, p.text())
	commands = append(commands, curl[1]+" -s")
	for i, want := range []string{
		`(?s)(°C.*){5}5 responses from 5 servers`,
		`5 × 2\.04 Changed`,
		`(?s)2\.05 Content.*\n  on\n`, // the light that was just switched on
		`(?s)(Observe=\d+.*°C.*){3}3 responses in `,
		`(?s)(Observe=\d+.*°C.*){11}11 responses from 5 servers`, // all of them, and what comes after the timeout
		`(?s)(HTTP/1\.1 200 OK.*Reply-From.* °C.*){5}`,
	} {
		out := run(t, here, "sh", "-c", commands[i])
		require.Zero(t, out.code, "%s: %s%s", commands[i], out.stdout, out.stderr)
		require.Regexp(t, want, out.stdout, commands[i])
	}
	// It is a proxy as any other.
	addr := netip.MustParseAddrPort(withPort(p.waitFor(`the proxy +coap://(\S+)`)[1]))
	group := withPort(p.waitFor(`the group +coap://(\S+)`)[1])
	c := newClient(t, here, clientAddr, addr)
	for _, in := range c.gatherN(get(coap.NON, "coap://"+group+"/.well-known/core", timeout(60)), 5) {
		require.Contains(t, string(in.Payload), "</temp>")
		serverOf(t, in)
	}
	m := get(coap.CON, "coap://"+group+"/light", timeout(2))
	m.Code = coap.DELETE
	require.Equal(t, coap.CodeOf(4, 5), c.ask(m).Code)
	// A second one beside it takes other ports.
	second := startDemo(t, here, "--devices", "2", "--leisure", "0s")
	require.Contains(t, second.text(), "2 responses from 2 of 2 devices")
	require.NotContains(t, second.text(), "coap://"+strings.TrimSuffix(addr.String(), ":5683")+" ")
	for _, p := range []*process{p, second} {
		p.signal(syscall.SIGINT)
		require.Zero(t, p.wait())
	}
}

// withPort writes the default port out.
func withPort(authority string) string {
	if !strings.Contains(authority, ":") {
		return authority + ":5683"
	}
	return authority
}

func TestDemoFlags(t *testing.T) {
	t.Parallel()
	out := run(t, here, program, "demo", "--print-config")
	require.Zero(t, out.code)
	file := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(file, []byte(out.stdout), 0o600))
	require.Zero(t, run(t, here, program, "check", file).code, out.stdout)

	taken := mustSocket(t, here, netip.MustParseAddrPort("127.0.0.1:0"))
	out = run(t, here, program, "demo", "--listen", taken.local.String())
	require.Equal(t, exitFailed, out.code)
	require.Contains(t, out.stderr, taken.local.String())

	readings := func() []string {
		p := startDemo(t, here, "--seed", "7", "--devices", "3", "--listen", "127.0.0.1:0")
		got := regexp.MustCompile(`\d+\.\d °C`).FindAllString(p.text(), -1)
		p.signal(syscall.SIGTERM)
		require.Zero(t, p.wait())
		slices.Sort(got)
		return got
	}
	first := readings()
	require.Len(t, first, 3)
	require.Equal(t, first, readings())

	verbose := startDemo(t, here, "--verbose", "--devices", "1", "--listen", "127.0.0.1:0")
	require.Contains(t, verbose.text(), "relayed")
}

// marked are the fenced blocks of a Markdown text that follow a mark
// <!-- test: NAME -->, by their names.
func marked(text string) map[string][]string {
	out := make(map[string][]string)
	for _, m := range regexp.MustCompile("(?s)<!-- test: (\\S+) -->\n+```\\w*\n(.*?)```\n").FindAllStringSubmatch(text, -1) {
		out[m[1]] = append(out[m[1]], m[2])
	}
	return out
}

// TestREADME holds the README to what the program does: see README.md beside
// this file for the marks. It runs on a host of its own, where the ports are
// free that the README shows.
func TestREADME(t *testing.T) {
	inLab(t, "1", func(t *testing.T, l *lab) {
		text, err := os.ReadFile("../README.md")
		require.NoError(t, err)
		blocks := marked(string(text))
		require.NotEmpty(t, blocks["demo"], "a block of the README marked <!-- test: demo -->")
		// As after make build: ./bin/coapproxy in the current directory.
		dir := t.TempDir()
		require.NoError(t, os.Mkdir(filepath.Join(dir, "bin"), 0o755))
		absolute, err := filepath.Abs(program)
		require.NoError(t, err)
		require.NoError(t, os.Symlink(absolute, filepath.Join(dir, "bin", "coapproxy")))
		in := func(command string) []string { return []string{"sh", "-c", "cd '" + dir + "' && exec " + command} }

		for _, block := range blocks["demo"] {
			command, want, ok := strings.Cut(block, "\n")
			require.True(t, ok)
			command, ok = strings.CutPrefix(command, "$ ")
			require.True(t, ok, "the first line is the command")
			p := start(t, l.px(), "demo", in(command)...)
			p.waitFor(`(?s)Try in another terminal.*Ctrl-C`)
			got := steady(p.text())
			lines := strings.SplitAfter(steady(want), "\n")
			require.GreaterOrEqual(t, len(strings.SplitAfter(got, "\n")), len(lines))
			require.Equal(t, strings.Join(lines, ""), strings.Join(strings.SplitAfter(got, "\n")[:len(lines)-1], ""),
				"what the README shows of %s", command)
			for _, commands := range blocks["commands"] {
				for _, line := range strings.Split(strings.TrimSpace(commands), "\n") {
					if line = strings.TrimPrefix(line, "$ "); line == "" || strings.HasPrefix(line, "#") {
						continue
					}
					out := run(t, l.px(), in(line)...)
					require.Zero(t, out.code, "%s: %s%s", line, out.stdout, out.stderr)
				}
			}
			p.signal(syscall.SIGTERM)
			require.Zero(t, p.wait())
		}
		for i, block := range blocks["config"] {
			file := filepath.Join(dir, fmt.Sprintf("%d.yaml", i))
			require.NoError(t, os.WriteFile(file, []byte(block), 0o600))
			out := run(t, l.px(), program, "check", file)
			require.Zero(t, out.code, "%s", out.stderr)
		}
	})
}

// steady takes out of the demo's output what differs from run to run: times,
// readings, and the order of the responses.
func steady(text string) string {
	text = regexp.MustCompile(`(?m)^ +\d+\.\d{3} s  `).ReplaceAllString(text, "   TIME s  ")
	text = regexp.MustCompile(`\d+\.\d °C`).ReplaceAllString(text, "READING °C")
	lines := strings.Split(text, "\n")
	for from := 0; from < len(lines); from++ {
		to := from
		for to < len(lines) && strings.HasPrefix(lines[to], "   TIME s  ") {
			to++
		}
		slices.Sort(lines[from:to])
		from = max(from, to)
	}
	return strings.Join(lines, "\n")
}
