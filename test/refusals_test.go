package test

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// What bad requests get: exactly the codes of the rules, with a short text, and
// no effect on anybody else.
func TestRefusals(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, content)
	origin := single(t, content)
	p := startProxy(t, group, settings{client: `forward: ["coap://127.0.2.1:*"]`, proxy: "identifier: here"})
	c := newClient(t, here, clientAddr, p.addr())
	uri, unicast := groupURI(group, "/x"), "coap://"+origin.addr().String()+"/x"
	options := func(o ...coap.Option) *coap.Message { return &coap.Message{Code: coap.GET, Options: o} }
	message := func(code coap.Code, payload string, o ...coap.Option) *coap.Message {
		return &coap.Message{Code: code, Payload: []byte(payload), Options: o}
	}
	proxyURI := func(s string) coap.Option { return coap.Opt(coap.ProxyURI, s) }
	cri := func(s string) coap.Option {
		b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
		require.NoError(t, err)
		return coap.Opt(coap.ProxyCRI, b)
	}
	scheme := coap.Opt(coap.ProxyScheme, "coap")
	noMaxAge := -1

	tests := []struct {
		name    string
		request *coap.Message
		code    string
		maxAge  int // -1: the option must not be there
		reason  string
	}{
		// Groups.
		{"no timeout (GP-26)", options(proxyURI(uri)), "4.00", noMaxAge, "timeout_missing"},
		{"group not configured (GP-23)", options(timeout(2), proxyURI("coap://224.0.1.188/x")), "4.01", 0, "denied"},
		{"port not configured (GC-2)", options(timeout(2), proxyURI("coap://224.0.1.187:1/x")), "4.01", 0, "denied"},
		{"scope too wide (GC-5)", options(timeout(2), proxyURI("coap://[ff0e::fd]/x")), "4.01", 0, "denied"},
		{"not allowed and no timeout (GP-23)", options(proxyURI("coap://224.0.1.188/x")), "4.01", 0, "denied"},
		{"secure scheme (GP-22)", options(timeout(2), proxyURI("coaps://224.0.1.187/x")), "5.05", 0, "not_proxied"},
		{"stream scheme (GP-22)", options(timeout(2), proxyURI("coap+tcp://224.0.1.187/x")), "5.05", 0, "not_proxied"},
		{"secure port (GC-4)", options(timeout(2), proxyURI("coap://224.0.1.187:5684/x")), "5.05", 0, "not_proxied"},
		{"timeout too long a number (GP-3)", options(coap.Opt(coap.MulticastTimeout, []byte{0, 0, 0, 0, 2}), proxyURI(uri)), "4.02", noMaxAge, "bad_option"},
		{"timeout twice (GP-3)", options(timeout(2), timeout(2), proxyURI(uri)), "4.02", noMaxAge, "bad_option"},
		{"method (GC-70)", message(coap.DELETE, "", timeout(2), proxyURI(uri)), "4.05", 0, "method_not_allowed"},
		{"unknown method (GC-70)", message(31, "", timeout(2), proxyURI(uri)), "4.05", 0, "method_not_allowed"},
		{"body in blocks (GC-52)", message(coap.FETCH, "x", timeout(2), proxyURI(uri), block(coap.Block1, 0, true, 2)), "4.13", noMaxAge, "too_large"},
		{"later block (GC-52)", message(coap.FETCH, "x", timeout(2), proxyURI(uri), block(coap.Block1, 3, false, 2)), "4.13", noMaxAge, "too_large"},
		{"body too large (GC-56)", message(coap.FETCH, string(pattern(1025)), timeout(2), proxyURI(uri)), "4.13", noMaxAge, "too_large"},
		{"Q-Block1 (GC-53)", options(timeout(2), proxyURI(uri), coap.Uint(19, 0)), "4.02", noMaxAge, "bad_option"},
		{"Q-Block2 (GC-53)", options(timeout(2), proxyURI(uri), coap.Uint(31, 0)), "4.02", noMaxAge, "bad_option"},
		{"protected (GC-92)", options(timeout(2), proxyURI(uri), coap.Opt(9, []byte{9, 1, 2})), "4.01", 0, "denied"},

		// Targets.
		{"secure target (FP-87)", options(proxyURI("coaps://127.0.2.1/x")), "4.01", 0, "denied"},
		{"HTTP target (FP-7)", options(proxyURI("http://127.0.2.1/x")), "5.05", 0, "not_proxied"},
		{"unknown scheme (FP-7)", options(proxyURI("gopher://127.0.2.1/x")), "5.05", 0, "not_proxied"},
		{"unknown scheme number (FP-6)", options(coap.Opt(coap.URIHost, "127.0.2.1"), coap.Uint(coap.ProxySchemeNumber, 999)), "5.05", 0, "not_proxied"},
		{"target not allowed (FP-7)", options(proxyURI("coap://127.0.2.2/x")), "4.01", 0, "denied"},
		{"two schemes (FP-2)", options(coap.Opt(coap.URIHost, "127.0.2.1"), scheme, coap.Uint(coap.ProxySchemeNumber, 0)), "4.02", noMaxAge, "bad_option"},
		{"fragment (FP-3)", options(proxyURI(unicast + "#f")), "4.02", noMaxAge, "bad_option"},
		{"relative (FP-3)", options(proxyURI("/x")), "4.02", noMaxAge, "bad_option"},
		{"empty Proxy-Uri (FP-3)", options(proxyURI("")), "4.02", noMaxAge, "bad_option"},
		{"long Proxy-Uri (FP-3)", options(proxyURI(unicast + "/" + strings.Repeat("a", 1035-len(unicast)-1))), "4.02", noMaxAge, "bad_option"},
		{"no host (FP-3)", options(proxyURI("coap:///x")), "4.02", noMaxAge, "bad_option"},
		{"userinfo (FP-10)", options(proxyURI("coap://me@127.0.2.1/x")), "4.02", noMaxAge, "bad_option"},
		{"Proxy-Uri twice (FP-22)", options(proxyURI(unicast), proxyURI(unicast)), "4.02", noMaxAge, "bad_option"},
		{"no CRI (FP-3)", options(cri("ff")), "4.02", noMaxAge, "bad_option"},
		{"truncated CRI (FP-3)", options(cri("83 20 81 44 7f00")), "4.02", noMaxAge, "bad_option"},
		{"CRI with more behind it (FP-3)", options(cri("82 20 81 44 7f000201 00")), "4.02", noMaxAge, "bad_option"},
		{"CRI with fragment (FP-3)", options(cri("85 20 81 44 7f000201 80 80 61 66")), "4.02", noMaxAge, "bad_option"},
		{"CRI reference (FP-3)", options(cri("82 00 81 61 78")), "4.02", noMaxAge, "bad_option"},
		{"dot segment (FP-28)", options(coap.Opt(coap.URIHost, "127.0.2.1"), coap.Opt(coap.URIPath, ".."), scheme), "4.02", noMaxAge, "bad_option"},
		{"path and its abbreviation (FP-9)", options(proxyURI(unicast), coap.Uint(coap.URIPathAbbrev, 0)), "4.02", noMaxAge, "bad_option"},
		{"Uri-Host too long (FP-22)", options(coap.Opt(coap.URIHost, strings.Repeat("a", 256)), scheme), "4.02", noMaxAge, "bad_option"},
		{"link-local without zone (GP-57)", options(proxyURI("coap://[fe80::1]/x")), "4.00", 0, "bad_request"},
		{"name does not resolve (FP-34)", options(proxyURI("coap://no-such-host.invalid/x")), "5.02", noMaxAge, "unreachable"},

		// Other options.
		{"unknown unsafe option (FP-20)", options(proxyURI(unicast), coap.Opt(2050, "x")), "4.02", noMaxAge, "bad_option"},
		{"unknown unsafe option to a group (GC-74)", options(timeout(2), proxyURI(uri), coap.Opt(2050, "x")), "4.02", noMaxAge, "bad_option"},
		{"Hop-Limit 0 (FP-52)", options(proxyURI(unicast), coap.Opt(coap.HopLimit, []byte{0})), "4.00", 0, "bad_request"},
		{"Hop-Limit of two bytes (FP-52)", options(proxyURI(unicast), coap.Opt(coap.HopLimit, []byte{1, 0})), "4.00", 0, "bad_request"},
		{"Hop-Limit used up (FP-52)", options(proxyURI(unicast), coap.Uint(coap.HopLimit, 1)), "5.08", noMaxAge, "hop_limit_reached"},
		{"Hop-Limit used up, group (GC-75)", options(timeout(2), proxyURI(uri), coap.Uint(coap.HopLimit, 1)), "5.08", noMaxAge, "hop_limit_reached"},

		// The proxy itself.
		{"no such resource (FP-8)", options(coap.Opt(coap.URIPath, "x")), "4.04", noMaxAge, "not_found"},
		{"own address (FP-8)", options(proxyURI("coap://" + p.addr().String() + "/x")), "4.04", noMaxAge, "not_found"},
		{"own address by default (FP-4)", options(coap.Opt(coap.URIPath, "x"), scheme), "4.04", noMaxAge, "not_found"},
		{"critical option (FP-25)", options(coap.Opt(coap.URIPath, "x"), coap.Opt(2049, "x")), "4.02", noMaxAge, "bad_option"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			for _, kind := range []coap.Type{coap.CON, coap.NON} {
				before := len(p.refusals())
				m := *tt.request
				m.Type, m.Token = kind, nil
				in := c.ask(&m)
				require.Equal(t, tt.code, in.Code.String(), "%q", in.Payload)
				if kind == coap.CON && !strings.Contains(tt.name, "resolve") {
					require.Equal(t, coap.ACK, in.Type, "piggybacked")
				}
				require.False(t, in.Has(coap.ReplyFrom)) // GP-39
				maxAge, ok := in.Option(coap.MaxAge)
				require.Equal(t, tt.maxAge != noMaxAge, ok, "Max-Age") // GP-27
				require.Zero(t, maxAge.Uint())
				require.NotEmpty(t, in.Payload)
				require.LessOrEqual(t, len(in.Payload), 128)            // FP-38
				require.NotContains(t, string(in.Payload), "127.0.2.1") // FP-38
				eventually(t, func() bool { return len(p.refusals()) > before }, "a line in the log")
				require.Equal(t, append(p.refusals()[:before:before], tt.reason), p.refusals())
			}
		})
	}
	// One line per refused request, with client, target and reason.
	lines := p.entries("request refused")
	require.Len(t, lines, 2*len(tests))
	for _, e := range lines {
		require.Equal(t, c.socket.local.String(), e.text("client"))
		require.NotEmpty(t, e.text("reason"))
		require.NotEmpty(t, e.text("detail"))
		if e.text("reason") == "denied" {
			require.NotEmpty(t, e.text("target"), "%v", e)
		}
	}
	for _, s := range append(servers, origin) {
		require.Empty(t, s.requests(), "nothing is forwarded")
	}
}

