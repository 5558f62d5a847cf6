package proxy

import (
	"bytes"
	"errors"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/blockwise"
	"coapproxy/exchange"
	"coapproxy/oscorehop"
	"coapproxy/wire"
)

// testLayers is an Unprotector over real contexts, as the program has one.
type testLayers struct {
	hop      oscorehop.Hop
	clients  oscorehop.Namespace
	names    map[*oscorehop.Context]string
	wornOut  bool
	tried    int                                          // layers that were asked for
	protects func(m *wire.Message) (*wire.Message, error) // in place of protecting; nil: none
}

func (l *testLayers) Unprotect(m *wire.Message) (*wire.Message, Layer, *LayerRefusal) {
	l.tried++
	outer := oscorehop.Message{Code: m.Code, Options: m.Options, Payload: m.Payload}
	option, err := oscorehop.RequestOption(outer)
	var c *oscorehop.Context
	if err == nil {
		c, err = l.clients.Find(option)
	}
	var inner oscorehop.Message
	var responder *oscorehop.Responder
	if err == nil {
		inner, responder, err = l.hop.UnprotectRequest(c, outer, option)
	}
	var verify *oscorehop.VerifyError
	var challenge *oscorehop.ChallengeError
	switch {
	case errors.As(err, &verify):
		return nil, nil, &LayerRefusal{Answer: toWire(verify.Response()), Forged: verify.Reason == oscorehop.Forged, Reason: err}
	case errors.As(err, &challenge):
		return nil, nil, &LayerRefusal{Answer: toWire(challenge.Response), Authentic: true, Reason: err}
	case err != nil:
		return nil, nil, &LayerRefusal{Reason: err}
	}
	out := *m
	out.Code, out.Options, out.Payload = inner.Code, inner.Options, inner.Payload
	return &out, &testLayer{l, responder, exchange.Security{OSCORE: l.names[c]}}, nil
}

func toWire(m oscorehop.Message) *wire.Message {
	return &wire.Message{Code: m.Code, Options: m.Options, Payload: m.Payload}
}

type testLayer struct {
	all       *testLayers
	responder *oscorehop.Responder
	security  exchange.Security
}

func (l *testLayer) Security() *exchange.Security { return &l.security }
func (l *testLayer) Context() string              { return l.security.OSCORE }
func (l *testLayer) WornOut() bool                { return l.all.wornOut }
func (l *testLayer) Protect(m *wire.Message) (*wire.Message, error) {
	if l.all.protects != nil {
		return l.all.protects(m)
	}
	out, err := l.responder.Protect(oscorehop.Message{Code: m.Code, Options: m.Options, Payload: m.Payload}, l.all.hop.Outgoing(m.Options))
	return toWire(out), err
}

// pairs are the contexts of the clients "phone" and "tablet", both ends.
type pairs struct {
	layers *testLayers
	client map[string]*oscorehop.Context
}

// newPairs makes contexts. Their Sender IDs are those of the names' first letters.
func newPairs(t testing.TB) *pairs {
	p := &pairs{layers: &testLayers{hop: oscorehop.Hop{Numbers: wire.DefaultNumbers()}, names: make(map[*oscorehop.Context]string)},
		client: make(map[string]*oscorehop.Context)}
	for _, name := range []string{"phone", "tablet"} {
		client, proxy, err := oscorehop.NewPair(oscorehop.PairOptions{ClientID: []byte(name[:1]), ProxyID: []byte("x")})
		require.NoError(t, err)
		p.add(t, name, client, proxy)
	}
	return p
}

func (p *pairs) add(t testing.TB, name string, client, proxy oscorehop.Parameters) {
	c, err := oscorehop.Ephemeral(client)
	require.NoError(t, err)
	own, err := oscorehop.Ephemeral(proxy)
	require.NoError(t, err)
	require.NoError(t, p.layers.clients.Add(own))
	p.layers.names[own], p.client[name] = name, c
}

// Clients with an OSCORE context have no network of their own in these tests.
const phoneAddr = "198.18.0.7:40000"

// setup gives the gateway the contexts, and their clients the rights of the user.
func (p *pairs) setup(s *setup) {
	s.front.Protected = &Protection{Layers: p.layers, MaxLayers: 2, Pieces: blockwise.NewOuter(new(blockwise.OuterStats))}
	for name := range p.client {
		user := s.access.Clients[0]
		user.Identity.Name, user.Networks, user.OSCORE = name, nil, []string{name}
		s.access.Clients = append(s.access.Clients, user)
	}
	for i := range s.access.Groups {
		s.access.Groups[i].Protected = true
	}
}

// inProtected is inGateway with the contexts of newPairs.
func inProtected(t *testing.T, change func(*setup), body func(g *gateway, p *pairs)) {
	t.Helper()
	p := newPairs(t)
	inGateway(t, func(s *setup) {
		p.setup(s)
		if change != nil {
			change(s)
		}
	}, func(g *gateway) { body(g, p) })
}

// seal protects a request with contexts, the first for the innermost layer.
func (p *pairs) seal(t testing.TB, m wire.Message, names ...string) (wire.Message, []*oscorehop.Requester) {
	t.Helper()
	var open []*oscorehop.Requester
	for _, name := range names {
		out, r, err := p.client[name].ProtectRequest(oscorehop.Message{Code: m.Code, Options: m.Options, Payload: m.Payload}, p.layers.hop.Outgoing(m.Options))
		require.NoError(t, err)
		m.Code, m.Options, m.Payload = out.Code, out.Options, out.Payload
		open = append([]*oscorehop.Requester{r}, open...)
	}
	return m, open
}

// open removes the layers of a response.
func (p *pairs) open(t testing.TB, m wire.Message, open []*oscorehop.Requester) wire.Message {
	t.Helper()
	for _, r := range open {
		out, err := p.layers.hop.UnprotectResponse(r, oscorehop.Message{Code: m.Code, Options: m.Options, Payload: m.Payload})
		require.NoError(t, err)
		m.Code, m.Options, m.Payload = out.Code, out.Options, out.Payload
	}
	return m
}

// askProtected sends a request in layers.
func (c *peer) askProtected(p *pairs, m wire.Message, names ...string) []*oscorehop.Requester {
	c.t.Helper()
	sealed, open := p.seal(c.t, m, names...)
	c.ask(sealed)
	return open
}

// expectProtected requires that exactly these messages have arrived, inside layers.
func (c *peer) expectProtected(p *pairs, open []*oscorehop.Requester, want ...string) {
	c.t.Helper()
	texts := []string{}
	for _, r := range c.take() {
		if r.Code == codes.Empty {
			texts = append(texts, describe(&r.Message))
			continue
		}
		m := p.open(c.t, r.Message, open)
		texts = append(texts, describe(&m))
	}
	require.Equal(c.t, append([]string{}, want...), texts)
}

// flip returns m with one bit of its payload or OSCORE option changed.
func flip(m wire.Message, bit int) wire.Message {
	m.Payload = bytes.Clone(m.Payload)
	m.Payload[bit/8] ^= 1 << (bit % 8)
	return m
}
