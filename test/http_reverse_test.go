package test

import (
	"bufio"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"

	"github.com/quic-go/quic-go/http3"
	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
	"coapproxy/wire"
)

// webClients are clients of every version of HTTP, by the number of the listener in
// addrs.
func webClients(t *testing.T, a *authority) map[string]*http.Client {
	t.Helper()
	settings := func() *tls.Config { return &tls.Config{RootCAs: roots(t, a), MinVersion: tls.VersionTLS13} }
	plain, h2, h3 := &http.Transport{}, &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: settings()}, &http3.Transport{TLSClientConfig: settings()}
	t.Cleanup(func() {
		plain.CloseIdleConnections()
		h2.CloseIdleConnections()
		_ = h3.Close()
	})
	return map[string]*http.Client{"http HTTP/1.1": {Transport: plain, Timeout: patience}, "https HTTP/2.0": {Transport: h2, Timeout: patience}, "https HTTP/3.0": {Transport: h3, Timeout: patience}}
}

// webHead is a response without its body.
type webHead struct {
	StatusCode int
	Proto      string
	Header     http.Header
}

// fetch sends a request with fields "Name: value" and reads the response.
func fetch(t *testing.T, c *http.Client, method, url string, fields ...string) (webHead, string) {
	t.Helper()
	r, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	require.NoError(t, err)
	for _, field := range fields {
		name, value, _ := strings.Cut(field, ": ")
		if name == "Host" {
			r.Host = value
		}
		r.Header.Set(name, value)
	}
	w, err := c.Do(r)
	require.NoError(t, err)
	body, err := io.ReadAll(w.Body)
	require.NoError(t, err)
	require.NoError(t, w.Body.Close())
	return webHead{w.StatusCode, w.Proto, w.Header}, string(body)
}

// webPart is a part of a batch.
type webPart struct {
	webHead
	body string
}

// batchOf takes a batch apart.
func batchOf(t *testing.T, w webHead, body string) (all []webPart) {
	t.Helper()
	require.Equal(t, 200, w.StatusCode, body)
	_, parameters, err := mime.ParseMediaType(w.Header.Get("Content-Type"))
	require.NoError(t, err)
	for parts := multipart.NewReader(strings.NewReader(body), parameters["boundary"]); ; {
		part, err := parts.NextPart()
		if errors.Is(err, io.EOF) {
			return all
		}
		require.NoError(t, err)
		p, err := http.ReadResponse(bufio.NewReader(part), nil)
		require.NoError(t, err)
		text, err := io.ReadAll(p.Body)
		require.NoError(t, err)
		require.NoError(t, p.Body.Close())
		all = append(all, webPart{webHead{p.StatusCode, p.Proto, p.Header}, string(text)})
	}
}

// replyFromField is the value of the field Reply-From.
func replyFromField(t *testing.T, h http.Header) (value []byte) {
	t.Helper()
	for _, item := range strings.Split(h.Get("Reply-From"), ", ") {
		b, err := base64.StdEncoding.DecodeString(strings.Trim(item, ":"))
		require.NoError(t, err, item)
		value = append(value, b...)
	}
	return value
}

var memberAddress = regexp.MustCompile(`127\.0\.1\.\d+`)

