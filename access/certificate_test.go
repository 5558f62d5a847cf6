package access

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
)

// GP-23: a client is known by a name in its certificate, by the key of it first;
// a certificate that belongs to nobody proves nothing, and what is left is the
// network (GP-24).
func TestIdentifyByCertificate(t *testing.T) {
	client := func(name string, certificate ...CertificateName) Client {
		return Client{Identity: exchange.Identity{Name: name}, Certificate: certificate}
	}
	key := [32]byte{1, 2, 3}
	p := New(config(func(c *Config) {
		c.Clients = append(c.Clients,
			client("key", CertificateName{"key", string(key[:])}),
			client("ski", CertificateName{"ski", "\x01\x02"}),
			client("uri", CertificateName{"uri", "urn:dev:a"}, CertificateName{"uri", "urn:dev:b"}),
			client("dns", CertificateName{"dns", "meter.example"}),
			client("email", CertificateName{"email", "Ann@example.com"}),
			client("ip", CertificateName{"ip", "2001:db8::7"}))
	}), &leg{}, NewHeard())
	for name, tt := range map[string]struct {
		cert exchange.Certificate
		peer string
		want string
	}{
		"by its key":             {exchange.Certificate{KeyFingerprint: key, URIs: []string{"urn:dev:a"}}, "198.51.100.1:1", "key"},
		"by the key's name":      {exchange.Certificate{SubjectKeyID: "\x01\x02", DNSNames: []string{"meter.example"}}, "198.51.100.1:1", "ski"},
		"by the second URI":      {exchange.Certificate{URIs: []string{"urn:dev:x", "urn:dev:b"}}, "198.51.100.1:1", "uri"},
		"a URI is exact":         {exchange.Certificate{URIs: []string{"urn:dev:A"}}, "198.51.100.1:1", ""},
		"a DNS name has no case": {exchange.Certificate{DNSNames: []string{"METER.example"}}, "198.51.100.1:1", "dns"},
		"a mail address":         {exchange.Certificate{Emails: []string{"Ann@example.com"}}, "198.51.100.1:1", "email"},
		"an address":             {exchange.Certificate{Addresses: []netip.Addr{netip.MustParseAddr("2001:db8::7")}}, "198.51.100.1:1", "ip"},
		"the subject is none":    {exchange.Certificate{Subject: "CN=meter.example"}, "198.51.100.1:1", ""},
		"another kind of name":   {exchange.Certificate{URIs: []string{"meter.example"}, DNSNames: []string{"urn:dev:a"}}, "198.51.100.1:1", ""},
		"nobody's":               {exchange.Certificate{URIs: []string{"urn:dev:x"}}, "192.0.2.10:1", "worker"},
		"more than a network":    {exchange.Certificate{URIs: []string{"urn:dev:a"}}, "192.0.2.10:1", "uri"},
	} {
		t.Run(name, func(t *testing.T) {
			id := p.Identify(netip.MustParseAddrPort(tt.peer), &exchange.Security{Certificate: &tt.cert})
			if tt.want == "" {
				require.Nil(t, id)
				return
			}
			require.NotNil(t, id)
			require.Equal(t, tt.want, id.Name)
			require.Equal(t, tt.want != "worker", id.Authenticated)
		})
	}
}

// A target entry is for one scheme (FP-85), a server heard in a group for that of
// groups (GP-112), and a secure target for secured clients (FP-87).
func TestForwardSchemes(t *testing.T) {
	for name, tt := range map[string]struct {
		forward   []Target
		scheme    string
		secured   bool
		unsecured bool
		ok        bool
	}{
		"its scheme":            {[]Target{{Scheme: "coap+tcp", Any: true, AnyPort: true}}, "coap+tcp", false, false, true},
		"another scheme":        {[]Target{{Scheme: "coap", Any: true, AnyPort: true}}, "coap+tcp", false, false, false},
		"secure, unsecured":     {[]Target{{Any: true, AnyPort: true}}, "coaps", false, false, false},
		"secure, secured":       {[]Target{{Any: true, AnyPort: true}}, "coaps", true, false, true},
		"TLS, unsecured":        {[]Target{{Any: true, AnyPort: true}}, "coaps+tcp", false, false, false},
		"WebSocket, unsecured":  {[]Target{{Any: true, AnyPort: true}}, "coaps+ws", false, false, false},
		"secure, switched off":  {[]Target{{Any: true, AnyPort: true}}, "coaps", false, true, true},
		"plain, secured client": {[]Target{{Any: true, AnyPort: true}}, "coap", true, false, true},
	} {
		t.Run(name, func(t *testing.T) {
			l := &leg{}
			p := New(config(func(c *Config) { c.Clients[0].Forward, c.UnsecuredClients = tt.forward, tt.unsecured }), l, NewHeard())
			r := toServer("203.0.113.1:5683")
			r.Target.Scheme, r.Secured = tt.scheme, tt.secured
			if o := try(p, worker, r); tt.ok {
				allowed(t, l, o)
			} else {
				refused(t, l, o, exchange.Denied)
			}
		})
	}
	heard, l := NewHeard(), &leg{}
	heard.note(netip.MustParseAddrPort("203.0.113.1:5683"), "nodes", "")
	p := New(config(), l, heard)
	allowed(t, l, try(p, worker, toServer("203.0.113.1:5683")))
	r := toServer("203.0.113.1:5683")
	r.Target.Scheme = "coap+tcp"
	refused(t, l, try(p, worker, r), exchange.Denied)
}
