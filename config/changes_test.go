package config_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/config"
)

func TestChanges(t *testing.T) {
	const base = `
listen: [coap://127.0.0.1:5683, coap://127.0.0.1:0, coap://127.0.0.1:0]
clients:
  - {name: a, networks: [192.0.2.0/24], groups: [g]}
  - {name: b, networks: [198.51.100.0/24]}
groups:
  - {name: g, uri: "coap://[ff05::1]", interfaces: [eth0]}
names: {x.example: [192.0.2.7]}
`
	for _, tc := range []struct {
		name, after string
		want        []string
	}{
		{"nothing", base, nil},
		{"default written out", base + "log: {level: info}\n", nil},
		{"a value", base + "log: {level: debug}\nlimits: {nstart_targets: [{target: 192.0.2.7, nstart: 4}]}\n", []string{"limits.nstart_targets changed", "log.level changed"}},
		{"listeners, entries, names", `
listen: [coap://127.0.0.1:0, coap://127.0.0.1:5684]
clients:
  - {name: c, networks: [203.0.113.0/24]}
  - {name: b, networks: [198.51.100.0/25]}
groups:
  - {name: g, uri: "coap://[ff05::1]", interfaces: [eth0]}
names: {x.example: [192.0.2.8]}
`, []string{"listen coap://127.0.0.1:5684 added", "listen coap://127.0.0.1:5683 removed", "listen coap://127.0.0.1:0 (2) removed",
			"clients.c added", "clients.b changed", "clients.a removed", "names changed"}},
		{"order alone", `
listen: [coap://127.0.0.1:0, coap://127.0.0.1:5683, coap://127.0.0.1:0]
clients:
  - {name: b, networks: [198.51.100.0/24]}
  - {name: a, networks: [192.0.2.0/24], groups: [g]}
groups:
  - {name: g, uri: "coap://[ff05::1]", interfaces: [eth0]}
names: {x.example: [192.0.2.7]}
`, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			parse := func(text string) *config.Config {
				c, err := config.Parse("test", []byte(text), config.WithInterfaces(nil))
				require.NoError(t, err)
				return c
			}
			var got []string
			for _, c := range config.Changes(parse(base), parse(tc.after)) {
				got = append(got, fmt.Sprint(c))
			}
			require.Equal(t, tc.want, got)
		})
	}
}
