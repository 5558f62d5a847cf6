package httpbridge

import (
	"bufio"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// sse reads a stream of server-sent events.
type sse struct {
	t *testing.T
	r *bufio.Reader
}

// next returns the fields of the next event or comment.
func (s *sse) next() map[string]string {
	s.t.Helper()
	fields := make(map[string]string)
	for {
		line, err := s.r.ReadString('\n')
		require.NoError(s.t, err)
		line = strings.TrimSuffix(line, "\n")
		if line == "" {
			return fields
		}
		name, value, _ := strings.Cut(line, ":")
		fields[name] = strings.TrimPrefix(value, " ")
	}
}

// data is the JSON of the next event, whose number it has to have.
func (s *sse) data(id int) (e event) {
	s.t.Helper()
	fields := s.next()
	require.Equal(s.t, fmt.Sprint(id), fields["id"])
	require.NoError(s.t, json.Unmarshal([]byte(fields["data"]), &e))
	return e
}

// HC-92: one event for each notification, numbered, with status, fields and body;
// closing the stream removes the observer.
func TestEvents(t *testing.T) {
	f, chain := newFront(t, nil)
	exchanges := chain.keepsRunning()
	head, recorder, body, over := stream(t, f, someTarget, "Accept: text/event-stream")
	x := <-exchanges
	require.Equal(t, "", value(chain.last(), wire.Observe), "Observe 0")
	require.Equal(t, "-", value(chain.last(), wire.Accept))
	require.False(t, chain.last().Timeout.Present)
	require.Equal(t, exchange.Continue, x.sink.Respond(content("21.5", option(wire.ETag, "\xde\xad"), option(wire.Observe, "\x01"), option(wire.ContentFormat, ""))))
	require.Equal(t, 200, <-head)
	h := recorder.Header()
	require.Equal(t, "text/event-stream", h.Get("Content-Type"))
	require.Equal(t, "no-store, no-transform", h.Get("Cache-Control"))
	events := &sse{t, bufio.NewReader(body)}
	e := events.data(0)
	require.Equal(t, 200, e.Status)
	require.Equal(t, `"21.5"`, string(e.Body))
	require.Equal(t, "coap://192.0.2.7", e.Server)
	require.Equal(t, map[string]string{"ETag": `"dead"`, "Cache-Control": "max-age=60"}, e.Fields)
	require.Empty(t, e.ReplyFrom)

	x.sink.Respond(content("line\nbreak\r\n", option(wire.Observe, "\x02"), option(wire.ContentFormat, "")))
	require.Equal(t, `"line\nbreak\r\n"`, string(events.data(1).Body))
	x.sink.Respond(content("\xff", option(wire.Observe, "\x03"), option(wire.ContentFormat, "\x2a")))
	require.Equal(t, "/w==", events.data(2).BodyBase64)
	require.EqualValues(t, 1, f.Stats.EventStreams.Load())

	// The server ends the observation with an error; then nothing more comes.
	x.sink.Respond(&exchange.Response{Code: codes.NotFound, From: serverA})
	x.end(nil)
	require.Equal(t, 404, events.data(3).Status)
	fields := events.next()
	require.Equal(t, "end", fields["event"])
	require.JSONEq(t, `{"detail": "the observation has ended"}`, fields["data"])
	_, err := events.r.ReadByte()
	require.ErrorIs(t, err, io.EOF)
	<-over
	require.Zero(t, f.Stats.EventStreams.Load())
}

// A page that leaves ends the observation (HC-92), and is no fault.
func TestEventsLeft(t *testing.T) {
	f, chain := newFront(t, nil)
	exchanges := chain.keepsRunning()
	addr := serve(t, f, nil)
	c := dial(t, addr)
	c.write("GET %s HTTP/1.1\r\nHost: 127.0.0.1\r\nAccept: text/event-stream\r\n\r\n", someTarget)
	x := <-exchanges
	x.sink.Respond(content("1", option(wire.Observe, "")))
	w, err := http.ReadResponse(c.r, nil)
	require.NoError(t, err)
	defer w.Body.Close()
	(&sse{t, bufio.NewReader(w.Body)}).data(0)
	require.NoError(t, c.Close())
	<-x.done
	require.Equal(t, 1, chain.canceled)
	require.Zero(t, f.Stats.Disconnects.Load())
	require.Zero(t, f.Stats.SlowReaders.Load())
}

// HC-92: a silent stream carries a comment every 15 s.
func TestEventsHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, chain := newFront(t, nil)
		exchanges := chain.keepsRunning()
		_, _, body, over := stream(t, f, someTarget, "Accept: text/event-stream")
		x := <-exchanges
		began := time.Now()
		x.sink.Respond(content("1", option(wire.Observe, "")))
		events := &sse{t, bufio.NewReader(body)}
		events.data(0)
		for i := range 3 {
			require.Equal(t, map[string]string{"": ""}, events.next())
			require.Equal(t, time.Duration(i+1)*15*time.Second, time.Since(began))
		}
		x.end(exchange.Failf(exchange.NoAnswer, "the server is gone"))
		fields := events.next()
		require.Equal(t, "end", fields["event"])
		require.JSONEq(t, `{"status": 504, "detail": "the server is gone"}`, fields["data"])
		<-over
	})
}

