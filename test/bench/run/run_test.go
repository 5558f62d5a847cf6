package main

import (
	"bytes"
	"context"
	"math"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.yaml.in/yaml/v3"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func cpuOf(s sample) float64 { return s.cpu }

func TestNullRelayIsTheBetterOfEachRound(t *testing.T) {
	r := results{
		{{"non", nullUnbatched}: {cpu: 5}, {"non", nullBatched}: {cpu: 6}, {"non", subject}: {cpu: 10}},
		{{"non", nullUnbatched}: {cpu: 9}, {"non", nullBatched}: {cpu: 8}, {"non", subject}: {cpu: 12}},
		{{"non", nullBatched}: {cpu: 4}, {"non", subject}: {cpu: 4}},
		{{"non", subject}: {cpu: 100}}, // the relays failed in this round: it gives no ratio
	}
	require.Equal(t, []float64{5, 8, 4}, r.of(measured{"non", null}, cpuOf))
	require.InDelta(t, 1.5, ratio("non", cpuOf, subject, null)(r), 1e-9)
	require.InDelta(t, 100, worst("non", cpuOf)(r), 1e-9)
	require.InDelta(t, 11, value("non", cpuOf)(r), 1e-9)
	require.True(t, math.IsNaN(ratio("con", cpuOf, subject, null)(r)))
	require.True(t, math.IsNaN(worst("con", cpuOf)(r)))
}

func TestTargetRow(t *testing.T) {
	is := func(v float64) func(results) float64 { return func(results) float64 { return v } }
	for _, tc := range []struct {
		target target
		want   []string
	}{
		{target{"a", is(1.2), true, 1.35}, []string{"a", "≤ 1.35", "1.20", "met"}},
		{target{"a", is(1.36), true, 1.35}, []string{"a", "≤ 1.35", "1.36", "missed"}},
		{target{"a", is(1.3), false, 1.3}, []string{"a", "≥ 1.3", "1.30", "met"}},
		{target{"a", is(1.2), false, 1.3}, []string{"a", "≥ 1.3", "1.20", "missed"}},
		{target{"a", is(math.NaN()), true, 1}, []string{"a", "≤ 1", "–", "not measured"}},
	} {
		require.Equal(t, tc.want, tc.target.row(nil))
	}
}

func TestReport(t *testing.T) {
	sc := scenarios(&options{only: []string{"con"}})[0]
	r := results{{
		{"con", direct}:        {rate: 170000, cpu: math.NaN(), rss: math.NaN(), peak: math.NaN()},
		{"con", nullUnbatched}: {rate: 60000, cpu: 8, rss: 3, peak: 4},
		{"con", libcoap}:       {rate: 20000, cpu: 40, rss: 2, peak: 3, lost: 7},
		{"con", subject}:       {rate: 70000, cpu: 10, rss: 12.5, peak: 14.5, errors: 1, late: 2},
	}}
	var out bytes.Buffer
	report(&out, sc, r)
	var rows []string
	for line := range strings.Lines(out.String()) {
		rows = append(rows, strings.Join(strings.Fields(line), " "))
	}
	require.Contains(t, rows, "| origin asked directly | 170000 | 0.00 | 0.00 | – | – | – | – | – | 0 | 0 |")
	require.Contains(t, rows, "| libcoap | 20000 | 0.00 | 0.00 | 40.00 | 5.00 | 1.00 | 2.0 | 3.0 | 7 | 0 |")
	require.Contains(t, rows, "| coapproxy | 70000 | 0.00 | 0.00 | 10.00 | 1.25 | 0.25 | 12.5 | 14.5 | 0 | 3 |")
	require.Contains(t, rows, "| CPU per exchange ÷ libcoap | ≤ 0.3 | 0.25 | met |")
	require.Contains(t, rows, "| exchanges/s ÷ libcoap | ≥ 4 | 3.50 | missed |")

	out.Reset()
	report(&out, sc, results{{}})
	require.Contains(t, out.String(), "Not measured.")
}

func TestScenarios(t *testing.T) {
	seen := map[string]bool{}
	for _, sc := range scenarios(&options{only: []string{"non", "con", "group", "burst", "cache", "warm"}, members: []int{10, 5000}}) {
		require.False(t, seen[sc.name], sc.name)
		seen[sc.name] = true
		require.True(t, sc.has(subject))
		require.NotEmpty(t, sc.targets)
	}
	require.True(t, seen["group-5000"])
	require.Len(t, scenarios(&options{only: []string{"con"}}), 1)
}

func TestUnderWay(t *testing.T) {
	for _, members := range []int{1, 10, 100, 1000, 5000, 10_000} {
		clients, window := underWay(members)
		require.Positive(t, clients)
		require.Positive(t, window)
		require.LessOrEqual(t, clients*window*members, groupFlow)
		require.LessOrEqual(t, clients*window, maxUnderWay)
	}
}

func TestConfigIsYAML(t *testing.T) {
	for _, source := range []string{"127.0.0.1:4000", "224.0.1.187:4000"} {
		file := filepath.Join(t.TempDir(), "config.yaml")
		require.NoError(t, writeConfig(file, &scenario{cache: true}, netip.MustParseAddrPort("127.0.0.1:5683"), netip.MustParseAddrPort(source), netip.AddrPort{}))
		b, err := os.ReadFile(file)
		require.NoError(t, err)
		var c struct {
			Listen []string
			Groups []struct{ URI string }
		}
		require.NoError(t, yaml.Unmarshal(b, &c))
		require.Equal(t, []string{"coap://127.0.0.1:5683"}, c.Listen)
		require.Equal(t, "coap://224.0.1.187:4000", c.Groups[0].URI)
	}
}

func TestFailuresTellWhatTheProgramSaid(t *testing.T) {
	l := &lab{dir: t.TempDir()}
	addr, err := freePort()
	require.NoError(t, err)
	_, err = l.start(t.Context(), "x", addr, "sh", "-c", "echo no such option; exit 2")
	require.ErrorContains(t, err, "no such option")
	_, err = output(t.Context(), "sh", "-c", "echo nothing to see >&2; exit 1")
	require.ErrorContains(t, err, "nothing to see")
	require.False(t, bound(addr))
}

// inRoot goes to the module's root, where bench is run.
func inRoot(t *testing.T) {
	t.Helper()
	t.Chdir("../../..")
}

// A short run of the real programs: it finds out whether they work together, not how fast they are.
func TestBench(t *testing.T) {
	inRoot(t)
	var out bytes.Buffer
	o := &options{rounds: 1, duration: 200 * time.Millisecond, clients: 4, only: []string{"non", "con", "group"}, members: []int{20}, binary: "/nonexistent"}
	require.NoError(t, bench(t.Context(), o, &out))
	require.NotContains(t, out.String(), "Not measured.")
	require.Equal(t, 3, strings.Count(out.String(), "| null relay "), out.String())
	if _, err := exec.LookPath(libcoapServer); err == nil {
		require.Equal(t, 2, strings.Count(out.String(), "| libcoap "), out.String())
	}
}

func TestInterruption(t *testing.T) {
	inRoot(t)
	ctx, cancel := context.WithCancel(t.Context())
	addr, err := freePort()
	require.NoError(t, err)
	l := &lab{dir: t.TempDir()}
	require.NoError(t, build(ctx, l.dir, "./test/bench/origin"))
	p, err := l.start(ctx, "origin", addr, filepath.Join(l.dir, "origin"), "-l", addr.String())
	require.NoError(t, err)
	require.True(t, bound(addr))
	n, err := originRequests(addr)
	require.NoError(t, err)
	require.Zero(t, n)
	cancel()
	<-p.done
	require.False(t, bound(addr))
	p.stop() // harmless by now
}
