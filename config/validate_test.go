package config_test

import (
	"fmt"
	"math"
	"net"
	"net/netip"
	"reflect"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/config"
)

// complete returns a valid configuration with one entry in each list.
func complete(t *testing.T) *config.Config {
	t.Helper()
	c, err := parse(group + client + "  dialect: legacy\n  preset_timeout: 5s\nlimits:\n  nstart_targets:\n  - target: 192.0.2.7\n")
	require.NoError(t, err)
	return c
}

// Every number, duration and choice of the schema has bounds: whatever field is
// set to the extremes of its type, Validate names it.
func TestValidateBounds(t *testing.T) {
	var keys []string
	numbers(reflect.ValueOf(complete(t)).Elem(), "", func(key string, _ reflect.Value) { keys = append(keys, key) })
	require.Greater(t, len(keys), 45)
	for _, key := range keys {
		for _, extreme := range []string{"low", "high"} {
			t.Run(key+" "+extreme, func(t *testing.T) {
				c := complete(t)
				numbers(reflect.ValueOf(c).Elem(), "", func(k string, v reflect.Value) {
					if k == key {
						set(v, extreme == "high")
					}
				})
				err := c.Validate(config.WithInterfaces(nil))
				var problems config.Problems
				require.ErrorAs(t, err, &problems)
				found := false
				for _, p := range problems {
					found = found || p.Key == key
					require.NotEmpty(t, p.Hint)
				}
				require.True(t, found, "no problem names %s: %v", key, err)
			})
		}
	}
}

// numbers calls visit for the fields of v that have a range.
func numbers(v reflect.Value, key string, visit func(string, reflect.Value)) {
	switch v.Interface().(type) {
	case config.Listener, config.GroupURI, config.HostPort, config.GroupNames, config.Target, config.Place:
		return // not numbers, and tested on their own
	}
	switch v.Kind() {
	case reflect.Struct:
		for i := range v.NumField() {
			if tag := v.Type().Field(i).Tag.Get("yaml"); tag != "" {
				path := tag
				if key != "" {
					path = key + "." + tag
				}
				numbers(v.Field(i), path, visit)
			}
		}
	case reflect.Slice:
		for i := range v.Len() {
			numbers(v.Index(i), fmt.Sprintf("%s[%d]", key, i), visit)
		}
	case reflect.Int, reflect.Int64, reflect.Float64, reflect.Uint16:
		visit(key, v)
	case reflect.String:
		if v.Type() != reflect.TypeFor[string]() {
			visit(key, v)
		}
	}
}

// set gives v a value that no field may have.
func set(v reflect.Value, high bool) {
	switch v.Kind() {
	case reflect.Int, reflect.Int64:
		v.SetInt(-int64(time.Hour))
		if high {
			v.SetInt(math.MaxInt64 / int64(time.Second) * int64(time.Second))
		}
	case reflect.Float64:
		v.SetFloat(-1)
		if high {
			v.SetFloat(math.NaN())
		}
	case reflect.Uint16:
		v.SetUint(1)
		if high {
			v.SetUint(math.MaxUint16)
		}
	case reflect.String:
		v.SetString("")
		if high {
			v.SetString("nonsense")
		}
	}
}

// A configuration made in code has no lines, and may hold what no file can.
func TestValidateMadeInCode(t *testing.T) {
	require.NoError(t, config.Default().Validate())

	c := config.Default()
	c.Listen = []config.Listener{{}, {Scheme: "http"}, {Scheme: "coap"}}
	c.Names = map[string][]netip.Addr{"Upper.example": {netip.MustParseAddr("192.0.2.1")}}
	client := config.DefaultClient()
	client.Networks = []netip.Prefix{{}}
	client.Forward = []config.Target{{Scheme: "coap"}, {Scheme: "coap", Host: "a"}, {Host: "a"}}
	group := config.DefaultGroup()
	group.Methods = nil
	group.URI.Addr = netip.MustParseAddr("192.0.2.1")
	group.URI.Port = 5683
	c.Clients, c.Groups = []config.Client{client}, []config.Group{group}
	require.EqualError(t, c.Validate(), `listen[0]: "" is not supported by this version; write a coap:// URI
listen[1]: no address; write e.g. coap://127.0.0.1:5683
listen[2]: no address; write e.g. coap://127.0.0.1:5683
names.Upper.example: Upper.example is not a host name; write e.g. lights.example, in lower case
groups[0].name: missing; give the entry a name
groups[0].uri: 192.0.2.1 is not a multicast address; write e.g. coap://224.0.1.187
groups[0].interfaces: missing; write the interfaces to send on, e.g. [eth0]
groups[0].methods: missing; write e.g. [GET, FETCH]
clients[0].name: missing; give the entry a name
clients[0].networks[0]: not a network; write e.g. 192.0.2.0/24
clients[0].forward[0]: no host; write e.g. coap://192.0.2.7 or coap://*
clients[0].forward[1]: no port; write the port, or * for all
clients[0].forward[2]: "" is not a known scheme; write e.g. coap://192.0.2.7`)
}

// Each interface is looked up once, however often it is named.
func TestValidateLooksUpOnce(t *testing.T) {
	calls := map[string]int{}
	lookup := hostWith("lo")
	text := group + "- name: h\n  uri: coap://224.0.1.188\n  interfaces: [lo]\n"
	_, err := config.Parse("c.yaml", []byte(text), config.WithInterfaces(func(name string) (i *net.Interface, err error) {
		calls[name]++
		return lookup(name)
	}))
	require.NoError(t, err)
	require.Equal(t, map[string]int{"lo": 1}, calls)
}
