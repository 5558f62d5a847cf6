package proxy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// What the proxy offers itself when nothing is offered: an empty list of links.
func TestLocal(t *testing.T) {
	core := []message.Option{opt(wire.URIPath, ".well-known"), opt(wire.URIPath, "core")}
	for name, tt := range map[string]struct {
		method  codes.Code
		options []message.Option
		want    string
	}{
		"links":          {codes.GET, core, "2.05 4=e3b0c44298fc1c14 12=28"},
		"wanted":         {codes.GET, append(core, opt(wire.Accept, "\x28")), "2.05 4=e3b0c44298fc1c14 12=28"},
		"not acceptable": {codes.GET, append(core, opt(wire.Accept, "\x32")), "4.06 |only application/link-format"},
		"malformed T'":   {codes.GET, append(core, opt(wire.MulticastTimeout, "12345")), "2.05 4=e3b0c44298fc1c14 12=28"}, // elective, and not ours here
		"method":         {codes.PUT, core, "4.05 14= |only GET"},
		"other path":     {codes.GET, core[1:], "4.04 |this is a proxy; name a target with Proxy-Uri or Proxy-Scheme"},
		"no path":        {codes.GET, nil, "4.04 |this is a proxy; name a target with Proxy-Uri or Proxy-Scheme"},
	} {
		t.Run(name, func(t *testing.T) {
			inGateway(t, nil, func(g *gateway) {
				for _, from := range []string{userAddr, "[2001:db8:5::1]:40000", "203.0.200.1:1"} {
					c := g.peer(from)
					c.ask(msg(con, tt.method, "t", append([]message.Option{}, tt.options...)...))
					c.expect("ACK " + tt.want)
				}
			})
		})
	}
	e := &end{}
	Local{}.Exchange(&exchange.Request{Method: codes.GET, Options: core}, e)
	require.Equal(t, 1, e.ends)
}

// A request that names no host with Proxy-Scheme is for the address it was sent
// to: the proxy itself, on every one of its addresses (FP-4, FP-8).
func TestProxySchemeWithoutHost(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		for from, to := range map[string]string{userAddr: proxy4, "[2001:db8:5::1]:40000": proxy6, "[fe80::5%lo]:40000": "fe80::100"} {
			c := g.peer(from)
			m := msg(con, codes.GET, "t", opt(wire.ProxyScheme, "coap"), opt(wire.URIPath, ".well-known"), opt(wire.URIPath, "core"))
			c.transmit(netip.AddrPortFrom(netip.MustParseAddr(to), 5683), &m)
			c.expect("ACK 2.05 4=e3b0c44298fc1c14 12=28")
		}
	})
}

// The links of RFC 6690, filtered by query: attributes and href, with a final star,
// one item of a list being enough.
func TestLinks(t *testing.T) {
	links := []Link{
		{"/lights", []LinkAttribute{{"title", "all lights"}, {"rt", "light lamp"}}},
		{"coap+tcp://192.0.2.1", []LinkAttribute{{"rel", "has-proxy"}, {"anchor", "/"}}},
		{"/hc/", []LinkAttribute{{"rt", "core.hc"}, {"anchor", "http://192.0.2.1:8080"}}},
	}
	lights, transport, hc := `</lights>;title="all lights";rt="light lamp"`, `<coap+tcp://192.0.2.1>;rel="has-proxy";anchor="/"`,
		`</hc/>;rt="core.hc";anchor="http://192.0.2.1:8080"`
	for query, want := range map[string]string{
		"":                           lights + "," + transport + "," + hc,
		"rt=core.hc":                 hc,
		"rt=core.*":                  hc,
		"rt=lamp":                    lights,
		"rt=light lamp":              "",
		"rt=lam":                     "",
		"title=all lights":           lights,
		"title=lights":               "",
		"rel=has-proxy":              transport,
		"href=/*":                    lights + "," + hc,
		"href=/lights":               lights,
		"href=/light":                "",
		"anchor=/":                   transport,
		"rt=core.hc&anchor=http://*": hc,
		"rt=core.hc&href=/lights":    "",
		"obs=":                       "",
		"nonsense":                   "",
		"*":                          "",
	} {
		var queries []message.Option
		for q := range strings.SplitSeq(query, "&") {
			if q != "" {
				queries = append(queries, opt(wire.URIQuery, q))
			}
		}
		got := &answer{}
		Local{Links: func(*exchange.Request) []Link { return links }}.Exchange(&exchange.Request{Method: codes.GET, BodyLimit: 1024,
			Options: append([]message.Option{opt(wire.URIPath, ".well-known"), opt(wire.URIPath, "core")}, queries...)}, got)
		require.Equal(t, codes.Content, got.code)
		require.Equal(t, want, string(got.payload), "?%s", query)
	}
}

// answer is a sink for one response.
type answer struct {
	end
	code    codes.Code
	options message.Options
	payload []byte
}

func (a *answer) Respond(p *exchange.Response) exchange.Verdict {
	a.code, a.options, a.payload = p.Code, exchange.CloneOptions(p.Options), slices.Clone(p.Payload)
	return exchange.Stop
}

// A long list comes in blocks of one ETag, by which it is validated as well; a
// block beyond the end, and one of no size, are refused.
func TestLinksInBlocks(t *testing.T) {
	var links []Link
	for i := range 100 {
		links = append(links, Link{fmt.Sprintf("/resource/%d", i), []LinkAttribute{{"title", "something"}}})
	}
	core := []message.Option{opt(wire.URIPath, ".well-known"), opt(wire.URIPath, "core")}
	ask := func(limit int, more ...message.Option) *answer {
		got := &answer{}
		options := append(append([]message.Option{}, core...), more...)
		slices.SortStableFunc(options, func(a, b message.Option) int { return int(a.ID) - int(b.ID) })
		Local{Links: func(*exchange.Request) []Link { return links }}.Exchange(&exchange.Request{Method: codes.GET, BodyLimit: limit, Options: options}, got)
		require.Equal(t, 1, got.ends)
		return got
	}
	whole := ask(1 << 20)
	require.False(t, wire.Has(whole.options, wire.Block2))
	etag, _ := wire.First(whole.options, wire.ETag)
	for _, szx := range []uint8{0, 2, 6} {
		var body []byte
		for num := uint32(0); ; num++ {
			var more []message.Option
			if num > 0 || szx != 6 { // the first one of the largest size comes unasked
				more = append(more, opt(wire.Block2, string(wire.Block{Num: num, SZX: szx}.Append(nil))))
			}
			got := ask(1024, more...)
			require.Equal(t, codes.Content, got.code)
			value, ok := wire.First(got.options, wire.Block2)
			require.True(t, ok)
			b, err := wire.ParseBlock(value)
			require.NoError(t, err)
			require.Equal(t, szx, b.SZX)
			tag, _ := wire.First(got.options, wire.ETag)
			require.Equal(t, etag, tag)
			require.LessOrEqual(t, len(got.payload), b.Size())
			if size, ok := wire.First(got.options, wire.Size2); num == 0 {
				require.True(t, ok)
				n, _ := wire.Uint(size)
				require.EqualValues(t, len(whole.payload), n)
			}
			body = append(body, got.payload...)
			if !b.More {
				break
			}
		}
		require.Equal(t, string(whole.payload), string(body))
	}
	require.Equal(t, codes.Valid, ask(1024, opt(wire.ETag, "other"), opt(wire.ETag, string(etag))).code)
	require.NotNil(t, ask(1024, opt(wire.Block2, string(wire.Block{Num: 900, SZX: 6}.Append(nil)))).failure)
}
