package test

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// sseData is the data of one event.
type sseData struct {
	Server, Body, ReplyFrom string
	Status                  int
}

// readEvents reads n events of a stream.
func readEvents(t *testing.T, r *bufio.Reader, n int) (all []sseData) {
	t.Helper()
	for len(all) < n {
		line, err := r.ReadString('\n')
		require.NoError(t, err)
		if text, ok := strings.CutPrefix(line, "data: "); ok {
			var e sseData
			require.NoError(t, json.Unmarshal([]byte(text), &e), text)
			all = append(all, e)
		}
	}
	return all
}

// A browser goes on with a cookie that it got for a token: EventSource can set no
// field (HC-92).
func TestHTTPSession(t *testing.T) {
	t.Parallel()
	origin := single(t, content)
	a := newAuthority(t)
	file := filepath.Join(t.TempDir(), "tokens")
	require.NoError(t, os.WriteFile(file, fmt.Appendf(nil, "page bearer %x\n", sha256.Sum256([]byte("token"))), 0o600))
	s := web(a, "", "")
	s.clients = "- name: page\n  http: page\n  forward: [\"coap://127.0.0.0/8:*\"]"
	s.top += "  http: " + file
	p := startProxy(t, group0, s)
	base := "https://" + p.addrs[2].String()
	url := base + "/hc/coap://" + origin.addr().String() + "/x"

	jar := filepath.Join(t.TempDir(), "cookies")
	text := curl(t, "--cacert", a.path("ca.pem"), "-c", jar, "-X", "POST", "-H", "Authorization: Bearer token", base+"/session")
	require.Contains(t, text, "HTTP/2 204")
	require.Contains(t, text, "SameSite=Strict")
	stream := start(t, here, "curl", "curl", "-sN", "--globoff", "--cacert", a.path("ca.pem"), "-b", jar, "-H", "Accept: text/event-stream", url)
	stream.waitFor(`id: 0\ndata: .*"status":200`)
	stream.kill()
	require.Contains(t, curl(t, "--cacert", a.path("ca.pem"), "-b", jar, "-X", "DELETE", base+"/session"), "HTTP/2 204")
	require.Contains(t, curl(t, "--cacert", a.path("ca.pem"), "-b", jar, url), "HTTP/2 401")
}

// A group is asked through a route with a default timeout; each first response is
// an event that names its server (HC-92, HC-10).
func TestHTTPGroupEvents(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 3, content)
	s := web(newAuthority(t), fmt.Sprintf("routes:\n  - {name: lamps, path: /lamps, to: \"coap://%v/light\", multicast_timeout: 1s}\n", group), "")
	p := startProxy(t, group, s)
	r, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+p.addrs[1].String()+"/lamps", nil)
	require.NoError(t, err)
	r.Header.Set("Accept", "text/event-stream")
	w, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	defer w.Body.Close()
	require.Equal(t, 200, w.StatusCode)
	seen := make(map[string]bool)
	for _, e := range readEvents(t, bufio.NewReader(w.Body), len(servers)) {
		require.Equal(t, 200, e.Status)
		require.NotEmpty(t, e.ReplyFrom)
		seen[e.Server] = true
	}
	require.Len(t, seen, len(servers))
	require.Equal(t, "/light", servers[0].requests()[0].Path())
}

// A page asks a group with EventSource, which can set no field (HC-92).
func TestBrowserEvents(t *testing.T) {
	t.Parallel()
	_, group := members(t, 3, content)
	origin := page(t)
	s := web(newAuthority(t), fmt.Sprintf("routes:\n  - {name: lamps, path: /lamps, to: \"coap://%v/light\", multicast_timeout: 1s}\nhttp:\n  cors: {origins: [%q]}\n", group, origin), "")
	p := startProxy(t, group, s)
	var got []sseData
	browse(t, origin, `return await new Promise((resolve, reject) => {
		const all = [], source = new EventSource("http://`+p.addrs[1].String()+`/lamps");
		source.onerror = () => reject(new Error("the stream broke"));
		source.onmessage = (e) => {
			const r = JSON.parse(e.data);
			all.push({Server: r.server, Status: r.status, Body: r.body, ReplyFrom: r.replyFrom});
			if (all.length === 3) { source.close(); resolve(all); }
		};
	})`, &got, "--disable-quic")
	require.Len(t, got, 3)
	for _, e := range got {
		require.Equal(t, 200, e.Status)
		require.NotEmpty(t, e.ReplyFrom)
	}
}
