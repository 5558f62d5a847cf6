package test

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// forwarding is a client that may reach every loopback address.
var forwarding = settings{client: `forward: ["coap://127.0.0.0/8:*"]`}

// The four ways of naming a target, and what the origin server sees of them.
func TestForward(t *testing.T) {
	t.Parallel()
	origin := single(t, content)
	p := startProxy(t, netip.AddrPort{}, forwarding)
	c := newClient(t, here, clientAddr, p.addr())
	port := origin.addr().Port()
	host, uriPort := coap.Opt(coap.URIHost, "127.0.2.1"), coap.Uint(coap.URIPort, uint32(port))
	segment, query := coap.Opt(coap.URIPath, "a b"), coap.Opt(coap.URIQuery, "q=1&2")
	uri := coap.Opt(coap.ProxyURI, fmt.Sprintf("coap://127.0.2.1:%d/a%%20b?q=1%%262", port))
	cri := coap.Opt(coap.ProxyCRI, append([]byte{0x84, 0x20, 0x82, 0x44, 127, 0, 2, 1, 0x19, byte(port >> 8), byte(port)},
		0x81, 0x63, 'a', ' ', 'b', 0x81, 0x65, 'q', '=', '1', '&', '2'))
	for _, tt := range []struct {
		name    string
		options []coap.Option
	}{
		{"Proxy-Uri", []coap.Option{uri}},
		{"Proxy-Uri over all Uri-* (FP-2)", []coap.Option{uri, coap.Opt(coap.URIHost, "127.9.9.9"), coap.Uint(coap.URIPort, 1), coap.Opt(coap.URIPath, "no"), coap.Opt(coap.URIQuery, "no")}},
		{"Proxy-Uri over Proxy-Scheme (FP-2)", []coap.Option{uri, coap.Opt(coap.ProxyScheme, "gopher")}},
		{"Proxy-Cri", []coap.Option{cri}},
		{"Proxy-Cri over Proxy-Uri (FP-2)", []coap.Option{cri, coap.Opt(coap.ProxyURI, "coap://127.9.9.9/no")}},
		{"Proxy-Scheme (FP-4)", []coap.Option{host, uriPort, segment, query, coap.Opt(coap.ProxyScheme, "coap")}},
		{"Proxy-Scheme in capitals", []coap.Option{host, uriPort, segment, query, coap.Opt(coap.ProxyScheme, "CoAP")}},
		{"Proxy-Scheme-Number (FP-6)", []coap.Option{host, uriPort, segment, query, coap.Uint(coap.ProxySchemeNumber, 0)}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := len(origin.requests())
			in := c.ask(&coap.Message{Type: coap.CON, Code: coap.GET, Options: tt.options})
			require.Equal(t, coap.CodeOf(2, 5), in.Code, "%q", in.Payload)
			require.Equal(t, coap.ACK, in.Type)
			require.Equal(t, "server/a b", string(in.Payload))
			requests := origin.requests()[before:]
			require.Len(t, requests, 1)
			r := requests[0]
			require.Equal(t, coap.CON, r.Type)                                                       // FP-31
			require.GreaterOrEqual(t, len(r.Token), 4)                                               // FP-31
			require.Equal(t, []coap.Option{segment, query, coap.Uint(coap.HopLimit, 16)}, r.Options) // FP-24, FP-53
		})
	}
}

// FP-4, FP-5: without Uri-Port the port is the proxy's own.
func TestForwardOwnPort(t *testing.T) {
	t.Parallel()
	u := sameport(t, 2)
	u[0].close() // its port is the proxy's
	origin := serveOn(t, "server", u[1:], nil, content)
	eventually(t, func() bool {
		s, err := openSocket(u[0].local)
		if err == nil {
			s.close()
		}
		return err == nil
	}, "the port to be free")
	s := forwarding
	s.listen = fmt.Sprintf("- coap://%v", u[0].local)
	p := startProxy(t, netip.AddrPort{}, s)
	c := newClient(t, here, clientAddr, p.addr())
	in := c.ask(&coap.Message{Type: coap.CON, Code: coap.GET, Options: []coap.Option{
		coap.Opt(coap.URIHost, origin.addr().Addr().String()), coap.Opt(coap.URIPath, "x"), coap.Opt(coap.ProxyScheme, "coap")}})
	require.Equal(t, "server/x", string(in.Payload))
}

