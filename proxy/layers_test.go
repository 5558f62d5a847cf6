package proxy

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/oscorehop"
	"coapproxy/wire"
)

// OH-10, OH-14, OH-15, OH-16: the proxy options are inside; the first pass sees
// OSCORE only, the second forwards. OH-4, OH-40: so are the response and every
// error of the proxy.
func TestLayerUnicast(t *testing.T) {
	inProtected(t, nil, func(g *gateway, p *pairs) {
		c, server := g.peer(phoneAddr), g.peer(member1)
		open := c.askProtected(p, msg(con, codes.GET, "a", uri("coap://192.0.2.11/r")), "phone")
		q := server.request()
		require.Equal(t, "CON 0.01 11=72 16=10", describe(&q.Message), "nothing of the hop layer goes on")
		server.answer(q, ack, "hello", opt(wire.ETag, "e"))
		got := c.take()
		require.Len(t, got, 1)
		require.Equal(t, codes.Changed, got[0].Code) // OH-37, OH-100
		require.NotContains(t, string(got[0].raw), "hello")
		m := p.open(t, got[0].Message, open)
		require.Equal(t, "ACK 2.05 4=65 |hello", describe(&m))

		for name, tt := range map[string]struct {
			ask  wire.Message
			want string
		}{
			"OH-14 no such resource": {msg(con, codes.GET, "b", opt(wire.URIPath, "x")), "ACK 4.04 |this is a proxy; name a target with Proxy-Uri or Proxy-Scheme"},
			"OH-13 itself":           {msg(con, codes.GET, "b", uri("coap://198.51.100.1/.well-known/core")), "ACK 2.05 4=e3b0c44298fc1c14 12=28"},
			"OH-55 scheme":           {msg(con, codes.GET, "b", uri("ftp://192.0.2.11/r")), "ACK 5.05 14= |this scheme is not served"},
			"OH-56 target":           {msg(con, codes.GET, "b", uri("coap://239.9.9.9/r"), timeout(2)), "ACK 4.01 14= |group not allowed"},
			"OH-58 hop limit 0":      {msg(con, codes.GET, "b", uri("coap://192.0.2.11/r"), opt(wire.HopLimit, "\x00")), "ACK 4.00 14= |Hop-Limit must be 1 to 255"},
			"OH-58 hop limit 1":      {msg(con, codes.GET, "b", uri("coap://192.0.2.11/r"), opt(wire.HopLimit, "\x01")), "ACK 5.08 |gw"},
			"OH-59 no timeout":       {msg(con, codes.GET, "b", uri(nodesURI)), "ACK 4.00 2= |Please use Multicast-Timeout"},
		} {
			t.Run(name, func(*testing.T) {
				open := c.askProtected(p, tt.ask, "phone")
				c.expectProtected(p, open, tt.want)
			})
		}
		server.expect()
	})
}

// OH-60
func TestLayerGroupsDisabled(t *testing.T) {
	inProtected(t, func(s *setup) { s.access.Groups = nil }, func(g *gateway, p *pairs) {
		c := g.peer(phoneAddr)
		open := c.askProtected(p, groupGet(con, "a", 2), "phone")
		c.expectProtected(p, open, "ACK 5.01 14= |group requests are not enabled")
	})
}

// OH-41, OH-42, OH-44, OH-46: each of several responses is protected with a
// Partial IV of its own, and says inside which server it is from.
func TestLayerGroup(t *testing.T) {
	inProtected(t, nil, func(g *gateway, p *pairs) {
		c, a := g.peer(phoneAddr), g.peer(member1, "224.0.1.187")
		open := c.askProtected(p, groupGet(con, "t", 60), "phone")
		q := a.request()
		require.Equal(t, "NON 0.01 11=72 16=10", describe(&q.Message))
		for _, text := range []string{"one", "two", "two"} {
			a.answer(q, non, text)
		}
		got := c.take()
		require.Len(t, got, 4)
		seen := map[string]bool{}
		for i, text := range []string{"one", "two", "two"} {
			m := p.open(t, got[i+1].Message, open)
			require.Equal(t, "CON 2.05 "+from1+" |"+text, describe(&m))
			value, _ := wire.First(got[i+1].Options, wire.OSCORE)
			o, err := oscorehop.ParseOption(value)
			require.NoError(t, err)
			require.NotNil(t, o.PartialIV)
			require.False(t, seen[string(o.PartialIV)])
			seen[string(o.PartialIV)] = true
			c.react(got[i+1], ack)
		}
		g.after(time.Minute)
	})
}

