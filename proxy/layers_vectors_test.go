package proxy

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"os"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/access"
	"coapproxy/multicast"
	"coapproxy/oscorehop"
	"coapproxy/wire"
)

// nested is testdata/oscore-hop-nested.json.
type nested struct {
	Context struct {
		Secret string `json:"master_secret"`
		Salt   string `json:"master_salt"`
		Client string `json:"client_sender_id"`
		Proxy  string `json:"proxy_sender_id"`
	} `json:"context_client_proxy"`
	Unicast, Group []struct {
		ID        string
		Protected string                     `json:"protected_coap"`
		Before    string                     `json:"request_before_outer_layer"`
		Layer     struct{ Plaintext string } `json:"outer_layer"`
	}
}

func readNested(t testing.TB) nested {
	t.Helper()
	data, err := os.ReadFile("../testdata/oscore-hop-nested.json")
	require.NoError(t, err)
	var v nested
	require.NoError(t, json.Unmarshal(data, &v))
	return v
}

// withVectors is inGateway for the client of the vectors, with the groups and
// names they speak of. request is what it sends; its own end of the context has
// used the number of that request.
func withVectors(t *testing.T, body func(g *gateway, p *pairs, v nested)) {
	t.Helper()
	v := readNested(t)
	hop := oscorehop.Parameters{Algorithm: oscorehop.AESCCM16Tag64, MasterSecret: unhex(t, v.Context.Secret), MasterSalt: unhex(t, v.Context.Salt),
		SenderID: unhex(t, v.Context.Client), RecipientID: unhex(t, v.Context.Proxy)}
	own := hop
	own.SenderID, own.RecipientID = hop.RecipientID, hop.SenderID
	p := newPairs(t)
	p.add(t, "vector", hop, own)
	inGateway(t, func(s *setup) {
		p.setup(s)
		s.names["localhost"] = addrs("192.0.2.11")
		s.access.Groups = append(s.access.Groups, access.Group{Name: "vector", Addr: addrPort("233.252.0.1:5683"), Port: 5683, MaxTimeout: time.Hour, Protected: true})
		s.groups = append(s.groups, multicast.Group{Name: "vector", Interfaces: []string{"lo"}, HopLimit: s.groups[0].HopLimit, NStart: 100, Queue: 16,
			Leisure: 5 * time.Second, MaxResponses: 1000, MaxBytes: 1 << 20})
		for i := range s.access.Clients {
			s.access.Clients[i].AllGroups = true
		}
	}, func(g *gateway) { body(g, p, v) })
}

// The unicast exchange of the vectors, byte for byte: OH-16, OH-80 to OH-87 for
// what goes in, OH-93 to OH-95 and OH-100 for what comes out.
func TestVectorNestedUnicast(t *testing.T) {
	withVectors(t, func(g *gateway, _ *pairs, v nested) {
		c, server := g.peer(phoneAddr), g.peer(member1)
		c.send(t, unhex(t, v.Unicast[0].Protected))
		q := server.request()
		var before wire.Message
		require.NoError(t, before.Decode(unhex(t, v.Unicast[0].Before)))
		require.Equal(t, before.Payload, q.Payload)
		require.Equal(t, "CON 0.02 3=6c6f63616c686f7374 9=0914 16=10 |"+string(q.Payload), describe(&q.Message)) // OH-82, OH-83, OH-84

		plain := unhex(t, v.Unicast[1].Layer.Plaintext) // code, OSCORE option, payload: what the server sends
		var answer wire.Message
		require.NoError(t, answer.Decode(append([]byte{0x40, plain[0], 0, 0}, plain[1:]...)))
		server.respond(q, ack, answer.Code, string(answer.Payload), answer.Options...)
		got := c.take()
		require.Len(t, got, 1)
		var want wire.Message
		require.NoError(t, want.Decode(unhex(t, v.Unicast[1].Protected)))
		require.Equal(t, want.Code, got[0].Code)
		require.Equal(t, want.Options, got[0].Options)
		require.Equal(t, hex.EncodeToString(want.Payload), hex.EncodeToString(got[0].Payload))
	})
}

