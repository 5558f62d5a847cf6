package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/client"
	"coapproxy/exchange"
	"coapproxy/notation"
	"coapproxy/wire"
)

// elapsed matches what differs from run to run.
var elapsed = regexp.MustCompile(`\+\d+\.\d{3}s|in \d+\.\d s`)

func timeless(s string) string {
	return elapsed.ReplaceAllStringFunc(s, func(m string) string {
		if m[0] == '+' {
			return "+T"
		}
		return "in T"
	})
}

func contentFormat(n byte) message.Option {
	return message.Option{ID: wire.ContentFormat, Value: wire.AppendUint(nil, uint32(n))}
}

const group = "coap://224.0.1.187/temp"

func TestRequestGroup(t *testing.T) {
	p := newPeer(t, func(a *askedOf) {
		if a.isEarlyStop() {
			a.Finish()
			return
		}
		a.relay("192.0.2.1:5683", codes.Content, "21.5\x1b[31m", contentFormat(0))
		a.relay("192.0.2.2:61616", codes.Content, `{"t":22}`, contentFormat(50))
		a.relay("192.0.2.1:5683", codes.NotFound, "")
	})
	out, errs, code := requestCommand(t.Context(), t, "", "--via", p.uri(), "--multicast-timeout", "60", "--stop-after", "3", "GET", group)
	require.Equal(t, exitOK, code, errs)
	require.Empty(t, errs)
	require.Equal(t, `+T  coap://192.0.2.1  2.05 Content  Content-Format=text/plain; charset=utf-8 (0)
  21.5\u001b[31m
+T  coap://192.0.2.2:61616  2.05 Content  Content-Format=application/json (50)
  {"t": 22}
+T  coap://192.0.2.1  4.04 Not Found
3 responses from 2 servers in T: 2 × 2.05 Content, 1 × 4.04 Not Found; stopped early, by --stop-after
`, timeless(out))
	request, stop := <-p.requests, <-p.requests
	value, _ := wire.First(request.Options, wire.ProxyURI)
	require.Equal(t, group, string(value))
	require.Equal(t, message.Confirmable, request.Type)
	require.Len(t, stop.Options, 1)
}

func TestRequestGroupToTheEnd(t *testing.T) {
	p := newPeer(t, func(a *askedOf) { a.relay("192.0.2.1:5683", codes.Content, "x") })
	out, _, code := requestCommand(t.Context(), t, "", "--via", p.uri(), "--multicast-timeout", "1", "GET", group, "--non")
	require.Equal(t, exitOK, code)
	require.Equal(t, "+T  coap://192.0.2.1  2.05 Content\n  x\n1 response from 1 server in T: 1 × 2.05 Content; ended by the multicast timeout\n", timeless(out))
	require.Equal(t, message.NonConfirmable, (<-p.requests).Type)
}

func TestRequestInterrupted(t *testing.T) {
	ctx, interrupt := context.WithCancel(t.Context())
	p := newPeer(t, func(a *askedOf) {
		if a.isEarlyStop() {
			a.Finish()
			return
		}
		a.relay("192.0.2.1:5683", codes.Content, "x")
		time.AfterFunc(100*time.Millisecond, interrupt)
	})
	out, _, code := requestCommand(ctx, t, "", "--via", p.uri(), "--multicast-timeout", "60", "GET", group)
	require.Equal(t, exitOK, code)
	require.Contains(t, out, "; interrupted\n")
	<-p.requests
	stop := <-p.requests // GP-40
	require.True(t, (&askedOf{Message: stop}).isEarlyStop())
}

func TestRequestNoResponsesWanted(t *testing.T) {
	p := newPeer(t, func(a *askedOf) { a.Finish() })
	out, errs, code := requestCommand(t.Context(), t, "", "--via", p.uri(), "--multicast-timeout", "0", "--payload", "on", "PUT", "coap://224.0.1.187/light")
	require.Equal(t, exitOK, code)
	require.Equal(t, "sent in T; no responses wanted\n", timeless(out))
	require.Empty(t, errs)
	request := <-p.requests
	require.Equal(t, "on", string(request.Payload))
	value, _ := wire.First(request.Options, wire.NoResponse) // GP-115
	require.Equal(t, []byte{26}, value)
}

