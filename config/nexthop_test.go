package config_test

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/config"
)

const chained = `
groups:
- name: far
  uri: coap://[ff05::fd]
- name: near
  uri: coap://[ff05::1:fd]
  interfaces: [lo]
- name: named
  uri: coap://lights.example
names:
  lights.example: [ff05::2:fd]
next_hop:
- name: floor2
  uri: coap://192.0.2.9
  backup: coaps+tcp://proxy.example
  targets: ["coap://[ff05::]/16", "coap://198.51.100.0/24:*", "coap://boiler.example:7", "coap://*.floor2.example:*", "coaps://*:*"]
  except: ["coap://198.51.100.7:*"]
  dialect: legacy
  form: proxy-scheme
  max_timeout: 30s
  margin: 2
  timeout: 5s
  retry_max: 2m
  nstart: 4
- name: rest
  uri: coap+ws://[2001:db8::9]:8080/
  targets: ["*"]
  except: ["coap://*", "http://*"]
`

// FP-39: which targets go to which next proxy.
func TestNextHop(t *testing.T) {
	c, err := parse(chained)
	require.NoError(t, err)
	require.Len(t, c.NextHop, 2)
	h := c.NextHop[0]
	require.Equal(t, config.HopURI{Scheme: "coap", HostPort: config.HostPort{Addr: netip.MustParseAddr("192.0.2.9"), Port: 5683}}, h.URI)
	require.Equal(t, config.HopURI{Scheme: "coaps+tcp", HostPort: config.HostPort{Host: "proxy.example", Port: 5684}}, h.Backup)
	require.Equal(t, "coap+ws://[2001:db8::9]:8080", c.NextHop[1].URI.String())
	require.Equal(t, config.DialectLegacy, h.Dialect)
	require.Equal(t, config.FormProxyScheme, h.Form)
	require.Equal(t, config.FormClient, c.NextHop[1].Form)
	require.Equal(t, []time.Duration{30 * time.Second, 2 * time.Second, 5 * time.Second, 2 * time.Minute},
		[]time.Duration{h.MaxTimeout, h.Margin, h.Timeout, h.RetryMax})
	require.Equal(t, 10*time.Second, c.NextHop[1].Timeout)

	for _, tt := range []struct {
		scheme, host, addr string
		port               uint16
		want               string
	}{
		{"coap", "", "ff05::fd", 5683, "floor2"},
		{"coap", "", "ff05::fd%3", 5683, "floor2"},
		{"coap", "", "ff05::1:fd", 5683, ""}, // a group with interfaces is reached from here
		{"coap", "lights.example", "", 5683, ""},
		{"coap", "lights.example", "ff05::2:fd", 5683, "floor2"},
		{"coap", "", "ff02::fd", 5683, ""},
		{"coap", "", "198.51.100.1", 61616, "floor2"},
		{"coap", "", "198.51.100.7", 61616, "rest"},
		{"coap", "", "198.51.100.7", 5683, ""},
		{"coap", "boiler.example", "", 7, "floor2"},
		{"coap", "boiler.example", "", 5683, ""},
		{"coap", "a.floor2.example", "", 1, "floor2"},
		{"coap", "floor2.example", "", 1, "rest"},
		{"coaps", "anything", "", 99, "floor2"},
		{"coap+tcp", "", "192.0.2.77", 5683, "rest"},
		{"http", "www.example", "", 80, ""},
		{"http", "www.example", "", 8080, "rest"},
	} {
		var addr netip.Addr
		if tt.addr != "" {
			addr = netip.MustParseAddr(tt.addr)
		}
		require.Equal(t, tt.want, c.NextHopOf(tt.scheme, tt.host, addr, tt.port), "%+v", tt)
	}
	for _, h := range c.NextHop {
		for _, v := range append(h.Targets, h.Except...) {
			again, err := parse("next_hop:\n- name: x\n  uri: coap://192.0.2.9\n  targets: [\"" + v.String() + "\"]\n")
			require.NoError(t, err)
			require.Equal(t, v, again.NextHop[0].Targets[0])
		}
	}
}

