package test

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// libcoapServer starts libcoap's server as a member of a group and waits until
// it hears it.
func (l *lab) libcoapServer(h *host, own string, group netip.Addr) *process {
	l.t.Helper()
	p := start(l.t, h, "coap-server", "coap-server-notls", "-v", "7", "-A", own, "-g", group.String(), "-G", "eth0")
	p.waitFor("added mcast group")
	return p
}

// libcoap's servers answer a group request at a random moment within 5 s, each
// in its way: a group of them behind the proxy, in both families.
func TestLibcoapServers(t *testing.T) {
	inLab(t, "5", func(t *testing.T, l *lab) {
		l.libcoapServer(l.sv(1), "::", linkLocal)
		l.libcoapServer(l.sv(2), "::", linkLocal)
		l.libcoapServer(l.sv(3), "::", site)
		l.libcoapServer(l.sv(4), "0.0.0.0", group4)
		l.libcoapServer(l.sv(5), "0.0.0.0", group4)
		s := labSettings()
		s.clients = strings.Replace(s.clients, "groups:", `forward: ["coap://[fd00:5::]/64"]`+"\n  groups:", 1)
		l.startProxy(s)

		requests := []struct {
			uri     string
			servers []netip.AddrPort
			content string
		}{
			{"coap://[ff02::fd]/time", []netip.AddrPort{netip.AddrPortFrom(svLL(1), coapPort), netip.AddrPortFrom(svLL(2), coapPort)}, `^[A-Z][a-z]{2} \d\d `},
			{"coap://[ff05::fd]/.well-known/core", []netip.AddrPort{netip.AddrPortFrom(sv6(3), coapPort)}, `</time>;if="clock"`},
			{"coap://224.0.1.187/", []netip.AddrPort{netip.AddrPortFrom(sv4(4), coapPort), netip.AddrPortFrom(sv4(5), coapPort)}, `libcoap`},
		}
		for _, tt := range requests {
			t.Run(tt.uri, func(t *testing.T) {
				t.Parallel() // 5 s each
				c := l.client6(0)
				var got []netip.AddrPort
				for _, in := range c.gatherN(get(coap.NON, tt.uri, timeout(60)), len(tt.servers)) {
					require.Equal(t, coap.CodeOf(2, 5), in.Code)
					require.Regexp(t, tt.content, string(in.Payload))
					server := serverOf(t, in)
					got = append(got, netip.AddrPortFrom(server.Addr().WithZone(""), server.Port()))
					// The follow-up to whoever that was.
					follow := c.ask(get(coap.CON, "coap://"+strings.Replace(server.String(), "%", "%25", 1)+"/"))
					require.Equal(t, coap.CodeOf(2, 5), follow.Code, "%q", follow.Payload)
					require.Contains(t, string(follow.Payload), "libcoap")
				}
				require.ElementsMatch(t, tt.servers, got)
			})
		}
		t.Run("unicast", func(t *testing.T) {
			t.Parallel()
			c := l.client6(0)
			uri := fmt.Sprintf("coap://[%v]", sv6(1))
			// Separate, after 2 s.
			in := c.ask(get(coap.CON, uri+"/async?2"))
			require.Equal(t, coap.CodeOf(2, 5), in.Code)
			require.Equal(t, coap.CON, in.Type)
			put := get(coap.CON, uri+"/example_data", coap.Uint(coap.ContentFormat, 0))
			put.Code, put.Payload = coap.PUT, []byte("hello from behind the proxy")
			require.Equal(t, coap.CodeOf(2, 1), c.ask(put).Code)
			require.Equal(t, "hello from behind the proxy", string(c.ask(get(coap.CON, uri+"/example_data")).Payload))
			require.Equal(t, coap.CodeOf(4, 4), c.ask(get(coap.CON, uri+"/none")).Code)
		})
	})
}

