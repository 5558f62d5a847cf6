package config_test

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// Nobody has the keys of somebody else, and every context has a file (OC-3, OH-2, OH-20).
func TestOSCOREProblems(t *testing.T) {
	_, err := parse(`clients:
- name: a
  oscore: [one, .hidden, two]
- name: b
  oscore: [one]
next_hop:
- name: n
  uri: coap://192.0.2.9
  backup: coap://192.0.2.10
  targets: ["coap://n.example"]
  oscore: three
- name: m
  uri: coap://192.0.2.11
  targets: ["coap://m.example"]
  oscore: two
oscore:
  max_layers: 9
  options: [0, 2049, 2049]
  servers:
  - target: 192.0.2.7:5683
    context: three
  - target: 192.0.2.7:5683
    context: a/b
  - target: 224.0.1.187:5683
    context: four
`)
	require.Error(t, err)
	require.Equal(t, strings.TrimSpace(`
c.yaml:3: clients[0].oscore[1]: .hidden is not the name of a context; write the name of a file in oscore.contexts without its .json
c.yaml:5: clients[1].oscore[0]: one is clients[0].oscore[0] in line 3 too; give it to one client
c.yaml:11: next_hop[0].oscore: given together with backup; give the second proxy a context and an entry of its own: two proxies must not have the same keys
c.yaml:15: next_hop[1].oscore: two is clients[0].oscore[2] in line 3 too; make a context for each
c.yaml:17: oscore.max_layers: 9 is out of range; write a value from 1 to 8
c.yaml:18: oscore.options[2]: same as oscore.options[1] in line 18; remove one of them
c.yaml:18: oscore.options[0]: 0 is out of range; write a value from 1 to 65535
c.yaml:21: oscore.servers[0].context: three is next_hop[0].oscore in line 11 too; make a context for each
c.yaml:22: oscore.servers[1].target: 192.0.2.7:5683 is oscore.servers[0].target in line 20 too; remove one of them
c.yaml:23: oscore.servers[1].context: a/b is not the name of a context; write the name of a file in oscore.contexts without its .json
c.yaml:24: oscore.servers[2].target: not the address of a server; write e.g. 192.0.2.7:5683
`), err.Error())
}
