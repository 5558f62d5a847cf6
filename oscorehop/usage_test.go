package oscorehop

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
)

// OC-51, OC-52, OC-54, OC-55, OH-63
func TestEncryptionLimit(t *testing.T) {
	client, server := pair(t, DefaultAlgorithm)
	require.Equal(t, Normal, client.Usage().Level)
	for _, v := range []struct {
		next  uint64
		level Level
	}{{1<<19 - 1, Normal}, {1 << 19, Watch}, {838860, Watch}, {838861, Soft}, {1<<20 - 1, Soft}} {
		client.counter.next = v.next
		require.Equal(t, v.level, client.Usage().Level, "%d", v.next)
	}
	require.Equal(t, Encryptions, client.Usage().Limit)

	protected, _, err := client.ProtectRequest(getRequest(), DefaultClasses)
	require.NoError(t, err, "the last one")
	require.Equal(t, Refused, client.Usage().Level)
	_, _, err = client.ProtectRequest(getRequest(), DefaultClasses)
	requireLimit(t, Encryptions, err)

	// The estimate of the server includes what the client may have asked.
	_, responder, err := unprotectRequest(server, protected, DefaultClasses)
	require.NoError(t, err)
	require.EqualValues(t, 1<<20, server.Usage().Encryptions)
	_, err = responder.Protect(contentResponse(), DefaultClasses)
	require.NoError(t, err)
	_, err = responder.Protect(contentResponse(), DefaultClasses)
	requireLimit(t, Encryptions, err)
}

// OC-52: the estimate of a client includes what it has heard.
func TestEncryptionEstimateOfClient(t *testing.T) {
	client, server := pair(t, DefaultAlgorithm)
	requester, responder := converse(t, client, server, getRequest())
	responder.RequirePartialIV()
	server.counter.next = 99
	m, err := responder.Protect(contentResponse(), DefaultClasses)
	require.NoError(t, err)
	_, err = requester.Unprotect(m, DefaultClasses)
	require.NoError(t, err)
	require.EqualValues(t, 1+100, client.Usage().Encryptions)
}

// OC-50, OC-51, OH-53
func TestFailureLimit(t *testing.T) {
	client, server := pair(t, AESCCM16Tag64)
	protected, _, err := client.ProtectRequest(getRequest(), DefaultClasses)
	require.NoError(t, err)
	junk := protected
	junk.Payload = bytes.Clone(protected.Payload)
	junk.Payload[0] ^= 1
	for i := range uint64(1 << 14) {
		require.Equal(t, i, server.Usage().Failures)
		_, _, err := unprotectRequest(server, junk, DefaultClasses)
		requireRefused(t, Forged, err)
	}
	require.Equal(t, Usage{Failures: 1 << 14, Limits: AESCCM16Tag64.Limits(), Level: Refused, Limit: Failures}, server.Usage())
	// Not even the genuine one is given to the key.
	_, _, err = unprotectRequest(server, protected, DefaultClasses)
	requireRefused(t, NoContext, err)
	requireLimit(t, Failures, err)
	require.EqualValues(t, 1<<14, server.Usage().Failures)
}

// OH-111
func TestSequenceLimit(t *testing.T) {
	client, _ := pair(t, DefaultAlgorithm)
	client.limits.Encryptions = 1 << 50
	client.counter.next = maxSequence
	protected, _, err := client.ProtectRequest(getRequest(), DefaultClasses)
	require.NoError(t, err)
	require.Equal(t, []byte{0xff, 0xff, 0xff, 0xff, 0xff}, partialIVOf(t, protected))
	_, _, err = client.ProtectRequest(getRequest(), DefaultClasses)
	requireLimit(t, Sequence, err)
	u := client.Usage()
	require.Equal(t, Refused, u.Level)
	require.Equal(t, Sequence, u.Limit)
}

