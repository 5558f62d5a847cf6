package httpbridge

import (
	"encoding/json"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

type openAPIOperation struct {
	Parameters []struct {
		Ref string `json:"$ref"`
	} `json:"parameters"`
	Responses map[string]json.RawMessage `json:"responses"`
}

func openAPIPaths(t *testing.T) (document map[string]any, paths map[string]map[string]openAPIOperation) {
	f, _ := newFront(t, func(c *Config) { c.Clients = &Authentication{} })
	w := do(f, "GET", "/openapi.json", "") // for everybody
	require.Equal(t, 200, w.Code)
	require.Equal(t, "application/openapi+json", w.Header().Get("Content-Type"))
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &document))
	var raw struct {
		Paths map[string]map[string]json.RawMessage `json:"paths"`
	}
	require.NoError(t, json.Unmarshal(w.Body.Bytes(), &raw))
	paths = make(map[string]map[string]openAPIOperation)
	for path, members := range raw.Paths {
		paths[path] = make(map[string]openAPIOperation)
		for name, member := range members {
			if name == "parameters" {
				continue
			}
			var o openAPIOperation
			require.NoError(t, json.Unmarshal(member, &o))
			paths[path][name] = o
		}
	}
	return document, paths
}

// The methods that the description has are those that the bridge carries out.
func TestOpenAPIMethods(t *testing.T) {
	_, paths := openAPIPaths(t)
	targets := map[string]string{"/hc/{target}": someTarget, "/hc/": "/hc/?target_uri=coap://192.0.2.7/temp",
		"/.well-known/core": corePath, "/openapi.json": openAPIPath, "/session": sessionPath}
	require.ElementsMatch(t, slices.Collect(maps.Keys(targets)), slices.Collect(maps.Keys(paths)))
	for path, target := range targets {
		for _, method := range []string{"GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "QUERY"} {
			f, _ := newFront(t, nil)
			status := do(f, method, target, "").Code
			_, described := paths[path][strings.ToLower(method)]
			if method == "HEAD" && !strings.HasPrefix(path, "/hc") && path != "/session" {
				described = true // goes with GET
			}
			if path == "/session" {
				require.Equal(t, described, status != 405, "%s %s: %d", method, path, status)
				continue
			}
			require.Equal(t, described, status == 200, "%s %s: %d", method, path, status)
		}
	}
}

// Every status that the code can give is described, and no other.
func TestOpenAPIStatus(t *testing.T) {
	_, paths := openAPIPaths(t)
	possible := map[string]bool{}
	note := func(status int) { possible[strconv.Itoa(status)] = true }
	f, _ := newFront(t, nil)
	for code := range 256 {
		if !wire.IsResponse(codes.Code(code)) {
			continue
		}
		for _, x := range []translation{{}, {reading: true, listed: [][]byte{{1}}}, {critical: true}} {
			x.front, x.place = f, &place{}
			a, _ := x.of(&exchange.Response{Code: codes.Code(code), Options: message.Options{option(wire.ETag, "\x01")}}, false)
			note(a.status)
		}
	}
	for _, status := range failureStatus {
		note(status)
	}
	for _, status := range statusesInSource(t) {
		note(status)
	}
	delete(possible, "405") // of the resources of the bridge itself
	want := slices.Sorted(maps.Keys(possible))
	for _, path := range []string{"/hc/{target}", "/hc/"} {
		for method, o := range paths[path] {
			require.Equal(t, want, slices.Sorted(maps.Keys(o.Responses)), "%s %s", method, path)
		}
	}
	require.Contains(t, paths[corePath]["get"].Responses, "405")
}

// statusesInSource are the status codes that the source of this package names.
func statusesInSource(t *testing.T) []int {
	names := map[string]int{}
	for status := 100; status < 600; status++ {
		if text := http.StatusText(status); text != "" {
			names["Status"+strings.NewReplacer(" ", "", "-", "", "'", "").Replace(text)] = status
		}
	}
	names["StatusProxyAuthRequired"], names["StatusRequestURITooLong"] = 407, 414
	entries, err := os.ReadDir(".")
	require.NoError(t, err)
	var found []int
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".go") || strings.HasSuffix(e.Name(), "_test.go") ||
			strings.HasPrefix(e.Name(), "leg") { // the other direction
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), e.Name(), nil, 0)
		require.NoError(t, err)
		ast.Inspect(file, func(n ast.Node) bool {
			s, ok := n.(*ast.SelectorExpr)
			if !ok {
				return true
			}
			if pkg, ok := s.X.(*ast.Ident); ok && pkg.Name == "http" && strings.HasPrefix(s.Sel.Name, "Status") && s.Sel.Name != "StatusText" {
				status, known := names[s.Sel.Name]
				require.True(t, known, s.Sel.Name)
				found = append(found, status)
			}
			return true
		})
	}
	require.NotEmpty(t, found)
	return found
}

// The documents and fields that the description has are those that are written
// and read.
func TestOpenAPISchemas(t *testing.T) {
	document, paths := openAPIPaths(t)
	components := document["components"].(map[string]any)
	schemas := components["schemas"].(map[string]any)
	for name, of := range map[string]reflect.Type{"Response": reflect.TypeFor[element](), "Event": reflect.TypeFor[event](), "Problem": reflect.TypeFor[problemDocument]()} {
		var fields []string
		for _, field := range reflect.VisibleFields(of) {
			if name, _, _ := strings.Cut(field.Tag.Get("json"), ","); name != "" {
				fields = append(fields, name)
			}
		}
		properties := schemas[name].(map[string]any)["properties"].(map[string]any)
		require.ElementsMatch(t, fields, slices.Collect(maps.Keys(properties)))
	}
	parameters := slices.Sorted(maps.Keys(components["parameters"].(map[string]any)))
	require.Equal(t, []string{"Accept", "Group-ETag", "If-Match", "If-None-Match", "Multicast-Timeout", "Prefer"}, parameters)
	for _, o := range paths["/hc/{target}"] {
		require.Len(t, o.Parameters, len(parameters))
	}
	types := components["responses"].(map[string]any)["Content"].(map[string]any)["content"].(map[string]any)
	for _, mediaType := range slices.Sorted(maps.Keys(types)) {
		if mediaType == "*/*" {
			continue
		}
		f, chain := newFront(t, nil)
		chain.serve = answers(senML(serverA, `[{"n":"a","v":1}]`))
		got := do(f, "GET", groupTarget, "", "Multicast-Timeout: 2", "Accept: "+mediaType).Header().Get("Content-Type")
		require.True(t, strings.HasPrefix(got, mediaType), got)
	}
}
