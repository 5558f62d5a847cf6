package test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// authority makes certificates for one test.
type authority struct {
	t    *testing.T
	dir  string
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newAuthority(t *testing.T) *authority {
	t.Helper()
	a := &authority{t: t, dir: t.TempDir()}
	var err error
	a.key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	a.cert = a.write("ca", &x509.Certificate{Subject: pkix.Name{CommonName: "test authority"}, IsCA: true, BasicConstraintsValid: true,
		KeyUsage: x509.KeyUsageCertSign}, nil, a.key)
	return a
}

// issue writes NAME.pem and NAME.key and returns their paths.
func (a *authority) issue(name string, template x509.Certificate) (cert, key string) {
	a.t.Helper()
	private, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(a.t, err)
	a.write(name, &template, a.cert, private)
	return a.path(name + ".pem"), a.path(name + ".key")
}

// server is a certificate for the loopback addresses.
func (a *authority) server() (cert, key string) {
	return a.issue("server", x509.Certificate{Subject: pkix.Name{CommonName: "proxy"}, DNSNames: []string{"localhost", "gw.example"},
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1), net.IPv6loopback}, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
}

func (a *authority) path(name string) string { return filepath.Join(a.dir, name) }

func (a *authority) write(name string, template, parent *x509.Certificate, private *ecdsa.PrivateKey) *x509.Certificate {
	a.t.Helper()
	template.SerialNumber = big.NewInt(time.Now().UnixNano())
	template.NotBefore, template.NotAfter = time.Now().Add(-time.Hour), time.Now().Add(24*time.Hour)
	if parent == nil {
		parent = template
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, &private.PublicKey, a.key)
	require.NoError(a.t, err)
	secret, err := x509.MarshalPKCS8PrivateKey(private)
	require.NoError(a.t, err)
	require.NoError(a.t, os.WriteFile(a.path(name+".pem"), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(a.t, os.WriteFile(a.path(name+".key"), pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: secret}), 0o600))
	out, err := x509.ParseCertificate(der)
	require.NoError(a.t, err)
	return out
}

// web are the settings of a proxy with HTTP listeners: addrs[1] is http,
// addrs[2] https.
func web(a *authority, top, client string) settings {
	cert, key := a.server()
	return settings{listen: "- coap://127.0.0.1:0\n- http://127.0.0.1:0\n- https://127.0.0.1:0", client: client,
		top: fmt.Sprintf("credentials:\n  certificate: %s\n  key: %s\n  client_authorities: %s\n%s", cert, key, a.path("ca.pem"), top)}
}

// curl runs curl, which must succeed; the result has the response with its
// header.
func curl(t *testing.T, args ...string) string {
	t.Helper()
	out := run(t, here, append([]string{"curl", "-siS", "--globoff", "--max-time", "30"}, args...)...)
	require.Zero(t, out.code, "curl %q: %s", args, out.stderr)
	return out.stdout
}

// A group over HTTP/1.1, and over HTTP/2 and TLS: one batch with a part for
// every member (HC-2, HC-77, HC-79).
func TestHTTPGroup(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 3, content)
	a := newAuthority(t)
	p := startProxy(t, group, web(a, "", ""))
	for version, base := range map[string][]string{
		"HTTP/1.1": {"http://" + p.addrs[1].String()},
		"HTTP/2":   {"--http2", "--cacert", a.path("ca.pem"), "https://" + p.addrs[2].String()},
	} {
		last := len(base) - 1
		args := append(append([]string{}, base[:last]...), base[last]+"/hc/"+groupURI(group, "/temp"), "-H", "Multicast-Timeout: 1")
		text := curl(t, args...)
		require.True(t, strings.HasPrefix(text, version+" 200"), text)
		require.Regexp(t, `(?i)content-type: multipart/mixed; boundary=`, text)
		for _, s := range servers {
			require.Contains(t, text, "Content-Location: coap://"+s.addr().String()+"/temp\r\n")
			require.Contains(t, text, "\r\n\r\n"+fmt.Sprintf("member%d/temp", s.addr().Addr().As4()[3])+"\r\n--")
		}
		require.Len(t, regexp.MustCompile(`Reply-From: :[A-Za-z0-9+/]+=*:\r\n`).FindAllString(text, -1), 3)
		require.Len(t, regexp.MustCompile(`\r\nHTTP/1\.1 200 OK\r\n`).FindAllString(text, -1), 3)
	}
	// HC-74, HC-76.
	text := curl(t, "http://"+p.addrs[1].String()+"/hc/"+groupURI(group, "/temp"))
	require.Regexp(t, `^HTTP/1\.1 400 Bad Request\r\n(.*\r\n)*Multicast-Timeout: \r\n`, text)
	before := len(servers[0].requests())
	require.Regexp(t, `^HTTP/1\.1 204 `, curl(t, "http://"+p.addrs[1].String()+"/hc/"+groupURI(group, "/temp"), "-H", "Multicast-Timeout: 0"))
	eventually(t, func() bool { return len(servers[0].requests()) == before+1 }, "the request without responses")
}

