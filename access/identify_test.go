package access

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
)

// The longest prefix that contains a source address tells the client (GP-24);
// an address in no client's network is nobody.
func TestIdentify(t *testing.T) {
	entry := func(name string, networks ...string) Client {
		c := Client{Identity: exchange.Identity{Name: name}}
		for _, n := range networks {
			c.Networks = append(c.Networks, netip.MustParsePrefix(n))
		}
		return c
	}
	p := New(Config{Clients: []Client{
		entry("wide", "192.0.0.0/8", "2001:db8::/32"),
		entry("narrow", "192.0.2.0/24"),
		entry("host", "192.0.2.7/32", "fe80::7/128"),
		entry("second", "192.0.2.0/24"),
		entry("unmasked", "198.51.100.77/24"),
	}}, &leg{}, NewHeard())
	for peer, name := range map[string]string{
		"192.0.3.1:1":        "wide",
		"192.0.2.1:1":        "narrow", // the first of equals
		"192.0.2.7:65535":    "host",
		"[2001:db8::1]:5683": "wide",
		"[fe80::7%lo]:1":     "host",
		"198.51.100.1:1":     "unmasked",
		"203.0.113.1:1":      "",
		"[2001:db9::1]:5683": "",
	} {
		id := p.Identify(netip.MustParseAddrPort(peer), nil)
		if name == "" {
			require.Nil(t, id, peer)
			continue
		}
		require.NotNil(t, id, peer)
		require.Equal(t, name, id.Name, peer)
		require.False(t, id.Authenticated)
	}
}

// A pre-shared key tells the client, whatever its address; a key of nobody leaves
// it to the address (GP-23).
func TestIdentifyByKey(t *testing.T) {
	p := New(Config{Clients: []Client{
		{Identity: exchange.Identity{Name: "gateway"}, PSK: "gw-1"},
		{Identity: exchange.Identity{Name: "office"}, Networks: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}},
	}}, &leg{}, NewHeard())
	here, elsewhere := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("203.0.113.1:1")
	for _, peer := range []netip.AddrPort{here, elsewhere} {
		id := p.Identify(peer, &exchange.Security{PSK: true, PSKIdentity: "gw-1"})
		require.Equal(t, "gateway", id.Name)
		require.True(t, id.Authenticated)
	}
	id := p.Identify(here, &exchange.Security{PSK: true, PSKIdentity: "gw-2"})
	require.Equal(t, "office", id.Name)
	require.False(t, id.Authenticated)
	require.Nil(t, p.Identify(elsewhere, &exchange.Security{PSK: true}))
	require.Nil(t, p.Identify(elsewhere, &exchange.Security{PSKIdentity: "gw-1"}))
}

// An identity that another layer made is nobody to this one.
func TestForeignIdentity(t *testing.T) {
	l := &leg{}
	p := New(config(), l, NewHeard())
	for _, id := range []*exchange.Identity{nil, {Name: "worker"}, {Name: "worker", Permissions: "all"}} {
		o := &outcome{}
		r := toGroup(allNodes)
		r.Client = id
		p.Exchange(r, o)
		refused(t, l, o, exchange.Denied) // GP-23
	}
}
