package test

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

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

// A group is observed through a route with a default timeout: each first response
// is an event that names its server, and so is every notification, also after T'
// (HC-92, HC-10, GP-63, GP-64). A second stream shares the registration and gets
// the latest of each (GP-68); the last stream closed ends it (GP-66).
func TestHTTPGroupEvents(t *testing.T) {
	t.Parallel()
	for _, cache := range []string{"enabled: false", "enabled: true"} {
		t.Run(cache, func(t *testing.T) {
			t.Parallel()
			o := newObservable(60)
			servers, group := members(t, 3, o.handle)
			s := web(newAuthority(t), fmt.Sprintf("routes:\n  - {name: lamps, path: /lamps, to: \"coap://%v/light\", multicast_timeout: 1s}\n", group), "")
			s.cache = cache
			p := startProxy(t, group, s)
			url := "http://" + p.addrs[1].String() + "/lamps"
			events, leave := openEvents(t, url)
			first := readEvents(t, events, len(servers))
			seen := make(map[string]bool)
			for _, e := range first {
				require.Equal(t, 200, e.Status)
				require.NotEmpty(t, e.ReplyFrom)
				seen[e.Server] = true
			}
			require.Len(t, seen, len(servers))
			require.Equal(t, "/light", servers[0].requests()[0].Path())
			time.Sleep(1500 * time.Millisecond) // T' is over
			for i, m := range servers {
				o.set(m, fmt.Sprint("after ", i))
				e := readEvents(t, events, 1)[0]
				require.Equal(t, fmt.Sprintf("member%d after %d", i+1, i), e.Body)
				require.Equal(t, 200, e.Status)
				require.Regexp(t, `/servers/[0-9a-f]{10}$`, e.Server)
				require.True(t, seen[e.Server])
				require.NotEmpty(t, e.ReplyFrom)
			}

			second, leaveSecond := openEvents(t, url)
			var latest []string
			for _, e := range readEvents(t, second, len(servers)) {
				latest = append(latest, e.Body)
			}
			require.ElementsMatch(t, []string{"member1 after 0", "member2 after 1", "member3 after 2"}, latest)
			require.Len(t, servers[0].requests(), 1)
			leave()
			o.set(servers[0], "later")
			require.Equal(t, "member1 later", readEvents(t, second, 1)[0].Body)
			require.Equal(t, 1, o.count(servers[0]))
			leaveSecond()
			for _, m := range servers {
				eventually(t, func() bool { return o.count(m) == 0 }, "it is still observed")
			}
		})
	}
}

// openEvents opens a stream of events, which ends with the test or when left.
func openEvents(t *testing.T, url string) (_ *bufio.Reader, leave func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	require.NoError(t, err)
	r.Header.Set("Accept", "text/event-stream")
	w, err := http.DefaultClient.Do(r)
	require.NoError(t, err)
	require.Equal(t, 200, w.StatusCode)
	require.Equal(t, "text/event-stream", w.Header.Get("Content-Type"))
	leave = func() { cancel(); _ = w.Body.Close() }
	t.Cleanup(leave)
	return bufio.NewReader(w.Body), leave
}

// A page observes a group with EventSource, which can set no field (HC-92); what
// a member says after T' arrives.
func TestBrowserEvents(t *testing.T) {
	t.Parallel()
	o := newObservable(60)
	servers, group := members(t, 3, o.handle)
	origin := page(t)
	s := web(newAuthority(t), fmt.Sprintf("routes:\n  - {name: lamps, path: /lamps, to: \"coap://%v/light\", multicast_timeout: 1s}\nhttp:\n  cors: {origins: [%q]}\n", group, origin), "")
	p := startProxy(t, group, s)
	done := make(chan struct{})
	var notifier sync.WaitGroup
	notifier.Go(func() {
		for {
			select {
			case <-done:
				return
			case <-time.After(500 * time.Millisecond): // some before T', some after
				o.set(servers[1], "again")
			}
		}
	})
	defer func() { close(done); notifier.Wait() }()
	var got []struct {
		sseData
		After float64
	}
	browse(t, origin, `return await new Promise((resolve, reject) => {
		const all = [], began = Date.now(), source = new EventSource("http://`+p.addrs[1].String()+`/lamps");
		source.onerror = () => reject(new Error("the stream broke"));
		source.onmessage = (e) => {
			const r = JSON.parse(e.data);
			all.push({Server: r.server, Status: r.status, Body: r.body, ReplyFrom: r.replyFrom, After: (Date.now() - began) / 1000});
			if (new Set(all.map((r) => r.Server)).size === 3 && Date.now() - began > 2500) { source.close(); resolve(all); }
		};
	})`, &got, "--disable-quic")
	seen := make(map[string]bool)
	for _, e := range got {
		require.Equal(t, 200, e.Status)
		require.NotEmpty(t, e.ReplyFrom)
		seen[e.Server] = true
	}
	require.Len(t, seen, 3)
	last := got[len(got)-1]
	require.Equal(t, "member2 again", last.Body)
	require.Greater(t, last.After, 1.5)
	eventually(t, func() bool { return o.count(servers[1]) == 0 }, "it is still observed")
}
