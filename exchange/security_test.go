package exchange

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"math/big"
	"net"
	"net/netip"
	"net/url"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// GP-23
func TestCertificateSecurity(t *testing.T) {
	got := CertificateSecurity(&x509.Certificate{
		Subject:                 pkix.Name{CommonName: "sensor", Organization: []string{"plant"}},
		DNSNames:                []string{"sensor.example"},
		EmailAddresses:          []string{"keeper@example"},
		URIs:                    []*url.URL{{Scheme: "urn", Opaque: "dev:mac:0024befffe804ff1"}},
		IPAddresses:             []net.IP{net.ParseIP("192.0.2.1"), net.ParseIP("2001:db8::1")},
		SubjectKeyId:            []byte{1, 2},
		RawSubjectPublicKeyInfo: []byte("key"),
	})
	got.Certificate.chain = nil
	require.Equal(t, &Security{Certificate: &Certificate{
		Subject:        "CN=sensor,O=plant",
		DNSNames:       []string{"sensor.example"},
		Emails:         []string{"keeper@example"},
		URIs:           []string{"urn:dev:mac:0024befffe804ff1"},
		Addresses:      []netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")},
		SubjectKeyID:   "\x01\x02",
		KeyFingerprint: sha256.Sum256([]byte("key")),
	}}, got)
}

// A certificate counts as long as an authority vouches for it, directly or by one
// that the peer shows beside it, and has not expired.
func TestCertificateAccepted(t *testing.T) {
	type issued struct {
		*x509.Certificate
		key *ecdsa.PrivateKey
	}
	issue := func(by *issued, authority bool, until time.Time) *issued {
		key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
		require.NoError(t, err)
		template := &x509.Certificate{SerialNumber: big.NewInt(1), IsCA: authority, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign, NotAfter: until}
		if by == nil {
			by = &issued{template, key}
		}
		der, err := x509.CreateCertificate(rand.Reader, template, by.Certificate, &key.PublicKey, by.key)
		require.NoError(t, err)
		c, err := x509.ParseCertificate(der)
		require.NoError(t, err)
		return &issued{c, key}
	}
	pool := func(all ...*issued) *x509.CertPool {
		p := x509.NewCertPool()
		for _, c := range all {
			p.AddCert(c.Certificate)
		}
		return p
	}
	later := time.Now().Add(time.Hour)
	root, other := issue(nil, true, later), issue(nil, true, later)
	between := issue(root, true, later)
	direct, indirect, expired := issue(root, false, later), issue(between, false, later), issue(root, false, time.Now().Add(-time.Hour))
	accepted := func(authorities *x509.CertPool, shown ...*issued) bool {
		var rest []*x509.Certificate
		for _, c := range shown[1:] {
			rest = append(rest, c.Certificate)
		}
		return CertificateSecurity(shown[0].Certificate, rest...).Certificate.Accepted(authorities)
	}
	require.True(t, accepted(pool(other, root), direct))
	require.True(t, accepted(pool(root), indirect, between))
	require.False(t, accepted(pool(root), indirect))
	require.False(t, accepted(pool(other), direct))
	require.False(t, accepted(nil, direct))
	require.False(t, accepted(pool(root), expired))
	require.False(t, (&Certificate{}).Accepted(pool(root)))
}
