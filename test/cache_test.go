package test

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// stored is a handler whose responses are fresh for a minute and have an ETag,
// which it validates.
func stored(s *server, r *request) {
	if r.Code != coap.GET {
		s.answer(r, coap.Message{Code: coap.CodeOf(2, 4)})
		return
	}
	etag := coap.Option{Number: coap.ETag, Value: []byte("e1")}
	age := coap.Uint(coap.MaxAge, 60)
	for _, known := range r.All(coap.ETag) {
		if string(known) == "e1" {
			s.answer(r, coap.Message{Code: coap.CodeOf(2, 3), Options: []coap.Option{etag, age}})
			return
		}
	}
	s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Options: []coap.Option{etag, age}, Payload: []byte(s.name)})
}

// A fresh response is given again without asking the server (FP-41), with the
// Max-Age that is left (FP-42), as 2.03 to a client that has it (FP-46), and not
// after the resource was changed (FP-47).
func TestCache(t *testing.T) {
	t.Parallel()
	origin := single(t, stored)
	s := forwarding
	s.cache = "enabled: true"
	p := startProxy(t, group0, s)
	c := newClient(t, here, clientAddr, p.addr())
	uri := "coap://" + origin.addr().String() + "/x"
	for range 3 {
		in := c.ask(get(coap.CON, uri))
		require.Equal(t, coap.CodeOf(2, 5), in.Code)
		require.Equal(t, "server", string(in.Payload))
		require.Len(t, in.All(coap.MaxAge), 1)
	}
	require.Len(t, origin.requests(), 1)
	in := c.ask(get(coap.CON, uri, coap.Option{Number: coap.ETag, Value: []byte("e1")}))
	require.Equal(t, coap.CodeOf(2, 3), in.Code)
	require.Empty(t, in.Payload)
	require.Len(t, origin.requests(), 1)

	put := get(coap.CON, uri)
	put.Code = coap.PUT
	require.Equal(t, coap.CodeOf(2, 4), c.ask(put).Code)
	in = c.ask(get(coap.CON, uri)) // validated by its ETag (FP-45)
	require.Equal(t, coap.CodeOf(2, 5), in.Code)
	require.Equal(t, "server", string(in.Payload))
	require.Len(t, origin.requests(), 3)
}

// With all members known, the second request to a group is answered by the
// cache alone, once per server (GP-75), and later by one 2.03 for the Group-ETag
// of the set (GP-84, GP-85).
func TestGroupCache(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 3, stored)
	var list []string
	for _, s := range servers {
		list = append(list, fmt.Sprintf("%q", s.addr().String()))
	}
	p := startProxy(t, group, settings{cache: "enabled: true",
		group: "nstart: 16\nleisure: 1s\nprobing_rate: 0\nmembers: [" + strings.Join(list, ", ") + "]"})
	c := newClient(t, here, clientAddr, p.addr())
	uri := fmt.Sprintf("coap://%v/x", group)

	var tag []byte
	for round := range 2 {
		seen := make(map[string]bool)
		for _, in := range c.gatherN(get(coap.NON, uri, timeout(30)), len(servers)) {
			require.Equal(t, coap.CodeOf(2, 5), in.Code)
			seen[serverOf(t, in).String()] = true
			if values := in.All(coap.GroupETag); len(values) == 1 {
				tag = values[0]
			}
		}
		require.Len(t, seen, len(servers), "round %d", round)
	}
	for _, s := range servers {
		require.Len(t, s.requests(), 1)
	}
	require.NotEmpty(t, tag)
	in := c.ask(get(coap.CON, uri, timeout(30), coap.Option{Number: coap.GroupETag, Value: tag}))
	require.Equal(t, coap.CodeOf(2, 3), in.Code)
	require.Empty(t, in.All(coap.ReplyFrom))
	for _, s := range servers {
		require.Len(t, s.requests(), 1)
	}
}

// What is fresh at SIGTERM is there after the next start; a damaged file is
// moved aside.
func TestCachePersists(t *testing.T) {
	t.Parallel()
	origin := single(t, stored)
	s := forwarding
	file := t.TempDir() + "/cache"
	s.cache = "enabled: true\npersist: " + file
	uri := "coap://" + origin.addr().String() + "/x"
	for range 2 {
		p := startProxy(t, group0, s)
		require.Equal(t, coap.CodeOf(2, 5), newClient(t, here, clientAddr, p.addr()).ask(get(coap.CON, uri)).Code)
		p.stop()
	}
	require.Len(t, origin.requests(), 1)
	require.NoError(t, os.WriteFile(file, []byte("damaged"), 0o600))
	p := startProxy(t, group0, s)
	p.logged("damaged file of stored responses moved aside", 1)
}

// A file that cannot be written is told at the start, and a disk that is full at
// the end: neither keeps the proxy from starting or ending, and what was saved
// before stays.
func TestCacheCannotPersist(t *testing.T) {
	t.Parallel()
	s := forwarding
	s.cache = "enabled: true\npersist: " + t.TempDir() + "/missing/cache"
	p := startProxy(t, group0, s)
	p.logged("stored responses will not be kept: their file cannot be written", 1)

	if os.Getuid() != 0 {
		return // only root makes a small disk
	}
	folder := t.TempDir()
	s.cache = "enabled: true\npersist: " + folder + "/cache"
	file := t.TempDir() + "/config.yaml"
	require.NoError(t, os.WriteFile(file, []byte(s.yaml(group0)), 0o600))
	small := &proxy{process: start(t, here, "coapproxy", "unshare", "-m", "sh", "-c",
		"mount -t tmpfs -o size=16k none "+folder+" && exec "+program+" serve --config "+file)}
	small.waitFor(`"msg":"ready"`)
	addr := netip.MustParseAddrPort(strings.TrimPrefix(small.entries("listening")[0].text("uri"), "coap://"))
	origin := single(t, func(s *server, r *request) {
		s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Options: []coap.Option{coap.Uint(coap.MaxAge, 60)}, Payload: make([]byte, 1000)})
	})
	c := newClient(t, here, clientAddr, addr)
	for i := range 40 {
		require.Equal(t, coap.CodeOf(2, 5), c.ask(get(coap.CON, fmt.Sprintf("coap://%v/%d", origin.addr(), i))).Code)
	}
	small.signal(syscall.SIGTERM)
	require.Zero(t, small.wait())
	small.logged("stored responses not kept", 1)
	require.Contains(t, small.text(), "no space left on device")
}