// HC-92: a group is observed by a route that has a default T', since an
// EventSource can set no field; each event names its server.
func TestGroupEvents(t *testing.T) {
	f, chain := newFront(t, func(c *Config) {
		c.Mapping.Routes = []Route{{Path: []string{"lamps"}, Target: "coap://224.0.1.187/light", Timeout: exchange.Timeout{Seconds: 2, Present: true}}}
	})
	exchanges := chain.keepsRunning()
	head, _, body, over := stream(t, f, "/lamps", "Accept: text/event-stream")
	x := <-exchanges
	require.Equal(t, 200, <-head, "before any response")
	require.Equal(t, exchange.Timeout{Seconds: 2, Present: true}, chain.last().Timeout)
	require.Equal(t, "", value(chain.last(), wire.Observe))
	events := &sse{t, bufio.NewReader(body)}
	for i, from := range []string{"a", "b", "a"} {
		server := serverA
		if from == "b" {
			server = serverB
		}
		x.sink.Respond(member(server, codes.Content, from, option(wire.Observe, string(rune(i))), option(wire.ContentFormat, "")))
		e := events.data(i)
		require.Equal(t, `"`+from+`"`, string(e.Body))
		require.Regexp(t, `^:[A-Za-z0-9+/=]+:$`, e.ReplyFrom)
		require.Contains(t, e.Fields["Content-Location"], "/light")
	}
	x.end(nil)
	require.Equal(t, "end", events.next()["event"])
	<-over

	// Without a default there is no T' (HC-74); with T'=0 there is nothing to wait
	// for (GP-36).
	chain.serve = fails(exchange.Failf(exchange.TimeoutMissing, "no Multicast-Timeout"))
	require.Equal(t, 400, do(f, "GET", groupTarget, "", "Accept: text/event-stream").Code)
	chain.serve = answers()
	require.Equal(t, 204, do(f, "GET", groupTarget, "", "Accept: text/event-stream", "Multicast-Timeout: 0").Code)
	require.Equal(t, "-", value(chain.last(), wire.Observe))
}

// What is no observation has the status of a plain response, which an EventSource
// takes as the end.
func TestEventsRefused(t *testing.T) {
	for name, x := range map[string]struct {
		serve  func(*exchange.Request, exchange.Sink) exchange.Canceler
		status int
	}{
		"denied":       {fails(exchange.Failf(exchange.Denied, "no")), 403},
		"no answer":    {fails(exchange.Failf(exchange.NoAnswer, "no")), 504},
		"error":        {answers(&exchange.Response{Code: codes.NotFound, From: serverA}), 404},
		"no responses": {answers(), 504},
	} {
		t.Run(name, func(t *testing.T) {
			f, chain := newFront(t, nil)
			chain.serve = x.serve
			w := do(f, "GET", someTarget, "", "Accept: text/event-stream")
			require.Equal(t, x.status, w.Code)
			require.NotEqual(t, "text/event-stream", w.Header().Get("Content-Type"))
		})
	}
	// A resource that cannot be observed: one event and the end.
	f, _ := newFront(t, nil)
	w := do(f, "GET", someTarget, "", "Accept: text/event-stream, text/plain")
	require.Equal(t, 200, w.Code)
	require.Regexp(t, `^id: 0\ndata: \{.*\}\n\nevent: end\ndata: \{.*\}\n\n$`, w.Body.String())
	// Something else is preferred.
	require.Equal(t, "21.5", do(f, "GET", someTarget, "", "Accept: text/plain, text/event-stream").Body.String())
	require.Equal(t, "", do(f, "HEAD", someTarget, "", "Accept: text/event-stream").Body.String())
}

