package httpbridge

import (
	"bufio"
	"context"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
)

// node runs the parser that docs has for web pages.
func node(t *testing.T, url, fields string) (*bufio.Scanner, *exec.Cmd, *strings.Builder) {
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	t.Cleanup(cancel)
	cmd := exec.CommandContext(ctx, "node", "testdata/batch_test.mjs", url, fields)
	var complaint strings.Builder
	cmd.Stderr = &complaint
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	return bufio.NewScanner(out), cmd, &complaint
}

type parsed struct {
	Server string
	Status int
	Body   string
}

func TestJavaScriptParser(t *testing.T) {
	begin := func(t *testing.T, fields string, behave func(*fakeChain)) (*bufio.Scanner, *exec.Cmd, *strings.Builder) {
		f, chain := newFront(t, nil)
		behave(chain)
		server := httptest.NewServer(f)
		t.Cleanup(server.Close)
		return node(t, server.URL+groupTarget, fields)
	}
	read := func(t *testing.T, lines *bufio.Scanner) parsed {
		require.True(t, lines.Scan())
		var p parsed
		require.NoError(t, json.Unmarshal(lines.Bytes(), &p))
		return p
	}
	t.Run("whole", func(t *testing.T) {
		lines, cmd, complaint := begin(t, `{"Multicast-Timeout":"2"}`, func(c *fakeChain) {
			c.serve = answers(member(serverA, codes.Content, "a\r\n\r\n--\xff\x00b"), member(serverB, codes.NotFound, "no"),
				member(serverC, codes.Changed, ""))
		})
		require.Equal(t, parsed{"coap://192.0.2.7/temp?x=1", 200, "a\r\n\r\n--\u00ff\x00b"}, read(t, lines), complaint)
		require.Equal(t, parsed{"coap://[2001:db8::1]:61616/temp?x=1", 404, "no"}, read(t, lines))
		require.Equal(t, parsed{"coap://192.0.2.8/temp?x=1", 204, ""}, read(t, lines))
		require.False(t, lines.Scan())
		require.NoError(t, cmd.Wait(), complaint)
	})
	t.Run("nobody", func(t *testing.T) {
		lines, cmd, complaint := begin(t, `{"Multicast-Timeout":"2"}`, func(c *fakeChain) { c.serve = answers() })
		require.False(t, lines.Scan())
		require.NoError(t, cmd.Wait(), complaint)
	})
	t.Run("as they come", func(t *testing.T) {
		var exchanges <-chan *running
		lines, cmd, complaint := begin(t, `{"Multicast-Timeout":"60","Prefer":"stream-parts"}`, func(c *fakeChain) { exchanges = c.keepsRunning() })
		x := <-exchanges
		for _, body := range []string{"1", strings.Repeat("2", 50000), ""} {
			x.sink.Respond(member(serverA, codes.Content, body))
			require.Equal(t, parsed{"coap://192.0.2.7/temp?x=1", 200, body}, read(t, lines)) // HC-89: before the next one
		}
		x.end(nil)
		require.False(t, lines.Scan())
		require.NoError(t, cmd.Wait(), complaint)
	})
	t.Run("cut short", func(t *testing.T) {
		short := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "multipart/mixed; boundary=x")
			_, _ = w.Write([]byte("--x\r\nContent-Type: application/http\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\nabc"))
		}))
		defer short.Close()
		lines, cmd, complaint := node(t, short.URL, `{}`)
		require.False(t, lines.Scan())
		require.Error(t, cmd.Wait())
		require.Contains(t, complaint.String(), "cut short")
	})
}
