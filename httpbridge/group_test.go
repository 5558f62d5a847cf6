package httpbridge

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

const groupTarget = "/hc/coap://224.0.1.187/temp?x=1"

// httpPart is a part of a batch as a client sees it.
type httpPart struct {
	status int
	fields http.Header
	body   string
}

// readBatch parses what was written with the standard library.
func readBatch(t testing.TB, contentType string, body io.Reader) []httpPart {
	typ, params, err := mime.ParseMediaType(contentType)
	require.NoError(t, err)
	require.Equal(t, "multipart/mixed", typ) // HC-77
	require.GreaterOrEqual(t, len(params["boundary"]), 30)
	r := multipart.NewReader(body, params["boundary"])
	var parts []httpPart
	for {
		p, err := r.NextRawPart()
		if errors.Is(err, io.EOF) {
			return parts
		}
		require.NoError(t, err)
		require.Equal(t, "application/http", p.Header.Get("Content-Type"))
		w, err := http.ReadResponse(bufio.NewReader(p), nil)
		require.NoError(t, err)
		require.Equal(t, "HTTP/1.1", w.Proto) // HC-79
		b, err := io.ReadAll(w.Body)
		require.NoError(t, err)
		require.NoError(t, w.Body.Close())
		if w.StatusCode != http.StatusNoContent {
			require.EqualValues(t, len(b), w.ContentLength) // HC-79
		}
		parts = append(parts, httpPart{w.StatusCode, w.Header, string(b)})
	}
}

func TestBatch(t *testing.T) {
	f, chain := newFront(t, nil)
	chain.serve = answers(
		member(serverA, codes.Content, "old"),
		member(serverB, codes.Content, "20.0\r\n--", option(wire.ETag, "\xde\xad"), option(wire.ContentFormat, ""), option(wire.MaxAge, "\x07")),
		member(serverA, codes.Content, `{"a":1}`, option(wire.ContentFormat, "\x32"), option(wire.MaxAge, "")),
		member(netip.MustParseAddrPort("192.0.2.8:5683"), codes.NotFound, "nothing here"),
		member(netip.MustParseAddrPort("192.0.2.9:5683"), codes.Changed, ""),
		member(netip.MustParseAddrPort("192.0.2.10:5683"), codes.Valid, "", option(wire.ETag, "\xde\xad")), // HC-80: left out
		member(netip.MustParseAddrPort("192.0.2.11:5683"), codes.Created, "", option(wire.LocationPath, "new")),
	)
	w := do(f, "GET", groupTarget, "", "Multicast-Timeout: 2", `If-None-Match: "dead"`)
	require.Equal(t, 200, w.Code)
	require.Equal(t, "no-store", w.Header().Get("Cache-Control"))
	parts := readBatch(t, w.Header().Get("Content-Type"), w.Body)
	require.Equal(t, []httpPart{
		{200, http.Header{"Content-Type": {"application/json"}, "Content-Length": {"7"}, "Cache-Control": {"no-cache"},
			"Reply-From":       {":" + base64.StdEncoding.EncodeToString([]byte("\x82\x20\x81\x44\xc0\x00\x02\x07")) + ":"}, // HC-72
			"Content-Location": {"coap://192.0.2.7/temp?x=1"}}, `{"a":1}`},                                                  // HC-77: the later one
		{200, http.Header{"Content-Type": {"text/plain; charset=utf-8"}, "Content-Length": {"8"}, "Cache-Control": {"max-age=7"}, "Etag": {`"dead"`},
			"Reply-From":       {":giCCUCABDbgAAAAAAAAAAAAAAAEZ8LA=:"}, // HC-71, the bytes of GP-124's table
			"Content-Location": {"coap://[2001:db8::1]:61616/temp?x=1"}}, "20.0\r\n--"},
		{404, http.Header{"Content-Type": {"text/plain; charset=utf-8"}, "Content-Length": {"12"}, "Cache-Control": {"max-age=60"},
			"Reply-From": {":giCBRMAAAgg=:"}, "Content-Location": {"coap://192.0.2.8/temp?x=1"}}, "nothing here"},
		{204, http.Header{"Cache-Control": {"no-store"}, "Reply-From": {":giCBRMAAAgk=:"}, "Content-Location": {"coap://192.0.2.9/temp?x=1"}}, ""},
		{201, http.Header{"Content-Type": {"application/octet-stream"}, "Content-Length": {"0"}, "Cache-Control": {"no-store"},
			"Location": {"/hc/coap://192.0.2.11/new"}, "Reply-From": {":giCBRMAAAgs=:"}, "Content-Location": {"coap://192.0.2.11/temp?x=1"}}, ""},
	}, parts)
	require.EqualValues(t, 1, f.Stats.Omitted.Load())
	r := chain.last()
	require.Equal(t, exchange.Timeout{Seconds: 2, Present: true}, r.Timeout)
	require.False(t, r.Confirmable)
	require.Equal(t, "-", value(r, wire.Observe)) // HC-82
}

