package test

import (
	"bytes"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
	"coapproxy/test/internal/oscore"
)

// hand copies a client's end of a context to another bed as the context of a next
// hop.
func (b *oscoreBed) hand(name string, to *oscoreBed, as string) {
	b.t.Helper()
	data, err := os.ReadFile(b.file(name))
	require.NoError(b.t, err)
	require.NoError(b.t, os.WriteFile(filepath.Join(to.dir, "oscore", as+".json"), data, 0o600))
}

// OH-3, OH-4, OH-102, OH-122: a client, two proxies and a group, each on a host of
// its own. There is OSCORE between the client and the first proxy, between the two
// proxies, and end to end, which both only pass on: three layers over two hops.
// Nothing else identifies anybody.
func TestOSCOREChain(t *testing.T) {
	inLab(t, "3 --clients 2", func(t *testing.T, l *lab) {
		servers := l.devices(3, func(s *server, r *request) {
			if o, ok := r.Option(oscore.Option); ok {
				s.answer(r, coap.Message{Code: coap.CodeOf(2, 4), Options: []coap.Option{{Number: oscore.Option, Value: append([]byte{0x29, 0}, s.name...)}},
					Payload: append(append([]byte{}, r.Payload...), o.Value...)})
				return
			}
			content(s, r)
		})
		first, second := newOSCOREBed(t, "phone"), newOSCOREBed(t, "first")
		second.hand("first", first, "second")

		far := settings{listen: "- coap://[fd00:c::1]", clients: second.clients("first"),
			groups: "- {name: site, uri: \"coap://[ff05::fd]\", interfaces: [eth1], leisure: 1s, nstart: 16, probing_rate: 0, protected_requests: true}"}
		require.NoError(t, os.WriteFile(second.config, []byte(far.yaml(netip.AddrPort{})), 0o600))
		q := serveFile(t, l.px(), second.config)
		near := settings{listen: "- coap://[fd00:c::c:1]", clients: first.clients("phone"),
			groups: "- {name: site, uri: \"coap://[ff05::fd]\", nstart: 16, protected_requests: true}",
			top:    "next_hop:\n- {name: next, uri: \"coap://[fd00:c::1]\", targets: [\"*\"], oscore: second}"}
		require.NoError(t, os.WriteFile(first.config, []byte(near.yaml(netip.AddrPort{})), 0o600))
		p := serveFile(t, l.cl(1), first.config)
		p.waitFor("next hop is up")
		c := newClient(t, l.cl(0), cl6(0), netip.AddrPortFrom(cl6(1), coapPort))
		context := first.context("phone")

		// A plain group request, protected on both hops.
		open := func(r *oscore.Request, in incoming) *coap.Message {
			inner, _, err := context.Open(r, in.Message)
			require.NoError(t, err)
			return inner
		}
		m, r := context.Protect(get(coap.NON, "coap://[ff05::fd]/temp", timeout(8)))
		heard := map[netip.AddrPort]string{}
		for _, in := range c.gatherN(m, len(servers)) {
			inner := open(r, in)
			require.Equal(t, coap.CodeOf(2, 5), inner.Code)
			heard[serverOf(t, incoming{inner, in.datagram, nil})] = string(inner.Payload)
		}
		require.Len(t, heard, len(servers))
		for _, s := range servers {
			got := s.requestsTo("/temp")
			require.Len(t, got, 1)
			require.Equal(t, 15, int(got[0].All(coap.HopLimit)[0][0])) // OH-70: once per proxy
		}
		require.Empty(t, q.refusals())
		// GP-95, OH-86: the second proxy was told less, inside its layer.
		told := q.entries("request")
		require.EqualValues(t, 7, told[len(told)-1]["timeout"])

		// The Early Stop Request goes from hop to hop, protected anew on each.
		stop, _ := context.Protect(&coap.Message{Type: coap.CON, Code: coap.GET, Token: m.Token, Options: []coap.Option{coap.Uint(coap.MulticastTimeout, 0)}})
		c.send(c.fresh(stop))
		require.Equal(t, coap.ACK, c.expect().Type)
		eventually(t, func() bool { return len(p.entries("early stop")) == 1 && len(q.entries("early stop")) == 1 }, "both early stops")

		// Three layers: the innermost is the group's, of which nothing changes.
		value := []byte("\x39\x07\x03Galk")
		m, r = context.Protect(&coap.Message{Type: coap.NON, Code: coap.POST, Payload: []byte("ciphertext"), Options: []coap.Option{timeout(8),
			coap.Opt(coap.URIHost, "ff05::fd"), {Number: oscore.Option, Value: value}, coap.Opt(coap.ProxyScheme, "coap")}})
		for _, in := range c.gatherN(m, len(servers)) {
			inner := open(r, in)
			require.Equal(t, coap.CodeOf(2, 4), inner.Code)
			require.Equal(t, "ciphertext"+string(value), string(inner.Payload))
			o, ok := inner.Option(oscore.Option)
			require.True(t, ok)
			require.Equal(t, "\x29\x00sv", string(o.Value[:4]))
			serverOf(t, incoming{inner, in.datagram, nil})
		}

		// OH-61: what the first proxy has to say about the timeout is inside.
		m, r = context.Protect(get(coap.CON, "coap://[ff05::fd]/temp", timeout(1)))
		inner := open(r, c.ask(m))
		require.Equal(t, "5.05", inner.Code.String())
		require.True(t, inner.Has(coap.MulticastTimeout)) // OH-101

		// OH-113: the second proxy is started anew, and the first answers its challenge.
		q.stop()
		q = serveFile(t, l.px(), second.config)
		eventually(t, func() bool {
			m, r := context.Protect(get(coap.CON, fmt.Sprintf("coap://[%v]/one", servers[0].addr().Addr())))
			c.send(c.fresh(m))
			for in := c.next(3 * time.Second); in != nil; in = c.next(3 * time.Second) {
				if in.Code != coap.Empty && bytes.Equal(in.Token, m.Token) {
					inner := open(r, *in)
					return inner.Code == coap.CodeOf(2, 5) && string(inner.Payload) == "sv1/one"
				}
			}
			return false
		}, "a response through both proxies after the restart")
		eventually(t, func() bool { return len(q.entries("protected request refused")) > 0 }, "the challenge")
	})
}
