package test

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// An HTTP client in front of a proxy before one that stands in for servers in each of
// the ways there are (GP-102): it reaches each of them alone by what it learns, and gets
// bodies that are longer than one message whole, the rest of them from the target that
// the next proxy has announced (GC-54). Where that one has the group at another path than
// the servers, so that nobody here knows which body goes on where, it gets no part of
// one for the whole.
func TestHTTPBeforeReverseProxies(t *testing.T) {
	t.Parallel()
	for _, inner := range []string{"by-host", "by-path", "own-address", "direct"} {
		t.Run(inner, func(t *testing.T) {
			t.Parallel()
			body := func(name, path string) string { return name + path + " " + string(pattern(3000)) }
			servers, group := members(t, 3, func(s *server, r *request) {
				if strings.HasSuffix(r.Path(), "/body") {
					blockwise([]byte(body(s.name, r.Path())), 4)(s, r)
					return
				}
				content(s, r)
			})
			pool, _ := reserveRun(t, 3)
			behind := startProxy(t, group, settings{clients: "- {name: outer, networks: [127.0.0.0/8], groups: \"*\"}",
				proxy: fmt.Sprintf("own_names: [a.floor.example, b.floor.example]\nserver_addresses: [%q]\nidentifier: inner", pool),
				top: strings.ReplaceAll(fmt.Sprintf("routes:\n- {name: a, host: [a.floor.example], to: \"coap://%v\", servers: KIND}\n"+
					"- {name: b, host: [b.floor.example], path: /all, to: \"coap://%v/in\", servers: KIND}", group, group), "KIND", inner)})
			a := newAuthority(t)
			s := web(a, strings.Replace(nextHop("coap://"+behind.addr().String(), ""), `"*"`, `"coap://*.floor.example"`, 1)+
				"\nroutes:\n- {name: a, path: /a, to: \"coap://a.floor.example/in\"}\n- {name: b, path: /b, to: \"coap://b.floor.example/all\"}", "")
			s.groups = "- {name: a, uri: \"coap://a.floor.example\"}\n- {name: b, uri: \"coap://b.floor.example\"}"
			s.proxy = "identifier: outer"
			p := startProxy(t, netip.AddrPort{}, s)
			p.waitFor("next hop is up")
			c := webClients(t, a)["http HTTP/1.1"]
			base := "http://" + p.addrs[1].String()

			w, text := fetch(t, c, "GET", base+"/a/body", "Multicast-Timeout: 4")
			require.NotRegexp(t, memberAddress, text)
			parts := batchOf(t, w, text)
			require.Len(t, parts, len(servers))
			seen := make(map[string]bool)
			for _, part := range parts {
				name, _, _ := strings.Cut(part.body, "/")
				seen[name] = true
				require.Equal(t, body(name, "/in/body"), part.body)
				at := part.Header.Get("Content-Location")
				require.Regexp(t, "^"+base+"/servers/[0-9a-f]{10}/in/body$", at)
				_, text = fetch(t, c, "GET", at)
				require.Equal(t, body(name, "/in/body"), text)
				_, text = fetch(t, c, "GET", strings.Replace(at, "/in/body", "/one", 1))
				require.Equal(t, name+"/one", text)
			}
			require.Len(t, seen, len(servers))
			for _, s := range servers {
				require.Len(t, s.requestsTo("/one"), 1)
			}

			_, text = fetch(t, c, "GET", base+"/a/body", "Multicast-Timeout: 4", "Accept: application/json")
			var objects []struct {
				Server, BodyBase64 string
				Status             int
			}
			require.NoError(t, json.Unmarshal([]byte(text), &objects), text)
			require.Len(t, objects, len(servers))
			for _, o := range objects {
				whole, err := base64.StdEncoding.DecodeString(o.BodyBase64)
				require.NoError(t, err)
				name, _, _ := strings.Cut(string(whole), "/")
				require.Equal(t, body(name, "/in/body"), string(whole))
				_, text = fetch(t, c, "GET", o.Server+"/two")
				require.Equal(t, name+"/two", text)
			}

			at := objects[0].Server + "/x"

			w, text = fetch(t, c, "GET", base+"/b/body", "Multicast-Timeout: 4")
			parts = batchOf(t, w, text)
			require.Len(t, parts, len(servers))
			for _, part := range parts {
				require.Equal(t, 502, part.StatusCode)
				require.Contains(t, part.body, "longer than one message")
				require.NotContains(t, part.body, "000")
			}

			// Without the next hop what was announced leads nowhere, and says so.
			without := web(a, "", "")
			without.proxy = s.proxy
			p.reload(without.yaml(netip.AddrPort{}))
			w, text = fetch(t, c, "GET", at)
			require.Equal(t, 502, w.StatusCode)
			require.Contains(t, text, "not configured any more")
		})
	}
}