func TestOneResponseIsABatch(t *testing.T) { // HC-78
	f, chain := newFront(t, nil)
	chain.serve = answers(member(serverA, codes.Content, "x"))
	w := do(f, "GET", groupTarget, "", "Multicast-Timeout: 2")
	require.Len(t, readBatch(t, w.Header().Get("Content-Type"), w.Body), 1)
	w = do(f, "HEAD", groupTarget, "", "Multicast-Timeout: 2")
	require.Equal(t, 200, w.Code)
	require.Empty(t, w.Body.String())
}

func TestNoBatch(t *testing.T) {
	groupTag := option(wire.GroupETag, "\x01\x02")
	for _, x := range []struct {
		rule    string
		serve   func(*exchange.Request, exchange.Sink) exchange.Canceler
		fields  []string
		status  int
		headers map[string]string
	}{
		{"HC-77 nobody", answers(), nil, 204, nil},
		{"HC-76 T'=0", answers(), []string{"Multicast-Timeout: "}, 204, nil},
		{"HC-80 only 2.03", answers(member(serverA, codes.Valid, "")), nil, 204, nil},
		{"HC-74", fails(exchange.Failf(exchange.TimeoutMissing, "Please use Multicast-Timeout")), nil, 400, map[string]string{"Multicast-Timeout": ""}},
		{"HC-75", fails(exchange.Failf(exchange.GroupsDisabled, "no")), nil, 403, nil},
		{"HC-75", fails(exchange.Failf(exchange.Denied, "no")), nil, 403, nil},
		{"HC-81", answers(&exchange.Response{Code: codes.Valid, Options: message.Options{groupTag}}), []string{"Group-ETag: :AQI=:"}, 304,
			map[string]string{"Group-Etag": ":AQI=:", "Cache-Control": "private, no-cache"}},
		{"a next hop's word", answers(&exchange.Response{Code: codes.ProxyingNotSupported, Options: message.Options{option(wire.MulticastTimeout, "\x09")},
			Payload: []byte("too short")}), nil, 502, map[string]string{"Multicast-Timeout": "9"}},
		{"HC-73", answers(&exchange.Response{Code: codes.BadRequest, Options: message.Options{option(wire.MulticastTimeout, "")}}), nil, 400,
			map[string]string{"Multicast-Timeout": ""}},
		{"a single server", answers(content("x")), nil, 200, map[string]string{"Content-Type": "application/octet-stream"}},
	} {
		t.Run(x.rule, func(t *testing.T) {
			f, chain := newFront(t, nil)
			chain.serve = x.serve
			fields := x.fields
			if len(fields) == 0 || !strings.HasPrefix(fields[0], "Multicast") {
				fields = append(fields, "Multicast-Timeout: 2")
			}
			for _, more := range [][]string{nil, {"Prefer: stream-parts"}} {
				w := do(f, "GET", "/hc/coap://name.example/temp", "", append(fields, more...)...)
				if len(more) > 0 && (w.Code == 200 || x.rule == "HC-77 nobody" || x.rule == "HC-80 only 2.03") && x.rule != "a single server" {
					continue // a stream has begun: TestStream
				}
				require.Equal(t, x.status, w.Code, w.Body)
				for name, want := range x.headers {
					require.Equal(t, []string{want}, w.Header()[name], name)
				}
			}
		})
	}
}

