package exchange

import (
	"crypto/sha256"
	"crypto/x509"
	"net/netip"
)

// Security is what the other side of a connection or session has proven about
// itself in its handshake: that it holds a pre-shared key, or the private key of
// a certificate of a trusted authority. It is immutable and lives as long as the
// session; the access layer maps it to an Identity (GP-23). A nil *Security
// means that nothing was proven, by encryption without client authentication
// too.
type Security struct {
	// PSK is true for a pre-shared key, whose identity is PSKIdentity: bytes of
	// the peer's choice that the key was found by, not necessarily text.
	PSK         bool
	PSKIdentity string
	// OSCORE is the name of the Security Context that a request was protected
	// with (OH-122); empty for none.
	OSCORE string
	// Certificate is the verified certificate, nil for a pre-shared key.
	Certificate *Certificate
}

// Certificate holds what a certificate says about its subject.
type Certificate struct {
	// Subject is the distinguished name, for logs: authorities do not vouch for
	// its form.
	Subject string
	// DNSNames, URIs, Emails and Addresses are the subject alternative names.
	DNSNames, URIs, Emails []string
	Addresses              []netip.Addr
	// SubjectKeyID is the extension of that name, empty when missing.
	SubjectKeyID string
	// KeyFingerprint is the SHA-256 of the SubjectPublicKeyInfo, which stays the
	// same when a certificate is renewed with its key.
	KeyFingerprint [sha256.Size]byte
	// chain is the certificate as it was shown, with those of the authorities
	// between.
	chain []*x509.Certificate
}

// Accepted reports whether authorities, nil for none, vouch for the certificate
// today.
func (c *Certificate) Accepted(authorities *x509.CertPool) bool {
	if authorities == nil || len(c.chain) == 0 {
		return false
	}
	between := x509.NewCertPool()
	for _, other := range c.chain[1:] {
		between.AddCert(other)
	}
	_, err := c.chain[0].Verify(x509.VerifyOptions{Roots: authorities, Intermediates: between, KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageAny}})
	return err == nil
}

// CertificateSecurity returns the Security of a peer that has proven to hold the
// verified certificate c; between are those of authorities that it showed with it.
func CertificateSecurity(c *x509.Certificate, between ...*x509.Certificate) *Security {
	out := &Certificate{
		chain:   append([]*x509.Certificate{c}, between...),
		Subject: c.Subject.String(), DNSNames: c.DNSNames, Emails: c.EmailAddresses,
		SubjectKeyID: string(c.SubjectKeyId), KeyFingerprint: sha256.Sum256(c.RawSubjectPublicKeyInfo),
	}
	for _, u := range c.URIs {
		out.URIs = append(out.URIs, u.String())
	}
	for _, ip := range c.IPAddresses {
		if a, ok := netip.AddrFromSlice(ip); ok {
			out.Addresses = append(out.Addresses, a.Unmap())
		}
	}
	return &Security{Certificate: out}
}
