package test

import (
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// The subcommand request against a real proxy and group: each response as it
// comes, and a word at the end.
func TestRequest(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 3, paths(map[string]handler{
		"cbor":   with("\xa1\x64temp\x18\x16", coap.Uint(coap.ContentFormat, 60)),
		"json":   with(`{"temp":22}`, coap.Uint(coap.ContentFormat, 50)),
		"binary": with("\x00\x01\x02", coap.Uint(coap.ContentFormat, 42)),
		"error":  code(4, 4, "not here"),
		"slow":   oneAtOnce,
	}))
	p := startProxy(t, group, settings{group: "methods: [GET, PUT, FETCH]\nleisure: 1s\nnstart: 16"})
	via := []string{program, "request", "--via", "coap://" + p.addr().String()}
	ask := func(code int, args ...string) result {
		t.Helper()
		out := run(t, here, append(via[:len(via):len(via)], args...)...)
		require.Equal(t, code, out.code, "%s%s", out.stdout, out.stderr)
		return out
	}

	t.Run("responses", func(t *testing.T) {
		t.Parallel()
		out := ask(0, "--multicast-timeout", "3", "GET", groupURI(group, "/temp"))
		for _, s := range servers {
			require.Regexp(t, `(?m)^\+0\.\d+s  coap://`+s.addr().String()+`  2\.05 Content.*\n  `+s.name+`/temp$`, out.stdout)
		}
		require.Contains(t, out.stdout, "3 responses from 3 servers")
		require.Empty(t, out.stderr)
	})
	t.Run("payloads", func(t *testing.T) {
		t.Parallel()
		for path, want := range map[string]string{"/cbor": "temp", "/json": `"temp": 22`, "/binary": "00 01 02"} {
			require.Contains(t, ask(0, "--multicast-timeout", "60", "--stop-after", "3", "GET", groupURI(group, path)).stdout, want)
		}
	})
	t.Run("errors", func(t *testing.T) {
		t.Parallel()
		require.Contains(t, ask(exitFailed, "--multicast-timeout", "60", "--stop-after", "3", "GET", groupURI(group, "/error")).stdout, "4.04 Not Found")
		out := ask(exitFailed, "GET", groupURI(group, "/temp")) // GP-26
		require.Contains(t, out.stdout, "4.00 Bad Request")
		require.Contains(t, out.stderr, "--multicast-timeout")
		require.Contains(t, ask(exitFailed, "--multicast-timeout", "1", "GET", "coap://224.0.1.188/x").stdout, "4.01 Unauthorized")
		ask(exitFailed, "--multicast-timeout", "1", "DELETE", groupURI(group, "/temp"))
	})
	t.Run("json", func(t *testing.T) {
		t.Parallel()
		out := ask(0, "--json", "--multicast-timeout", "3", "GET", groupURI(group, "/temp"))
		lines := strings.Split(strings.TrimSpace(out.stdout), "\n")
		require.Len(t, lines, len(servers)+1)
		for i, line := range lines {
			var e struct {
				Event, Server, Code string
				Responses           int
				Payload             struct{ Text string }
			}
			require.NoError(t, json.Unmarshal([]byte(line), &e), line)
			if i == len(servers) {
				require.Equal(t, "summary", e.Event)
				require.Equal(t, len(servers), e.Responses)
				break
			}
			require.Equal(t, "2.05", e.Code)
			require.True(t, strings.HasSuffix(e.Payload.Text, "/temp"))
			_, err := netip.ParseAddrPort(strings.TrimPrefix(e.Server, "coap://"))
			require.NoError(t, err)
		}
	})
	t.Run("bodies", func(t *testing.T) {
		t.Parallel()
		file := filepath.Join(t.TempDir(), "body")
		require.NoError(t, os.WriteFile(file, []byte("from a file"), 0o600))
		ask(0, "--multicast-timeout", "60", "--stop-after", "3", "--payload", "from the line", "--content-format", "text/plain", "PUT", groupURI(group, "/a"))
		ask(0, "--multicast-timeout", "60", "--stop-after", "3", "--payload-file", file, "--content-format", "42", "FETCH", groupURI(group, "/b"))
		a, b := servers[0].requestsTo("/a")[0], servers[0].requestsTo("/b")[0]
		require.Equal(t, "from the line", string(a.Payload))
		require.Equal(t, [][]byte{{}}, a.All(coap.ContentFormat))
		require.Equal(t, coap.FETCH, b.Code)
		require.Equal(t, "from a file", string(b.Payload))
		require.Equal(t, [][]byte{{42}}, b.All(coap.ContentFormat))

		cmd := exec.Command(via[0], append(via[1:len(via):len(via)], "--multicast-timeout", "60", "--stop-after", "3", "--payload-file", "-", "PUT", groupURI(group, "/c"))...)
		cmd.Stdin = strings.NewReader("from a pipe")
		require.NoError(t, cmd.Run())
		require.Equal(t, "from a pipe", string(servers[0].requestsTo("/c")[0].Payload))
	})
	t.Run("no responses", func(t *testing.T) {
		t.Parallel()
		began := time.Now()
		ask(0, "--multicast-timeout", "0", "GET", groupURI(group, "/none"))
		require.Less(t, time.Since(began), patience)
		eventually(t, func() bool { return len(servers[0].requestsTo("/none")) == 1 }, "the request")
	})
	t.Run("forms", func(t *testing.T) {
		t.Parallel()
		server := "coap://" + servers[1].addr().String()
		for i, form := range [][]string{nil, {"--proxy-cri"}, {"--proxy-scheme"}} {
			ask(0, append(form, "--multicast-timeout", "60", "--stop-after", "3", "GET", groupURI(group, fmt.Sprintf("/form/%d?q=1", i)))...)
			require.Equal(t, [][]byte{[]byte("q=1")}, servers[1].requestsTo(fmt.Sprintf("/form/%d", i))[0].All(coap.URIQuery))
			require.Contains(t, ask(0, append(form, "--non", "GET", server+"/one")...).stdout, "member2/one") // GP-117
		}
	})
	// --stop-after and Ctrl-C tell the proxy that nobody waits any more (GP-40).
	t.Run("early stop", func(t *testing.T) {
		t.Parallel()
		p := startProxy(t, group, settings{})
		via := []string{program, "request", "--via", "coap://" + p.addr().String(), "--multicast-timeout", "60"}
		out := run(t, here, append(via, "--stop-after", "1", "GET", groupURI(group, "/slow/1"))...)
		require.Zero(t, out.code, out.stderr)
		require.Contains(t, out.stdout, "1 response from 1 server")
		eventually(t, func() bool { return len(p.entries("early stop")) == 1 }, "the Early Stop Request")

		interrupted := start(t, here, "request", append(via, "GET", groupURI(group, "/slow/2"))...)
		interrupted.waitFor("member2/slow/2")
		interrupted.waitFor("member3/slow/2")
		interrupted.signal(syscall.SIGINT)
		require.Zero(t, interrupted.wait())
		require.Contains(t, interrupted.text(), "3 responses from 3 servers")
		eventually(t, func() bool { return len(p.entries("early stop")) == 2 }, "the Early Stop Request")
	})
}

