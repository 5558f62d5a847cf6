package oscorehop

import (
	"errors"
	"os"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"coapproxy/wire"
)

func TestMain(m *testing.M) {
	if os.Getenv(killChildMark) != "" {
		killChild()
		return
	}
	goleak.VerifyTestMain(m)
}

var allAlgorithms = []Algorithm{AESCCM16Tag64, AESCCM16Tag128, A128GCM, A256GCM, ChaCha20Poly1305}

func testParameters(a Algorithm) Parameters {
	return Parameters{
		Algorithm:    a,
		MasterSecret: []byte("0123456789abcdef"),
		MasterSalt:   []byte("salt"),
		SenderID:     []byte{0x01},
		RecipientID:  []byte{0x02},
	}
}

// pair returns both ends of a context.
func pair(t testing.TB, a Algorithm) (client, server *Context) {
	t.Helper()
	p := testParameters(a)
	return ephemeral(t, p, 0), ephemeral(t, peerOf(p), 0)
}

func getRequest() Message {
	return Message{Code: codes.GET, Options: message.Options{
		{ID: wire.URIHost, Value: []byte("example")},
		{ID: wire.URIPath, Value: []byte("temperature")},
	}}
}

func contentResponse() Message {
	return Message{
		Code:    codes.Content,
		Options: message.Options{{ID: wire.ETag, Value: []byte{1}}, {ID: wire.ContentFormat, Value: []byte{}}},
		Payload: []byte("22.5"),
	}
}

// converse carries one request over and returns both ends of it.
func converse(t testing.TB, client, server *Context, m Message) (*Requester, *Responder) {
	t.Helper()
	protected, requester, err := client.ProtectRequest(m, DefaultClasses)
	require.NoError(t, err)
	_, responder, err := unprotectRequest(server, protected, DefaultClasses)
	require.NoError(t, err)
	return requester, responder
}

func requireRefused(t testing.TB, want Refusal, err error) {
	t.Helper()
	var refused *VerifyError
	require.ErrorAs(t, err, &refused)
	require.Equal(t, want, refused.Reason, "%v", err)
}

func requireLimit(t testing.TB, want Limit, err error) {
	t.Helper()
	var limit *LimitError
	require.ErrorAs(t, err, &limit)
	require.Equal(t, want, limit.Limit)
}

// partialIVOf returns the Partial IV of a protected message, nil when it has none.
func partialIVOf(t require.TestingT, m Message) []byte {
	o, err := optionOf(m)
	require.NoError(t, err)
	return o.PartialIV
}

var errDisk = errors.New("disk failure")
