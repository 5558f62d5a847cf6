package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// A time on the command line, and mistakes that say in a few lines what to do.
func TestTimeFlag(t *testing.T) {
	for text, want := range map[string]time.Duration{"5": 5 * time.Second, "0": 0, "300ms": 300 * time.Millisecond, "1m30s": 90 * time.Second, "-1s": -time.Second} {
		var got time.Duration
		require.NoError(t, timeFlag{&got}.Set(text))
		require.Equal(t, want, got, text)
	}
	for _, text := range []string{"", "soon", "5 s", "99999999999", "1.5"} {
		var out, errs bytes.Buffer
		var got time.Duration
		flags := newFlags(stdio{nil, &out, &errs}, "wait", "[flags]", "Waits.")
		timeVar(flags, &got, "timeout", time.Minute, "how long, `TIME`")
		code, done := parse(flags, []string{"--timeout", text}, 0, 0)
		require.True(t, done)
		require.Equal(t, exitUsage, code)
		require.Contains(t, errs.String(), "write a time such as 5s, 300ms or 1m30s\nusage: coapproxy wait [flags]\n\"coapproxy wait --help\" tells more\n")
		require.Empty(t, out.String())
		require.Equal(t, time.Minute, got)
	}
}
