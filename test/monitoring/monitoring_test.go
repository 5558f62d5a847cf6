// Package monitoringtest has Prometheus's own tool and Grafana's own schema judge
// the alerts and the dashboard that are delivered.
package monitoringtest

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/grafana/grafana-foundation-sdk/go/cog"
	schema "github.com/grafana/grafana-foundation-sdk/go/dashboard"
	"github.com/grafana/grafana-foundation-sdk/go/prometheus"
	"github.com/grafana/grafana-foundation-sdk/go/stat"
	"github.com/grafana/grafana-foundation-sdk/go/timeseries"
	"github.com/stretchr/testify/require"
)

const rules = "../../deploy/prometheus/coapproxy.rules.yaml"

// promtool runs the tool, which has to be content.
func promtool(t *testing.T, args ...string) {
	t.Helper()
	tool, err := exec.LookPath("promtool")
	if err != nil {
		tool = "../../build/promtool" // where test/install-deps puts it
	}
	out, err := exec.Command(tool, args...).CombinedOutput()
	require.NoError(t, err, "promtool %q: %s", args, out)
}

// Each alert fires when it should, and not when it should not.
func TestAlerts(t *testing.T) {
	t.Parallel()
	promtool(t, "check", "rules", "--lint-fatal", rules)
	promtool(t, "test", "rules", "alerts.yaml")
	text, err := os.ReadFile(rules)
	require.NoError(t, err)
	tests, err := os.ReadFile("alerts.yaml")
	require.NoError(t, err)
	alerts := regexp.MustCompile(`(?m)^ +- alert: (\w+)$`).FindAllStringSubmatch(string(text), -1)
	require.Greater(t, len(alerts), 10)
	for _, a := range alerts {
		require.Regexp(t, `alertname: `+a[1]+`\n +exp_alerts:`, string(tests), "no test has it fire")
	}
}

// Grafana knows every field of the dashboard, and misses none; Prometheus
// understands what it asks.
func TestDashboard(t *testing.T) {
	t.Parallel()
	data, err := os.ReadFile("../../deploy/grafana/coapproxy.json")
	require.NoError(t, err)
	var dashboard struct {
		Panels []struct {
			Title   string
			Targets []struct{ Expr string }
		}
	}
	require.NoError(t, json.Unmarshal(data, &dashboard))
	kinds := cog.NewRuntime() // of panels and queries, which it would not look into otherwise
	kinds.RegisterPanelcfgVariant(stat.VariantConfig())
	kinds.RegisterPanelcfgVariant(timeseries.VariantConfig())
	kinds.RegisterDataqueryVariant(prometheus.VariantConfig())
	err = new(schema.Dashboard).UnmarshalJSONStrict(data)       //nolint:staticcheck // dashboards of version 2 are for the newest Grafana alone
	require.True(t, err == nil || err.Error() == "", "%v", err) // without mistakes it returns an empty list of them
	var b strings.Builder
	b.WriteString("groups:\n- name: dashboard\n  rules:\n")
	asked := 0
	for _, p := range dashboard.Panels {
		for _, target := range p.Targets {
			asked++
			require.Contains(t, target.Expr, `{instance=~"$instance"}`, p.Title)
			expr, err := json.Marshal(strings.ReplaceAll(target.Expr, "$__rate_interval", "1m"))
			require.NoError(t, err)
			fmt.Fprintf(&b, "  - {record: 'asked:%d', expr: %s}\n", asked, expr)
		}
	}
	require.Greater(t, asked, 50)
	file := filepath.Join(t.TempDir(), "dashboard.yaml")
	require.NoError(t, os.WriteFile(file, []byte(b.String()), 0o600))
	promtool(t, "check", "rules", file)
}