// An HTTP client of a route that stands in for servers (A1, and A2 where there is no
// address for each) learns of every server an address at the proxy, wherever a response
// names its server, and nothing of the server's own (GP-112). What it asks there, the
// server gets, and nobody else (GP-53, GP-56, HC-85). Over every version of HTTP.
func TestHTTPAnnouncedServers(t *testing.T) {
	t.Parallel()
	for _, x := range []struct{ kind, version string }{
		{"by-host", "http HTTP/1.1"}, {"by-host", "https HTTP/2.0"}, {"by-path", "https HTTP/3.0"}, {"own-address", "http HTTP/1.1"},
	} {
		t.Run(x.kind+" "+x.version, func(t *testing.T) {
			t.Parallel()
			servers, group := members(t, 3, func(s *server, r *request) {
				switch {
				case r.Code == coap.POST:
					s.answer(r, coap.Message{Code: coap.CodeOf(2, 1), Options: []coap.Option{coap.Opt(8, "new"), coap.Opt(8, "a/b")}})
				case strings.HasSuffix(r.Path(), "/senml"):
					s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Options: []coap.Option{coap.Uint(coap.ContentFormat, 110)}, Payload: []byte(`[{"n":"temp","v":1}]`)})
				default:
					s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Options: []coap.Option{coap.Uint(coap.ContentFormat, 0)}, Payload: []byte(s.name + r.Path())})
				}
			})
			a := newAuthority(t)
			port := newSocketPorts(t)
			s := web(a, fmt.Sprintf("routes:\n- {name: lamps, path: /lamps, to: \"coap://%v/light\", servers: %s, multicast_timeout: 2s}", group, x.kind), "")
			s.proxy = fmt.Sprintf("server_addresses: [\"127.0.0.1:%d-%d\"]", port, port+1)
			s.group = "nstart: 16\nleisure: 1s\nprobing_rate: 0\nmethods: [GET, POST]"
			p := startProxy(t, group, s)
			c := webClients(t, a)[x.version]
			scheme, protocol, _ := strings.Cut(x.version, " ")
			base := scheme + "://" + p.addrs[map[string]int{"http": 1, "https": 2}[scheme]].String()
			for _, prefer := range []string{"", "stream-parts"} {
				w, body := fetch(t, c, "GET", base+"/lamps/temp?q="+prefer, "Prefer: "+prefer, "Multicast-Timeout: 2")
				require.Equal(t, protocol, w.Proto)
				parts := batchOf(t, w, body)
				require.Len(t, parts, len(servers))
				require.NotRegexp(t, memberAddress, body)
				seen := make(map[string]bool)
				for _, part := range parts {
					name := strings.TrimSuffix(part.body, "/light/temp")
					at := part.Header.Get("Content-Location")
					require.Regexp(t, "^"+base+`/servers/[0-9a-f]{10}/light/temp\?q=`+prefer+"$", at)
					v, err := wire.ParseReplyFrom(replyFromField(t, part.Header))
					require.NoError(t, err)
					require.Equal(t, base, v.ServerURI())
					require.Equal(t, at, v.ServerURI()+"/"+strings.Join(v.Ref.Path, "/")+"/light/temp?q="+prefer)
					for range 2 {
						w, body = fetch(t, c, "GET", strings.Replace(at, "temp", "own/"+protocol+prefer, 1))
						require.Equal(t, "200 "+name+"/light/own/"+protocol+prefer, fmt.Sprint(w.StatusCode, " ", body))
						require.Empty(t, w.Header["Reply-From"])
						require.Empty(t, w.Header["Content-Location"])
					}
					seen[name] = true
				}
				require.Len(t, seen, len(servers))
				for _, s := range servers {
					require.Len(t, s.requestsTo("/light/own/"+protocol+prefer), 2, "those for it alone")
				}
			}

			w, body := fetch(t, c, "GET", base+"/lamps/temp", "Accept: application/json")
			require.NotRegexp(t, memberAddress, body)
			var objects []struct{ Server, Body string }
			require.NoError(t, json.Unmarshal([]byte(body), &objects), "%v %s", w, body)
			_, lines := fetch(t, c, "GET", base+"/lamps/temp", "Accept: application/x-ndjson")
			require.NotRegexp(t, memberAddress, lines)
			require.Len(t, objects, len(servers))
			for _, o := range objects {
				require.Contains(t, lines, `"server":"`+o.Server+`"`)
				_, body = fetch(t, c, "GET", o.Server+"/x")
				require.Equal(t, strings.Replace(o.Body, "/light/temp", "/x", 1), body)
			}
			_, body = fetch(t, c, "GET", base+"/lamps/senml", "Accept: application/senml+json")
			for _, o := range objects {
				require.Contains(t, body, `"n":"`+o.Server+`/temp"`)
			}

			// What was created is where the one server has it.
			w, body = fetch(t, c, "POST", base+"/lamps", "Multicast-Timeout: 2")
			for _, part := range batchOf(t, w, body) {
				require.Equal(t, 201, part.StatusCode)
				location := part.Header.Get("Location")
				require.Regexp(t, `^/servers/[0-9a-f]{10}/new/a%2Fb$`, location)
				_, body = fetch(t, c, "GET", base+location)
				require.Regexp(t, `^member\d/new/a/b$`, body)
			}
			w, _ = fetch(t, c, "POST", objects[0].Server+"/sub")
			require.Equal(t, "201 "+strings.TrimPrefix(objects[0].Server, base)+"/new/a%2Fb", fmt.Sprint(w.StatusCode, " ", w.Header.Get("Location")))

			// Events, of the group and of one server.
			events, leave := openEvents(t, "http://"+p.addrs[1].String()+"/lamps/temp")
			for _, e := range readEvents(t, events, len(servers)) {
				require.Regexp(t, `^http://`+p.addrs[1].String()+`/servers/[0-9a-f]{10}$`, e.Server)
				v, err := wire.ParseReplyFrom(replyFromField(t, http.Header{"Reply-From": {e.ReplyFrom}}))
				require.NoError(t, err)
				require.Equal(t, e.Server, v.ServerURI()+"/"+strings.Join(v.Ref.Path, "/"))
				one, leaveOne := openEvents(t, e.Server+"/one")
				require.Equal(t, sseData{Server: e.Server, Body: strings.Replace(e.Body, "/light/temp", "/one", 1), Status: 200}, readEvents(t, one, 1)[0])
				leaveOne()
			}
			leave()
		})
	}
}