// HC-99: a challenge is answered once.
func TestEventsEcho(t *testing.T) {
	f, chain := newFront(t, nil)
	chain.serve = func(r *exchange.Request, w exchange.Sink) exchange.Canceler {
		if value(r, wire.Echo) != "fresh" {
			return answers(&exchange.Response{Code: codes.Unauthorized, From: serverA, Options: []message.Option{option(wire.Echo, "fresh")}})(r, w)
		}
		return answers(content("ok", option(wire.ContentFormat, "")))(r, w)
	}
	w := do(f, "GET", someTarget, "", "Accept: text/event-stream")
	require.Contains(t, w.Body.String(), `"body":"ok"`)
	require.Equal(t, 2, chain.count())
}

// A client that does not read its events is cut off (HC-88).
func TestEventsSlowReader(t *testing.T) {
	f, chain := newFront(t, func(c *Config) { c.Limits.QueueParts = 3 })
	exchanges := chain.keepsRunning()
	head, _, body, over := stream(t, f, someTarget, "Accept: text/event-stream")
	x := <-exchanges
	verdict := x.sink.Respond(content("x", option(wire.Observe, "")))
	require.Equal(t, 200, <-head)
	for i := 0; verdict == exchange.Continue; i++ {
		require.Less(t, i, 6)
		verdict = x.sink.Respond(content("x", option(wire.Observe, "")))
	}
	go func() { _, _ = io.Copy(io.Discard, body) }()
	<-over
	require.EqualValues(t, 1, f.Stats.SlowReaders.Load())
	require.Equal(t, 1, chain.canceled)
}

// HC-92: long-poll.
func TestLongPoll(t *testing.T) {
	poll := func(t *testing.T, f *Front) <-chan *httptest.ResponseRecorder {
		done := make(chan *httptest.ResponseRecorder, 1)
		go func() { done <- do(f, "GET", someTarget, "", `If-None-Match: "01"`, "Prefer: wait=60") }()
		return done
	}
	t.Run("change", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f, chain := newFront(t, nil)
			exchanges := chain.keepsRunning()
			done := poll(t, f)
			x := <-exchanges
			require.Equal(t, "", value(chain.last(), wire.Observe))
			x.sink.Respond(&exchange.Response{Code: codes.Valid, Options: []message.Option{option(wire.ETag, "\x01"), option(wire.Observe, "")}, From: serverA})
			time.Sleep(30 * time.Second)
			x.sink.Respond(content("same", option(wire.ETag, "\x01"), option(wire.Observe, "")))
			time.Sleep(20 * time.Second)
			require.Empty(t, done)
			x.sink.Respond(content("new", option(wire.ETag, "\x02"), option(wire.Observe, "")))
			w := <-done
			require.Equal(t, 200, w.Code)
			require.Equal(t, "new", w.Body.String())
			require.Equal(t, `"02"`, w.Header().Get("ETag"))
			require.Equal(t, "wait=60", w.Header().Get("Preference-Applied"))
			<-x.done
			require.Equal(t, 1, chain.canceled)
		})
	})
	t.Run("none", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f, chain := newFront(t, nil)
			exchanges := chain.keepsRunning()
			began := time.Now()
			done := poll(t, f)
			x := <-exchanges
			x.sink.Respond(content("same", option(wire.ETag, "\x01"), option(wire.Observe, "")))
			w := <-done
			require.Equal(t, time.Minute, time.Since(began))
			require.Equal(t, 304, w.Code)
			require.Equal(t, `"01"`, w.Header().Get("ETag"))
			<-x.done
		})
	})
	t.Run("silence", func(t *testing.T) {
		synctest.Test(t, func(t *testing.T) {
			f, chain := newFront(t, nil)
			exchanges := chain.keepsRunning()
			done := poll(t, f)
			x := <-exchanges
			require.Equal(t, 504, (<-done).Code)
			<-x.done
		})
	})
	t.Run("not observable", func(t *testing.T) {
		f, chain := newFront(t, nil)
		chain.serve = answers(content("same", option(wire.ETag, "\x01")))
		w := <-poll(t, f)
		require.Equal(t, 304, w.Code)
		require.Empty(t, w.Header().Get("Preference-Applied"))
		chain.serve = fails(exchange.Failf(exchange.Unreachable, "no"))
		require.Equal(t, 502, (<-poll(t, f)).Code)
	})
	t.Run("nothing to compare", func(t *testing.T) {
		f, chain := newFront(t, nil)
		require.Equal(t, 200, do(f, "GET", someTarget, "", "Prefer: wait=60").Code)
		require.Equal(t, "-", value(chain.last(), wire.Observe))
		require.Equal(t, 200, do(f, "GET", someTarget, "", `If-None-Match: "01"`, "Prefer: wait=x").Code)
		require.Equal(t, "-", value(chain.last(), wire.Observe))
	})
}