// What the subcommand request sends, byte by byte.
func TestRequestBytes(t *testing.T) {
	t.Parallel()
	server := single(t, with("ok", coap.Opt(coap.ETag, "\xaa")))
	uri := "coap://" + server.addr().String()
	for i, tt := range []struct {
		args    []string
		method  coap.Code
		kind    coap.Type
		options []coap.Option
		payload string
	}{
		{[]string{"GET", uri + "/1"}, coap.GET, coap.CON, nil, ""},
		{[]string{"--non", "--accept", "application/cbor", "GET", uri + "/1"}, coap.GET, coap.NON, []coap.Option{coap.Uint(coap.Accept, 60)}, ""},
		{[]string{"--option", "2049=0xcafe", "--option", "2304=text", "--etag", "aabb", "GET", uri + "/1"}, coap.GET, coap.CON,
			[]coap.Option{coap.Opt(2049, "\xca\xfe"), coap.Opt(2304, "text"), coap.Opt(coap.ETag, "\xaa\xbb")}, ""},
		{[]string{"--group-etag", "deadbeef", "--no-response", "26", "FETCH", uri + "/1"}, coap.FETCH, coap.CON,
			[]coap.Option{coap.Opt(coap.GroupETag, "\xde\xad\xbe\xef"), coap.Uint(coap.NoResponse, 26)}, ""},
		{[]string{"--payload", "x", "iPATCH", uri + "/1"}, 7, coap.CON, nil, "x"},
		{[]string{"30", uri + "/1"}, 30, coap.CON, nil, ""},
	} {
		args := append([]string{program, "request", "--quiet", "--timeout", "5s"}, tt.args...)
		out := run(t, here, args...)
		require.Zero(t, out.code, "%v: %s%s", tt.args, out.stdout, out.stderr)
		require.Contains(t, out.stdout, "2.05 Content")
		r := server.requests()[i]
		require.Equal(t, tt.method, r.Code)
		require.Equal(t, tt.kind, r.Type)
		require.Equal(t, tt.payload, string(r.Payload))
		var got []coap.Option
		for _, o := range r.Options {
			if o.Number != coap.URIPath {
				got = append(got, o)
			}
		}
		want, err := coap.Parse((&coap.Message{Code: 1, Options: tt.options}).Bytes())
		require.NoError(t, err)
		require.Equal(t, want.Options, got, "%v", tt.args)
		require.NotEmpty(t, r.Token)
	}
}

