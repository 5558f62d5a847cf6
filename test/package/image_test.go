package packagetest

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"
)

// The image holds a program that runs, as nobody in particular.
func TestImage(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("mounting an image needs root")
	}
	top, err := filepath.Abs("../..")
	require.NoError(t, err)
	dir := t.TempDir()
	storage := []string{"--storage-driver", "vfs", "--root", filepath.Join(dir, "storage"), "--runroot", filepath.Join(dir, "run")}
	run(t, top, append([]string{"deploy/package/image"}, storage...)...)
	buildah := func(args ...string) string {
		return run(t, top, append(append([]string{"buildah"}, storage...), args...)...)
	}
	container := strings.TrimSpace(buildah("from", "--pull-never", "localhost/coapproxy:latest"))
	require.Contains(t, buildah("run", "--isolation", "chroot", container, "--", "/usr/bin/coapproxy", "version"), "coapproxy ")
	require.Contains(t, buildah("inspect", "--format", "{{.OCIv1.Config.User}} {{.OCIv1.Config.Entrypoint}}", container), "65532:65532 [/usr/bin/coapproxy]")
	root := strings.TrimSpace(buildah("mount", container))
	info, err := os.Stat(filepath.Join(root, "var", "lib", "coapproxy"))
	require.NoError(t, err)
	require.EqualValues(t, 65532, info.Sys().(*syscall.Stat_t).Uid, "what it keeps has a place")
	buildah("umount", container)
	buildah("rm", container)
}
