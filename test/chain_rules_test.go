package test

import (
	"fmt"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// An HTTP server behind two proxies is asked for the URI as the client wrote it: an
// encoded delimiter means something else there than a plain one (FP-39).
func TestChainToHTTPServer(t *testing.T) {
	t.Parallel()
	origin := newWebServer(t)
	allowed := `forward: ["http://127.0.0.0/8:*"]`
	behind := startProxy(t, group0, settings{client: allowed})
	p := startProxy(t, group0, settings{client: allowed, top: nextHop("coap://"+behind.addr().String(), "")})
	p.waitFor("next hop is up")
	c := newClient(t, here, clientAddr, p.addr())
	in := c.ask(get(coap.CON, origin.URL+"/a%2Fb%3B/c?q=1%2B2&r=%26"))
	require.Equal(t, coap.CodeOf(2, 5), in.Code, "%q", in.Payload)
	require.Equal(t, `"/a%2Fb%3B/c?q=1%2B2&r=%26"`, string(in.Payload))
	in = c.ask(&coap.Message{Type: coap.CON, Code: coap.GET, Options: append(path("x", "y z"), coap.Opt(coap.URIHost, "127.0.0.1"),
		coap.Opt(coap.ProxyScheme, "http"), coap.Uint(coap.URIPort, uint32(portOf(t, origin.URL))), coap.Opt(coap.URIQuery, "q=1"))})
	require.Equal(t, coap.CodeOf(2, 5), in.Code, "%q", in.Payload)
	require.Equal(t, `"/x/y%20z?q=1"`, string(in.Payload))
	require.Len(t, origin.requests(), 2)
}

// portOf is the port of a URI.
func portOf(t *testing.T, uri string) (port int) {
	t.Helper()
	_, err := fmt.Sscan(uri[strings.LastIndex(uri, ":")+1:], &port)
	require.NoError(t, err)
	return port
}
