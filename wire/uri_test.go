package wire

import (
	"net/netip"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func TestParseURI(t *testing.T) {
	for _, tt := range []struct {
		in   string
		want URI
		out  string // String(), when it differs from in
	}{
		{"coap://example.net/", URI{Scheme: "coap", Host: "example.net", Port: 5683}, ""},
		{"coap://example.net", URI{Scheme: "coap", Host: "example.net", Port: 5683}, "coap://example.net/"},
		{"COAP://EXAMPLE.net:/", URI{Scheme: "coap", Host: "example.net", Port: 5683}, "coap://example.net/"},
		{"coap://h:5683/", URI{Scheme: "coap", Host: "h", Port: 5683, ExplicitPort: true}, "coap://h/"},
		{"coap://h:05683/", URI{Scheme: "coap", Host: "h", Port: 5683, ExplicitPort: true}, "coap://h/"},
		{"coaps://h:61616/", URI{Scheme: "coaps", Host: "h", Port: 61616, ExplicitPort: true}, ""},
		{"coap+tcp://h/a", URI{Scheme: "coap+tcp", Host: "h", Port: 5683, Path: []string{"a"}}, ""},
		{"coaps+tcp://h/a", URI{Scheme: "coaps+tcp", Host: "h", Port: 5684, Path: []string{"a"}}, ""},
		{"coap+ws://h/a", URI{Scheme: "coap+ws", Host: "h", Port: 80, Path: []string{"a"}}, ""},
		{"coaps+ws://h/a", URI{Scheme: "coaps+ws", Host: "h", Port: 443, Path: []string{"a"}}, ""},
		{"http://h/a", URI{Scheme: "http", Host: "h", Port: 80, Path: []string{"a"}}, ""},
		{"https://h:8443/a", URI{Scheme: "https", Host: "h", Port: 8443, ExplicitPort: true, Path: []string{"a"}}, ""},
		{"coap://[ff05::fd]:5683/r", URI{Scheme: "coap", Addr: netip.MustParseAddr("ff05::fd"), Port: 5683, ExplicitPort: true, Path: []string{"r"}}, "coap://[ff05::fd]/r"},
		{"coap://[FF05:0::FD]/", URI{Scheme: "coap", Addr: netip.MustParseAddr("ff05::fd"), Port: 5683}, "coap://[ff05::fd]/"},
		{"coap://[ff02::fd%25eth0]/", URI{Scheme: "coap", Addr: netip.MustParseAddr("ff02::fd%eth0"), Port: 5683}, ""},
		{"coap://[ff02::fd%eth0]/", URI{Scheme: "coap", Addr: netip.MustParseAddr("ff02::fd%eth0"), Port: 5683}, "coap://[ff02::fd%25eth0]/"},
		{"coap://[fe80::1%252]/", URI{Scheme: "coap", Addr: netip.MustParseAddr("fe80::1%2"), Port: 5683}, ""},
		{"coap://[fe80::1%25]/", URI{Scheme: "coap", Addr: netip.MustParseAddr("fe80::1%25"), Port: 5683}, "coap://[fe80::1%2525]/"},
		{"coap://[fe80::1%25a%2Fb]/", URI{Scheme: "coap", Addr: netip.MustParseAddr("fe80::1%a/b"), Port: 5683}, ""},
		// GP-7
		{"coap://[::ffff:192.0.2.7]/", URI{Scheme: "coap", Addr: netip.MustParseAddr("192.0.2.7"), Port: 5683}, "coap://192.0.2.7/"},
		{"coap://224.0.1.187:5683/", URI{Scheme: "coap", Addr: netip.MustParseAddr("224.0.1.187"), Port: 5683, ExplicitPort: true}, "coap://224.0.1.187/"},
		{"coap://%31%39%32.0.2.7/", URI{Scheme: "coap", Addr: netip.MustParseAddr("192.0.2.7"), Port: 5683}, "coap://192.0.2.7/"},
		// RFC 7252 §6.4: segments and items
		{"coap://h//", URI{Scheme: "coap", Host: "h", Port: 5683, Path: []string{"", ""}}, ""},
		{"coap://h/a/", URI{Scheme: "coap", Host: "h", Port: 5683, Path: []string{"a", ""}}, ""},
		{"coap://h/a//b", URI{Scheme: "coap", Host: "h", Port: 5683, Path: []string{"a", "", "b"}}, ""},
		{"coap://h/%2F%3f/:@;=", URI{Scheme: "coap", Host: "h", Port: 5683, Path: []string{"/?", ":@;="}}, "coap://h/%2F%3F/:@;="},
		{"coap://h/%E2%98%BA", URI{Scheme: "coap", Host: "h", Port: 5683, Path: []string{"☺"}}, ""},
		{"coap://h/%7Esensors", URI{Scheme: "coap", Host: "h", Port: 5683, Path: []string{"~sensors"}}, "coap://h/~sensors"},
		{"coap://h?", URI{Scheme: "coap", Host: "h", Port: 5683, Query: []string{""}}, "coap://h/?"},
		{"coap://h/?a=1&&b/?", URI{Scheme: "coap", Host: "h", Port: 5683, Query: []string{"a=1", "", "b/?"}}, ""},
		{"coap://h/?a%26b", URI{Scheme: "coap", Host: "h", Port: 5683, Query: []string{"a&b"}}, ""},
		// FP-28
		{"coap://h/a/../%2e/.", URI{Scheme: "coap", Host: "h", Port: 5683, Path: []string{"a", "..", ".", "."}}, "coap://h/a/.././."},
		{"coap://xn--n3h.example/", URI{Scheme: "coap", Host: "xn--n3h.example", Port: 5683}, ""},
		{"coap://%E2%98%BA%3A!/", URI{Scheme: "coap", Host: "☺:!", Port: 5683}, ""},
		{"http://u%40:p@h/", URI{Scheme: "http", Host: "h", Port: 80, Userinfo: "u@:p", HasUserinfo: true}, ""},
		{"http://@h/", URI{Scheme: "http", Host: "h", Port: 80, HasUserinfo: true}, ""},
		{"http://h/" + strings.Repeat("a", 256), URI{Scheme: "http", Host: "h", Port: 80, Path: []string{strings.Repeat("a", 256)}}, ""},
		{"coap://h/" + strings.Repeat("%61", 255), URI{Scheme: "coap", Host: "h", Port: 5683, Path: []string{strings.Repeat("a", 255)}}, "coap://h/" + strings.Repeat("a", 255)},
	} {
		t.Run(tt.in, func(t *testing.T) {
			got, err := ParseURI(tt.in)
			require.NoError(t, err)
			require.Equal(t, tt.want, got)
			if tt.out == "" {
				tt.out = tt.in
			}
			require.Equal(t, tt.out, got.String())
		})
	}
}

func TestParseURIErrors(t *testing.T) {
	for _, tt := range []struct{ in, reason string }{
		{"", "not an absolute URI"},
		{"/a", "not an absolute URI"},
		{"//h/a", "not an absolute URI"},
		{"://h", "not an absolute URI"},
		{"1coap://h", "not an absolute URI"},
		{"co ap://h", "not an absolute URI"},
		{"coap:h", "no host"},
		{"coap:///a", "no host"},
		{"coap://:5683/", "no host"},
		{"coap://h/#f", "has a fragment"},
		{"coap://h/#", "has a fragment"},
		{"coap://h:65536/", "port outside"},
		{"coap://h:0/", "port outside"},
		{"coap://h:99999999999999999999/", "port outside"},
		{"coap://h:5x/", "port is not a number"},
		{"coap://[::1]5/", "text after host bracket"},
		{"coap://[::1/", "bracket not closed"},
		{"coap://[192.0.2.7]/", "not an IPv6 address"},
		{"coap://[v1.a]/", "not an IPv6 address"},
		{"coap://[fe80::1%]/", "empty zone"},
		{"coap://[fe80::1%25%zz]/", "invalid percent-encoding"},
		{"coap://[fe80::1%25%00]/", "control character"},
		{"coap://[fe80::1%25%ff]/", "not UTF-8"},
		{"coap://[fe80::1%25" + strings.Repeat("a", 256) + "]/", "longer than 255"},
		{"coap://::1/", "port is not a number"},
		{"coap://%3A%3A1/", "written as a host name"},
		{"coap://%5B%3A%3A1%5D/", "written as a host name"},
		{"coap://192.0.2.7%25x/", "written as a host name"},
		{"coap://a b/", "must be percent-encoded"},
		{"coap://a@b@c/", "must be percent-encoded"},
		{"coap://a%0ab/", "control character"},
		{"coap://a%ff/", "not UTF-8"},
		{"coap://" + strings.Repeat("a", 256) + "/", "longer than 255"},
		{"coap://h/%", "invalid percent-encoding"},
		{"coap://h/%4", "invalid percent-encoding"},
		{"coap://h/%4g", "invalid percent-encoding"},
		{"coap://h/a b", "must be percent-encoded"},
		{"coap://h/☺", "must be percent-encoded"},
		{"coap://h/%ff", "not UTF-8"},
		{"coap://h/?%ff", "not UTF-8"},
		{"coap://h/?[", "must be percent-encoded"},
		{"coap://%ff@h/", "userinfo is not UTF-8"},
		{"coap://u[@h/", "must be percent-encoded"},
		{"coap://h/" + strings.Repeat("a", 256), "longer than 255"},
		{"coap://h/?" + strings.Repeat("a", 256), "longer than 255"},
	} {
		t.Run(tt.in, func(t *testing.T) {
			_, err := ParseURI(tt.in)
			var bad *URIError
			require.ErrorAs(t, err, &bad)
			require.Equal(t, tt.in, bad.URI)
			require.Contains(t, bad.Reason, tt.reason)
			require.NotErrorIs(t, err, ErrScheme)
			require.Equal(t, "bad URI "+strconv.Quote(tt.in)+": "+bad.Reason, err.Error())
		})
	}
}

// FP-7
func TestParseURIScheme(t *testing.T) {
	for _, in := range []string{"ftp://h/", "urn:x:y", "localhost:5683/r", "coap+uart://tty/"} {
		_, err := ParseURI(in)
		require.ErrorIs(t, err, ErrScheme, in)
		var bad *URIError
		require.ErrorAs(t, err, &bad)
	}
}

// FP-6
func TestSchemes(t *testing.T) {
	known := 0
	for line := range strings.Lines(string(readTestdata(t, "cri/scheme-numbers.csv"))) {
		number, name, _ := strings.Cut(strings.TrimSpace(line), ",")
		n, ok := SchemeNumber(name)
		if !ok {
			continue
		}
		known++
		require.Equal(t, number, strconv.FormatUint(uint64(n), 10), name)
		back, ok := SchemeName(n)
		require.True(t, ok)
		require.Equal(t, name, back)
	}
	require.Equal(t, 8, known)
	_, ok := SchemeName(4)
	require.False(t, ok)
	for name, want := range map[string]uint16{
		"coap": 5683, "coaps": 5684, "coap+tcp": 5683, "coaps+tcp": 5684,
		"coap+ws": 80, "coaps+ws": 443, "http": 80, "https": 443, "ftp": 0,
	} {
		port, ok := DefaultPort(name)
		require.Equal(t, want, port, name)
		require.Equal(t, want != 0, ok)
	}
}

// Encoded delimiters come back plain: right for CoAP, to be known for HTTP.
func TestStringLosesEncodedDelimiters(t *testing.T) {
	u, err := ParseURI("http://h/a%3Bb?c=1%2B2")
	require.NoError(t, err)
	require.Equal(t, "http://h/a;b?c=1+2", u.String())
}

func TestAuthority(t *testing.T) {
	for in, want := range map[string]string{
		"coap://h/x":                       "h",
		"coap://u@h:5683":                  "h",
		"coap://h:5684":                    "h:5684",
		"coaps://[fe80::1%25lo]:1/":        "[fe80::1%25lo]:1",
		"https://[::ffff:127.0.0.1]:8443/": "127.0.0.1:8443",
	} {
		u, err := ParseURI(in)
		require.NoError(t, err)
		require.Equal(t, want, u.Authority())
	}
}

func TestParseHost(t *testing.T) {
	for _, tt := range []struct{ in, name, addr string }{
		{"Example.NET", "example.net", ""},
		{"ÄB", "Äb", ""}, // only ASCII letters compare without case
		{"a:b", "a:b", ""},
		{"192.0.2.7", "", "192.0.2.7"},
		{"[ff05::fd]", "", "ff05::fd"},
		{"ff05::fd", "", "ff05::fd"},
		{"ff02::fd%lo", "", "ff02::fd%lo"}, // aiocoap
		{"fe80::1%252", "", "fe80::1%252"}, // not URI syntax: the zone is 252
		{"[ff02::fd%25lo]", "", "ff02::fd%lo"},
		{"[ff02::fd%lo]", "", "ff02::fd%lo"},
		{"::ffff:192.0.2.7", "", "192.0.2.7"},
		{"[::ffff:192.0.2.7]", "", "192.0.2.7"},
	} {
		t.Run(tt.in, func(t *testing.T) {
			name, addr, err := ParseHost(tt.in)
			require.NoError(t, err)
			require.Equal(t, tt.name, name)
			if tt.addr == "" {
				require.False(t, addr.IsValid())
			} else {
				require.Equal(t, netip.MustParseAddr(tt.addr), addr)
			}
		})
	}
	for _, in := range []string{
		"", "[", "[]", "[x]", "[::1", "[192.0.2.7]", "a\x00b", "a\nb", "\xff", "fe80::1%", "fe80::1%\n",
		"192.0.2.7%x", "fe80::1%" + strings.Repeat("a", 256), strings.Repeat("a", 256),
	} {
		_, _, err := ParseHost(in)
		var bad *URIError
		require.ErrorAs(t, err, &bad, in)
	}
}

func FuzzParseURI(f *testing.F) {
	for _, s := range []string{
		"coap://[ff05::fd]:5683/r", "coap://h//a/?b&&c", "http://u:p@h:80/%2F?%26", "coap://[fe80::1%25eth0]/",
		"coap://[fe80::1%25]/", "coap://%31.2.3.4/", "COAPS://H?", "coap://h/..", "coap://%5b::1%5d/", "urn:x",
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		u, err := ParseURI(s)
		if err != nil {
			var bad *URIError
			require.ErrorAs(t, err, &bad)
			return
		}
		require.NotZero(t, u.Port)
		require.NotEqual(t, u.Host == "", u.Addr.IsValid() == false)
		again, err := ParseURI(u.String())
		require.NoError(t, err, u.String())
		u.ExplicitPort, again.ExplicitPort = false, false
		require.Equal(t, u, again)
		// What goes out in a Uri-Host option must mean the same host.
		host := u.Host
		if u.Addr.IsValid() {
			host = u.Addr.String()
		}
		name, addr, err := ParseHost(host)
		require.NoError(t, err)
		require.Equal(t, u.Host, name)
		require.Equal(t, u.Addr, addr)
	})
}
