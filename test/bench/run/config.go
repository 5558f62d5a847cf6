package main

import (
	"fmt"
	"net/netip"
	"os"
)

// nstart is the bound on outstanding requests to the origin and the group (FP-92): high enough not to matter,
// since the other proxies have none.
const nstart = 4096

// writeConfig writes a configuration for the benchmark: everybody on the loopback may do what the load does, and
// no limit made for the real world stands in its way.
func writeConfig(file string, sc *scenario, listen, source, private netip.AddrPort) error {
	limit := nstart
	if sc.nstart > 0 {
		limit = sc.nstart
	}
	group := source
	if !source.Addr().IsMulticast() {
		group = netip.AddrPortFrom(netip.AddrFrom4([4]byte{224, 0, 1, 187}), source.Port())
	}
	listeners := fmt.Sprintf("  - coap://%v\n", listen)
	if sc.http {
		listeners = fmt.Sprintf("  - coap://127.0.0.1:0\n  - http://%v\n", listen)
	}
	metrics := ""
	if sc.observers > 0 {
		metrics = fmt.Sprintf("metrics: {listen: %q, pprof: true}\n", private)
	}
	text := fmt.Sprintf(`listen:
%[1]sclients:
  - name: load
    networks: [127.0.0.0/8]
    groups: [bench]
    forward: ["coap://127.0.0.1:*"]
    max_exchanges: 65536
    max_observations: 65536
groups:
  - name: bench
    uri: coap://%[2]v
    interfaces: [lo]
    loopback: true
    nstart: %[3]d
    queue: 65536
    leisure: 1s
    probing_rate: 0
proxy:
  allow_loopback: true
  client_types: keep
cache:
  enabled: %[5]t
control:
  socket: off
http:
  limits: {exchanges: 65536, client_exchanges: 65536, connections: 65536, peer_connections: 65536}
limits:
  nstart_targets:
    - target: 127.0.0.1:%[4]d
      nstart: %[3]d
  upstream_queue: 65536
  observations: 65536
  grace: 0s
log:
  level: warn
%[6]s`, listeners, group, limit, source.Port(), sc.cache, metrics)
	return os.WriteFile(file, []byte(text), 0o600)
}
