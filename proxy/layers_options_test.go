package proxy

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/oscorehop"
	"coapproxy/wire"
)

// askOpened sends a request in the layer of the phone and returns what its one
// response has inside, in the words of describe; answer is the server's part.
func askOpened(g *gateway, p *pairs, c *peer, m wire.Message, answer func()) string {
	open := c.askProtected(p, m, "phone")
	if answer != nil {
		answer()
	}
	got := c.take()
	require.Len(g.t, got, 1)
	inner := p.open(g.t, got[0].Message, open)
	return describe(&inner)
}

// OH-70: the hop limit is read inside, and less by one however many layers came
// off; where there is none it begins with the default, which is not less.
func TestLayerHopLimit(t *testing.T) {
	inProtected(t, nil, func(g *gateway, p *pairs) {
		c, server := g.peer(phoneAddr), g.peer(member1)
		for limit, want := range map[string]string{"\x09": "08", "": "10"} {
			ask := msg(con, codes.GET, "a", uri("coap://192.0.2.11/r"))
			if limit != "" {
				ask.Options = insertOption(ask.Options, wire.HopLimit, []byte(limit))
			}
			m, inner := p.seal(t, ask, "tablet")
			m.Options = append(m.Options, opt(wire.ProxyScheme, "coap"))
			m, outer := p.seal(t, m, "phone")
			c.ask(m)
			q := server.request()
			require.Equal(t, "CON 0.01 11=72 16="+want, describe(&q.Message))
			server.answer(q, ack, "x")
			c.expectProtected(p, append(outer, inner...), "ACK 2.05 |x")
		}
	})
}

// GP-11, OH-81, OH-88, OH-90, OH-94: what belongs to the request is inside, and what the
// server says comes back inside; a Group-ETag ends here, and No-Response goes on to
// a group. OH-85: outside there is the OSCORE option of the hop and nothing else.
func TestLayerWhatGoesWhere(t *testing.T) {
	inProtected(t, nil, func(g *gateway, p *pairs) {
		c, a := g.peer(phoneAddr), g.peer(member1, "224.0.1.187")
		sealed, open := p.seal(t, groupGet(non, "t", 9, opt(wire.Accept, "\x32"), opt(wire.GroupETag, "g"), opt(wire.NoResponse, "\x10")), "phone")
		require.Len(t, sealed.Options, 1)
		c.ask(sealed)
		q := a.request()
		require.Equal(t, "NON 0.01 11=72 16=10 17=32 258=10", describe(&q.Message))
		a.answer(q, non, "x", opt(wire.ETag, "e"), opt(wire.ContentFormat, "\x32"), opt(wire.MaxAge, "\x09"))
		got := c.take()
		require.Len(t, got, 1)
		require.Len(t, got[0].Options, 1)
		inner := p.open(t, got[0].Message, open)
		require.Equal(t, "NON 2.05 4=65 12=32 14=09 "+from1+" |x", describe(&inner)) // OH-71, OH-72
		a.respond(q, non, codes.ServiceUnavailable, "")
		c.expect() // the client did not want 5.xx
	})
}

// OH-73: No-Response counts inside; outside it could be an attacker's.
func TestLayerNoResponse(t *testing.T) {
	inProtected(t, nil, func(g *gateway, p *pairs) {
		c, server := g.peer(phoneAddr), g.peer(member1)
		m, open := p.seal(t, msg(non, codes.GET, "a", uri("coap://192.0.2.11/r")), "phone")
		m.Options = append(m.Options, opt(wire.NoResponse, "\x1a"))
		c.ask(m)
		server.answer(server.request(), ack, "x")
		c.expectProtected(p, open, "NON 2.05 |x")
		c.askProtected(p, msg(non, codes.GET, "b", uri("coap://192.0.2.11/r"), opt(wire.NoResponse, "\x1a")), "phone")
		server.answer(server.request(), ack, "x")
		c.expect()
	})
}

