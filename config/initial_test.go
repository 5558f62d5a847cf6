package config_test

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"coapproxy/config"
)

func TestNewSecrets(t *testing.T) {
	a, err := config.NewSecrets(rand.Reader)
	require.NoError(t, err)
	b, err := config.NewSecrets(rand.Reader)
	require.NoError(t, err)
	require.NotEqual(t, a.PSK, b.PSK)
	require.NotEqual(t, a.PSKIdentity, b.PSKIdentity)
	require.NotZero(t, a.PSK)
	require.Regexp(t, `^coapproxy-[0-9a-f]{8}$`, a.PSKIdentity)

	_, err = config.NewSecrets(bytes.NewReader(make([]byte, 35)))
	require.ErrorContains(t, err, "make secrets: ")
}

func TestSecretsStayOutOfText(t *testing.T) {
	s, err := config.NewSecrets(rand.Reader)
	require.NoError(t, err)
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q"} {
		for _, v := range []any{s, &s, struct{ S config.Secrets }{s}} {
			text := fmt.Sprintf(verb, v)
			require.NotContains(t, text, hex.EncodeToString(s.PSK[:]), verb)
			require.NotContains(t, text, fmt.Sprint(s.PSK[0], s.PSK[1], s.PSK[2]), verb)
		}
	}
}

// The first configuration is valid on every host and safe: loopback only, no
// open proxy.
func TestInitial(t *testing.T) {
	s, err := config.NewSecrets(rand.Reader)
	require.NoError(t, err)
	text := config.Initial(s)
	require.Contains(t, string(text), s.PSKIdentity)
	require.NotContains(t, string(text), "PSK_IDENTITY")
	require.NotContains(t, string(text), hex.EncodeToString(s.PSK[:]))

	c, err := config.Parse("config.yaml", text)
	require.NoError(t, err)
	for _, l := range c.Listen { // FP-85
		require.True(t, l.Addr.Addr().IsLoopback())
	}
	require.Len(t, c.Clients, 1)
	require.Empty(t, c.Clients[0].Forward)    // FP-85
	for _, n := range c.Clients[0].Networks { // GP-24
		require.True(t, n.Addr().IsLoopback())
	}
	require.Len(t, c.Groups, 1)
	require.Equal(t, []config.Method{"GET", "FETCH"}, c.Groups[0].Methods) // GC-70
}

func TestWriteInitial(t *testing.T) {
	old := syscall.Umask(0o022)
	defer syscall.Umask(old)
	dir := filepath.Join(t.TempDir(), "etc", "coapproxy")
	paths, err := config.WriteInitial(dir)
	require.NoError(t, err)
	require.ElementsMatch(t, []string{
		filepath.Join(dir, "config.yaml"), filepath.Join(dir, "psk.yaml"),
	}, paths)
	require.Equal(t, fs.FileMode(0o700), mode(t, dir))
	for _, p := range paths {
		require.Equal(t, fs.FileMode(0o600), mode(t, p), p)
	}
	require.ElementsMatch(t, []string{"config.yaml", "psk.yaml"}, list(t, dir))

	_, err = config.Load(filepath.Join(dir, "config.yaml"))
	require.NoError(t, err)
	var psk struct{ Identity, Key string }
	require.NoError(t, yaml.Unmarshal(read(t, dir, "psk.yaml"), &psk))
	require.Contains(t, string(read(t, dir, "config.yaml")), psk.Identity)
	key, err := hex.DecodeString(psk.Key)
	require.NoError(t, err)
	require.Len(t, key, 32)

	// Nothing is replaced.
	before := read(t, dir, "psk.yaml")
	_, err = config.WriteInitial(dir)
	require.ErrorIs(t, err, fs.ErrExist)
	require.ErrorContains(t, err, "is not replaced; choose another directory or move it away")
	require.Equal(t, before, read(t, dir, "psk.yaml"))
}

// A directory that is there is used as it is.
func TestWriteInitialExistingDirectory(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.Chmod(dir, 0o755))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "other"), nil, 0o644))
	_, err := config.WriteInitial(dir)
	require.NoError(t, err)
	require.Equal(t, fs.FileMode(0o755), mode(t, dir))
	require.ElementsMatch(t, []string{"other", "config.yaml", "psk.yaml"}, list(t, dir))
}

// One file in the way, be it a dangling link, and nothing is written.
func TestWriteInitialAllOrNothing(t *testing.T) {
	for _, name := range []string{"config.yaml", "psk.yaml"} {
		dir := t.TempDir()
		require.NoError(t, os.Symlink("/nonexistent/target", filepath.Join(dir, name)))
		paths, err := config.WriteInitial(dir)
		require.ErrorIs(t, err, fs.ErrExist)
		require.Empty(t, paths)
		require.ErrorContains(t, err, filepath.Join(dir, name))
		require.Equal(t, []string{name}, list(t, dir))
	}
}

func TestWriteInitialErrors(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "file")
	require.NoError(t, os.WriteFile(file, nil, 0o600))
	_, err := config.WriteInitial(file)
	require.ErrorContains(t, err, "make the configuration directory: ")
	require.True(t, errors.Is(err, syscall.ENOTDIR))
	require.Equal(t, "", string(read(t, dir, "file")))

	if os.Geteuid() == 0 {
		return // root may write everywhere, so that there is nothing more to see
	}
	locked := filepath.Join(dir, "locked")
	require.NoError(t, os.Mkdir(locked, 0o500))
	_, err = config.WriteInitial(locked)
	require.ErrorIs(t, err, fs.ErrPermission)
	require.True(t, strings.HasPrefix(err.Error(), "write "+locked))
}

func mode(t *testing.T, path string) fs.FileMode {
	t.Helper()
	info, err := os.Lstat(path)
	require.NoError(t, err)
	return info.Mode().Perm()
}

func list(t *testing.T, dir string) []string {
	t.Helper()
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, e := range entries {
		names = append(names, e.Name())
	}
	return names
}

func read(t *testing.T, dir, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, name))
	require.NoError(t, err)
	return data
}
