package config_test

import (
	"fmt"
	"net/netip"
	"os"
	"reflect"
	"regexp"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"coapproxy/config"
)

func cmpString(v any) string { return fmt.Sprint(v) }

// The example that the binary carries is the one at the top of the repository;
// `go generate ./config` makes it so.
func TestExampleFile(t *testing.T) {
	file, err := os.ReadFile("../config.example.yaml")
	require.NoError(t, err)
	require.Equal(t, string(file), string(config.Example()))
}

// Every value the example shows is the default, apart from the entries of its
// lists, which are default entries with what has no default.
func TestExampleShowsDefaults(t *testing.T) {
	got, err := config.Parse("config.example.yaml", config.Example())
	require.NoError(t, err, "must be valid on every host: lo is the only interface")

	want := config.Default()
	c := config.DefaultClient()
	c.Name = "local"
	c.Networks = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	c.Groups = config.GroupNames{"all-coap-nodes"}
	c.MaxTimeout = want.Proxy.MaxTimeout // GP-29
	want.Clients = []config.Client{c}
	g := config.DefaultGroup()
	g.Name = "all-coap-nodes"
	g.URI = config.GroupURI{HostPort: config.HostPort{Addr: netip.MustParseAddr("224.0.1.187"), Port: 5683}}
	g.Interfaces = []string{"lo"}
	g.MaxTimeout = want.Proxy.MaxTimeout // GP-29
	want.Groups = []config.Group{g}
	route := config.DefaultRoute()
	route.Name, route.Host, route.Listen = "nodes", []string{"nodes.example"}, []config.Listener{}
	route.To = config.RouteTarget{Scheme: "coap", HostPort: g.URI.HostPort}
	want.Routes = []config.Route{route}
	same(t, want, got)
}

// Every key of the schema is in the example, below a comment.
func TestExampleIsComplete(t *testing.T) {
	var doc yaml.Node
	require.NoError(t, yaml.Unmarshal(config.Example(), &doc))
	shown := map[string]bool{}
	collect(doc.Content[0], "", shown)

	var want []string
	schema(reflect.TypeFor[config.Config](), "", &want)
	require.Greater(t, len(want), 70)
	for _, key := range want {
		if strings.HasPrefix(key, "limits.nstart_targets.") || strings.HasPrefix(key, "next_hop.") || strings.HasPrefix(key, "oscore.servers.") {
			name := key[strings.LastIndexByte(key, '.')+1:]
			require.Regexp(t, regexp.MustCompile(`(?m)^ *# +(- )?`+name+`: \S`), string(config.Example()), key)
			continue
		}
		require.True(t, shown[key], "%s is missing in the example", key)
	}

	commented := false
	for _, line := range strings.Split(string(config.Example()), "\n") {
		switch text := strings.TrimLeft(strings.TrimPrefix(strings.TrimSpace(line), "- "), " "); {
		case strings.HasPrefix(text, "#"):
			commented = true
		case text == "":
			commented = false
		case !strings.HasSuffix(text, ":"): // one comment may stand above a few related keys
			require.True(t, commented, "no comment above: %s", line)
		}
	}
}

// collect adds the dotted keys of n, without list numbers, to keys.
func collect(n *yaml.Node, key string, keys map[string]bool) {
	switch n.Kind {
	case yaml.SequenceNode:
		for _, item := range n.Content {
			collect(item, key, keys)
		}
	case yaml.MappingNode:
		for i := 0; i < len(n.Content); i += 2 {
			path := strings.TrimPrefix(key+"."+n.Content[i].Value, ".")
			keys[path] = true
			collect(n.Content[i+1], path, keys)
		}
	}
}

// schema appends the dotted keys of t, without list numbers, to keys.
func schema(t reflect.Type, key string, keys *[]string) {
	for t.Kind() == reflect.Slice {
		t = t.Elem()
	}
	if t.Kind() != reflect.Struct {
		return
	}
	for i := range t.NumField() {
		if tag := t.Field(i).Tag.Get("yaml"); tag != "" {
			path := strings.TrimPrefix(key+"."+tag, ".")
			*keys = append(*keys, path)
			schema(t.Field(i).Type, path, keys)
		}
	}
}
