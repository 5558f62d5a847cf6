package test

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/prometheus/client_golang/prometheus/testutil/promlint"
	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// privately are settings with a listener for metrics.
func privately(s settings) settings {
	s.metrics = "listen: 127.0.0.1:0"
	return s
}

// private asks the private listener for a path.
func (p *proxy) private(path string) (status int, body string) {
	p.t.Helper()
	base := strings.TrimSuffix(p.entries("metrics")[0].text("uri"), "/metrics")
	answer, err := http.Get(base + path) //nolint:noctx // the proxy is here and its answers are short
	require.NoError(p.t, err)
	defer answer.Body.Close()
	data, err := io.ReadAll(answer.Body)
	require.NoError(p.t, err)
	return answer.StatusCode, string(data)
}

// scrape returns the metrics, by name and labels as they are written.
func (p *proxy) scrape() map[string]float64 {
	p.t.Helper()
	status, text := p.private("/metrics")
	require.Equal(p.t, http.StatusOK, status)
	out := make(map[string]float64)
	for line := range strings.Lines(text) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "} "); ok && line[0] != '#' {
			out[name+"}"], _ = strconv.ParseFloat(value, 64)
		} else if name, value, ok := strings.Cut(strings.TrimSpace(line), " "); ok && line[0] != '#' {
			out[name], _ = strconv.ParseFloat(value, 64)
		}
	}
	return out
}

// What happened shows in the metrics, which keep to Prometheus' conventions.
func TestMetrics(t *testing.T) {
	t.Parallel()
	_, group := members(t, 3, content)
	origin := single(t, paths(map[string]handler{"missing": code(4, 4, ""), "broken": code(5, 0, "")}))
	s := privately(forwarding)
	s.cache = "enabled: true"
	p := startProxy(t, group, s)
	c := newClient(t, here, clientAddr, p.addr())
	for _, path := range []string{"x", "missing", "broken"} {
		c.ask(get(coap.CON, fmt.Sprintf("coap://%v/%s", origin.addr(), path)))
	}
	c.ask(get(coap.CON, "coap://192.0.2.1/x"))
	c.gatherN(get(coap.NON, groupURI(group, "/x"), timeout(1)), 3)
	eventually(t, func() bool {
		return p.scrape()[`coapproxy_proxy_exchanges_total{kind="group",outcome="answered"}`] == 1
	}, "for the group exchange to end")
	m := p.scrape()
	for name, want := range map[string]float64{
		`coapproxy_proxy_exchanges_total{kind="unicast",outcome="answered"}`:     1,
		`coapproxy_proxy_exchanges_total{kind="unicast",outcome="client_error"}`: 1,
		`coapproxy_proxy_exchanges_total{kind="unicast",outcome="server_error"}`: 1,
		`coapproxy_proxy_exchanges_total{kind="unicast",outcome="refused"}`:      1,
		`coapproxy_proxy_failures_total{reason="denied"}`:                        1,
		`coapproxy_proxy_responses_relayed_total`:                                3,
		`coapproxy_proxy_timeout_overshoot_seconds_count`:                        1,
		`coapproxy_coap_upstream_latency_seconds_count`:                          3,
		`coapproxy_group_response_latency_seconds_count`:                         3,
		`coapproxy_cache_misses_total`:                                           4,
		`coapproxy_coap_receive_buffer_drops_total`:                              0,
		`coapproxy_config_generations`:                                           1,
		`coapproxy_proxy_exchanges`:                                              0,
	} {
		got, ok := m[name]
		require.True(t, ok, name)
		require.InDelta(t, want, got, 0, name)
	}
	require.Less(t, m[`coapproxy_proxy_timeout_overshoot_seconds_sum`], 5.0)

	_, text := p.private("/metrics")
	problems, err := promlint.New(bytes.NewReader([]byte(text))).Lint()
	require.NoError(t, err)
	require.Empty(t, problems)
	for _, series := range regexp.MustCompile(`(?m)^coapproxy_\S+`).FindAllString(text, -1) {
		require.NotContains(t, series, "127.0.0", "no addresses in labels: there may be any number")
	}

	for path, want := range map[string]int{"/healthz": 200, "/readyz": 200, "/debug/pprof/": 404, "/": 404} {
		status, _ := p.private(path)
		require.Equal(t, want, status, path)
	}
}

// While the proxy stops it is healthy but not ready; profiles are there if they
// are wanted.
func TestReadiness(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 1, silent)
	s := privately(settings{limits: "grace: 20s"})
	s.metrics += "\npprof: true"
	p := startProxy(t, group, s)
	status, body := p.private("/debug/pprof/goroutine?debug=1")
	require.Equal(t, 200, status)
	require.Contains(t, body, "goroutine profile")
	c := newClient(t, here, clientAddr, p.addr())
	c.send(c.fresh(get(coap.NON, groupURI(group, "/x"), timeout(3))))
	eventually(t, func() bool { return len(servers[0].requests()) > 0 }, "for the request")
	p.signal(syscall.SIGTERM)
	p.waitFor(`"msg":"stopping"`)
	eventually(t, func() bool { status, body = p.private("/readyz"); return status == 503 }, "to be not ready")
	require.Equal(t, "stopping\n", body)
	status, _ = p.private("/healthz")
	require.Equal(t, 200, status)
	require.Zero(t, p.wait())
}

// How long servers take is measured by every transport.
func TestUpstreamLatency(t *testing.T) {
	t.Parallel()
	web := newWebServer(t)
	behind := startProxy(t, group0, settings{listen: "- coap+tcp://127.0.0.1:0"})
	p := startProxy(t, group0, privately(settings{client: `forward: ["http://127.0.0.0/8:*", "coap+tcp://127.0.0.0/8:*"]`}))
	c := newClient(t, here, clientAddr, p.addr())
	for _, uri := range []string{web.URL + "/x", fmt.Sprintf("coap+tcp://%v/.well-known/core", behind.addrs[0])} {
		require.Equal(t, coap.CodeOf(2, 5), c.ask(get(coap.CON, uri)).Code, uri)
	}
	m := p.scrape()
	for _, name := range []string{"coapproxy_http_servers_latency_seconds", "coapproxy_upstream_connection_latency_seconds"} {
		require.InDelta(t, 1, m[name+"_count"], 0, name)
		require.Positive(t, m[name+"_sum"], name)
	}
}
