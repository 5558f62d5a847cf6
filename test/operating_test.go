package test

import (
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

var writeDocs = flag.Bool("write-docs", false, "write the table of metrics in docs/operating.md")

const operating = "../docs/operating.md"

// described is a metric as it is told to Prometheus.
type described struct{ name, kind, labels, help string }

// describe reads what /metrics says of each metric of ours.
func describe(text string) []described {
	var all []described
	for _, m := range regexp.MustCompile(`(?m)^# HELP (coapproxy_\S+) (.*)\n# TYPE \S+ (\S+)\n(?:coapproxy_\w+\{([^}]*)\})?`).FindAllStringSubmatch(text, -1) {
		var labels []string
		for _, l := range regexp.MustCompile(`(\w+)="`).FindAllStringSubmatch(m[4], -1) {
			if l[1] != "le" {
				labels = append(labels, "`"+l[1]+"`")
			}
		}
		all = append(all, described{m[1], m[3], strings.Join(labels, ", "), m[2]})
	}
	return all
}

// docs/operating.md describes every metric, every alert, and nothing else; alerts
// and dashboard ask for metrics that there are.
func TestOperatingDocs(t *testing.T) {
	t.Parallel()
	_, group := members(t, 1, content)
	s := privately(settings{cache: "enabled: true", listen: "- coap://127.0.0.1:0\n- http://127.0.0.1:0",
		top: "next_hop: [{name: next, uri: \"coap://127.0.0.9\", targets: [\"coap://192.0.2.0/24\"]}]"})
	p := startProxy(t, group, s)
	_, text := p.private("/metrics")
	metrics := describe(text)
	require.Greater(t, len(metrics), 100)

	const begin, end = "TestOperatingDocs -write-docs` -->\n", "<!-- metrics: end -->"
	data, err := os.ReadFile(operating)
	require.NoError(t, err)
	docs := string(data)
	i, j := strings.Index(docs, begin)+len(begin), strings.Index(docs, end)
	var table strings.Builder
	table.WriteString("| Metric | Kind | Labels | |\n|---|---|---|---|\n")
	for _, m := range metrics {
		fmt.Fprintf(&table, "| `%s` | %s | %s | %s |\n", m.name, m.kind, m.labels, m.help)
	}
	if *writeDocs {
		require.NoError(t, os.WriteFile(operating, []byte(docs[:i]+table.String()+docs[j:]), 0o600))
		return
	}
	require.Equal(t, table.String(), docs[i:j], "write it with go test ./test/ -run TestOperatingDocs -write-docs")

	known := []string{"up", "process_open_fds", "process_max_fds", "process_cpu_seconds_total", "process_resident_memory_bytes", "go_goroutines", "go_memstats_heap_inuse_bytes"}
	for _, m := range metrics {
		known = append(known, m.name, m.name+"_bucket")
	}
	for _, name := range known[1:7] {
		require.Regexp(t, `(?m)^`+name+` `, text)
	}
	asked := func(where, expression string) {
		t.Helper()
		names := regexp.MustCompile(`\b(?:coapproxy|process|go)_[a-z0-9_]+|\bup\b`).FindAllString(expression, -1)
		require.NotEmpty(t, names, "%s: %s", where, expression)
		for _, name := range names {
			require.Contains(t, known, name, where)
		}
	}

	var rules struct {
		Groups []struct {
			Rules []struct {
				Alert, Expr string
				Annotations map[string]string
			}
		}
	}
	data, err = os.ReadFile("../deploy/prometheus/coapproxy.rules.yaml")
	require.NoError(t, err)
	require.NoError(t, yaml.Unmarshal(data, &rules))
	var alerts []string
	for _, r := range rules.Groups[0].Rules {
		asked(r.Alert, r.Expr)
		require.NotEmpty(t, r.Annotations["summary"], r.Alert)
		alerts = append(alerts, r.Alert)
	}
	var told []string
	for _, m := range regexp.MustCompile("(?m)^\\| `(Coapproxy\\w+)` \\|").FindAllStringSubmatch(docs, -1) {
		told = append(told, m[1])
	}
	require.Equal(t, alerts, told, "alerts in docs/operating.md")

	var dashboard struct {
		Panels []struct {
			ID      int
			Type    string
			Title   string
			Targets []struct{ Expr string }
		}
	}
	data, err = os.ReadFile("../deploy/grafana/coapproxy.json")
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, &dashboard))
	var ids []int
	for _, panel := range dashboard.Panels {
		require.NotContains(t, ids, panel.ID)
		ids = append(ids, panel.ID)
		require.Equal(t, panel.Type == "row", len(panel.Targets) == 0, panel.Title)
		for _, target := range panel.Targets {
			asked(panel.Title, target.Expr)
		}
	}
	require.False(t, slices.Contains(ids, 0))
}