// One server over HTTP: the raw request target keeps its two slashes (HC-5),
// methods, bodies and codes are translated (HC-20).
func TestHTTPForward(t *testing.T) {
	t.Parallel()
	origin := single(t, content)
	p := startProxy(t, group0, web(newAuthority(t), "", forwarding.client))
	base := "http://" + p.addrs[1].String()
	target := "coap://" + origin.addr().String() + "/a%20b?q=1"
	for _, url := range []string{base + "/hc/" + target, base + "/hc/?target_uri=" + target} {
		text := curl(t, url)
		require.True(t, strings.HasPrefix(text, "HTTP/1.1 200 OK\r\n"), text)
		require.True(t, strings.HasSuffix(text, "\r\n\r\nserver/a b"), text)
	}
	requests := origin.requests()
	require.Len(t, requests, 2)
	for _, r := range requests {
		require.Equal(t, coap.GET, r.Code)
		require.Equal(t, []coap.Option{coap.Opt(coap.URIPath, "a b"), coap.Opt(coap.URIQuery, "q=1"), coap.Uint(coap.HopLimit, 16)}, r.Options) // HC-106
	}
	curl(t, "-X", "PUT", "-H", "Content-Type: text/plain", "-d", "on", base+"/hc/"+target)
	put := origin.requests()[2]
	require.Equal(t, coap.PUT, put.Code)
	require.Equal(t, "on", string(put.Payload))
	require.Contains(t, curl(t, "-d", "on", base+"/hc/"+target), "HTTP/1.1 415 ") // HC-41
	require.Contains(t, curl(t, base+"/hc/coap://192.0.2.1/"), "HTTP/1.1 403 ")   // HC-101
	require.Contains(t, curl(t, base+"/other"), "HTTP/1.1 404 ")
	require.Contains(t, curl(t, base+"/openapi.json"), `"openapi"`)
}

// Clients that prove who they are: with a token or a password over TLS; others
// get 401, and nobody's token is taken without TLS (HC-100, HC-75).
func TestHTTPCredentials(t *testing.T) {
	t.Parallel()
	origin := single(t, content)
	a := newAuthority(t)
	file := filepath.Join(t.TempDir(), "tokens")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, "dashboard bearer %x\n"+
		"alice basic alice $2y$05$J0k2Dsd5LGFq.EdgD7fn.OISOIwIIdJeFrLlDKfwDrhXvXCZQnGQ2\n", sha256.Sum256([]byte("s3cret-token"))), 0o600))
	s := web(a, "", "")
	s.clients = "- name: dashboard\n  http: dashboard\n  forward: [\"coap://127.0.0.0/8:*\"]\n- name: nobody\n  networks: [192.0.2.0/24]"
	s.top += "  http: " + file
	p := startProxy(t, group0, s)
	url := "/hc/coap://" + origin.addr().String() + "/x"
	secure := []string{"--cacert", a.path("ca.pem"), "https://" + p.addrs[2].String() + url}

	text := curl(t, secure...)
	require.True(t, strings.HasPrefix(text, "HTTP/2 401"), text)
	require.Contains(t, text, "www-authenticate: Bearer")
	text = curl(t, append(secure, "-H", "Authorization: Bearer s3cret-token")...)
	require.True(t, strings.HasPrefix(text, "HTTP/2 200"), text)
	require.Contains(t, text, "cache-control: private") // HC-51
	require.Contains(t, curl(t, append(secure, "-H", "Authorization: Bearer wrong")...), "HTTP/2 401")
	text = curl(t, "-H", "Authorization: Bearer s3cret-token", "http://"+p.addrs[1].String()+url)
	require.True(t, strings.HasPrefix(text, "HTTP/1.1 403"), text)
	require.NotContains(t, p.text(), "s3cret")
	p.waitFor(`belongs to no client.*alice`)
}

