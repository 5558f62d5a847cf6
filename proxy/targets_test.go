package proxy

import (
	"context"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// end is how an exchange behind a layer ended, and what its sink was told.
type end struct {
	where     string // "next", "local", or the reason of a failure
	request   *exchange.Request
	failure   *exchange.Failure
	responses []*exchange.Response
	ends      int
}

func (e *end) Respond(p *exchange.Response) exchange.Verdict {
	e.responses = append(e.responses, p.Clone())
	return exchange.Continue
}

func (e *end) End(err error) {
	e.ends++
	if err != nil {
		e.failure = exchange.AsFailure(err)
		e.where = e.failure.Reason.String()
	}
}

// arrive is a handler that notes that a request has arrived there.
func (e *end) arrive(where string) exchange.Handler {
	return exchange.HandlerFunc(func(r *exchange.Request, w exchange.Sink) exchange.Canceler {
		e.where, e.request = where, r.Clone()
		w.End(nil)
		return exchange.Ended{}
	})
}

// resolve passes the options of a GET, sent to proxy4:5683, through Targets.
func resolve(t *testing.T, change func(*Targets), options ...message.Option) *end {
	t.Helper()
	e := &end{}
	numbers := wire.DefaultNumbers()
	names, err := NewNames(t.Context(), map[string][]netip.Addr{
		"one.example":   addrs("192.0.2.1"),
		"self.example":  addrs(proxy4),
		"group.example": addrs("ff05::fd", "224.0.1.187", "ff02::fd%1", "ff05::fd"),
		"mixed.example": addrs("ff05::fd", "192.0.2.1"),
	}, nil, nil)
	require.NoError(t, err)
	targets := &Targets{Next: e.arrive("next"), Local: e.arrive("local"), Numbers: &numbers, Names: names, Log: zap.NewNop(),
		Serves: func(scheme string) bool { return strings.HasPrefix(scheme, "coap") },
		Own: func(scheme string, a netip.AddrPort) bool {
			if scheme != "coap" {
				return scheme == "coap+tcp" && a == netip.MustParseAddrPort(proxy4+":61617")
			}
			return a == netip.MustParseAddrPort(proxy4+":5683") || a == netip.MustParseAddrPort("[2001:db8:100::1]:5683") ||
				a == netip.MustParseAddrPort("[fe80::100%lo]:5683")
		},
		OwnNames: map[string]bool{"gw.example": true, "203.0.113.1": true, "2001:db8:200::1": true},
		Zone: func(a netip.Addr) string {
			if a == netip.MustParseAddr("fe80::77") {
				return "eth7"
			}
			return ""
		}}
	if change != nil {
		change(targets)
	}
	m := msg(con, codes.GET, "", options...)
	targets.Exchange(&exchange.Request{Method: codes.GET, Client: &exchange.Identity{}, Options: m.Options, Local: netip.MustParseAddrPort(proxy4 + ":5683"), Scheme: "coap", Arrival: time.Now()}, e)
	require.Equal(t, 1, e.ends)
	return e
}

// GC-4: nor has a group a secure port behind a next proxy.
func TestGroupBehindANextHop(t *testing.T) {
	behind := func(c *Targets) {
		c.NextHop = func(string, string, netip.Addr, uint16) string { return "b" }
	}
	group := []message.Option{opt(wire.URIHost, "224.0.1.187"), opt(wire.ProxyScheme, "coap")}
	e := resolve(t, behind, group...)
	require.Nil(t, e.failure)
	require.True(t, e.request.Target.Group)
	require.Equal(t, "b", e.request.Target.NextHop)
	e = resolve(t, behind, uri("coap://group.example/r")) // GC-2, as far as it is known here
	require.True(t, e.request.Target.Group)
	require.Equal(t, "[ff05::fd]:5683", e.request.Target.Addr.String())
	require.Contains(t, e.request.Target.Also, exchange.GroupAddr{Addr: netip.MustParseAddrPort("224.0.1.187:5683")})
	for name, options := range map[string][]message.Option{
		"port":   {group[0], opt(wire.URIPort, "\x16\x34"), group[1]}, // 5684
		"scheme": {group[0], opt(wire.ProxyScheme, "coaps")},
	} {
		require.Equal(t, exchange.NotProxied, resolve(t, behind, options...).failure.Reason, name)
	}
}

// optionsOf writes options as describe does.
func optionsOf(options message.Options) string {
	text := describe(&wire.Message{Type: con, Code: codes.GET, Options: options})
	return text[len("CON 0.01"):]
}

// The ways to name a target (FP-1, GP-21), and which of them counts (FP-2).
func TestTarget(t *testing.T) {
	host := func(h string) message.Option { return opt(wire.URIHost, h) }
	port := func(p uint16) message.Option { return opt(wire.URIPort, string([]byte{byte(p >> 8), byte(p)})) }
	scheme := opt(wire.ProxyScheme, "coap")
	cri := func(hex string) message.Option { return opt(wire.ProxyCRI, string(unhex(t, hex))) }
	const criServer = "832081 44c0000201 8161 72" // coap://192.0.2.1/r
	const criHTTP = "8222 8144c0000201"           // http://192.0.2.1
	const criUnknown = "823863 8144c0000201"      // scheme number 99
	const malformed, badOption = "bad_option", "bad_option"
	for name, tt := range map[string]struct {
		options []message.Option
		target  string // address and port, or the name of the end
		out     string // options that go on
		host    string
	}{
		"Proxy-Uri":              {[]message.Option{uri("coap://192.0.2.1:61616/a/b?x=1&y")}, "192.0.2.1:61616", " 11=61 11=62 15=783d31 15=79", ""},
		"default port":           {[]message.Option{uri("coap://192.0.2.1")}, "192.0.2.1:5683", "", ""},
		"upper case":             {[]message.Option{uri("COAP://ONE.Example/A%2fB")}, "192.0.2.1:5683", " 11=412f42", "one.example"},
		"empty segments (FP-28)": {[]message.Option{uri("coap://192.0.2.1/a//b/")}, "192.0.2.1:5683", " 11=61 11= 11=62 11=", ""},
		"IPv6":                   {[]message.Option{uri("coap://[2001:db8::1]/")}, "[2001:db8::1]:5683", "", ""},
		"IPv4-mapped":            {[]message.Option{uri("coap://[::ffff:192.0.2.1]/")}, "192.0.2.1:5683", "", ""},
		"Proxy-Cri":              {[]message.Option{cri(criServer)}, "192.0.2.1:5683", " 11=72", ""},
		"name":                   {[]message.Option{uri("coap://one.example/r")}, "192.0.2.1:5683", " 11=72", "one.example"},
		"other options stay":     {[]message.Option{uri("coap://192.0.2.1/r?q"), opt(wire.IfMatch, "m"), opt(wire.ContentFormat, "c"), opt(wire.Accept, "a"), opt(wire.RequestTag, "t")}, "192.0.2.1:5683", " 1=6d 11=72 12=63 15=71 17=61 292=74", ""},
		"order stays (FP-23)":    {[]message.Option{scheme, host("192.0.2.1"), opt(wire.URIPath, "b"), opt(wire.URIPath, "a"), opt(wire.URIQuery, "2"), opt(wire.URIQuery, "1"), opt(wire.ETag, "z"), opt(wire.ETag, "y")}, "192.0.2.1:5683", " 4=7a 4=79 11=62 11=61 15=32 15=31", ""},

		"Proxy-Uri over Uri-*":        {[]message.Option{uri("coap://192.0.2.1/r"), host("192.0.2.9"), port(1), opt(wire.URIPath, "x"), opt(wire.URIQuery, "y")}, "192.0.2.1:5683", " 11=72", ""},
		"libcoap: Uri-Port beside it": {[]message.Option{uri("coap://192.0.2.1:61616/r"), port(5683)}, "192.0.2.1:61616", " 11=72", ""},
		"Proxy-Uri over Proxy-Scheme": {[]message.Option{uri("coap://192.0.2.1/r"), opt(wire.ProxyScheme, "http")}, "192.0.2.1:5683", " 11=72", ""},
		"Proxy-Cri over Proxy-Uri":    {[]message.Option{cri(criServer), uri("coap://192.0.2.9/x?y")}, "192.0.2.1:5683", " 11=72", ""},
		"Proxy-Cri over malformed":    {[]message.Option{cri(criServer), uri("coap:nonsense")}, "192.0.2.1:5683", " 11=72", ""},
		"over two schemes":            {[]message.Option{uri("coap://192.0.2.1/r"), scheme, opt(wire.ProxySchemeNumber, "")}, "192.0.2.1:5683", " 11=72", ""},
		"two schemes":                 {[]message.Option{host("192.0.2.1"), scheme, opt(wire.ProxySchemeNumber, "")}, badOption, "", ""},

		"Proxy-Scheme":              {[]message.Option{scheme, host("192.0.2.1"), port(61616), opt(wire.URIPath, "r")}, "192.0.2.1:61616", " 11=72", ""},
		"upper case scheme":         {[]message.Option{opt(wire.ProxyScheme, "CoAP"), host("192.0.2.1")}, "192.0.2.1:5683", "", ""},
		"no Uri-Port (FP-5)":        {[]message.Option{scheme, host("192.0.2.1")}, "192.0.2.1:5683", "", ""},
		"no Uri-Host (FP-4)":        {[]message.Option{scheme, opt(wire.URIPath, "r")}, "local", " 11=72", ""},
		"no Uri-Host, other port":   {[]message.Option{scheme, port(61616)}, proxy4 + ":61616", "", ""},
		"number (FP-6)":             {[]message.Option{opt(wire.ProxySchemeNumber, ""), host("192.0.2.1")}, "192.0.2.1:5683", "", ""},
		"number with leading zeros": {[]message.Option{opt(wire.ProxySchemeNumber, "\x00\x00"), host("192.0.2.1")}, "192.0.2.1:5683", "", ""},
		"Uri-Host in brackets":      {[]message.Option{scheme, host("[2001:db8::1]")}, "[2001:db8::1]:5683", "", ""},
		"aiocoap: no brackets":      {[]message.Option{scheme, host("2001:db8::1")}, "[2001:db8::1]:5683", "", ""},
		"aiocoap: group with zone":  {[]message.Option{scheme, host("ff02::fd%lo")}, "[ff02::fd%lo]:5683", "", ""},
		"Uri-Host name":             {[]message.Option{scheme, host("ONE.example")}, "192.0.2.1:5683", "", "one.example"},
		"Uri-Port 0":                {[]message.Option{scheme, host("192.0.2.1"), port(0)}, badOption, "", ""},
		"Uri-Host malformed":        {[]message.Option{scheme, host("[::1")}, badOption, "", ""},
		"dot segment (FP-28)":       {[]message.Option{scheme, host("192.0.2.1"), opt(wire.URIPath, ".")}, badOption, "", ""},
		"dot dot segment":           {[]message.Option{scheme, host("192.0.2.1"), opt(wire.URIPath, "a"), opt(wire.URIPath, "..")}, badOption, "", ""},
		"dots in Proxy-Uri":         {[]message.Option{uri("coap://192.0.2.1/a/../b")}, badOption, "", ""},
		"encoded dots":              {[]message.Option{uri("coap://192.0.2.1/%2e%2E")}, badOption, "", ""},
		"dots in a name are fine":   {[]message.Option{uri("coap://192.0.2.1/...")}, "192.0.2.1:5683", " 11=2e2e2e", ""},

		"relative (FP-3)":           {[]message.Option{uri("/r")}, malformed, "", ""},
		"fragment":                  {[]message.Option{uri("coap://192.0.2.1/#f")}, malformed, "", ""},
		"no host":                   {[]message.Option{uri("coap:///r")}, malformed, "", ""},
		"port 0":                    {[]message.Option{uri("coap://192.0.2.1:0/")}, malformed, "", ""},
		"userinfo (FP-10)":          {[]message.Option{uri("coap://me:secret@192.0.2.1/")}, malformed, "", ""},
		"empty userinfo":            {[]message.Option{uri("coap://@192.0.2.1/")}, malformed, "", ""},
		"CRI malformed":             {[]message.Option{cri("ff")}, malformed, "", ""},
		"CRI with fragment":         {[]message.Option{cri("8520 8144c0000201 8161 72 80 61 66")}, malformed, "", ""},
		"CRI relative":              {[]message.Option{cri("8200 8161 72")}, malformed, "", ""},
		"http (FP-7)":               {[]message.Option{uri("http://192.0.2.1/")}, "not_proxied", "", ""},
		"default port, coaps":       {[]message.Option{uri("coaps://192.0.2.1/")}, "192.0.2.1:5684", "", ""},
		"default port, TCP":         {[]message.Option{uri("coap+tcp://192.0.2.1/r")}, "192.0.2.1:5683", " 11=72", ""},
		"default port, TLS":         {[]message.Option{uri("COAPS+TCP://192.0.2.1/")}, "192.0.2.1:5684", "", ""},
		"default port, WebSocket":   {[]message.Option{uri("coap+ws://192.0.2.1/")}, "192.0.2.1:80", "", ""},
		"default port, secure WS":   {[]message.Option{uri("coaps+ws://192.0.2.1/")}, "192.0.2.1:443", "", ""},
		"scheme number (FP-6)":      {[]message.Option{host("192.0.2.1"), opt(wire.ProxySchemeNumber, "\x06")}, "192.0.2.1:5683", "", ""},
		"Proxy-Scheme, port (FP-5)": {[]message.Option{opt(wire.ProxyScheme, "coaps"), host("192.0.2.1")}, "192.0.2.1:5683", "", ""},
		"unknown scheme":            {[]message.Option{uri("gopher://192.0.2.1/")}, "not_proxied", "", ""},
		"no scheme anybody knows":   {[]message.Option{uri("urn:example:x")}, "not_proxied", "", ""},
		"CRI, http":                 {[]message.Option{cri(criHTTP)}, "not_proxied", "", ""},
		"CRI, unknown scheme":       {[]message.Option{cri(criUnknown)}, "not_proxied", "", ""},
		"Proxy-Scheme http":         {[]message.Option{opt(wire.ProxyScheme, "http"), host("192.0.2.1")}, "not_proxied", "", ""},
		"Proxy-Scheme unknown":      {[]message.Option{opt(wire.ProxyScheme, "gopher"), host("192.0.2.1")}, "not_proxied", "", ""},
		"scheme number unknown":     {[]message.Option{opt(wire.ProxySchemeNumber, "\x63"), host("192.0.2.1")}, "not_proxied", "", ""},

		"own address (FP-8)":               {[]message.Option{uri("coap://" + proxy4 + "/.well-known/core")}, "local", " 11=2e77656c6c2d6b6e6f776e 11=636f7265", ""},
		"own address, other family":        {[]message.Option{uri("coap://[2001:db8:100::1]/r")}, "local", " 11=72", ""},
		"own address with a zone":          {[]message.Option{uri("coap://[2001:db8:100::1%25eth0]/r")}, "local", " 11=72", ""},
		"own link-local address":           {[]message.Option{uri("coap://[fe80::100%25lo]/r")}, "local", " 11=72", ""},
		"own address, other port":          {[]message.Option{uri("coap://" + proxy4 + ":5684/r")}, proxy4 + ":5684", " 11=72", ""},
		"name of own address":              {[]message.Option{uri("coap://self.example/r")}, "local", " 11=72", "self.example"},
		"own name":                         {[]message.Option{uri("coap://GW.example/r")}, "local", " 11=72", "gw.example"},
		"outer address":                    {[]message.Option{uri("coap://203.0.113.1/r")}, "local", " 11=72", ""},
		"outer address, IPv6":              {[]message.Option{uri("coap://[2001:DB8:200:0::1]/r")}, "local", " 11=72", ""},
		"outer address, other port":        {[]message.Option{uri("coap://203.0.113.1:61616/r")}, "203.0.113.1:61616", " 11=72", ""},
		"own address, other scheme (FP-8)": {[]message.Option{uri("coap+tcp://" + proxy4 + "/r")}, proxy4 + ":5683", " 11=72", ""},
		"own address over TCP (FP-8)":      {[]message.Option{uri("coap+tcp://" + proxy4 + ":61617/r")}, "local", " 11=72", ""},
		"own name over TCP (FP-8)":         {[]message.Option{uri("coap+tcp://gw.example:61617/r")}, "local", " 11=72", "gw.example"},
		"own address, critical option":     {[]message.Option{uri("coap://" + proxy4 + "/r"), opt(wire.IfMatch, "")}, badOption, "", ""},

		"link-local with zone":      {[]message.Option{uri("coap://[fe80::1%25eth0]/")}, "[fe80::1%eth0]:5683", "", ""},
		"link-local heard (GP-57)":  {[]message.Option{uri("coap://[fe80::77]/")}, "[fe80::77%eth7]:5683", "", ""},
		"link-local, zone counts":   {[]message.Option{uri("coap://[fe80::77%25eth0]/")}, "[fe80::77%eth0]:5683", "", ""},
		"link-local, zone by index": {[]message.Option{uri("coap://[fe80::77%251]/")}, "[fe80::77%lo]:5683", "", ""},
		"link-local unheard":        {[]message.Option{uri("coap://[fe80::78]/")}, "bad_request", "", ""},
		"zone of a global address":  {[]message.Option{uri("coap://[2001:db8::1%25eth0]/")}, "[2001:db8::1]:5683", "", ""},
		"mixed name (GC-3)":         {[]message.Option{uri("coap://mixed.example/r")}, "bad_request", "", ""},
		"secure group port (GC-4)":  {[]message.Option{uri("coap://[ff05::fd]:5684/r")}, "not_proxied", "", ""},
		"group, scheme (GP-22)":     {[]message.Option{uri("coap+tcp://[ff05::fd]/r")}, "not_proxied", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := resolve(t, nil, tt.options...)
			if e.failure != nil || tt.target == "local" {
				require.Equal(t, tt.target, e.where, "%v", e.failure)
			} else {
				require.Equal(t, tt.target, e.request.Target.Addr.String())
			}
			if e.request != nil {
				require.Equal(t, tt.out, optionsOf(e.request.Options))
				require.Equal(t, tt.host, e.request.Target.Host)
			}
		})
	}
}

