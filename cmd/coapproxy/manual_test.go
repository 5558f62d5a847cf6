package main

import (
	"bytes"
	"context"
	"io"
	"os/exec"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

func output(t *testing.T, args ...string) string {
	t.Helper()
	var out, err bytes.Buffer
	code := run(context.Background(), stdio{strings.NewReader(""), &out, &err}, args)
	require.Equal(t, exitOK, code, "%v: %s", args, err.String())
	return out.String()
}

// The manual page has every command and every flag, because both come from what
// the commands say of themselves.
func TestManualIsWhole(t *testing.T) {
	manual := strings.ReplaceAll(output(t, "manual"), `\-`, "-")
	for _, c := range commands() {
		require.Contains(t, manual, `.SS "coapproxy `+c.name+`"`)
		var help bytes.Buffer
		c.run(context.Background(), stdio{strings.NewReader(""), &help, io.Discard}, []string{"--help"})
		require.NotEmpty(t, help.String(), "%s --help prints nothing where it was asked", c.name)
		first, _, _ := strings.Cut(help.String(), "\n")
		require.Equal(t, strings.TrimRight(first, " "), first, "%s --help ends its first line with a space", c.name)
		for _, word := range alternatives(c.args) {
			c.run(context.Background(), stdio{strings.NewReader(""), &help, io.Discard}, []string{word, "--help"})
		}
		for line := range strings.Lines(help.String()) {
			if !strings.HasPrefix(line, "  --") {
				continue
			}
			require.Regexp(t, flagLine, strings.TrimSuffix(line, "\n"), "%s: the manual page takes no notice of this flag", c.name)
			name, _, _ := strings.Cut(strings.TrimSpace(line), " ")
			require.Contains(t, manual, `\fB`+name+`\fP`, c.name)
		}
	}
	for _, name := range []string{"SIGTERM", "SIGHUP", "SIGUSR1"} {
		require.Contains(t, manual, name)
	}
	for line := range strings.Lines(manual) {
		if strings.HasPrefix(line, ".") {
			require.Regexp(t, `^\.(TH|SH|SS|TP|PP|B|I|br|nf|fi)\b`, line)
		}
	}
}

// The bash completion completes, in a real bash.
func TestBashCompletion(t *testing.T) {
	script := output(t, "completion", "bash")
	for _, test := range []struct{ typed, want string }{
		{"coapproxy req", "request"},
		{"coapproxy request --multicast-t", "--multicast-timeout"},
		{"coapproxy serve --con", "--config"},
		{"coapproxy completion fi", "fish"},
		{"coapproxy oscore sh", "show"},
		{"coapproxy cache show --gro", "--group"},
	} {
		ask := script + "\nCOMP_WORDS=(" + test.typed + "); COMP_CWORD=$((${#COMP_WORDS[@]}-1)); _coapproxy; echo \"${COMPREPLY[@]}\"\n"
		cmd := exec.Command("bash", "--norc")
		cmd.Dir, cmd.Stdin = t.TempDir(), strings.NewReader(ask)
		got, err := cmd.CombinedOutput()
		require.NoError(t, err)
		require.Equal(t, test.want, strings.TrimSpace(string(got)), test.typed)
	}
}

func TestCompletionsNameEveryCommand(t *testing.T) {
	for _, shell := range []string{"bash", "zsh", "fish"} {
		script := output(t, "completion", shell)
		for _, c := range commands() {
			require.Contains(t, script, c.name, shell)
		}
	}
	var out, err bytes.Buffer
	require.Equal(t, exitUsage, run(context.Background(), stdio{strings.NewReader(""), &out, &err}, []string{"completion", "tcsh"}))
	require.Contains(t, err.String(), `no shell "tcsh"`)
}
