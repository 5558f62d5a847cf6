// Package rules keeps the table of rules in docs/rules/README.md: which files
// carry each rule out, and which tests prove it, by what they cite.
package rules

import (
	"bytes"
	"flag"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

var update = flag.Bool("update", false, "write the table anew")

const (
	top   = "../.."
	table = top + "/docs/rules/README.md"
)

var (
	definition = regexp.MustCompile(`^(?:- |\| )((?:GP|GC|HC|FP|OH|OC|MN)-\d+)\b[ |:]*(.*)`)
	citation   = regexp.MustCompile(`\b(?:GP|GC|HC|FP|OH|OC|MN)-\d+\b`)
)

// sheets are the lists of rules, in the order of the table.
var sheets = []struct{ file, title string }{
	{"group-proxy.md", "Group proxying"},
	{"group-comm.md", "Group communication"},
	{"forward-proxy.md", "Forward-proxying"},
	{"cross-proxy.md", "HTTP"},
	{"oscore-hop.md", "OSCORE on the hop"},
	{"oscore-core.md", "OSCORE"},
	{"multicast-notify.md", "Multicast notifications"},
}

// TestTable fails when the table is not what the code says now; then:
//
//	go test ./test/rules -update
func TestTable(t *testing.T) {
	code, tests := citations(t)
	var b bytes.Buffer
	fmt.Fprint(&b, "# The rules and where they are kept\n\n"+
		"Generated from the citations in the code by `go test ./test/rules -update`. A rule that no file names is not carried out\n"+
		"yet, or says something about others; where that is all there is to say, it says why ([all of them](elsewhere.md)). The\n"+
		"last sheet is for later.\n")
	elsewhere := reasons(t)
	for _, sheet := range sheets {
		defined := rulesOf(t, sheet.file)
		proven := 0
		for _, r := range defined {
			if len(tests[r.id]) > 0 {
				proven++
			}
		}
		fmt.Fprintf(&b, "\n## %s\n\n[%s](%s): %d rules, %d cited by tests.\n\n| Rule | | Carried out in | Proven by |\n|---|---|---|---|\n",
			sheet.title, sheet.file, sheet.file, len(defined), proven)
		for _, r := range defined {
			proof := links(tests[r.id])
			if why, ok := elsewhere[r.id]; ok {
				require.Empty(t, proof, "%s is proven, and in elsewhere.md", r.id)
				proof = "– " + why
				delete(elsewhere, r.id)
			}
			fmt.Fprintf(&b, "| %s | %s | %s | %s |\n", r.id, r.gist, links(code[r.id]), proof)
		}
	}
	require.Empty(t, elsewhere, "elsewhere.md has rules that there are not")
	if *update {
		require.NoError(t, os.WriteFile(table, b.Bytes(), 0o644))
	}
	written, err := os.ReadFile(table)
	require.NoError(t, err)
	require.True(t, bytes.Equal(b.Bytes(), written), "%s is out of date: go test ./test/rules -update", table)
}

type rule struct{ id, gist string }

// rulesOf reads the rules of a sheet in their order there.
func rulesOf(t *testing.T, sheet string) []rule {
	data, err := os.ReadFile(filepath.Join(top, "docs", "rules", sheet))
	require.NoError(t, err)
	var out []rule
	seen := make(map[string]bool)
	for line := range strings.Lines(string(data)) {
		m := definition.FindStringSubmatch(strings.TrimRight(line, "\n"))
		if len(m) == 0 || seen[m[1]] {
			continue
		}
		seen[m[1]] = true
		out = append(out, rule{m[1], gist(m[2])})
	}
	require.NotEmpty(t, out, sheet)
	return out
}

// reasons reads elsewhere.md: why there is no code for a rule.
func reasons(t *testing.T) map[string]string {
	data, err := os.ReadFile(filepath.Join(top, "docs", "rules", "elsewhere.md"))
	require.NoError(t, err)
	out := make(map[string]string)
	for line := range strings.Lines(string(data)) {
		cells := strings.Split(line, "|")
		if len(cells) != 4 || citation.FindString(cells[1]) == "" {
			continue
		}
		id, why := strings.TrimSpace(cells[1]), strings.TrimSpace(cells[2])
		require.NotContains(t, out, id, "twice")
		require.NotEmpty(t, why, id)
		out[id] = why
	}
	require.NotEmpty(t, out)
	return out
}

// gist is the beginning of a rule's text, fit for a cell.
func gist(text string) string {
	text = strings.Trim(strings.ReplaceAll(text, "|", "·"), " ·")
	if len(text) > gistLength {
		cut := strings.LastIndexByte(text[:gistLength], ' ')
		text = text[:max(cut, 1)] + " …"
	}
	return text
}

const gistLength = 72

// citations lists the files that name each rule: those of the code and those of
// the tests.
func citations(t *testing.T) (code, tests map[string][]string) {
	found := [2]map[string]map[string]bool{{}, {}}
	require.NoError(t, filepath.WalkDir(top, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if name := d.Name(); name != ".." && (strings.HasPrefix(name, ".") && name != "." || name == "node_modules" || name == "build") {
				return filepath.SkipDir
			}
			return nil
		}
		if filepath.Ext(path) != ".go" {
			return nil
		}
		data, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		name, err := filepath.Rel(top, path)
		if err != nil {
			return err
		}
		kind := found[0]
		if strings.HasSuffix(path, "_test.go") {
			kind = found[1]
		}
		for _, id := range citation.FindAllString(string(data), -1) {
			if kind[id] == nil {
				kind[id] = make(map[string]bool)
			}
			kind[id][filepath.ToSlash(name)] = true
		}
		return nil
	}))
	flat := func(m map[string]map[string]bool) map[string][]string {
		out := make(map[string][]string)
		for id, files := range m {
			out[id] = slices.Sorted(maps.Keys(files))
		}
		return out
	}
	return flat(found[0]), flat(found[1])
}

// links names files, the first few of many.
func links(files []string) string {
	const most = 4
	var out []string
	for i, f := range files {
		if i == most {
			out = append(out, fmt.Sprintf("and %d more", len(files)-most))
			break
		}
		out = append(out, fmt.Sprintf("[%s](../../%s)", f, f))
	}
	return strings.Join(out, ", ")
}
