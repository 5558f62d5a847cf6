package control

import (
	"bytes"
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// socketPath is short enough for a socket, whatever the test is called.
func socketPath(t *testing.T) string {
	t.Helper()
	folder, err := os.MkdirTemp("", "control")
	require.NoError(t, err)
	t.Cleanup(func() { _ = os.RemoveAll(folder) })
	return filepath.Join(folder, "run", "s")
}

// serve starts a server and returns what ends it.
func serve(t *testing.T, path string) (s *Server, stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l, err := Listen(ctx, path, "")
	require.NoError(t, err)
	s = NewServer(&Stats{}, zap.NewNop())
	var wg sync.WaitGroup
	wg.Go(func() { s.Serve(ctx, l) })
	stop = func() { cancel(); wg.Wait() }
	t.Cleanup(stop)
	return s, stop
}

type greeting struct{ Text string }

func TestResources(t *testing.T) {
	path := socketPath(t)
	s, _ := serve(t, path)
	s.Handle("GET /v1/greeting", func(r *http.Request) (any, error) {
		caller, ok := CallerOf(r.Context())
		require.True(t, ok)
		require.EqualValues(t, os.Getuid(), caller.UID)
		require.EqualValues(t, os.Getpid(), caller.PID)
		return greeting{"hello " + r.URL.Query().Get("name")}, nil
	})
	s.Handle("POST /v1/echo", func(r *http.Request) (any, error) {
		data, err := io.ReadAll(r.Body)
		return greeting{string(data)}, err
	})
	s.Handle("POST /v1/nothing", func(*http.Request) (any, error) { return nil, nil })
	s.Handle("GET /v1/refused", func(*http.Request) (any, error) { return nil, Errorf(http.StatusConflict, "not %s", "now") })
	s.Handle("GET /v1/broken", func(*http.Request) (any, error) { return nil, errors.New("broken") })
	s.Handle("GET /v1/unwritable", func(*http.Request) (any, error) { return func() {}, nil })
	s.HandleHTTP("GET /text", http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, `{"Text":"plain"}`) }))

	c := NewClient(path)
	var g greeting
	require.NoError(t, c.Do(t.Context(), http.MethodGet, "/v1/greeting", url.Values{"name": {"a&b"}}, nil, &g))
	require.Equal(t, "hello a&b", g.Text)
	require.NoError(t, c.Do(t.Context(), http.MethodPost, "/v1/echo", nil, []int{1}, &g))
	require.Equal(t, "[1]", g.Text)
	require.NoError(t, c.Do(t.Context(), http.MethodPost, "/v1/nothing", nil, nil, &g))
	require.NoError(t, c.Do(t.Context(), http.MethodGet, "/text", nil, nil, &g))
	require.Equal(t, "plain", g.Text)
	var list struct{ Resources []string }
	require.NoError(t, c.Do(t.Context(), http.MethodGet, "/v1/", nil, nil, &list))
	require.Contains(t, list.Resources, "GET /v1/greeting")

	for _, tt := range []struct {
		method, path string
		body         any
		status       int
		message      string
	}{
		{http.MethodGet, "/v1/refused", nil, http.StatusConflict, "not now"},
		{http.MethodGet, "/v1/broken", nil, http.StatusInternalServerError, "broken"},
		{http.MethodGet, "/v1/unwritable", nil, http.StatusInternalServerError, "cannot be written"},
		{http.MethodGet, "/v1/none", nil, http.StatusNotFound, "no such resource: GET /v1/none"},
		{http.MethodPost, "/v1/echo", strings.Repeat("x", maxRequest), http.StatusRequestEntityTooLarge, "longer than"},
	} {
		err := c.Do(t.Context(), tt.method, tt.path, nil, tt.body, nil)
		var status *StatusError
		require.ErrorAs(t, err, &status, tt.path)
		require.Equal(t, tt.status, status.Status, tt.path)
		require.Contains(t, status.Message, tt.message)
	}
	require.EqualValues(t, 5, s.stats.Failed.Load())
}

// The socket is its owner's, and gone when the server ends.
func TestSocket(t *testing.T) {
	path := socketPath(t)
	_, stop := serve(t, path)
	info, err := os.Lstat(path)
	require.NoError(t, err)
	require.Equal(t, fs.ModeSocket|0o600, info.Mode())
	_, err = Listen(t.Context(), path, "")
	require.ErrorIs(t, err, ErrInUse)
	require.NoError(t, NewClient(path).Do(t.Context(), http.MethodGet, "/v1/", nil, nil, nil), "still served")
	stop()
	require.NoFileExists(t, path)
	require.ErrorIs(t, NewClient(path).Do(t.Context(), http.MethodGet, "/v1/", nil, nil, nil), fs.ErrNotExist)
}