// The address a request was sent to is the proxy's, whatever it knows of its
// addresses (FP-4, FP-8).
func TestAddressAsked(t *testing.T) {
	unaware := func(targets *Targets) { targets.Own = func(string, netip.AddrPort) bool { return false } }
	require.Equal(t, "local", resolve(t, unaware, opt(wire.ProxyScheme, "coap")).where)
	require.Equal(t, "local", resolve(t, unaware, uri("coap://"+proxy4+"/r")).where)
	require.Equal(t, "next", resolve(t, unaware, uri("coap://"+proxy4+":61616/r")).where)
}

// GC-2: a name that stands for several groups is a request to all of them, each
// once. An interface is meant by its name.
func TestGroupTargets(t *testing.T) {
	e := resolve(t, nil, uri("coap://group.example:61616/r"))
	require.Equal(t, "next", e.where)
	target := e.request.Target
	require.True(t, target.Group)
	require.Equal(t, "group.example", target.Host)
	require.Equal(t, "[ff05::fd]:61616", target.Addr.String())
	require.Equal(t, []exchange.GroupAddr{{Addr: netip.MustParseAddrPort("224.0.1.187:61616")}, {Addr: netip.MustParseAddrPort("[ff02::fd%lo]:61616")}}, target.Also)

	e = resolve(t, nil, uri("coap://[ff02::fd%251]/r"))
	require.True(t, e.request.Target.Group)
	require.Equal(t, "[ff02::fd%lo]:5683", e.request.Target.Addr.String())
	require.False(t, resolve(t, nil, uri("coap://192.0.2.1/r")).request.Target.Group)
}

