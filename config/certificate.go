package config

import (
	"encoding/hex"
	"net/netip"
	"strings"
)

// CertificateName is what the certificate of a client has to say: one of its
// subject alternative names, its subject key identifier, or its key.
type CertificateName struct {
	// Kind is dns, uri, email, ip, ski or key.
	Kind string
	// Value is what is compared: for dns in lower case, for ip in canonical form,
	// for ski the bytes, for key the 32 bytes of the SHA-256 of the
	// SubjectPublicKeyInfo.
	Value string
}

// CertificateNames lists names, of which a certificate has to have one.
type CertificateNames []CertificateName

// String returns the name as it is written in the file.
func (n CertificateName) String() string {
	if n.Kind == "ski" || n.Kind == "key" {
		return n.Kind + ":" + hex.EncodeToString([]byte(n.Value))
	}
	return n.Kind + ":" + n.Value
}

// parseCertificateName reads KIND:VALUE.
func parseCertificateName(s string) (CertificateName, *fault) {
	const hint = "write e.g. uri:urn:dev:mac:0024befffe804ff1, dns:meter.example, email:a@example.com, ip:192.0.2.7, ski:HEX or key:SHA-256-IN-HEX"
	kind, value, ok := strings.Cut(s, ":")
	n := CertificateName{Kind: strings.ToLower(kind), Value: value}
	if !ok || value == "" {
		return n, faultf(hint, "%s is no name in a certificate", show(s))
	}
	switch n.Kind {
	case "uri", "email":
		return n, nil
	case "dns":
		n.Value = strings.ToLower(value)
		if !isHostName(strings.TrimPrefix(n.Value, "*.")) {
			return n, faultf(hint, "%s is not a host name", show(value))
		}
		return n, nil
	case "ip":
		addr, err := netip.ParseAddr(value)
		if err != nil || addr.Zone() != "" {
			return n, faultf(hint, "%s is not an IP address", show(value))
		}
		n.Value = addr.Unmap().String()
		return n, nil
	case "ski", "key":
		b, err := hex.DecodeString(strings.ReplaceAll(value, ":", ""))
		if err != nil || n.Kind == "key" && len(b) != 32 {
			return n, faultf(hint, "%s is not %s in hexadecimal", show(value), map[string]string{"ski": "a key identifier", "key": "a SHA-256"}[n.Kind])
		}
		n.Value = string(b)
		return n, nil
	default:
		return n, faultf(hint, "%s is not a kind of name", show(kind))
	}
}

// clientCertificate checks the names of the client at key, and that no client
// so far, in taken, has one of them.
func (v *validator) clientCertificate(key string, c *Client, taken map[CertificateName]string) {
	if len(c.Certificate) == 0 {
		return
	}
	if v.c.Credentials.ClientAuthorities == "" {
		v.add(key, "there is nobody to certify clients", "write credentials: {client_authorities: FILE}")
	}
	for _, n := range c.Certificate {
		if first, ok := taken[n]; ok {
			v.add(key, show(n.String())+" is "+v.where(first)+" too", "remove one of them")
			continue
		}
		taken[n] = key
	}
}