// The worked bytes of GP-26.
func TestMissingTimeoutBytes(t *testing.T) {
	t.Parallel()
	_, group := members(t, 1, content)
	p := startProxy(t, group, settings{})
	c := newClient(t, here, clientAddr, p.addr())
	uri := groupURI(group, "/r")
	c.sendHex("42011005a1b2" + "dd16" + fmt.Sprintf("%02x", len(uri)-13) + hex.EncodeToString([]byte(uri)))
	// 4.00, piggybacked; an empty Multicast-Timeout and the text.
	require.Equal(t, "62801005a1b2"+"20"+"ff"+hex.EncodeToString([]byte("Please use Multicast-Timeout")),
		hex.EncodeToString(c.expect().data))
}

// 5.01 where no group is configured (GP-22).
func TestGroupsDisabled(t *testing.T) {
	t.Parallel()
	p := startProxy(t, netip.AddrPort{}, settings{})
	c := newClient(t, here, clientAddr, p.addr())
	in := c.ask(get(coap.CON, "coap://224.0.1.187/x", timeout(2)))
	require.Equal(t, coap.CodeOf(5, 1), in.Code)
	maxAge, ok := in.Option(coap.MaxAge)
	require.True(t, ok)
	require.Zero(t, maxAge.Uint()) // GP-27
}

