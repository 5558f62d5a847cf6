package httpbridge

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/netip"

	"coapproxy/exchange"
)

// Authenticator tells who is behind an HTTP request. It may take its time: it is
// called on the goroutine of the request.
type Authenticator interface {
	// Authenticate returns the client entry and what proved it; nil and
	// ByNothing for somebody unknown. The error is ErrCredentials,
	// ErrPlainCredentials or ErrAuthenticationBusy, perhaps wrapped.
	Authenticate(Proof) (*exchange.Identity, ProvenBy, error)
	// Challenges are the values of WWW-Authenticate that tell a client how it
	// can prove who it is; none if credentials are not in use.
	Challenges() []string
}

// Proof is what a request brings to prove who sent it.
type Proof struct {
	// Peer is the transport address of the client.
	Peer netip.AddrPort
	// TLS is the state of the connection, nil without TLS.
	TLS *tls.ConnectionState
	// Authorization is the field of that name, or Proxy-Authorization in the
	// forward-proxy form.
	Authorization string
}

// ProvenBy is what identified a client.
type ProvenBy uint8

// A network alone proves nothing (GP-24).
const (
	ByNothing ProvenBy = iota
	ByNetwork
	ByCertificate
	ByCredentials
)

// The reasons to turn credentials down.
var (
	ErrCredentials        = errors.New("wrong credentials")
	ErrPlainCredentials   = errors.New("credentials sent without TLS")
	ErrAuthenticationBusy = errors.New("too many passwords are being checked")
)

// Authentication is the Authenticator made of the proxy's client entries. The
// functions may be nil; each returns nil for somebody unknown.
type Authentication struct {
	// Network finds the entry of a client known by its address alone.
	Network func(netip.AddrPort) *exchange.Identity
	// Certificate finds the entry for a verified client certificate.
	Certificate func(*x509.Certificate) *exchange.Identity
	// Client finds an entry by its name; the credentials file names them.
	Client      func(name string) *exchange.Identity
	Credentials *Credentials // nil: none
	// PlainCredentials takes credentials without TLS: everybody on the way can
	// read them (HC-100).
	PlainCredentials bool
}

var _ Authenticator = (*Authentication)(nil)

// Authenticate implements Authenticator. What a request brings must be right:
// wrong credentials do not fall back to a certificate, nor an unknown
// certificate to the network (HC-100).
func (a *Authentication) Authenticate(p Proof) (*exchange.Identity, ProvenBy, error) {
	if p.Authorization != "" && a.Credentials != nil {
		if p.TLS == nil && !a.PlainCredentials {
			return nil, ByNothing, ErrPlainCredentials
		}
		name, err := a.Credentials.check(p.Authorization)
		if err != nil {
			return nil, ByNothing, err
		}
		if a.Client != nil {
			if client := a.Client(name); client != nil {
				return client, ByCredentials, nil
			}
		}
		return nil, ByNothing, ErrCredentials
	}
	if p.TLS != nil && len(p.TLS.VerifiedChains) > 0 {
		if a.Certificate != nil {
			if client := a.Certificate(p.TLS.VerifiedChains[0][0]); client != nil {
				return client, ByCertificate, nil
			}
		}
		return nil, ByNothing, nil
	}
	if a.Network != nil {
		if client := a.Network(p.Peer); client != nil {
			return client, ByNetwork, nil
		}
	}
	return nil, ByNothing, nil
}

// Challenges implements Authenticator.
func (a *Authentication) Challenges() []string {
	if a.Credentials == nil {
		return nil
	}
	return a.Credentials.challenges()
}