func TestTimeoutField(t *testing.T) {
	for _, x := range []struct {
		rule    string
		fields  []string
		seconds uint32
		status  int // 0: forwarded
	}{
		{"HC-70", []string{"Multicast-Timeout: 60"}, 60, 0},
		{"HC-70", []string{"Multicast-Timeout: "}, 0, 0},
		{"HC-73", []string{"Multicast-Timeout: 0"}, 0, 0},
		{"HC-70", []string{"Multicast-Timeout: 0005"}, 5, 0},
		{"HC-73", []string{"Multicast-Timeout: 4294967295"}, 4294967295, 0},
		{"HC-73", []string{"Multicast-Timeout: 4294967296"}, 0, 400},
		{"HC-73", []string{"Multicast-Timeout: 99999999999999999999999999"}, 0, 400},
		{"HC-73", []string{"Multicast-Timeout: -1"}, 0, 400},
		{"HC-73", []string{"Multicast-Timeout: 1.5"}, 0, 400},
		{"HC-73", []string{"Multicast-Timeout: 5, 5"}, 0, 400},
		{"HC-73", []string{"Multicast-Timeout: 5", "Multicast-Timeout: 6"}, 0, 400},
		{"HC-73", []string{"Multicast-Timeout: 5", "Multicast-Timeout: 5"}, 5, 0},
	} {
		t.Run(x.rule+" "+strings.Join(x.fields, "|"), func(t *testing.T) {
			f, chain := newFront(t, nil)
			chain.serve = answers()
			w := do(f, "GET", groupTarget, "", x.fields...)
			if x.status != 0 {
				require.Equal(t, x.status, w.Code)
				require.Zero(t, chain.count())
				return
			}
			require.Equal(t, exchange.Timeout{Seconds: x.seconds, Present: true}, chain.last().Timeout)
		})
	}
}

func TestGroupETagField(t *testing.T) {
	for _, x := range []struct {
		rule   string
		fields []string
		want   []string
	}{
		{"HC-70", []string{"Group-ETag: :AQI=:"}, []string{"\x01\x02"}},
		{"HC-70", []string{"Group-ETag: :AQI=:;a=1, :Aw==:", "Group-ETag: :BA==:"}, []string{"\x01\x02", "\x03", "\x04"}},
		{"HC-71", []string{"Group-ETag: AQI"}, nil},
		{"HC-71", []string{"Group-ETag: :AQI:"}, nil},
		{"HC-70", []string{"Group-ETag: :AQI=:", "Group-ETag: 5"}, nil},
		{"HC-70", []string{"Group-ETag: ::"}, nil},
		{"HC-70", []string{"Group-ETag: (:AQI=:)"}, nil},
		{"HC-70", []string{"Group-ETag: :AQIDBAUGBwgJ:"}, nil},
	} {
		t.Run(x.rule+" "+strings.Join(x.fields, "|"), func(t *testing.T) {
			f, chain := newFront(t, nil)
			chain.serve = answers()
			do(f, "GET", groupTarget, "", append(x.fields, "Multicast-Timeout: 2")...)
			var tags []string
			for v := range wire.All(chain.last().Options, wire.GroupETag) {
				tags = append(tags, string(v))
			}
			require.Equal(t, x.want, tags)
			do(f, "GET", groupTarget, "", x.fields...)
			require.False(t, wire.Has(chain.last().Options, wire.GroupETag), "without Multicast-Timeout it means nothing")
		})
	}
}

// The tag of a complete set goes on the outside (HC-81).
func TestOuterGroupETag(t *testing.T) {
	f, chain := newFront(t, nil)
	chain.serve = answers(member(serverA, codes.Content, "a", option(wire.GroupETag, "\x01")), member(serverB, codes.Content, "b", option(wire.GroupETag, "\x02")))
	w := do(f, "GET", groupTarget, "", "Multicast-Timeout: 2")
	require.Equal(t, ":Ag==:", w.Header().Get("Group-Etag"))
	require.Equal(t, "private, no-cache", w.Header().Get("Cache-Control")) // HC-79
	for _, p := range readBatch(t, w.Header().Get("Content-Type"), w.Body) {
		require.Empty(t, p.fields.Get("Group-Etag"))
	}
}

