package test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// The subcommand request over every transport: groups, bodies in blocks, and who is
// not who he should be.
func TestRequestOverEveryTransport(t *testing.T) {
	t.Parallel()
	body := strings.Repeat("0123456789abcdef", 6000) // beyond what is one message over TCP
	servers, group := members(t, 3, paths(map[string]handler{"temp": content, "long": func(s *server, r *request) {
		num, szx := uint32(0), uint32(6)
		if o, ok := r.Option(coap.Block2); ok {
			num = uint32(o.Uint() >> 4)
		}
		const size = 1024
		from := min(int(num)*size, len(body))
		to, more := min(from+size, len(body)), uint32(0)
		if to < len(body) {
			more = 8
		}
		s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Payload: []byte(body[from:to]), Options: []coap.Option{coap.Uint(coap.Block2, num<<4|more|szx)}})
	}}))
	authority, others, clients := newCertAuthority(t, "proxies"), newCertAuthority(t, "others"), newCertAuthority(t, "clients")
	own, meter := authority.issue("proxy", forServer), clients.issue("meter", withURI("urn:dev:meter"))
	psk := keyFile(t, "identity: gw\nkey: %q\n", fmt.Sprintf("%x", sharedKey))
	listen := ""
	for _, scheme := range allSchemes {
		listen += fmt.Sprintf("- %s://127.0.0.1:0\n", scheme)
	}
	allowed := "groups: \"*\"\n  forward: [\"coap://*:*\"]\n"
	p := startProxy(t, group, settings{listen: listen, log: "info", group: "leisure: 1s\nnstart: 16\nprobing_rate: 0", limits: "nstart: 16",
		top:     fmt.Sprintf("credentials: {psk: %s, certificate: %s, key: %s, client_authorities: %s}", psk, own.cert, own.key, clients.file),
		clients: "- name: gateway\n  psk: gw\n  " + allowed + "- name: meter\n  certificate: uri:urn:dev:meter\n  " + allowed + "- name: plain\n  networks: [127.0.0.0/8]\n  " + allowed})
	via := make(map[string]string)
	for i, scheme := range allSchemes {
		via[scheme] = scheme + "://" + p.addrs[i].String()
	}
	ask := func(t *testing.T, code int, args ...string) result {
		t.Helper()
		out := run(t, here, append([]string{program, "request"}, args...)...)
		require.Equal(t, code, out.code, "%s%s", out.stdout, out.stderr)
		return out
	}
	ways := map[string][]string{"coap": nil, "coap+tcp": nil, "coap+ws": nil, "coaps": {"--psk", psk}, "coaps+tcp": {"--authorities", authority.file},
		"coaps+ws": {"--authorities", authority.file}, "coaps with certificates": {"--authorities", authority.file, "--certificate", meter.cert, "--key", meter.key}}
	for name, flags := range ways {
		scheme, _, _ := strings.Cut(name, " ")
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			args := append([]string{"--via", via[scheme]}, flags...)
			out := ask(t, 0, append(args, "--multicast-timeout", "3", "GET", groupURI(group, "/temp"))...)
			for _, s := range servers {
				require.Contains(t, out.stdout, s.name+"/temp")
			}
			require.Contains(t, out.stdout, "3 responses from 3 servers")
			one := "coap://" + servers[0].addr().String()
			require.Contains(t, ask(t, 0, append(args, "GET", one+"/long")...).stdout, body[:50])
			require.Contains(t, ask(t, 0, append(args, "--json", "GET", one+"/long")...).stdout, body)
			// The proxy's own resources, over the transport itself.
			require.Contains(t, ask(t, 0, append(flags[:len(flags):len(flags)], "GET", via[scheme]+"/.well-known/core")...).stdout, via[scheme]+"  2.05 Content")
		})
	}
	t.Run("not who he should be", func(t *testing.T) {
		t.Parallel()
		wrong := keyFile(t, "identity: gw\nkey: %q\n", fmt.Sprintf("%x", strings.Repeat("x", 16)))
		for scheme, flags := range map[string][]string{"coaps": {"--psk", wrong}, "coaps+tcp": {"--authorities", others.file}, "coaps+ws": {"--authorities", others.file}} {
			out := ask(t, exitFailed, append(flags, "--timeout", "3s", "GET", via[scheme]+"/.well-known/core")...)
			require.NotContains(t, out.stdout, "2.05", scheme)
		}
		for scheme, file := range map[string]string{"coaps": "--authorities", "coaps+tcp": "--authorities"} {
			require.Contains(t, ask(t, exitFailed, file, filepath.Join(t.TempDir(), "none"), "GET", via[scheme]+"/x").stderr, "no such file")
		}
		readable := filepath.Join(t.TempDir(), "psk.yaml")
		require.NoError(t, os.WriteFile(readable, []byte("identity: a\nkey: "+strings.Repeat("ab", 16)+"\n"), 0o644))
		require.Contains(t, ask(t, exitFailed, "--psk", readable, "GET", via["coaps"]+"/x").stderr, "can be read by others")
	})
	t.Run("nobody there", func(t *testing.T) {
		t.Parallel()
		out := ask(t, exitFailed, "GET", "coap+tcp://127.0.0.9:1/x")
		require.Contains(t, out.stderr, "refused")
	})
	t.Run("trace", func(t *testing.T) {
		t.Parallel()
		out := run(t, here, program, "trace", "--via", via["coaps"], "--psk", psk, "--timeout", "20s", "coap://"+servers[0].addr().String()+"/temp")
		require.Zero(t, out.code, "%s%s", out.stdout, out.stderr)
		require.Contains(t, out.stdout, "2.05 Content")
	})
}
