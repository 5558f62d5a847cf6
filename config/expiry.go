package config

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"time"
)

// expirySoon is how long before its end a certificate of the proxy's own is worth a
// warning.
const expirySoon = 14 * 24 * time.Hour

// Expiring says which of the proxy's own certificates have ended at now, or will
// within two weeks.
func (l *Loaded) Expiring(now time.Time) []string {
	var out []string
	for _, e := range l.expiries() {
		at := e.at.UTC().Format(time.RFC3339)
		switch left := e.at.Sub(now); {
		case left <= 0:
			out = append(out, fmt.Sprintf("%s has expired at %s: nobody trusts it any more", e.key, at))
		case left < expirySoon:
			out = append(out, fmt.Sprintf("%s expires at %s", e.key, at))
		}
	}
	return out
}

// FirstExpiry is when the first of the proxy's own certificates ends; zero without
// any.
func (l *Loaded) FirstExpiry() (first time.Time) {
	for _, e := range l.expiries() {
		if first.IsZero() || e.at.Before(first) {
			first = e.at
		}
	}
	return first
}

// expiry is when a certificate of the proxy's own ends.
type expiry struct {
	key string // in the configuration, e.g. credentials.certificate
	at  time.Time
}

// expiries lists the proxy's own certificates; of a chain the one counts that ends
// first.
func (l *Loaded) expiries() []expiry {
	var out []expiry
	add := func(key string, all []tls.Certificate) {
		for _, c := range all {
			var first time.Time
			for _, der := range c.Certificate {
				if parsed, err := x509.ParseCertificate(der); err == nil && (first.IsZero() || parsed.NotAfter.Before(first)) {
					first = parsed.NotAfter
				}
			}
			if !first.IsZero() {
				out = append(out, expiry{key, first})
			}
		}
	}
	add("credentials.certificate", l.Certificates)
	add("credentials.servers.certificate", l.ServerCertificates)
	return out
}
