package config_test

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/config"
)

func TestParseRoutes(t *testing.T) {
	c, err := parse(group + `names: {all.example: [224.0.1.187], one.example: [192.0.2.7]}
listen: ["coap+tcp://127.0.0.1", "coap://[::1]:7000"]
proxy: {servers_path: /s/x%20y, server_addresses: ["192.0.2.1:6000-6002", "[2001:db8::1]:5683"]}
routes:
- {name: a, host: [lights.example, "2001:db8::9"], to: "coap://224.0.1.187", servers: direct}
- {name: b, path: /b/, to: "coap://all.example/base/%2F", servers: by-path, announce: 203.0.113.5, multicast_timeout: 5}
- {name: c, listen: ["coap://[::1]:7000"], to: "coaps+tcp://one.example", servers: own-address, announce: "[2001:db8::5]:700"}
`)
	require.NoError(t, err)
	require.Equal(t, config.URIPath{"s", "x y"}, c.Proxy.ServersPath)
	require.Equal(t, []config.PortRange{{Addr: netip.MustParseAddr("192.0.2.1"), First: 6000, Last: 6002},
		{Addr: netip.MustParseAddr("2001:db8::1"), First: 5683, Last: 5683}}, c.Proxy.ServerAddresses)
	a, b, d := c.Routes[0], c.Routes[1], c.Routes[2]
	require.Equal(t, []string{"lights.example", "2001:db8::9"}, a.Host)
	require.Equal(t, config.ServersDirect, a.Servers)
	require.Equal(t, "coap://224.0.1.187:5683", a.To.String())
	require.Equal(t, []string{"g"}, c.GroupsAt(a.To.HostPort))
	require.Equal(t, config.URIPath{"b"}, b.Path)
	require.Equal(t, config.URIPath{"base", "/"}, b.To.Path)
	require.Equal(t, []string{"g"}, c.GroupsAt(b.To.HostPort), "by the addresses of the name")
	require.Equal(t, netip.MustParseAddr("203.0.113.5"), b.Announce.Addr)
	require.Zero(t, b.Announce.Port)
	require.EqualValues(t, 5e9, b.MulticastTimeout)
	require.Equal(t, "coaps+tcp://one.example:5684", d.To.String())
	require.Empty(t, c.GroupsAt(d.To.HostPort))
	require.Equal(t, uint16(700), d.Announce.Port)
}

