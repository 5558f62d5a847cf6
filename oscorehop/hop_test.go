package oscorehop

import (
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/wire"
)

// OH-30, OH-31: the decision, step by step, beside a plain reading of it.
func TestPlacement(t *testing.T) {
	for bits := range 1 << 7 {
		is := func(i int) bool { return bits>>i&1 == 1 }
		p := Placement{Added: is(0), Consumer: is(1), First: is(2), NextHop: is(3), NextHopConsumes: is(4), NeededBefore: is(5), Scheme: is(6)}
		for _, id := range []message.OptionID{wire.URIHost, wire.URIPort, wire.OSCORE, wire.HopLimit, wire.ProxyScheme, wire.MulticastTimeout} {
			step, class := 1, ClassUnknown
			for class == ClassUnknown {
				next := map[int]map[bool]int{ // by step and answer
					1: {true: 2, false: 4}, 2: {true: 3, false: 4}, 3: {true: 5, false: 9}, 4: {true: 6, false: 9},
					5: {true: 9, false: 6}, 6: {true: 7, false: 8}, 7: {true: 8, false: 9},
				}[step]
				switch step {
				case 1:
					step = next[p.Added]
				case 2:
					step = next[p.Consumer]
				case 3:
					step = next[p.First]
				case 4:
					step = next[p.NextHop || !p.NextHopConsumes]
				case 5:
					step = next[p.NeededBefore]
				case 6:
					step = next[id == wire.URIHost || id == wire.URIPort]
				case 7:
					step = next[p.Scheme]
				case 8:
					class = ClassE
				case 9:
					class = ClassU
				}
			}
			require.Equal(t, class, p.Class(id), "%+v option %d", p, id)
		}
	}
}

// OH-32 and OH-33 are what OH-31 comes to on a hop and end to end.
func TestPlacementShortcuts(t *testing.T) {
	outer := []message.OptionID{wire.URIHost, wire.URIPort, wire.OSCORE, wire.HopLimit, wire.EDHOC, wire.ProxyURI, wire.ProxyScheme,
		wire.ProxyCRI, wire.ProxySchemeNumber, wire.MulticastTimeout, wire.ReplyFrom, wire.GroupETag, wire.RequestHash}
	h := Hop{Numbers: wire.DefaultNumbers()}
	for _, id := range outer {
		authority := id == wire.URIHost || id == wire.URIPort
		for _, scheme := range []bool{false, true} {
			var options message.Options
			if scheme {
				options = message.Options{{ID: wire.ProxyScheme, Value: []byte("coap")}}
			}
			want := ClassE
			if authority && !scheme {
				want = ClassU
			}
			require.Equal(t, want, h.Outgoing(options)(id), "OH-32: option %d", id)
		}
		// OH-33: the layer of the server, with a proxy as the next hop, which is the
		// next consumer of what is for proxies.
		if id != wire.OSCORE && id != wire.EDHOC && id != wire.RequestHash && id != wire.ReplyFrom {
			p := Placement{Added: true, NextHopConsumes: true, Scheme: true}
			require.Equal(t, ClassU, p.Class(id), "OH-33: option %d", id)
		}
	}
	require.Equal(t, ClassE, Placement{Added: true, Consumer: true, First: true, NextHop: true}.Class(wire.HopLimit), "OH-33: without a proxy")
}

// OH-34, OH-35: numbers that a deployment moves, options that it adds, and unknown
// ones.
func TestHopNumbers(t *testing.T) {
	h := Hop{Numbers: wire.Numbers{MulticastTimeout: 65002, LegacyTimeout: 65006, ReplyFrom: 65010, GroupETag: 65014, ResponseForwarding: 65018},
		Further: []message.OptionID{2050}}
	classes := h.Outgoing(nil)
	for _, id := range []message.OptionID{65002, 65006, 65010, 65014, 65018, 2050, wire.ETag} {
		require.Equal(t, ClassE, classes(id), "option %d", id)
	}
	for _, id := range []message.OptionID{65002, 65006, 65010, 65014, 65018} {
		require.Equal(t, ClassU, h.known(id), "option %d, but for the rule of OH-32", id) // OH-35
	}
	require.Equal(t, ClassBoth, classes(wire.Observe))
	require.Equal(t, ClassUnknown, classes(2054))
	h.Numbers.LegacyTimeout = 0
	require.Equal(t, ClassUnknown, h.Outgoing(nil)(0))
}

