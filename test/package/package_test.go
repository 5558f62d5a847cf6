// Package packagetest installs the Debian package in a clean root and uses it
// there as an operator would.
package packagetest

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// cleanRoot is a minimal Debian, made by test/install-deps.
const cleanRoot = "../../build/cleanroot.tar"

func TestDebianPackage(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("installing a package needs root: dpkg in a root of its own")
	}
	top, err := filepath.Abs("../..")
	require.NoError(t, err)
	require.FileExists(t, cleanRoot, "test/install-deps makes it")
	run(t, top, "deploy/package/build")
	packages, err := filepath.Glob(filepath.Join(top, "build", "coapproxy_*.deb"))
	require.NoError(t, err)
	require.Len(t, packages, 1)

	root := t.TempDir()
	run(t, top, "tar", "-C", root, "-xf", filepath.Join(top, "build", "cleanroot.tar"))
	run(t, top, "cp", packages[0], filepath.Join(root, "coapproxy.deb"))
	in := func(t *testing.T, command ...string) string {
		t.Helper()
		return run(t, top, append([]string{"chroot", root}, command...)...)
	}

	require.Contains(t, in(t, "dpkg", "-i", "/coapproxy.deb"), "edit /etc/coapproxy/config.yaml")
	require.Contains(t, in(t, "coapproxy", "version"), "coapproxy ")
	require.Contains(t, in(t, "coapproxy", "check", "/etc/coapproxy/config.yaml"), ": ok")
	require.Contains(t, in(t, "getent", "passwd", "coapproxy"), "/usr/sbin/nologin")
	require.Equal(t, "root coapproxy 750", strings.TrimSpace(in(t, "stat", "-c", "%U %G %a", "/etc/coapproxy")))
	for line := range strings.Lines(in(t, "sh", "-c", "stat -c '%U %a %n' /etc/coapproxy/*")) {
		require.Regexp(t, "^coapproxy 600 ", line, "the secrets are the proxy's own")
	}
	for _, file := range []string{"/usr/share/man/man1/coapproxy.1.gz", "/usr/share/bash-completion/completions/coapproxy",
		"/usr/share/doc/coapproxy/config.example.yaml", "/usr/share/doc/coapproxy/docs/operating.md",
		"/usr/share/doc/coapproxy/deploy/grafana/coapproxy.json", "/usr/share/doc/coapproxy/deploy/prometheus/coapproxy.rules.yaml",
		"/usr/share/doc/coapproxy/deploy/wireshark/coap-group-proxy.lua",
		"/usr/lib/sysctl.d/20-coapproxy.conf"} {
		require.FileExists(t, filepath.Join(root, file))
	}

	t.Run("its documents are complete", func(t *testing.T) {
		docs := filepath.Join(root, "usr", "share", "doc", "coapproxy")
		found := 0
		require.NoError(t, filepath.WalkDir(docs, func(path string, _ os.DirEntry, err error) error {
			if err != nil || filepath.Ext(path) != ".md" {
				return err
			}
			text, err := os.ReadFile(path)
			require.NoError(t, err)
			for _, m := range regexp.MustCompile(`\]\(([^)#\s]+)`).FindAllStringSubmatch(string(text), -1) {
				if !strings.Contains(m[1], "://") {
					found++
					_, err := os.Lstat(filepath.Join(filepath.Dir(path), m[1]))
					require.NoError(t, err, "a link in %s", path)
				}
			}
			return nil
		}))
		require.Greater(t, found, 50)
	})
	t.Run("the unit", func(t *testing.T) {
		require.Empty(t, strings.TrimSpace(in(t, "systemd-analyze", "verify", "--man=no", "/usr/lib/systemd/system/coapproxy.service")))
		// 0 is best, 10 is worst; what is left is that it speaks to the network.
		in(t, "systemd-analyze", "security", "--offline=yes", "--threshold=20", "coapproxy.service")
	})
	t.Run("it runs as its own user", func(t *testing.T) {
		out := run(t, top, "unshare", "-n", "--", "sh", "-ec", `
ip link set lo up
chroot --userspec=coapproxy:coapproxy "$1" /usr/bin/coapproxy serve >"$1/log" 2>&1 &
proxy=$!
for i in $(seq 200); do grep -q ready "$1/log" && break; sleep 0.1; done
chroot "$1" coapproxy request --quiet GET coap://127.0.0.1/.well-known/core || true
chroot "$1" coapproxy request --quiet --via coap://127.0.0.1 GET coap://192.0.2.1/ || true
kill -TERM $proxy
wait $proxy
cat "$1/log"
`, "sh", root)
		require.Contains(t, out, "2.05 Content", "the proxy's own resources")
		require.Contains(t, out, "4.01 Unauthorized", "nothing is allowed until the operator allows it")
		require.Contains(t, out, "stopped", "%s", out)
	})
	t.Run("what it keeps is where its service may write", func(t *testing.T) {
		// What StateDirectory of the unit makes; /etc/coapproxy is root's.
		in(t, "install", "-d", "-o", "coapproxy", "-g", "coapproxy", "-m", "0700", "/var/lib/coapproxy", "/etc/coapproxy/oscore")
		in(t, "coapproxy", "oscore", "new", "/etc/coapproxy/oscore/phone.json", "/phone.json")
		in(t, "chown", "coapproxy:", "/etc/coapproxy/oscore/phone.json")
		before := in(t, "cat", "/etc/coapproxy/config.yaml")
		in(t, "sh", "-ec", `cat >/etc/coapproxy/config.yaml <<'.'
listen: ["coap://127.0.0.1"]
clients: [{name: phone, oscore: [phone]}]
cache: {persist: cache.db}
.`)
		out := run(t, top, "unshare", "-n", "--", "sh", "-ec", `
ip link set lo up
chroot --userspec=coapproxy:coapproxy "$1" /usr/bin/coapproxy serve >"$1/log" 2>&1 &
proxy=$!
for i in $(seq 200); do grep -q ready "$1/log" && break; sleep 0.1; done
chroot "$1" coapproxy request --quiet --oscore /phone.json GET coap://127.0.0.1/.well-known/core || true
kill -TERM $proxy
wait $proxy
cat "$1/log"
`, "sh", root)
		require.Contains(t, out, "2.05 Content", "%s", out)
		for _, name := range []string{"oscore.db", "cache.db"} {
			require.FileExists(t, filepath.Join(root, "var", "lib", "coapproxy", name), "%s", out)
			require.NoFileExists(t, filepath.Join(root, "etc", "coapproxy", name))
		}
		require.NoError(t, os.WriteFile(filepath.Join(root, "etc", "coapproxy", "config.yaml"), []byte(before), 0o600))
	})
	t.Run("another version, then none", func(t *testing.T) {
		in(t, "sh", "-c", "echo '# mine' >>/etc/coapproxy/config.yaml")
		in(t, "sh", "-ec", "chown root:coapproxy /etc/coapproxy/config.yaml; chmod 640 /etc/coapproxy/config.yaml")
		in(t, "dpkg", "-i", "/coapproxy.deb")
		require.Equal(t, "root coapproxy 640", strings.TrimSpace(in(t, "stat", "-c", "%U %G %a", "/etc/coapproxy/config.yaml")), "and whose it is")
		require.Contains(t, in(t, "tail", "-n1", "/etc/coapproxy/config.yaml"), "# mine", "what the operator wrote stays")
		in(t, "dpkg", "--remove", "coapproxy")
		require.FileExists(t, filepath.Join(root, "etc", "coapproxy", "config.yaml"))
		in(t, "dpkg", "--purge", "coapproxy")
		require.NoDirExists(t, filepath.Join(root, "etc", "coapproxy"))
		require.Empty(t, in(t, "sh", "-c", "getent passwd coapproxy || true"))
	})
}

// run runs a command that has to succeed, and returns what it wrote.
func run(t *testing.T, dir string, command ...string) string {
	t.Helper()
	cmd := exec.Command(command[0], command[1:]...)
	cmd.Dir = dir
	out, err := cmd.CombinedOutput()
	require.NoError(t, err, "%q: %s", command, out)
	return string(out)
}
