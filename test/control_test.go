package test

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// controlSocket is a path short enough for a socket, and the configuration of
// it.
func controlSocket(t *testing.T) (path, keys string) {
	t.Helper()
	folder, err := os.MkdirTemp("", "coapproxy")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	path = filepath.Join(folder, "control.sock")
	return path, "socket: " + path
}

// shown runs a command with --json, and reads what it prints.
func shown[T any](t *testing.T, args ...string) T {
	t.Helper()
	out := run(t, here, append(append([]string{program}, args...), "--json")...)
	require.Zero(t, out.code, "%s%s", out.stdout, out.stderr)
	var v T
	require.NoError(t, json.Unmarshal([]byte(out.stdout), &v), out.stdout)
	return v
}

type shownEntries struct {
	Total   int
	Entries []struct {
		URI, Server, Method, Code, ETag string
		Payload                         int     `json:"payload_bytes"`
		Age                             float64 `json:"age_seconds"`
		Fresh                           float64 `json:"fresh_seconds"`
	}
	Group *struct {
		Name, URI, Source string
		Complete          bool
		Members           []string
	}
}

// An operator sees what is stored, and drops it.
func TestCacheShowAndFlush(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 3, stored)
	var list []string
	for _, s := range servers {
		list = append(list, fmt.Sprintf("%q", s.addr().String()))
	}
	socket, keys := controlSocket(t)
	p := startProxy(t, group, settings{cache: "enabled: true", control: keys, clients: forwarding.clients, client: forwarding.client,
		group: "nstart: 16\nleisure: 1s\nprobing_rate: 0\nmembers: [" + strings.Join(list, ", ") + "]"})
	c := newClient(t, here, clientAddr, p.addr())
	c.gatherN(get(coap.NON, fmt.Sprintf("coap://%v/x", group), timeout(30)), len(servers))
	origin := single(t, stored)
	alone := "coap://" + origin.addr().String() + "/y?z=1"
	require.Equal(t, coap.CodeOf(2, 5), c.ask(get(coap.CON, alone)).Code)

	all := shown[shownEntries](t, "cache", "show", "--socket", socket)
	require.Equal(t, 4, all.Total)
	require.Equal(t, alone, all.Entries[0].URI, "the most recently used first")
	require.Equal(t, "GET", all.Entries[0].Method)
	require.Equal(t, "2.05 Content", all.Entries[0].Code)
	require.Equal(t, "6531", all.Entries[0].ETag)
	require.Equal(t, len("server"), all.Entries[0].Payload)
	require.Greater(t, all.Entries[0].Fresh, 30.0)

	of := shown[shownEntries](t, "cache", "show", "--config", p.config, "--group", "devices")
	require.Equal(t, 3, of.Total)
	require.True(t, of.Group.Complete)
	require.Equal(t, "static", of.Group.Source)
	require.Len(t, of.Group.Members, 3)

	out := run(t, here, program, "cache", "show", "--socket", socket)
	require.Contains(t, out.stdout, "URI ")
	require.Contains(t, out.stdout, alone+" ")
	require.True(t, strings.HasSuffix(out.stdout, "4 entries\n"), out.stdout)
	out = run(t, here, program, "cache", "stats", "--socket", socket)
	require.Contains(t, out.stdout, "entries  4 of 10000")
	require.Regexp(t, `(?m)^stored_total +4$`, out.stdout)

	type flushed struct{ Flushed int }
	flush := func(args ...string) int {
		return shown[flushed](t, append([]string{"cache", "flush", "--socket", socket}, args...)...).Flushed
	}
	require.Zero(t, flush("--uri", fmt.Sprintf("coap://%v/other", group)))
	require.Equal(t, 1, flush("--uri", fmt.Sprintf("coap://%v/x", servers[0].addr())))
	require.Equal(t, 2, flush("--uri", fmt.Sprintf("coap://%v/x", group)))
	require.Equal(t, coap.CodeOf(2, 5), c.ask(get(coap.CON, alone)).Code)
	require.Len(t, origin.requests(), 1)
	require.Equal(t, 1, flush())
	require.Equal(t, coap.CodeOf(2, 5), c.ask(get(coap.CON, alone)).Code)
	require.Len(t, origin.requests(), 2)

	for args, message := range map[string]string{
		"--group nobody":             "no group",
		"--uri x":                    "uri: bad URI",
		"--server x":                 "server: not an address",
		"--uri coap://224.0.1.250/x": "is no group of the configuration",
	} {
		out := run(t, here, append([]string{program, "cache", "show", "--socket", socket}, strings.Fields(args)...)...)
		require.Equal(t, exitFailed, out.code)
		require.Contains(t, out.stderr, message)
	}
}

// Who owns the control socket is told; a second proxy with the same one does not
// start, one that did not ask for it does.
func TestControlSocket(t *testing.T) {
	t.Parallel()
	socket, keys := controlSocket(t)
	p := startProxy(t, group0, settings{control: keys})
	info, err := os.Lstat(socket)
	require.NoError(t, err)
	require.Equal(t, os.ModeSocket|0o600, info.Mode())
	out := run(t, here, program, "cache", "show", "--socket", socket)
	require.Equal(t, exitFailed, out.code)
	require.Contains(t, out.stderr, "the cache is not enabled")

	file := filepath.Join(t.TempDir(), "second.yaml")
	require.NoError(t, os.WriteFile(file, []byte(settings{control: keys}.yaml(group0)), 0o600))
	out = run(t, here, program, "serve", "--config", file)
	require.Equal(t, exitFailed, out.code)
	require.Contains(t, out.stderr, "another program serves this control socket")
	p.stop()
	require.NoFileExists(t, socket)
	startProxy(t, group0, settings{control: keys})
}
