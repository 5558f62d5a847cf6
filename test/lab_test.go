package test

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// host is a place where sockets and programs live: this machine as it is (the
// zero value), or a host of a lab.
type host struct{ namespace string }

// here is this machine.
var here = &host{}

// do runs f with its sockets in the host's network namespace.
func (h *host) do(t *testing.T, f func()) {
	t.Helper()
	if h.namespace == "" {
		f()
		return
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // for ever: the thread ends with this goroutine
		done <- func() error {
			file, err := os.Open("/run/netns/" + h.namespace)
			if err != nil {
				return err
			}
			defer file.Close()
			if err := unix.Setns(int(file.Fd()), unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("enter %s: %w", h.namespace, err)
			}
			f()
			return nil
		}()
	}()
	require.NoError(t, <-done)
}

// argv is the command line that runs a command in the host.
func (h *host) argv(command ...string) []string {
	if h.namespace == "" {
		return command
	}
	return append([]string{"ip", "netns", "exec", h.namespace}, command...)
}

// run runs a command in the host to its end; it must succeed.
func (h *host) run(t *testing.T, command ...string) string {
	t.Helper()
	argv := h.argv(command...)
	out, err := exec.Command(argv[0], argv[1:]...).CombinedOutput()
	require.NoError(t, err, "%q: %s", argv, out)
	return string(out)
}

// index is the number of an interface of the host.
func (h *host) index(t *testing.T, name string) int {
	t.Helper()
	var iface *net.Interface
	var err error
	h.do(t, func() { iface, err = net.InterfaceByName(name) })
	require.NoError(t, err)
	return iface.Index
}

// lab is a small network of hosts: see lab/README.md for its addresses.
type lab struct{ t *testing.T }

func (l *lab) host(name string) *host { return &host{"nl-" + name} }
func (l *lab) px() *host              { return l.host("px") }
func (l *lab) sv(i int) *host         { return l.host(fmt.Sprintf("sv%d", i)) }
func (l *lab) cl(i int) *host         { return l.host(fmt.Sprintf("cl%d", i)) }

// Addresses of the lab's hosts.
func sv6(i int) netip.Addr  { return netip.MustParseAddr(fmt.Sprintf("fd00:5::5:%d", i)) }
func svLL(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("fe80::5:%d", i)) }
func sv4(i int) netip.Addr  { return netip.MustParseAddr(fmt.Sprintf("10.78.1.%d", i)) }
func cl6(i int) netip.Addr  { return netip.MustParseAddr(fmt.Sprintf("fd00:c::c:%d", i)) }
func clLL(i int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("fe80::c:%d", i)) }
func cl4(i int) netip.Addr  { return netip.MustParseAddr(fmt.Sprintf("10.77.1.%d", i)) }

var (
	pxClients6 = netip.MustParseAddr("fd00:c::1")
	pxClients4 = netip.MustParseAddr("10.77.0.1")
	pxLL       = netip.MustParseAddr("fe80::1")
)

// labEnv tells a test that it runs in namespaces of its own.
const labEnv = "COAPPROXY_TEST_IN_LAB"

// inLab runs f with a lab made by netlab up and its arguments. For that the
// test runs itself again in new namespaces (of the network, mounts, processes
// and, unless it is root, users), so that tests with labs run side by side with
// the same addresses, touch nothing of this machine, and leave nothing behind
// whatever happens to them.
func inLab(t *testing.T, netlab string, f func(t *testing.T, l *lab)) {
	if os.Getenv(labEnv) == "" {
		t.Parallel()
		again(t)
		return
	}
	out, err := exec.Command("lab/netlab", append([]string{"up", "--v4"}, strings.Fields(netlab)...)...).CombinedOutput()
	require.NoError(t, err, "netlab up %s: %s", netlab, out)
	f(t, &lab{t})
}

// again runs the test in new namespaces.
func again(t *testing.T) {
	t.Helper()
	flags := []string{"--net", "--mount", "--pid", "--fork", "--mount-proc", "--kill-child"}
	if os.Getuid() != 0 {
		flags = append(flags, "--user", "--map-root-user")
		if out, err := exec.Command("unshare", append(flags, "true")...).CombinedOutput(); err != nil {
			t.Skipf("needs root or user namespaces, and this system gives neither: unshare: %v: %s", err, out)
		}
	}
	pattern := "^" + t.Name() + "$"
	if _, sub, ok := strings.Cut(flag.Lookup("test.run").Value.String(), "/"); ok {
		pattern += "/" + sub
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
	defer cancel()
	args := append(flags, "sh", "-c", `mount -t tmpfs tmpfs /run && exec "$0" "$@"`,
		os.Args[0], "-test.run="+pattern, "-test.v", "-test.count=1", "-test.timeout=110s")
	cmd := exec.CommandContext(ctx, "unshare", args...)
	cmd.Env = append(os.Environ(), labEnv+"=1", programEnv+"="+program)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	ended := make(chan struct{})
	require.NoError(t, startTied(cmd, func() { close(ended) }))
	<-ended
	if state := cmd.ProcessState; !state.Success() {
		t.Fatalf("in its lab (%v):\n%s", errors.Join(ctx.Err(), errors.New(state.String())), out.String())
	}
	require.Contains(t, out.String(), "--- PASS: "+t.Name(), "the test did not run in its lab")
	t.Logf("in its lab:\n%s", out.String())
}