// Errors of the proxy are told from those of servers, with what to do about them.
func TestRequestRefused(t *testing.T) {
	tests := []struct {
		name string
		args []string
		code codes.Code
		with []message.Option
		out  string
		err  string
	}{
		{"no multicast timeout", []string{"GET", group}, codes.BadRequest, []message.Option{{ID: wire.MulticastTimeout}},
			"4.00 Bad Request  Multicast-Timeout=empty (it is missing in the request)\n  why\n1 response in T: 1 × 4.00 Bad Request\n",
			"hint: coap://224.0.1.187/temp is a group: the proxy wants to know how long to wait, with --multicast-timeout SECONDS\n"},
		{"a name of a group", []string{"GET", "coap://all.example/"}, codes.BadRequest, []message.Option{{ID: wire.MulticastTimeout}},
			"4.00 Bad Request", "hint: this is a group: the proxy wants to know how long to wait, with --multicast-timeout SECONDS\n"},
		{"denied", []string{"--multicast-timeout", "9", "GET", group}, codes.Unauthorized, nil,
			"+T  proxy  4.01 Unauthorized\n  why\n1 response in T: 1 × 4.01 Unauthorized; refused by the proxy\n", ""},
		{"too short", []string{"--multicast-timeout", "2", "GET", group}, codes.ProxyingNotSupported, []message.Option{{ID: wire.MulticastTimeout, Value: []byte{4}}},
			"+T  proxy  5.05 Proxying Not Supported  Multicast-Timeout=4 s at least\n", "use --multicast-timeout 4, or --retry"},
		{"quiet", []string{"--quiet", "GET", group}, codes.BadRequest, []message.Option{{ID: wire.MulticastTimeout}}, "4.00 Bad Request", ""},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			p := newPeer(t, func(a *askedOf) { a.respond(test.code, "why", test.with...) })
			out, errs, code := requestCommand(t.Context(), t, "", append([]string{"--via", p.uri()}, test.args...)...)
			require.Equal(t, exitFailed, code)
			require.Contains(t, timeless(out), test.out)
			if test.err == "" {
				require.Empty(t, errs)
			} else {
				require.Contains(t, errs, test.err)
			}
			require.LessOrEqual(t, strings.Count(errs, "hint:"), 1)
			require.Len(t, p.requests, 1)
		})
	}
}

// GP-99: one retry, if it is allowed and the time asked for is longer.
func TestRequestRetry(t *testing.T) {
	p := newPeer(t, func(a *askedOf) {
		value, _ := wire.First(a.Options, wire.MulticastTimeout)
		least, _ := wire.Uint(value)
		a.respond(codes.ProxyingNotSupported, "", message.Option{ID: wire.MulticastTimeout, Value: []byte{byte(least + 10)}})
	})
	out, errs, code := requestCommand(t.Context(), t, "", "--retry", "--via", p.uri(), "--multicast-timeout", "2", "GET", group)
	require.Equal(t, exitFailed, code)
	require.Contains(t, errs, "hint: sent again with a multicast timeout of 12 s")
	require.Contains(t, out, "2 responses in")
	first, second := <-p.requests, <-p.requests
	require.NotEqual(t, first.Token, second.Token)
	value, _ := wire.First(second.Options, wire.MulticastTimeout)
	require.Equal(t, []byte{12}, value)
	require.Empty(t, p.requests)
}

// FP-80, RFC 9175 §2.3: an Echo challenge is answered, once.
func TestRequestEcho(t *testing.T) {
	p := newPeer(t, func(a *askedOf) {
		if value, _ := wire.First(a.Options, wire.Echo); string(value) != "fresh" {
			a.respond(codes.Unauthorized, "", message.Option{ID: wire.Echo, Value: []byte("fresh")})
			return
		}
		a.respond(codes.Content, "secret")
	})
	out, errs, code := requestCommand(t.Context(), t, "", "GET", p.uri()+"/")
	require.Equal(t, exitOK, code)
	require.Contains(t, errs, "Echo")
	require.Contains(t, out, "secret")
}

