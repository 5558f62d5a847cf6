package test

import (
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"
)

// quotedName is a name in the running text of a document.
var quotedName = regexp.MustCompile("`([a-z][a-z0-9_.]*)`")

// Counters that the documents name are in the list of docs/operating.md, which
// TestOperatingDocs holds to what a proxy serves. Those of next hops and of OSCORE
// contexts are there only once there is one.
func TestDocumentedCounters(t *testing.T) {
	t.Parallel()
	texts := documents(t)
	list := texts["../docs/operating.md"]
	for file, text := range texts {
		for _, m := range quotedName.FindAllStringSubmatch(text, -1) {
			name := strings.TrimPrefix(m[1], "coapproxy_")
			if !strings.HasSuffix(name, "_total") || strings.HasPrefix(name, "next_hop_") || strings.HasPrefix(name, "oscore_") {
				continue
			}
			require.Contains(t, list, "| `coapproxy_"+name+"` |", "%s names a counter that is not there", file)
		}
	}
}

// Keys that the documents name with their section are keys of the configuration.
func TestDocumentedKeys(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../config.example.yaml")
	require.NoError(t, err)
	var example map[string]any
	require.NoError(t, yaml.Unmarshal(text, &example))
	for file, text := range documents(t) {
		for _, m := range quotedName.FindAllStringSubmatch(text, -1) {
			section, _, dotted := strings.Cut(m[1], ".")
			if _, known := example[section].(map[string]any); !dotted || !known || slices.Contains([]string{".go", ".db"}, filepath.Ext(m[1])) { // files
				continue
			}
			var at any = example
			for part := range strings.SplitSeq(m[1], ".") {
				in, _ := at.(map[string]any)
				require.Contains(t, in, part, "%s names %s", file, m[1])
				at = in[part]
			}
		}
	}
}
