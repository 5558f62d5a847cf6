package test

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// lateFor is when the slow members of these tests answer, and asLate how long a
// test waits to see that their answers are not relayed.
const (
	lateFor = 700 * time.Millisecond
	asLate  = 1200 * time.Millisecond
)

// oneAtOnce answers at once as member1 and late as any other.
func oneAtOnce(s *server, r *request) {
	if s.name != "member1" {
		time.Sleep(lateFor)
	}
	content(s, r)
}

// earlyStop is an Early Stop Request (GP-40): four bytes, the Token, option 2
// without a value.
func earlyStop(kind coap.Type, id uint16, token []byte) *coap.Message {
	return &coap.Message{Type: kind, Code: coap.GET, ID: id, Token: token, Options: []coap.Option{timeout(0)}}
}

func TestEarlyStop(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 3, oneAtOnce)
	p := startProxy(t, group, settings{})
	c := newClient(t, here, clientAddr, p.addr())

	m := get(coap.NON, groupURI(group, "/x"), timeout(30))
	c.gatherN(m, 1)
	c.send(earlyStop(coap.CON, 0x7001, m.Token))
	require.Equal(t, coap.Message{Type: coap.ACK, ID: 0x7001, Token: []byte{}}, *c.expect().Message) // GP-42
	c.nothing(asLate)                                                                                // GP-41
	for _, s := range servers {
		require.Len(t, s.requests(), 1) // nothing was forwarded
	}

	// Once more for the exchange that has ended (GP-43), and as NON (GP-42).
	c.send(earlyStop(coap.CON, 0x7002, m.Token))
	require.Equal(t, coap.Message{Type: coap.ACK, ID: 0x7002, Token: []byte{}}, *c.expect().Message)
	c.send(earlyStop(coap.NON, 0x7003, m.Token))
	c.nothing(200 * time.Millisecond)

	// Of a Token that was never used it is a request like any other (GP-43).
	c.send(earlyStop(coap.CON, 0x7004, []byte("never")))
	in := c.expect()
	require.Equal(t, coap.CodeOf(4, 4), in.Code)
	require.Equal(t, uint16(0x7004), in.ID)

	// It ends the exchange of this client alone (GP-40).
	other := newClient(t, here, clientAddr, p.addr())
	m = get(coap.NON, groupURI(group, "/y"), timeout(60))
	other.gatherN(m, 1)
	c.send(earlyStop(coap.CON, 0x7005, m.Token))
	require.Equal(t, coap.CodeOf(4, 4), c.expect().Code)
	require.NotNil(t, other.next(patience))
	require.NotNil(t, other.next(patience))
}

// A request that only looks like an Early Stop Request is none (GP-40); what it
// is instead is Token reuse (GP-25).
func TestNoEarlyStop(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, oneAtOnce)
	p := startProxy(t, group, settings{})
	c := newClient(t, here, clientAddr, p.addr())

	m := get(coap.NON, groupURI(group, "/x"), timeout(30))
	c.gatherN(m, 1)
	reuse := get(coap.CON, groupURI(group, "/y"), timeout(30))
	reuse.Token = m.Token
	in := c.ask(reuse)
	require.Equal(t, coap.CodeOf(4, 0), in.Code)
	require.Contains(t, string(in.Payload), "Token")
	maxAge, ok := in.Option(coap.MaxAge)
	require.True(t, ok)
	require.Zero(t, maxAge.Uint()) // GP-27
	c.nothing(asLate)              // the old exchange is over
	for _, s := range servers {
		require.Empty(t, s.requestsTo("/y"))
	}
	// The Token can be used again now.
	again := get(coap.CON, groupURI(group, "/z"), timeout(60))
	again.Token = m.Token
	c.gatherN(again, 2)
}

// A client that resets a response wants no more of them (GP-44). libcoap's
// client does so with the second one.
func TestReset(t *testing.T) {
	t.Parallel()
	for _, kind := range []coap.Type{coap.NON, coap.CON} {
		t.Run(kind.String(), func(t *testing.T) {
			t.Parallel()
			_, group := members(t, 3, oneAtOnce)
			p := startProxy(t, group, settings{})
			c := newClient(t, here, clientAddr, p.addr())
			c.keepMute(true)

			c.send(c.fresh(get(kind, groupURI(group, "/x"), timeout(30))))
			in := c.expect()
			if kind == coap.CON {
				in = c.expect() // after the ACK of the request
			}
			require.Equal(t, kind, in.Type)
			// A RST from elsewhere, or of another message, has no effect.
			stranger := newClient(t, here, clientAddr, p.addr())
			stranger.send(&coap.Message{Type: coap.RST, ID: in.ID})
			c.send(&coap.Message{Type: coap.RST, ID: in.ID + 99})
			stranger.ping()
			require.Empty(t, p.entries("client wants no more responses"))
			c.send(&coap.Message{Type: coap.RST, ID: in.ID})
			c.nothing(asLate)
			p.logged("client wants no more responses", 1)
		})
	}
}

// What the network repeats is carried out once (FP-90).
func TestRepeatedGroupRequest(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, oneAtOnce)
	p := startProxy(t, group, settings{})
	for _, kind := range []coap.Type{coap.CON, coap.NON} {
		c := newClient(t, here, clientAddr, p.addr())
		m := c.fresh(get(kind, groupURI(group, "/"+kind.String()), timeout(3)))
		sent := time.Now()
		want := map[coap.Type]int{kind: len(servers)}
		if kind == coap.CON {
			want[coap.ACK] = 3
		}
		for range 3 {
			c.send(m)
		}
		got := make(map[coap.Type]int)
		for range want[kind] + want[coap.ACK] {
			in := c.expect()
			got[in.Type]++
			require.True(t, in.Type == kind || in.ID == m.ID)
		}
		require.Equal(t, want, got)
		// Also when it comes after the end of the window.
		c.nothing(time.Until(sent.Add(3500 * time.Millisecond)))
		c.send(m)
		if kind == coap.CON {
			require.Equal(t, coap.ACK, c.expect().Type)
		}
		c.nothing(meanwhile)
		for _, s := range servers {
			require.Len(t, s.requestsTo("/"+kind.String()), 1)
		}
	}
}

// A client that vanishes costs the proxy nothing: not the datagrams that its
// host sends back, not one that nothing is sent back from.
func TestVanishedClient(t *testing.T) {
	t.Parallel()
	_, group := members(t, 3, after(300*time.Millisecond, content))
	p := startProxy(t, group, settings{})
	witness := newClient(t, here, clientAddr, p.addr())
	witness.gatherN(get(coap.NON, groupURI(group, "/before"), timeout(3)), 3)
	before := p.files()
	for i := range 20 {
		kind := coap.NON
		if i%2 == 0 {
			kind = coap.CON
		}
		c := newClient(t, here, clientAddr, p.addr())
		c.send(c.fresh(get(kind, groupURI(group, "/x"), timeout(3))))
		c.vanish()
	}
	require.Len(t, witness.gatherN(get(coap.NON, groupURI(group, "/after"), timeout(3)), 3), 3)
	eventually(t, func() bool { return len(p.entries("group exchange ended")) == 22 }, "the ends of all exchanges")
	require.Equal(t, before, p.files())
	p.stop()
	stopped := p.entries("stopped")
	require.Len(t, stopped, 1)
	require.Zero(t, stopped[0]["exchanges_cut_off"])
}
