package test

import (
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// libcoap's clients over DTLS with a pre-shared key: who has the key is the
// client of that entry, wherever it comes from (GP-23, GP-110); who has not gets
// no session, and nobody else notices.
func TestDTLSWithLibcoap(t *testing.T) {
	t.Parallel()
	const key = "0123456789abcdef"
	origin := single(t, content)
	file := filepath.Join(t.TempDir(), "keys.yaml")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, "identity: gw\nkey: %q\n", hex.EncodeToString([]byte(key))), 0o600))
	p := startProxy(t, group0, settings{
		listen: "- coaps://127.0.0.1:0\n- coap://127.0.0.1:0",
		top:    "credentials: {psk: " + file + "}",
		clients: "- name: gateway\n  psk: gw\n  forward: [\"coap://127.0.0.0/8:*\"]\n" +
			"- name: others\n  networks: [127.0.0.0/8]",
	})
	via := fmt.Sprintf("coaps://%v", p.addrs[0])
	uri := fmt.Sprintf("coap://%v/x", origin.addr())
	for _, program := range []string{"coap-client-gnutls", "coap-client-openssl"} {
		c := start(t, here, program, program, "-B", "10", "-k", key, "-u", "gw", "-P", via, uri)
		require.Zero(t, c.wait())
		require.Contains(t, c.text(), "server/x", program)
	}
	require.Len(t, origin.requests(), 2)
	for _, wrong := range [][]string{{"-k", "another key, wrong", "-u", "gw"}, {"-k", key, "-u", "nobody"}} {
		c := start(t, here, "coap-client-gnutls", append(append([]string{"coap-client-gnutls", "-B", "2"}, wrong...), "-P", via, uri)...)
		c.wait()
		require.NotContains(t, c.text(), "server/x")
	}
	require.Len(t, origin.requests(), 2)

	// The address alone is the other entry, which may not.
	plain := start(t, here, "coap-client", "coap-client-notls", "-B", "5", "-P", fmt.Sprintf("coap://%v", p.addrs[1]), uri)
	plain.wait()
	require.Contains(t, plain.text(), "4.01")
	require.Len(t, origin.requests(), 2)
}
