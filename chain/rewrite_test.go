package chain

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// FP-39: the next proxy is told the target in the client's form, and what it
// reads is the same target.
func TestForms(t *testing.T) {
	path := message.Options{{ID: wire.ETag, Value: []byte("e")}, {ID: wire.URIPath, Value: []byte("a b")}, {ID: wire.URIPath, Value: []byte("c")},
		{ID: wire.URIQuery, Value: []byte("x=1")}, {ID: wire.HopLimit, Value: []byte{7}}, {ID: wire.Accept, Value: []byte{60}}}
	zoned := netip.MustParseAddr("fe80::1%3")
	long := append(message.Options(nil), path...)
	for range 5 {
		long = insert(long, wire.URIPath, []byte(strings.Repeat("x", 250)))
	}
	for _, tt := range []struct {
		name    string
		form    exchange.Form
		target  exchange.Target
		options message.Options
		id      message.OptionID
		value   string
		host    string
	}{
		{"Proxy-Uri", exchange.FormURI, at("198.51.100.7", 61616), path, wire.ProxyURI, "coap://198.51.100.7:61616/a%20b/c?x=1", ""},
		{"another protocol", exchange.NoForm, at("2001:db8::7", 5683), path, wire.ProxyURI, "coap://[2001:db8::7]/a%20b/c?x=1", ""},
		{"a name", exchange.FormURI, exchange.Target{Scheme: "coaps+tcp", Host: "b.example", Addr: netip.AddrPortFrom(netip.Addr{}, 5684)}, path, wire.ProxyURI, "coaps+tcp://b.example/a%20b/c?x=1", ""},
		{"a name that is resolved", exchange.FormURI, exchange.Target{Scheme: "coap", Host: "b.example", Addr: netip.MustParseAddrPort("192.0.2.3:5683")}, path, wire.ProxyURI, "coap://b.example/a%20b/c?x=1", ""},
		{"root", exchange.FormURI, at("198.51.100.7", 5683), message.Options{{ID: wire.URIPath}}, wire.ProxyURI, "coap://198.51.100.7/", ""},
		{"Proxy-Cri", exchange.FormCRI, at("198.51.100.7", 61616), path, wire.ProxyCRI, "", ""},
		{"zone in Proxy-Cri", exchange.FormCRI, exchange.Target{Scheme: "coap", Addr: netip.AddrPortFrom(zoned, 5683)}, path, wire.ProxyCRI, "", ""},
		{"Proxy-Scheme", exchange.FormScheme, at("198.51.100.7", 5683), path, wire.ProxyScheme, "coap", "198.51.100.7"},
		{"Proxy-Scheme, IPv6", exchange.FormScheme, at("2001:db8::7", 5683), path, wire.ProxyScheme, "coap", "[2001:db8::7]"},
		{"Proxy-Scheme-Number", exchange.FormSchemeNumber, at("198.51.100.7", 61616), path, wire.ProxySchemeNumber, "", "198.51.100.7"},
		{"Proxy-Scheme with a zone (GP-57)", exchange.FormScheme, exchange.Target{Scheme: "coap", Addr: netip.AddrPortFrom(zoned, 5683)}, path, wire.ProxyURI, "coap://[fe80::1%253]/a%20b/c?x=1", ""},
		{"too long for Proxy-Uri", exchange.FormURI, at("198.51.100.7", 5683), long, wire.ProxyScheme, "coap", "198.51.100.7"},
		{"too long for Proxy-Cri", exchange.FormCRI, at("198.51.100.7", 5683), long, wire.ProxyScheme, "coap", "198.51.100.7"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got := options(&exchange.Request{Form: tt.form, Target: tt.target, Options: tt.options}, exchange.NoForm)
			for i := 1; i < len(got); i++ {
				require.LessOrEqual(t, got[i-1].ID, got[i].ID)
			}
			value, ok := wire.First(got, tt.id)
			require.True(t, ok)
			var u wire.URI
			var err error
			switch tt.id {
			case wire.ProxyURI:
				require.Equal(t, tt.value, string(value))
				u, err = wire.ParseURI(string(value))
			case wire.ProxyCRI:
				u, err = wire.ParseProxyCRI(value)
			default:
				require.Equal(t, tt.value, string(value))
				host, _ := wire.First(got, wire.URIHost)
				require.Equal(t, tt.host, string(host))
				port, ok := wire.First(got, wire.URIPort)
				require.True(t, ok, "FP-5")
				n, _ := wire.Uint(port)
				u.Port = uint16(n)
				u.Host, u.Addr, err = wire.ParseHost(string(host))
				for segment := range wire.All(got, wire.URIPath) {
					u.Path = append(u.Path, string(segment))
				}
			}
			require.NoError(t, err)
			require.Equal(t, tt.target.Host, u.Host)
			if tt.target.Host == "" {
				require.Equal(t, tt.target.Addr.Addr(), u.Addr)
			}
			require.Equal(t, tt.target.Addr.Port(), u.Port)
			var want []string
			for segment := range wire.All(tt.options, wire.URIPath) {
				if len(segment) > 0 {
					want = append(want, string(segment))
				}
			}
			require.Equal(t, want, u.Path)
			if tt.id == wire.ProxyURI || tt.id == wire.ProxyCRI {
				require.False(t, wire.Has(got, wire.URIPath) || wire.Has(got, wire.URIQuery) || wire.Has(got, wire.URIHost))
			}
			for _, id := range []message.OptionID{wire.ETag, wire.HopLimit, wire.Accept} {
				require.Equal(t, wire.Has(tt.options, id), wire.Has(got, id))
			}
		})
	}
}