// Errors as problem details for who asks for them (FP-38).
func TestProblemDetails(t *testing.T) {
	t.Parallel()
	p := startProxy(t, netip.AddrPort{}, settings{})
	c := newClient(t, here, clientAddr, p.addr())
	in := c.ask(get(coap.CON, "coap://127.0.2.1/x", coap.Opt(2050, "x"), coap.Uint(coap.Accept, 257)))
	require.Equal(t, coap.CodeOf(4, 2), in.Code)
	format, _ := in.Option(coap.ContentFormat)
	require.Equal(t, uint64(257), format.Uint())
	require.Equal(t, "a127190802", hex.EncodeToString(in.Payload))
	in = c.ask(get(coap.CON, "coap://127.0.2.1/x", coap.Uint(coap.Accept, 257)))
	require.Equal(t, coap.CodeOf(4, 1), in.Code)
	require.Equal(t, []byte{0xa1, 0x20}, in.Payload[:2])
}

// The size of what was refused tells what would fit (GC-52).
func TestSizeLimit(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 1, content)
	p := startProxy(t, group, settings{group: "max_request_payload: 100\nleisure: 1s\nmethods: [FETCH]"})
	c := newClient(t, here, clientAddr, p.addr())
	m := get(coap.NON, groupURI(group, "/x"), timeout(2))
	m.Code, m.Payload = coap.FETCH, pattern(101)
	in := c.ask(m)
	require.Equal(t, coap.CodeOf(4, 13), in.Code)
	size, ok := in.Option(coap.Size1)
	require.True(t, ok)
	require.Equal(t, uint64(100), size.Uint())
	m = get(coap.NON, groupURI(group, "/x"), timeout(2), block(coap.Block1, 0, false, 6))
	m.Code, m.Payload = coap.FETCH, pattern(100)
	require.Equal(t, coap.CodeOf(2, 5), c.ask(m).Code) // one block is the whole
	require.False(t, servers[0].requests()[0].Has(coap.Block1))
}