// What happens between HTTP and CoAP: long bodies travel in blocks (HC-94), a
// silent server gives 504 (HC-96), who asks too much 429 (HC-105), and stored
// responses are used as the client says (HC-57).
func TestHTTPTransfer(t *testing.T) {
	t.Parallel()
	origin := single(t, func(s *server, r *request) {
		switch r.Path() {
		case "/silent":
		case "/big":
			blockwise(pattern(3000), 6)(s, r)
		default:
			stored(s, r)
		}
	})
	s := web(newAuthority(t), "", forwarding.client)
	s.cache, s.limits = "enabled: true", "response_timeout_con: 1s"
	p := startProxy(t, group0, s)
	url := "http://" + p.addrs[1].String() + "/hc/coap://" + origin.addr().String()
	require.True(t, strings.HasSuffix(curl(t, url+"/big"), "\r\n\r\n"+string(pattern(3000))))
	require.Contains(t, curl(t, url+"/silent"), "HTTP/1.1 504 ")

	require.Contains(t, curl(t, "-H", "Cache-Control: only-if-cached", url+"/x"), "HTTP/1.1 504 ")
	require.Empty(t, origin.requestsTo("/x"))
	for range 2 {
		require.Contains(t, curl(t, url+"/x"), "HTTP/1.1 200 ")
	}
	require.Contains(t, curl(t, "-H", "Cache-Control: only-if-cached", url+"/x"), "HTTP/1.1 200 ")
	require.Len(t, origin.requestsTo("/x"), 1)
	require.Contains(t, curl(t, "-H", "Cache-Control: no-cache", url+"/x"), "HTTP/1.1 200 ")
	confirmed := origin.requestsTo("/x")
	require.Len(t, confirmed, 2)
	require.Equal(t, "e1", string(confirmed[1].All(coap.ETag)[0]))
	require.Contains(t, curl(t, "-H", `If-None-Match: "6531"`, url+"/x"), "HTTP/1.1 304 ") // HC-52, HC-55
	require.Len(t, origin.requestsTo("/x"), 2)

	s.limits = "request_rate: 1\nrequest_burst: 2"
	p = startProxy(t, group0, s)
	url = "http://" + p.addrs[1].String() + "/hc/coap://" + origin.addr().String()
	text := curl(t, url+"/x", url+"/x", url+"/x", url+"/x")
	require.Regexp(t, `(?s)HTTP/1.1 200.*HTTP/1\.1 429 .*Retry-After: 1\r\n`, text)
}

// A request body that does not fit one message is cut into blocks (HC-94).
func TestHTTPLongBody(t *testing.T) {
	t.Parallel()
	var mu sync.Mutex
	var got []byte
	origin := single(t, func(s *server, r *request) {
		o, ok := r.Option(coap.Block1)
		mu.Lock()
		got = append(got, r.Payload...)
		mu.Unlock()
		switch {
		case !ok:
			s.answer(r, coap.Message{Code: coap.CodeOf(4, 13), Options: []coap.Option{block(coap.Block1, 0, false, 5)}})
		case o.Uint()&8 != 0:
			s.answer(r, coap.Message{Code: coap.CodeOf(2, 31), Options: []coap.Option{o}})
		default:
			s.answer(r, coap.Message{Code: coap.CodeOf(2, 4), Options: []coap.Option{o}})
		}
	})
	p := startProxy(t, group0, web(newAuthority(t), "", forwarding.client))
	body := string(pattern(3000))
	text := curl(t, "-X", "PUT", "-H", "Content-Type: text/plain", "-d", body, "http://"+p.addrs[1].String()+"/hc/coap://"+origin.addr().String()+"/x")
	require.Contains(t, text, "HTTP/1.1 204 ")
	mu.Lock()
	defer mu.Unlock()
	require.Equal(t, body, string(got))
	require.Greater(t, len(origin.requests()), 1)
}

