package httpbridge

import (
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

func TestRequestTargets(t *testing.T) {
	all := func(c *Config) {
		c.Mapping = Mapping{Forward: true, Routes: []Route{
			{Path: []string{"lights"}, Target: "coap://[ff05::fd]/light", Timeout: exchange.Timeout{Seconds: 3, Present: true}},
			{Host: "boiler.example", Target: "coap://192.0.2.9:61616"},
		}}
	}
	for _, x := range []struct {
		rule, target, want string // the Proxy-Uri
	}{
		{"HC-2", "/hc/coap://192.0.2.7/temp", "coap://192.0.2.7/temp"},
		{"HC-2", "/hc/coap://server.example/a/b?x=1&y=%20", "coap://server.example/a/b?x=1&y=%20"},
		{"HC-2", "/hc/coap://server.example", "coap://server.example/"},
		{"HC-2", "/hc/coap://server.example?q", "coap://server.example/?q"},
		{"HC-2", "/hc/coap://server.example:61616/a%2Fb//c/", "coap://server.example:61616/a%2Fb//c/"},
		{"HC-2", "/hc/CoAP://Server.Example/A", "coap://server.example/A"},
		{"HC-4", "/hc/coap://%5B2001:db8::1%5D/x%5B", "coap://[2001:db8::1]/x%5B"},
		{"HC-4", "/hc/coap://[2001:db8::1]:5683/x", "coap://[2001:db8::1]/x"},
		{"HC-4", "/hc/coap://%5bfe80::1%25eth0%5d/x", "coap://[fe80::1%25eth0]/x"},
		{"HC-7", "/hc/?target_uri=coap://192.0.2.7/temp", "coap://192.0.2.7/temp"},
		{"HC-7", "/hc?target_uri=coap://192.0.2.7/temp", "coap://192.0.2.7/temp"},
		{"HC-8", "/hc/?target_uri=coap://192.0.2.7/temp?a=1&b=2", "coap://192.0.2.7/temp?a=1&b=2"},
		{"HC-8", "/hc/?target_uri=coap%3A%2F%2F192.0.2.7%2Ftemp%3Fa=1%26b=%252F", "coap://192.0.2.7/temp?a=1&b=/"},
		{"HC-8", "/hc/?target_uri=coap://192.0.2.7/a%20b", "coap://192.0.2.7/a%20b"},
		{"HC-10", "/lights", "coap://[ff05::fd]/light"},
		{"HC-10", "/lights/kitchen?x", "coap://[ff05::fd]/light/kitchen?x"},
		{"HC-11", "coap://192.0.2.7/temp", "coap://192.0.2.7/temp"},
		{"HC-11", "coap://[2001:db8::1]/temp?x", "coap://[2001:db8::1]/temp?x"},
		{"RFC 9112", "http://gw.example/hc/coap://192.0.2.7/temp", "coap://192.0.2.7/temp"},
		{"RFC 9112", "http://boiler.example:8080/status", "coap://192.0.2.9:61616/status"},
	} {
		t.Run(x.rule+" "+x.target, func(t *testing.T) {
			f, chain := newFront(t, all)
			w := do(f, "GET", x.target, "")
			require.Less(t, w.Code, 300, w.Body)
			// The default path of a URI is "/", and ":5683" the default port.
			require.Equal(t, x.want, proxyURI(chain.last()))
		})
	}
}

func TestRefusedTargets(t *testing.T) {
	long := strings.Repeat("a", 256)
	for _, x := range []struct {
		rule, target string
		status       int
		body         string
	}{
		{"HC-5", "/hc/coap:/192.0.2.7/temp", 400, "two slashes"},
		{"HC-5", "/hc/coap:///temp", 400, "two slashes"},
		{"HC-5", "/hc/coap:192.0.2.7", 400, "two slashes"},
		{"HC-6", "/hc/192.0.2.7/temp", 400, "no scheme"},
		{"HC-6", "/hc/?target_uri=192.0.2.7/temp", 400, "no scheme"},
		{"HC-6", "/hc/?target_uri=", 400, "no scheme"},
		{"HC-8", "/hc/?target_uri=coap%3", 400, "percent"},
		{"HC-11", "coap://192.0.2.7/temp", 501, "forward-proxy form"},
		{"HC-12", "/hc/coap://192.0.2.7/temp#x", 400, "fragment"},
		{"HC-12", "/hc/coap://me@192.0.2.7/temp", 400, "userinfo"},
		{"HC-12", "/hc/coap://192.0.2.7:0/temp", 400, "port"},
		{"HC-13", "/hc/coap://192.0.2.7/%ff", 400, "UTF-8"},
		{"HC-13", "/hc/coap://192.0.2.7/" + long, 400, "255"},
		{"HC-13", "/hc/coap://192.0.2.7/?" + long, 400, "255"},
		{"HC-13", "/hc/coap://192.0.2.7/../x", 400, `".."`},
		{"HC-13", "/hc/coap://192.0.2.7/%2e/x", 400, `"."`},
		{"HC-13", "/hc/../coap://192.0.2.7/x", 400, "no scheme"},
		{"HC-22", "/hc/http://192.0.2.7/x", 501, "scheme"},
		{"HC-22", "/hc/coap+foo://192.0.2.7/x", 501, "scheme"},
		{"RFC 7252 §5.10", "/hc/coap://192.0.2.7/" + strings.Repeat(long[:200]+"/", 6), 414, "1034"},
		{"", "/", 404, "/hc/coap://host/path"},
		{"", "/hc/", 404, "/hc/coap://host/path"},
		{"", "//hc/coap://192.0.2.7/x", 404, "mapped"},
		{"", "hc", 400, "request target"},
		{"", "ftp://x/", 501, "forward-proxy form"},
		{"", "http:/hc/coap://192.0.2.7/x", 400, "request target"},
		{"HC-20", "*", 501, "method"},
	} {
		t.Run(x.rule+" "+x.target[:min(len(x.target), 60)], func(t *testing.T) {
			f, chain := newFront(t, nil)
			w := do(f, "GET", x.target, "")
			require.Equal(t, x.status, w.Code, w.Body)
			require.Contains(t, w.Body.String(), x.body)
			require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
			require.Zero(t, chain.count(), "forwarded")
		})
	}
}

// A path is compared by what it means (RFC 3986 §6.2.2), and what goes out is what was
// compared: an encoded slash separates nothing, and nothing is decoded twice (HC-10, HC-13).
func TestEncodedPaths(t *testing.T) {
	m, err := newMapping(Mapping{Forward: true, DefaultScheme: "coap", Templates: []string{"forward/{+tu}"}, Routes: []Route{
		{Path: []string{"lamps", "all!"}, Target: "coap://192.0.2.1"},
		{Path: []string{"lamps"}, Target: "coap://192.0.2.2/light"},
		{Path: []string{"Straße"}, Target: "coap://192.0.2.3/"},
		{Path: []string{"a/b"}, Target: "coap://192.0.2.4"},
		{Path: []string{"100%25"}, Target: "coap://192.0.2.5"},
		{Host: "2001:db8::1", Target: "coap://192.0.2.6"},
		{Host: "boiler.example", Target: "coap://192.0.2.7/b"}}})
	require.NoError(t, err)
	for target, want := range map[string]string{
		"/lamps": "coap://192.0.2.2/light", "/l%61mps": "coap://192.0.2.2/light", "/%6c%61%6D%70%73/x": "coap://192.0.2.2/light/x",
		"/lamps/": "coap://192.0.2.2/light/", "/lamps/%7Eme": "coap://192.0.2.2/light/~me", "/lamps?%61": "coap://192.0.2.2/light?a",
		"/lamps/all!": "coap://192.0.2.1/", "/lamps/all%21/": "coap://192.0.2.1/", "/lamps/all%2521": "coap://192.0.2.2/light/all%2521",
		"/lamps/a%2Fb": "coap://192.0.2.2/light/a%2Fb", "/lamps//x": "coap://192.0.2.2/light//x", "/lamps/%25%32%65": "coap://192.0.2.2/light/%252e",
		"/lamps/%252e%252e/x": "coap://192.0.2.2/light/%252e%252e/x", "/lamps/all!%2F..": "coap://192.0.2.2/light/all!%2F..",
		"/Stra%c3%9fe": "coap://192.0.2.3/", "/Straße/x": "coap://192.0.2.3/x", "/a%2fb": "coap://192.0.2.4/", "/100%2525/x": "coap://192.0.2.5/x",
		"/%68c/coap://h/%61": "coap://h/a", "/hc/coap://h/a%2fb": "coap://h/a%2Fb", "/%68%63/?target_uri=coap://h/%61": "coap://h/a",
		"http://[2001:DB8::1]:80/x": "coap://192.0.2.6/x", "http://boiler.example./x": "coap://192.0.2.7/b/x",
		"/lamps%2Fall!": "404", "/lamps%2fx": "404", "/%2Flamps": "404", "//lamps": "404", "/lamps%00": "404", "/lamps%": "404", "/lamp%73%": "404",
		"/LAMPS": "404", "/l%2561mps": "404", "/lamps%c0%afx": "404", "/x/../lamps": "404", "/lamps/%": "400", "/lamps/%6": "400",
		"/lamps/..": "400", "/lamps/%2e%2E/x": "400", "/lamps/.%2e": "400", "/lamps/%2e": "400", "/lamps/%c0%ae%c0%ae/x": "400", "/lamps/x%c0%af": "400",
		"/lamps/%ff": "400", "http://[2001:db8::1]/../x": "400", "http://[2001:db8::2]/x": "404", "/%6fpenapi.json": "openapi", "/.well-known%2Fcore": "404",
		"/.well%2Dknown/cor%65": "core", "/%73ession": "session",
	} {
		p, refusal := m.resolve(target, addressed{host: "localhost"})
		got := p.uri.String()
		switch {
		case refusal != nil:
			got = strconv.Itoa(refusal.status)
		case p.kind == placeOpenAPI:
			got = "openapi"
		case p.kind == placeCore:
			got = "core"
		case p.kind == placeSession:
			got = "session"
		}
		require.Equal(t, want, got, target)
		again, refused := m.find(target, addressed{host: "localhost"})
		require.Equal(t, refusal, refused)
		require.Equal(t, p, *again)
	}
}

// A route brings the Multicast-Timeout that EventSource and links cannot (HC-92).
func TestRouteTimeout(t *testing.T) {
	f, chain := newFront(t, func(c *Config) {
		c.Mapping.Routes = []Route{{Path: []string{"lights"}, Target: "coap://[ff05::fd]/light", Timeout: exchange.Timeout{Seconds: 3, Present: true}}}
	})
	do(f, "GET", "/lights", "")
	require.Equal(t, exchange.Timeout{Seconds: 3, Present: true}, chain.last().Timeout)
	do(f, "GET", "/lights", "", "Multicast-Timeout: 9")
	require.EqualValues(t, 9, chain.last().Timeout.Seconds)
}

func TestDefaultScheme(t *testing.T) { // HC-6
	f, chain := newFront(t, func(c *Config) { c.Mapping.DefaultScheme = "coap" })
	require.Equal(t, 200, do(f, "GET", "/hc/192.0.2.7/temp", "").Code)
	require.Equal(t, "coap://192.0.2.7/temp", proxyURI(chain.last()))
}

func TestPrefix(t *testing.T) { // HC-3
	f, chain := newFront(t, func(c *Config) { c.Mapping.Prefix = "/things/via/" })
	require.Equal(t, 200, do(f, "GET", "/things/via/coap://192.0.2.7/temp", "").Code)
	require.Equal(t, "coap://192.0.2.7/temp", proxyURI(chain.last()))
	require.Equal(t, 404, do(f, "GET", "/hc/coap://192.0.2.7/temp", "").Code)
}

func TestTemplates(t *testing.T) {
	for _, x := range []struct{ rule, template, target, want string }{
		{"HC-7", "?uri={+tu}", "?uri=coap://h/p?q&r", "coap://h/p?q&r"},
		{"HC-7", "?uri={+tu}", "?uri=coap%3A//h/p", "coap://h/p"},
		{"HC-7", "forward/{+tu}", "forward/coap://h/p?q", "coap://h/p?q"},
		{"HC-9", "{+s}/{+hp}{+p}{+qq}", "coap/h:61616/a/b?q&r", "coap://h:61616/a/b?q&r"},
		{"HC-9", "{+s}/{+hp}{+p}{+qq}", "coap/h", "coap://h/"},
		{"HC-9", "{+s}/{+hp}{+p}{+qq}", "coap/h?q", "coap://h/?q"},
		{"HC-9", "?s={+s}&hp={+hp}&p={+p}&q={+q}", "?s=coap&hp=h:61616&p=/a/b&q=x=1&y", "coap://h:61616/a/b?x=1&y"},
		{"HC-9", "?s={+s}&hp={+hp}&p={+p}&q={+q}", "?s=coap&hp=h&p=/a&q=", "coap://h/a"},
		{"HC-9", "?hp={+hp}&p={+p}", "?hp=%5B2001:db8::1%5D%3A61616&p=%2Fa%2Fb", "coap://[2001:db8::1]:61616/a/b"},
	} {
		t.Run(x.rule+" "+x.template+" "+x.target, func(t *testing.T) {
			f, chain := newFront(t, func(c *Config) { c.Mapping.Templates = []string{x.template} })
			w := do(f, "GET", "/hc/"+x.target, "")
			require.Equal(t, 200, w.Code, w.Body)
			require.Equal(t, x.want, proxyURI(chain.last()))
			require.Equal(t, 200, do(f, "GET", "/hc/coap://other/", "").Code) // HC-2: always supported
		})
	}
	for _, bad := range []string{"{+hp}{+hp}", "{+x}", "{+tu}{+p}", "{+s}{+p}", "{hp}", "{+hp", "{+hp}{+q}{+qq}", ""} {
		_, err := parseTemplate(bad)
		require.Error(t, err, bad) // HC-9
	}
}

func TestBadMappings(t *testing.T) {
	for _, m := range []Mapping{
		{Prefix: "hc/"}, {Prefix: "/hc"}, {Prefix: "/h c/"}, {Templates: []string{"{+x}"}},
		{Routes: []Route{{Path: []string{"x"}, Target: "http://h/"}}},
		{Routes: []Route{{Path: []string{"x"}, Target: "coap://h/?q"}}}, {Routes: []Route{{Path: []string{"x"}, Target: "h"}}},
	} {
		_, err := newMapping(m)
		require.Error(t, err, m)
	}
}

// FuzzTarget: whatever the request target, either nothing is forwarded and a
// refusal says why, or the target is a CoAP URI in normal form.
func FuzzTarget(f *testing.F) {
	for _, seed := range []string{"/hc/coap://192.0.2.7/temp", "/hc/?target_uri=coap%3A%2F%2Fh%2Fp", "coap://[::1]/x", "*", "/lights/a?b",
		"/l%69ghts/%2e%2e", "/lights%2fa/%2F", "/servers/3f/a?b", "/%73ervers/%33f/..", "/hc/coap/h/p?q", "http://h/hc/coap://%5B::1%25lo%5D", "/hc/coap://h/%00", "//", "/hc/?target_uri=coap://h/?", "http:///hc/"} {
		f.Add(seed, "localhost")
	}
	m, err := newMapping(Mapping{Forward: true, DefaultScheme: "coap", Templates: []string{"{+s}/{+hp}{+p}{+qq}", "?hp={+hp}&p={+p}"},
		Servers: []string{"servers"}, Announced: func(id string) bool { return len(id) == 2 },
		Routes: []Route{{Path: []string{"lights"}, Target: "coap://[ff05::fd]/light"}, {Host: "h", Target: "coap://h"}}})
	require.NoError(f, err)
	f.Fuzz(func(t *testing.T, target, host string) {
		p, refusal := m.resolve(target, addressed{host: host})
		if refusal != nil {
			require.GreaterOrEqual(t, refusal.status, 400)
			require.NotEmpty(t, http.StatusText(refusal.status))
			require.NotEmpty(t, refusal.detail)
			return
		}
		if p.kind != placeTarget {
			return
		}
		require.False(t, slices.Contains(p.uri.Path, ".") || slices.Contains(p.uri.Path, ".."))
		if p.server != nil { // the same path, as it is compared
			require.Equal(t, p.server, p.uri.Path[:2])
			require.Equal(t, "servers", p.server[0])
			require.Len(t, p.server[1], 2)
			return
		}
		text := p.uri.String()
		require.True(t, utf8.ValidString(text))
		require.LessOrEqual(t, len(text), maxTarget)
		again, err := wire.ParseURI(text)
		require.NoError(t, err)
		require.Equal(t, text, again.String())
		require.True(t, isCoAP(again.Scheme))
		// What is written for clients leads back to the same target.
		if p.route != nil { // a route is found by what its segments mean, and what is below it goes on as it is
			require.True(t, strings.HasPrefix(text, p.route.text), text)
			return
		}
		if !p.forward {
			// HC-1: the hosting URI of a target leads to that target.
			back, refusal := m.resolve(m.hosting(&p, p.uri), addressed{host: host})
			require.Nil(t, refusal)
			if back.route == nil {
				require.Equal(t, text, back.uri.String())
			}
		}
	})
}
