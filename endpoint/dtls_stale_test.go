package endpoint

import (
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/dtls"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
)

// A session whose key was withdrawn ends; the others go on.
func TestEndSessions(t *testing.T) {
	b := newDTLSBench(t, DTLSCredentials{Key: func(string) ([]byte, bool) { return []byte("secret"), true }}, nil)
	stays, err := dtls.Dial(b.addr(), pskClient("stays", "secret"), quietPeer)
	require.NoError(t, err)
	goes, err := dtls.Dial(b.addr(), pskClient("goes", "secret"), quietPeer)
	require.NoError(t, err)
	require.Eventually(t, func() bool { return b.config.Stats.Sessions.Load() == 2 }, 10*time.Second, time.Millisecond)
	b.conn.EndSessions(func(s *exchange.Security) bool { return s.PSKIdentity == "goes" })
	<-goes.Done()
	require.Eventually(t, func() bool { return b.config.Stats.Sessions.Load() == 1 }, 10*time.Second, time.Millisecond)
	_, err = stays.Get(t.Context(), "/x")
	require.NoError(t, err)
	require.NoError(t, stays.Close())
	<-stays.Done()
}
