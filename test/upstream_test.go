package test

import (
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// nextPort counts the ports that newSocketPorts has given away.
var nextPort atomic.Uint32

// newSocketPorts is a port of 127.0.0.1 that is free now, over UDP and TCP, and
// so is the next one. It is none that the system chooses for others meanwhile, nor one
// of the 16 that another test has got.
func newSocketPorts(t *testing.T) int {
	t.Helper()
	const first, runs = 10000, 1400 // below the ephemeral ports
	begin := uint32(os.Getpid()) * 61
	for range 100 {
		port := int(first + 16*((begin+nextPort.Add(1))%runs))
		free := true
		for _, p := range []int{port, port + 1} {
			at := fmt.Sprintf("127.0.0.1:%d", p)
			u, err := net.ListenPacket("udp4", at)
			if err != nil {
				free = false
				continue
			}
			l, err := net.Listen("tcp4", at)
			require.NoError(t, u.Close())
			if err != nil {
				free = false
				continue
			}
			require.NoError(t, l.Close())
		}
		if free {
			return port
		}
	}
	require.Fail(t, "no two free ports")
	return 0
}

// keyFile writes a file with pre-shared keys.
func keyFile(t *testing.T, format string, args ...any) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "keys.yaml")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, format, args...), 0o600))
	return file
}

const sharedKey = "0123456789abcdef"

// origin is libcoap's server on all transports it knows.
type origin struct {
	*process
	port   int // of coap and coap+tcp; the next one is that of coaps and coaps+tcp
	ca     *certAuthority
	psk    string // file with the key for it
	secure pair   // its certificate
}

// startOrigin starts a build of libcoap's server.
func startOrigin(t *testing.T, program string) *origin {
	t.Helper()
	ca := newCertAuthority(t, "servers")
	o := &origin{port: newSocketPorts(t), ca: ca, secure: ca.issue("origin", forServer)}
	o.psk = keyFile(t, "host: 127.0.0.1\nidentity: proxy\nkey: %q\n", hex.EncodeToString([]byte(sharedKey)))
	o.run(t, program)
	return o
}

func (o *origin) run(t *testing.T, program string) {
	t.Helper()
	o.process = start(t, here, program, program, "-A", "127.0.0.1", "-p", fmt.Sprint(o.port), "-d", "100", "-v", "7",
		"-k", sharedKey, "-c", o.secure.cert, "-j", o.secure.key, "-C", o.ca.file, "-n")
	o.waitFor("created TLS")
}

// uri of a resource under a scheme.
func (o *origin) uri(scheme, path string) string {
	port := o.port
	if scheme == "coaps" || scheme == "coaps+tcp" {
		port++
	}
	return fmt.Sprintf("%s://127.0.0.1:%d/%s", scheme, port, path)
}

// everyScheme is what a client needs to be allowed to reach all servers.
const everyScheme = `forward: ["coap://*:*", "coaps://*:*", "coap+tcp://*:*", "coaps+tcp://*:*", "coap+ws://*:*", "coaps+ws://*:*"]`

// The legs to servers under all schemes that libcoap's server speaks, with a
// pre-shared key and with certificates (FP-6, FP-89): the same resource every
// time.
func TestUpstreamLibcoap(t *testing.T) {
	t.Parallel()
	for _, program := range []string{"coap-server-openssl", "coap-server-gnutls"} {
		t.Run(program, func(t *testing.T) {
			t.Parallel()
			o := startOrigin(t, program)
			for name, psk := range map[string]string{"key": ", psk: " + o.psk, "certificate": ""} {
				p := startProxy(t, group0, settings{client: everyScheme, proxy: "require_secure_client: false",
					top: "credentials: {servers: {authorities: " + o.ca.file + psk + "}}"})
				c := newClient(t, here, clientAddr, p.addr())
				for i, scheme := range []string{"coap", "coaps", "coap+tcp", "coaps+tcp"} {
					text := fmt.Sprint(program, name, scheme)
					put := get(coap.CON, o.uri(scheme, "example_data"))
					put.Code, put.Payload = coap.PUT, []byte(text)
					in := c.ask(put)
					require.Contains(t, []coap.Code{coap.CodeOf(2, 1), coap.CodeOf(2, 4)}, in.Code, "%s %s %q", name, scheme, in.Payload)
					in = c.ask(get(coap.CON, o.uri([]string{"coap", "coaps", "coap+tcp", "coaps+tcp"}[3-i], "example_data")))
					require.Equal(t, text, string(in.Payload), "%s %v", scheme, in.Code)
				}
			}
		})
	}
}

// FP-87: a secure target is for clients that are secured themselves, unless the
// operator says otherwise.
func TestSecureTargetNeedsSecureClient(t *testing.T) {
	t.Parallel()
	o := startOrigin(t, "coap-server-openssl")
	p := startProxy(t, group0, settings{client: everyScheme, top: "credentials: {servers: {authorities: " + o.ca.file + "}}"})
	c := newClient(t, here, clientAddr, p.addr())
	for _, scheme := range []string{"coaps", "coaps+tcp", "coaps+ws"} {
		require.Equal(t, coap.CodeOf(4, 1), c.ask(get(coap.CON, o.uri(scheme, "time"))).Code, scheme)
	}
	require.Equal(t, coap.CodeOf(2, 5), c.ask(get(coap.CON, o.uri("coap+tcp", "time"))).Code)
	require.Equal(t, coap.CodeOf(5, 5), c.ask(get(coap.CON, "http://127.0.0.1/")).Code) // FP-7
	require.Equal(t, coap.CodeOf(5, 5), c.ask(get(coap.CON, "gopher://127.0.0.1/")).Code)
}
