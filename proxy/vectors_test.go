package proxy

import (
	"encoding/hex"
	"encoding/json"
	"net/netip"
	"os"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// vector returns the bytes of a message of testdata/group-proxy-options.json.
func vector(t testing.TB, name string) []byte {
	t.Helper()
	data, err := os.ReadFile("../testdata/group-proxy-options.json")
	require.NoError(t, err)
	var file struct {
		Messages []struct{ Name, Hex string }
	}
	require.NoError(t, json.Unmarshal(data, &file))
	for _, m := range file.Messages {
		if m.Name == name {
			return unhex(t, m.Hex)
		}
	}
	t.Fatalf("there is no vector %s", name)
	return nil
}

// send sends bytes to the proxy.
func (c *peer) send(t testing.TB, data []byte) {
	t.Helper()
	require.NoError(t, c.Send(netip.AddrPortFrom(netip.MustParseAddr(proxy4), 5683), data))
}

// lightsMember is a member of ff05::fd, to which the vectors go.
const lightsMember = "[2001:db8::11]:5683"

// GP-26: a group request without Multicast-Timeout gets exactly these bytes,
// and goes nowhere.
func TestMissingTimeoutBytes(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(lightsMember, "ff05::fd")
		c.send(t, vector(t, "request-no-timeout"))
		got := c.take()
		require.Len(t, got, 1)
		require.Equal(t, hex.EncodeToString(vector(t, "error-no-timeout")), hex.EncodeToString(got[0].raw))
		a.expect()
	})
}

// GP-21: the four ways to name a group lead to the same request.
func TestRequestVectors(t *testing.T) {
	for _, name := range []string{"request-proxy-uri", "request-proxy-scheme", "request-proxy-scheme-number", "request-proxy-cri"} {
		t.Run(name, func(t *testing.T) {
			inGateway(t, nil, func(g *gateway) {
				c, a := g.peer(userAddr), g.peer(lightsMember, "ff05::fd")
				c.send(t, vector(t, name))
				a.expect("NON 0.01 11=72 16=10")
				c.expect("ACK")
				c.send(t, vector(t, "early-stop"))
				c.expect("ACK")
				require.EqualValues(t, 1, g.stats.EarlyStops.Load())
			})
		})
	}
}

func TestRequestVectorTimeoutZero(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		c, a := g.peer(userAddr), g.peer(lightsMember, "ff05::fd")
		c.send(t, vector(t, "request-t-zero"))
		a.expect("NON 0.02 11=72 16=10 258=1a")
		c.expect()
	})
}

// GP-52, GP-127: what a client of each dialect gets for a 2.05 from a server,
// to the byte, but for the Message ID.
func TestResponseVectors(t *testing.T) {
	for name, tt := range map[string]struct {
		dialect exchange.Dialect
		server  string
	}{
		"response-draft-07-v6":       {exchange.Draft07, "[2001:db8::1]:5683"},
		"response-draft-07-v6-61616": {exchange.Draft07, "[2001:db8::1]:61616"},
		"response-draft-07-v4":       {exchange.Draft07, "192.0.2.7:5683"},
		"response-legacy-v6":         {exchange.Legacy, "[2001:db8::1]:5683"},
		"response-legacy-v6-61616":   {exchange.Legacy, "[2001:db8::1]:61616"},
		"response-legacy-v4":         {exchange.Legacy, "192.0.2.7:5683"},
		"response-both-dialects-v4":  {exchange.Both, "192.0.2.7:5683"},
	} {
		t.Run(name, func(t *testing.T) {
			inGateway(t, func(s *setup) { s.access.Clients[0].Identity.Dialect = tt.dialect }, func(g *gateway) {
				c, a := g.peer(userAddr), g.peer(tt.server)
				hears := g.peer("192.0.2.99:5683", "224.0.1.187")
				uri := nodesURI
				if a.LocalAddr().Addr().Is6() {
					hears = g.peer(lightsMember, "ff05::fd")
					uri = "coap://[ff05::fd]/r"
				}
				c.ask(msg(non, 1, "\xa1\xb2", timeout(60), opt(wire.ProxyURI, uri)))
				a.answer(hears.request(), non, "ok")
				got := c.take()
				require.Len(t, got, 1)
				want := vector(t, name)
				copy(want[2:4], got[0].raw[2:4])
				require.Equal(t, hex.EncodeToString(want), hex.EncodeToString(got[0].raw))
			})
		})
	}
}
