package config_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/config"
)

// pemPair is a self-signed certificate and its key.
func pemPair(t *testing.T) (cert, key string) {
	t.Helper()
	secret, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "x"}, NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &secret.PublicKey, secret)
	require.NoError(t, err)
	raw, err := x509.MarshalPKCS8PrivateKey(secret)
	require.NoError(t, err)
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})), string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: raw}))
}

const hexKey = "000102030405060708090a0b0c0d0e0f"

// Credentials come from files beside the configuration or from the environment.
func TestLoadCredentials(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) {
		require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), mode))
		require.NoError(t, os.Chmod(filepath.Join(dir, name), mode))
	}
	cert, key := pemPair(t)
	other, _ := pemPair(t)
	write("cert.pem", cert, 0o644)
	write("key.pem", key, 0o600)
	write("open.pem", key, 0o644)
	write("other.pem", other, 0o644)
	write("empty.pem", "", 0o644)
	write("servers.yaml", "host: a.example\nidentity: me\nkey: "+hexKey+"\n", 0o600)
	t.Setenv("TEST_KEY", key)
	t.Setenv("TEST_PSK", "identity: a\nkey: "+hexKey+"\n")
	for name, tt := range map[string]struct{ text, err string }{
		"files":              {"certificate: cert.pem\n  key: key.pem\n  client_authorities: cert.pem\n  servers: {authorities: cert.pem, certificate: cert.pem, key: key.pem, psk: servers.yaml}", ""},
		"environment":        {"certificate: cert.pem\n  key: env:TEST_KEY\n  psk: env:TEST_PSK", ""},
		"not in environment": {"certificate: cert.pem\n  key: env:TEST_NONE", "credentials.certificate: key: the environment has no TEST_NONE"},
		"open key":           {"certificate: cert.pem\n  key: open.pem", "credentials.certificate: key: " + filepath.Join(dir, "open.pem") + " can be read by others than its owner (mode 0644); run chmod 600 on it"},
		"another's key":      {"certificate: other.pem\n  key: key.pem", "private key does not match public key"},
		"no certificate":     {"certificate: cert.pem\n  key: key.pem\n  client_authorities: empty.pem", "credentials.client_authorities: " + filepath.Join(dir, "empty.pem") + " has no certificate in PEM"},
		"no file":            {"servers: {authorities: none.pem}", "credentials.servers.authorities: open " + filepath.Join(dir, "none.pem")},
		"no host":            {"servers: {psk: env:TEST_PSK}", "credentials.servers.psk: env:TEST_PSK: a has no host"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(dir, "config.yaml")
			write("config.yaml", "credentials:\n  "+tt.text+"\n", 0o600)
			c, err := config.Load(path)
			require.NoError(t, err)
			l, err := c.Credentials.Load()
			if tt.err != "" {
				require.ErrorContains(t, err, tt.err)
				require.NotContains(t, err.Error(), "PRIVATE")
				return
			}
			require.NoError(t, err)
			require.Len(t, l.Certificates, 1)
			require.NotNil(t, l.ServerAuthorities)
			require.Equal(t, name == "files", l.ClientAuthorities != nil)
			require.Equal(t, name == "files", len(l.ServerCertificates) == 1)
			require.Equal(t, name == "environment", len(l.PSK) == 1)
		})
	}
}

// The key for a server: that of its name, of the smallest network, of all.
func TestServerPSK(t *testing.T) {
	entry := func(host, identity string) string {
		return "host: \"" + host + "\"\nidentity: " + identity + "\nkey: " + hexKey + "\n---\n"
	}
	file := filepath.Join(t.TempDir(), "psk.yaml")
	write := func(text string) {
		require.NoError(t, os.WriteFile(file, []byte(strings.TrimSuffix(text, "---\n")), 0o600))
	}
	write(entry("*", "all") + entry("192.0.2.0/24", "net") + entry("192.0.2.7", "one") + entry("Boiler.example", "name") + entry("[2001:db8::7]", "six"))
	keys, err := config.LoadServerPSK(config.Place(file))
	require.NoError(t, err)
	for _, tt := range []struct{ addr, name, want string }{
		{"198.51.100.1:5684", "", "all"}, {"192.0.2.1:5684", "", "net"}, {"192.0.2.7:1", "other.example", "one"},
		{"192.0.2.7:5684", "boiler.example", "name"}, {"[2001:db8::7]:5684", "", "six"},
	} {
		identity, key, ok := keys.For(netip.MustParseAddrPort(tt.addr), tt.name)
		require.True(t, ok)
		require.Equal(t, tt.want, identity, tt.addr)
		require.Len(t, key, 16)
	}
	_, _, ok := config.ServerKeys(nil).For(netip.MustParseAddrPort("192.0.2.1:1"), "")
	require.False(t, ok)
	for want, text := range map[string]string{
		"192.0.2.7 has two keys":                      entry("192.0.2.7", "a") + entry("192.0.2.7", "b"),
		"\"a b\" is no name, address or network":      entry("a b", "a"),
		"192.0.2.7/24 is no name, address or network": entry("192.0.2.7/24", "a"),
	} {
		write(text)
		_, err := config.LoadServerPSK(config.Place(file))
		require.ErrorContains(t, err, want)
	}
}

// The names of a client's certificate.
func TestCertificateNames(t *testing.T) {
	const start = "credentials: {certificate: c, key: k, client_authorities: ca}\nclients:\n- name: a\n  certificate: "
	c, err := parse(start + "uri:urn:dev:a\n- name: b\n  certificate: [\"dns:Meter.Example\", \"ip:2001:DB8::7\", \"ski:01:aB\", \"email:a@b\"]\n")
	require.NoError(t, err)
	require.Equal(t, config.CertificateNames{{"uri", "urn:dev:a"}}, c.Clients[0].Certificate)
	require.Equal(t, config.CertificateNames{{"dns", "meter.example"}, {"ip", "2001:db8::7"}, {"ski", "\x01\xab"}, {"email", "a@b"}}, c.Clients[1].Certificate)
	require.Equal(t, "ski:01ab", c.Clients[1].Certificate[2].String())
	for want, text := range map[string]string{
		"meter is no name in a certificate":                               start + "meter\n",
		"cn is not a kind of name":                                        start + "cn:meter\n",
		"00 is not a SHA-256 in hexadecimal":                              start + "key:00\n",
		"fe80::1%eth0 is not an IP address":                               start + "\"ip:fe80::1%eth0\"\n",
		"clients[1].certificate: dns:a is clients[0].certificate in line": start + "dns:a\n- name: b\n  certificate: DNS:A\n",
		"clients[0].certificate: there is nobody to certify clients":      "clients:\n- name: a\n  certificate: dns:a\n",
	} {
		_, err := parse(text)
		require.ErrorContains(t, err, want)
	}
}