// OH-103: an Early Stop Request stops an exchange of its own context only.
func TestLayerEarlyStop(t *testing.T) {
	inProtected(t, nil, func(g *gateway, p *pairs) {
		c, a := g.peer(phoneAddr), g.peer(member1, "224.0.1.187")
		open := c.askProtected(p, groupGet(non, "t", 60), "phone")
		q := a.request()
		for name, contexts := range map[string][]string{"bare": nil, "another context": {"tablet"}, "deeper": {"phone", "tablet"}} {
			t.Run(name, func(*testing.T) {
				stop := c.askProtected(p, earlyStop(con, "t"), contexts...)
				c.expectProtected(p, stop, "ACK 4.04 |this is a proxy; name a target with Proxy-Uri or Proxy-Scheme")
			})
		}
		a.answer(q, non, "one")
		c.expectProtected(p, open, "NON 2.05 "+from1+" |one")
		c.askProtected(p, earlyStop(con, "t"), "phone")
		c.expect("ACK")
		a.answer(q, non, "two")
		c.expect()
		require.EqualValues(t, 1, g.stats.EarlyStops.Load())
	})
}

// OH-62: a Token in use is refused, inside the layer; the same Token outside of it
// is another one.
func TestLayerTokenReuse(t *testing.T) {
	inProtected(t, nil, func(g *gateway, p *pairs) {
		c, a := g.peer(phoneAddr), g.peer(member1, "224.0.1.187")
		open := c.askProtected(p, groupGet(non, "t", 60), "phone")
		q := a.request()
		c.ask(groupGet(con, "t", 60))
		c.expect("ACK 4.01 14= |client not identified")
		a.answer(q, non, "one")
		c.expectProtected(p, open, "NON 2.05 "+from1+" |one")
		reuse := c.askProtected(p, groupGet(con, "t", 60), "phone")
		c.expectProtected(p, reuse, "ACK 4.00 14= |Token reuse: the exchange with this Token was running and is stopped")
		a.answer(q, non, "two")
		c.expect()
	})
}

// OH-11, OH-22, OC-80: OSCORE beside proxy options is somebody else's, of a group
// or not, whatever its kid is; it goes on byte for byte. OH-17: who asks is what
// the transport says, and for a stranger that is nobody.
func TestLayerOfOthers(t *testing.T) {
	inProtected(t, nil, func(g *gateway, p *pairs) {
		stranger, user, server := g.peer(phoneAddr), g.peer(userAddr), g.peer(member1)
		foreign, _ := p.seal(t, msg(con, codes.GET, "a", opt(wire.URIPath, "r")), "phone")
		foreign.Options = append(foreign.Options, opt(wire.ProxyScheme, "coap"))
		foreign.Options = insertOption(foreign.Options, wire.URIHost, []byte("192.0.2.11"))
		stranger.ask(foreign)
		stranger.expect("ACK 4.01 14= |client not identified")
		user.ask(foreign)
		q := server.request()
		require.Equal(t, foreign.Payload, q.Payload)
		value, _ := wire.First(foreign.Options, wire.OSCORE)
		got, _ := wire.First(q.Options, wire.OSCORE)
		require.Equal(t, value, got)
		require.Zero(t, p.layers.tried)

		// For itself, with the Group Flag: nothing it could read (OH-22, OH-51).
		group := msg(con, codes.POST, "b", opt(wire.OSCORE, "\x39\x05\x01gp"))
		group.Payload = []byte("ciphertext")
		user.ask(group)
		user.expect("ACK 4.01 14= |Security context not found")
	})
}

