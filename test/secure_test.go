package test

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net/netip"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// securedProxy is a proxy with a listener for each secure scheme, the client meter
// with a certificate, the client gw with a pre-shared key, and nobody else.
type securedProxy struct {
	*proxy
	servers, clients *certAuthority // of its own certificate and of its clients
	own, meter       pair
}

// startSecured starts it; further text goes below credentials.
func startSecured(t *testing.T, clients string) *securedProxy {
	t.Helper()
	s := &securedProxy{servers: newCertAuthority(t, "servers"), clients: newCertAuthority(t, "clients")}
	s.own, s.meter = s.servers.issue("proxy", forServer), s.clients.issue("meter", withURI("urn:dev:meter"))
	psk := keyFile(t, "identity: gw\nkey: %q\n", hex.EncodeToString([]byte(sharedKey)))
	s.proxy = startProxy(t, group0, settings{
		listen: "- coaps://127.0.0.1:0\n- coaps+tcp://127.0.0.1:0\n- coaps+ws://127.0.0.1:0",
		top: fmt.Sprintf("credentials:\n  psk: %s\n  certificate: %s\n  key: %s\n  client_authorities: %s\n  servers: {authorities: %s}",
			psk, s.own.cert, s.own.key, s.clients.file, s.servers.file),
		clients: "- name: nobody\n  psk: other\n- name: gateway\n  psk: gw\n  " + everyScheme + "\n- name: meter\n  certificate: uri:urn:dev:meter\n  " + everyScheme + "\n" + clients,
	})
	return s
}

var secureSchemes = []string{"coaps", "coaps+tcp", "coaps+ws"}

func (s *securedProxy) at(scheme string) netip.AddrPort {
	for i, name := range secureSchemes {
		if name == scheme {
			return s.addrs[i]
		}
	}
	return netip.AddrPort{}
}

// alpnOf is the ALPN protocol of a secure scheme over TCP.
func alpnOf(scheme string) string {
	if scheme == "coaps+ws" {
		return "http/1.1"
	}
	return "coap"
}

// libcoap's clients with certificates and keys on the same listener over DTLS, and
// with certificates over TLS (GP-23, GP-110, FP-89): each is the client whose
// certificate or key it has.
func TestCertificateClients(t *testing.T) {
	t.Parallel()
	origin := single(t, content)
	s := startSecured(t, "")
	for _, program := range []string{"coap-client-gnutls", "coap-client-openssl"} {
		for _, scheme := range []string{"coaps", "coaps+tcp"} {
			for name, how := range map[string][]string{
				"meter":   {"-c", s.meter.cert, "-j", s.meter.key, "-C", s.servers.file},
				"gateway": {"-k", sharedKey, "-u", "gw"},
			} {
				if name == "gateway" && scheme == "coaps+tcp" {
					continue // TLS is for certificates
				}
				uri := fmt.Sprintf("coap://%v/%s", origin.addr(), program)
				out := run(t, here, append(append([]string{program, "-B", "10"}, how...), "-P", fmt.Sprintf("%s://%v", scheme, s.at(scheme)), uri)...)
				require.Contains(t, out.stdout, "server/"+program, "%s %s %s: %s", program, scheme, name, out.stderr)
			}
		}
	}
	require.Len(t, origin.requests(), 6)
}

