package config

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
)

// Credentials says where the secrets and certificates are; none of them stands
// in the configuration itself. [Credentials.Load] reads them.
type Credentials struct {
	// PSK has the pre-shared keys of clients; see [LoadPSK].
	PSK Place `yaml:"psk"`
	// Certificate and Key are what the proxy proves itself with to clients: PEM,
	// the certificate first and then those of the authorities between it and the
	// root.
	Certificate Place `yaml:"certificate"`
	Key         Place `yaml:"key"`
	// ClientAuthorities are those whose certificates clients may have, in PEM;
	// without them no client is asked for one.
	ClientAuthorities Place `yaml:"client_authorities"`
	// HTTP is the file with the tokens and passwords of HTTP clients, hashed
	// (HC-100).
	HTTP Place `yaml:"http"`
	// Servers is what the proxy uses as a client of servers.
	Servers ServerCredentials `yaml:"servers"`
}

// ServerCredentials are the proxy's as a client.
type ServerCredentials struct {
	// Authorities are those whose certificates servers may have, in PEM, or
	// [SystemAuthorities].
	Authorities Place `yaml:"authorities"`
	// Certificate and Key are what the proxy proves itself with to servers that
	// ask for it, in PEM.
	Certificate Place `yaml:"certificate"`
	Key         Place `yaml:"key"`
	// PSK has the pre-shared keys for servers; see [LoadServerPSK].
	PSK Place `yaml:"psk"`
}

// SystemAuthorities stands for the authorities that the operating system trusts.
const SystemAuthorities Place = "system"

// Place is where a secret or a certificate is: the path of a file, or "env:" and
// the name of an environment variable that holds the text of such a file.
type Place string

const inEnvironment = "env:"

// places returns every place with its key in the file.
func (c *Credentials) places() map[string]*Place {
	return map[string]*Place{
		"psk": &c.PSK, "certificate": &c.Certificate, "key": &c.Key, "client_authorities": &c.ClientAuthorities, "http": &c.HTTP,
		"servers.authorities": &c.Servers.Authorities, "servers.certificate": &c.Servers.Certificate,
		"servers.key": &c.Servers.Key, "servers.psk": &c.Servers.PSK,
	}
}

// resolve makes relative paths relative to dir.
func (c *Credentials) resolve(dir string) {
	for _, p := range c.places() {
		if *p == "" || *p == SystemAuthorities && p == &c.Servers.Authorities || strings.HasPrefix(string(*p), inEnvironment) || filepath.IsAbs(string(*p)) {
			continue
		}
		*p = Place(filepath.Join(dir, string(*p)))
	}
}

// read returns what is at the place, a secret only if nobody but the owner of
// the file can read it.
func (p Place) read(secret bool) ([]byte, error) {
	if name, ok := strings.CutPrefix(string(p), inEnvironment); ok {
		text, ok := os.LookupEnv(name)
		if !ok || text == "" {
			return nil, fmt.Errorf("the environment has no %s", show(name))
		}
		return []byte(text), nil
	}
	f, err := os.Open(string(p))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if mode := info.Mode().Perm(); secret && mode&0o077 != 0 {
		return nil, fmt.Errorf("%s can be read by others than its owner (mode %04o); run chmod 600 on it", p, mode)
	}
	return io.ReadAll(io.LimitReader(f, maxSize))
}

// Loaded are credentials that have been read.
type Loaded struct {
	// PSK are the keys of clients by identity.
	PSK map[string][]byte
	// Certificates is the own one towards clients, or empty.
	Certificates []tls.Certificate
	// ClientAuthorities is nil when clients are not asked for a certificate.
	ClientAuthorities *x509.CertPool
	// HTTP is the text of the file with tokens and passwords, nil if there is
	// none.
	HTTP []byte
	// ServerAuthorities are those of servers.
	ServerAuthorities *x509.CertPool
	// ServerCertificates is the own one towards servers, or empty.
	ServerCertificates []tls.Certificate
	ServerPSK          ServerKeys
}

// Load reads all credentials. The error names the keys of the file whose
// credentials are of no use; it never quotes a secret.
func (c *Credentials) Load() (*Loaded, error) {
	var l Loaded
	var errs []error
	load := func(key string, p Place, read func() error) {
		if p == "" {
			return
		}
		if err := read(); err != nil {
			errs = append(errs, fmt.Errorf("credentials.%s: %w", key, err))
		}
	}
	load("psk", c.PSK, func() (err error) { l.PSK, err = LoadPSK(c.PSK); return })
	load("certificate", c.Certificate, func() (err error) { l.Certificates, err = LoadCertificate(c.Certificate, c.Key); return })
	load("client_authorities", c.ClientAuthorities, func() (err error) { l.ClientAuthorities, err = LoadAuthorities(c.ClientAuthorities); return })
	load("http", c.HTTP, func() (err error) { l.HTTP, err = c.HTTP.read(true); return })
	s := &c.Servers
	load("servers.authorities", s.Authorities, func() (err error) { l.ServerAuthorities, err = LoadAuthorities(s.Authorities); return })
	load("servers.certificate", s.Certificate, func() (err error) { l.ServerCertificates, err = LoadCertificate(s.Certificate, s.Key); return })
	load("servers.psk", s.PSK, func() (err error) { l.ServerPSK, err = LoadServerPSK(s.PSK); return })
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return &l, nil
}

// LoadCertificate reads a certificate, followed by those of intermediate authorities,
// and its key, both in PEM.
func LoadCertificate(certificate, key Place) ([]tls.Certificate, error) {
	chain, err := certificate.read(false)
	if err != nil {
		return nil, err
	}
	secret, err := key.read(true)
	if err != nil {
		return nil, fmt.Errorf("key: %w", err)
	}
	pair, err := tls.X509KeyPair(chain, secret)
	if err != nil {
		return nil, fmt.Errorf("%s and %s: %w", certificate, key, err)
	}
	return []tls.Certificate{pair}, nil
}

// LoadAuthorities reads the certificates of authorities in PEM.
func LoadAuthorities(p Place) (*x509.CertPool, error) {
	if p == SystemAuthorities {
		pool, err := x509.SystemCertPool()
		if err != nil { // a system without any is no reason not to start
			return x509.NewCertPool(), nil
		}
		return pool, nil
	}
	text, err := p.read(false)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(text) {
		return nil, fmt.Errorf("%s has no certificate in PEM", p)
	}
	return pool, nil
}

// credentials checks that certificates and keys come in pairs.
func (v *validator) credentials() {
	c := &v.c.Credentials
	pair := func(key string, certificate, secret Place) {
		switch {
		case certificate != "" && secret == "":
			v.add("credentials."+key+"certificate", "has no key", "write "+key+"key beside it")
		case certificate == "" && secret != "":
			v.add("credentials."+key+"key", "has no certificate", "write "+key+"certificate beside it")
		}
	}
	pair("", c.Certificate, c.Key)
	pair("servers.", c.Servers.Certificate, c.Servers.Key)
	if c.ClientAuthorities != "" && c.Certificate == "" {
		v.add("credentials.client_authorities", "clients are asked for a certificate only by a proxy that has one", "write certificate and key beside it")
	}
}