// OH-1, OH-2, OH-13: two layers for the proxy, the inner one addressed to it by its
// own name; one more than it removes is refused in the layers removed so far.
func TestLayersNested(t *testing.T) {
	for name, tt := range map[string]struct {
		most int
		want string
	}{
		"two":      {2, "ACK 2.05 |hello"},
		"too many": {1, "ACK 4.01 14= |too many OSCORE layers"}, // OH-56
	} {
		t.Run(name, func(t *testing.T) {
			inProtected(t, func(s *setup) { s.front.Protected.MaxLayers = tt.most }, func(g *gateway, p *pairs) {
				c, server := g.peer(phoneAddr), g.peer(member1)
				m, inner := p.seal(t, msg(con, codes.GET, "a", uri("coap://192.0.2.11/r")), "tablet")
				m.Options = append(m.Options, opt(wire.ProxyScheme, "coap")) // no host: the proxy itself (FP-4)
				m, outer := p.seal(t, m, "phone")
				c.ask(m)
				open := append(outer, inner...)
				if tt.most == 2 {
					server.answer(server.request(), ack, "hello")
				} else {
					open = outer
				}
				c.expectProtected(p, open, tt.want)
			})
		})
	}
}

// OH-12, OH-13: whose rights count is the last layer removed, and not the address.
func TestLayerIdentity(t *testing.T) {
	inProtected(t, func(s *setup) {
		for i := range s.access.Clients {
			if s.access.Clients[i].Identity.Name == "tablet" {
				s.access.Clients[i].Forward = nil
			}
		}
	}, func(g *gateway, p *pairs) {
		c := g.peer(userAddr) // which may do everything
		open := c.askProtected(p, msg(con, codes.GET, "a", uri("coap://192.0.2.11/r")), "tablet")
		c.expectProtected(p, open, "ACK 4.01 14= |target not allowed")
		m, inner := p.seal(t, msg(con, codes.GET, "b", uri("coap://192.0.2.11/r")), "tablet")
		m, outer := p.seal(t, m, "phone")
		c.ask(m)
		c.expectProtected(p, append(outer, inner...), "ACK 4.01 14= |target not allowed")
	})
}

// OH-23, OH-24: what an attacker adds outside of the layer does not count.
func TestLayerOuterOptions(t *testing.T) {
	inProtected(t, nil, func(g *gateway, p *pairs) {
		c, server := g.peer(phoneAddr), g.peer(member1)
		m, open := p.seal(t, msg(con, codes.GET, "a", opt(wire.URIHost, "192.0.2.11"), opt(wire.URIPath, "r"), opt(wire.ProxyScheme, "coap")), "phone")
		for id, value := range map[int]string{int(wire.MulticastTimeout): "\x05", int(wire.URIHost): "192.0.2.99", int(wire.URIPort): "\x01",
			int(wire.GroupETag): "g", int(wire.NoResponse): "\x1a", int(wire.Observe): "", int(wire.ETag): "e", 2004: "x"} {
			m.Options = insertOption(m.Options, message.OptionID(id), []byte(value))
		}
		c.ask(m)
		q := server.request()
		require.Equal(t, "CON 0.01 11=72 16=10", describe(&q.Message))
		server.answer(q, ack, "hello")
		c.expectProtected(p, open, "ACK 2.05 |hello")

		// A target made of what is outside alone: the inside has no host.
		m, open = p.seal(t, msg(con, codes.GET, "b", opt(wire.URIPath, "x"), opt(wire.ProxyScheme, "coap")), "phone")
		m.Options = insertOption(m.Options, wire.URIHost, []byte("192.0.2.11"))
		c.ask(m)
		c.expectProtected(p, open, "ACK 4.04 |this is a proxy; name a target with Proxy-Uri or Proxy-Scheme")
		server.expect()
	})
}