// FP-9, GC-73: a known Uri-Path-Abbrev is expanded, an unknown one goes on
// unchanged; together with a path it is an error.
func TestPathAbbreviation(t *testing.T) {
	const wellKnownCore = " 11=2e77656c6c2d6b6e6f776e 11=636f7265"
	abbrev := func(value string) message.Option { return opt(wire.URIPathAbbrev, value) }
	base := []message.Option{opt(wire.ProxyScheme, "coap"), opt(wire.URIHost, "192.0.2.1")}
	for name, tt := range map[string]struct {
		options []message.Option
		out     string
	}{
		"known":               {append(base, abbrev("")), wellKnownCore},
		"known, leading zero": {append(base, abbrev("\x00")), wellKnownCore},
		"between others":      {append(base, abbrev(""), opt(wire.ContentFormat, "c"), opt(wire.URIQuery, "q")), wellKnownCore + " 12=63 15=71"},
		"three segments":      {append(base, abbrev("\x01\x92")), " 11=2e77656c6c2d6b6e6f776e 11=6272736b69 11=7276"},
		"unknown":             {append(base, abbrev("\x03")), " 13=03"},
		"too long (FP-22)":    {append(base, abbrev("\x00\x00\x00\x00\x00")), " 13=0000000000"},
		"twice (FP-22)":       {append(base, abbrev(""), abbrev("")), " 13= 13="},
		"beside Proxy-Uri":    {[]message.Option{uri("coap://192.0.2.1"), abbrev("")}, wellKnownCore},
		"with Uri-Path":       {append(base, abbrev("\x03"), opt(wire.URIPath, "r")), ""},
		"with a path in it":   {[]message.Option{uri("coap://192.0.2.1/r"), abbrev("")}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			e := resolve(t, nil, append([]message.Option{}, tt.options...)...)
			if tt.out == "" {
				require.Equal(t, "bad_option", e.where)
				require.Equal(t, wire.URIPathAbbrev, e.failure.Option)
				return
			}
			require.Equal(t, "next", e.where)
			require.Equal(t, tt.out, optionsOf(e.request.Options))
		})
	}
}

