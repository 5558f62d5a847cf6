package oscore

import (
	"encoding/hex"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// RFC 8613 appendix C.4 and C.7, as they are printed there.
func TestRFC8613(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.json")
	require.NoError(t, os.WriteFile(file, []byte(`{"algorithm":"AES-CCM-16-64-128","master_secret":"0102030405060708090a0b0c0d0e0f10",
		"master_salt":"9e7ca92223786340","sender_id":"","recipient_id":"01"}`), 0o600))
	c, err := Read(file)
	require.NoError(t, err)
	c.Sequence = 20
	m, r := c.Protect(&coap.Message{Type: coap.CON, Code: coap.GET, Options: []coap.Option{coap.Opt(coap.URIHost, "localhost"), coap.Opt(coap.URIPath, "tv1")}}, coap.URIHost)
	require.Equal(t, "612f1092f1776f1c1668b3825e", hex.EncodeToString(m.Payload))
	o, _ := m.Option(Option)
	require.Equal(t, "0914", hex.EncodeToString(o.Value))

	response, _ := hex.DecodeString("dbaad1e9a7e7b2a813d3c31524378303cdafae119106")
	got, _, err := c.Open(r, &coap.Message{Options: []coap.Option{{Number: Option}}, Payload: response})
	require.NoError(t, err)
	require.Equal(t, coap.CodeOf(2, 5), got.Code)
	require.Equal(t, "Hello World!", string(got.Payload))
}
