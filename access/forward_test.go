package access

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
)

// FP-85: nothing is forwarded that no entry allows. FP-7: what is denied gets
// 4.01. FP-11, GC-9: the kinds of address that are out of bounds.
func TestForward(t *testing.T) {
	prefix := netip.MustParsePrefix
	any := []Target{{Any: true, AnyPort: true}}
	for name, tt := range map[string]struct {
		forward []Target
		change  func(*Config)
		host    string
		target  string
		ok      bool
	}{
		"nothing allowed":        {nil, nil, "", "203.0.113.1:5683", false},
		"everything":             {any, nil, "", "203.0.113.1:61616", true},
		"any host, one port":     {[]Target{{Any: true, Port: 5683}}, nil, "", "203.0.113.1:5683", true},
		"any host, other port":   {[]Target{{Any: true, Port: 5683}}, nil, "", "203.0.113.1:5684", false},
		"network":                {[]Target{{Network: prefix("203.0.113.0/24"), AnyPort: true}}, nil, "", "203.0.113.9:1", true},
		"outside the network":    {[]Target{{Network: prefix("203.0.113.0/24"), AnyPort: true}}, nil, "", "203.0.114.9:1", false},
		"name":                   {[]Target{{Host: "a.example", Port: 5683}}, nil, "a.example", "203.0.113.1:5683", true},
		"name by address":        {[]Target{{Host: "a.example", Port: 5683}}, nil, "", "203.0.113.1:5683", false},
		"other name":             {[]Target{{Host: "a.example", Port: 5683}}, nil, "b.example", "203.0.113.1:5683", false},
		"name into a network":    {[]Target{{Network: prefix("203.0.113.0/24"), Port: 5683}}, nil, "b.example", "203.0.113.1:5683", true},
		"second entry":           {[]Target{{Host: "a.example"}, {Any: true, Port: 5683}}, nil, "", "203.0.113.1:5683", true},
		"loopback":               {any, nil, "", "127.0.0.2:5683", false},
		"loopback, zone":         {any, nil, "", "[::1%lo]:5683", false},
		"loopback by name":       {any, nil, "evil.example", "127.0.0.1:5683", false},
		"loopback permitted":     {any, func(c *Config) { c.AllowLoopback = true }, "", "[::1]:5683", true},
		"link-local":             {any, nil, "", "[fe80::1%eth0]:5683", false},
		"link-local, IPv4":       {any, nil, "", "169.254.1.1:5683", false},
		"link-local permitted":   {any, func(c *Config) { c.AllowLinkLocal = true }, "", "[fe80::1%eth0]:5683", true},
		"private":                {any, nil, "", "10.0.0.1:5683", false},
		"unique local":           {any, nil, "", "[fd00::1]:5683", false},
		"private permitted":      {any, func(c *Config) { c.AllowPrivate = true }, "", "192.168.0.1:5683", true},
		"private network listed": {[]Target{{Network: prefix("10.0.0.0/8"), AnyPort: true}}, func(c *Config) { c.AllowPrivate = true }, "", "10.1.2.3:5683", true},
		"unspecified":            {any, func(c *Config) { c.AllowLoopback, c.AllowPrivate = true, true }, "", "0.0.0.0:5683", false},
		"unspecified, IPv6":      {any, func(c *Config) { c.AllowLoopback, c.AllowPrivate = true, true }, "", "[::]:5683", false},
		"broadcast":              {any, func(c *Config) { c.AllowLoopback, c.AllowPrivate = true, true }, "", "255.255.255.255:5683", false},
		"group by the back door": {any, func(c *Config) { c.AllowLoopback, c.AllowPrivate = true, true }, "", "224.0.1.187:5683", false},
	} {
		t.Run(name, func(t *testing.T) {
			c := config(func(c *Config) { c.Clients[0].Forward = tt.forward })
			if tt.change != nil {
				tt.change(&c)
			}
			l := &leg{}
			r := toServer(tt.target)
			r.Target.Host = tt.host
			o := try(New(c, l, NewHeard()), worker, r)
			if tt.ok {
				allowed(t, l, o)
			} else {
				refused(t, l, o, exchange.Denied)
			}
		})
	}
	l := &leg{}
	p := New(config(func(c *Config) { c.Clients[0].Forward = any }), l, NewHeard())
	refused(t, l, try(p, netip.MustParseAddrPort("203.0.113.99:1"), toServer("203.0.113.1:5683")), exchange.Denied)
}