// FP-25: at the proxy itself, as an origin server, a critical option that is
// not understood is an error; an elective one is ignored.
func TestLocalOptions(t *testing.T) {
	for name, tt := range map[string]struct {
		options []message.Option
		bad     message.OptionID
	}{
		"none":               {nil, 0},
		"understood":         {[]message.Option{opt(wire.URIPath, "a"), opt(wire.URIPath, "b"), opt(wire.URIQuery, "c"), opt(wire.Accept, "\x28"), opt(wire.Block2, "\x06"), opt(wire.URIHost, "h"), opt(wire.URIPort, "\x01")}, 0},
		"elective":           {[]message.Option{opt(60000, "x"), opt(wire.MulticastTimeout, "too long"), opt(wire.HopLimit, "\x00"), opt(wire.Observe, "")}, 0},
		"critical":           {[]message.Option{opt(60001, "x")}, 60001},
		"known elsewhere":    {[]message.Option{opt(wire.OSCORE, "x")}, wire.OSCORE},
		"repeated":           {[]message.Option{opt(wire.Accept, "\x28"), opt(wire.Accept, "\x28")}, wire.Accept},
		"length":             {[]message.Option{opt(wire.Accept, "\x00\x00\x28")}, wire.Accept},
		"abbreviated path":   {[]message.Option{opt(wire.URIPathAbbrev, "")}, wire.URIPathAbbrev},
		"request body block": {[]message.Option{opt(wire.Block1, "\x06")}, wire.Block1},
	} {
		t.Run(name, func(t *testing.T) {
			e := resolve(t, nil, tt.options...)
			if tt.bad == 0 {
				require.Equal(t, "local", e.where)
				return
			}
			require.Equal(t, "bad_option", e.where)
			require.Equal(t, tt.bad, e.failure.Option)
		})
	}
}

// Nobody makes the proxy ask name servers for nothing: a stranger is refused
// before a name is looked up (FP-85).
func TestStrangersResolveNothing(t *testing.T) {
	asked := false
	names, err := NewNames(t.Context(), nil, resolverFunc(func(context.Context, string) ([]netip.Addr, error) { asked = true; return nil, nil }), exchange.NewEngine())
	require.NoError(t, err)
	targets := &Targets{Numbers: defaultNumbers(), Names: names, Own: func(string, netip.AddrPort) bool { return false }, Serves: func(string) bool { return true }}
	e := &ending{}
	targets.Exchange(&exchange.Request{Method: codes.GET, Options: message.Options{opt(wire.ProxyURI, "coap://secret.example/x")}}, e)
	names.Wait()
	require.False(t, asked)
	require.Equal(t, exchange.Denied, e.failure.Reason)
}

// ending is a sink for an exchange that is refused.
type ending struct{ failure *exchange.Failure }

func (*ending) Respond(*exchange.Response) exchange.Verdict { return exchange.Stop }
func (e *ending) End(err error)                             { e.failure = exchange.AsFailure(err) }

func defaultNumbers() *wire.Numbers { n := wire.DefaultNumbers(); return &n }
