package endpoint

import (
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
	"go.uber.org/zap/zaptest/observer"
)

// An operator sees in the log whose key is wrong, which on the wire looks like
// silence.
func TestDTLSLogsWhoseKeyIsWrong(t *testing.T) {
	core, logs := observer.New(zap.InfoLevel)
	b := newDTLSBench(t, DTLSCredentials{Key: meterKey}, func(c *DTLSConfig) {
		c.Log, c.Limits.Handshake = zap.New(core), 500*time.Millisecond
	})
	failed := func() []observer.LoggedEntry { return logs.FilterMessage("DTLS handshake failed").All() }
	for i, test := range []struct{ identity, key, why string }{
		{"meter", "guess", "the client has another key, or fell silent"},
		{"nobody", "secret", "no key has this identity"},
	} {
		require.Error(t, b.ask(pskClient(test.identity, test.key)))
		require.Eventually(t, func() bool { return len(failed()) == i+1 }, 5*time.Second, time.Millisecond)
		fields := failed()[i].ContextMap()
		require.Equal(t, test.identity, fields["identity"])
		require.Equal(t, test.why, fields["why"])
		require.Contains(t, fields, "peer")
	}
}