// GP-20, OH-50 to OH-53: what is not authentic gets its answer, in the layers removed
// before and in no other (OH-64).
func TestLayerRefused(t *testing.T) {
	bad := func(value, payload string) wire.Message {
		m := msg(con, codes.POST, "a", opt(wire.OSCORE, value))
		m.Payload = []byte(payload)
		return m
	}
	for name, tt := range map[string]struct {
		ask  wire.Message
		want string
	}{
		"OH-50 reserved flag":        {bad("\x89\x00p", "c"), "4.02 14= |Failed to decode COSE"},
		"OH-50 long Partial IV":      {bad("\x0e\x01\x02\x03\x04\x05\x06p", "c"), "4.02 14= |Failed to decode COSE"},
		"OH-50 no kid":               {bad("\x01\x00", "c"), "4.02 14= |Failed to decode COSE"},
		"OH-50 no Partial IV":        {bad("\x08p", "c"), "4.02 14= |Failed to decode COSE"},
		"OH-50 no payload":           {bad("\x09\x00p", ""), "4.02 14= |Failed to decode COSE"},
		"OH-51 kid":                  {bad("\x09\x00q", "c"), "4.01 14= |Security context not found"},
		"OH-51 kid context":          {bad("\x19\x00\x01gp", "c"), "4.01 14= |Security context not found"},
		"OH-53 tag":                  {bad("\x09\x00p", "ciphertext of nobody"), "4.00 14= |Decryption failed"},
		"OH-53 shorter than its tag": {bad("\x09\x00p", "c"), "4.00 14= |Decryption failed"},
		"OH-19 EDHOC is not served":  {wire.Message{Type: con, Code: codes.POST, Token: []byte("a"), Options: bad("\x09\x00p", "c").Options, Payload: []byte("c")}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			inProtected(t, nil, func(g *gateway, p *pairs) {
				c := g.peer(phoneAddr)
				if tt.want == "" {
					m := tt.ask
					m.Options = append(m.Options, opt(wire.EDHOC, ""))
					c.ask(m)
					c.expect("ACK 4.02 |EDHOC is not supported")
					return
				}
				c.ask(tt.ask)
				c.expect("ACK " + tt.want)
				inner := tt.ask
				inner.Type, inner.Token = con, []byte("b")
				open := c.askProtected(p, inner, "tablet")
				c.expectProtected(p, open, "ACK "+tt.want)
			})
		})
	}
}

// OH-52, OH-110: a second copy, under another Message ID, is a replay.
func TestLayerReplay(t *testing.T) {
	inProtected(t, nil, func(g *gateway, p *pairs) {
		c, server := g.peer(phoneAddr), g.peer(member1)
		m, open := p.seal(t, msg(con, codes.PUT, "a", uri("coap://192.0.2.11/r")), "phone")
		c.ask(m)
		server.answer(server.request(), ack, "")
		c.expectProtected(p, open, "ACK 2.05")
		c.ask(m)
		c.expect("ACK 4.01 14= |Replay detected")
		server.expect()
	})
}

// OC-54, OH-65: the answers to a source are limited, and so are the forged
// messages of it that a key is tried on; another source is not concerned.
func TestLayerBudgets(t *testing.T) {
	inProtected(t, nil, func(g *gateway, p *pairs) {
		c, other := g.peer(phoneAddr), g.peer("198.18.1.7:40000")
		m, _ := p.seal(t, msg(non, codes.GET, "a", uri("coap://192.0.2.11/r")), "phone")
		forged := flip(m, 3)
		for range layerFailureBurst + 10 {
			c.ask(forged)
		}
		require.Len(t, c.take(), layerAnswerBurst)
		require.EqualValues(t, layerFailureBurst-layerAnswerBurst, g.stats.LayersSilenced.Load())
		require.EqualValues(t, 10, g.stats.LayersSkipped.Load())
		require.Equal(t, layerFailureBurst, p.layers.tried, "bounded work")
		other.ask(forged)
		other.expect("NON 4.00 14= |Decryption failed")
		// Time brings both back.
		g.after(20 * time.Second)
		c.ask(forged)
		c.expect("NON 4.00 14= |Decryption failed")
	})
}

// OC-54: who forges the address of a client, and does not know its port, does not keep
// out a client that was authentic lately; who knows the port does, as far as that one
// goes.
func TestForgedSource(t *testing.T) {
	inProtected(t, nil, func(g *gateway, p *pairs) {
		c, server := g.peer(phoneAddr), g.peer(member1)
		at := netip.MustParseAddrPort(phoneAddr)
		attacker := g.peer(netip.AddrPortFrom(at.Addr(), at.Port()+1).String())
		asks := func(token string) {
			t.Helper()
			open := c.askProtected(p, msg(con, codes.GET, token, uri("coap://192.0.2.11/r")), "phone")
			server.answer(server.request(), ack, "hello")
			c.expectProtected(p, open, "ACK 2.05 |hello")
		}
		m, _ := p.seal(t, msg(non, codes.GET, "a", uri("coap://192.0.2.11/r")), "phone")
		forged := flip(m, 3)
		flood := func(n int, from *peer) {
			for range n {
				from.ask(forged)
			}
			from.take()
		}
		asks("1")
		flood(2*layerFailureBurst, attacker)
		require.EqualValues(t, layerFailureBurst, g.stats.LayersSkipped.Load())
		asks("2")
		flood(layerFailureBurst, c) // now the port is known, too
		m, _ = p.seal(t, msg(con, codes.GET, "3", uri("coap://192.0.2.11/r")), "phone")
		c.ask(m)
		c.expect("ACK")
		server.expect()
		g.after(20 * time.Second)
		asks("4")
		g.after(lately)
		flood(2*layerFailureBurst, attacker)
		skipped := g.stats.LayersSkipped.Load()
		m, _ = p.seal(t, msg(con, codes.GET, "5", uri("coap://192.0.2.11/r")), "phone")
		c.ask(m) // it was not heard for long
		require.Equal(t, skipped+1, g.stats.LayersSkipped.Load())
		c.take()
	})
}

