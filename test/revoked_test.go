package test

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/pion/dtls/v3"
	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// An authority that is not among those of the configuration any more: a reload ends
// the sessions and connections of the clients it vouched for, with a line in the log,
// and over HTTP they are nobody's from then on. Clients of the other authority go on
// where they are (GP-23).
func TestAuthorityRevoked(t *testing.T) {
	t.Parallel()
	origin := single(t, content)
	servers, stays, goes := newCertAuthority(t, "servers"), newCertAuthority(t, "stays"), newCertAuthority(t, "goes")
	own := servers.issue("proxy", forServer)
	authorities := filepath.Join(t.TempDir(), "authorities.pem")
	accept := func(all ...*certAuthority) {
		var text []byte
		for _, a := range all {
			one, err := os.ReadFile(a.file)
			require.NoError(t, err)
			text = append(text, one...)
		}
		require.NoError(t, os.WriteFile(authorities, text, 0o600))
	}
	accept(goes, stays)
	p := startProxy(t, group0, settings{
		listen: "- coaps://127.0.0.1:0\n- coaps+tcp://127.0.0.1:0\n- coaps+ws://127.0.0.1:0\n- https://127.0.0.1:0",
		top:    fmt.Sprintf("credentials:\n  certificate: %s\n  key: %s\n  client_authorities: %s", own.cert, own.key, authorities),
		clients: "- name: stays\n  certificate: uri:urn:dev:stays\n  forward: [\"coap://127.0.0.0/8:*\"]\n" +
			"- name: goes\n  certificate: uri:urn:dev:goes\n  forward: [\"coap://127.0.0.0/8:*\"]",
		proxy: "require_secure_client: false",
	})
	uri := fmt.Sprintf("coap://%v/x", origin.addr())
	roots := x509.NewCertPool()
	roots.AddCert(servers.cert)

	// one is a client of an authority over everything.
	type one struct {
		datagrams *datagramClient
		streams   []*streamClient
		web       *http.Client
	}
	open := func(a *certAuthority, name string) one {
		cert := a.issue(name, withURI("urn:dev:"+name))
		loaded, err := tls.LoadX509KeyPair(cert.cert, cert.key)
		require.NoError(t, err)
		transport := &http.Transport{TLSClientConfig: tlsOf(t, servers, cert, "http/1.1")}
		t.Cleanup(transport.CloseIdleConnections)
		return one{
			newDatagramClient(t, here, p.addrs[0], dtls.WithCertificates(loaded), dtls.WithRootCAs(roots), dtls.WithServerName("localhost")),
			[]*streamClient{newStreamClient(t, "coaps+tcp", p.addrs[1], tlsOf(t, servers, cert, "coap"), 1152),
				newStreamClient(t, "coaps+ws", p.addrs[2], tlsOf(t, servers, cert, "http/1.1"), 1152)},
			&http.Client{Transport: transport, Timeout: patience},
		}
	}
	browse := func(c one) int {
		response, err := c.web.Get(fmt.Sprintf("https://localhost:%d/hc/%s", p.addrs[3].Port(), uri))
		require.NoError(t, err)
		_, err = io.Copy(io.Discard, response.Body)
		require.NoError(t, err)
		require.NoError(t, response.Body.Close())
		return response.StatusCode
	}
	works := func(c one) {
		t.Helper()
		require.Equal(t, coap.CodeOf(2, 5), c.datagrams.ask(get(coap.CON, uri)).Code)
		for _, s := range c.streams {
			require.Equal(t, coap.CodeOf(2, 5), s.ask(get(coap.CON, uri)).Code)
		}
		require.Equal(t, http.StatusOK, browse(c))
	}
	first, second := open(stays, "stays"), open(goes, "goes")
	works(first)
	works(second)

	accept(stays)
	require.Equal(t, "configuration read again", p.hangup().text("msg"))
	require.NoError(t, second.datagrams.conn.SetReadDeadline(time.Now().Add(patience)))
	_, err := second.datagrams.conn.Read(make([]byte, 100))
	require.Error(t, err)
	require.NotErrorIs(t, err, os.ErrDeadlineExceeded)
	for _, s := range second.streams {
		in, err := s.conn.take()
		require.NoError(t, err)
		require.Equal(t, abortCode, in.Code)
		_, err = s.conn.take()
		require.Error(t, err)
	}
	require.Contains(t, []int{http.StatusUnauthorized, http.StatusForbidden}, browse(second))
	works(first)
	p.logged("connection aborted", 2)
	n := p.counters()
	require.EqualValues(t, 2, n["coap_dtls_established_total"])
	require.EqualValues(t, 4, n["coap_connections_accepted_total"])
}
