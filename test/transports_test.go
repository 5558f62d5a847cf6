package test

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// everyTransport is a proxy with a listener per transport, and a client for each.
type everyTransport struct {
	*proxy
	servers, clients *certAuthority
	meter            pair
	at               map[string]netip.AddrPort
}

var allSchemes = []string{"coap", "coaps", "coap+tcp", "coaps+tcp", "coap+ws", "coaps+ws"}

func startEveryTransport(t *testing.T, originCA *certAuthority) *everyTransport {
	t.Helper()
	return startEveryTransportIn(t, here, clientAddr, 0, originCA, settings{})
}

// startEveryTransportIn starts it in a host, at an address and the ports from base
// on, 0 for any; s may say more of its configuration.
func startEveryTransportIn(t *testing.T, h *host, at netip.Addr, base int, originCA *certAuthority, s settings) *everyTransport {
	t.Helper()
	e := &everyTransport{servers: newCertAuthority(t, "proxies"), clients: newCertAuthority(t, "clients"), at: make(map[string]netip.AddrPort)}
	own := e.servers.issue("proxy", forServer) // clients ask for localhost
	e.meter = e.clients.issue("meter", withURI("urn:dev:meter"))
	key := fmt.Sprintf("%x", sharedKey)
	listen := ""
	for i, scheme := range allSchemes {
		port := 0
		if base > 0 {
			port = base + i
		}
		listen += fmt.Sprintf("- %s://%v\n", scheme, netip.AddrPortFrom(at, uint16(port)))
	}
	s.listen, s.proxy, s.log = listen, "require_secure_client: false", "info"
	s.top = fmt.Sprintf("credentials:\n  psk: %s\n  certificate: %s\n  key: %s\n  client_authorities: %s\n  servers: {authorities: %s}",
		keyFile(t, "identity: gw\nkey: %q\n", key), own.cert, own.key, e.clients.file, originCA.file)
	s.clients = "- name: gateway\n  psk: gw\n  " + everyScheme + "\n- name: meter\n  certificate: uri:urn:dev:meter\n  " + everyScheme +
		"\n- name: plain\n  networks: [127.0.0.0/8, 10.77.0.0/16]\n  " + everyScheme
	e.proxy = startProxyIn(t, h, s.yaml(group0))
	for i, scheme := range allSchemes {
		e.at[scheme] = e.addrs[i]
	}
	return e
}

// carrier sends and fetches bodies through a proxy.
type carrier interface {
	put(t *testing.T, uri string, body []byte)
	get(t *testing.T, uri string) []byte
}

// libcoap's client.
type libcoapCarrier struct {
	command []string
	dir     string
	in      *host
}

func (c libcoapCarrier) put(t *testing.T, uri string, body []byte) {
	t.Helper()
	file := filepath.Join(c.dir, "put")
	require.NoError(t, os.WriteFile(file, body, 0o600))
	out := run(t, c.in, append(c.command[:len(c.command):len(c.command)], "-m", "put", "-f", file, uri)...)
	require.Zero(t, out.code, out.stderr)
	require.NotRegexp(t, `^[45]\.`, out.stdout+out.stderr)
}

func (c libcoapCarrier) get(t *testing.T, uri string) []byte {
	t.Helper()
	file := filepath.Join(c.dir, "get")
	_ = os.Remove(file)
	out := run(t, c.in, append(c.command[:len(c.command):len(c.command)], "-o", file, uri)...)
	require.Zero(t, out.code, out.stderr)
	body, err := os.ReadFile(file)
	if os.IsNotExist(err) { // nothing came
		require.NotRegexp(t, `^[45]\.`, out.stdout+out.stderr)
		return nil
	}
	require.NoError(t, err)
	return body
}

// The tests' own client over reliable transports.
type streamCarrier struct {
	client *streamClient
	szx    int
}

func (c streamCarrier) put(t *testing.T, uri string, body []byte) {
	t.Helper()
	in := c.client.upload(uri, body, c.szx)
	require.Equal(t, coap.Code(2), in.Code>>5, "%v %q", in.Code, in.Payload)
}

func (c streamCarrier) get(t *testing.T, uri string) []byte {
	t.Helper()
	body, code, _ := c.client.download(uri, c.szx)
	require.Equal(t, coap.CodeOf(2, 5), code, "%q", body)
	return body
}

