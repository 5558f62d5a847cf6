package test

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// echoOption is the number of Echo.
const echoOption = 252

// A client that must prove its address is challenged before a group is asked for
// it, answers, and is left in peace (FP-81); `coapproxy request` answers by itself.
func TestEchoChallenge(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, content)
	p := startProxy(t, group, settings{client: "echo: required"})
	c := newClient(t, here, clientAddr, p.addr())
	challenge := c.ask(get(coap.CON, fmt.Sprintf("coap://%v/x", group), timeout(5)))
	require.Equal(t, coap.CodeOf(4, 1), challenge.Code)
	require.Len(t, challenge.All(echoOption), 1)
	require.Empty(t, servers[0].requests())
	responses := c.gatherN(get(coap.NON, fmt.Sprintf("coap://%v/x", group), timeout(30), coap.Opt(echoOption, challenge.All(echoOption)[0])), 2)
	require.Len(t, responses, 2)
	require.False(t, servers[0].requestsTo("/x")[0].Has(echoOption))
	responses = c.gatherN(get(coap.NON, fmt.Sprintf("coap://%v/y", group), timeout(30)), 2)
	require.Len(t, responses, 2)

	out := run(t, here, program, "request", "--via", "coap://"+p.addr().String(), "--multicast-timeout", "1", "GET", fmt.Sprintf("coap://%v/z", group))
	require.Zero(t, out.code, "%s%s", out.stdout, out.stderr)
	require.Equal(t, 2, strings.Count(out.stdout, "2.05 Content\n"), "%s", out.stdout)
}

// What a peer gets that is nobody's client, and one that has yet to prove its
// address, is at most three times what it sends, headers counted (FP-86).
func TestAmplificationOnTheWire(t *testing.T) {
	t.Parallel()
	_, group := members(t, 2, with(strings.Repeat("x", 1000)))
	one := single(t, with(strings.Repeat("x", 1000)))
	p := startProxy(t, group, settings{clients: fmt.Sprintf("  - {name: prove, networks: [127.0.0.1], groups: \"*\", echo: required, forward: [\"coap://%v\"]}\n", one.addr())})
	for _, from := range []string{"127.0.0.1", "127.0.0.2"} {
		c := newClient(t, here, netip.MustParseAddr(from), p.addr())
		for _, m := range []*coap.Message{
			get(coap.CON, fmt.Sprintf("coap://%v/x", group), timeout(5)),
			get(coap.CON, fmt.Sprintf("coap://%v/x", one.addr())),
			{Type: coap.CON, Code: coap.GET, Options: path(".well-known", "core")},
			{Type: coap.CON, Code: coap.POST, Options: path("x")},
			{Type: coap.CON, Code: coap.GET},
		} {
			m = c.fresh(m)
			c.send(m)
			const headers = 28
			sent, got := len(m.Bytes())+headers, 0
			answer := c.expect()
			got += len(answer.Bytes()) + headers
			c.sendTo(p.addr(), &coap.Message{Type: coap.CON, Code: coap.GET, ID: m.ID}) // no such reply for less
			sent += 4 + headers
			c.ping()
			require.LessOrEqual(t, got, 3*sent, "%v", m)
			require.LessOrEqual(t, len(answer.Bytes())+headers, 3*(len(m.Bytes())+headers))
		}
	}
}