// Who cannot prove anything is nobody here: no certificate, one of a foreign
// authority, an expired one, and one of nobody's. The handshake fails, or the
// request gets 4.01; either way the next client is served (GP-23).
func TestForeignCertificates(t *testing.T) {
	t.Parallel()
	origin := single(t, content)
	s := startSecured(t, "")
	uri := fmt.Sprintf("coap://%v/x", origin.addr())
	foreign := newCertAuthority(t, "foreign").issue("meter", withURI("urn:dev:meter"))
	expired := s.clients.issue("expired", func(c *x509.Certificate) {
		withURI("urn:dev:meter")(c)
		c.NotBefore, c.NotAfter = time.Now().Add(-2*time.Hour), time.Now().Add(-time.Hour)
	})
	unknown := s.clients.issue("unknown", withURI("urn:dev:unknown"))
	for _, scheme := range []string{"coaps+tcp", "coaps+ws"} {
		for name, own := range map[string]pair{"foreign": foreign, "expired": expired} {
			conn, err := connect(scheme, s.at(scheme), tlsOf(t, s.servers, own, alpnOf(scheme)))
			if err == nil { // TLS 1.3: the client finds out when it reads
				_ = conn.put(&coap.Message{Code: csm})
				for err == nil {
					_, err = conn.take()
				}
				conn.close()
			}
			require.Error(t, err, name)
		}
		for name, own := range map[string]pair{"none": {}, "nobody's": unknown} {
			c := newStreamClient(t, scheme, s.at(scheme), tlsOf(t, s.servers, own, alpnOf(scheme)), 1152)
			require.Equal(t, coap.CodeOf(4, 1), c.ask(get(coap.CON, uri)).Code, "%s over %s", name, scheme)
		}
		// A client that knows no TLS 1.3 gets no connection.
		old := tlsOf(t, s.servers, s.meter, alpnOf(scheme))
		old.MaxVersion = tls.VersionTLS12
		_, err := connect(scheme, s.at(scheme), old)
		require.ErrorContains(t, err, "protocol version")
		if scheme == "coaps+tcp" { // nor one that wants another protocol (RFC 8323 §8.2)
			_, err = connect(scheme, s.at(scheme), tlsOf(t, s.servers, s.meter, "mqtt"))
			require.ErrorContains(t, err, "no application protocol")
		}
		c := newStreamClient(t, scheme, s.at(scheme), tlsOf(t, s.servers, s.meter, alpnOf(scheme)), 1152)
		require.Equal(t, coap.CodeOf(2, 5), c.ask(get(coap.CON, uri)).Code, scheme)
	}
	for name, own := range map[string]pair{"foreign": foreign, "expired": expired} {
		out := run(t, here, "coap-client-openssl", "-B", "2", "-c", own.cert, "-j", own.key, "-C", s.servers.file, "-P", fmt.Sprintf("coaps://%v", s.at("coaps")), uri)
		require.NotContains(t, out.stdout, "server/x", name)
	}
	for name, how := range map[string][]string{"wrong key": {"-k", "another key, wrong", "-u", "gw"}, "unknown identity": {"-k", sharedKey, "-u", "nobody"}} {
		out := run(t, here, append(append([]string{"coap-client-openssl", "-B", "2"}, how...), "-P", fmt.Sprintf("coaps://%v", s.at("coaps")), uri)...)
		require.NotContains(t, out.stdout, "server/x", name)
	}
	out := run(t, here, "coap-client-openssl", "-B", "10", "-k", sharedKey, "-u", "gw", "-P", fmt.Sprintf("coaps://%v", s.at("coaps")), uri)
	require.Contains(t, out.stdout, "server/x", out.stderr)
	require.Len(t, origin.requests(), 3)
	// It is all in the log and counted.
	s.logged("there is no key for this client", 1)
	require.NotEmpty(t, s.entries("TLS handshake failed"))
	require.NotEmpty(t, s.entries("DTLS handshake failed"))
	counters := s.counters()
	require.Positive(t, counters["coap_dtls_handshakes_failed_total"])
	require.Positive(t, counters["coap_dtls_unknown_identities_total"])
	require.Positive(t, counters["coap_connection_handshakes_failed_total"])
}

// counters are those of the proxy now, without those that are zero.
func (p *proxy) counters() map[string]float64 {
	p.t.Helper()
	before := len(p.entries("counters"))
	p.signal(syscall.SIGUSR1)
	eventually(p.t, func() bool { return len(p.entries("counters")) > before }, "the counters")
	out := make(map[string]float64)
	for name, v := range p.entries("counters")[before] {
		if n, ok := v.(float64); ok {
			out[name] = n
		}
	}
	return out
}