func TestRequestOneServer(t *testing.T) {
	body := strings.Repeat("line of text\n", 20)
	p := newPeer(t, func(a *askedOf) {
		b := wire.Block{SZX: 2}
		if value, ok := wire.First(a.Options, wire.Block2); ok {
			b, _ = wire.ParseBlock(value)
		}
		end := min(b.Offset()+b.Size(), len(body))
		b.More = end < len(body)
		a.respond(codes.Content, body[b.Offset():end], contentFormat(0), message.Option{ID: wire.Block2, Value: b.Append(nil)})
	})
	out, errs, code := requestCommand(t.Context(), t, "", "get", p.uri()+"/big", "--accept", "text/plain", "--option", "65000=0xff", "--option=65000=hi", "--verbose",
		"--etag", "0102", "--no-response", "2")
	require.Equal(t, exitOK, code)
	require.Contains(t, timeless(out), "+T  "+p.uri()+"  2.05 Content  ACK  5 blocks  Content-Format=text/plain; charset=utf-8 (0)  Block2=num 0, more, size 64\n  line of text\n")
	require.Equal(t, 20, strings.Count(out, "  line of text\n"))
	require.Contains(t, timeless(out), "1 response from 1 server in T: 1 × 2.05 Content\n")
	require.Equal(t, 5, strings.Count(errs, "> CON  0.01 GET"))
	request := <-p.requests
	require.Equal(t, message.Options{
		{ID: wire.ETag, Value: []byte{1, 2}},
		{ID: wire.URIPath, Value: []byte("big")},
		{ID: wire.Accept, Value: []byte{}},
		{ID: wire.NoResponse, Value: []byte{2}},
		{ID: 65000, Value: []byte{0xff}},
		{ID: 65000, Value: []byte("hi")},
	}, request.Options)
}

func TestRequestObserve(t *testing.T) {
	observe := func(n byte) message.Option { return message.Option{ID: wire.Observe, Value: []byte{n}} }
	t.Run("notifications", func(t *testing.T) {
		p := newPeer(t, func(a *askedOf) {
			if value, _ := wire.First(a.Options, wire.Observe); len(value) > 0 {
				a.respond(codes.Content, "")
				return
			}
			a.respond(codes.Content, "one", observe(1))
			a.relay("", codes.Content, "two", observe(2))
		})
		out, errs, code := requestCommand(t.Context(), t, "", "--observe", "--stop-after", "2", "GET", p.uri()+"/")
		require.Equal(t, exitOK, code)
		require.Empty(t, errs)
		require.Contains(t, out, "Observe=2\n  two\n2 responses from 1 server")
	})
	t.Run("ended by the server", func(t *testing.T) {
		p := newPeer(t, func(a *askedOf) {
			a.respond(codes.Content, "one", observe(1))
			a.relay("", codes.NotFound, "")
		})
		out, _, code := requestCommand(t.Context(), t, "", "--observe", "GET", p.uri()+"/")
		require.Equal(t, exitOK, code)
		require.Contains(t, out, "the server ended the observation\n")
	})
	t.Run("not registered", func(t *testing.T) {
		p := newPeer(t, func(a *askedOf) { a.respond(codes.Content, "one") })
		_, errs, code := requestCommand(t.Context(), t, "", "--observe", "GET", p.uri()+"/")
		require.Equal(t, exitOK, code)
		require.Contains(t, errs, "hint: no response has Observe")
	})
}

func TestRequestNobodyThere(t *testing.T) {
	other := newPeer(t, func(a *askedOf) { a.Ack() })
	out, _, code := requestCommand(t.Context(), t, "", "--timeout", "50ms", "GET", other.uri()+"/")
	require.Equal(t, exitFailed, code)
	require.Equal(t, "no responses in T; gave up: no answer in time\n", timeless(out))
	_, errs, code := requestCommand(t.Context(), t, "", "--bind", other.endpoint.LocalAddr().String(), "GET", "coap://127.0.0.1/")
	require.Equal(t, exitFailed, code)
	require.Contains(t, errs, "address already in use")
}

