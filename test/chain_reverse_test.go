package test

import (
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
	"coapproxy/wire"
)

// followUp is the request of a client for a path at the server that a Reply-From
// announces, and where it goes (GP-118).
func followUp(t *testing.T, value []byte, segments ...string) (netip.AddrPort, *coap.Message) {
	t.Helper()
	v, err := wire.ParseReplyFrom(value)
	require.NoError(t, err, "%x", value)
	options := path(segments...)
	if v.Ref != nil {
		options = append(path(v.Ref.Path...), options...)
		if v.Ref.Addr.IsValid() {
			if v.Ref.Port != 0 {
				options = append([]coap.Option{coap.Uint(coap.URIPort, uint32(v.Ref.Port))}, options...)
			}
			options = append([]coap.Option{coap.Opt(coap.URIHost, v.Ref.Addr.String())}, options...)
		}
	}
	return netip.AddrPortFrom(v.Server.Addr, v.Server.Port), &coap.Message{Type: coap.CON, Code: coap.GET, Options: options}
}

// GP-102: a proxy that stands in for servers (cases A1, by host or path, and A2) in
// front of another one that does so in any of the ways there are. What the first one
// announces leads to the right server through both, and tells nothing of what is
// between (GP-112).
func TestChainOfReverseProxies(t *testing.T) {
	t.Parallel()
	for _, scheme := range []string{"coap", "coap+tcp"} {
		for _, inner := range []string{"by-host", "by-path", "own-address", "direct"} {
			t.Run(scheme+" "+inner, func(t *testing.T) {
				t.Parallel()
				body := pattern(3000)
				servers, group := members(t, 3, func(s *server, r *request) {
					if strings.HasSuffix(r.Path(), "/body") {
						blockwise(body, 4)(s, r)
						return
					}
					content(s, r)
				})
				innerPool, outerPool := reserveRun(t, 3, 2)
				behind := startProxy(t, group, settings{listen: "- " + scheme + "://127.0.0.1:0", clients: "- {name: outer, networks: [127.0.0.0/8], groups: \"*\"}",
					proxy: fmt.Sprintf("own_names: [lamps.floor.example]\nserver_addresses: [%q]\nidentifier: inner", innerPool),
					top:   fmt.Sprintf("routes:\n- {name: lamps, host: [lamps.floor.example], path: /all, to: \"coap://%v/in\", servers: %s}", group, inner)})
				s := settings{groups: "- {name: lamps, uri: \"coap://lamps.floor.example\"}",
					proxy: fmt.Sprintf("server_addresses: [%q]\nidentifier: outer", outerPool),
					top:   strings.Replace(nextHop(scheme+"://"+behind.addr().String(), ""), `"*"`, `"coap://*.floor.example"`, 1) + "\nroutes:"}
				for _, outer := range []string{"by-host", "by-path", "own-address"} {
					s.top += fmt.Sprintf("\n- {name: %s, path: /%s, to: \"coap://lamps.floor.example/all\", servers: %s}", outer, outer, outer)
				}
				p := startProxy(t, netip.AddrPort{}, s)
				p.waitFor("next hop is up")
				c := newClient(t, here, clientAddr, p.addr())
				for _, outer := range []string{"by-host", "by-path", "own-address"} {
					responses := c.gatherJust(&coap.Message{Type: coap.NON, Code: coap.GET, Options: append([]coap.Option{timeout(5)}, path(outer, "temp")...)}, len(servers))
					seen := make(map[string]bool)
					for _, in := range responses {
						name, rest, _ := strings.Cut(string(in.Payload), "/")
						require.Equal(t, "in/temp", rest)
						require.Len(t, in.All(coap.ReplyFrom), 1)
						value := in.All(coap.ReplyFrom)[0]
						seen[string(value)] = true
						if outer != "by-host" || inner != "direct" && inner != "own-address" {
							require.NotContains(t, hex.EncodeToString(value), "7f0001", "an address of a server")
						}
						to, m := followUp(t, value, "follow", outer)
						for range 2 {
							got := newClient(t, here, clientAddr, to).ask(m)
							require.Equal(t, name+"/follow/"+outer, string(got.Payload), "%v", got.Message)
							m.Token, m.Type = nil, coap.NON
						}
					}
					require.Len(t, seen, len(servers))
				}
				// A body that does not fit one message: the rest is at the target that was
				// announced.
				for _, in := range c.gatherN(&coap.Message{Type: coap.NON, Code: coap.GET, Options: append([]coap.Option{timeout(5)}, path("by-path", "body")...)}, len(servers)) {
					whole := in.Payload
					for num := 1; len(whole) < len(body); num++ {
						to, m := followUp(t, in.All(coap.ReplyFrom)[0], "in", "body")
						first := lastOption(t, in, coap.Block2)
						m.Options = append(m.Options, block(coap.Block2, uint32(num), false, uint32(first.Uint())&7))
						got := newClient(t, here, clientAddr, to).ask(m)
						require.Equal(t, coap.CodeOf(2, 5), got.Code, "%q", got.Payload)
						whole = append(whole, got.Payload...)
					}
					require.Equal(t, body, whole)
				}
				for _, m := range servers {
					for _, in := range m.requestsTo("/follow/by-host") {
						require.Equal(t, uint64(15), lastOption(t, in, coap.HopLimit).Uint(), "by way of both proxies")
						require.False(t, in.Has(coap.URIHost))
					}
				}

				// A next hop that is not there any more: what was announced leads nowhere.
				in := c.gatherN(&coap.Message{Type: coap.NON, Code: coap.GET, Options: append([]coap.Option{timeout(5)}, path("by-path", "last")...)}, 1)[0]
				p.reload(settings{proxy: s.proxy}.yaml(netip.AddrPort{}))
				to, m := followUp(t, in.All(coap.ReplyFrom)[0], "follow")
				got := newClient(t, here, clientAddr, to).ask(m)
				require.Equal(t, coap.CodeOf(5, 2), got.Code, "%q", got.Payload)
				require.Contains(t, string(got.Payload), "not configured any more")
			})
		}
	}
}

// reserveRun are two runs of ports of 127.0.0.1, of n addresses each way, that are
// free, and were a moment ago: "127.0.0.1:FIRST-LAST".
func reserveRun(t *testing.T, n ...int) (first, second string) {
	t.Helper()
	runs := make([]string, 2)
	for i := range runs {
		for try := 0; runs[i] == ""; try++ {
			require.Less(t, try, 1000)
			begin := newSocketPorts(t)
			free := true
			for port := begin; port < begin+n[0] && free; port++ {
				u, err := openSocket(netip.AddrPortFrom(clientAddr, uint16(port)))
				if free = err == nil; free {
					u.close()
				}
			}
			if free {
				runs[i] = fmt.Sprintf("127.0.0.1:%d-%d", begin, begin+n[0]-1)
			}
		}
	}
	return runs[0], runs[1]
}
