package packet

import (
	"strings"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/plgd-dev/go-coap/v3/udp/coder"
	"github.com/stretchr/testify/require"
)

// The messages mean the same to a codec written by others.
func TestRequestDecodes(t *testing.T) {
	uri := "coap://127.0.0.1:5683/" + strings.Repeat("a", 200)
	b := AppendHeader(nil, NON, GET, 7, make([]byte, TokenLen))
	b = AppendOption(b, 0, MulticastTimeout, []byte{60})
	b = AppendOption(b, MulticastTimeout, URIPath, []byte("temp"))
	b = AppendOption(b, URIPath, MaxAge, nil)
	b = AppendOption(b, MaxAge, ProxyURI, []byte(uri))
	SetID(b, 0xabcd)
	SetToken(b, 0x01020304)

	m := message.Message{Options: make(message.Options, 0, 8)}
	n, err := coder.DefaultCoder.Decode(b, &m)
	require.NoError(t, err)
	require.Equal(t, len(b), n)
	require.Equal(t, message.NonConfirmable, m.Type)
	require.Equal(t, codes.GET, m.Code)
	require.EqualValues(t, 0xabcd, m.MessageID)
	require.Equal(t, message.Token{1, 2, 3, 4}, m.Token)
	require.Len(t, m.Options, 4)
	require.EqualValues(t, 2, m.Options[0].ID)
	require.Equal(t, []byte{60}, m.Options[0].Value)
	require.Equal(t, []byte("temp"), m.Options[1].Value)
	require.Empty(t, m.Options[2].Value)
	require.Equal(t, message.ProxyURI, m.Options[3].ID)
	require.Equal(t, uri, string(m.Options[3].Value))
}

func TestFirstOption(t *testing.T) {
	header := AppendHeader(nil, NON, GET, 7, make([]byte, TokenLen))
	require.Zero(t, FirstOption(header))
	require.Zero(t, FirstOption(header[:3]))
	require.Equal(t, Observe, FirstOption(AppendOption(header, 0, Observe, nil)))
	require.Zero(t, FirstOption(AppendOption(header, 0, ProxyURI, []byte("coap://x"))))
	require.Zero(t, FirstOption(append(header, 0xff, 1)))
}

func TestParse(t *testing.T) {
	h, ok := Parse(AppendHeader(nil, ACK, Content, 0x1234, []byte{0, 0, 1, 2}))
	require.True(t, ok)
	require.Equal(t, Header{Type: ACK, Code: Content, ID: 0x1234, Token: []byte{0, 0, 1, 2}}, h)
	token, ok := Token(h)
	require.True(t, ok)
	require.EqualValues(t, 0x102, token)

	_, ok = Token(Header{Token: []byte{1}})
	require.False(t, ok)

	for _, bad := range [][]byte{nil, {0x40, 1, 0}, {0x00, 1, 0, 0}, {0x44, 1, 0, 0, 1, 2, 3}, append([]byte{0x49}, make([]byte, 20)...)} {
		_, ok := Parse(bad)
		require.False(t, ok, "% x", bad)
	}
}

func TestIsRequest(t *testing.T) {
	require.True(t, IsRequest(GET))
	require.False(t, IsRequest(Empty))
	require.False(t, IsRequest(Content))
}
