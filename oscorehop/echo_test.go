package oscorehop

import (
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/wire"
)

// restarted returns a client that goes on and a server that lost its window.
func restarted(t testing.TB) (client, server *Context) {
	client, server = pair(t, DefaultAlgorithm)
	server.valid = false
	return client, server
}

// challenged sends a request, which must be challenged, and returns the Echo value
// as the client reads it.
func challenged(t testing.TB, client, server *Context, m Message) []byte {
	t.Helper()
	protected, requester, err := client.ProtectRequest(m, DefaultClasses)
	require.NoError(t, err)
	got, responder, err := unprotectRequest(server, protected, DefaultClasses)
	var challenge *ChallengeError
	require.ErrorAs(t, err, &challenge)
	require.Nil(t, responder)
	require.Equal(t, Message{}, got, "nothing to act on")
	// OH-54: nothing but Echo, inside, with a Partial IV.
	require.Equal(t, codes.Changed, challenge.Response.Code)
	require.NotNil(t, partialIVOf(t, challenge.Response))
	require.Len(t, challenge.Response.Options, 1)
	answer, err := requester.Unprotect(challenge.Response, DefaultClasses)
	require.NoError(t, err)
	require.Equal(t, codes.Unauthorized, answer.Code)
	require.Empty(t, answer.Payload)
	require.Len(t, answer.Options, 1)
	require.Equal(t, wire.Echo, answer.Options[0].ID)
	return answer.Options[0].Value
}

func echoing(value []byte) Message {
	m := getRequest()
	m.Options = append(slices.Clip(m.Options), message.Option{ID: wire.Echo, Value: value})
	return m
}

// OC-27, OH-42, OH-54, OH-113, OH-114
func TestEchoAfterRestart(t *testing.T) {
	client, server := restarted(t)
	recorded, _, err := client.ProtectRequest(getRequest(), DefaultClasses)
	require.NoError(t, err)
	early, _, err := client.ProtectRequest(getRequest(), DefaultClasses)
	require.NoError(t, err)

	value := challenged(t, client, server, getRequest())
	require.Equal(t, value, challenged(t, client, server, getRequest()))
	require.Equal(t, value, challenged(t, client, server, echoing([]byte("guessed!"))), "a guess proves nothing")

	requester, responder := converse(t, client, server, echoing(value))
	answer, err := responder.Protect(contentResponse(), DefaultClasses)
	require.NoError(t, err)
	_, err = requester.Unprotect(answer, DefaultClasses)
	require.NoError(t, err)

	// What came before the restart, or might have, is a replay now.
	for _, m := range []Message{recorded, early} {
		_, _, err = unprotectRequest(server, m, DefaultClasses)
		requireRefused(t, Replayed, err)
	}
	converse(t, client, server, getRequest())
}

// OH-74
func TestEchoOwnIsRemoved(t *testing.T) {
	client, server := restarted(t)
	value := challenged(t, client, server, getRequest())
	for _, v := range []struct {
		echo string
		want []byte
	}{{string(value), nil}, {string(value), nil}, {"of another", []byte("of another")}} {
		protected, _, err := client.ProtectRequest(echoing([]byte(v.echo)), DefaultClasses)
		require.NoError(t, err)
		got, _, err := unprotectRequest(server, protected, DefaultClasses)
		require.NoError(t, err)
		foreign, _ := wire.First(got.Options, wire.Echo)
		require.Equal(t, v.want, foreign)
	}
}

// Whoever plays recorded requests to a restarted server cannot make it spend more
// than one sequence number on each.
// OH-113
func TestEchoOncePerRequest(t *testing.T) {
	client, server := restarted(t)
	protected, _, err := client.ProtectRequest(getRequest(), DefaultClasses)
	require.NoError(t, err)
	_, _, err = unprotectRequest(server, protected, DefaultClasses)
	var challenge *ChallengeError
	require.ErrorAs(t, err, &challenge)
	for range 10 {
		_, _, err = unprotectRequest(server, protected, DefaultClasses)
		requireRefused(t, Replayed, err)
	}
	require.EqualValues(t, 1, server.Usage().Sequence)
}

// OH-113
func TestEchoExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		client, server := restarted(t)
		first := challenged(t, client, server, getRequest())
		time.Sleep(echoLifetime)
		second := challenged(t, client, server, getRequest())
		require.NotEqual(t, first, second)
		time.Sleep(echoLifetime)
		require.NotEqual(t, second, challenged(t, client, server, echoing(first)), "after two lifetimes")
		converse(t, client, server, echoing(second))

		server.valid = false
		time.Sleep(24 * time.Hour)
		challenged(t, client, server, echoing(second))
	})
}

// A challenge that cannot be sent leaves the request undone.
func TestEchoAtLimit(t *testing.T) {
	client, server := restarted(t)
	server.counter.next = maxSequence + 1
	protected, _, err := client.ProtectRequest(getRequest(), DefaultClasses)
	require.NoError(t, err)
	_, responder, err := unprotectRequest(server, protected, DefaultClasses)
	requireLimit(t, Sequence, err)
	require.Nil(t, responder)
}
