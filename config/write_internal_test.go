package config

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// When a file cannot be put there in the end, because another process was
// faster, the ones before it go again and the other's stays.
func TestWriteAllTakesBack(t *testing.T) {
	dir := t.TempDir()
	paths, err := writeAll(dir, []file{{"a", []byte("1")}, {"b", []byte("2")}, {"b", []byte("3")}})
	require.ErrorIs(t, err, fs.ErrExist)
	require.Empty(t, paths)
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	require.Empty(t, entries, "no file and no temporary one is left")

	path := filepath.Join(dir, "c")
	require.NoError(t, os.WriteFile(path, []byte("theirs"), 0o600))
	require.ErrorIs(t, writeNew(path, []byte("ours")), fs.ErrExist)
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "theirs", string(text))
}
