package httpbridge

import (
	"encoding/base64"
	"fmt"
	"net/http"
	"net/netip"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// Paths of announced servers come before all routes, as long as they are announced: what
// a path means then is not remembered (GP-56). The rest of the path is the server's, as it
// is (HC-13).
func TestAnnouncedPaths(t *testing.T) {
	known := map[string]bool{}
	for _, catchAll := range []bool{false, true} {
		f, chain := newFront(t, func(c *Config) {
			c.Mapping = Mapping{Servers: []string{"s", "x y"}, Announced: func(id string) bool { return known[id] }}
			if catchAll {
				c.Mapping.Routes = []Route{{Target: "coap://h/all"}}
			}
		})
		for range 3 { // often enough for the memory of targets
			known["3f"] = false
			w := do(f, "GET", "/s/x%20y/3f/temp?u=C", "")
			if catchAll {
				require.Equal(t, "coap://h/all/s/x%20y/3f/temp?u=C", proxyURI(chain.last()))
			} else {
				require.Equal(t, 404, w.Code)
				require.Contains(t, w.Body.String(), "ask its group again")
			}
			known["3f"] = true
			for target, want := range map[string]string{
				"/s/x%20y/3f": "/s/x%20y/3f", "/s/x%20y/3f/": "/s/x%20y/3f/", "/%73/x%20y/%33f/te%6dp?u=C&%41": "/s/x%20y/3f/temp?u=C&A", "/s/x%20y/3f/a%2Fb//c": "/s/x%20y/3f/a%2Fb//c",
			} {
				w = do(f, "GET", target, "")
				require.Equal(t, 200, w.Code, w.Body)
				r := chain.last()
				require.Empty(t, proxyURI(r))
				require.Empty(t, r.Route)
				var u wire.URI
				for s := range wire.All(r.Options, wire.URIPath) {
					u.Path = append(u.Path, string(s))
				}
				for s := range wire.All(r.Options, wire.URIQuery) {
					u.Query = append(u.Query, string(s))
				}
				require.Equal(t, want, requestTarget(u))
			}
			n := chain.count()
			for _, target := range []string{"/s/x%20y/3f/..", "/s/x%20y/3f/%2e/a", "/s/x%20y/3f/%ff"} {
				require.Equal(t, 400, do(f, "GET", target, "").Code, target)
			}
			require.Equal(t, n, chain.count())
		}
	}
}

// Where a route's servers are announced, a response names its server by what was
// announced, also behind a next proxy, and by nothing if that could not be (GP-102,
// GP-112); one of several responses of the same server stays (HC-77).
func TestAnnouncedServers(t *testing.T) {
	announced := func(from *exchange.Response, id string) *exchange.Response {
		from.ReplyFrom = []byte{}
		if id != "" {
			from.ReplyFrom = wire.ReplyFromValue{Server: wire.URI{Scheme: "http", Addr: serverC.Addr(), Port: 8080}, Ref: &wire.ReplyFromRef{Path: []string{"servers", id}}}.Append(nil)
		}
		return from
	}
	behind := func(id, body string) *exchange.Response {
		p := announced(member(serverA, codes.Content, body), id)
		p.From = netip.AddrPort{}
		return p
	}
	f, chain := newFront(t, func(c *Config) {
		c.Origins.Hosts = []string{"gw.example"}
		c.Mapping.Routes = []Route{{Name: "lamps", Path: []string{"lamps"}, Target: "coap://[ff05::fd]/light"}}
	})
	chain.serve = answers(announced(member(serverA, codes.Content, "a"), "01"), announced(member(serverB, codes.Content, "b"), ""),
		behind("02", "old"), behind("02", "new"), behind("03", "c"))
	for host, base := range map[string]string{"gw.example:8080": "http://gw.example:8080", "[2001:db8::5]": "http://[2001:db8::5]"} {
		t.Run(host, func(t *testing.T) {
			w := do(f, "GET", "/lamps/x?q", "", "Host: "+host, "Multicast-Timeout: 1", "Accept: application/json")
			require.Equal(t, 200, w.Code, w.Body)
			require.Equal(t, "lamps", chain.last().Route)
			for id, body := range map[string]string{"01": "a", "02": "new", "03": "c"} {
				require.Contains(t, w.Body.String(), fmt.Sprintf(`{"server":"%s/servers/%s","status":200,`, base, id))
				require.Contains(t, w.Body.String(), `"bodyBase64":"`+base64.StdEncoding.EncodeToString([]byte(body))+`"`)
			}
			require.NotContains(t, w.Body.String(), base64.StdEncoding.EncodeToString([]byte("old")))
			require.NotContains(t, w.Body.String(), "2001:db8::1]")
			require.NotContains(t, w.Body.String(), serverA.Addr().String())
			w = do(f, "GET", "/lamps/x?q", "", "Host: "+host, "Multicast-Timeout: 1")
			require.Contains(t, w.Body.String(), "Content-Location: "+base+"/servers/02/light/x?q\r\n")
			require.NotContains(t, w.Body.String(), serverA.Addr().String())
			require.NotContains(t, w.Body.String(), "coap:")
		})
	}
	// What the proxy itself says in such an exchange is nobody's.
	chain.serve = answers(&exchange.Response{Code: codes.NotFound, GroupPort: 5683})
	w := do(f, "GET", "/lamps/x", "", "Multicast-Timeout: 1")
	require.Equal(t, http.StatusNotFound, w.Code)
}

// GC-54: a piece of a body is no answer, in no form.
func TestPieceOfABody(t *testing.T) {
	f, chain := newFront(t, nil)
	piece := member(serverA, codes.Content, "begun", message.Option{ID: wire.Block2, Value: []byte{0x0a}})
	whole := member(serverB, codes.Content, "small", message.Option{ID: wire.Block2, Value: []byte{0x02}})
	chain.serve = answers(piece, whole)
	for _, fields := range [][]string{{}, {"Accept: application/json"}, {"Accept: application/x-ndjson"}, {"Prefer: stream-parts"}} {
		w := do(f, "GET", groupTarget, "", append(fields, "Multicast-Timeout: 1")...)
		require.Equal(t, 200, w.Code)
		require.NotContains(t, w.Body.String(), "begun")
		require.NotContains(t, w.Body.String(), base64.StdEncoding.EncodeToString([]byte("begun")))
		require.Contains(t, w.Body.String(), "502")
		require.Contains(t, w.Body.String(), "longer than one message")
		require.Regexp(t, "small|c21hbGw=", w.Body.String())
	}
}