// The URI of an HTTP server goes on as it was written; in the other forms the next
// proxy gets its parts, and no Proxy-Uri beside them (FP-2).
func TestWrittenURI(t *testing.T) {
	const written = "http://192.0.2.7/a%2Fb?q=1%2B2"
	target := exchange.Target{Scheme: "http", Addr: netip.MustParseAddrPort("192.0.2.7:80")}
	given := message.Options{{ID: wire.URIPath, Value: []byte("a/b")}, {ID: wire.URIQuery, Value: []byte("q=1+2")}, {ID: wire.ProxyURI, Value: []byte(written)}}
	for form, want := range map[exchange.Form]message.OptionID{exchange.FormURI: wire.ProxyURI, exchange.NoForm: wire.ProxyURI,
		exchange.FormCRI: wire.ProxyCRI, exchange.FormScheme: wire.ProxyScheme} {
		got := options(&exchange.Request{Form: form, Target: target, Options: given}, exchange.NoForm)
		named := 0
		for _, o := range got {
			switch o.ID {
			case wire.ProxyURI, wire.ProxyCRI, wire.ProxyScheme:
				named++
				require.Equal(t, want, o.ID)
			}
		}
		require.Equal(t, 1, named)
		if want == wire.ProxyURI {
			value, _ := wire.First(got, want)
			require.Equal(t, written, string(value))
			require.False(t, wire.Has(got, wire.URIPath) || wire.Has(got, wire.URIQuery))
		}
	}
}

// A next proxy that understands one form alone gets that, but for a target that a
// server behind it announced.
func TestOnlyForm(t *testing.T) {
	given := message.Options{{ID: wire.URIPath, Value: []byte("a")}}
	for _, form := range []exchange.Form{exchange.NoForm, exchange.FormURI, exchange.FormCRI, exchange.FormScheme, exchange.FormSchemeNumber} {
		r := &exchange.Request{Form: form, Target: at("198.51.100.7", 61616), Options: given}
		got := options(r, exchange.FormScheme)
		require.Equal(t, message.Options{{ID: wire.URIHost, Value: []byte("198.51.100.7")}, {ID: wire.URIPort, Value: []byte{0xf0, 0xb0}},
			{ID: wire.URIPath, Value: []byte("a")}, {ID: wire.ProxyScheme, Value: []byte("coap")}}, got)
		got = options(r, exchange.FormURI)
		require.Equal(t, message.Options{{ID: wire.ProxyURI, Value: []byte("coap://198.51.100.7:61616/a")}}, got)
	}
	require.Equal(t, given, options(&exchange.Request{Form: exchange.FormServer, Options: given}, exchange.FormURI))
}

func at(addr string, port uint16) exchange.Target {
	return exchange.Target{Scheme: "coap", Addr: netip.AddrPortFrom(netip.MustParseAddr(addr), port)}
}