// The group exchange of the vectors: OH-82 to OH-87 and OH-91 in the request, OH-93,
// OH-95, OH-96, OH-98 and OH-100 in the responses. The first response has a Partial
// IV here, for OH-42, so that the second and third have the next ones.
func TestVectorNestedGroup(t *testing.T) {
	withVectors(t, func(g *gateway, p *pairs, v nested) {
		c := g.peer(phoneAddr)
		c.send(t, unhex(t, v.Group[0].Protected))
		var before wire.Message
		require.NoError(t, before.Decode(unhex(t, v.Group[0].Before)))
		got := c.take()
		require.Len(t, got, 1)
		require.Equal(t, ack, got[0].Type)

		// Again, now that somebody listens.
		context := p.client["vector"]
		for range 0x21 {
			_, _, err := context.ProtectRequest(oscorehop.Message{Code: codes.GET}, oscorehop.DefaultClasses) // uses up numbers
			require.NoError(t, err)
		}
		m, open := p.seal(t, wire.Message{Type: non, Code: before.Code, Token: []byte("g"), Options: before.Options, Payload: before.Payload}, "vector")
		a := g.peer("192.0.2.2:5683", "233.252.0.1")
		c.ask(m)
		q := a.request()
		require.Equal(t, before.Payload, q.Payload)
		e2e, _ := wire.First(before.Options, wire.OSCORE)
		hash, _ := wire.First(before.Options, wire.RequestHash)
		require.Equal(t, "NON 0.05 9="+hex.EncodeToString(e2e)+" 16=0f 548="+hex.EncodeToString(hash)+" |"+string(q.Payload), describe(&q.Message)) // OH-86, OH-87, OH-91
		for _, response := range v.Group[1:] {
			plain := unhex(t, response.Layer.Plaintext)
			var answer wire.Message
			require.NoError(t, answer.Decode(append([]byte{0x40, plain[0], 0, 0}, plain[1:]...)))
			var options = answer.Options[:0:0]
			for _, o := range answer.Options {
				if o.ID != wire.ReplyFrom {
					options = append(options, o)
				}
			}
			a.respond(q, non, answer.Code, string(answer.Payload), options...)
			got := c.take()
			require.Len(t, got, 1)
			require.Len(t, got[0].Options, 1)
			value, _ := wire.First(got[0].Options, wire.OSCORE)
			require.Len(t, value, 2, "OH-100: a Partial IV and nothing else")
			inner := p.open(t, got[0].Message, open)
			require.Equal(t, answer.Code, inner.Code)
			require.Equal(t, answer.Payload, inner.Payload)
			from, _ := wire.First(inner.Options, wire.ReplyFrom)
			require.Equal(t, unhex(t, "82208144c0000202"), from) // OH-96: 192.0.2.2
			for _, o := range options {
				got, ok := wire.First(inner.Options, o.ID)
				require.True(t, ok)
				require.Equal(t, o.Value, got)
			}
		}
	})
}

// Every bit of the options and the payload of a protected request, flipped alone:
// none is carried out, and nothing succeeds.
func TestLayerEveryBitFlipped(t *testing.T) {
	inProtected(t, nil, func(g *gateway, p *pairs) {
		c, server := g.peer(phoneAddr), g.peer(member1)
		sealed, open := p.seal(t, msg(non, codes.GET, "abcd", uri("coap://192.0.2.11/r")), "phone")
		c.id++
		sealed.ID = c.id
		data, err := sealed.Append(nil)
		require.NoError(t, err)
		const fixed = 4 + 4 // header and Token, which OSCORE does not protect (OC-16)
		for bit := fixed * 8; bit < len(data)*8; bit++ {
			flipped := bytes.Clone(data)
			flipped[bit/8] ^= 0x80 >> (bit % 8)
			c.id++
			flipped[2], flipped[3] = byte(c.id>>8), byte(c.id)
			c.send(t, flipped)
			for _, r := range c.take() {
				require.NotEqual(t, 2, int(r.Code>>5), "bit %d: %s", bit, describe(&r.Message))
			}
			server.expect()
			g.after(time.Second) // so that the budgets allow for the next
		}
		c.ask(sealed)
		server.answer(server.request(), ack, "hello")
		c.expectProtected(p, open, "NON 2.05 |hello")
	})
}

// FuzzLayers sends anything in one layer or two, and anything that looks like
// them. What the front does with it, FuzzFront says of messages without layers.
func FuzzLayers(f *testing.F) {
	encoded := func(m wire.Message) []byte {
		data, err := m.Append(nil)
		if err != nil {
			f.Fatal(err)
		}
		return data
	}
	protected := msg(con, codes.POST, "a", opt(wire.OSCORE, "\x09\x00p"))
	protected.Payload = []byte("ciphertext")
	f.Add(encoded(groupGet(con, "t", 20)), uint8(1), uint8(0))
	f.Add(encoded(groupGet(non, "t", 0)), uint8(2), uint8(3))
	f.Add(encoded(earlyStop(con, "t")), uint8(1), uint8(0))
	f.Add(encoded(protected), uint8(0), uint8(0))
	f.Add(encoded(protected), uint8(1), uint8(9))
	f.Add(encoded(msg(con, codes.GET, "t", opt(wire.ProxyScheme, "coap"), opt(wire.OSCORE, "\x09\x00p"), opt(wire.EDHOC, ""))), uint8(2), uint8(0))
	f.Add(encoded(msg(con, codes.GET, "t", uri("coap://192.0.2.11/r"), opt(wire.Observe, ""))), uint8(1), uint8(0))
	f.Fuzz(func(t *testing.T, data []byte, depth, spoil uint8) {
		var m wire.Message
		if m.Decode(data) != nil || !wire.IsRequest(m.Code) || len(m.Token) > 8 {
			return
		}
		inProtected(t, nil, func(g *gateway, p *pairs) {
			c, server := g.peer(phoneAddr), g.peer(member1, "224.0.1.187")
			for _, name := range []string{"tablet", "phone"}[2-min(int(depth), 2):] {
				out, _, err := p.client[name].ProtectRequest(oscorehop.Message{Code: m.Code, Options: m.Options, Payload: m.Payload}, p.layers.hop.Outgoing(m.Options))
				if err != nil {
					return
				}
				m.Code, m.Options, m.Payload = out.Code, out.Options, out.Payload
			}
			if spoil > 0 && len(m.Payload) > 0 {
				m.Payload = bytes.Clone(m.Payload)
				m.Payload[int(spoil)%len(m.Payload)] ^= spoil
			}
			c.ask(m)
			for _, q := range server.take() {
				if wire.IsRequest(q.Code) {
					server.answer(q, non, "x")
				}
			}
			c.take()
		})
	})
}