// Routes are for HTTP clients what they are for CoAP clients: the first that matches
// counts, and one that is for a listener is for no other (HC-10).
func TestHTTPRoutes(t *testing.T) {
	t.Parallel()
	origin := single(t, content)
	p := startProxy(t, group0, settings{listen: "- coap://127.0.0.1:0\n- http://127.0.0.1:0\n- http://127.0.0.2:0", client: forwarding.client,
		top: strings.ReplaceAll(`routes:
- {name: second-listener, listen: ["http://127.0.0.2:0"], to: "coap://ORIGIN/second"}
- {name: long, path: /a/b, to: "coap://ORIGIN/long"}
- {name: named, host: [a.test], path: /a, to: "coap://ORIGIN/named"}
- {name: short, path: /a, to: "coap://ORIGIN/short"}
- {name: coap-only, path: /c, listen: ["coap://127.0.0.1:0"], to: "coap://ORIGIN/c"}`, "ORIGIN", origin.addr().String()) + "\nhttp: {host_names: [a.test]}"})
	first, second := "http://"+p.addrs[1].String(), "http://"+p.addrs[2].String()
	for url, want := range map[string]string{
		first + "/a/b/x?q": "/long/x", first + "/a/bb": "/short/bb", first + "/a": "/short", second + "/a/b": "/second/a/b", second + "/": "/second/", second + "/hc/x": "/second/hc/x",
	} {
		require.Regexp(t, `^HTTP/1\.1 200 (.*\r\n)+\r\nserver`+want+`$`, curl(t, url), url)
	}
	require.Regexp(t, `server/named$`, curl(t, "-H", "Host: a.test", first+"/a"))
	require.Regexp(t, `^HTTP/1\.1 404 `, curl(t, first+"/c"))
	c := newClient(t, here, clientAddr, p.addr())
	in := c.ask(&coap.Message{Type: coap.CON, Code: coap.GET, Options: []coap.Option{coap.Opt(coap.URIPath, "c")}})
	require.Equal(t, "server/c", string(in.Payload))
}

// However a path is encoded, what is asked of a server is what access was decided on: two
// ways to write the same path lead to the same server, dot segments nowhere, and an encoded
// slash is no separator (HC-10, HC-13, HC-101; RFC 3986 §6.2.2).
func TestHTTPEncodedTargets(t *testing.T) {
	t.Parallel()
	open, closed := single(t, content), single(t, content)
	p := startProxy(t, group0, settings{listen: "- coap://127.0.0.1:0\n- http://127.0.0.1:0", client: "forward: [\"coap://" + open.addr().String() + "\"]",
		top: fmt.Sprintf("routes:\n- {name: closed, path: /lamps/closed, to: \"coap://%v/in\"}\n- {name: open, path: /lamps, to: \"coap://%v/in\"}", closed.addr(), open.addr())})
	base := "http://" + p.addrs[1].String()
	hc := base + "/hc/coap://"
	host, port, _ := strings.Cut(closed.addr().String(), ":")
	for url, want := range map[string]string{
		base + "/l%61mps/x": "200 server/in/x", base + "/%6C%61mps": "200 server/in", base + "/lamps/a%2fb": "200 server/in/a/b",
		base + "/lamps//x": "200 server/in//x", base + "/lamps/closed2": "200 server/in/closed2", base + "/lamps/close%2564": "200 server/in/close%64",
		base + "/lamps/closed%2Fx": "200 server/in/closed/x", base + "/lamps//closed": "200 server/in//closed",
		base + "/lamps/closed": "403", base + "/lamps/close%64": "403", base + "/l%61mps/%63%6c%6F%73%65%64/x": "403", base + "/lamps/closed/": "403",
		base + "/lamps/x/../closed": "400", base + "/lamps/%2e%2e/lamps/closed": "400", base + "/lamps/%2E./closed": "400", base + "/lamps/.%2e%2fclosed": "200 server/in/../closed",
		base + "/lamps/./closed": "400", base + "/x/../lamps/closed": "404", base + "/lamps/%c0%ae%c0%ae/closed": "400", base + "/lamps%2fclosed": "404", base + "//lamps/closed": "404",
		hc + open.addr().String() + "/%2e%2e/x": "400", hc + open.addr().String() + "@" + host + ":" + port + "/x": "400",
		hc + strings.Replace(host, "1", "%31", 1) + ":" + port + "/x":      "403",
		hc + open.addr().String() + "%2F@" + closed.addr().String() + "/x": "400",
		hc + strings.Replace(open.addr().String(), "1", "%31", 1) + "/x":   "200 server/x",
	} {
		status, body, _ := strings.Cut(curl(t, "--path-as-is", url), "\r\n\r\n")
		got := status[len("HTTP/1.1 "):][:3]
		if got == "200" {
			got += " " + body
		}
		require.Equal(t, want, got, url)
	}
	require.Empty(t, closed.requests(), "what was not allowed was asked for")
	for _, r := range open.requests() {
		for _, o := range r.All(coap.URIPath) {
			require.NotContains(t, []string{".", ".."}, string(o))
		}
	}
}
