package config

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// OH-112: the same file for everybody who reads the same configuration.
func TestWhereStateIs(t *testing.T) {
	top := t.TempDir()
	folder := func(name string) string {
		path := filepath.Join(top, name)
		require.NoError(t, os.Mkdir(path, 0o700))
		return path
	}
	etc, home, state := folder("etc"), folder("home"), folder("state")
	place := statePlace{system: etc, state: state}
	t.Setenv("STATE_DIRECTORY", folder("elsewhere")) // changes nothing

	require.Equal(t, filepath.Join(state, "oscore.db"), place.path(etc, "oscore.db"))
	require.Equal(t, filepath.Join(state, "oscore.db"), place.path(etc+"/", "oscore.db"))
	require.Equal(t, filepath.Join(home, "oscore.db"), place.path(home, "oscore.db"))
	require.Equal(t, "/a/b", place.path(etc, "/a/b"))
	require.Empty(t, place.path(etc, ""))
	t.Run("the configuration by a relative path", func(t *testing.T) {
		t.Chdir(etc)
		require.Equal(t, filepath.Join(state, "cache"), place.path(".", "cache"))
	})
	t.Run("no such folder", func(t *testing.T) {
		place := statePlace{system: etc, state: filepath.Join(top, "nothing")}
		require.Equal(t, filepath.Join(etc, "oscore.db"), place.path(etc, "oscore.db"))
	})
	t.Run("what was in use stays", func(t *testing.T) {
		require.NoError(t, os.WriteFile(filepath.Join(etc, "oscore.db"), nil, 0o600))
		require.Equal(t, filepath.Join(etc, "oscore.db"), place.path(etc, "oscore.db"))
	})
}

// An empty file is most likely one that somebody is just writing.
func TestEmptyFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "config.yaml")
	require.NoError(t, os.WriteFile(path, nil, 0o600))
	_, err := Load(path)
	require.ErrorContains(t, err, path+": the file is empty")
	require.NoError(t, os.WriteFile(path, []byte("# defaults\n"), 0o600))
	_, err = Load(path)
	require.NoError(t, err)
}
