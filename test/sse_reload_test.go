package test

import (
	"bufio"
	"fmt"
	"io"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// rest reads a stream of events to its end.
func rest(t *testing.T, r *bufio.Reader) string {
	t.Helper()
	text, err := io.ReadAll(r)
	require.NoError(t, err)
	return string(text)
}

// Streams of server-sent events, of a server and of a group, go on under a
// configuration that leaves alone what they depend on. Another one interrupts them and
// says so: an EventSource comes back by itself then, and finds out whether it still may
// (HC-92).
func TestHTTPEventsReload(t *testing.T) {
	t.Parallel()
	for _, cache := range []string{"enabled: false", "enabled: true"} {
		t.Run(cache, func(t *testing.T) {
			t.Parallel()
			o, m := newObservable(60), newObservable(60)
			origin := single(t, o.handle)
			servers, group := members(t, 2, m.handle)
			s := web(newAuthority(t), fmt.Sprintf("routes:\n  - {name: lamps, path: /lamps, to: \"coap://%v/light\", multicast_timeout: 1s}\n", group), forwarding.client)
			s.cache = cache
			p := startProxy(t, group, s)
			urls := []string{"http://" + p.addrs[1].String() + "/hc/coap://" + origin.addr().String() + "/x", "http://" + p.addrs[1].String() + "/lamps"}
			// bodies reads n events that say the same.
			bodies := func(r *bufio.Reader, n int, state string) {
				t.Helper()
				seen := make(map[string]bool)
				for len(seen) < n { // also again, after a registration of its own
					e := readEvents(t, r, 1)[0]
					require.Equal(t, 200, e.Status)
					if strings.HasSuffix(e.Body, " "+state) {
						seen[e.Server] = true
					}
				}
			}
			one, _ := openEvents(t, urls[0])
			all, _ := openEvents(t, urls[1])
			bodies(one, 1, "")
			bodies(all, 2, "")

			s.limits = "upstream_queue: 77"
			p.reload(s.yaml(group))
			// The observations are registered anew, or the servers would talk to nobody.
			eventually(t, func() bool {
				return len(origin.requests()) >= 2 && len(servers[0].requests()) >= 2 && len(servers[1].requests()) >= 2
			}, "new registrations")
			o.set(origin, "later")
			for _, server := range servers {
				m.set(server, "later")
			}
			bodies(one, 1, "later")
			bodies(all, 2, "later")

			s.names = "lamp.test: [127.0.2.1]"
			p.reload(s.yaml(group))
			for _, r := range []*bufio.Reader{one, all} {
				require.Regexp(t, `retry: 1000\nevent: interrupted\ndata: {"status":503,"detail":"the configuration has changed"}\n\n$`, rest(t, r))
			}
			one, _ = openEvents(t, urls[0]) // as an EventSource does
			all, _ = openEvents(t, urls[1])
			bodies(one, 1, "later")
			bodies(all, 2, "later")

			s.clients, s.client = "- {name: tester, networks: [127.0.0.0/8]}", ""
			p.reload(s.yaml(group))
			for i, r := range []*bufio.Reader{one, all} {
				require.Contains(t, rest(t, r), "event: interrupted\n")
				require.Regexp(t, `^HTTP/1\.1 403 `, curl(t, "-H", "Accept: text/event-stream", urls[i]))
			}
			eventually(t, func() bool { return o.count(origin) == 0 && m.count(servers[0]) == 0 && m.count(servers[1]) == 0 }, "the end of the observations")
		})
	}
}

// A stop does not wait for those who watch: it tells them to come back, and the server
// that they have gone (HC-92, FP-67).
func TestHTTPEventsStop(t *testing.T) {
	t.Parallel()
	o := newObservable(60)
	origin := single(t, o.handle)
	s := web(newAuthority(t), "", forwarding.client)
	s.limits = "grace: 5m"
	p := startProxy(t, group0, s)
	stream, _ := openEvents(t, "http://"+p.addrs[1].String()+"/hc/coap://"+origin.addr().String()+"/x")
	readEvents(t, stream, 1)
	p.stop()
	require.Contains(t, rest(t, stream), "event: interrupted\n")
	eventually(t, func() bool { return o.count(origin) == 0 }, "the end of the observation")
}
