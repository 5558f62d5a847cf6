package test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"math/big"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// certAuthority is a certificate authority of a test, with its files.
type certAuthority struct {
	t    *testing.T
	dir  string
	key  *ecdsa.PrivateKey
	cert *x509.Certificate
	file string // its certificate, PEM
}

// pair is a certificate with its key: two files in PEM, and both together.
type pair struct{ cert, key, both string }

func newCertAuthority(t *testing.T, name string) *certAuthority {
	t.Helper()
	a := &certAuthority{t: t, dir: t.TempDir()}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign, NotBefore: time.Now().Add(-48 * time.Hour), NotAfter: time.Now().Add(48 * time.Hour)}
	var err error
	a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	der, err := x509.CreateCertificate(rand.Reader, template, template, &a.key.PublicKey, a.key)
	require.NoError(t, err)
	a.cert, err = x509.ParseCertificate(der)
	require.NoError(t, err)
	a.file = a.write(name+".pem", "CERTIFICATE", der)
	return a
}

func (a *certAuthority) write(name, kind string, der []byte) string {
	a.t.Helper()
	file := filepath.Join(a.dir, name)
	require.NoError(a.t, os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600))
	return file
}

// issue makes a certificate for client and server with the change applied.
func (a *certAuthority) issue(name string, change func(*x509.Certificate)) pair {
	a.t.Helper()
	serial, err := rand.Int(rand.Reader, big.NewInt(1<<60))
	require.NoError(a.t, err)
	template := &x509.Certificate{SerialNumber: serial, Subject: pkix.Name{CommonName: name}, KeyUsage: x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
		NotBefore:   time.Now().Add(-24 * time.Hour), NotAfter: time.Now().Add(24 * time.Hour)}
	if change != nil {
		change(template)
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	der, err := x509.CreateCertificate(rand.Reader, template, a.cert, &key.PublicKey, a.key)
	require.NoError(a.t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(a.t, err)
	p := pair{cert: a.write(name+".cert.pem", "CERTIFICATE", der), key: a.write(name+".key.pem", "PRIVATE KEY", secret)}
	c, err := os.ReadFile(p.cert)
	require.NoError(a.t, err)
	k, err := os.ReadFile(p.key)
	require.NoError(a.t, err)
	p.both = filepath.Join(a.dir, name+".both.pem")
	require.NoError(a.t, os.WriteFile(p.both, append(c, k...), 0o600))
	return p
}

// forServer are the names of a server on the loopback interface.
func forServer(c *x509.Certificate) {
	c.DNSNames, c.IPAddresses = []string{"localhost", "origin.example"}, []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}
}

// withURI is the name of a client.
func withURI(uri string) func(*x509.Certificate) {
	return func(c *x509.Certificate) {
		u, _ := url.Parse(uri)
		c.URIs = []*url.URL{u}
	}
}