func TestRequestPayloadFile(t *testing.T) {
	p := newPeer(t, func(a *askedOf) { a.respond(codes.Changed, "") })
	file := filepath.Join(t.TempDir(), "payload")
	require.NoError(t, os.WriteFile(file, []byte("from a file"), 0o600))
	_, _, code := requestCommand(t.Context(), t, "", "--payload-file", file, "--content-format", "0", "PUT", p.uri()+"/")
	require.Equal(t, exitOK, code)
	require.Equal(t, "from a file", string((<-p.requests).Payload))
	_, errs, code := requestCommand(t.Context(), t, strings.Repeat("x", 2000), "--payload-file", "-", "PUT", p.uri()+"/")
	require.Equal(t, exitOK, code)
	require.Contains(t, errs, "hint: a payload of 2000 bytes may be too long")
	require.Len(t, (<-p.requests).Payload, 2000)
	_, errs, code = requestCommand(t.Context(), t, strings.Repeat("x", maxPayload+1), "--payload-file", "-", "PUT", p.uri()+"/")
	require.Equal(t, exitFailed, code)
	require.Contains(t, errs, "does not fit")
	_, _, code = requestCommand(t.Context(), t, "", "--payload-file", file+"x", "PUT", p.uri()+"/")
	require.Equal(t, exitFailed, code)
}

func TestRequestJSON(t *testing.T) {
	p := newPeer(t, func(a *askedOf) {
		if a.isEarlyStop() {
			a.Finish()
			return
		}
		a.relay("192.0.2.1:5683", codes.Content, "<\x1b\u009b\U000e0001>", contentFormat(0), message.Option{ID: wire.MaxAge, Value: []byte{60}})
		a.relay("192.0.2.1:5683", codes.Content, "{\"a\": \"\u009b\"}", contentFormat(50))
		a.relay("192.0.2.1:5683", codes.Content, "\xa1\x61a\x01", contentFormat(60))
		a.relay("192.0.2.1:5683", codes.Content, "\x00\x01", message.Option{ID: 65000, Value: []byte{7}})
		a.relay("192.0.2.1:5683", codes.Valid, "")
	})
	out, _, code := requestCommand(t.Context(), t, "", "--json", "--via", p.uri(), "--multicast-timeout", "60", "--stop-after", "5", "GET", group)
	require.Equal(t, exitOK, code)
	lines := strings.Split(strings.TrimSuffix(out, "\n"), "\n")
	require.Len(t, lines, 6)
	var got []map[string]any
	for _, line := range lines {
		requireHarmless(t, line)
		var object map[string]any
		require.NoError(t, json.Unmarshal([]byte(line), &object), line)
		got = append(got, object)
	}
	require.Equal(t, "response", got[0]["event"])
	require.Equal(t, "coap://192.0.2.1", got[0]["server"])
	require.Equal(t, p.uri(), got[0]["peer"])
	require.Equal(t, "2.05", got[0]["code"])
	require.Equal(t, map[string]any{"length": 9.0, "text": "<\x1b\u009b\U000e0001>"}, got[0]["payload"])
	require.Contains(t, lines[0], `"text":"<\u001b\u009b\udb40\udc01>"`)
	require.Contains(t, lines[0], `{"number":14,"name":"Max-Age","value":60,"text":"60 s"}`)
	require.Equal(t, map[string]any{"length": 11.0, "json": map[string]any{"a": "\u009b"}}, got[1]["payload"])
	require.Equal(t, map[string]any{"length": 4.0, "diagnostic": `{"a": 1}`}, got[2]["payload"])
	require.Equal(t, map[string]any{"length": 2.0, "hex": "0001"}, got[3]["payload"])
	require.Contains(t, lines[3], `{"number":65000,"value":"07","text":"0x07"}`)
	require.Equal(t, map[string]any{"length": 0.0}, got[4]["payload"])
	delete(got[5], "seconds")
	require.Equal(t, map[string]any{"event": "summary", "responses": 5.0, "servers": 1.0, "ended": "stop-after",
		"codes": map[string]any{"2.05": 4.0, "2.03": 1.0}}, got[5])
}

