package test

import (
	"bytes"
	"fmt"
	"os"
	"os/exec"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// patience is how long anything may take that should happen at once: machines
// that run tests are busy.
const patience = 20 * time.Second

// overLoss is how long a response may take where packets get lost: MAX_TRANSMIT_WAIT
// (RFC 7252 §4.8.2) on the way to the server, as long as the proxy tries, and on the
// way back.
const overLoss = 2 * 93 * time.Second

// startTied starts a program that dies with this one, and calls ended once it
// has ended and cmd.ProcessState is set.
func startTied(cmd *exec.Cmd, ended func()) error {
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	started := make(chan error)
	go func() {
		runtime.LockOSThread() // the signal comes when the thread ends
		defer runtime.UnlockOSThread()
		err := cmd.Start()
		started <- err
		if err == nil {
			_ = cmd.Wait()
			ended()
		}
	}()
	return <-started
}

// process is a running program.
type process struct {
	t     *testing.T
	name  string
	cmd   *exec.Cmd
	ended chan struct{}

	mu     sync.Mutex
	output bytes.Buffer
	grown  chan struct{} // closed when output grows
}

// start runs a program in a host, until the test ends at the latest. When the
// test fails its log shows what the program wrote.
func start(t *testing.T, h *host, name string, command ...string) *process {
	t.Helper()
	argv := h.argv(command...)
	p := &process{t: t, name: name, cmd: exec.Command(argv[0], argv[1:]...), ended: make(chan struct{}), grown: make(chan struct{})}
	p.cmd.Stdout, p.cmd.Stderr = p, p
	require.NoError(t, startTied(p.cmd, func() { close(p.ended) }), "%q", argv)
	t.Cleanup(func() {
		p.kill()
		if t.Failed() {
			t.Logf("%s wrote:\n%s", name, excerpt(p.lines()))
		}
	})
	return p
}

// excerpt leaves out the middle of a long log, so that the logs of a run stay
// readable.
func excerpt(lines []string) string {
	const first, last = 25, 75
	if n := len(lines) - first - last; n > 0 && os.Getenv("COAPPROXY_TEST_WHOLE_LOGS") == "" {
		left := fmt.Sprintf("... %d lines left out; COAPPROXY_TEST_WHOLE_LOGS=1 shows them ...", n)
		lines = slices.Concat(lines[:first], []string{left}, lines[len(lines)-last:])
	}
	return strings.Join(lines, "\n")
}

// Write takes what the program writes.
func (p *process) Write(data []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	close(p.grown)
	p.grown = make(chan struct{})
	return p.output.Write(data)
}

// text is what the program has written so far.
func (p *process) text() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.output.String()
}

func (p *process) lines() []string {
	return strings.Split(strings.TrimRight(p.text(), "\n"), "\n")
}

// waitFor waits until the output has a match for the expression and returns the
// match and its groups.
func (p *process) waitFor(expression string) []string {
	p.t.Helper()
	re := regexp.MustCompile("(?m)" + expression)
	timeout := time.After(patience)
	for {
		p.mu.Lock()
		match, grown := re.FindStringSubmatch(p.output.String()), p.grown
		p.mu.Unlock()
		if match != nil {
			return match
		}
		select {
		case <-grown:
		case <-p.ended:
			if match := re.FindStringSubmatch(p.text()); match != nil {
				return match
			}
			require.FailNow(p.t, fmt.Sprintf("%s ended (%v) without writing %q", p.name, p.cmd.ProcessState, expression))
		case <-timeout:
			require.FailNow(p.t, fmt.Sprintf("%s has not written %q", p.name, expression))
		}
	}
}

// wait waits for the program's end and returns its exit code, -1 after a signal.
func (p *process) wait() int {
	p.t.Helper()
	select {
	case <-p.ended:
	case <-time.After(patience):
		require.FailNow(p.t, p.name+" does not end")
	}
	return p.cmd.ProcessState.ExitCode()
}

func (p *process) signal(s os.Signal) {
	p.t.Helper()
	require.NoError(p.t, p.cmd.Process.Signal(s), p.name)
}

func (p *process) running() bool {
	select {
	case <-p.ended:
		return false
	default:
		return true
	}
}

// kill ends the program at once.
func (p *process) kill() {
	if p.running() {
		_ = p.cmd.Process.Kill()
		<-p.ended
	}
}

// result is what a program that ran to its end left.
type result struct {
	code           int
	stdout, stderr string
}

// run runs a program to its end.
func run(t *testing.T, h *host, command ...string) result {
	t.Helper()
	argv := h.argv(command...)
	cmd := exec.Command(argv[0], argv[1:]...)
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	ended := make(chan struct{})
	require.NoError(t, startTied(cmd, func() { close(ended) }), "%q", argv)
	select {
	case <-ended:
	case <-time.After(6 * patience): // a megabyte in blocks takes long on a busy machine
		_ = cmd.Process.Kill()
		<-ended
		require.FailNow(t, fmt.Sprintf("%q does not end", argv), "%s\n%s", stdout.String(), stderr.String())
	}
	return result{cmd.ProcessState.ExitCode(), stdout.String(), stderr.String()}
}

// eventually waits for a condition that something else makes true.
func eventually(t *testing.T, condition func() bool, format string, args ...any) {
	t.Helper()
	for deadline := time.Now().Add(patience); !condition(); time.Sleep(2 * time.Millisecond) {
		if time.Now().After(deadline) {
			require.FailNow(t, "waited in vain: "+fmt.Sprintf(format, args...))
		}
	}
}