// carriers are clients over every transport.
func (e *everyTransport) carriers(t *testing.T) map[string]carrier {
	t.Helper()
	via := func(scheme string) string { return fmt.Sprintf("%s://%v", scheme, e.at[scheme]) }
	lib := func(program, scheme string, more ...string) carrier {
		return libcoapCarrier{append([]string{program, "-B", "90", "-P", via(scheme)}, more...), t.TempDir(), here}
	}
	certificate := []string{"-c", e.meter.cert, "-j", e.meter.key, "-C", e.servers.file}
	stream := func(scheme string, szx int, own uint32) carrier {
		c := tlsOf(t, e.servers, e.meter, alpnOf(scheme))
		if !strings.HasPrefix(scheme, "coaps") {
			c = nil
		}
		return streamCarrier{newStreamClient(t, scheme, e.at[scheme], c, own), szx}
	}
	return map[string]carrier{
		"coap":                lib("coap-client-notls", "coap"),
		"coaps, key":          lib("coap-client-openssl", "coaps", "-k", sharedKey, "-u", "gw"),
		"coaps, certificate":  lib("coap-client-gnutls", "coaps", certificate...),
		"coap+tcp, libcoap":   lib("coap-client-notls", "coap+tcp"),
		"coaps+tcp, libcoap":  lib("coap-client-openssl", "coaps+tcp", certificate...),
		"coap+tcp, BERT":      stream("coap+tcp", bert, 1<<20),
		"coaps+tcp, BERT":     stream("coaps+tcp", bert, 8192),
		"coap+ws, 1024":       stream("coap+ws", 6, 1152),
		"coaps+ws, BERT":      stream("coaps+ws", bert, 65536),
		"coap+ws, small peer": stream("coap+ws", 6, 400),
	}
}

// random is a body whose bytes cannot be right by accident.
func random(size int) []byte {
	body := make([]byte, size)
	for i := range body {
		body[i] = byte(rand.Uint32())
	}
	return body
}

var bodySizes = []int{0, 1, 1023, 1024, 1025, 65536, 1 << 20}

// carry sends a body to a resource and fetches it again, in other sizes of blocks
// on the two legs.
func carry(t *testing.T, c carrier, uri string, size int) {
	t.Helper()
	body := random(size)
	c.put(t, uri, body)
	got := c.get(t, uri)
	require.Equal(t, sha256.Sum256(body), sha256.Sum256(got), "%d of %d bytes came from %s by %v", len(got), size, uri, c)
}

// Every transport of a client with every transport of a server (FP-89): a body
// goes up and comes back whole.
func TestEveryTransportPair(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, "coap-server-openssl")
	e := startEveryTransport(t, o.ca)
	origins := map[string]func(path string) string{}
	for _, scheme := range []string{"coap", "coaps", "coap+tcp", "coaps+tcp"} {
		origins[scheme] = func(path string) string { return o.uri(scheme, path) }
	}
	for _, scheme := range []string{"coap+ws", "coaps+ws"} {
		origins[scheme] = newStreamOrigin(t, scheme, o.secure, 1<<20).uri
	}
	for client, c := range e.carriers(t) {
		for server, uri := range origins {
			path := strings.Map(func(r rune) rune {
				if strings.ContainsRune("+, ", r) {
					return -1
				}
				return r
			}, client+server)
			carry(t, c, uri(path), 1500)
		}
	}
}

// Bodies of all sizes to a server over TCP, by clients over every transport
// (FP-72): over UDP and DTLS in blocks of 1024 bytes, over the others in BERT
// blocks or in one piece, as the client's Max-Message-Size says (RFC 8323 §6).
func TestBodiesByClient(t *testing.T) {
	t.Parallel()
	ca := newCertAuthority(t, "servers")
	o := newStreamOrigin(t, "coap+tcp", pair{}, 1<<20)
	e := startEveryTransport(t, ca)
	for _, c := range e.carriers(t) {
		sizes := bodySizes
		if _, ok := c.(libcoapCarrier); ok {
			sizes = sizes[:len(sizes)-1] // it takes its time for 1 MiB; TestBodiesOverEveryPair has that
		}
		for _, size := range sizes {
			carry(t, c, o.uri("r"), size)
		}
	}
	require.True(t, o.szx[bert], "no BERT block ever went to the server: %v", o.szx)
	require.LessOrEqual(t, o.largest, 64<<10)
	require.Greater(t, o.largest, 1024)
}

// Bodies of all sizes to servers over every transport (FP-72).
func TestBodiesByServer(t *testing.T) {
	t.Parallel()
	lib := startOrigin(t, "coap-server-openssl")
	e := startEveryTransport(t, lib.ca)
	c := streamCarrier{newStreamClient(t, "coap+tcp", e.at["coap+tcp"], nil, 1<<20), bert}
	for _, scheme := range []string{"coap", "coaps", "coap+tcp", "coaps+tcp"} {
		for _, size := range bodySizes[1:] { // libcoap's example takes no empty body
			carry(t, c, lib.uri(scheme, "example_data"), size)
		}
	}
	for _, scheme := range allSchemes[2:] {
		for _, most := range []uint32{0, 300, 1152, 8192, 1 << 20} { // 0: no options in the CSM at all
			o := newStreamOrigin(t, scheme, lib.secure, most)
			for _, size := range bodySizes {
				if most < 8192 && size > 65536 {
					continue // many blocks
				}
				carry(t, c, o.uri("r"), size)
			}
			if most == 0 {
				most = 1152
			}
			require.Less(t, o.largest, int(most))
			require.Equal(t, most > 1152, o.szx[bert], "%s with messages of %d bytes: %v", scheme, most, o.szx)
		}
	}
}