// Of many clients that ask for the same at once, one is heard by the server
// (FP-49), and of those that come later none while the response is fresh.
func TestCacheSparesServers(t *testing.T) {
	t.Parallel()
	let := make(chan struct{})
	origin := single(t, func(s *server, r *request) {
		<-let
		stored(s, r)
	})
	s := forwarding
	s.cache = "enabled: true"
	p := startProxy(t, group0, s)
	uri := "coap://" + origin.addr().String() + "/x"
	var clients []*client
	for range 20 {
		c := newClient(t, here, clientAddr, p.addr())
		c.send(c.fresh(get(coap.NON, uri)))
		clients = append(clients, c)
	}
	for _, c := range clients {
		c.send(&coap.Message{Type: coap.CON, ID: 0x50}) // answered when what came before has been read
		require.Equal(t, coap.RST, c.expect().Type)
	}
	close(let)
	for _, c := range clients {
		in := c.expect()
		require.Equal(t, coap.CodeOf(2, 5), in.Code)
		require.Equal(t, "server", string(in.Payload))
	}
	for _, c := range clients {
		require.Equal(t, coap.CodeOf(2, 5), c.ask(get(coap.NON, uri)).Code)
	}
	require.Len(t, origin.requests(), 1)
}

// Whatever a server answers, its client gets it, the proxy goes on and stores
// nothing that it must not.
func TestCacheHostileServers(t *testing.T) {
	t.Parallel()
	type answer struct {
		name    string
		code    coap.Code
		options []coap.Option
		payload string
		stored  bool
	}
	etag := func(v string) coap.Option { return coap.Option{Number: coap.ETag, Value: []byte(v)} }
	answers := []answer{
		{"absurd Max-Age", coap.CodeOf(2, 5), []coap.Option{coap.Uint(coap.MaxAge, 1<<32-1)}, "a", true},
		{"ETag of nine bytes", coap.CodeOf(2, 5), []coap.Option{etag("123456789"), coap.Uint(coap.MaxAge, 60)}, "b", true},
		{"two ETags", coap.CodeOf(2, 5), []coap.Option{etag("1"), etag("2"), coap.Uint(coap.MaxAge, 60)}, "c", true},
		{"Max-Age 0", coap.CodeOf(2, 5), []coap.Option{coap.Uint(coap.MaxAge, 0)}, "d", false},
		{"body over the limit", coap.CodeOf(2, 5), nil, strings.Repeat("f", 100), false},
		{"4.08, of blocks", coap.CodeOf(4, 8), nil, "g", true},
		{"unknown success", coap.CodeOf(2, 30), nil, "h", false},
		{"created by GET", coap.CodeOf(2, 1), nil, "i", false},
		{"error", coap.CodeOf(4, 4), nil, "j", true},
	}
	origin := single(t, func(s *server, r *request) {
		var n int
		if _, err := fmt.Sscanf(r.Path(), "/%d", &n); err != nil { // 2.03 out of thin air, whatever is asked
			s.answer(r, coap.Message{Code: coap.CodeOf(2, 3), Options: []coap.Option{etag("x")}})
			return
		}
		a := answers[n]
		s.answer(r, coap.Message{Code: a.code, Options: a.options, Payload: []byte(a.payload)})
	})
	socket, control := controlSocket(t)
	s := forwarding
	s.cache, s.control = "enabled: true\nmax_body: 64\nmax_entries: 8\nmax_age: 1h", control
	p := startProxy(t, group0, s)
	c := newClient(t, here, clientAddr, p.addr())
	want := 0
	for i, a := range answers {
		uri := fmt.Sprintf("coap://%v/%d", origin.addr(), i)
		for range 2 {
			in := c.ask(get(coap.CON, uri))
			require.Equal(t, a.code, in.Code, a.name)
			require.Equal(t, a.payload, string(in.Payload), a.name)
		}
		asked := len(origin.requestsTo(fmt.Sprintf("/%d", i)))
		if a.stored {
			want++
			require.Equal(t, 1, asked, a.name)
		} else {
			require.Equal(t, 2, asked, a.name)
		}
	}
	require.Equal(t, want, shown[shownEntries](t, "cache", "show", "--socket", socket).Total)
	require.Equal(t, coap.CodeOf(5, 2), c.ask(get(coap.CON, "coap://"+origin.addr().String()+"/thin")).Code)
	for i := range 200 {
		require.Equal(t, coap.CodeOf(2, 5), c.ask(get(coap.CON, fmt.Sprintf("coap://%v/0?%d", origin.addr(), i))).Code)
	}
	require.Equal(t, 8, shown[shownEntries](t, "cache", "show", "--socket", socket).Total)
	counters := shown[struct{ Counters map[string]int }](t, "cache", "stats", "--socket", socket).Counters
	require.Equal(t, 201, counters["max_age_capped_total"])
	require.Equal(t, 2, counters["invalid_etag_total"])
	require.Equal(t, 2, counters["too_large_total"])
	require.Equal(t, 1, counters["valid_unmatched_total"])
	require.Positive(t, counters["evicted_total"])
}