// OH-75, OH-92: blocks inside the layer are between the client and the proxy, which
// puts bodies together and cuts them after it has taken the layer off.
func TestLayerBlocks(t *testing.T) {
	inProtected(t, nil, func(g *gateway, p *pairs) {
		c, server := g.peer(phoneAddr), g.peer(member1)
		put := func(token string, block, body string) wire.Message {
			m := msg(con, codes.PUT, token, uri("coap://192.0.2.11/r"), opt(wire.Block1, block))
			m.Payload = []byte(body)
			return m
		}
		require.Equal(t, "ACK 2.31 27=08", askOpened(g, p, c, put("a", "\x08", "sixteen bytes :)"), nil))
		server.expect()
		require.Equal(t, "ACK 2.04 27=10", askOpened(g, p, c, put("b", "\x10", "more"), func() {
			q := server.request()
			require.Equal(t, "sixteen bytes :)more", string(q.Payload))
			server.respond(q, ack, codes.Changed, "")
		}))

		body := strings.Repeat("0123456789abcdef", 100)
		blocks, from := []string{body[:1024], body[1024:]}, 0
		answer := func() {
			for from < len(blocks) {
				q := server.request()
				value := []byte{0x0e, 0x16}[from]
				from++
				server.answer(q, ack, blocks[from-1], opt(wire.Block2, string([]byte{value})))
			}
		}
		first := askOpened(g, p, c, msg(con, codes.GET, "c", uri("coap://192.0.2.11/long")), answer)
		require.Equal(t, "ACK 2.05 23=0e 28=0640 |"+body[:1024], first)
		require.Equal(t, "ACK 2.05 23=16 |"+body[1024:], askOpened(g, p, c, msg(con, codes.GET, "d", uri("coap://192.0.2.11/long"), opt(wire.Block2, "\x16")), nil))
	})
}

// piece returns a piece of 32 bytes of a protected request.
func piece(m wire.Message, num int) wire.Message {
	end := min(32*(num+1), len(m.Payload))
	block := wire.Block{Num: uint32(num), More: end < len(m.Payload), SZX: 1}
	m.Token = []byte{byte(num)}
	m.Options = insertOption(slices.Clone(m.Options), wire.Block1, block.Append(nil))
	m.Payload = m.Payload[32*num : end]
	return m
}

// OH-75: a request that somebody on the way has cut is put together before any key
// is tried on it, and its first response says that all of it has come.
func TestLayerOuterBlocks(t *testing.T) {
	inProtected(t, nil, func(g *gateway, p *pairs) {
		c, server := g.peer(phoneAddr), g.peer(member1)
		m, open := p.seal(t, msg(con, codes.GET, "a", uri("coap://192.0.2.11/r")), "phone")
		require.Greater(t, len(m.Payload), 32)
		require.LessOrEqual(t, len(m.Payload), 64)
		c.ask(piece(m, 0))
		c.expect("ACK 2.31 27=09")
		require.Zero(t, p.layers.tried)
		c.ask(piece(m, 1))
		require.Equal(t, 1, p.layers.tried)
		server.answer(server.request(), ack, "x")
		got := c.take()
		require.Len(t, got, 1)
		block, _ := wire.First(got[0].Options, wire.Block1)
		require.Equal(t, []byte{0x11}, block)
		inner := p.open(t, got[0].Message, open)
		require.Equal(t, "ACK 2.05 |x", describe(&inner))

		c.ask(piece(m, 1))
		c.expect("ACK 4.08 |a block before this one is missing")
		c.ask(piece(m, 0))
		c.expect("ACK 2.31 27=09")
		c.ask(piece(m, 1))
		c.expect("ACK 4.01 14= |Replay detected")
		next := m // another Partial IV
		next.Options = slices.Clone(m.Options)
		for i, o := range next.Options {
			if o.ID == wire.OSCORE {
				next.Options[i].Value = bytes.Clone(o.Value)
				next.Options[i].Value[1]++
			}
		}
		c.ask(piece(next, 0))
		c.expect("ACK 2.31 27=09")
		c.ask(piece(next, 1))
		c.expect("ACK 4.00 14= |Decryption failed")
	})
}

// OH-75: the same inside of a layer: a request for the proxy in pieces, each of them
// protected.
func TestLayerPiecesInALayer(t *testing.T) {
	inProtected(t, nil, func(g *gateway, p *pairs) {
		c, server := g.peer(phoneAddr), g.peer(member1)
		m, openInner := p.seal(t, msg(con, codes.GET, "a", uri("coap://192.0.2.11/r")), "tablet")
		open := c.askProtected(p, piece(m, 0), "phone")
		c.expectProtected(p, open, "ACK 2.31 27=09")
		open = c.askProtected(p, piece(m, 1), "phone")
		server.answer(server.request(), ack, "x")
		got := c.take()
		require.Len(t, got, 1)
		outer := p.open(t, got[0].Message, open)
		block, _ := wire.First(outer.Options, wire.Block1)
		require.Equal(t, []byte{0x11}, block)
		inner := p.open(t, outer, openInner)
		require.Equal(t, "ACK 2.05 |x", describe(&inner))
	})
}