// Nothing of what people send is written to the log or told to others, at any level: payloads,
// queries, user names and passwords in URIs, tokens.
func TestNothingSecretIsTold(t *testing.T) {
	t.Parallel()
	_, group := members(t, 1, func(s *server, r *request) {
		s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Payload: []byte("secret of the server")})
	})
	p := startProxy(t, group, privately(settings{group: "methods: [FETCH]\nleisure: 1s", client: `forward: ["coap://127.0.1.1:*"]`,
		listen: "- coap://127.0.0.1:0\n- http://127.0.0.1:0"}))
	c := newClient(t, here, clientAddr, p.addr())
	m := get(coap.NON, groupURI(group, "/x?key=secret"), timeout(1))
	m.Code, m.Payload = coap.FETCH, []byte("secret of the client")
	c.gatherN(m, 1)
	server := fmt.Sprintf("127.0.1.1:%d", group.Port())
	answered := 0
	for _, uri := range []string{"coap://" + server + "/x?key=secret", "coap://127.0.9.9/x?key=secret", "coap://me:secret@" + server + "/x",
		"coap://" + server + "/x?key=secret%zz", "coap://" + server + "/x?key=secret#secret", "coap://[host]/x?secret", "nonsense?secret",
		"coap://nowhere.invalid/x?key=secret", "http://127.0.9.9/?key=secret", groupURI(group, "/x?key=secret")} {
		m := get(coap.CON, uri)
		m.Payload = []byte("secret of the client")
		in := c.ask(m)
		if in.Code == coap.CodeOf(2, 5) {
			answered++
			continue
		}
		require.NotContains(t, string(in.Payload), "secret", uri)
	}
	require.Equal(t, 1, answered)
	web := "http://" + p.addrs[1].String() + "/hc/coap://"
	curl(t, "-H", "Authorization: Bearer secret", web+server+"/x?key=secret")
	curl(t, "-u", "me:secret", web+server+"/x")
	refused := curl(t, web+"127.0.9.9/x?key=secret")
	require.Contains(t, refused, "HTTP/1.1 403")
	require.NotContains(t, refused, "secret")
	_, metrics := p.private("/metrics")
	require.NotContains(t, metrics, "secret")
	p.stop()
	require.NotContains(t, p.text(), "secret")
	require.Contains(t, p.text(), "relayed")
}