// With direct the proxy stands in for the group alone: its servers are told as they are
// (GP-55), and can be asked through /hc/ (HC-1).
func TestHTTPServersDirect(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, content)
	a := newAuthority(t)
	p := startProxy(t, group, web(a, fmt.Sprintf("routes:\n- {name: lamps, path: /lamps, to: \"coap://%v\", servers: direct}", group), ""))
	c := webClients(t, a)["http HTTP/1.1"]
	base := "http://" + p.addrs[1].String()
	w, body := fetch(t, c, "GET", base+"/lamps/t", "Multicast-Timeout: 2")
	for _, part := range batchOf(t, w, body) {
		name, _, _ := strings.Cut(part.body, "/")
		at := part.Header.Get("Content-Location")
		require.Equal(t, "coap://"+servers[name[6]-'1'].addr().String()+"/t", at)
		_, body = fetch(t, c, "GET", base+"/hc/"+at)
		require.Equal(t, part.body, body)
	}
}

// The host that a client is told is the one that it has asked for: a name that its
// certificate holds, or the address outside of a NAT.
func TestHTTPAnnouncedUnderTheHostAsked(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, content)
	a := newAuthority(t)
	s := web(a, fmt.Sprintf("routes:\n- {name: lamps, path: /lamps, to: \"coap://%v\"}\nhttp: {host_names: [gw.example]}", group), "")
	p := startProxy(t, group, s)
	c := webClients(t, a)["http HTTP/1.1"]
	base := "http://" + p.addrs[1].String()
	for host, want := range map[string]string{"gw.example": "http://gw.example", "GW.example:8080": "http://gw.example:8080", "[2001:db8::1]:81": "http://[2001:db8::1]:81"} {
		w, body := fetch(t, c, "GET", base+"/lamps/t", "Multicast-Timeout: 2", "Host: "+host)
		parts := batchOf(t, w, body)
		require.Len(t, parts, len(servers))
		for _, part := range parts {
			v, err := wire.ParseReplyFrom(replyFromField(t, part.Header))
			require.NoError(t, err)
			require.Equal(t, want, v.ServerURI())
			at := part.Header.Get("Content-Location")
			require.Regexp(t, `^\Q`+want+`\E/servers/[0-9a-f]{10}/t$`, at)
			_, body = fetch(t, c, "GET", base+strings.TrimPrefix(at, want), "Host: "+host)
			require.Equal(t, part.body, body)
		}
		_, body = fetch(t, c, "GET", base+"/lamps/senml", "Multicast-Timeout: 2", "Host: "+host, "Accept: application/senml+json")
		require.NotContains(t, body, "[2001")
	}
	web := dialWeb(t, p.addrs[1])
	web.write("GET /lamps/t HTTP/1.0\r\nMulticast-Timeout: 2\r\n\r\n")
	_, body := web.response()
	require.Len(t, regexp.MustCompile(`Content-Location: `+base+`/servers/`).FindAllString(body, -1), len(servers))
}

