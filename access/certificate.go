package access

import (
	"strings"

	"coapproxy/exchange"
)

// CertificateName is a name that a certificate may have: a subject alternative
// name, the subject key identifier, or the SHA-256 of its SubjectPublicKeyInfo.
// DNS names are in lower case, addresses in canonical form, the last two bytes.
type CertificateName struct{ Kind, Value string }

// byCertificate returns the identity of the client with the certificate, nil for
// none. What says most about the one key comes first, so that a client with a
// certificate of several names is always the same.
func (p *Policy) byCertificate(c *exchange.Certificate) *exchange.Identity {
	if len(p.certificates) == 0 {
		return nil
	}
	look := func(kind, value string) *exchange.Identity { return p.certificates[CertificateName{kind, value}] }
	if id := look("key", string(c.KeyFingerprint[:])); id != nil {
		return id
	}
	if id := look("ski", c.SubjectKeyID); id != nil {
		return id
	}
	for _, name := range c.URIs {
		if id := look("uri", name); id != nil {
			return id
		}
	}
	for _, name := range c.DNSNames {
		if id := look("dns", strings.ToLower(name)); id != nil {
			return id
		}
	}
	for _, name := range c.Emails {
		if id := look("email", name); id != nil {
			return id
		}
	}
	for _, addr := range c.Addresses {
		if id := look("ip", addr.String()); id != nil {
			return id
		}
	}
	return nil
}