// Reply-From of a next hop passes on; both items (HC-72), none if malformed (GP-10).
func TestReplyFromOfNextHop(t *testing.T) {
	server, err := wire.ParseURI("coap://192.0.2.7")
	require.NoError(t, err)
	two := wire.ReplyFromValue{Server: server, Ref: &wire.ReplyFromRef{Path: []string{"a"}}}.Append(nil)
	f, chain := newFront(t, nil)
	for value, want := range map[string]string{
		string(two): ":giCBRMAAAgc=:, :gvWBYWE=:", "\x82\x20\x81\x44\xc0\x00\x02\x07": ":giCBRMAAAgc=:", "garbage": "",
	} {
		chain.serve = answers(&exchange.Response{Code: codes.Content, Payload: []byte("x"), Options: message.Options{option(wire.ReplyFrom, value)}})
		w := do(f, "GET", groupTarget, "", "Multicast-Timeout: 2")
		parts := readBatch(t, w.Header().Get("Content-Type"), w.Body)
		require.Len(t, parts, 1)
		require.Equal(t, want, parts[0].fields.Get("Reply-From"))
	}
}

func TestBatchLimits(t *testing.T) { // HC-84
	f, chain := newFront(t, func(c *Config) { c.Limits.BatchParts, c.Limits.BatchBytes = 2, 1000 })
	third := netip.MustParseAddrPort("192.0.2.8:5683")
	chain.serve = answers(member(serverA, codes.Content, "1"), member(serverB, codes.Content, "2"), member(third, codes.Content, "3"),
		member(serverA, codes.Content, "4"), member(serverB, codes.Content, strings.Repeat("5", 1000)))
	w := do(f, "GET", groupTarget, "", "Multicast-Timeout: 2")
	parts := readBatch(t, w.Header().Get("Content-Type"), w.Body)
	require.Len(t, parts, 2)
	require.Equal(t, "4", parts[0].body)
	require.Equal(t, "2", parts[1].body)
	require.EqualValues(t, 2, f.Stats.Dropped.Load())
}

// pipe is a client that reads a response while it is written.
type pipe struct {
	*httptest.ResponseRecorder
	w    *io.PipeWriter
	head chan int
}

func (p *pipe) WriteHeader(status int) {
	p.ResponseRecorder.WriteHeader(status)
	p.head <- status
}

func (p *pipe) Write(b []byte) (int, error) { return p.w.Write(b) }
func (p *pipe) Flush()                      {}

// stream begins a request whose response the test reads as it comes.
func stream(t *testing.T, f *Front, target string, fields ...string) (head <-chan int, fieldsOf *httptest.ResponseRecorder, body *io.PipeReader, over <-chan struct{}) {
	r := httptest.NewRequestWithContext(t.Context(), "GET", "/", http.NoBody)
	r.RequestURI, r.Host, r.ContentLength = target, "localhost", 0
	for _, field := range fields {
		name, value, _ := strings.Cut(field, ": ")
		r.Header.Add(name, value)
	}
	read, write := io.Pipe()
	p := &pipe{httptest.NewRecorder(), write, make(chan int, 1)}
	done := make(chan struct{})
	go func() {
		defer close(done)
		defer func() {
			if recover() != nil {
				_ = write.CloseWithError(io.ErrUnexpectedEOF)
			}
			_ = write.Close()
		}()
		f.ServeHTTP(p, r)
	}()
	return p.head, p.ResponseRecorder, read, done
}