// Options pass or stop as FP-24 says.
func TestForwardOptions(t *testing.T) {
	t.Parallel()
	origin := single(t, with("ok", coap.Opt(coap.ETag, "tag"), coap.Uint(coap.MaxAge, 7), coap.Opt(8, "new"), coap.Opt(2049, "r")))
	p := startProxy(t, netip.AddrPort{}, forwarding)
	c := newClient(t, here, clientAddr, p.addr())
	passed := []coap.Option{coap.Opt(coap.IfMatch, ""), coap.Opt(coap.ETag, "one"), coap.Opt(coap.ETag, "two"), coap.Uint(coap.ContentFormat, 0),
		coap.Uint(coap.Accept, 50), coap.Opt(252, "echo"), coap.Opt(coap.RequestTag, "tag"), coap.Opt(2049, "critical"), coap.Opt(2304, "elective")}
	m := get(coap.CON, "coap://"+origin.addr().String()+"/x", append([]coap.Option{coap.Uint(coap.HopLimit, 9), coap.Uint(coap.MaxAge, 3),
		coap.Uint(coap.NoResponse, 16)}, passed...)...)
	m.Code, m.Payload = coap.PUT, []byte("body")
	in := c.ask(m)
	require.Equal(t, coap.CodeOf(2, 5), in.Code, "%q", in.Payload)
	require.Equal(t, []coap.Option{coap.Opt(coap.ETag, "tag"), coap.Opt(8, "new"), coap.Uint(coap.MaxAge, 7), coap.Opt(2049, "r")}, in.Options)
	r := origin.requests()[0]
	require.Equal(t, coap.PUT, r.Code)
	require.Equal(t, "body", string(r.Payload))
	want := &coap.Message{Code: coap.GET, Options: append([]coap.Option{coap.Opt(coap.URIPath, "x"), coap.Uint(coap.HopLimit, 8)}, passed...)} // FP-52
	parsed, err := coap.Parse(want.Bytes())
	require.NoError(t, err)
	require.Equal(t, parsed.Options, r.Options)
	// FP-26: methods the proxy does not know.
	m = get(coap.CON, "coap://"+origin.addr().String()+"/x")
	m.Code = 30
	require.Equal(t, coap.CodeOf(2, 5), c.ask(m).Code)
}

// What servers do wrong, and what the client hears of it.
func TestForwardFailures(t *testing.T) {
	t.Parallel()
	origin := single(t, paths(map[string]handler{
		"silent":  silent,
		"reset":   func(s *server, r *request) { s.sendBytes(r, (&coap.Message{Type: coap.RST, ID: r.ID}).Bytes()) },
		"unsafe":  with("x", coap.Opt(2050, "x")),
		"class 3": code(3, 1, ""),
		"class 6": code(6, 1, ""),
		"4.04":    code(4, 4, "not here"),
		"5.00":    code(5, 0, "broken"),
		"5.08":    code(5, 8, "far away"),
	}))
	closed := mustSocket(t, here, netip.MustParseAddrPort("127.0.2.2:0"))
	closed.close()
	s := forwarding
	s.limits = "response_timeout_con: 3s\nresponse_timeout: 3s"
	s.proxy = "identifier: here"
	p := startProxy(t, netip.AddrPort{}, s)
	c := newClient(t, here, clientAddr, p.addr())
	for path, want := range map[string]string{
		"silent": "5.04", "reset": "5.02", "unsafe": "5.02", "class%203": "5.02", // FP-32, FP-33, FP-20, FP-27
		"class%206": "5.04", // RFC 7252 §4.2: a message of a reserved class is ignored
		"4.04":      "4.04 not here", "5.00": "5.00 broken",
		"5.08": "5.08 here far away", // FP-54
	} {
		for _, kind := range []coap.Type{coap.CON, coap.NON} {
			in := c.ask(get(kind, "coap://"+origin.addr().String()+"/"+path))
			if len(want) == 4 {
				require.Equal(t, want, in.Code.String(), path)
				require.NotContains(t, string(in.Payload), "127.0.2") // FP-38
				continue
			}
			require.Equal(t, want, fmt.Sprintf("%v %s", in.Code, in.Payload), path)
		}
	}
	began := time.Now()
	in := c.ask(get(coap.CON, "coap://"+closed.local.String()+"/x"))
	require.Equal(t, coap.CodeOf(5, 2), in.Code) // FP-34
	require.Less(t, time.Since(began), 2500*time.Millisecond, "at once, not when nobody has answered")
}

