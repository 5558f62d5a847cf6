package config_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/config"
)

func TestLoadPSK(t *testing.T) {
	const key = "000102030405060708090a0b0c0d0e0f"
	for name, tt := range map[string]struct {
		text string
		mode os.FileMode
		want map[string]int // lengths by identity
		err  string
	}{
		"one":           {"identity: a\nkey: " + key + "\n", 0o600, map[string]int{"a": 16}, ""},
		"two":           {"identity: a\nkey: " + key + "\n---\nidentity: b\nkey: " + key + key + "\n", 0o400, map[string]int{"a": 16, "b": 32}, ""},
		"open to group": {"identity: a\nkey: " + key + "\n", 0o640, nil, "can be read by others than its owner (mode 0640); run chmod 600 on it"},
		"empty":         {"", 0o600, nil, "there is no key"},
		"twice":         {"identity: a\nkey: " + key + "\n---\nidentity: a\nkey: " + key + "\n", 0o600, nil, "a has two keys"},
		"short":         {"identity: a\nkey: 00\n", 0o600, nil, "the key of a has 1 bytes; write 16 to 64"},
		"not hex":       {"identity: a\nkey: secret\n", 0o600, nil, "the key of a is not hexadecimal"},
		"no identity":   {"key: " + key + "\n", 0o600, nil, "entry 1 has no identity"},
		"other keys":    {"identity: a\npassword: hunter2\n", 0o600, nil, "entry 1 is not a mapping of identity and key"},
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "psk.yaml")
			require.NoError(t, os.WriteFile(path, []byte(tt.text), tt.mode))
			require.NoError(t, os.Chmod(path, tt.mode))
			keys, err := config.LoadPSK(config.Place(path))
			if tt.err != "" {
				require.ErrorContains(t, err, tt.err)
				require.NotContains(t, err.Error(), "hunter2")
				require.NotContains(t, err.Error(), "secret")
				return
			}
			require.NoError(t, err)
			got := make(map[string]int)
			for id, k := range keys {
				got[id] = len(k)
			}
			require.Equal(t, tt.want, got)
		})
	}
	_, err := config.LoadPSK(config.Place(filepath.Join(t.TempDir(), "none")))
	require.ErrorIs(t, err, os.ErrNotExist)
}

// What init writes is what serve reads.
func TestInitialPSK(t *testing.T) {
	dir := t.TempDir()
	_, err := config.WriteInitial(dir)
	require.NoError(t, err)
	keys, err := config.LoadPSK(config.Place(filepath.Join(dir, "psk.yaml")))
	require.NoError(t, err)
	require.Len(t, keys, 1)
	for id := range keys {
		require.True(t, strings.TrimSpace(id) != "")
	}
}
