package config_test

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/config"
)

// hostWith returns a lookup for a host that has the interfaces named.
func hostWith(names ...string) config.InterfaceLookup {
	return func(name string) (*net.Interface, error) {
		for i, n := range names {
			if n == name {
				return &net.Interface{Index: i + 1, Name: name}, nil
			}
		}
		return nil, errors.New("no such network interface")
	}
}

// parse reads text on a host with lo and eth0.
func parse(text string) (*config.Config, error) {
	return config.Parse("c.yaml", []byte(text), config.WithInterfaces(hostWith("lo", "eth0")))
}

// group and client are complete entries to build files from.
const (
	group  = "groups:\n- name: g\n  uri: coap://224.0.1.187\n  interfaces: [lo]\n"
	client = "clients:\n- name: c\n  networks: [192.0.2.0/24]\n"
)

func TestParseProblems(t *testing.T) {
	tests := []struct {
		name string
		text string
		want []string
	}{
		// Form of the file.
		{"syntax, first line", "listen: [\n", []string{
			"c.yaml:1: YAML: did not find expected node content; close the list with ]"}},
		{"syntax, tab", "log:\n\tlevel: info\n", []string{
			"c.yaml:2: YAML: found character that cannot start any token; indent with spaces, not with tabs"}},
		{"syntax, indentation", "log:\n  level: info\n  format: json\n output: stderr\nlimits:\n  nstart: 1\n", []string{
			"c.yaml:4: YAML: did not find expected key; check the indentation, and put quotes round text with special characters"}},
		{"syntax, star", client + "  groups: *\n", []string{
			`c.yaml:4: YAML: did not find expected alphabetic or numeric character; put quotes round the star: "*"`}},
		{"syntax, open quote", "proxy:\n  identifier: \"x\n  hop_limit: 3\n" + strings.Repeat("# more\n", 70), []string{
			"c.yaml:2: YAML: found unexpected end of stream; close the quotes"}},
		{"syntax, open list", group + "  methods: [GET\n  queue: 3\n  nstart: 2\n", []string{
			"c.yaml:5: YAML: did not find expected ',' or ']'; close the list with ]"}},
		{"syntax, IPv6 address", "clients:\n- name: c\n  networks: [::1]\n", []string{
			`c.yaml:3: YAML: did not find expected node content; put quotes round an IPv6 address in a list: "::1"`}},
		{"syntax, very deep", strings.Repeat("[", 20000), []string{
			"c.yaml:1: YAML: exceeded max depth of 10000; close the list with ]"}},
		{"syntax, far beyond one line", strings.Repeat("# x\n", 300) + "log: [\n  'a\n" + strings.Repeat("  x\n", 300), []string{
			"c.yaml:301: YAML: found unexpected end of stream; close the list with ]"}},
		{"syntax, unknown anchor", "log:\n  level: *x\n", []string{
			`c.yaml:2: YAML: unknown anchor 'x' referenced; put quotes round the star: "*"`}},
		{"syntax, second document", "log: {}\n---\nlog: [\n", []string{
			"c.yaml:3: YAML: did not find expected node content; close the list with ]"}},
		{"two documents", "log: {}\n---\nproxy: {}\n", []string{
			"c.yaml:2: a second YAML document begins here; keep everything in one, without --- between"}},
		{"not UTF-8", "log:\n  level: \xff\n", []string{
			"c.yaml:2: not UTF-8 text; save the file as UTF-8"}},
		{"too large", strings.Repeat("#", 1<<20+1), []string{
			"c.yaml: the file is larger than 1MiB; write a shorter configuration"}},
		{"top is a list", "- listen\n", []string{
			"c.yaml:1: must be a mapping of keys to values, not a list"}},
		{"top is text", "\nlisten\n", []string{
			`c.yaml:2: must be a mapping of keys to values, not the text "listen"`}},

		// Keys.
		{"unknown key", "listn: []\n", []string{
			"c.yaml:1: listn: unknown key; did you mean listen?"}},
		{"unknown key, other spelling", "proxy:\n  maxTimeout: 1\n", []string{
			"c.yaml:2: proxy.maxTimeout: unknown key; did you mean max_timeout?"}},
		{"unknown key, nothing near", "log:\n  colour: red\n", []string{
			"c.yaml:2: log.colour: unknown key; known here: level, format, output"}},
		{"unknown key in a list", group + "  interface: eth0\n", []string{
			"c.yaml:5: groups[0].interface: unknown key; did you mean interfaces?"}},
		{"unknown key of strange form", "log:\n  \"a\\nb\": 1\n", []string{
			`c.yaml:2: log."a\nb": unknown key; known here: level, format, output`}},
		{"key given twice", "log:\n  level: info\n  level: warn\n", []string{
			"c.yaml:3: log.level: key given again, first in line 2; keep one of them"}},
		{"top key given twice", "log: {}\nproxy: {}\nlog: {}\n", []string{
			"c.yaml:3: log: key given again, first in line 1; keep one of them"}},
		{"key is a list", "? [a]\n: b\n", []string{
			"c.yaml:1: a key must be plain text, not a list"}},
		{"merge key", "log: &l {level: info}\nproxy:\n  <<: *l\n", []string{
			"c.yaml:3: proxy.<<: merge keys are not supported; write the keys out"}},
		{"listeners over TCP", "listen: [\"coap://127.0.0.1\", \"coap+tcp://127.0.0.1\", \"coap+ws://127.0.0.1:5683\", \"coap+ws://0.0.0.0\", \"coap+tcp://127.0.0.1:80\"]\n", []string{
			"c.yaml:1: listen[2]: coap+ws://127.0.0.1:5683 is listen[1] in line 1 too; remove one of them",
			"c.yaml:1: listen[4]: coap+tcp://127.0.0.1:80 is part of listen[3] in line 1; remove one of them"}},
		{"keys", "credentials: {psk: keys.yaml, other: x}\nlisten: [\"coaps://127.0.0.1\", \"coap://127.0.0.1:5684\"]\nclients:\n- {name: a, psk: k}\n- {name: b, psk: k}\n", []string{
			"c.yaml:1: credentials.other: unknown key; known here: psk, certificate, key, client_authorities, http, servers",
			"c.yaml:2: listen[1]: coap://127.0.0.1:5684 is listen[0] in line 2 too; remove one of them",
			"c.yaml:5: clients[1].psk: k is clients[0].psk in line 4 too; give it to one client"}},
		{"members (GP-75)", "groups:\n- name: g\n  interfaces: [lo]\n  uri: coap://224.0.1.187\n  members: [\"224.0.1.1:5683\", \"[fe80::1]:5683\"]\n  learned: {within: 2}\n", []string{
			"c.yaml:5: groups[0].members: given together with learned; write the members or have them learned",
			"c.yaml:5: groups[0].members[0]: 224.0.1.1:5683 is not the address and port of a server; write e.g. 192.0.2.7:5683",
			`c.yaml:5: groups[0].members[1]: [fe80::1]:5683 needs its interface; write e.g. "[fe80::1%eth0]:5683"`}},
		{"cache (FP-51)", "cache: {max_entries: 0, max_age: 1500ms, enabled: maybe}\n", []string{
			"c.yaml:1: cache.enabled: must be true or false, not the text \"maybe\"",
			"c.yaml:1: cache.max_entries: 0 is out of range; write a value from 1 to 16777216",
			"c.yaml:1: cache.max_age: 1.5s is not a whole number of seconds; write e.g. 2s"}},
		{"metrics", "metrics:\n  listen: localhost\n", []string{
			`c.yaml:2: metrics.listen: localhost is not an address and port; write auto, off or e.g. 127.0.0.1:9683`}},

		// Types.
		{"mapping for list", "listen: {a: 1}\n", []string{
			"c.yaml:1: listen: must be a list, not a mapping"}},
		{"text for list", "listen: coap://127.0.0.1\n", []string{
			`c.yaml:1: listen: must be a list, not the text "coap://127.0.0.1"`}},
		{"list for mapping", "proxy: [1]\n", []string{
			"c.yaml:1: proxy: must be a mapping of keys to values, not a list"}},
		{"text for entry", "clients: [me]\n", []string{
			`c.yaml:1: clients[0]: must be a mapping of keys to values, not the text "me"`}},
		{"text for number", "limits:\n  nstart: many\n", []string{
			`c.yaml:2: limits.nstart: must be a whole number, not the text "many"`}},
		{"float for number", "limits:\n  nstart: 1.5\n", []string{
			"c.yaml:2: limits.nstart: must be a whole number, not the number 1.5"}},
		{"octal", "limits:\n  nstart: 010\n", []string{
			"c.yaml:2: limits.nstart: must be a whole number, not the number 010"}},
		{"huge number", "limits:\n  nstart: 99999999999999999999\n", []string{
			"c.yaml:2: limits.nstart: must be a whole number, not the number 99999999999999999999"}},
		{"text for rate", "limits:\n  group_rate: fast\n", []string{
			`c.yaml:2: limits.group_rate: must be a number, not the text "fast"`}},
		{"infinite rate", "limits:\n  group_rate: .inf\n", []string{
			"c.yaml:2: limits.group_rate: must be a number, not the number .inf"}},
		{"old boolean", "proxy:\n  allow_private: yes\n", []string{
			`c.yaml:2: proxy.allow_private: must be true or false, not the text "yes"`}},
		{"number for text", group + "- name: 7\n  uri: coap://224.0.1.188\n  interfaces: [lo]\n", []string{
			`c.yaml:5: groups[1].name: must be text, not the number 7; write "7"`}},
		{"list for text", "log:\n  level: [info]\n", []string{
			"c.yaml:2: log.level: must be text, not a list"}},
		{"boolean for duration", "limits:\n  grace: true\n", []string{
			"c.yaml:2: limits.grace: must be a duration such as 90s, not true"}},
		{"tagged", "limits:\n  grace: !x 3\n", []string{
			"c.yaml:2: limits.grace: must be a duration such as 90s, not 3 with the tag !x"}},
		{"text for group names", client + "  groups: g\n", []string{
			`c.yaml:4: clients[0].groups: must be a list of group names, or "*", not the text "g"`}},
		{"one address for names", "names:\n  a.example: 192.0.2.1\n", []string{
			`c.yaml:2: names.a.example: must be a list, not the text "192.0.2.1"`}},
		{"list for names", "names: [a]\n", []string{
			"c.yaml:1: names: must be a mapping of names to lists of addresses, not a list"}},
		{"empty item", "listen:\n- coap://127.0.0.1\n-\n", []string{
			"c.yaml:3: listen[1]: empty list item; write a value or remove the item"}},

		// listen.
		{"unsupported schemes", "listen:\n- coaps://127.0.0.1\n- coap+tcp://127.0.0.1\n- coaps+tcp://127.0.0.1\n- coap+ws://127.0.0.1\n- coaps+ws://127.0.0.1\n- http://localhost:8080\n- HTTPS://[::1]\n", []string{
			"c.yaml:2: listen[0]: coaps needs the keys of its clients, or a certificate; write credentials: {psk: FILE}, or {certificate: FILE, key: FILE}",
			"c.yaml:4: listen[2]: coaps+tcp needs a certificate; write credentials: {certificate: FILE, key: FILE}",
			"c.yaml:6: listen[4]: coaps+ws needs a certificate; write credentials: {certificate: FILE, key: FILE}",
			"c.yaml:7: listen[5]: localhost is not an IP address, and a listener needs one; write e.g. coap://127.0.0.1:5683 or coap://[::1]:5683",
			"c.yaml:8: listen[6]: https needs a certificate; write credentials: {certificate: FILE, key: FILE}"}},
		{"certificate without key", "credentials:\n  key: a\n  client_authorities: ca\n  servers: {certificate: b}\n", []string{
			"c.yaml:2: credentials.key: has no certificate; write certificate beside it",
			"c.yaml:3: credentials.client_authorities: clients are asked for a certificate only by a proxy that has one; write certificate and key beside it",
			"c.yaml:4: credentials.servers.certificate: has no key; write servers.key beside it"}},
		{"unknown scheme", "listen: [\"ftp://127.0.0.1\", \"127.0.0.1:5683\"]\n", []string{
			"c.yaml:1: listen[0]: ftp is not a known scheme; write a coap:// URI",
			"c.yaml:1: listen[1]: 127.0.0.1:5683 has no scheme; write e.g. coap://127.0.0.1:5683 or coap://[::1]:5683"}},
		{"duplicate listener", "listen:\n- coap://127.0.0.1\n- coap://[::1]\n- coap://127.0.0.1:5683\n", []string{
			"c.yaml:4: listen[2]: coap://127.0.0.1:5683 is listen[0] in line 2 too; remove one of them"}},
		{"listener under a wildcard", "listen:\n- coap://192.0.2.1\n- coap://0.0.0.0\n- coap://[::1]\n", []string{
			"c.yaml:2: listen[0]: coap://192.0.2.1:5683 is part of listen[1] in line 3; remove one of them"}},
		{"no listener", "listen: []\n", []string{
			"c.yaml:1: listen: no listener; remove the key to listen on the loopback addresses, or write e.g. coap://127.0.0.1:5683"}},
		{"listener by name", "listen: [\"coap://localhost\"]\n", []string{
			"c.yaml:1: listen[0]: localhost is not an IP address, and a listener needs one; write e.g. coap://127.0.0.1:5683 or coap://[::1]:5683"}},
		{"listener on a group", "listen: [\"coap://224.0.1.187\"]\n", []string{
			"c.yaml:1: listen[0]: 224.0.1.187 is not a unicast address; write an address of this host; groups to reach go under groups"}},
		{"listener, link-local", "listen:\n- coap://[fe80::1]\n- coap://[fe80::1%eth7]\n- coap://[2001:db8::1%eth0]\n", []string{
			"c.yaml:2: listen[0]: a link-local address needs its interface; write e.g. coap://[fe80::1%eth0]",
			"c.yaml:3: listen[1]: this host has no interface eth7; write one that `ip link` lists",
			"c.yaml:4: listen[2]: 2001:db8::1%eth0 has a zone, which only a link-local address has; write 2001:db8::1"}},
		{"listener with a path", "listen: [\"coap://127.0.0.1/x\"]\n", []string{
			"c.yaml:1: listen[0]: 127.0.0.1/x has '/', which has no meaning here; write only the host and the port"}},
		{"listener, bad ports", "listen: [\"coap://127.0.0.1:65536\", \"coap://127.0.0.1:\", \"coap://127.0.0.1:x\"]\n", []string{
			"c.yaml:1: listen[0]: 65536 is not a port; write a port from 1 to 65535",
			`c.yaml:1: listen[1]: "" is not a port; write a port from 1 to 65535`,
			"c.yaml:1: listen[2]: x is not a port; write a port from 1 to 65535"}},
		{"listener, bad IPv6", "listen: [\"coap://::1\", \"coap://[::x]\", \"coap://[::ffff:192.0.2.1]\", \"coap://[192.0.2.1]\"]\n", []string{
			"c.yaml:1: listen[0]: an IPv6 address in a URI needs brackets; write [::1]",
			"c.yaml:1: listen[1]: ::x is not an IPv6 address; write e.g. [2001:db8::7]",
			"c.yaml:1: listen[2]: ::ffff:192.0.2.1 is an IPv4 address in IPv6 form; write 192.0.2.1",
			"c.yaml:1: listen[3]: 192.0.2.1 is not an IPv6 address; write e.g. [2001:db8::7]"}},

		// groups.
		{"group without anything", "groups:\n- loopback: true\n", []string{
			"c.yaml:2: groups[0].name: missing; give the entry a name",
			"c.yaml:2: groups[0].uri: missing; write e.g. coap://224.0.1.187",
			"c.yaml:2: groups[0].interfaces: missing; write the interfaces to send on, e.g. [eth0]"}},
		{"group outside the multicast ranges", "groups:\n- name: g\n  interfaces: [lo]\n  uri: coap://192.0.2.1\n", []string{
			"c.yaml:4: groups[0].uri: 192.0.2.1 is not a multicast address; write e.g. coap://224.0.1.187"}},
		{"group, IPv6 unicast", "groups:\n- name: g\n  interfaces: [lo]\n  uri: coap://[fe80::1]\n", []string{
			"c.yaml:4: groups[0].uri: fe80::1 is not a multicast address; write e.g. coap://224.0.1.187"}},
		{"group, broadcast (GC-9)", "groups:\n- name: g\n  interfaces: [lo]\n  uri: coap://255.255.255.255\n", []string{
			"c.yaml:4: groups[0].uri: 255.255.255.255 is not a multicast address; write e.g. coap://224.0.1.187"}},
		{"group, reserved scope", "groups:\n- name: g\n  interfaces: [lo]\n  uri: coap://[ff0f::fd]\n", []string{
			"c.yaml:4: groups[0].uri: ff0f::fd has a reserved scope; write e.g. coap://[ff05::fd]"}},
		{"group, scope too wide (GC-5)", "groups:\n- name: g\n  interfaces: [lo]\n  uri: coap://[ff08::fd]\n", []string{
			"c.yaml:4: groups[0].uri: ff08::fd has a wider scope than proxy.max_scope, which is site-local; use a group of smaller scope, or raise proxy.max_scope"}},
		{"group, coaps (GP-22)", "groups:\n- name: g\n  interfaces: [lo]\n  uri: coaps://224.0.1.187\n", []string{
			"c.yaml:4: groups[0].uri: groups are not reached by coaps; write a coap:// URI"}},
		{"group, port 5684 (GC-4)", "groups:\n- name: g\n  interfaces: [lo]\n  uri: coap://224.0.1.187:5684\n", []string{
			"c.yaml:4: groups[0].uri: 5684 is the port of coaps, which has no groups; leave it out for 5683"}},
		{"group, port 0", "groups:\n- name: g\n  interfaces: [lo]\n  uri: coap://224.0.1.187:0\n", []string{
			"c.yaml:4: groups[0].uri: 0 is not the port of a group; leave it out for 5683"}},
		{"group, user information (FP-10)", "groups:\n- name: g\n  interfaces: [lo]\n  uri: coap://me@224.0.1.187\n", []string{
			"c.yaml:4: groups[0].uri: me@224.0.1.187 has '@', which has no meaning here; write only the host and the port"}},
		{"group, mistyped address", "groups:\n- name: g\n  interfaces: [lo]\n  uri: coap://224.0.1\n", []string{
			"c.yaml:4: groups[0].uri: 224.0.1 is neither a host name nor an IP address; write e.g. device.example, 192.0.2.7 or [2001:db8::7]"}},
		{"group, name with unicast addresses", "names:\n  lights.example: [192.0.2.1]\ngroups:\n- name: g\n  interfaces: [lo]\n  uri: coap://Lights.example\n", []string{
			"c.yaml:6: groups[0].uri: 192.0.2.1 is not a multicast address, which is what names.lights.example in line 2 says; write e.g. coap://224.0.1.187"}},
		{"missing interface (GC-7)", "groups:\n- name: g\n  uri: coap://224.0.1.187\n  interfaces:\n  - lo\n  - eth7\n", []string{
			"c.yaml:6: groups[0].interfaces[1]: this host has no interface eth7; write one that `ip link` lists"}},
		{"interface named twice", "groups:\n- name: g\n  uri: coap://224.0.1.187\n  interfaces: [lo, lo]\n", []string{
			"c.yaml:4: groups[0].interfaces[1]: same as groups[0].interfaces[0] in line 4; remove one of them"}},
		{"interface without a name", "groups:\n- name: g\n  uri: coap://224.0.1.187\n  interfaces: [\"\"]\n", []string{
			"c.yaml:4: groups[0].interfaces[0]: empty; write the name of an interface, e.g. eth0"}},
		{"zone does not exist", "groups:\n- name: g\n  uri: coap://[ff02::fd%eth7]\n", []string{
			"c.yaml:3: groups[0].uri: this host has no interface eth7; write one that `ip link` lists"}},
		{"zone and other interface", "groups:\n- name: g\n  uri: coap://[ff02::fd%eth0]\n  interfaces: [lo]\n", []string{
			"c.yaml:4: groups[0].interfaces: the zone in the URI limits the group to eth0; leave one of them out"}},
		{"hop limit of a link-local group (GC-6)", "groups:\n- name: g\n  uri: coap://224.0.0.251\n  interfaces: [lo]\n  hop_limit: 2\n", []string{
			"c.yaml:5: groups[0].hop_limit: a link-local group is always sent with hop limit 1; remove it"}},
		{"duplicate group name", group + "- name: g\n  uri: coap://224.0.1.188\n  interfaces: [lo]\n", []string{
			"c.yaml:5: groups[1].name: g is the name of groups[0].name in line 2 too; give each its own name"}},
		{"group name is a star", "groups:\n- name: \"*\"\n  uri: coap://224.0.1.188\n  interfaces: [lo]\n", []string{
			"c.yaml:2: groups[0].name: * stands for all names; write another name"}},
		{"group name with spaces", "groups:\n- name: all lights\n  uri: coap://224.0.1.188\n  interfaces: [lo]\n", []string{
			`c.yaml:2: groups[0].name: "all lights" is not a name; write at most 64 visible ASCII characters without spaces`}},
		{"duplicate group (GC-2)", group + "- name: h\n  uri: coap://224.0.1.187:5683\n  interfaces: [lo]\n", []string{
			"c.yaml:6: groups[1].uri: coap://224.0.1.187:5683 is groups[0].uri in line 3 too; make them one group"}},
		{"duplicate group by name (GC-2)", "names:\n  a.example: [224.0.1.187]\n" + group + "- name: h\n  uri: coap://a.example\n  interfaces: [lo]\n", []string{
			"c.yaml:8: groups[1].uri: coap://224.0.1.187:5683 is groups[0].uri in line 5 too; make them one group"}},
		{"methods (GC-70)", group + "  methods: [GET, put, GET]\n", []string{
			"c.yaml:5: groups[0].methods[2]: same as groups[0].methods[0] in line 5; remove one of them",
			"c.yaml:5: groups[0].methods[1]: put is not a known value; write one of GET, POST, PUT, DELETE, FETCH, PATCH, iPATCH"}},
		{"no method", group + "  methods: []\n", []string{
			"c.yaml:5: groups[0].methods: no method; name at least one, or remove the key"}},
		{"group timeout above the proxy's (GP-29)", group + "  max_timeout: 11m\n", []string{
			"c.yaml:5: groups[0].max_timeout: 11m is more than proxy.max_timeout, which is 10m; lower it or raise that"}},
		{"fraction of a second (GP-2)", group + "  max_timeout: 1500ms\n", []string{
			"c.yaml:5: groups[0].max_timeout: 1.5s is not a whole number of seconds; write e.g. 2s"}},
		{"repeat (GC-40)", group + "  repeat: twice\n", []string{
			"c.yaml:5: groups[0].repeat: twice is not a known value; write one of off, same-mid, new-mid"}},
		{"allowed sources (GC-25)", group + "  allowed_sources: [10.0.0.1/8, nonsense, \"::ffff:10.0.0.0/104\", \"fe80::1%lo\", 10.0.0.0/33, ff00::/8, \"::ffff:1.2.3.4\"]\n", []string{
			"c.yaml:5: groups[0].allowed_sources[0]: 10.0.0.1/8 has bits set behind its prefix length; write 10.0.0.0/8",
			"c.yaml:5: groups[0].allowed_sources[1]: nonsense is not a network; write e.g. 192.0.2.0/24, 2001:db8::/64 or a single address",
			"c.yaml:5: groups[0].allowed_sources[2]: ::ffff:10.0.0.0/104 is an IPv4 network in IPv6 form; write the network in IPv4 form",
			"c.yaml:5: groups[0].allowed_sources[3]: fe80::1%lo has a zone, which has no meaning here; write fe80::1",
			"c.yaml:5: groups[0].allowed_sources[4]: 10.0.0.0/33 is not a network; write e.g. 192.0.2.0/24, 2001:db8::/64 or a single address",
			"c.yaml:5: groups[0].allowed_sources[6]: ::ffff:1.2.3.4 is an IPv4 address in IPv6 form; write 1.2.3.4",
			"c.yaml:5: groups[0].allowed_sources[5]: ff00::/8 is multicast, and no packet comes from there; write e.g. 192.0.2.0/24"}},

		// clients.
		{"client without anything", "clients:\n- follow_up: true\n", []string{
			"c.yaml:2: clients[0].name: missing; give the entry a name",
			"c.yaml:2: clients[0].networks: missing; write the addresses of the client, e.g. [192.0.2.0/24]"}},
		{"duplicate client name", client + "- name: c\n  networks: [192.0.3.0/24]\n", []string{
			"c.yaml:4: clients[1].name: c is the name of clients[0].name in line 2 too; give each its own name"}},
		{"network of two clients (GP-24)", client + "- name: d\n  networks: [192.0.2.0/24]\n", []string{
			"c.yaml:5: clients[1].networks[0]: 192.0.2.0/24 is clients[0].networks[0] in line 3 too; give it to one client"}},
		{"network named twice", "clients:\n- name: c\n  networks: [192.0.2.1, 192.0.2.1/32]\n", []string{
			"c.yaml:3: clients[0].networks[1]: same as clients[0].networks[0] in line 3; remove one of them"}},
		{"unknown group (GP-23)", group + client + "  groups:\n  - g\n  - gg\n", []string{
			"c.yaml:10: clients[0].groups[1]: no group is named gg; did you mean g?"}},
		{"unknown group, none near", client + "  groups: [lights]\n", []string{
			"c.yaml:4: clients[0].groups[0]: no group is named lights; add it under groups"}},
		{"star and more", group + client + "  groups: [g, \"*\"]\n", []string{
			"c.yaml:8: clients[0].groups[1]: * stands for all groups already; remove it or the other names"}},
		{"dialect (GP-127)", client + "  dialect: draft-7\n", []string{
			"c.yaml:4: clients[0].dialect: draft-7 is not a known value; write one of draft-07, legacy, both"}},
		{"preset of a client of today (GP-127)", client + "  dialect: both\n  preset_timeout: 5s\n", []string{
			"c.yaml:5: clients[0].preset_timeout: only a client with dialect legacy can have it; remove it or write dialect: legacy"}},
		{"preset above the maximum", client + "  dialect: legacy\n  max_timeout: 60\n  preset_timeout: 61\n", []string{
			"c.yaml:6: clients[0].preset_timeout: 1m1s is more than this client's longest timeout, which is 1m; lower it"}},
		{"echo (FP-81)", client + "  echo: maybe\n", []string{
			"c.yaml:4: clients[0].echo: maybe is not a known value; write off or required"}},
		{"response type (GP-33)", client + "  response_type: ack\n", []string{
			"c.yaml:4: clients[0].response_type: ack is not a known value; write one of same, con, non"}},
		{"forward (FP-85)", client + "  forward: [\"*\", \"coap://*.example\", \"coap://a b\", \"coap://2001:db8::/32\", \"coap://10.0.0.1/8\", \"coap://a:0\", \"coap://a:1:*\", \"coap://[fe80::1%lo]\", \"coap://a:b\", \"coap://\"]\n", []string{
			"c.yaml:4: clients[0].forward[0]: * has no scheme; write e.g. coap://192.0.2.7, coap://192.0.2.0/24:*, coap://[2001:db8::]/64, coap://device.example:5683 or coap://*",
			"c.yaml:4: clients[0].forward[1]: *.example has a * that is not the whole host; write e.g. coap://192.0.2.7, coap://192.0.2.0/24:*, coap://[2001:db8::]/64, coap://device.example:5683 or coap://*",
			`c.yaml:4: clients[0].forward[2]: "a b" is neither a host name nor an IP address; write e.g. device.example, 192.0.2.7 or [2001:db8::7]`,
			"c.yaml:4: clients[0].forward[3]: an IPv6 address in a URI needs brackets; write coap://[2001:db8::]/32",
			"c.yaml:4: clients[0].forward[4]: 10.0.0.1/8 has bits set behind its prefix length; write 10.0.0.0/8",
			"c.yaml:4: clients[0].forward[5]: 0 is not the port of a target; write the port, or * for all",
			"c.yaml:4: clients[0].forward[6]: coap://a:1:* has two ports; write e.g. coap://192.0.2.7, coap://192.0.2.0/24:*, coap://[2001:db8::]/64, coap://device.example:5683 or coap://*",
			"c.yaml:4: clients[0].forward[7]: [fe80::1%lo] has a zone, which has no meaning here; leave the zone out",
			"c.yaml:4: clients[0].forward[8]: b is not a port; write a port from 1 to 65535",
			`c.yaml:4: clients[0].forward[9]: "" is neither a host name nor an IP address; write e.g. device.example, 192.0.2.7 or [2001:db8::7]`}},
		{"forward against the address rules (FP-11)", client + "  forward: [\"coap://127.0.0.1\", \"coap://[fe80::]/10\", \"coap://10.0.0.0/8\", \"coap://224.0.1.187\"]\nproxy:\n  allow_private: false\n", []string{
			"c.yaml:4: clients[0].forward[0]: 127.0.0.1 is a loopback address, and proxy.allow_loopback is false; set that to true, or remove the target",
			"c.yaml:4: clients[0].forward[1]: fe80:: is a link-local address, and proxy.allow_link_local is false; set that to true, or remove the target",
			"c.yaml:4: clients[0].forward[2]: 10.0.0.0 is a private address, and proxy.allow_private is false; set that to true, or remove the target",
			"c.yaml:4: clients[0].forward[3]: 224.0.1.187 is a multicast address; name its group in the key groups"}},

		// names.
		{"mixed name (GC-3)", "names:\n  a.example:\n  - 192.0.2.1\n  - 224.0.1.187\n", []string{
			"c.yaml:4: names.a.example[1]: a name has multicast or unicast addresses, not both; give them two names"}},
		{"bad names", "names:\n  a_b: []\n  -c: [192.0.2.1]\n  192.0.2.9: [192.0.2.1]\n  d: [x]\n  e: [192.0.2.1, 192.0.2.1]\n  E: [192.0.2.1]\n  f: [fe80::1%lo]\n", []string{
			"c.yaml:2: names.a_b: no address; write e.g. [192.0.2.7]",
			"c.yaml:3: names.-c: -c is not a host name; write e.g. lights.example, in lower case",
			"c.yaml:4: names.192.0.2.9: 192.0.2.9 is not a host name; write e.g. lights.example, in lower case",
			"c.yaml:5: names.d[0]: x is not an IP address; write e.g. 192.0.2.7 or 2001:db8::7",
			"c.yaml:6: names.e[1]: same as names.e[0] in line 6; remove one of them",
			"c.yaml:7: names.E: name given again in another case; keep one of them",
			"c.yaml:8: names.f[0]: fe80::1%lo has a zone, which has no meaning here; write fe80::1"}},

		// proxy, limits, log.
		{"scope (GC-5)", "proxy:\n  max_scope: organisation-local\n", []string{
			"c.yaml:2: proxy.max_scope: organisation-local is not a known value; write one of interface-local, link-local, realm-local, admin-local, site-local, organization-local, global"}},
		{"client types (FP-31)", "proxy:\n  client_types: non\n", []string{
			"c.yaml:2: proxy.client_types: non is not a known value; write keep or con"}},
		{"identifier (FP-54)", "proxy:\n  identifier: my proxy\n", []string{
			`c.yaml:2: proxy.identifier: "my proxy" cannot stand in a 5.08 response; write at most 64 visible ASCII characters without spaces`}},
		{"own names (FP-8)", "proxy:\n  own_names: [gw.example, 192.0.2.1, \"2001:db8::1\", \"gw:5683\"]\n", []string{
			"c.yaml:2: proxy.own_names[3]: gw:5683 is neither a host name nor an IP address; write e.g. gateway.example"}},
		{"durations", "limits:\n  grace: 5 s\n  response_timeout: 99999999999\n", []string{
			`c.yaml:2: limits.grace: "5 s" is not a duration; write e.g. 90s, 10m or a whole number of seconds`,
			"c.yaml:3: limits.response_timeout: 99999999999 seconds is too long; write e.g. 90s, 10m or a whole number of seconds"}},
		{"bytes", "limits:\n  receive_buffer: 4MB\n", []string{
			"c.yaml:2: limits.receive_buffer: 4MB is not a number of bytes; write e.g. 64KiB, 4MiB or a whole number of bytes"}},
		{"ranges", "limits:\n  grace: -1\n  receive_buffer: 1KiB\n  max_token: 7\n  group_rate: -0.5\n  response_timeout_con: 2h\n", []string{
			"c.yaml:2: limits.grace: -1s is out of range; write a value from 0s to 10m",
			"c.yaml:3: limits.receive_buffer: 1KiB is out of range; write a value from 64KiB to 1GiB",
			"c.yaml:4: limits.max_token: 7 is out of range; write a value from 8 to 256",
			"c.yaml:5: limits.group_rate: -0.5 is out of range; write a value from 0 to 1000000",
			"c.yaml:6: limits.response_timeout_con: 2h is out of range; write a value from 1s to 1h"}},
		{"targets with their own nstart (FP-92)", "limits:\n  nstart_targets:\n  - nstart: 2\n  - target: 192.0.2.1\n    nstart: 0\n  - target: 192.0.2.1:5683\n  - target: 224.0.1.187\n  - target: a:0\n", []string{
			"c.yaml:3: limits.nstart_targets[0].target: missing; write e.g. 192.0.2.7:5683",
			"c.yaml:5: limits.nstart_targets[1].nstart: 0 is out of range; write a value from 1 to 65536",
			"c.yaml:6: limits.nstart_targets[2].target: 192.0.2.1:5683 is limits.nstart_targets[1].target in line 4 too; remove one of them",
			"c.yaml:7: limits.nstart_targets[3].target: 224.0.1.187 is a multicast address; set nstart in its entry under groups",
			"c.yaml:8: limits.nstart_targets[4].target: 0 is not the port of a server; write a port from 1 to 65535"}},
		{"log", "log:\n  level: verbose\n  format: xml\n  output: file\n", []string{
			"c.yaml:2: log.level: verbose is not a known value; write one of debug, info, warn, error",
			"c.yaml:3: log.format: xml is not a known value; write console or json",
			"c.yaml:4: log.output: file is not a known value; write stderr or stdout"}},
		{"option numbers (GP-1)", "proxy:\n  option_numbers:\n    multicast_timeout: 3\n    legacy_timeout: 256\n    reply_from: 250\n    group_etag: 92\n    response_forwarding: 65536\n", []string{
			"c.yaml:3: proxy.option_numbers.multicast_timeout: 3 is critical, and this option is elective, so its number is even; write another, e.g. 2",
			"c.yaml:4: proxy.option_numbers.legacy_timeout: 256 is safe to forward, and this option is not; write 0 for none, or another",
			"c.yaml:5: proxy.option_numbers.reply_from: 250 is unsafe to forward, and this option is safe; write another, e.g. 248",
			"c.yaml:6: proxy.option_numbers.group_etag: 92 is not in the cache key, and this option is; write another, e.g. 24",
			"c.yaml:7: proxy.option_numbers.response_forwarding: 65536 is out of range; write a value from 0 to 65535"}},
		{"option numbers taken (GP-1)", "proxy:\n  option_numbers:\n    legacy_timeout: 2\n    reply_from: 96\n    group_etag: 4\n", []string{
			"c.yaml:3: proxy.option_numbers.legacy_timeout: 2 is the number of proxy.option_numbers.multicast_timeout too; write another number",
			"c.yaml:4: proxy.option_numbers.reply_from: 96 is the number of proxy.option_numbers.response_forwarding too; write another number",
			"c.yaml:5: proxy.option_numbers.group_etag: 4 is the number of ETag; write another, e.g. 24"}},

		// Several at once, in line order, each told once.
		{"several problems", "log:\n  level: loud\nlisten:\n- coaps://127.0.0.1\nclients:\n- name: c\n  networks: [x]\n  groups: [lights]\ngroups:\n- name: [lights]\n  uri: coap://192.0.2.1\n  interfaces: [eth7]\n", []string{
			"c.yaml:2: log.level: loud is not a known value; write one of debug, info, warn, error",
			"c.yaml:4: listen[0]: coaps needs the keys of its clients, or a certificate; write credentials: {psk: FILE}, or {certificate: FILE, key: FILE}",
			"c.yaml:7: clients[0].networks[0]: x is not a network; write e.g. 192.0.2.0/24, 2001:db8::/64 or a single address",
			"c.yaml:10: groups[0].name: must be text, not a list",
			"c.yaml:11: groups[0].uri: 192.0.2.1 is not a multicast address; write e.g. coap://224.0.1.187",
			"c.yaml:12: groups[0].interfaces[0]: this host has no interface eth7; write one that `ip link` lists"}},
		{"unreadable groups say nothing about references", client + "  groups: [lights]\ngroups: lights\n", []string{
			`c.yaml:5: groups: must be a list, not the text "lights"`}},
		{"unreadable maximum says nothing about others", "proxy:\n  max_timeout: long\n" + group + "  max_timeout: 20m\n", []string{
			"c.yaml:2: proxy.max_timeout: long is not a duration; write e.g. 90s, 10m or a whole number of seconds"}},
		{"bad maximum says nothing about heirs (GP-29)", "proxy:\n  max_timeout: 48h\n" + group + client, []string{
			"c.yaml:2: proxy.max_timeout: 48h is out of range; write a value from 1s to 24h"}},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			c, err := parse(tt.text)
			require.Nil(t, c)
			var problems config.Problems
			require.ErrorAs(t, err, &problems)
			require.Equal(t, strings.Join(tt.want, "\n"), err.Error())
			require.Len(t, problems, len(tt.want))
		})
	}
}

