package test

import (
	"os"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/stretchr/testify/require"
)

// The recipe of docs/transports.md makes what its configuration needs.
func TestTransportsDocument(t *testing.T) {
	t.Parallel()
	text, err := os.ReadFile("../docs/transports.md")
	require.NoError(t, err)
	block := func(mark string) string {
		m := regexp.MustCompile(`(?s)<!-- test: ` + mark + ` -->\n` + "```[a-z]+\n(.*?)```").FindSubmatch(text)
		require.NotNil(t, m, mark)
		return string(m[1])
	}
	dir := t.TempDir()
	out := run(t, here, "sh", "-ec", "cd "+dir+"\n"+block("recipe"))
	require.Zero(t, out.code, out.stderr)
	file := filepath.Join(dir, "config.yaml")
	require.NoError(t, os.WriteFile(file, []byte(block("config")), 0o600))
	out = run(t, here, program, "check", file)
	require.Zero(t, out.code, out.stderr)
	for _, pair := range [][]string{{"servers-ca.pem", "proxy.pem"}, {"clients-ca.pem", "meter.pem"}} {
		out = run(t, here, "openssl", "verify", "-CAfile", filepath.Join(dir, pair[0]), filepath.Join(dir, pair[1]))
		require.Zero(t, out.code, out.stderr)
	}
	// A key that others can read is refused.
	require.NoError(t, os.Chmod(filepath.Join(dir, "proxy.key"), 0o644))
	out = run(t, here, program, "check", file)
	require.Equal(t, 1, out.code)
	require.Contains(t, out.stderr, "proxy.key can be read by others than its owner (mode 0644); run chmod 600 on it")
}
