package endpoint

import (
	"context"
	"crypto/tls"
	"net"

	"coapproxy/exchange"
)

// alpnCoAP is the ALPN protocol of CoAP over TLS (RFC 8323 §11.7).
const alpnCoAP = "coap"

// SecureServer is the TLS side of a listener.
type SecureServer struct{ base func() *tls.Config }

// NewSecureServer returns the TLS side of listeners that use the certificates
// of base, which is asked for each handshake, and its ClientAuth and ClientCAs
// for those of clients. TLS 1.3 is the least; sessions are not resumed, so that
// every connection proves its identity anew (GP-23).
func NewSecureServer(base func() *tls.Config) *SecureServer { return &SecureServer{base} }

func secureConfig(base *tls.Config) *tls.Config {
	c := base.Clone()
	c.MinVersion = max(c.MinVersion, tls.VersionTLS13)
	c.SessionTicketsDisabled = true
	return c
}

// forProtocol returns the configuration for one application protocol. A client
// that names none is served: RFC 8323 §8.2 asks for a name only on ports other
// than the default one.
func (s *SecureServer) forProtocol(name string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			c := secureConfig(s.base())
			c.NextProtos = []string{name}
			return c, nil
		},
	}
}

// tlsSecurity is what a peer has proven in its handshake. A certificate that
// was not verified proves nothing.
func tlsSecurity(state *tls.ConnectionState) *exchange.Security {
	if len(state.VerifiedChains) == 0 {
		return nil
	}
	return exchange.CertificateSecurity(state.PeerCertificates[0], state.PeerCertificates[1:]...)
}

// secureClient runs the client's handshake over raw, which it closes on an
// error. name is the host the server must have a certificate for.
func secureClient(ctx context.Context, raw net.Conn, base *tls.Config, name, protocol string) (*tls.Conn, error) {
	c := secureConfig(base)
	c.ServerName, c.NextProtos = name, []string{protocol}
	conn := tls.Client(raw, c)
	if err := conn.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	return conn, nil
}
