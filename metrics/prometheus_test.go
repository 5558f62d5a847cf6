package metrics_test

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus/testutil"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/metrics"
)

type counters struct {
	Done    [2][2]atomic.Uint64 `metric:"done_total" help:"Done." label:"kind,outcome"`
	Running atomic.Int64        `metric:"running" help:"Running."`
	Latency exchange.Histogram  `metric:"latency_seconds" help:"Latency."`
}

func (*counters) LabelValues(string) [][]string { return [][]string{{"one", "many"}, {"good", "bad"}} }

func TestCollect(t *testing.T) {
	var r metrics.Registry
	var c counters
	r.Register("room", &c, nil)
	r.Func("room_computed", "Computed.", func() int64 { return 7 })
	c.Done[1][0].Add(3)
	c.Running.Add(-2)
	c.Latency.Observe(time.Second)
	problems, err := testutil.CollectAndLint(&r)
	require.NoError(t, err)
	require.Empty(t, problems)
	require.NoError(t, testutil.CollectAndCompare(&r, strings.NewReader(`
# HELP coapproxy_room_computed Computed.
# TYPE coapproxy_room_computed gauge
coapproxy_room_computed 7
# HELP coapproxy_room_done_total Done.
# TYPE coapproxy_room_done_total counter
coapproxy_room_done_total{kind="many",outcome="bad"} 0
coapproxy_room_done_total{kind="many",outcome="good"} 3
coapproxy_room_done_total{kind="one",outcome="bad"} 0
coapproxy_room_done_total{kind="one",outcome="good"} 0
# HELP coapproxy_room_running Running.
# TYPE coapproxy_room_running gauge
coapproxy_room_running -2
`), "coapproxy_room_computed", "coapproxy_room_done_total", "coapproxy_room_running"))
	require.Contains(t, r.Samples(), metrics.Sample{Name: "room_done_total", Help: "Done.", Label: "kind,outcome", LabelValue: "many,good", Value: 3})
}

// The listener answers, bounds its connections, and leaves nothing behind.
func TestServer(t *testing.T) {
	defer goleak.VerifyNone(t)
	var sick atomic.Bool
	check := func(context.Context) error {
		if sick.Load() {
			return errors.New("sick")
		}
		return nil
	}
	s := &metrics.Server{Registry: &metrics.Registry{}, Version: "1", Healthy: check, Ready: check, Log: zap.NewNop()}
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() { require.NoError(t, s.Serve(ctx, l)) })
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	ask := func(path string) (int, string) {
		answer, err := client.Get("http://" + l.Addr().String() + path) //nolint:noctx // it is here
		require.NoError(t, err)
		defer answer.Body.Close()
		body, err := io.ReadAll(answer.Body)
		require.NoError(t, err)
		return answer.StatusCode, string(body)
	}
	status, body := ask("/metrics")
	require.Equal(t, 200, status)
	require.Contains(t, body, `coapproxy_build_info{`)
	status, body = ask("/healthz")
	require.Equal(t, 200, status)
	require.Equal(t, "ok\n", body)
	sick.Store(true)
	status, body = ask("/readyz")
	require.Equal(t, 503, status)
	require.Equal(t, "sick\n", body)

	var held []net.Conn
	closed := 0
	for range 40 { // idle ones; the last few are closed at once
		c, err := net.Dial("tcp", l.Addr().String())
		require.NoError(t, err)
		held = append(held, c)
	}
	for _, c := range slices.Backward(held) {
		require.NoError(t, c.SetReadDeadline(time.Now().Add(500*time.Millisecond)))
		var timeout net.Error
		if _, err := c.Read(make([]byte, 1)); !errors.As(err, &timeout) || !timeout.Timeout() {
			closed++
		}
		if closed > 0 {
			break
		}
	}
	for _, c := range held {
		_ = c.Close()
	}
	require.Positive(t, closed)
	cancel()
	wg.Wait()
}
