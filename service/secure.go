package service

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"sync"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"go.uber.org/zap"

	"coapproxy/config"
	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/wire"
)

// dtlsCredentials are those towards clients, as of now.
func (p *Proxy) dtlsCredentials() endpoint.DTLSCredentials {
	s := p.secrets.Load()
	out := endpoint.DTLSCredentials{Certificates: s.Certificates, Authorities: s.ClientAuthorities}
	if s.PSK != nil {
		out.Key = func(identity string) ([]byte, bool) { k, ok := s.PSK[identity]; return k, ok }
	}
	return out
}

// serverTLS is the TLS configuration towards clients, as of now. A client need
// not show a certificate; one that does not is known by its address alone.
func (p *Proxy) serverTLS() *tls.Config {
	s := p.secrets.Load()
	out := &tls.Config{Certificates: s.Certificates, MinVersion: tls.VersionTLS13}
	if s.ClientAuthorities != nil {
		out.ClientCAs, out.ClientAuth = s.ClientAuthorities, tls.VerifyClientCertIfGiven
	}
	return out
}

// secureServer is the TLS side of a listener, nil for one without.
func (p *Proxy) secureServer(scheme string) *endpoint.SecureServer {
	if !wire.SecureScheme(scheme) {
		return nil
	}
	return endpoint.NewSecureServer(p.serverTLS)
}

// replaced tells which proofs that counted with the credentials before do not
// with those of now: a pre-shared key that is another one, and a certificate that no
// authority vouches for any more.
func replaced(before, now *config.Loaded) func(*exchange.Security) bool {
	return func(proven *exchange.Security) bool {
		if proven.PSK {
			return !bytes.Equal(before.PSK[proven.PSKIdentity], now.PSK[proven.PSKIdentity])
		}
		return !before.ClientAuthorities.Equal(now.ClientAuthorities) && !proven.Certificate.Accepted(now.ClientAuthorities)
	}
}

// certificates judges those of HTTP clients, whose connections outlive the authorities
// that vouched for them when they were made. Safe for concurrent use.
type certificates struct {
	authorities *x509.CertPool // nil: none

	mu     sync.Mutex
	judged *simplelru.LRU[*x509.Certificate, *exchange.Security] // nil: not accepted
}

// judgedCertificates bounds those whose judgement is remembered.
const judgedCertificates = 1024

func newCertificates(authorities *x509.CertPool) (*certificates, error) {
	judged, err := simplelru.NewLRU[*x509.Certificate, *exchange.Security](judgedCertificates, nil)
	return &certificates{authorities: authorities, judged: judged}, err
}

// proof is what a client has proven by the certificates that it showed, nil for
// nothing.
func (c *certificates) proof(shown []*x509.Certificate) *exchange.Security {
	c.mu.Lock()
	defer c.mu.Unlock()
	proven, ok := c.judged.Get(shown[0])
	if !ok {
		if proven = exchange.CertificateSecurity(shown[0], shown[1:]...); !proven.Certificate.Accepted(c.authorities) {
			proven = nil
		}
		c.judged.Add(shown[0], proven)
	}
	return proven
}

// withoutKey says which clients nobody can be, because no key has their identity.
func withoutKey(c *config.Config, s *config.Loaded, log *zap.Logger) {
	for i := range c.Clients {
		if cl := &c.Clients[i]; cl.PSK != "" && s.PSK[cl.PSK] == nil {
			log.Warn("there is no key for this client", zap.String("client", cl.Name), zap.String("identity", cl.PSK))
		}
	}
}