func TestRequestWrongCommandLine(t *testing.T) {
	tests := []struct {
		args string
		want string
	}{
		{"", "wrong number of arguments"},
		{"GET", "wrong number of arguments"},
		{"FROB coap://192.0.2.1/", `unknown method "FROB"`},
		{"0 coap://192.0.2.1/", `unknown method "0"`},
		{"32 coap://192.0.2.1/", `unknown method "32"`},
		{"GET 192.0.2.1", "192.0.2.1"},
		{"GET coap://192.0.2.1/#x", "fragment"},
		{"GET --psk no-such-file coap://192.0.2.1/", "nothing is secured over coap"},
		{"GET --psk no-such-file coaps+tcp://192.0.2.1/", "--psk is for coaps"},
		{"GET --certificate no-such-file coaps://192.0.2.1/", "--certificate and --key go together"},
		{"GET --via coaps://192.0.2.1 --key no-such-file coap://192.0.2.1/", "--certificate and --key go together"},
		{"GET http://192.0.2.1/", "only the schemes of CoAP"},
		{"GET gopher://192.0.2.1/", "unsupported URI scheme"},
		{"GET " + group, "ask it through a proxy, with --via"},
		{"GET --via http://192.0.2.1/ " + group, "only the schemes of CoAP"},
		{"GET --via coap://192.0.2.1/path " + group, "only a host and a port"},
		{"GET --via coap://224.0.1.187 " + group, "a group is no proxy"},
		{"GET --via :: " + group, "--via"},
		{"GET --proxy-cri coap://192.0.2.1/", "need a proxy"},
		{"GET --via coap://192.0.2.1 --proxy-cri --proxy-scheme coap://192.0.2.1/", "either --proxy-cri"},
		{"GET --via coap://192.0.2.1 --proxy-scheme gopher://192.0.2.1/", "unsupported URI scheme"},
		{"GET --multicast-timeout soon " + group, "not a number of whole seconds"},
		{"GET --multicast-timeout 1500ms " + group, "not a number of whole seconds"},
		{"GET --multicast-timeout 4294967296 " + group, "not a number of whole seconds"},
		{"PUT --payload a --payload-file b coap://192.0.2.1/", "either --payload or"},
		{"PUT --observe coap://192.0.2.1/", "--observe is for GET and FETCH"},
		{"GET --content-format nonsense/x coap://192.0.2.1/", "unknown content format"},
		{"GET --accept 65536 coap://192.0.2.1/", "unknown content format"},
		{"GET --option 12 coap://192.0.2.1/", "not NUMBER="},
		{"GET --option 0=a coap://192.0.2.1/", "not NUMBER="},
		{"GET --option 65536=a coap://192.0.2.1/", "not NUMBER="},
		{"GET --option 12=0xabc coap://192.0.2.1/", `"abc" is not hex`},
		{"GET --etag 010203040506070809 coap://192.0.2.1/", "not 1 to 8 bytes"},
		{"GET --group-etag xx coap://192.0.2.1/", "not 1 to 8 bytes"},
		{"GET --no-response 256 coap://192.0.2.1/", "not a number from 0 to 255"},
		{"GET --stop-after -1 coap://192.0.2.1/", "--stop-after"},
		{"GET --timeout -1s coap://192.0.2.1/", "--timeout"},
		{"GET --bind localhost coap://192.0.2.1/", "not an IP address"},
		{"GET --legacy-number 70000 coap://192.0.2.1/", "not a free option number"},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			out, errs, code := requestCommand(t.Context(), t, "", strings.Fields(test.args)...)
			require.Equal(t, exitUsage, code)
			require.Empty(t, out)
			require.Contains(t, errs, test.want)
		})
	}
}

func TestRequestFlags(t *testing.T) {
	s, _, done := parseRequest(stdio{}, []string{"--via", "proxy.example", "--multicast-timeout", "2m", "5", group, "--proxy-cri", "--timeout", "3s",
		"--group-etag", "0xAB", "--bind", "[::1]", "--legacy-number", "65060", "--non"})
	require.False(t, done)
	require.Equal(t, client.Request{Method: wire.FETCH, URI: group, Form: client.ProxyCRI, Timeout: exchange.Timeout{Seconds: 120, Present: true},
		Options: message.Options{{ID: wire.GroupETag, Value: []byte{0xab}}}, Payload: []byte{}, Wait: 3 * time.Second}, s.request)
	require.Equal(t, netip.MustParseAddrPort("[::1]:0"), s.bind)
	require.EqualValues(t, 65060, s.numbers.ResponseForwarding)
}

// fakeNames is a resolver.
type fakeNames map[string][]netip.Addr

var errNoName = errors.New("no such host")

