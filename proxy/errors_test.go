package proxy

import (
	"encoding/hex"
	"strings"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// Every reason has a code of the class of errors. GP-27: the codes that a cache
// in between must not replay carry Max-Age 0; FP-34, FP-37: those that are over
// soon say when.
func TestFailureResponses(t *testing.T) {
	numbers := wire.DefaultNumbers()
	for reason, want := range map[exchange.Reason]string{
		exchange.Internal:         "5.00 |text",
		exchange.BadRequest:       "4.00 14= |text",
		exchange.TimeoutMissing:   "4.00 2= |text",
		exchange.TokenReused:      "4.00 14= |text",
		exchange.Denied:           "4.01 14= |text",
		exchange.BadOption:        "4.02 |text",
		exchange.NotFound:         "4.04 |text",
		exchange.Incomplete:       "4.08 |text",
		exchange.MethodNotAllowed: "4.05 14= |text", // GC-70
		exchange.TooLarge:         "4.13 60=0400 |text",
		exchange.TooManyRequests:  "4.29 14=03 |text",
		exchange.GroupsDisabled:   "5.01 14= |text",
		exchange.Unreachable:      "5.02 |text",
		exchange.BadResponse:      "5.02 |text",
		exchange.Overloaded:       "5.03 14=03 |text",
		exchange.NoAnswer:         "5.04 |text",
		exchange.NotProxied:       "5.05 14= |text",
		exchange.TimeoutTooShort:  "5.05 2=07 |text",
		exchange.HopLimitReached:  "5.08 |text",
	} {
		t.Run(reason.String(), func(t *testing.T) {
			f := &exchange.Failure{Reason: reason, Detail: "text", RetryAfter: 2001 * time.Millisecond, MinTimeout: 7, Limit: 1024}
			p := failureResponse(f, &numbers)
			require.Equal(t, "NON "+want, describe(&wire.Message{Type: non, Code: p.Code, Options: p.Options, Payload: p.Payload}))
			require.False(t, p.From.IsValid()) // GP-39
		})
	}
	for reason, code := range failureCodes {
		require.GreaterOrEqual(t, code>>5, codes.Code(4), exchange.Reason(reason))
	}
	p := failureResponse(&exchange.Failure{Reason: exchange.Overloaded}, &numbers)
	require.Equal(t, message.Options{{ID: wire.MaxAge, Value: []byte{1}}}, p.Options)
	p = failureResponse(&exchange.Failure{Reason: exchange.TooLarge}, &numbers)
	require.Empty(t, p.Options)
}

// What a client gets for requests that the proxy refuses, group requests first
// in the order of the rules. Nothing of them goes out, and each leaves one line
// in the log.
func TestRefusals(t *testing.T) {
	for name, tt := range map[string]struct {
		from string
		m    wire.Message
		want string
	}{
		"unknown client (GP-23)":      {"203.0.200.1:1", groupGet(con, "t", 10), "ACK 4.01 14= |client not identified"},
		"unknown client, NON":         {"203.0.200.1:1", groupGet(non, "t", 10), "NON 4.01 14= |client not identified"},
		"unknown client, no timeout":  {"203.0.200.1:1", msg(con, codes.GET, "t", uri(nodesURI)), "ACK 4.01 14= |client not identified"},
		"unknown client, T' = 0":      {"203.0.200.1:1", groupGet(non, "t", 0), "NON 4.01 14= |client not identified"}, // GP-34
		"no forwarding (FP-85)":       {"203.0.200.1:1", msg(con, codes.GET, "t", uri(serverURI)), "ACK 4.01 14= |client not identified"},
		"unknown group":               {userAddr, msg(con, codes.GET, "t", timeout(10), uri("coap://[ff05::1]/r")), "ACK 4.01 14= |group not allowed"},
		"secure group (GP-22)":        {userAddr, msg(con, codes.GET, "t", timeout(10), uri("coaps://[ff05::fd]/r")), "ACK 5.05 14= |scheme coaps is not served"},
		"group over TCP":              {userAddr, msg(con, codes.GET, "t", timeout(10), uri("coap+tcp://[ff05::fd]/r")), "ACK 5.05 14= |scheme coap+tcp is not served"},
		"secure port":                 {userAddr, msg(con, codes.GET, "t", timeout(10), uri("coap://[ff05::fd]:5684/r")), "ACK 5.05 14= |a group has no secure port"},
		"method (GC-70)":              {userAddr, msg(con, codes.PUT, "t", timeout(10), uri(nodesURI)), "ACK 4.05 14= |method not allowed for this group"},
		"no timeout (GP-26)":          {userAddr, msg(con, codes.GET, "t", uri(nodesURI)), "ACK 4.00 2= |Please use Multicast-Timeout"},
		"no timeout, NON":             {userAddr, msg(non, codes.GET, "t", uri(nodesURI)), "NON 4.00 2= |Please use Multicast-Timeout"},
		"timeout too long (GP-3)":     {userAddr, msg(con, codes.GET, "t", opt(wire.MulticastTimeout, "\x00\x00\x00\x00\x0a"), uri(nodesURI)), "ACK 4.02 |option 2 (Multicast-Timeout) is malformed or repeated"},
		"body too large (GC-52)":      {userAddr, large(groupGet(con, "t", 10)), "ACK 4.13 60=0400 |a group request must fit one message"},
		"Hop-Limit (FP-52)":           {userAddr, groupGet(con, "t", 10, opt(wire.HopLimit, "\x01")), "ACK 5.08 |gw"},
		"Hop-Limit 0":                 {userAddr, groupGet(con, "t", 10, opt(wire.HopLimit, "\x00")), "ACK 4.00 14= |Hop-Limit must be 1 to 255"},
		"protected (GC-92)":           {userAddr, groupGet(con, "t", 10, opt(wire.OSCORE, "o")), "ACK 4.01 14= |protected group requests are not allowed"},
		"http (FP-7)":                 {userAddr, msg(con, codes.GET, "t", uri("http://192.0.2.11/")), "ACK 5.05 14= |scheme http is not served"},
		"T' = 0, refused, suppressed": {"203.0.200.1:1", groupGet(con, "t", 0, opt(wire.NoResponse, "\x08")), "ACK"},
		"T' = 0, other class":         {"203.0.200.1:1", groupGet(con, "t", 0, opt(wire.NoResponse, "\x10")), "ACK 4.01 14= |client not identified"},
		"not ours":                    {userAddr, msg(con, codes.GET, "t", opt(wire.URIPath, "r")), "ACK 4.04 |this is a proxy; name a target with Proxy-Uri or Proxy-Scheme"},
	} {
		t.Run(name, func(t *testing.T) {
			inGateway(t, nil, func(g *gateway) {
				c := g.peer(tt.from)
				a, b := g.peer(member1, "224.0.1.187"), g.peer("[2001:db8::11]:5683", "ff05::fd")
				c.ask(tt.m)
				c.expect(tt.want)
				a.expect()
				b.expect()
				lines := g.log.FilterMessage("request refused").All()
				require.Len(t, lines, 1)
				require.Equal(t, tt.from, lines[0].ContextMap()["client"])
				require.NotEmpty(t, lines[0].ContextMap()["reason"])
			})
		})
	}
	inGateway(t, func(s *setup) { s.access.Groups = nil }, func(g *gateway) {
		c := g.peer(userAddr)
		c.ask(groupGet(con, "t", 10))
		c.expect("ACK 5.01 14= |group requests are not enabled") // GP-22
	})
}

func large(m wire.Message) wire.Message {
	m.Payload = make([]byte, 1025)
	return m
}

// FP-38: the text of an error, or problem details where Accept asks for them:
// {-8: number} for an option that could not be processed, else {-1: text}.
func TestProblemDetails(t *testing.T) {
	accept := opt(wire.Accept, "\x01\x01")
	for name, tt := range map[string]struct {
		options []message.Option
		payload string // in hex
	}{
		"option 13":      {[]message.Option{uri("coap://192.0.2.11/r"), opt(wire.URIPathAbbrev, "")}, "a1270d"},
		"option 60003":   {[]message.Option{uri("coap://192.0.2.11/r"), opt(60003, "")}, "a12719ea63"},
		"option 35":      {[]message.Option{uri("relative")}, "a1271823"},
		"option 2":       {[]message.Option{uri(nodesURI), timeout(1), timeout(1)}, "a12702"},
		"option 239":     {[]message.Option{opt(wire.ProxyScheme, "coap"), opt(wire.ProxySchemeNumber, "")}, "a12718ef"},
		"local option":   {[]message.Option{opt(wire.IfMatch, "")}, "a12701"},
		"another reason": {[]message.Option{uri("coap://[fe80::99]/")}, "a1207821" + hex.EncodeToString([]byte("a link-local address needs a zone"))},
	} {
		t.Run(name, func(t *testing.T) {
			inGateway(t, nil, func(g *gateway) {
				c := g.peer(userAddr)
				c.ask(msg(con, codes.GET, "t", append(tt.options, accept)...))
				m := c.take()[0]
				format, _ := wire.First(m.Options, wire.ContentFormat)
				require.Equal(t, "0101", hex.EncodeToString(format))
				require.Equal(t, tt.payload, hex.EncodeToString(m.Payload))
			})
		})
	}
	inGateway(t, nil, func(g *gateway) {
		c := g.peer(userAddr)
		c.ask(msg(con, codes.GET, "t", timeout(1), uri(nodesURI), opt(wire.IfMatch, ""), opt(wire.HopLimit, "\x01"), accept))
		c.expect("ACK 5.08 |gw") // the list of FP-54 is no diagnostic text
		c.ask(msg(con, codes.GET, "t", opt(60003, ""), opt(wire.Accept, "\x00")))
		c.expect("ACK 4.02 |option 60003 cannot be processed")
	})
	require.Equal(t, "a12063616263", hex.EncodeToString(appendProblemTitle(nil, "abc")))
	require.Equal(t, "a120790100", hex.EncodeToString(appendProblemTitle(nil, strings.Repeat("x", 256)))[:10])
}

// The log says which key of the configuration denied a request, and what was asked
// for where that is no target; not its query.
func TestRefusalInLog(t *testing.T) {
	for name, tt := range map[string]struct {
		change      func(*setup)
		request     wire.Message
		key, target string
	}{
		"forward":  {func(s *setup) { s.access.Clients[0].Forward = nil }, msg(con, codes.GET, "t", uri("coap://192.0.2.11/x")), "clients[].forward", "coap://192.0.2.11:5683"},
		"private":  {nil, msg(con, codes.GET, "t", uri("coap://10.0.0.1/x")), "proxy.allow_private", "coap://10.0.0.1:5683"},
		"loopback": {nil, msg(con, codes.GET, "t", uri("coap://127.0.0.9/x")), "proxy.allow_loopback", "coap://127.0.0.9:5683"},
		"group":    {nil, msg(con, codes.GET, "t", timeout(2), uri("coap://224.0.1.200/x")), "groups", "coap://224.0.1.200:5683"},
		"groups":   {func(s *setup) { s.access.Clients[0].AllGroups = false }, groupGet(con, "t", 2), "clients[].groups", "coap://224.0.1.187:5683"},
		"method":   {nil, msg(con, codes.PUT, "t", timeout(2), uri(nodesURI)), "groups[].methods", "coap://224.0.1.187:5683"},
		"methods":  {func(s *setup) { s.access.Clients[0].Methods = []codes.Code{codes.POST} }, groupGet(con, "t", 2), "clients[].methods", "coap://224.0.1.187:5683"},
		"bad URI":  {nil, msg(con, codes.GET, "t", uri("coap:///x?secret")), "", `"coap:///x"`},
		"scheme":   {nil, msg(con, codes.GET, "t", uri("ftp://a/")), "", `"ftp://a/"`},
	} {
		t.Run(name, func(t *testing.T) {
			inGateway(t, tt.change, func(g *gateway) {
				c := g.peer(userAddr)
				c.ask(tt.request)
				require.Len(t, c.take(), 1)
				entries := g.log.FilterMessage("request refused").All()
				require.Len(t, entries, 1)
				fields := entries[0].ContextMap()
				require.Equal(t, tt.target, fields["target"])
				if tt.key == "" {
					require.NotContains(t, fields, "key")
				} else {
					require.Equal(t, tt.key, fields["key"])
				}
			})
		})
	}
	inGateway(t, nil, func(g *gateway) {
		c := g.peer("198.51.100.77:1")
		c.ask(groupGet(con, "t", 2))
		c.take()
		require.Equal(t, "clients", g.log.FilterMessage("request refused").All()[0].ContextMap()["key"])
	})
}
