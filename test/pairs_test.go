package test

import (
	"context"
	"crypto/sha256"
	"crypto/x509"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// goroutines counts those of a proxy with a control socket.
func goroutines(t *testing.T, socket string) int {
	t.Helper()
	transport := &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return (&net.Dialer{}).DialContext(ctx, "unix", socket)
	}}
	response, err := (&http.Client{Transport: transport, Timeout: patience}).Get("http://proxy/debug/pprof/goroutine?debug=1")
	require.NoError(t, err)
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	require.NoError(t, err)
	total := regexp.MustCompile(`total (\d+)`).FindSubmatch(text)
	require.NotNil(t, total, "%.100s", text)
	n, err := strconv.Atoi(string(total[1]))
	require.NoError(t, err)
	return n
}

// pathOf is a path of a pair of transports.
func pathOf(client, server string) string {
	return strings.ReplaceAll(client+"-"+server, "+", "")
}

// bothWays has a body go up to a server and another one of the same length come
// back from it.
func bothWays(t *testing.T, c carrier, k keeper, path string, size int) {
	t.Helper()
	up, down := random(size), random(size)
	c.put(t, k.uri(path), up)
	require.Equal(t, sha256.Sum256(up), sha256.Sum256(k.body(path)), "%d bytes up to %s", size, k.uri(path))
	k.keep(path, down)
	require.Equal(t, sha256.Sum256(down), sha256.Sum256(c.get(t, k.uri(path))), "%d bytes down from %s", size, k.uri(path))
}

// Bodies of all sizes, up and down, from every transport of a client to every
// transport of a server (FP-72, FP-73, FP-89), with peers that nobody but these
// tests made; afterwards nothing is left of it in the proxy, neither a goroutine
// nor a file descriptor.
func TestBodiesOverEveryPair(t *testing.T) {
	t.Parallel()
	ca := newCertAuthority(t, "servers")
	cert := ca.issue("origin", forServer)
	socket, control := controlSocket(t)
	e := startEveryTransportIn(t, here, clientAddr, 0, ca, settings{control: control})
	keepers := make(map[string]keeper)
	for _, scheme := range allSchemes {
		keepers[scheme] = newKeeper(t, here, netip.AddrPortFrom(clientAddr, 0), scheme, cert)
	}
	// all runs every pair with the sizes; the legs of one client one after the
	// other, the clients side by side.
	all := func(name string, sizes []int) (goroutinesLeft, filesLeft int) {
		t.Run(name, func(t *testing.T) {
			for _, client := range allSchemes {
				t.Run(client, func(t *testing.T) {
					t.Parallel()
					c := newCarrier(t, here, e.at[client], client, e.servers, e.meter)
					for _, server := range allSchemes {
						for _, size := range sizes {
							bothWays(t, c, keepers[server], pathOf(client, server), size)
						}
					}
				})
			}
		})
		for _, k := range keepers {
			k.drop()
		}
		eventually(t, func() bool {
			n := e.counters()
			return n["coap_connections_open"]+n["coap_dtls_sessions"]+n["upstream_connections_open"]+n["upstream_dtls_sessions"] == 0
		}, "sessions are left: %v", e.counters())
		return goroutines(t, socket), e.files()
	}
	goroutinesBefore, filesBefore := all("once", []int{1})
	all("sizes", bodySizes)
	eventually(t, func() bool { return goroutines(t, socket) <= goroutinesBefore }, "goroutines are left: more than %d", goroutinesBefore)
	eventually(t, func() bool { return e.files() <= filesBefore }, "files are left: more than %d", filesBefore)
}

// Bodies of several blocks, up and down, over every pair of transports, where 5 % of
// all packets get lost on every link: whole, and byte for byte. One of the hundreds of
// exchanges may well get lost four times in a row, which takes 30 to 45 seconds to get
// over (RFC 7252 §4.8).
func TestBodiesUnderLoss(t *testing.T) {
	inLab(t, "1 --loss 5 --delay 10 --on all", func(t *testing.T, l *lab) {
		ca := newCertAuthority(t, "servers")
		server := sv4(1)
		cert := ca.issue("origin", func(c *x509.Certificate) { c.IPAddresses = []net.IP{net.ParseIP(server.String())} })
		e := startEveryTransportIn(t, l.px(), pxClients4, 7000, ca, settings{})
		for i, client := range allSchemes {
			for j, scheme := range allSchemes {
				t.Run(fmt.Sprintf("%s to %s", client, scheme), func(t *testing.T) {
					t.Parallel()
					k := newKeeper(t, l.sv(1), netip.AddrPortFrom(server, uint16(8000+i*len(allSchemes)+j)), scheme, cert)
					c := newCarrier(t, l.cl(0), e.at[client], client, e.servers, e.meter)
					bothWays(t, c, k, "r", 5000)
				})
			}
		}
	})
}
