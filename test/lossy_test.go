package test

import (
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

// Hosts on lossy and slow links, 5 % lost and 50 ms of delay each way on every
// link: every exchange of every transport with every other ends, with the right
// body. The bodies fit one message: libcoap's server confuses the blocks of a body
// that come twice.
func TestLossyTransports(t *testing.T) {
	inLab(t, "2 --loss 5 --delay 50 --on all", func(t *testing.T, l *lab) {
		o := &origin{port: 5683, ca: newCertAuthority(t, "servers")}
		server := net.ParseIP(sv4(1).String())
		o.secure = o.ca.issue("origin", func(c *x509.Certificate) { c.IPAddresses = []net.IP{server} })
		start(t, l.sv(1), "coap-server", "coap-server-openssl", "-A", server.String(), "-d", "100", "-k", sharedKey, "-c", o.secure.cert, "-j", o.secure.key,
			"-C", o.ca.file, "-n", "-v", "7").waitFor("created TLS")
		own := o.ca.issue("proxy", func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.ParseIP(pxClients4.String())} })
		l.startProxy(settings{
			listen: fmt.Sprintf("- coap://%[1]v\n- coaps://%[1]v\n- coap+tcp://%[1]v", pxClients4),
			top: fmt.Sprintf("credentials:\n  psk: %s\n  certificate: %s\n  key: %s\n  servers: {authorities: %s}",
				keyFile(t, "identity: gw\nkey: %q\n", fmt.Sprintf("%x", sharedKey)), own.cert, own.key, o.ca.file),
			clients: "- name: gateway\n  psk: gw\n  " + everyScheme + "\n- name: segment\n  networks: [10.77.0.0/16]\n  " + everyScheme,
			proxy:   "require_secure_client: false",
		})
		for client, command := range map[string][]string{
			"coap":     {"coap-client-notls"},
			"coaps":    {"coap-client-openssl", "-k", sharedKey, "-u", "gw"},
			"coap+tcp": {"coap-client-notls"},
		} {
			for _, scheme := range []string{"coap", "coaps", "coap+tcp", "coaps+tcp"} {
				t.Run(client+" to "+scheme, func(t *testing.T) {
					t.Parallel()
					port := map[bool]int{false: 5683, true: 5684}[scheme == "coaps" || scheme == "coaps+tcp"]
					path := map[string]string{"coap": "udp", "coaps": "dtls", "coap+tcp": "tcp"}[client] + map[string]string{"coap": "1", "coaps": "2", "coap+tcp": "3", "coaps+tcp": "4"}[scheme]
					uri := fmt.Sprintf("%s://%v:%d/%s", scheme, server, port, path)
					c := libcoapCarrier{append(append([]string{command[0], "-B", "90"}, command[1:]...), "-P", fmt.Sprintf("%s://%v", client, pxClients4)), t.TempDir(), l.cl(0)}
					body := random(700)
					c.put(t, uri, body)
					for range 3 {
						var got []byte
						for try := 0; got == nil && try < 3; try++ { // libcoap's client gives up a handshake after four repetitions, and is silent then
							got = c.get(t, uri)
						}
						require.Equal(t, sha256.Sum256(body), sha256.Sum256(got))
					}
				})
			}
		}
	})
}