// HC-92: a browser gets a cookie for a token, and goes on with it.
func TestSessions(t *testing.T) {
	credentials, err := ReadCredentials(strings.NewReader(fmt.Sprintf("c bearer %x\n", sha256.Sum256([]byte("token")))))
	require.NoError(t, err)
	synctest.Test(t, func(t *testing.T) {
		sessions := NewSessions(time.Hour)
		f, _ := newFront(t, func(c *Config) {
			c.Clients = &Authentication{Credentials: credentials, Sessions: sessions, Client: func(string) *exchange.Identity { return knownClient }}
		})
		ask := func(method, target string, fields ...string) *httptest.ResponseRecorder {
			return tlsDo(f, method, target, fields...)
		}
		require.Equal(t, 401, ask("POST", "/session").Code)
		require.Equal(t, 405, ask("GET", "/session", "Authorization: Bearer token").Code)
		w := ask("POST", "/session", "Authorization: Bearer token")
		require.Equal(t, 204, w.Code)
		set := w.Header().Get("Set-Cookie")
		require.Regexp(t, `^__Host-coapproxy=[\w-]{32}; Path=/; Max-Age=3600; HttpOnly; Secure; SameSite=Strict$`, set)
		require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
		cookie, _, _ := strings.Cut(set, ";")
		require.Equal(t, 200, ask("GET", someTarget, "Cookie: "+cookie).Code)
		require.Equal(t, 200, ask("GET", someTarget, "Cookie: "+cookie, "Accept: text/event-stream").Code)
		require.Equal(t, 403, ask("POST", "/session", "Cookie: "+cookie).Code, "a session makes no session")
		require.Equal(t, 403, ask("POST", someTarget, "Cookie: "+cookie, "Sec-Fetch-Site: same-site").Code) // HC-91
		require.Equal(t, 401, ask("GET", someTarget, "Cookie: "+cookie+"x").Code)
		require.Equal(t, 403, do(f, "GET", someTarget, "", "Cookie: "+strings.TrimPrefix(cookie, "__Host-")).Code, "without TLS")

		require.Equal(t, 204, ask("DELETE", "/session", "Cookie: "+cookie).Code)
		require.Equal(t, 401, ask("GET", someTarget, "Cookie: "+cookie).Code)

		w = ask("POST", "/session", "Authorization: Bearer token")
		cookie, _, _ = strings.Cut(w.Header().Get("Set-Cookie"), ";")
		time.Sleep(time.Hour)
		require.Equal(t, 401, ask("GET", someTarget, "Cookie: "+cookie).Code, "its time is over")
	})
}

func TestSessionsAreBounded(t *testing.T) {
	s, now := NewSessions(time.Hour), time.Now()
	for range maxOwnSessions {
		_, ok := s.begin("a", now)
		require.True(t, ok)
	}
	_, ok := s.begin("a", now)
	require.False(t, ok)
	_, ok = s.begin("b", now)
	require.True(t, ok)
	_, ok = s.begin("a", now.Add(time.Hour))
	require.True(t, ok, "those before are over")
	for i := range maxSessions + 10 {
		_, ok := s.begin(fmt.Sprint(i), now)
		require.True(t, ok)
	}
	require.Equal(t, maxSessions, s.open.Len())
	require.Len(t, s.of, maxSessions)
}

// Who watches is told to come back when the proxy stops, and does not hold it up
// (HC-92).
func TestWatchersWhileStopping(t *testing.T) {
	for _, fields := range [][]string{{"Accept: text/event-stream"}, {"If-None-Match: \"00\"", "Prefer: wait=60"}} {
		for _, begun := range []bool{true, false} {
			f, chain := newFront(t, nil)
			exchanges := chain.keepsRunning()
			over := make(chan *httptest.ResponseRecorder, 1)
			go func() { over <- do(f, "GET", someTarget, "", fields...) }()
			x := <-exchanges
			events := len(fields) == 1
			if begun {
				x.sink.Respond(content("1", option(wire.Observe, "\x01"), option(wire.ETag, "\x00")))
			}
			require.Zero(t, f.Drain(t.Context()))
			w := <-over
			if events && begun && w.Code == 200 { // else it stopped before the first response was written
				require.Contains(t, w.Body.String(), "retry: 10000\nevent: interrupted\ndata: {\"status\":503,\"detail\":\"the proxy stops\"}\n\n")
			} else {
				require.Equal(t, 503, w.Code)
				require.Equal(t, "10", w.Header().Get("Retry-After"))
			}
			chain.mu.Lock()
			require.Equal(t, 1, chain.canceled)
			chain.mu.Unlock()
		}
	}
}