// pairOf returns both ends of a new context.
func pairOf(t testing.TB) (client, proxy *Context) {
	t.Helper()
	a, b, err := NewPair(PairOptions{})
	require.NoError(t, err)
	return ephemeral(t, a, 0), ephemeral(t, b, 0)
}

// OH-24: of what is outside of a layer of the previous hop only its authority and
// Hop-Limit count, and those only where the inside leaves room for them.
func TestHopOuterOptions(t *testing.T) {
	h := Hop{Numbers: wire.DefaultNumbers()}
	text := func(id message.OptionID, v string) message.Option { return message.Option{ID: id, Value: []byte(v)} }
	for name, tt := range map[string]struct{ inside, outside, want message.Options }{
		"authority": {message.Options{text(wire.URIPath, "p")}, message.Options{text(wire.URIHost, "h"), text(wire.URIPort, "\x01")},
			message.Options{text(wire.URIHost, "h"), text(wire.URIPort, "\x01"), text(wire.URIPath, "p")}},
		"beside a scheme": {message.Options{text(wire.ProxyScheme, "coap")}, message.Options{text(wire.URIHost, "h"), text(wire.URIPort, "\x01")},
			message.Options{text(wire.ProxyScheme, "coap")}},
		"beside a scheme number": {message.Options{text(wire.ProxySchemeNumber, "")}, message.Options{text(wire.URIHost, "h")},
			message.Options{text(wire.ProxySchemeNumber, "")}},
		"hop limit":          {message.Options{}, message.Options{text(wire.HopLimit, "\x05")}, message.Options{text(wire.HopLimit, "\x05")}},
		"hop limit, another": {message.Options{text(wire.HopLimit, "\x07")}, message.Options{text(wire.HopLimit, "\x05")}, message.Options{text(wire.HopLimit, "\x07")}},
		"everything else": {message.Options{text(wire.URIPath, "p")}, message.Options{text(wire.MulticastTimeout, "\x05"), text(wire.GroupETag, "g"),
			text(wire.ProxyURI, "coap://x"), text(wire.ReplyFrom, "r"), text(wire.RequestHash, "h"), text(60002, "x")}, message.Options{text(wire.URIPath, "p")}},
	} {
		t.Run(name, func(t *testing.T) {
			client, proxy := pairOf(t)
			m, _, err := client.ProtectRequest(Message{Code: codes.GET, Options: tt.inside}, h.Outgoing(tt.inside))
			require.NoError(t, err)
			for _, o := range tt.outside {
				m.Options = insert(m.Options, o)
			}
			option, err := RequestOption(m)
			require.NoError(t, err)
			got, _, err := h.UnprotectRequest(proxy, m, option)
			require.NoError(t, err)
			require.Equal(t, tt.want, got.Options)
		})
	}
}

// OH-42: a request that may draw several responses never lends its nonce, whatever
// number Multicast-Timeout has.
func TestHopRequiresPartialIV(t *testing.T) {
	h := Hop{Numbers: wire.Numbers{MulticastTimeout: 65002, LegacyTimeout: 65006}}
	for _, id := range []message.OptionID{65002, 65006} {
		client, proxy := pairOf(t)
		options := message.Options{{ID: id, Value: []byte{5}}}
		m, _, err := client.ProtectRequest(Message{Code: codes.GET, Options: options}, h.Outgoing(options))
		require.NoError(t, err)
		option, err := RequestOption(m)
		require.NoError(t, err)
		_, r, err := h.UnprotectRequest(proxy, m, option)
		require.NoError(t, err)
		require.False(t, r.reusable.Load())
	}
}

// OC-54: the operator is told once of each level.
func TestRisen(t *testing.T) {
	c := ephemeral(t, testParameters(DefaultAlgorithm), 0)
	_, risen := c.Risen()
	require.False(t, risen)
	for _, tt := range []struct {
		next  uint64
		level Level
	}{{1 << 19, Watch}, {1<<20 - 1<<17, Soft}, {1 << 20, Refused}} {
		c.counter.next = tt.next
		u, risen := c.Risen()
		require.True(t, risen)
		require.Equal(t, tt.level, u.Level)
		_, risen = c.Risen()
		require.False(t, risen)
	}
}