// What a dead program left is replaced, a file that is no socket is not.
func TestLeftOver(t *testing.T) {
	path := socketPath(t)
	require.NoError(t, os.Mkdir(filepath.Dir(path), 0o700))
	dead, err := net.ListenUnix("unix", &net.UnixAddr{Name: path})
	require.NoError(t, err)
	dead.SetUnlinkOnClose(false)
	require.NoError(t, dead.Close())
	_, stop := serve(t, path)
	stop()

	require.NoError(t, os.WriteFile(path, []byte("precious"), 0o600))
	_, err = Listen(t.Context(), path, "")
	require.ErrorContains(t, err, "no socket")
	data, err := os.ReadFile(path)
	require.NoError(t, err)
	require.Equal(t, "precious", string(data))

	_, err = Listen(t.Context(), filepath.Join(path, "below", "file"), "")
	require.Error(t, err)
	_, err = Listen(t.Context(), path+"2", "no such group")
	require.ErrorContains(t, err, "no such group")
	require.NoFileExists(t, path+"2")
}

// Connections and their headers are bounded.
func TestBounds(t *testing.T) {
	path := socketPath(t)
	s, _ := serve(t, path)
	var open []net.Conn
	for range maxConnections {
		c, err := net.Dial("unix", path)
		require.NoError(t, err)
		t.Cleanup(func() { _ = c.Close() })
		open = append(open, c)
		_, err = io.WriteString(c, "GET /v1/ HTTP/1.1\r\nHost: x\r\n\r\n")
		require.NoError(t, err)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(10*time.Second)))
		_, err = io.ReadAtLeast(c, make([]byte, 4096), 10)
		require.NoError(t, err)
	}
	err := NewClient(path).Do(t.Context(), http.MethodGet, "/v1/", nil, nil, nil)
	require.ErrorIs(t, err, ErrTurnedAway)
	require.EqualValues(t, 1, s.stats.Refused.Load())

	_, err = io.WriteString(open[0], "GET /v1/ HTTP/1.1\r\nHost: x\r\nX: "+strings.Repeat("x", 2*maxHeader)+"\r\n\r\n")
	if err == nil {
		answer, _ := io.ReadAll(open[0])
		require.True(t, bytes.Contains(answer, []byte("431")), "%s", answer)
	}
	require.NoError(t, open[0].Close())
	require.Eventually(t, func() bool {
		return NewClient(path).Do(t.Context(), http.MethodGet, "/v1/", nil, nil, nil) == nil
	}, 10*time.Second, 10*time.Millisecond)
}

// A group of the system gets a socket of its own mode; others are turned away
// even where the mode lets them through.
func TestGroup(t *testing.T) {
	path := socketPath(t)
	l, err := Listen(t.Context(), path, "root")
	if os.Getuid() != 0 {
		require.ErrorIs(t, err, fs.ErrPermission) // only root gives files away
		return
	}
	require.NoError(t, err)
	defer l.Close()
	info, err := os.Lstat(path)
	require.NoError(t, err)
	require.Equal(t, fs.ModeSocket|0o660, info.Mode())
	info, err = os.Lstat(filepath.Dir(path))
	require.NoError(t, err)
	require.Equal(t, fs.ModeDir|0o750, info.Mode())
	require.True(t, l.allows(Caller{UID: 65534, GID: 0}), "a member of the group")
	require.False(t, l.allows(Caller{UID: 65534, GID: 65534}))
	require.False(t, l.allows(Caller{UID: 4000000000, GID: 65534}), "nobody the system knows")
	require.True(t, l.allows(Caller{UID: 0, GID: 5}))
	l.group = nil
	require.False(t, l.allows(Caller{UID: 65534, GID: 0}))
}

// Members of the group who hold all connections they can have do not shut root out.
func TestMembersLeaveRoomForOwners(t *testing.T) {
	path := socketPath(t)
	l, err := Listen(t.Context(), path, "")
	require.NoError(t, err)
	defer l.Close()
	for range cap(l.members) {
		l.members <- struct{}{}
	}
	s := NewServer(&Stats{}, zap.NewNop())
	ctx, stop := context.WithCancel(t.Context())
	ended := make(chan struct{})
	go func() { defer close(ended); s.Serve(ctx, l) }()
	require.NoError(t, NewClient(path).Do(t.Context(), http.MethodGet, "/v1/", nil, nil, nil))
	stop()
	<-ended
}