// An answer that takes its time comes separately (FP-30), and the request is not
// carried out again meanwhile.
func TestSeparateResponse(t *testing.T) {
	t.Parallel()
	release := make(chan struct{})
	origin := single(t, func(s *server, r *request) { <-release; content(s, r) })
	p := startProxy(t, netip.AddrPort{}, forwarding)
	c := newClient(t, here, clientAddr, p.addr())
	c.keepMute(true)
	m := c.fresh(get(coap.CON, "coap://"+origin.addr().String()+"/slow"))
	m.Code = coap.POST
	c.send(m)
	require.Equal(t, coap.Message{Type: coap.ACK, ID: m.ID, Token: []byte{}}, *c.expect().Message)
	c.send(m) // the client's host repeats it
	require.Equal(t, coap.Message{Type: coap.ACK, ID: m.ID, Token: []byte{}}, *c.expect().Message)
	close(release)
	in := c.expect()
	require.Equal(t, coap.CON, in.Type)
	require.Equal(t, m.Token, in.Token)
	require.Equal(t, "server/slow", string(in.Payload))
	require.NotEqual(t, m.ID, in.ID)
	repeated := c.expect() // RFC 7252 §4.2: until it is acknowledged
	require.Equal(t, in.data, repeated.data)
	c.send(&coap.Message{Type: coap.ACK, ID: in.ID})
	require.Len(t, origin.requests(), 1)

	non := c.fresh(get(coap.NON, "coap://"+origin.addr().String()+"/non"))
	c.send(non)
	in = c.expect()
	require.Equal(t, coap.NON, in.Type)
	require.Equal(t, non.Token, in.Token)
}

// A repeated request gets the answer it had (FP-90, RFC 7252 §4.5).
func TestRepeatedRequest(t *testing.T) {
	t.Parallel()
	origin := single(t, content)
	p := startProxy(t, netip.AddrPort{}, forwarding)
	c := newClient(t, here, clientAddr, p.addr())
	for _, method := range []coap.Code{coap.GET, coap.POST} {
		before := len(origin.requests())
		m := get(coap.CON, "coap://"+origin.addr().String()+"/x")
		m.Code = method
		first := c.ask(m)
		for range 3 {
			c.send(m)
			require.Equal(t, first.data, c.expect().data)
		}
		require.Len(t, origin.requests(), before+1)
		// The same Message ID from elsewhere is another request.
		other := newClient(t, here, clientAddr, p.addr())
		other.send(m)
		require.Equal(t, "server/x", string(other.expect().Payload))
		require.Len(t, origin.requests(), before+2)
	}
}

// Servers repeat and separate, too.
func TestServerMessageLayer(t *testing.T) {
	t.Parallel()
	origin := single(t, paths(map[string]handler{
		"separate": func(s *server, r *request) {
			s.sendBytes(r, (&coap.Message{Type: coap.ACK, ID: r.ID}).Bytes())
			for range 2 { // repeated: acknowledged twice, relayed once
				s.send(r, coap.Message{Type: coap.CON, ID: 0x7777, Code: coap.CodeOf(2, 5), Payload: []byte("separate")})
				time.Sleep(20 * time.Millisecond)
			}
		},
		"second": func(s *server, r *request) { // the first transmission is lost
			if len(s.requestsTo("/second")) > 1 {
				content(s, r)
			}
		},
		"non": func(s *server, r *request) {
			s.send(r, coap.Message{Type: coap.NON, ID: s.nextID(), Code: coap.CodeOf(2, 5), Payload: []byte("non")})
		},
	}))
	p := startProxy(t, netip.AddrPort{}, forwarding)
	c := newClient(t, here, clientAddr, p.addr())
	uri := "coap://" + origin.addr().String()
	require.Equal(t, "separate", string(c.ask(get(coap.CON, uri+"/separate")).Payload))
	eventually(t, func() bool { return len(origin.empties(coap.ACK)) == 2 }, "two ACKs")
	require.Equal(t, "non", string(c.ask(get(coap.CON, uri+"/non")).Payload))
	require.Equal(t, "server/second", string(c.ask(get(coap.CON, uri+"/second")).Payload))
	twice := origin.requestsTo("/second")
	require.Len(t, twice, 2)
	require.Equal(t, twice[0].data, twice[1].data)
	gap := twice[1].at.Sub(twice[0].at)
	require.Greater(t, gap, 1900*time.Millisecond) // ACK_TIMEOUT, with the random factor up to 3 s
	c.nothing(100 * time.Millisecond)
}