// libcoap's clients of all builds. What is known of them, and has to be borne:
// options of its own beside Proxy-Uri, Hop-Limit 16, Request-Tag with a body, and
// a RST for the second of several responses.
func TestLibcoapClients(t *testing.T) {
	inLab(t, "3", func(t *testing.T, l *lab) {
		body := pattern(5000)
		devices := l.devices(3, paths(map[string]handler{"large": blockwise(body, 6)}))
		s := labSettings()
		s.clients = strings.Replace(s.clients, "groups:", `forward: ["coap://[fd00:5::]/64", "coap://10.78.0.0/16"]`+"\n  groups:", 1)
		s.groups = strings.Replace(labGroups, "nstart: 16", "nstart: 16, methods: [GET, PUT]", 1)
		p := l.startProxy(s)
		cl := l.cl(0)

		for _, build := range []string{"coap-client-notls", "coap-client-gnutls", "coap-client-openssl"} {
			for _, via := range []string{"coap://[fd00:c::1]", "coap://10.77.0.1"} {
				for _, kind := range [][]string{{}, {"-N"}} {
					name := fmt.Sprint(build, via, kind)
					command := append([]string{build, "-B", "10", "-P", via}, kind...)
					out := run(t, cl, append(command, "coap://[fd00:5::5:1]/a/b?c=d")...)
					require.Equal(t, "sv1/a/b\n", out.stdout, "%s: %s", name, out.stderr)
					r := devices[0].requests()
					last := r[len(r)-1]
					require.Equal(t, [][]byte{[]byte("c=d")}, last.All(coap.URIQuery))
					hops, _ := last.Option(coap.HopLimit)
					require.Equal(t, uint64(15), hops.Uint()) // 16 from the client (FP-52)
					out = run(t, cl, append(command, "coap://10.78.9.9:5684/x")...)
					require.Contains(t, out.stdout+out.stderr, "4.01", name)
				}
			}
		}

		// It prints the first response to a group request. With another request to
		// send it stays, and resets the second response: that ends the exchange
		// (GP-44), and the next one is not disturbed.
		for i, kind := range []string{"-N", "-U"} { // -U: nothing that matters here
			path, before := fmt.Sprintf("/group%d", i), len(p.entries("client wants no more responses"))
			out := run(t, cl, "coap-client-notls", "-w", "-B", "4", kind, "-G", "2", "-P", "coap://[fd00:c::1]", "-O", "2,0x1e", "coap://[ff05::fd]"+path)
			require.Regexp(t, `^sv[123]`+path+`\nsv[123]`+path+`\n`, out.stdout, out.stderr)
			eventually(t, func() bool { return len(p.entries("client wants no more responses")) > before }, "the end of the exchange")
			for _, d := range devices {
				eventually(t, func() bool { return len(d.requestsTo(path)) == 2 }, "both requests at %s", d.name)
			}
		}
		// Without Multicast-Timeout it is told what is missing.
		out := run(t, cl, "coap-client-notls", "-B", "3", "-P", "coap://[fd00:c::1]", "coap://[ff05::fd]/x")
		require.Contains(t, out.stdout+out.stderr, "Please use Multicast-Timeout") // GP-26
		// A PUT to the group, with Request-Tag.
		out = run(t, cl, "coap-client-notls", "-B", "3", "-N", "-m", "put", "-e", "on", "-P", "coap://10.77.0.1", "-O", "2,0x02", "coap://224.0.1.187/light")
		require.Regexp(t, `sv[123]/light`, out.stdout, out.stderr)
		eventually(t, func() bool { return len(devices[0].requestsTo("/light")) == 1 }, "the PUT")
		require.Equal(t, "on", string(devices[0].requestsTo("/light")[0].Payload))

		// A large body, block by block.
		file := filepath.Join(t.TempDir(), "body")
		out = run(t, cl, "coap-client-notls", "-B", "10", "-o", file, "-P", "coap://[fd00:c::1]", "coap://[fd00:5::5:2]/large")
		got, err := os.ReadFile(file)
		require.NoError(t, err, out.stderr)
		require.Equal(t, string(body), string(got), out.stderr)
	})
}