// FP-11, GP-112: a server heard in one of a client's groups within the last
// hour may be reached by unicast, at the address and port, and on the
// interface, it answered from.
func TestFollowUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		heard := NewHeard()
		l := &leg{}
		p := New(config(func(c *Config) {
			deaf, blind := c.Clients[0], c.Clients[0]
			deaf.Identity.Name, deaf.Networks, deaf.FollowUp = "deaf", []netip.Prefix{netip.MustParsePrefix("198.51.100.1/32")}, false
			blind.Identity.Name, blind.Networks, blind.Groups = "other group", []netip.Prefix{netip.MustParsePrefix("198.51.100.2/32")}, []string{"lights"}
			every := blind
			every.Identity.Name, every.Networks, every.AllGroups, every.Groups = "all", []netip.Prefix{netip.MustParsePrefix("198.51.100.3/32")}, true, nil
			c.Clients = append(c.Clients, deaf, blind, every)
		}), l, heard)

		server, linkLocal := netip.MustParseAddrPort("127.0.0.9:61616"), netip.MustParseAddrPort("[fe80::9%eth1]:5683")
		refused(t, l, try(p, worker, toServer(server.String())), exchange.Denied)
		require.Empty(t, heard.Zone(linkLocal.Addr()))

		o := try(p, worker, toGroup(allNodes))
		for _, from := range []netip.AddrPort{server, linkLocal, {}} {
			require.Equal(t, exchange.Continue, l.sinks[0].Respond(&exchange.Response{From: from}))
		}
		l.end()
		require.Equal(t, 3, o.responses)
		require.Equal(t, 1, o.ends)
		require.Equal(t, "eth1", heard.Zone(netip.MustParseAddr("fe80::9"))) // GP-57

		for _, tt := range []struct {
			peer, target string
			ok           bool
		}{
			{"192.0.2.10:1", "127.0.0.9:61616", true},
			{"192.0.2.99:1", "127.0.0.9:61616", true}, // the same client entry
			{"192.0.2.10:1", "127.0.0.9:5683", false},
			{"192.0.2.10:1", "[fe80::9%eth1]:5683", true},
			{"192.0.2.10:1", "[fe80::9%eth2]:5683", false},
			{"198.51.100.1:1", "127.0.0.9:61616", false},
			{"198.51.100.2:1", "127.0.0.9:61616", false},
			{"198.51.100.3:1", "127.0.0.9:61616", true},
		} {
			o := try(p, netip.MustParseAddrPort(tt.peer), toServer(tt.target))
			if tt.ok {
				allowed(t, l, o)
			} else {
				refused(t, l, o, exchange.Denied)
			}
		}

		time.Sleep(time.Hour - 1)
		allowed(t, l, try(p, worker, toServer(server.String())))
		time.Sleep(time.Nanosecond)
		refused(t, l, try(p, worker, toServer(server.String())), exchange.Denied)
	})
}

// What is remembered of a server is bounded: the group heard longest ago makes
// room.
func TestHeardBound(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := NewHeard()
		server := netip.MustParseAddrPort("192.0.2.1:5683")
		name := func(i int) string { return string(rune('a' + i)) }
		for i := range maxHeardIn + 1 {
			h.note(server, name(i), "")
			time.Sleep(time.Second)
		}
		in := func(group string) bool {
			_, ok := h.in(server, time.Now(), func(g string) bool { return g == group })
			return ok
		}
		require.False(t, in(name(0)))
		for i := 1; i <= maxHeardIn; i++ {
			require.True(t, in(name(i)), i)
		}
		// Heard again, a group is young again.
		h.note(server, name(1), "")
		h.note(server, "new", "")
		require.True(t, in(name(1)))
		require.False(t, in(name(2)))
	})
}

// FP-11, FP-39: a name that a next proxy resolves is allowed by the name alone,
// and a server that was heard behind a next proxy is reached there, unless the
// client's own list has it.
func TestNextHop(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		heard := NewHeard()
		l := &leg{}
		p := New(config(func(c *Config) {
			c.Clients[0].Forward = []Target{{Host: "a.example", Port: 5683}, {Network: netip.MustParsePrefix("203.0.113.0/24"), AnyPort: true}}
		}), l, heard)
		named := func(host string) *exchange.Request {
			r := toServer("203.0.113.1:5683")
			r.Target = exchange.Target{Scheme: "coap", Host: host, NextHop: "far", Addr: netip.AddrPortFrom(netip.Addr{}, 5683)}
			return r
		}
		allowed(t, l, try(p, worker, named("a.example")))
		refused(t, l, try(p, worker, named("b.example")), exchange.Denied)

		g := toGroup(allNodes)
		g.Target.NextHop = "far"
		try(p, worker, g)
		behind, listed, zoned := netip.MustParseAddrPort("10.0.0.9:61616"), netip.MustParseAddrPort("203.0.113.9:5683"), netip.MustParseAddrPort("[fe80::9%3]:5683")
		for _, from := range []netip.AddrPort{behind, listed, zoned} {
			l.sinks[0].Respond(&exchange.Response{From: from})
		}
		l.end()
		require.Equal(t, "far", heard.Via(behind))
		require.Empty(t, heard.Via(netip.MustParseAddrPort("10.0.0.8:61616")))
		require.Empty(t, heard.Zone(zoned.Addr()), "the zone is none of this host")
		for _, tt := range []struct {
			to   netip.AddrPort
			want string
		}{{behind, "far"}, {listed, ""}, {zoned, "far"}} {
			o := try(p, worker, toServer(tt.to.String()))
			require.Equal(t, tt.want, l.requests[0].Target.NextHop)
			allowed(t, l, o)
		}
		require.False(t, p.NamesGroup("a.example", 5683))
	})
}

// A link-local server is where it was heard last, also for who leaves out the zone
// (GP-57): behind a next proxy, whose zone it is, or here.
func TestHeardZones(t *testing.T) {
	h := NewHeard()
	behind, here, plain := netip.MustParseAddrPort("[fe80::1%3]:5683"), netip.MustParseAddrPort("[fe80::1%eth1]:5683"), netip.MustParseAddrPort("[fe80::1]:5683")
	all := func(string) bool { return true }
	h.note(behind, "g", "floor2")
	for _, server := range []netip.AddrPort{behind, plain} {
		require.Equal(t, "floor2", h.Via(server))
		via, ok := h.in(server, time.Now(), all)
		require.True(t, ok)
		require.Equal(t, "floor2", via)
	}
	require.Empty(t, h.Zone(plain.Addr()), "it is no interface of this host")
	h.note(here, "g", "")
	require.Empty(t, h.Via(plain))
	require.Equal(t, "eth1", h.Zone(plain.Addr()))
	require.Equal(t, "floor2", h.Via(behind))
	h.note(behind, "g", "floor2")
	require.Equal(t, "floor2", h.Via(plain))
}
