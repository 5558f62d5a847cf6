package test

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// documents are what the project tells its users.
func documents(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob("../docs/*.md")
	require.NoError(t, err)
	require.NotEmpty(t, files)
	out := make(map[string]string)
	for _, file := range append(files, "../README.md", "../ARCHITECTURE.md", "../SECURITY.md", "../CHANGELOG.md") {
		text, err := os.ReadFile(file)
		require.NoError(t, err)
		out[file] = string(text)
	}
	return out
}

// The configurations in the documents are valid ones, on a host with the
// interfaces they name. That of docs/transports.md needs the files of its
// recipe: TestTransportsDocument.
func TestDocumentedConfigurations(t *testing.T) {
	inLab(t, "1", func(t *testing.T, l *lab) {
		for file, text := range documents(t) {
			if filepath.Base(file) == "transports.md" {
				continue
			}
			for _, block := range marked(text)["config"] {
				path := filepath.Join(t.TempDir(), "config.yaml")
				require.NoError(t, os.WriteFile(path, []byte(block), 0o600))
				out := run(t, l.px(), program, "check", path)
				require.Zero(t, out.code, "%s:\n%s\n%s", file, block, out.stderr)
			}
		}
	})
}

var (
	link    = regexp.MustCompile(`\]\(([^)#\s]*)(#[^)\s]*)?\)`)
	heading = regexp.MustCompile(`(?m)^#+ (.*)$`)
)

// Links between the documents lead somewhere.
func TestDocumentedLinks(t *testing.T) {
	t.Parallel()
	texts := documents(t)
	for file, text := range texts {
		for _, m := range link.FindAllStringSubmatch(text, -1) {
			target, anchor := m[1], strings.TrimPrefix(m[2], "#")
			if strings.Contains(target, "://") || strings.HasPrefix(target, "mailto:") {
				continue
			}
			path := file
			if target != "" {
				path = filepath.Join(filepath.Dir(file), target)
				_, err := os.Stat(path)
				require.NoError(t, err, "%s links to %s", file, target)
			}
			if anchor != "" && filepath.Ext(path) == ".md" {
				data, err := os.ReadFile(path)
				require.NoError(t, err)
				require.Contains(t, anchors(string(data)), anchor, "%s links to %s#%s", file, target, anchor)
			}
		}
	}
}

// anchors are the anchors of a document's headings, as GitHub makes them.
func anchors(text string) map[string]bool {
	out := make(map[string]bool)
	for _, m := range heading.FindAllStringSubmatch(text, -1) {
		anchor := strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-', r == '_', r >= '0' && r <= '9', r >= 'a' && r <= 'z', r > 0x7f:
				return r
			}
			return -1
		}, strings.ToLower(m[1]))
		out[anchor] = true
	}
	return out
}