func (f fakeNames) LookupNetIP(_ context.Context, network, host string) ([]netip.Addr, error) {
	if addrs, ok := f[network+" "+host]; ok {
		return addrs, nil
	}
	return nil, errNoName
}

func TestRequestNames(t *testing.T) {
	names := fakeNames{
		"ip dual.example":  {netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("192.0.2.1")},
		"ip4 dual.example": {netip.MustParseAddr("::ffff:192.0.2.1")},
		"ip all.example":   {netip.MustParseAddr("ff05::fd")},
	}
	tests := []struct {
		args, want, err string
	}{
		{"GET coap://dual.example/", "[2001:db8::1]:5683", ""},
		{"GET --bind 192.0.2.9 coap://dual.example:61616/", "192.0.2.1:61616", ""},
		{"GET --via dual.example coap://other.example/", "[2001:db8::1]:5683", ""},
		{"GET --via coap://192.0.2.5:5684 coap://other.example/", "192.0.2.5:5684", ""},
		{"GET --via [fe80::1%25eth0]:5683 coap://other.example/", "[fe80::1%eth0]:5683", ""},
		{"GET coap://other.example/", "", errNoName.Error()},
		{"GET coap://all.example/", "", "all.example is a group"},
	}
	for _, test := range tests {
		t.Run(test.args, func(t *testing.T) {
			s, _, done := parseRequest(stdio{}, strings.Fields(test.args))
			require.False(t, done)
			got, err := s.resolve(t.Context(), names)
			if test.err != "" {
				require.ErrorContains(t, err, test.err)
				return
			}
			require.NoError(t, err)
			require.Equal(t, test.want, got.addr.String())
		})
	}
}

// The progress line is rewritten in place and erased before anything else.
func TestProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out, errs bytes.Buffer
		o := &requestOutput{out: &out, err: &errs, progress: true, words: notation.Options{Numbers: wire.DefaultNumbers()}}
		drawn := func() string {
			synctest.Wait()
			o.mu.Lock()
			defer o.mu.Unlock()
			defer errs.Reset()
			return errs.String()
		}
		tally := &requestTally{responses: 4}
		stop := o.startProgress(&client.Request{Timeout: exchange.Timeout{Seconds: 10, Present: true}}, tally)
		time.Sleep(250 * time.Millisecond)
		require.Equal(t, "waiting 0.1s of 10s, 4 responses"+eraseLine+"waiting 0.2s of 10s, 4 responses", drawn())
		o.response("proxy", &client.Response{Code: codes.Content, Blocks: 1})
		require.Equal(t, eraseLine, drawn())
		require.Equal(t, "+0.000s  proxy  2.05 Content\n", out.String())
		time.Sleep(20 * time.Second)
		stop()
		require.True(t, strings.HasSuffix(drawn(), "waiting 10.0s of 10s, 4 responses"+eraseLine))
		time.Sleep(time.Second)
		require.Empty(t, drawn())
	})
}

func TestProgressLine(t *testing.T) {
	one := &client.Request{Confirmable: true}
	require.Equal(t, "waiting 3.2s of 1m35s", progressLine(one, &requestTally{}, 3200*time.Millisecond))
	require.Equal(t, "observing for 3.2s, 1 response", progressLine(one, &requestTally{responses: 1, observed: true}, 3200*time.Millisecond))
}

// What a response says beside its payload.
func TestResponseNotes(t *testing.T) {
	var out bytes.Buffer
	o := &requestOutput{out: &out, words: notation.Options{Numbers: wire.DefaultNumbers()}}
	from := wire.ReplyFromValue{Server: wire.URI{Scheme: "coap", Addr: netip.MustParseAddr("192.0.2.7"), Port: 5683}}
	options := message.Options{{ID: wire.Block2, Value: wire.Block{More: true}.Append(nil)}, {ID: wire.ReplyFrom, Value: from.Append(nil)}}
	o.response(from.ServerURI(), &client.Response{Code: codes.Content, Options: options, From: &from, Blocks: 2, Stale: true,
		Payload: []byte("abc"), Incomplete: fmt.Errorf("block 2: \x1b")})
	require.Equal(t, "+0.000s  coap://192.0.2.7  2.05 Content  2 blocks  stale  Block2=num 0, more, size 16\n  abc\n  (incomplete: block 2: \\u001b)\n", out.String())
}