func TestProblemString(t *testing.T) {
	p := config.Problem{File: "config.yaml", Line: 12, Key: "groups[0].uri", Message: "192.0.2.1 is not a multicast address", Hint: "write e.g. coap://224.0.1.187"}
	require.Equal(t, "config.yaml:12: groups[0].uri: 192.0.2.1 is not a multicast address; write e.g. coap://224.0.1.187", p.String())
	require.Equal(t, "wrong", config.Problem{Message: "wrong"}.String())
	require.Equal(t, "log.level: wrong", config.Problem{Key: "log.level", Message: "wrong"}.String())
}

// An alias stands for what it names, but its problems have the line where it is
// used, and aliases of aliases cannot blow up.
func TestParseAliases(t *testing.T) {
	c, err := parse("names:\n  a.example: &a [192.0.2.1]\n  b.example: *a\n")
	require.NoError(t, err)
	require.Equal(t, c.Names["a.example"], c.Names["b.example"])

	_, err = parse("proxy:\n  max_timeout: &t 0s\nlimits:\n  response_timeout: *t\n")
	require.EqualError(t, err, "c.yaml:2: proxy.max_timeout: 0s is out of range; write a value from 1s to 24h\n"+
		"c.yaml:4: limits.response_timeout: 0s is out of range; write a value from 1s to 1h")

	bomb := "clients:\n- &c\n  name: c\n  networks: [" + strings.Repeat("192.0.2.1,", 1000) + "]\n" + strings.Repeat("- *c\n", 1000)
	_, err = parse(bomb)
	require.ErrorContains(t, err, "the file has more than 50000 keys and values up to here; write fewer, or use fewer aliases")
	var problems config.Problems
	require.ErrorAs(t, err, &problems)
	require.Len(t, problems, 1)

	var many strings.Builder
	for i := range 50_001 {
		fmt.Fprintf(&many, "k%d:\n", i)
	}
	_, err = parse(many.String())
	require.ErrorAs(t, err, &problems)
	require.Equal(t, "c.yaml:50000: the file has more than 50000 keys and values up to here; write fewer, or use fewer aliases",
		problems[len(problems)-1].String())

	_, err = parse("clients: &c\n- *c\n")
	require.EqualError(t, err, "c.yaml:2: clients[0]: must be a mapping of keys to values, not a list")
}

func TestLoad(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "x.yaml")
	require.NoError(t, os.WriteFile(path, []byte("log:\n  level: loud\n"), 0o600))
	_, err := config.Load(path)
	require.EqualError(t, err, path+":2: log.level: loud is not a known value; write one of debug, info, warn, error")

	require.NoError(t, os.WriteFile(path, []byte(group), 0o600))
	c, err := config.Load(path, config.WithInterfaces(hostWith("lo")))
	require.NoError(t, err)
	require.Equal(t, "g", c.Groups[0].Name)

	_, err = config.Load(filepath.Join(dir, "none.yaml"))
	require.ErrorIs(t, err, os.ErrNotExist)
	var problems config.Problems
	require.NotErrorAs(t, err, &problems)

	_, err = config.Load(dir)
	require.ErrorContains(t, err, "read configuration: ")

	require.NoError(t, os.WriteFile(path, make([]byte, 1<<21), 0o600))
	_, err = config.Load(path)
	require.EqualError(t, err, path+": the file is larger than 1MiB; write a shorter configuration")
}
