package httpbridge

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/stretchr/testify/require"
)

// authority makes certificates.
type authority struct {
	pool *x509.CertPool
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t testing.TB) *authority {
	a := &authority{pool: x509.NewCertPool()}
	var err error
	a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"}, NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	require.NoError(t, err)
	a.cert, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	a.pool.AddCert(a.cert)
	return a
}

func (a *authority) issue(t testing.TB, name string) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour),
		DNSNames: []string{"localhost"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	require.NoError(t, err)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// server makes a Listener serve https with a certificate of a.
func (a *authority) server(t testing.TB) func(*ListenConfig) {
	cert := a.issue(t, "server")
	return func(c *ListenConfig) {
		c.TLS = &TLSConfig{Config: func() *tls.Config {
			return &tls.Config{Certificates: []tls.Certificate{cert}, ClientAuth: tls.VerifyClientCertIfGiven, ClientCAs: a.pool}
		}}
	}
}

func (a *authority) client(certificates ...tls.Certificate) *tls.Config {
	return &tls.Config{RootCAs: a.pool, Certificates: certificates}
}

// client1, client2 and client3 speak one version of HTTP each.
func client1(t testing.TB, c *tls.Config) *http.Client {
	transport := &http.Transport{TLSClientConfig: c, DisableCompression: true}
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

func client2(t testing.TB, c *tls.Config) *http.Client {
	transport := &http.Transport{TLSClientConfig: c, DisableCompression: true, Protocols: new(http.Protocols)}
	transport.Protocols.SetHTTP2(true)
	t.Cleanup(transport.CloseIdleConnections)
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

func client3(t testing.TB, c *tls.Config) *http.Client {
	transport := &http3.Transport{TLSClientConfig: c, QUICConfig: &quic.Config{}, DisableCompression: true}
	t.Cleanup(func() { _ = transport.Close() })
	return &http.Client{Transport: transport, Timeout: 20 * time.Second}
}

// allVersions runs a test with a client for each version of HTTP.
func allVersions(t *testing.T, a *authority, test func(t *testing.T, c *http.Client, major int)) {
	for major, client := range map[int]func(testing.TB, *tls.Config) *http.Client{1: client1, 2: client2, 3: client3} {
		t.Run("HTTP/"+string(rune('0'+major)), func(t *testing.T) { test(t, client(t, a.client()), major) })
	}
}