// FP-35: one request to a server at a time, and a bound on those that wait.
func TestServerQueue(t *testing.T) {
	t.Parallel()
	origin := single(t, after(500*time.Millisecond, content))
	s := forwarding
	s.limits = "upstream_queue: 2"
	p := startProxy(t, netip.AddrPort{}, s)
	c := newClient(t, here, clientAddr, p.addr())
	codes := make(map[string]int)
	for i := range 5 {
		c.send(c.fresh(get(coap.NON, fmt.Sprintf("coap://%v/%d", origin.addr(), i))))
	}
	for range 5 {
		in := c.expect()
		codes[in.Code.String()]++
		require.Equal(t, in.Code == coap.CodeOf(5, 3), in.Has(coap.MaxAge)) // FP-34
	}
	require.Equal(t, map[string]int{"2.05": 3, "5.03": 2}, codes)
	requests := origin.requests()
	for i := range requests[1:] {
		require.Greater(t, requests[i+1].at.Sub(requests[i].at), 450*time.Millisecond)
	}
}

// FP-36: after a 4.29 the client's similar requests are answered from memory.
func TestHoldBack(t *testing.T) {
	t.Parallel()
	origin := single(t, paths(map[string]handler{"busy": func(s *server, r *request) {
		s.answer(r, coap.Message{Code: coap.CodeOf(4, 29), Options: []coap.Option{coap.Uint(coap.MaxAge, 60)}})
	}}))
	p := startProxy(t, netip.AddrPort{}, forwarding)
	c := newClient(t, here, clientAddr, p.addr())
	uri := "coap://" + origin.addr().String()
	for range 3 {
		in := c.ask(get(coap.CON, uri+"/busy"))
		require.Equal(t, coap.CodeOf(4, 29), in.Code)
		maxAge, _ := in.Option(coap.MaxAge)
		require.InDelta(t, 60, maxAge.Uint(), 5)
	}
	require.Len(t, origin.requestsTo("/busy"), 1)
	require.Equal(t, coap.CodeOf(2, 5), c.ask(get(coap.CON, uri+"/idle")).Code)
	other := newClient(t, here, loopback(2), p.addr())
	require.Equal(t, coap.CodeOf(4, 29), other.ask(get(coap.CON, uri+"/busy")).Code)
	require.Len(t, origin.requestsTo("/busy"), 2)
}

// aiocoap writes IPv6 addresses into Uri-Host without brackets (GP-56).
func TestUnbracketedHost(t *testing.T) {
	t.Parallel()
	origin := serve(t, "six", place{host: here, addrs: []netip.Addr{netip.IPv6Loopback()}}, content)
	p := startProxy(t, netip.AddrPort{}, settings{client: `forward: ["coap://[::1]:*"]`})
	c := newClient(t, here, clientAddr, p.addr())
	for _, host := range []string{"::1", "[::1]", "0:0:0:0:0:0:0:1"} {
		in := c.ask(&coap.Message{Type: coap.CON, Code: coap.GET, Options: []coap.Option{coap.Opt(coap.URIHost, host),
			coap.Uint(coap.URIPort, uint32(origin.addr().Port())), coap.Opt(coap.URIPath, "x"), coap.Opt(coap.ProxyScheme, "coap")}})
		require.Equal(t, "six/x", string(in.Payload), host)
	}
	require.False(t, origin.requests()[0].Has(coap.URIHost)) // a literal is not written
}

// What the network says about a server that is not there concerns nobody else:
// the proxy goes on at once.
func TestUndeliverableDoesNotBlock(t *testing.T) {
	t.Parallel()
	origin := single(t, content)
	closed := mustSocket(t, here, netip.MustParseAddrPort("127.0.2.2:0"))
	closed.close()
	p := startProxy(t, netip.AddrPort{}, forwarding)
	gone, c := newClient(t, here, loopback(2), p.addr()), newClient(t, here, clientAddr, p.addr())
	for i := range 50 {
		for range 4 {
			gone.send(gone.fresh(get(coap.NON, fmt.Sprintf("coap://127.0.2.2:%d/x", closed.local.Port()))))
		}
		c.send(c.fresh(get(coap.NON, "coap://"+origin.addr().String()+"/x")))
		in := c.next(patience)
		require.NotNil(t, in, "round %d", i)
		require.Equal(t, coap.CodeOf(2, 5), in.Code)
	}
	for range 200 {
		in := gone.expect()
		require.Contains(t, []string{"5.02", "5.03"}, in.Code.String()) // FP-34, FP-35
	}
}
