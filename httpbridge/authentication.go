package httpbridge

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/netip"
	"time"

	"coapproxy/exchange"
)

// Authenticator tells who is behind an HTTP request. It may take its time: it is
// called on the goroutine of the request.
type Authenticator interface {
	// Authenticate returns who it is, without a Client for somebody unknown. The
	// error is ErrCredentials, ErrPlainCredentials or ErrAuthenticationBusy,
	// perhaps wrapped.
	Authenticate(Proof) (Who, error)
	// Challenges are the values of WWW-Authenticate that tell a client how it
	// can prove who it is; none if credentials are not in use.
	Challenges() []string
	// Begin opens a session for the client that was known by these credentials, and
	// returns its cookie and how long it lasts. ok is false when it has too many.
	Begin(credentials string) (cookie string, lifetime time.Duration, ok bool)
	// End closes the session of a cookie, if there is one.
	End(cookie string)
}

// Who is somebody whom an Authenticator knows.
type Who struct {
	Client *exchange.Identity
	By     ProvenBy
	// Credentials is the name in the credentials file, with ByCredentials.
	Credentials string
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
	// Cookie is that of a session, "" for none.
	Cookie string
}

// ProvenBy is what identified a client.
type ProvenBy uint8

// A network alone proves nothing (GP-24).
const (
	ByNothing ProvenBy = iota
	ByNetwork
	ByCertificate
	ByCredentials
	BySession
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
	// Certificate finds the entry for a client certificate that was verified when the
	// connection was made. It is the first of those that the client has shown.
	Certificate func(shown []*x509.Certificate) *exchange.Identity
	// Client finds an entry by its name; the credentials file names them.
	Client      func(name string) *exchange.Identity
	Credentials *Credentials // nil: none
	// Sessions are those of clients with credentials (HC-92); nil: none.
	Sessions *Sessions
	// PlainCredentials takes credentials without TLS: everybody on the way can
	// read them (HC-100).
	PlainCredentials bool
}

var _ Authenticator = (*Authentication)(nil)

// Authenticate implements Authenticator. What a request brings must be right:
// wrong credentials do not fall back to a certificate, nor an unknown
// certificate to the network (HC-100).
func (a *Authentication) Authenticate(p Proof) (Who, error) {
	plain := p.TLS == nil && !a.PlainCredentials
	switch {
	case p.Authorization != "" && a.Credentials != nil:
		if plain {
			return Who{}, ErrPlainCredentials
		}
		name, err := a.Credentials.check(p.Authorization)
		if err != nil {
			return Who{}, err
		}
		if client := a.named(name); client != nil {
			return Who{client, ByCredentials, name}, nil
		}
		return Who{}, ErrCredentials
	case p.Cookie != "" && a.Sessions != nil && !plain:
		if name, ok := a.Sessions.find(p.Cookie, time.Now()); ok {
			if client := a.named(name); client != nil {
				return Who{Client: client, By: BySession}, nil
			}
		}
	}
	if p.TLS != nil && len(p.TLS.VerifiedChains) > 0 {
		if a.Certificate != nil {
			if client := a.Certificate(p.TLS.PeerCertificates); client != nil {
				return Who{Client: client, By: ByCertificate}, nil
			}
		}
		return Who{}, nil
	}
	if a.Network != nil {
		if client := a.Network(p.Peer); client != nil {
			return Who{Client: client, By: ByNetwork}, nil
		}
	}
	return Who{}, nil
}

// named is the client entry for a name in the credentials file, as long as the
// file has it.
func (a *Authentication) named(name string) *exchange.Identity {
	if a.Client == nil || a.Credentials == nil || !a.Credentials.has(name) {
		return nil
	}
	return a.Client(name)
}

// Begin implements Authenticator.
func (a *Authentication) Begin(credentials string) (cookie string, lifetime time.Duration, ok bool) {
	if a.Sessions == nil {
		return "", 0, false
	}
	cookie, ok = a.Sessions.begin(credentials, time.Now())
	return cookie, a.Sessions.lifetime, ok
}

// End implements Authenticator.
func (a *Authentication) End(cookie string) {
	if a.Sessions != nil {
		a.Sessions.end(cookie)
	}
}

// Challenges implements Authenticator.
func (a *Authentication) Challenges() []string {
	if a.Credentials == nil {
		return nil
	}
	return a.Credentials.challenges()
}
