package httpbridge

import (
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/stretchr/testify/require"
)

// A request over HTTP/3 has no more time for its header than over the other versions,
// however many streams it is begun on (HC-97).
func TestSlowHeadersOverHTTP3(t *testing.T) {
	a := newAuthority(t)
	f, _ := newFront(t, nil)
	addr := serve(t, f, func(c *ListenConfig) {
		a.server(t)(c)
		c.HeaderTimeout = 500 * time.Millisecond
	})
	config := a.client()
	config.NextProtos, config.ServerName = []string{http3.NextProtoH3}, "localhost"
	c, err := quic.DialAddr(t.Context(), addr, config, nil)
	require.NoError(t, err)
	defer func() { _ = c.CloseWithError(0, "") }()
	for range 3 {
		stream, err := c.OpenStream()
		require.NoError(t, err)
		_, err = stream.Write([]byte{1, 20, 0}) // the beginning of a HEADERS frame
		require.NoError(t, err)
		require.NoError(t, stream.SetReadDeadline(time.Now().Add(20*time.Second)))
		_, err = stream.Read(make([]byte, 10))
		var reset *quic.StreamError
		require.ErrorAs(t, err, &reset)
		require.True(t, reset.Remote)
		require.EqualValues(t, http3.ErrCodeRequestIncomplete, reset.ErrorCode)
	}
	require.NoError(t, c.Context().Err(), "the connection is fine")
}
