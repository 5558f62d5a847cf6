package endpoint

import (
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"net/netip"

	"github.com/pion/dtls/v3"
	"github.com/pion/logging"

	"coapproxy/exchange"
)

// DTLSCredentials are what sessions are secured with: pre-shared keys,
// certificates, or both.
type DTLSCredentials struct {
	// Certificates are the own ones.
	Certificates []tls.Certificate
	// Authorities are those whose certificates peers may have. A server without
	// them asks no client for a certificate; a client without them accepts no
	// server with one.
	Authorities *x509.CertPool
	// RequireCertificate refuses clients that use a certificate suite without a
	// certificate of their own; without it they remain unidentified (GP-23).
	RequireCertificate bool
	// Key is, for a server, the key of a client's PSK identity. It is called
	// by many goroutines.
	Key func(identity string) (key []byte, ok bool)
	// Hint is the PSK identity hint that a server gives (RFC 4279 §5.2).
	Hint string
	// KeyFor is, for a client, the identity and key to use with a server.
	KeyFor func(server netip.AddrPort, name string) (identity string, key []byte, ok bool)
}

// dtlsSuites are the cipher suites in use: those that RFC 7252 §9.1.3 asks for,
// and further ones with authenticated encryption.
func dtlsSuites(certificates, psk bool) []dtls.CipherSuiteID {
	var s []dtls.CipherSuiteID
	if certificates {
		s = append(s, dtls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, dtls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256,
			dtls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM, dtls.TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8,
			dtls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, dtls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384)
	}
	if psk {
		s = append(s, dtls.TLS_PSK_WITH_AES_128_GCM_SHA256, dtls.TLS_PSK_WITH_CHACHA20_POLY1305_SHA256,
			dtls.TLS_PSK_WITH_AES_128_CCM, dtls.TLS_PSK_WITH_AES_128_CCM_8, dtls.TLS_PSK_WITH_AES_256_CCM_8)
	}
	return s
}

func (d *DTLSConn) serverOptions(s *dtlsSession) []dtls.ServerOption {
	c := &s.credentials
	options := []dtls.ServerOption{
		dtls.WithLoggerFactory(silentLog()),
		dtls.WithConnectionIDGenerator(func() []byte { return d.newConnectionID(s) }),
		dtls.WithCipherSuites(dtlsSuites(len(c.Certificates) > 0, c.Key != nil)...),
	}
	if len(c.Certificates) > 0 {
		options = append(options, dtls.WithCertificates(c.Certificates...))
	}
	if c.Authorities != nil {
		auth := dtls.VerifyClientCertIfGiven
		if c.RequireCertificate {
			auth = dtls.RequireAndVerifyClientCert
		}
		options = append(options, dtls.WithClientCAs(c.Authorities), dtls.WithClientAuth(auth))
	}
	if c.Key != nil {
		options = append(options, dtls.WithPSK(func(identity []byte) ([]byte, error) {
			key, ok := c.Key(string(identity))
			s.claimed.Store(&claim{identity: string(identity[:min(len(identity), 64)]), known: ok})
			if !ok {
				// The handshake fails as it does with a wrong key, so that nobody
				// learns which identities there are (RFC 4279 §2).
				d.Stats.UnknownIdentities.Add(1)
				key = make([]byte, 16)
				_, _ = rand.Read(key) // never fails
			}
			return key, nil
		}))
		if c.Hint != "" {
			options = append(options, dtls.WithPSKIdentityHint([]byte(c.Hint)))
		}
	}
	return options
}

var errNoCredentials = errors.New("no credentials for this server")

func (d *DTLSConn) clientOptions(s *dtlsSession) ([]dtls.ClientOption, error) {
	c := &s.credentials
	var identity string
	var key []byte
	psk := false
	if c.KeyFor != nil {
		identity, key, psk = c.KeyFor(s.addr, s.name)
	}
	if !psk && c.Authorities == nil {
		return nil, errNoCredentials
	}
	options := []dtls.ClientOption{
		dtls.WithLoggerFactory(silentLog()),
		// We can be reached under one address, so no Connection ID is asked for;
		// one that the server wants is sent.
		dtls.WithConnectionIDGenerator(dtls.OnlySendCIDGenerator()),
		dtls.WithCipherSuites(dtlsSuites(!psk, psk)...),
	}
	if psk {
		s.identity = identity
		return append(options, dtls.WithPSK(func([]byte) ([]byte, error) { return key, nil }),
			dtls.WithPSKIdentityHint([]byte(identity))), nil
	}
	name := s.name
	if name == "" {
		name = s.addr.Addr().WithZone("").String()
	}
	options = append(options, dtls.WithRootCAs(c.Authorities), dtls.WithServerName(name))
	if len(c.Certificates) > 0 {
		options = append(options, dtls.WithCertificates(c.Certificates...))
	}
	return options, nil
}

// judge says what the peer has proven.
func (s *dtlsSession) judge(state *dtls.State) (*exchange.Security, *x509.Certificate) {
	if len(state.PeerCertificates) > 0 && s.credentials.Authorities != nil {
		var chain []*x509.Certificate
		for _, der := range state.PeerCertificates {
			c, err := x509.ParseCertificate(der)
			if err != nil {
				break // the handshake has parsed what it needed
			}
			chain = append(chain, c)
		}
		if len(chain) > 0 {
			return exchange.CertificateSecurity(chain[0], chain[1:]...), chain[0]
		}
	}
	if isPSK(state.CipherSuiteID) {
		return &exchange.Security{PSK: true, PSKIdentity: string(state.IdentityHint)}, nil
	}
	return nil, nil
}

func isPSK(id dtls.CipherSuiteID) bool {
	for _, s := range dtlsSuites(false, true) {
		if s == id {
			return true
		}
	}
	return false
}

// silentLog keeps the DTLS library from writing to standard error: what strangers
// do is counted.
func silentLog() logging.LoggerFactory {
	return &logging.DefaultLoggerFactory{Writer: io.Discard, DefaultLogLevel: logging.LogLevelDisabled}
}
