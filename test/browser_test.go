package test

import (
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// page is a web page of an origin of its own, with docs/batch.mjs beside it.
func page(t *testing.T) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/":
			w.Header().Set("Content-Type", "text/html")
			_, _ = w.Write([]byte("<!doctype html><title>page</title>"))
		case "/batch.mjs":
			http.ServeFile(w, r, "../docs/batch.mjs")
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// browse runs the body of an async function in a page that chromium has opened,
// and reads its result into result. It returns the protocols of what the page
// asked for, by URL.
func browse(t *testing.T, url, script string, result any, args ...string) map[string]string {
	t.Helper()
	out := run(t, here, append([]string{"node", "peers/browser.mjs", t.TempDir(), url, script}, args...)...)
	require.Zero(t, out.code, "test/install-deps installs chromium and playwright-core\n%s\n%s", out.stdout, out.stderr)
	got := struct {
		Result    any
		Protocols map[string]string
	}{Result: result}
	require.NoError(t, json.Unmarshal([]byte(out.stdout), &got), out.stdout)
	return got.Protocols
}

// spki is how chromium is told to trust one certificate.
func spki(t *testing.T, file string) string {
	t.Helper()
	text, err := os.ReadFile(file)
	require.NoError(t, err)
	block, _ := pem.Decode(text)
	cert, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	sum := sha256.Sum256(cert.RawSubjectPublicKeyInfo)
	return base64.StdEncoding.EncodeToString(sum[:])
}

// A page of an allowed origin asks a group with fetch, over HTTP/1.1, HTTP/2 and
// HTTP/3, for a batch and for a stream of parts, and takes both apart with the
// parser of docs/batch.mjs (HC-77, HC-87, HC-88, HC-90).
func TestBrowser(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 3, content)
	a, origin := newAuthority(t), page(t)
	p := startProxy(t, group, web(a, "http:\n  cors: {origins: [\""+origin+"\"]}\n  host_names: [gw.example]\n", ""))
	const script = `
		const {responses} = await import("/batch.mjs");
		const all = [];
		for (const base of BASES) for (const prefer of ["", "stream-parts"]) {
			const fields = {"Multicast-Timeout": "1"};
			if (prefer) fields.Prefer = prefer;
			const batch = await fetch(base + "/hc/TARGET" + (prefer ? "?s" : ""), {headers: fields});
			const got = {status: batch.status, applied: batch.headers.get("Preference-Applied") ?? "", parts: []};
			for await (const r of responses(batch))
				got.parts.push({server: r.server, status: r.status, text: await r.text(), from: r.headers.get("Reply-From")});
			all.push(got);
		}
		return all;`
	secure := fmt.Sprintf("https://gw.example:%d", p.addrs[2].Port())
	for name, x := range map[string]struct {
		bases    string
		protocol string
		args     []string
	}{
		"HTTP/1.1 and HTTP/2": {fmt.Sprintf("[%q, %q]", "http://"+p.addrs[1].String(), secure), "TLS 1.3", []string{"--disable-quic"}},
		"HTTP/3":              {fmt.Sprintf("[%q]", secure), "QUIC", []string{fmt.Sprintf("--origin-to-force-quic-on=gw.example:%d", p.addrs[2].Port())}},
	} {
		t.Run(name, func(t *testing.T) {
			var got []struct {
				Status  int
				Applied string
				Parts   []struct {
					Server, Text, From string
					Status             int
				}
			}
			text := strings.ReplaceAll(strings.ReplaceAll(script, "BASES", x.bases), "TARGET", groupURI(group, "/temp"))
			protocols := browse(t, origin, text, &got, append(x.args, "--host-resolver-rules=MAP gw.example 127.0.0.1",
				"--ignore-certificate-errors-spki-list="+spki(t, a.path("server.pem")))...)
			require.Len(t, got, 2*strings.Count(x.bases, "://"))
			for i, batch := range got {
				require.Equal(t, 200, batch.Status)
				require.Equal(t, []string{"", "stream-parts"}[i%2], batch.Applied)
				require.Len(t, batch.Parts, len(servers))
				seen := make(map[string]bool)
				for _, part := range batch.Parts {
					require.Equal(t, 200, part.Status)
					require.Regexp(t, `^coap://127\.0\.1\.\d+:\d+/temp(\?s)?$`, part.Server)
					require.Regexp(t, `^member\d+/temp$`, part.Text)
					require.Regexp(t, `^:[A-Za-z0-9+/]+=*:$`, part.From)
					seen[part.Server] = true
				}
				require.Len(t, seen, len(servers))
			}
			for url, protocol := range protocols {
				if strings.HasPrefix(url, secure) {
					require.Equal(t, x.protocol, protocol, url)
				}
			}
			require.NotEmpty(t, protocols[secure+"/hc/"+groupURI(group, "/temp")])
		})
	}
	// A page of another origin gets nothing to read.
	var refused string
	browse(t, page(t), `try { await fetch("http://`+p.addrs[1].String()+`/hc/`+groupURI(group, "/temp")+`", {headers: {"Multicast-Timeout": "1"}}); return "read" }
		catch (e) { return e.name }`, &refused, "--disable-quic")
	require.Equal(t, "TypeError", refused)
}