// Options that the proxy does not know are what they are over UDP, on every secured
// transport: unsafe ones make a 4.02 (FP-20), safe ones go through, critical or not
// (FP-21), and what is for the proxy itself may have no critical ones (FP-25).
func TestUnknownOptionsOverSecureTransports(t *testing.T) {
	t.Parallel()
	origin := single(t, content)
	s := startSecured(t, "")
	datagrams := newDatagramClient(t, here, s.at("coaps"), pskOptions("gw")...)
	asks := map[string]func(*coap.Message) *coap.Message{"coaps": datagrams.ask}
	for _, scheme := range []string{"coaps+tcp", "coaps+ws"} {
		asks[scheme] = newStreamClient(t, scheme, s.at(scheme), tlsOf(t, s.servers, s.meter, alpnOf(scheme)), 2000).ask
	}
	const criticalUnsafe, electiveUnsafe, criticalSafe, electiveSafe = 2051, 2050, 2049, 2304
	for scheme, ask := range asks {
		target := coap.Opt(coap.ProxyURI, fmt.Sprintf("coap://%v/%s", origin.addr(), scheme))
		for _, unsafe := range []uint16{criticalUnsafe, electiveUnsafe} {
			in := ask(&coap.Message{Code: coap.GET, Options: []coap.Option{target, coap.Opt(unsafe, "x")}})
			require.Equal(t, coap.CodeOf(4, 2), in.Code, "%s %d", scheme, unsafe)
			require.Contains(t, string(in.Payload), fmt.Sprint(unsafe))
		}
		in := ask(&coap.Message{Code: coap.GET, Options: []coap.Option{target, coap.Opt(criticalSafe, "c"), coap.Opt(electiveSafe, "e")}})
		require.Equal(t, coap.CodeOf(2, 5), in.Code, scheme)
		requests := origin.requestsTo("/" + scheme)
		require.Len(t, requests, 1, scheme)
		require.Equal(t, [][]byte{[]byte("c")}, requests[0].All(criticalSafe))
		require.Equal(t, [][]byte{[]byte("e")}, requests[0].All(electiveSafe))
		for option, code := range map[uint16]coap.Code{criticalUnsafe: coap.CodeOf(4, 2), criticalSafe: coap.CodeOf(4, 2), electiveSafe: coap.CodeOf(4, 4)} {
			in = ask(&coap.Message{Code: coap.GET, Options: []coap.Option{coap.Opt(coap.URIPath, "x"), coap.Opt(option, "x")}})
			require.Equal(t, code, in.Code, "%s %d", scheme, option)
		}
	}

	// Over DTLS also where RFC 7252 §5.4.1 would have silence, a request that is not
	// confirmable (FP-25); and what is no message is refused like over UDP.
	non := &coap.Message{Type: coap.NON, ID: 0x7001, Token: []byte("n"), Code: coap.GET, Options: []coap.Option{coap.Opt(coap.URIPath, "x"), coap.Opt(criticalSafe, "x")}}
	_, err := datagrams.conn.Write(non.Bytes())
	require.NoError(t, err)
	in := datagrams.take(time.Now().Add(patience))
	require.NotNil(t, in)
	require.Equal(t, coap.CodeOf(4, 2), in.Code)
	require.Equal(t, coap.NON, in.Type)
	_, err = datagrams.conn.Write([]byte{0x40, 1, 0x70, 2, 0xf0}) // an option delta that is reserved
	require.NoError(t, err)
	in = datagrams.take(time.Now().Add(patience))
	require.NotNil(t, in)
	require.Equal(t, coap.RST, in.Type)
	require.EqualValues(t, 0x7002, in.ID)
}
