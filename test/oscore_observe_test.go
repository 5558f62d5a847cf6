package test

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// notifying has four states, one after the other.
func notifying(s *server, r *request) {
	o, ok := r.Option(coap.Observe)
	if !ok || o.Uint() != 0 {
		content(s, r)
		return
	}
	s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Options: []coap.Option{coap.Uint(coap.Observe, 1)}, Payload: []byte("n1")})
	for i := 2; i <= 4; i++ {
		time.Sleep(20 * time.Millisecond)
		s.send(r, coap.Message{Type: coap.NON, ID: s.nextID(), Code: coap.CodeOf(2, 5), Options: []coap.Option{coap.Uint(coap.Observe, uint32(i))}, Payload: fmt.Appendf(nil, "n%d", i)})
	}
}

// deregistered reports whether a server was told that nobody observes any more.
func deregistered(s *server) bool {
	return slices.ContainsFunc(s.requests(), func(in incoming) bool {
		o, ok := in.Option(coap.Observe)
		return ok && o.Uint() == 1
	})
}

// OH-37, OH-47, OH-49, OH-89, OH-99: an observation in a layer. The registration is
// inside and outside, every notification has a Partial IV of its own, an empty
// Observe inside and a number outside, and the end of it comes in the layer, too.
func TestOSCOREObserve(t *testing.T) {
	t.Parallel()
	s := single(t, notifying)
	b := newOSCOREBed(t, "phone", "tool")
	p := b.start(netip.AddrPort{}, settings{clients: b.clients("phone", "tool")})
	c := newClient(t, here, clientAddr, p.addr())
	context := b.context("phone")
	uri := fmt.Sprintf("coap://%v/r", s.addr())

	m, r := context.Protect(get(coap.CON, uri, coap.Uint(coap.Observe, 0)))
	require.Equal(t, coap.FETCH, m.Code)
	c.send(c.fresh(m))
	numbers := map[string]bool{}
	for last := ""; last != "n4"; {
		in := c.expect()
		if in.Code == coap.Empty {
			continue
		}
		require.Equal(t, coap.CodeOf(2, 5), in.Code)
		require.True(t, in.Has(coap.Observe))
		inner, partialIV, err := context.Open(r, in.Message)
		require.NoError(t, err)
		require.NotNil(t, partialIV)
		require.False(t, numbers[string(partialIV)])
		numbers[string(partialIV)] = true
		o, ok := inner.Option(coap.Observe)
		require.True(t, ok)
		require.Empty(t, o.Value)
		last = string(inner.Payload)
	}

	// Bare, or in another context, it ends nothing.
	bare := get(coap.CON, uri, coap.Uint(coap.Observe, 1))
	bare.Token = m.Token
	require.Equal(t, "4.01", c.ask(bare).Code.String())
	end := get(coap.CON, uri, coap.Uint(coap.Observe, 1))
	end.Token = m.Token
	inner, _ := c.askOSCORE(context, end)
	require.Equal(t, "2.05", inner.Code.String())
	require.False(t, inner.Has(coap.Observe))
	eventually(t, func() bool { return deregistered(s) }, "the deregistration at the server")

	// The client side.
	got := run(t, here, program, "request", "--via", "coap://"+p.addr().String(), "--oscore", b.file("tool"), "--observe", "--stop-after", "3", "GET", uri+"2")
	require.NotContains(t, got.stdout, "stale")
	require.Contains(t, got.stdout, "n3", got.stderr)
}

// OH-47, OH-49: an observation over two protected hops. The proxies seal each for
// itself, and the end of it goes all the way.
func TestOSCOREObserveChain(t *testing.T) {
	t.Parallel()
	s := single(t, notifying)
	first, second := newOSCOREBed(t, "phone"), newOSCOREBed(t, "first")
	second.hand("first", first, "second")
	q := second.start(netip.AddrPort{}, settings{clients: second.clients("first")})
	p := first.start(netip.AddrPort{}, settings{clients: first.clients("phone"),
		top: fmt.Sprintf("next_hop:\n- {name: next, uri: \"coap://%v\", targets: [\"*\"], oscore: second}", q.addr())})
	p.waitFor("next hop is up")
	c := newClient(t, here, clientAddr, p.addr())
	context := first.context("phone")
	uri := fmt.Sprintf("coap://%v/r", s.addr())
	m, r := context.Protect(get(coap.CON, uri, coap.Uint(coap.Observe, 0)))
	c.send(c.fresh(m))
	var got []string
	for len(got) == 0 || got[len(got)-1] != "n4" {
		in := c.expect()
		if in.Code == coap.Empty {
			continue
		}
		inner, _, err := context.Open(r, in.Message)
		require.NoError(t, err)
		require.Equal(t, "2.05", inner.Code.String(), "%q", inner.Payload)
		require.True(t, inner.Has(coap.Observe))
		got = append(got, string(inner.Payload))
	}
	require.True(t, slices.IsSorted(got), "%q", got)
	end := get(coap.CON, uri, coap.Uint(coap.Observe, 1))
	end.Token = m.Token
	inner, _ := c.askOSCORE(context, end)
	require.Equal(t, "2.05", inner.Code.String())
	eventually(t, func() bool { return deregistered(s) }, "the deregistration at the server")
	require.Empty(t, q.entries("protected request refused"))
}
