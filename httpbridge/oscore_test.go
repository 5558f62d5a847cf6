package httpbridge

import (
	"net/netip"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// HC-107, OH-77: what is protected end to end goes through as it is.
func TestOSCORE(t *testing.T) {
	f, chain := newFront(t, func(c *Config) { c.OSCORE = true })
	chain.serve = answers(&exchange.Response{Code: codes.Changed, Options: message.Options{{ID: wire.OSCORE, Value: []byte{}}}, Payload: []byte("sealed")})
	w := do(f, "POST", "/hc/coap://192.0.2.7/", "ciphertext", "OSCORE: CSU", "Content-Type: application/oscore", "Accept: text/plain", "Content-Length: 10")
	r := chain.last()
	require.Equal(t, codes.POST, r.Method)
	require.Equal(t, "ciphertext", string(r.Payload))
	require.Equal(t, message.Options{{ID: wire.OSCORE, Value: []byte{9, 0x25}}, {ID: wire.ProxyURI, Value: []byte("coap://192.0.2.7/")}}, r.Options,
		"neither a Content-Format nor an Accept")
	require.Equal(t, 200, w.Code)
	require.Equal(t, "AA", w.Header().Get("OSCORE"))
	require.Equal(t, "application/oscore", w.Header().Get("Content-Type"))
	require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
	require.Equal(t, "sealed", w.Body.String())

	chain.serve = answers(&exchange.Response{Code: codes.Content, Options: message.Options{{ID: wire.OSCORE, Value: []byte{1, 0xff}}, {ID: wire.MaxAge, Value: []byte{9}}}, Payload: []byte("s")})
	w = do(f, "POST", "/hc/coap://192.0.2.7/", "c", "OSCORE: AA", "Content-Type: application/oscore")
	value, _ := wire.First(chain.last().Options, wire.OSCORE)
	require.Empty(t, value)
	require.Equal(t, "Af8", w.Header().Get("OSCORE"))
	require.Contains(t, w.Header().Get("Cache-Control"), "max-age=9")

	// An error of somebody on the way is not protected.
	chain.serve = answers(&exchange.Response{Code: codes.Unauthorized, Payload: []byte("Security context not found")})
	w = do(f, "POST", "/hc/coap://192.0.2.7/", "c", "OSCORE: CSU", "Content-Type: application/oscore")
	require.Equal(t, 403, w.Code)
	require.Empty(t, w.Header().Get("OSCORE"))
}

// A group: every part is a protected response of its own.
func TestOSCOREGroup(t *testing.T) {
	f, chain := newFront(t, func(c *Config) { c.OSCORE = true })
	p := &exchange.Response{Code: codes.Changed, Options: message.Options{{ID: wire.OSCORE, Value: []byte{0x29, 0, 's'}}}, Payload: []byte("sealed"),
		From: netip.MustParseAddrPort("192.0.2.8:5683"), GroupPort: 5683}
	chain.serve = answers(p)
	w := do(f, "POST", "/hc/coap://224.0.1.187/", "c", "OSCORE: CSU", "Content-Type: application/oscore", "Multicast-Timeout: 1")
	require.Equal(t, 200, w.Code)
	require.Contains(t, w.Body.String(), "Oscore: KQBz\r\n")
	require.Contains(t, w.Body.String(), "Content-Type: application/oscore\r\n")
}

func TestOSCORERefused(t *testing.T) {
	for _, x := range []struct {
		name, method string
		fields       []string
		off          bool
		status       int
	}{
		{"not enabled", "POST", []string{"OSCORE: CSU", "Content-Type: application/oscore"}, true, 501},
		{"GET", "GET", []string{"OSCORE: CSU"}, false, 400},
		{"no field", "POST", []string{"Content-Type: application/oscore"}, false, 400},
		{"another type", "POST", []string{"OSCORE: CSU", "Content-Type: text/plain"}, false, 415},
		{"no type", "POST", []string{"OSCORE: CSU"}, false, 415},
		{"twice", "POST", []string{"OSCORE: CSU", "OSCORE: CSU", "Content-Type: application/oscore"}, false, 400},
		{"padding", "POST", []string{"OSCORE: CSU=", "Content-Type: application/oscore"}, false, 400},
		{"other alphabet", "POST", []string{"OSCORE: C+U", "Content-Type: application/oscore"}, false, 400},
		{"empty", "POST", []string{"OSCORE: ", "Content-Type: application/oscore"}, false, 400},
	} {
		t.Run(x.name, func(t *testing.T) {
			f, chain := newFront(t, func(c *Config) { c.OSCORE = !x.off })
			body := "c"
			if x.method == "GET" {
				body = ""
			}
			require.Equal(t, x.status, do(f, x.method, "/hc/coap://192.0.2.7/", body, x.fields...).Code)
			require.Zero(t, chain.count())
		})
	}
}