// OC-55: a context that is nearly used up begins nothing with many responses.
func TestLayerWornOut(t *testing.T) {
	inProtected(t, nil, func(g *gateway, p *pairs) {
		p.layers.wornOut = true
		c, server := g.peer(phoneAddr), g.peer(member1)
		open := c.askProtected(p, groupGet(con, "a", 2), "phone")
		c.expectProtected(p, open, "ACK 5.03 14=3c |the security context is nearly used up: renew it")
		open = c.askProtected(p, msg(con, codes.GET, "b", uri("coap://192.0.2.11/r"), opt(wire.Observe, "")), "phone")
		c.expectProtected(p, open, "ACK 5.03 14=3c |the security context is nearly used up: renew it")
		open = c.askProtected(p, msg(con, codes.GET, "c", uri("coap://192.0.2.11/r")), "phone")
		server.answer(server.request(), ack, "hello")
		c.expectProtected(p, open, "ACK 2.05 |hello")
	})
}

// OH-63: what cannot be protected is not sent. A CON request gets its ACK.
func TestLayerUnsent(t *testing.T) {
	inProtected(t, nil, func(g *gateway, p *pairs) {
		p.layers.protects = func(*wire.Message) (*wire.Message, error) { return nil, errors.New("limit") }
		c, server, a := g.peer(phoneAddr), g.peer(member1), g.peer("192.0.2.12:5683", "224.0.1.187")
		c.askProtected(p, msg(con, codes.GET, "a", uri("coap://192.0.2.11/r")), "phone")
		server.answer(server.request(), ack, "hello")
		c.expect("ACK")
		c.askProtected(p, groupGet(con, "b", 2), "phone")
		a.answer(a.request(), non, "one")
		c.expect("ACK")
		g.after(2 * time.Second)
		c.expect()
	})
}

// Without contexts a request with OSCORE for the proxy has an option it does not
// know; beside proxy options it goes on.
func TestNoLayers(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c := g.peer(userAddr)
		m := msg(con, codes.POST, "a", opt(wire.OSCORE, "\x09\x00p"))
		m.Payload = []byte("ciphertext")
		c.ask(m)
		c.expect("ACK 4.02 |option 9 cannot be processed")
	})
}

// A budget is filled again by time, holds no more than its burst, and knows IPv6
// sources by their network.
func TestBudget(t *testing.T) {
	b := newBudget(2, 3)
	now := time.Now()
	a := sourceOf(netip.MustParseAddrPort("[2001:db8::1]:1"))
	for range 3 {
		require.False(t, b.empty(a, now))
		require.True(t, b.take(a, now))
	}
	require.True(t, b.empty(a, now))
	require.False(t, b.take(sourceOf(netip.MustParseAddrPort("[2001:db8::2]:2")), now), "the same network")
	now = now.Add(500 * time.Millisecond)
	require.True(t, b.take(a, now))
	require.False(t, b.take(a, now))
	now = now.Add(time.Hour)
	for range 3 {
		require.True(t, b.take(a, now))
	}
	require.False(t, b.take(a, now))
}

// layers.context tells the contexts apart, one or several.
func TestLayersContext(t *testing.T) {
	one := &testLayer{security: exchange.Security{OSCORE: "a"}}
	two := &testLayer{security: exchange.Security{OSCORE: "b"}}
	require.Empty(t, layers(nil).context())
	require.Equal(t, "a", layers{one}.context())
	require.NotEqual(t, layers{one, two}.context(), layers{two, one}.context())
}