func TestRouteProblems(t *testing.T) {
	for name, tt := range map[string]struct{ text, want string }{
		"no target":     {"- {name: a}", "routes[0].to: missing; write e.g. coap://192.0.2.7 or coap://[ff05::fd]"},
		"no name":       {"- {to: \"coap://192.0.2.7\"}", "routes[0].name: missing; give the entry a name"},
		"no such group": {"- {name: a, to: \"coap://224.0.1.188\"}", "routes[0].to: no group has the URI coap://224.0.1.188:5683; add it under groups"},
		"group, TCP":    {"- {name: a, to: \"coap+tcp://224.0.1.187\"}", "routes[0].to: coap+tcp does not reach groups; write coap://"},
		"scheme":        {"- {name: a, to: \"ftp://a\"}", "routes[0].to: ftp is not a known scheme; write e.g. coap://192.0.2.7, coap://device.example/base or coap://[ff05::fd]"},
		"no scheme":     {"- {name: a, to: a}", "routes[0].to: a has no scheme; write e.g. coap://192.0.2.7, coap://device.example/base or coap://[ff05::fd]"},
		"query":         {"- {name: a, to: \"coap://a/b?c\"}", "routes[0].to: /b?c is not a path; write e.g. /lights or /building/1"},
		"path":          {"- {name: a, path: a, to: \"coap://a\"}", "routes[0].path: a is not a path; write e.g. /lights or /building/1"},
		"dots":          {"- {name: a, path: /a/.., to: \"coap://a\"}", `routes[0].path: a/.. has the segment "..", which has no meaning here; write e.g. /lights or /building/1`},
		"percent":       {"- {name: a, path: /%zz, to: \"coap://a\"}", "routes[0].path: %zz has a bad segment; write e.g. /lights or /building/1"},
		"host":          {"- {name: a, host: [Upper], to: \"coap://a\"}", "routes[0].host[0]: Upper is neither a host name nor an IP address; write e.g. lights.example, in lower case"},
		"listener":      {"- {name: a, listen: [\"coap://127.0.0.9\"], to: \"coap://a\"}", "routes[0].listen[0]: coap://127.0.0.9:5683 is not among the listeners; write it as it stands under listen"},
		"shadowed":      {"- {name: a, path: /x, to: \"coap://a\"}\n- {name: b, path: /x/y, host: [b], to: \"coap://b\"}", "routes[1]: routes[0] in line 6 matches all of its requests before; put this one first, or remove it"},
		"servers":       {"- {name: a, to: \"coap://a\", servers: some}", "routes[0].servers: some is not a known value; write one of by-host, by-path, own-address, direct"},
		"no addresses":  {"- {name: a, to: \"coap://a\", servers: own-address}", "routes[0].servers: own-address needs addresses; write proxy.server_addresses, e.g. [192.0.2.1:6000-6099]"},
		"announce":      {"- {name: a, to: \"coap://a\", announce: 0.0.0.0}", "routes[0].announce: 0.0.0.0 is not an address that clients can be told; write e.g. 203.0.113.5"},
		"announce name": {"- {name: a, to: \"coap://a\", announce: b.example}", `routes[0].announce: b.example is not an IP address, alone or with a port; write e.g. 203.0.113.5, 203.0.113.5:5683 or "[2001:db8::5]:5683"`},
		"timeout":       {"- {name: a, to: \"coap://a\", multicast_timeout: 1500ms}", "routes[0].multicast_timeout: 1.5s is not a whole number of seconds; write e.g. 2s"},
	} {
		t.Run(name, func(t *testing.T) {
			_, err := parse(group + "routes:\n" + tt.text + "\n")
			require.Error(t, err)
			_, got, _ := strings.Cut(err.Error(), ": ")
			require.Equal(t, tt.want, got)
		})
	}
	for text, want := range map[string]string{
		"proxy: {servers_path: /}":                             "proxy.servers_path: empty; write e.g. /servers",
		"proxy: {server_addresses: [\"192.0.2.1\"]}":           `proxy.server_addresses[0]: 192.0.2.1 is not an address with ports; write e.g. 192.0.2.1:6000-6099, "[2001:db8::1]:6000-6099" or 192.0.2.2:5683`,
		"proxy: {server_addresses: [\"192.0.2.1:9-8\"]}":       `proxy.server_addresses[0]: 192.0.2.1:9-8 is not an address with ports; write e.g. 192.0.2.1:6000-6099, "[2001:db8::1]:6000-6099" or 192.0.2.2:5683`,
		"proxy: {server_addresses: [\"0.0.0.0:9\"]}":           "proxy.server_addresses[0]: 0.0.0.0 is not an address that clients can be told; write e.g. 192.0.2.1:6000-6099, \"[2001:db8::1]:6000-6099\" or 192.0.2.2:5683",
		"proxy: {server_addresses: [\"192.0.2.1:1-9000\"]}":    "proxy.server_addresses[0]: more than 4096 addresses and ports; write fewer",
		"proxy: {server_addresses: [\"127.0.0.1:5600-5700\"]}": "proxy.server_addresses[0]: coap://127.0.0.1:5683 is a listener; write ports that are free",
		"limits: {reverse_mappings: 0}":                        "limits.reverse_mappings: 0 is out of range; write a value from 1 to 1048576",
		"limits: {reverse_lifetime: 1s}":                       "limits.reverse_lifetime: 1s is out of range; write a value from 1m to 8760h",
	} {
		_, err := parse(text + "\n")
		require.Error(t, err, text)
		_, got, _ := strings.Cut(err.Error(), ": ")
		require.Equal(t, want, got)
	}
}
