package test

import (
	"fmt"
	"net/http"
	"testing"

	"github.com/stretchr/testify/require"
)

// Web pages of other names reach the proxy by WebSocket as little as over HTTP, even
// if their name leads to its address: their visitor's network is not theirs (HC-91).
func TestWebSocketPages(t *testing.T) {
	t.Parallel()
	p := startProxy(t, group0, settings{listen: "- coap+ws://127.0.0.1:0", proxy: "own_names: [gateway.example]"})
	for host, want := range map[string]int{"rebound.example": 421, "127.0.0.1": 101, "localhost": 101, "gateway.example": 101} {
		authority := fmt.Sprintf("%s:%d", host, p.addr().Port())
		for origin, status := range map[string]int{"": 101, "http://" + authority: want, "http://foreign.example": max(want, 403)} {
			w := dialWeb(t, p.addr())
			field := ""
			if origin != "" {
				field = "Origin: " + origin + "\r\n"
			}
			w.write("GET /.well-known/coap HTTP/1.1\r\nHost: %s\r\n%sConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n"+
				"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: coap\r\n\r\n", authority, field)
			got, err := http.ReadResponse(w.r, nil)
			require.NoError(t, err)
			require.NoError(t, got.Body.Close())
			require.Equal(t, status, got.StatusCode, "host %q, origin %q", host, origin)
		}
	}
}