// HTTP and CoAP clients share one table: a server has the same name for both, which
// outlives restarts and reloads (GP-102), also one that takes the route away (GP-56); who
// may not ask the group, or not follow up, does not reach it (GP-112). Names that were
// made up, or have been forgotten, lead nowhere.
func TestHTTPAnnouncedServersLastAndEnd(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, content)
	a := newAuthority(t)
	file := filepath.Join(t.TempDir(), "targets.json")
	s := web(a, "", "")
	s.listen = fmt.Sprintf("- coap://127.0.0.1:0\n- http://127.0.0.1:%d\n- http://127.0.0.2:0", newSocketPorts(t))
	s.proxy = "server_targets: " + file
	credentials := s.top
	route := fmt.Sprintf("routes:\n- {name: lamps, path: /lamps, to: \"coap://%v\", servers: by-path}", group)
	s.top = credentials + route
	p := startProxy(t, group, s)
	c := webClients(t, a)["http HTTP/1.1"]
	base := "http://" + p.addrs[1].String()
	w, body := fetch(t, c, "GET", base+"/lamps/t", "Multicast-Timeout: 2")
	at := make(map[string]string) // of each server
	for _, part := range batchOf(t, w, body) {
		name, _, _ := strings.Cut(part.body, "/")
		at[name] = strings.TrimSuffix(part.Header.Get("Content-Location"), "/t")
	}
	require.Len(t, at, len(servers))
	ask := func(url string) string {
		t.Helper()
		w, body := fetch(t, c, "GET", url)
		if w.StatusCode == 200 {
			return body
		}
		return fmt.Sprint(w.StatusCode)
	}
	reached := func() {
		t.Helper()
		for name, url := range at {
			require.Equal(t, name+"/x", ask(url+"/x"))
		}
	}
	reached()
	cc := newClient(t, here, clientAddr, p.addr())
	for _, in := range cc.gatherN(&coap.Message{Type: coap.NON, Code: coap.GET, Options: append([]coap.Option{timeout(5)}, path("lamps", "t")...)}, 2) {
		v, err := wire.ParseReplyFrom(in.All(coap.ReplyFrom)[0])
		require.NoError(t, err)
		name, _, _ := strings.Cut(string(in.Payload), "/")
		require.Equal(t, at[name], base+"/"+strings.Join(v.Ref.Path, "/"))
	}

	// Made up, mutilated, or more than a name.
	one := at["member1"]
	id := one[strings.LastIndexByte(one, '/')+1:]
	before := len(servers[0].requests()) + len(servers[1].requests())
	for url, want := range map[string]string{
		base + "/servers/0123456789/x": "404", base + "/servers/" + strings.ToUpper(id) + "z/x": "404", base + "/servers/": "404", base + "/servers": "404",
		base + "/servers/%2e%2e/x": "404", base + "/servers/" + id[:9] + "/x": "404", base + "//servers/" + id + "/x": "404", base + "/servers%2F" + id + "/x": "404",
		one + "/../x": "400", one + "/%2E%2E/x": "400", one + "/%ff": "400", one + "/%": "400",
		base + "/servers/" + id + "%2Fx": "404", one + "/" + strings.Repeat("a", 256): "400",
	} {
		require.Equal(t, want, webStatus(t, p.addrs[1], strings.TrimPrefix(url, base)), url)
	}
	require.Equal(t, before, len(servers[0].requests())+len(servers[1].requests()))
	w, body = fetch(t, c, "GET", base+"/servers/0123456789/x", "Accept: application/problem+json")
	require.Equal(t, 404, w.StatusCode)
	require.Contains(t, body, "not known here any more")
	require.Contains(t, body, "ask its group again")
	// Encoded otherwise it is the same name, and so is what is below.
	require.Equal(t, "member1/a b", ask(base+"/%73ervers/"+fmt.Sprintf("%%%02x", id[0])+id[1:]+"/a%20b"))

	eventually(t, func() bool {
		data, err := os.ReadFile(file)
		return err == nil && strings.Count(string(data), `"id"`) == len(servers)
	}, "the file")
	p.kill()
	p = serveFile(t, here, p.config)
	reached()
	p.stop()
	p = serveFile(t, here, p.config)
	reached()

	// The route goes, its announced servers stay for those who may ask the group.
	s.top = credentials
	p.reload(s.yaml(group))
	require.Equal(t, "404", ask(base+"/lamps/t"))
	reached()
	before = len(servers[0].requests()) + len(servers[1].requests())
	for _, denied := range []string{"groups: \"*\"\nfollow_up: false", "forward: [\"coap://192.0.2.1\"]"} {
		s.clients = "- name: tester\n  networks: [127.0.0.0/8]\n" + indent("  ", denied)
		p.reload(s.yaml(group))
		w, body := fetch(t, c, "GET", one+"/x")
		require.Equal(t, 403, w.StatusCode)
		require.NotRegexp(t, memberAddress, body)
		w, _ = fetch(t, c, "GET", base+"/servers/0123456789/x")
		require.Equal(t, 404, w.StatusCode)
	}
	s.clients = "- name: tester\n  networks: [192.0.2.0/24]\n  groups: \"*\""
	p.reload(s.yaml(group))
	require.Equal(t, "403", ask(one+"/x")) // nobody it knows (HC-75)
	require.Equal(t, before, len(servers[0].requests())+len(servers[1].requests()))
	s.clients = ""
	p.reload(s.yaml(group))
	reached()
}

