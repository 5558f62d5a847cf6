package exchange

import (
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"net"
	"net/netip"
	"net/url"
	"testing"

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