// OH-48: nobody asked to observe what is protected end to end.
func TestLayerObservesNothingUnasked(t *testing.T) {
	inProtected(t, nil, func(g *gateway, p *pairs) {
		c, server := g.peer(phoneAddr), g.peer(member1)
		inner, _ := p.seal(t, msg(con, codes.GET, "a", opt(wire.URIPath, "r"), opt(wire.Observe, "")), "tablet")
		require.Equal(t, wire.FETCH, inner.Code)
		var options = inner.Options[:0:0]
		for _, o := range inner.Options {
			if o.ID != wire.Observe {
				options = append(options, o)
			}
		}
		inner.Options = append(options, opt(wire.ProxyScheme, "coap"))
		inner.Options = insertOption(inner.Options, wire.URIHost, []byte("192.0.2.11"))
		open := c.askProtected(p, inner, "phone")
		q := server.request()
		require.False(t, wire.Has(q.Options, wire.Observe))
		server.answer(q, ack, "x")
		c.expectProtected(p, open, "ACK 2.05 |x")
	})
}

// OH-54, OH-113: with the replay window lost a request is challenged inside its
// layer, as often as it comes, and carried out with the Echo.
func TestLayerChallenge(t *testing.T) {
	p := newPairs(t)
	client, proxy, err := oscorehop.NewPair(oscorehop.PairOptions{ClientID: []byte("z"), ProxyID: []byte("x")})
	require.NoError(t, err)
	store := make(memoryStore)
	for range 2 { // the second time it is known
		keeper := oscorehop.NewKeeper(store)
		c, err := oscorehop.Open(proxy, keeper)
		require.NoError(t, err)
		require.NoError(t, c.Close())
		require.NoError(t, keeper.Close())
	}
	inGateway(t, func(s *setup) {
		p.client["phone"] = nil
		p.setup(s)
	}, func(g *gateway) {
		keeper := oscorehop.NewKeeper(store)
		defer func() { require.NoError(t, keeper.Close()) }()
		own, err := oscorehop.Open(proxy, keeper)
		require.NoError(t, err)
		require.NoError(t, p.layers.clients.Add(own))
		p.layers.names[own] = "phone"
		p.client["phone"], err = oscorehop.Ephemeral(client)
		require.NoError(t, err)

		c, server := g.peer(phoneAddr), g.peer(member1)
		var challenge string
		for range layerAnswerBurst + 5 { // it is no answer that has a budget
			got := askOpened(g, p, c, msg(con, codes.GET, "a", uri("coap://192.0.2.11/r")), nil)
			require.True(t, strings.HasPrefix(got, "ACK 4.01 252="), got)
			challenge = strings.TrimPrefix(got, "ACK 4.01 252=")
		}
		server.expect()
		echo := opt(wire.Echo, string(unhex(t, challenge)))
		require.Equal(t, "ACK 2.05 |x", askOpened(g, p, c, msg(con, codes.GET, "b", uri("coap://192.0.2.11/r"), echo), func() {
			q := server.request()
			require.False(t, wire.Has(q.Options, wire.Echo)) // OH-74
			server.answer(q, ack, "x")
		}))
		// OH-74: an Echo that is not the proxy's is the server's.
		require.Equal(t, "ACK 2.05 |y", askOpened(g, p, c, msg(con, codes.GET, "c", uri("coap://192.0.2.11/r"), opt(wire.Echo, "of a server")), func() {
			q := server.request()
			require.True(t, wire.Has(q.Options, wire.Echo))
			server.answer(q, ack, "y")
		}))
	})
}

// memoryStore is a Store that forgets nothing.
type memoryStore map[oscorehop.Fingerprint]oscorehop.Mark

func (s memoryStore) Load(f oscorehop.Fingerprint) (oscorehop.Mark, bool, error) {
	m, ok := s[f]
	return m, ok, nil
}

func (s memoryStore) Save(marks map[oscorehop.Fingerprint]oscorehop.Mark) error {
	for f, m := range marks {
		s[f] = m
	}
	return nil
}