func TestStream(t *testing.T) {
	f, chain := newFront(t, nil)
	exchanges := chain.keepsRunning()
	head, recorder, body, over := stream(t, f, groupTarget, "Multicast-Timeout: 60", "Prefer: wait=3, Stream-Parts")
	x := <-exchanges
	require.Equal(t, 200, <-head) // HC-87: before any response
	h := recorder.Header()
	require.Equal(t, "stream-parts", h.Get("Preference-Applied"))      // HC-86
	require.Equal(t, "no-store, no-transform", h.Get("Cache-Control")) // HC-89
	require.Equal(t, "no", h.Get("X-Accel-Buffering"))                 // HC-89
	require.Empty(t, h.Get("Content-Length"))                          // HC-87
	_, params, err := mime.ParseMediaType(h.Get("Content-Type"))
	require.NoError(t, err)
	r := multipart.NewReader(body, params["boundary"])
	for _, want := range []string{"1", "2", "3"} { // HC-87: no replacement, in order
		require.Equal(t, exchange.Continue, x.sink.Respond(member(serverA, codes.Content, want)))
		part, err := r.NextRawPart()
		require.NoError(t, err)
		w, err := http.ReadResponse(bufio.NewReader(part), nil)
		require.NoError(t, err)
		b, err := io.ReadAll(w.Body) // whole before the next part comes: HC-89
		require.NoError(t, err)
		require.NoError(t, w.Body.Close())
		require.Equal(t, want, string(b))
	}
	x.end(nil)
	_, err = r.NextRawPart()
	require.Equal(t, io.EOF, err)
	rest, err := io.ReadAll(body)
	require.NoError(t, err)
	require.Empty(t, rest)
	<-over
}

func TestStreamOfNobody(t *testing.T) { // HC-87
	f, chain := newFront(t, nil)
	chain.serve = answers()
	w := do(f, "GET", groupTarget, "", "Multicast-Timeout: 2", "Prefer: stream-parts")
	require.Equal(t, 200, w.Code)
	_, params, err := mime.ParseMediaType(w.Header().Get("Content-Type"))
	require.NoError(t, err)
	require.Equal(t, "--"+params["boundary"]+"--\r\n", w.Body.String())
}

func TestNoStream(t *testing.T) { // HC-88: HTTP/1.0 falls back
	f, chain := newFront(t, nil)
	chain.serve = answers(member(serverA, codes.Content, "x"))
	r := httptest.NewRequest("GET", "/", http.NoBody)
	r.RequestURI, r.Host, r.ProtoMinor, r.Proto = groupTarget, "localhost", 0, "HTTP/1.0"
	r.Header.Set("Multicast-Timeout", "2")
	r.Header.Set("Prefer", "stream-parts")
	w := httptest.NewRecorder()
	f.ServeHTTP(w, r)
	require.Empty(t, w.Header().Get("Preference-Applied"))
	require.Len(t, readBatch(t, w.Header().Get("Content-Type"), w.Body), 1)
}

// What goes wrong after the beginning comes as a part that no server sent.
func TestStreamFailure(t *testing.T) {
	for _, prefer := range []string{"Prefer: stream-parts", "Accept: application/x-ndjson"} {
		f, chain := newFront(t, nil)
		exchanges := chain.keepsRunning()
		_, recorder, body, over := stream(t, f, groupTarget, "Multicast-Timeout: 60", prefer)
		x := <-exchanges
		go func() {
			x.sink.Respond(member(serverA, codes.Content, "x"))
			x.end(exchange.Failf(exchange.Overloaded, "no more"))
		}()
		b, err := io.ReadAll(body)
		require.NoError(t, err)
		<-over
		if strings.HasPrefix(prefer, "Accept") {
			var last element
			lines := bytes.Split(bytes.TrimSpace(b), []byte("\n"))
			require.NoError(t, json.Unmarshal(lines[len(lines)-1], &last))
			require.Equal(t, 503, last.Status)
			require.Empty(t, last.Server)
			continue
		}
		parts := readBatch(t, recorder.Header().Get("Content-Type"), bytes.NewReader(b))
		require.Equal(t, 503, parts[1].status)
		require.Equal(t, "1", parts[1].fields.Get("Retry-After"))
		require.Empty(t, parts[1].fields.Get("Reply-From")) // GP-39
	}
}