// A proxy that does what proxies may do, and a request that has to bear it.
func TestRequestWithStrangeProxy(t *testing.T) {
	t.Parallel()
	reply := func(hexValue string) coap.Option {
		b, err := hex.DecodeString(hexValue)
		require.NoError(t, err)
		return coap.Opt(coap.ReplyFrom, b)
	}
	fake := single(t, func(s *server, r *request) {
		if r.Code == coap.GET && r.Has(coap.ProxyURI) {
			s.sendBytes(r, (&coap.Message{Type: coap.ACK, ID: r.ID}).Bytes())
			ok := coap.CodeOf(2, 5)
			s.send(r, coap.Message{Type: coap.NON, ID: 1, Code: ok, Options: []coap.Option{reply("82208144c0000207")}, Payload: []byte("one")})
			s.send(r, coap.Message{Type: coap.NON, ID: 1, Code: ok, Options: []coap.Option{reply("82208144c0000207")}, Payload: []byte("one")})
			s.send(r, coap.Message{Type: coap.CON, ID: 2, Code: ok, Options: []coap.Option{reply("82208144c0000208")}, Payload: []byte("two")})
			s.send(r, coap.Message{Type: coap.NON, ID: 3, Code: ok, Options: []coap.Option{reply("ffff")}, Payload: []byte("broken Reply-From")}) // GP-10
			s.send(r, coap.Message{Type: coap.NON, ID: 4, Code: ok, Options: []coap.Option{coap.Opt(coap.ForwardingOld, "\x82\x01\xd9\x01\x04\x44\xc0\x00\x02\x09")}, Payload: []byte("legacy")})
			s.sendBytes(r, []byte("no CoAP"))
			return
		}
		s.answer(r, coap.Message{})
	})
	out := run(t, here, program, "request", "--via", "coap://"+fake.addr().String(), "--multicast-timeout", "3", "GET", "coap://224.0.1.187/x")
	require.Zero(t, out.code, out.stderr)
	require.Equal(t, 1, strings.Count(out.stdout, "\n  one\n"), out.stdout) // a repeated message is one
	for _, want := range []string{"coap://192.0.2.7  2.05", "coap://192.0.2.8  2.05", "coap://192.0.2.9  2.05", "broken Reply-From"} {
		require.Contains(t, out.stdout, want)
	}
	acks := fake.empties(coap.ACK)
	require.Len(t, acks, 1)
	require.Equal(t, uint16(2), acks[0].ID)
}

// A server that does not answer, one that is not there, and one that is slow.
func TestRequestFailures(t *testing.T) {
	t.Parallel()
	server := single(t, paths(map[string]handler{
		"silent": silent,
		"slow": func(s *server, r *request) {
			s.sendBytes(r, (&coap.Message{Type: coap.ACK, ID: r.ID}).Bytes())
			time.Sleep(300 * time.Millisecond)
			s.send(r, coap.Message{Type: coap.CON, ID: 9, Code: coap.CodeOf(2, 5), Payload: []byte("separate")})
		},
		"large": blockwise(pattern(3000), 5),
		"observe": func(s *server, r *request) {
			if o, ok := r.Option(coap.Observe); !ok || o.Uint() == 1 {
				content(s, r)
				return
			}
			for i := range uint32(3) {
				m := coap.Message{Code: coap.CodeOf(2, 5), Options: []coap.Option{coap.Uint(coap.Observe, i+1)}, Payload: fmt.Appendf(nil, "value %d", i)}
				if i == 0 {
					s.answer(r, m)
					continue
				}
				time.Sleep(50 * time.Millisecond)
				m.Type, m.ID = coap.NON, s.nextID()
				s.send(r, m)
			}
		},
	}))
	uri := "coap://" + server.addr().String()
	began := time.Now()
	out := run(t, here, program, "request", "--timeout", "1s", "GET", uri+"/silent")
	require.Equal(t, exitFailed, out.code)
	require.Less(t, time.Since(began), patience)
	out = run(t, here, program, "request", "--timeout", "5s", "GET", "coap://127.0.2.2:9/x")
	require.Equal(t, exitFailed, out.code)
	out = run(t, here, program, "request", "--timeout", "10s", "GET", uri+"/slow")
	require.Zero(t, out.code)
	require.Contains(t, out.stdout, "separate")
	eventually(t, func() bool { return len(server.empties(coap.ACK)) == 1 }, "the ACK of the separate response")
	out = run(t, here, program, "request", "--timeout", "10s", "GET", uri+"/large")
	require.Zero(t, out.code)
	require.Contains(t, out.stdout, strings.TrimSpace(string(pattern(3000))))
	out = run(t, here, program, "request", "--timeout", "10s", "--observe", "--stop-after", "3", "GET", uri+"/observe")
	require.Zero(t, out.code, out.stderr)
	require.Regexp(t, `(?s)value 0.*value 1.*value 2`, out.stdout)
}
