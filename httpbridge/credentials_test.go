package httpbridge

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/crypto/bcrypt"

	"coapproxy/exchange"
)

func credentialsFile(t testing.TB) string {
	hash, err := bcrypt.GenerateFromPassword([]byte("open sesame"), bcrypt.MinCost)
	require.NoError(t, err)
	token := sha256.Sum256([]byte("s3cr3t"))
	return "# who\n\ndashboard bearer " + hex.EncodeToString(token[:]) + "\nalice basic ali " + string(hash) + "\n"
}

func testCredentials(t testing.TB) *Credentials {
	c, err := ReadCredentials(strings.NewReader(credentialsFile(t)))
	require.NoError(t, err)
	return c
}

func basic(pair string) string { return "Basic " + base64.StdEncoding.EncodeToString([]byte(pair)) }

func TestCredentials(t *testing.T) { // HC-100
	c := testCredentials(t)
	for authorization, want := range map[string]string{
		"Bearer s3cr3t": "dashboard", "bearer  s3cr3t": "dashboard", "Bearer S3cr3t": "", "Bearer ": "", "Bearer": "", "": "",
		basic("ali:open sesame"): "alice", basic("ali:wrong"): "", basic("eve:open sesame"): "", basic("ali"): "", basic(":"): "",
		"Basic ???": "", "Digest x": "",
	} {
		for range 2 { // the second time from memory
			name, err := c.check(authorization)
			require.Equal(t, want, name, authorization)
			if want == "" {
				require.ErrorIs(t, err, ErrCredentials)
			}
		}
	}
	require.ElementsMatch(t, []string{"dashboard", "alice"}, c.Clients())
	require.Len(t, c.challenges(), 2)

	c.slots <- struct{}{}
	c.slots <- struct{}{}
	_, err := c.check(basic("ali:third"))
	require.ErrorIs(t, err, ErrAuthenticationBusy)
	name, err := c.check(basic("ali:open sesame"))
	require.NoError(t, err)
	require.Equal(t, "alice", name)
}

func TestBadCredentials(t *testing.T) {
	hash := strings.Repeat("00", 32)
	cost, err := bcrypt.GenerateFromPassword([]byte("x"), bcrypt.MinCost)
	require.NoError(t, err)
	for _, bad := range []string{"x", "x bearer", "x bearer zz", "x bearer " + hash[2:], "x bearer " + hash + " y", "x basic u", "x basic u plain",
		"x basic u " + strings.Replace(string(cost), "$04$", "$31$", 1), "x bearer " + hash + "\ny bearer " + hash,
		fmt.Sprintf("x basic u %s\ny basic u %s", cost, cost)} {
		_, err := ReadCredentials(strings.NewReader(bad))
		require.ErrorContains(t, err, "line", bad)
		require.NotContains(t, err.Error(), hash[:20])
	}
}

// testAuthentication knows 192.0.2.0/24, two names and one certificate.
func testAuthentication(t testing.TB, known *x509.Certificate) *Authentication {
	return &Authentication{Credentials: testCredentials(t),
		Network: func(a netip.AddrPort) *exchange.Identity {
			if netip.MustParsePrefix("192.0.2.0/24").Contains(a.Addr()) {
				return &exchange.Identity{Name: "network"}
			}
			return nil
		},
		Certificate: func(shown []*x509.Certificate) *exchange.Identity {
			c := shown[0]
			if c == known {
				return &exchange.Identity{Name: "certificate"}
			}
			return nil
		},
		Client: func(name string) *exchange.Identity {
			if name == "dashboard" {
				return &exchange.Identity{Name: name}
			}
			return nil
		}}
}

func TestAuthenticate(t *testing.T) { // HC-100
	good, other := &x509.Certificate{}, &x509.Certificate{}
	near, far := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("198.51.100.1:1")
	with := func(c *x509.Certificate) *tls.ConnectionState {
		if c == nil {
			return &tls.ConnectionState{}
		}
		return &tls.ConnectionState{VerifiedChains: [][]*x509.Certificate{{c}}, PeerCertificates: []*x509.Certificate{c}}
	}
	a := testAuthentication(t, good)
	for _, x := range []struct {
		name  string
		proof Proof
		want  string
		by    ProvenBy
		err   error
	}{
		{"network", Proof{Peer: near}, "network", ByNetwork, nil},
		{"unknown", Proof{Peer: far}, "", ByNothing, nil},
		{"certificate", Proof{Peer: far, TLS: with(good)}, "certificate", ByCertificate, nil},
		{"certificate before network", Proof{Peer: near, TLS: with(good)}, "certificate", ByCertificate, nil},
		{"unknown certificate", Proof{Peer: near, TLS: with(other)}, "", ByNothing, nil},
		{"TLS alone", Proof{Peer: near, TLS: with(nil)}, "network", ByNetwork, nil},
		{"token", Proof{Peer: far, TLS: with(nil), Authorization: "Bearer s3cr3t"}, "dashboard", ByCredentials, nil},
		{"token before certificate", Proof{Peer: far, TLS: with(good), Authorization: "Bearer s3cr3t"}, "dashboard", ByCredentials, nil},
		{"wrong token", Proof{Peer: near, TLS: with(good), Authorization: "Bearer x"}, "", ByNothing, ErrCredentials},
		{"no such entry", Proof{Peer: near, TLS: with(nil), Authorization: basic("ali:open sesame")}, "", ByNothing, ErrCredentials},
		{"token without TLS", Proof{Peer: near, Authorization: "Bearer s3cr3t"}, "", ByNothing, ErrPlainCredentials},
	} {
		t.Run(x.name, func(t *testing.T) {
			who, err := a.Authenticate(x.proof)
			require.ErrorIs(t, err, x.err)
			require.Equal(t, x.by, who.By)
			if x.want == "" {
				require.Nil(t, who.Client)
				return
			}
			require.Equal(t, x.want, who.Client.Name)
		})
	}
	a.PlainCredentials = true
	who, err := a.Authenticate(Proof{Peer: far, Authorization: "Bearer s3cr3t"})
	require.NoError(t, err)
	require.Equal(t, "dashboard", who.Client.Name)
	a.Credentials = nil // nobody looks at the field
	who, err = a.Authenticate(Proof{Peer: near, Authorization: "Bearer x"})
	require.NoError(t, err)
	require.Equal(t, "network", who.Client.Name)
	require.Empty(t, a.Challenges())
}