// A client that does not read is cut off, and its exchange ends (HC-88).
func TestSlowReader(t *testing.T) {
	f, chain := newFront(t, func(c *Config) { c.Limits.QueueParts = 2 })
	exchanges := chain.keepsRunning()
	head, _, body, over := stream(t, f, groupTarget, "Multicast-Timeout: 60", "Prefer: stream-parts")
	x := <-exchanges
	require.Equal(t, 200, <-head)
	for i := 0; x.sink.Respond(member(serverA, codes.Content, "x")) == exchange.Continue; i++ {
		require.Less(t, i, 10, "never full")
	}
	x.end(nil)
	_, err := io.ReadAll(body)
	require.ErrorIs(t, err, io.ErrUnexpectedEOF, "the end must be missing")
	<-over
	require.EqualValues(t, 1, f.Stats.SlowReaders.Load())
}

// A client that goes away ends the group exchange (HC-83, HC-60).
func TestGroupHangUp(t *testing.T) {
	for _, fields := range [][]string{nil, {"Prefer: stream-parts"}} {
		f, chain := newFront(t, nil)
		exchanges := chain.keepsRunning()
		server := httptest.NewServer(f)
		r, err := http.NewRequestWithContext(t.Context(), "GET", server.URL, http.NoBody)
		require.NoError(t, err)
		r.URL.Opaque = groupTarget
		r.Header.Set("Multicast-Timeout", "60")
		for _, field := range fields {
			r.Header.Set("Prefer", strings.TrimPrefix(field, "Prefer: "))
		}
		client := &http.Client{Transport: &http.Transport{}, Timeout: 300 * time.Millisecond}
		if w, err := client.Do(r); err == nil {
			_, _ = io.ReadAll(w.Body)
			_ = w.Body.Close()
		}
		client.CloseIdleConnections()
		x := <-exchanges
		<-x.done
		server.Close()
		require.Equal(t, 1, chain.canceled)
		require.EqualValues(t, 1, f.Stats.Disconnects.Load())
	}
}

func FuzzBatch(f *testing.F) {
	f.Add("body", "\r\n--x", uint8(69), uint16(0), []byte{1})
	f.Add("", "\x00\xff", uint8(68), uint16(65000), []byte{})
	front, chain := newFront(f, nil)
	f.Fuzz(func(t *testing.T, a, b string, code uint8, format uint16, tag []byte) {
		options := message.Options{}
		if len(tag) > 0 {
			options = append(options, option(wire.ETag, string(tag)), option(wire.LocationPath, string(tag)))
		}
		options = append(options, option(wire.ContentFormat, string(wire.AppendUint(nil, uint32(format)))))
		chain.serve = answers(member(serverA, codes.Code(code), a, options...), member(serverB, codes.Content, b))
		w := do(front, "POST", groupTarget, "", "Multicast-Timeout: 2")
		if w.Code != 200 {
			return
		}
		parts := readBatch(t, w.Header().Get("Content-Type"), w.Body)
		last := parts[len(parts)-1]
		require.Equal(t, b, last.body)
		require.Equal(t, "coap://[2001:db8::1]:61616/temp?x=1", last.fields.Get("Content-Location"))
	})
}

func FuzzFields(f *testing.F) {
	f.Add(":AQI=:", "60", `"dead", W/"x", *`, "stream-parts; a=b, wait=5", `text/plain;q=0.5, "x`)
	f.Add("(:AQI=: 5);x", "", `""`, `a="b,c"`, `a/b;c="\",";q=1`)
	table := newMediaTypes(Media{Loose: true, PassThrough: true})
	f.Fuzz(func(t *testing.T, group, timeout, tags, prefer, accept string) {
		for _, tag := range parseGroupETags([]string{group}) {
			require.Equal(t, [][]byte{tag}, parseGroupETags([]string{byteList(tag)}))
		}
		seconds, refusal := parseTimeout([]string{timeout})
		require.True(t, refusal != nil || seconds.Present)
		list, _, _ := entityTags([]string{tags})
		for _, tag := range list {
			again, ok := decodeETag(formatETag(tag))
			require.True(t, ok)
			require.Equal(t, tag, again)
		}
		require.LessOrEqual(t, len(list), maxTags)
		preferences([]string{prefer})
		ranges := parseAccept([]string{accept})
		formats, _ := table.accepted(ranges, "")
		require.LessOrEqual(t, len(formats), maxTries)
		formOf(ranges, nil)
	})
}