func TestNextHopProblems(t *testing.T) {
	_, err := parse(`listen: ["coap://192.0.2.1"]
groups:
- name: lost
  uri: coap://[ff05::99]
next_hop:
- targets: []
- name: a
  uri: tftp://192.0.2.9
  targets: ["192.0.2.7", "gopher://*", "coap://a*", "coap://*.-", "coap://10.0.0.1/8", "coap://*:0", "coap://x:1:*", "coap://[fe80::1%lo]"]
- name: a
  uri: coap://192.0.2.1
  backup: coap://192.0.2.1
  targets: ["*", "*"]
  dialect: both
  form: cri
  max_timeout: 1500ms
  margin: 2h
  timeout: 1ms
  retry_max: 0
  nstart: 0
- name: b
  uri: coap://[ff05::1]
  backup: coap://[fe80::1]
  targets: ["coap://[ff05::fd]"]
- name: c
  uri: 192.0.2.9
  targets: ["coap://[ff05::fd]"]
  backup: coap://192.0.2.9:0
`)
	require.Error(t, err)
	require.Equal(t, strings.TrimSpace(`
c.yaml:6: next_hop[0].name: missing; give the entry a name
c.yaml:6: next_hop[0].uri: missing; write e.g. coap://192.0.2.9
c.yaml:6: next_hop[0].targets: missing; write whose requests go there, e.g. ["coap://[ff05::fd]", "coap://192.0.2.0/24:*"]
c.yaml:8: next_hop[1].uri: tftp is no scheme by which a CoAP proxy is reached; write e.g. coap://192.0.2.9, coaps://proxy.example or coap+tcp://[2001:db8::9]:5683
c.yaml:9: next_hop[1].targets[0]: 192.0.2.7 has no scheme; write e.g. coap://192.0.2.0/24:*, coap://[ff05::fd], coap://*.floor2.example, coaps://*:* or "*"
c.yaml:9: next_hop[1].targets[1]: gopher is not a known scheme; write e.g. coap://192.0.2.0/24:*, coap://[ff05::fd], coap://*.floor2.example, coaps://*:* or "*"
c.yaml:9: next_hop[1].targets[2]: a* has a * that is not the whole host or its first label; write e.g. coap://192.0.2.0/24:*, coap://[ff05::fd], coap://*.floor2.example, coaps://*:* or "*"
c.yaml:9: next_hop[1].targets[3]: - is not the name of a domain; write e.g. coap://192.0.2.0/24:*, coap://[ff05::fd], coap://*.floor2.example, coaps://*:* or "*"
c.yaml:9: next_hop[1].targets[4]: 10.0.0.1/8 has bits set behind its prefix length; write 10.0.0.0/8
c.yaml:9: next_hop[1].targets[5]: 0 is not the port of a target; write the port, or * for all
c.yaml:9: next_hop[1].targets[6]: coap://x:1:* has two ports; write e.g. coap://192.0.2.0/24:*, coap://[ff05::fd], coap://*.floor2.example, coaps://*:* or "*"
c.yaml:9: next_hop[1].targets[7]: [fe80::1%lo] has a zone, which has no meaning here; leave the zone out
c.yaml:10: next_hop[2].name: a is the name of next_hop[1].name in line 7 too; give each its own name
c.yaml:11: next_hop[2].uri: coap://192.0.2.1:5683 is this proxy itself; write the proxy behind it
c.yaml:12: next_hop[2].backup: coap://192.0.2.1:5683 is this proxy itself; write the proxy behind it
c.yaml:12: next_hop[2].backup: the same as uri; write another proxy, or remove it
c.yaml:13: next_hop[2].targets[1]: same as next_hop[2].targets[0] in line 13; remove one of them
c.yaml:14: next_hop[2].dialect: both is not a known value; write draft-07 or legacy
c.yaml:15: next_hop[2].form: cri is not a known value; write one of client, proxy-uri, proxy-scheme
c.yaml:16: next_hop[2].max_timeout: 1.5s is not a whole number of seconds; write e.g. 2s
c.yaml:17: next_hop[2].margin: 2h is out of range; write a value from 0s to 1m
c.yaml:18: next_hop[2].timeout: 1ms is out of range; write a value from 1s to 5m
c.yaml:19: next_hop[2].retry_max: 0s is out of range; write a value from 1s to 1h
c.yaml:20: next_hop[2].nstart: 0 is out of range; write a value from 1 to 65536
c.yaml:22: next_hop[3].uri: ff05::1 is not the address of a proxy; write e.g. coap://192.0.2.9
c.yaml:23: next_hop[3].backup: fe80::1 needs its interface; write e.g. coap://[fe80::9%eth0]
c.yaml:26: next_hop[4].uri: 192.0.2.9 has no scheme; write e.g. coap://192.0.2.9, coaps://proxy.example or coap+tcp://[2001:db8::9]:5683
c.yaml:28: next_hop[4].backup: 0 is not the port of a proxy; write a port from 1 to 65535
`), err.Error())
}
