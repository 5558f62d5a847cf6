package cache

import (
	"net/netip"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

func TestShowAndFlush(t *testing.T) {
	run(t, nil, func(x *fixture) {
		r := get("sensors", option(wire.URIPath, "1"), option(wire.URIQuery, "u=C"), uintOption(wire.Accept, 50))
		r.Target.Host = "a.example"
		linkLocal := netip.MustParseAddrPort("[fe80::1%eth0]:5683")
		x.miss(r, content("body", etag("v1"), maxAge(60)))
		x.miss(to(linkLocal, get("b")), from(linkLocal, content("body", maxAge(5))))
		private := get("c")
		private.Target.Scheme, private.Client = "coaps", &exchange.Identity{Name: "alice", Authenticated: true}
		x.miss(private, &exchange.Response{Code: codes.NotFound})
		wait(10 * time.Second)

		all, total := x.Show(Filter{}, 10) // the most recently used first
		require.Len(t, all, 3)
		require.Equal(t, 3, total)
		cost := all[2].Bytes
		require.Greater(t, cost, entryOverhead)
		require.Equal(t, Info{Server: serverA, Scheme: "coap", Host: "a.example", Path: []string{"sensors", "1"}, Query: []string{"u=C"},
			Method: codes.GET, Code: codes.Content, Options: message.Options{etag("v1")}, ETag: []byte("v1"), Payload: 4, Bytes: cost,
			Age: 10 * time.Second, Remaining: 50 * time.Second}, all[2])
		require.Equal(t, linkLocal, all[1].Server)
		require.Equal(t, "coap", all[1].Scheme)
		require.Zero(t, all[1].Remaining)
		require.Equal(t, "coaps", all[0].Scheme)
		require.Empty(t, all[0].Host)
		require.True(t, all[0].Private)
		require.Equal(t, "alice", all[0].Client)
		some, total := x.Show(Filter{}, 2)
		require.Len(t, some, 2)
		require.Equal(t, 3, total)

		servers := func(s ...netip.AddrPort) Filter { return Filter{Servers: s} }
		for name, tt := range map[string]struct {
			f    Filter
			want int
		}{
			"server": {servers(serverA), 2}, "any port": {servers(netip.AddrPortFrom(serverA.Addr(), 0)), 2},
			"other port": {servers(netip.AddrPortFrom(serverA.Addr(), 1)), 0}, "none of no server": {Filter{Servers: []netip.AddrPort{}}, 0},
			"several servers": {servers(serverA, linkLocal), 3},
			"path":            {Filter{Path: []string{"sensors"}}, 1}, "longer path": {Filter{Path: []string{"sensors", "1", "x"}}, 0},
			"whole path": {Filter{Path: []string{"sensors"}, WholePath: true}, 0}, "that path": {Filter{Path: []string{"sensors", "1"}, WholePath: true}, 1},
			"query": {Filter{Query: []string{"u=C"}}, 1}, "no query": {Filter{Query: []string{}}, 2},
			"scheme": {Filter{Scheme: "coaps"}, 1}, "host": {Filter{Host: "a.example"}, 1},
			"client": {Filter{Client: "alice"}, 1}, "stale": {Filter{Stale: true}, 1},
		} {
			_, total := x.Show(tt.f, 10)
			require.Equal(t, tt.want, total, name)
		}
		require.Equal(t, 1, x.Flush(Filter{Stale: true}))
		require.Equal(t, 2, x.Flush(Filter{}))
		require.Zero(t, x.stats.Entries.Load())
		require.Zero(t, x.stats.Bytes.Load())
		require.Empty(t, x.store.places)
	})
}

func TestStats(t *testing.T) {
	run(t, nil, func(x *fixture) {
		x.miss(get("a"), content("body", maxAge(7200)))
		for _, d := range []time.Duration{0, 5 * time.Second, 30 * time.Second, 5 * time.Minute, 30 * time.Minute, time.Hour} {
			wait(d)
			x.hit(get("a"))
		}
		for i := range x.config.Ages.Served {
			require.EqualValues(t, 1, x.config.Ages.Served[i].Load(), AgeName(i))
		}
		require.Equal(t, "more", AgeName(99))
		require.Equal(t, "unknown", Bypass(99).String())
	})
}

// shown are the selected entries.
func shown(c *Cache, f Filter) []Info {
	infos, _ := c.Show(f, 10)
	return infos
}