// OC-50, OC-51
func TestSizeLimit(t *testing.T) {
	for _, a := range allAlgorithms {
		t.Run(a.String(), func(t *testing.T) {
			client, server := pair(t, a)
			room := a.Limits().Size - client.overhead() - 2 // code and payload marker
			m := Message{Code: codes.POST, Payload: make([]byte, room)}
			protected, _, err := client.ProtectRequest(m, DefaultClasses)
			require.NoError(t, err)
			require.Len(t, protected.Payload, a.Limits().Size)
			_, responder, err := unprotectRequest(server, protected, DefaultClasses)
			require.NoError(t, err)

			m.Payload = make([]byte, room+1)
			_, _, err = client.ProtectRequest(m, DefaultClasses)
			var large *TooLargeError
			require.ErrorAs(t, err, &large)
			require.Equal(t, TooLargeError{Size: a.Limits().Size + 1, Max: a.Limits().Size}, *large)
			require.EqualValues(t, 1, client.Usage().Sequence, "it took no number")
			_, err = responder.Protect(Message{Code: codes.Content, Payload: m.Payload}, DefaultClasses)
			require.ErrorAs(t, err, &large)

			fresh, _, err := client.ProtectRequest(getRequest(), DefaultClasses)
			require.NoError(t, err)
			fresh.Payload = make([]byte, a.Limits().Size+1)
			_, _, err = unprotectRequest(server, fresh, DefaultClasses)
			requireRefused(t, Malformed, err)
			require.Zero(t, server.Usage().Failures, "it was not given to the key")
		})
	}
}

// OC-51, OC-55
func TestLifetime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := testParameters(DefaultAlgorithm)
		p.Created, p.Expires = time.Now(), time.Now().Add(10*time.Hour)
		client, server := ephemeral(t, p, 0), ephemeral(t, peerOf(p), 0)
		requester, responder := converse(t, client, server, getRequest())
		late, _, err := client.ProtectRequest(getRequest(), DefaultClasses)
		require.NoError(t, err)
		answer, err := responder.Protect(contentResponse(), DefaultClasses)
		require.NoError(t, err)

		require.Equal(t, Normal, client.Usage().Level)
		time.Sleep(5 * time.Hour)
		require.Equal(t, Watch, client.Usage().Level)
		time.Sleep(3 * time.Hour)
		require.Equal(t, Soft, client.Usage().Level)
		require.Equal(t, Lifetime, client.Usage().Limit)
		time.Sleep(2*time.Hour - time.Nanosecond)
		converse(t, client, server, getRequest())
		time.Sleep(time.Nanosecond)
		require.Equal(t, Refused, client.Usage().Level)

		_, _, err = client.ProtectRequest(getRequest(), DefaultClasses)
		requireLimit(t, Lifetime, err)
		_, err = responder.Protect(contentResponse(), DefaultClasses)
		requireLimit(t, Lifetime, err)
		_, _, err = unprotectRequest(server, late, DefaultClasses)
		requireRefused(t, NoContext, err)
		requireLimit(t, Lifetime, err)
		_, err = requester.Unprotect(answer, DefaultClasses)
		requireRefused(t, NoContext, err)
	})
}

func TestClosedContext(t *testing.T) {
	client, server := pair(t, DefaultAlgorithm)
	protected, _, err := client.ProtectRequest(getRequest(), DefaultClasses)
	require.NoError(t, err)
	_, responder := converse(t, client, server, getRequest())
	require.NoError(t, client.Close())
	require.NoError(t, server.Close())
	_, _, err = client.ProtectRequest(getRequest(), DefaultClasses)
	require.ErrorIs(t, err, ErrClosed)
	_, err = responder.Protect(contentResponse(), DefaultClasses)
	require.ErrorIs(t, err, ErrClosed)
	_, _, err = unprotectRequest(server, protected, DefaultClasses)
	requireRefused(t, NoContext, err)
}

func TestLevelStrings(t *testing.T) {
	for level, want := range map[Level]string{Normal: "normal", Watch: "watch", Soft: "soft limit", Refused: "refused"} {
		require.Equal(t, want, level.String())
	}
	for limit, want := range map[Limit]string{Encryptions: "encryptions", Failures: "failed decryptions", Sequence: "sequence numbers", Lifetime: "lifetime"} {
		require.Equal(t, want, limit.String())
	}
}