// webStatus is the status of a GET whose request target goes out as it is.
func webStatus(t *testing.T, to netip.AddrPort, target string) string {
	t.Helper()
	c := dialWeb(t, to)
	c.write("GET %s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n", target)
	status, _ := c.response()
	return fmt.Sprint(status)
}

// The table is bounded for HTTP clients as for others: whose server has been forgotten
// gets 404 and how to go on, also where a route takes every path.
func TestHTTPAnnouncedServersBounded(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 3, content)
	origin := single(t, content)
	a := newAuthority(t)
	s := web(a, fmt.Sprintf("routes:\n- {name: lamps, path: /lamps, to: \"coap://%v\"}\n- {name: rest, listen: [\"https://127.0.0.1:0\"], to: \"coap://%v/rest\"}", group, origin.addr()),
		fmt.Sprintf("forward: [\"coap://%v\"]", origin.addr()))
	s.limits = "reverse_mappings: 2"
	p := startProxy(t, group, s)
	c := webClients(t, a)["http HTTP/1.1"]
	base := "http://" + p.addrs[1].String()
	w, body := fetch(t, c, "GET", base+"/lamps/t", "Multicast-Timeout: 2")
	parts := batchOf(t, w, body)
	require.Len(t, parts, len(servers))
	counts := make(map[int]int)
	for _, part := range parts {
		at := part.Header.Get("Content-Location")
		w, body = fetch(t, c, "GET", at)
		counts[w.StatusCode]++
		over, follow := fetch(t, webClients(t, a)["https HTTP/2.0"], "GET", "https://"+p.addrs[2].String()+strings.TrimPrefix(at, base))
		require.Equal(t, 200, over.StatusCode)
		if w.StatusCode == 200 {
			require.Equal(t, part.body, body)
			require.Equal(t, part.body, follow)
			continue
		}
		require.Contains(t, body, "ask its group again")
		require.Regexp(t, `^server/rest/servers/[0-9a-f]{10}/t$`, follow)
	}
	require.Equal(t, map[int]int{200: 2, 404: 1}, counts)
}
