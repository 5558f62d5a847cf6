package config

import (
	"fmt"
	"math"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

// maxValues bounds the keys and values decoded from one file, those that aliases
// repeat included.
const maxValues = 50_000

// decoder fills structs from YAML nodes. It descends only where the structs do,
// so their depth bounds its own, even where an alias contains itself.
type decoder struct {
	source   source
	problems Problems

	values    int
	exhausted bool // maxValues was reached and the rest was not decoded
}

// fail reports what is wrong with the value at key.
func (d *decoder) fail(key, message, hint string) {
	d.failAt(d.source.line(key), key, message, hint)
}

// failAt is fail for what has no value: a key that should not be there.
func (d *decoder) failAt(line int, key, message, hint string) {
	d.problems = append(d.problems, Problem{File: d.source.file, Line: line, Key: key, Message: message, Hint: hint})
}

// wrongType reports that n is not the kind of value that want describes.
func (d *decoder) wrongType(n *yaml.Node, key, want string) {
	d.fail(key, "must be "+want+", not "+describe(n), "")
}

// more counts one more key or value and reports whether it may be decoded.
func (d *decoder) more(line int, key string) bool {
	if d.exhausted {
		return false
	}
	if d.values++; d.values > maxValues {
		d.exhausted = true
		d.failAt(line, key, fmt.Sprintf("the file has more than %d keys and values up to here", maxValues), "write fewer, or use fewer aliases")
	}
	return !d.exhausted
}

// value decodes n, found at key, into out. A null leaves out as it is, so that a
// key without a value has its default.
func (d *decoder) value(n *yaml.Node, key string, out reflect.Value) {
	if !d.more(d.source.line(key), key) {
		return
	}
	if n = target(n); isNull(n) {
		return
	}
	switch p := out.Addr().Interface().(type) {
	case *time.Duration:
		text(d, n, key, "a duration such as 90s", p, parseDuration)
	case *Bytes:
		text(d, n, key, "a number of bytes such as 64KiB", p, parseBytes)
	case *netip.Addr:
		text(d, n, key, "an IP address", p, parseAddr)
	case *netip.Prefix:
		text(d, n, key, "a network such as 192.0.2.0/24", p, parseNetwork)
	case *Listener:
		text(d, n, key, "a URI", p, parseListener)
	case *DirectoryURI:
		text(d, n, key, "a URI", p, parseDirectory)
	case *GroupURI:
		text(d, n, key, "a URI", p, parseGroupURI)
	case *Target:
		text(d, n, key, "a target such as coap://192.0.2.7", p, parseTarget)
	case *RouteTarget:
		text(d, n, key, "a URI", p, parseRouteTarget)
	case *URIPath:
		text(d, n, key, "a path", p, parseURIPath)
	case *Announced:
		text(d, n, key, "an address", p, parseAnnounced)
	case *PortRange:
		text(d, n, key, "an address with ports such as 192.0.2.1:6000-6099", p, parsePortRange)
	case *HopURI:
		text(d, n, key, "a URI such as coap://192.0.2.9", p, parseHop)
	case *Via:
		text(d, n, key, "a target such as coap://192.0.2.7", p, parseVia)
	case *HostPort:
		text(d, n, key, "a host and port such as 192.0.2.7:5683", p, parseHostPort)
	case *CertificateName:
		text(d, n, key, "a name in a certificate such as uri:urn:dev:mac:0024befffe804ff1", p, parseCertificateName)
	case *CertificateNames:
		if n.Kind == yaml.ScalarNode {
			if n.ShortTag() == "!!str" && n.Value == "" {
				return
			}
			*p = make(CertificateNames, 1)
			d.value(n, key, reflect.ValueOf(p).Elem().Index(0))
			return
		}
		d.list(n, key, "a name in a certificate, or a list of such names", out)
	case *GroupNames:
		if n.Kind == yaml.ScalarNode && n.Value == "*" {
			*p = GroupNames{"*"}
			return
		}
		d.list(n, key, `a list of group names, or "*"`, out)
	case *map[string][]netip.Addr:
		d.names(n, key, p)
	default:
		d.kind(n, key, out)
	}
}

// kind decodes the types that need no parser of their own.
func (d *decoder) kind(n *yaml.Node, key string, out reflect.Value) {
	switch out.Kind() {
	case reflect.Struct:
		d.structure(n, key, out)
	case reflect.Slice:
		d.list(n, key, "a list", out)
	case reflect.String:
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!str" {
			d.fail(key, "must be text, not "+describe(n), textHint(n))
			return
		}
		out.SetString(n.Value)
	case reflect.Bool:
		if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!bool" {
			d.wrongType(n, key, "true or false")
			return
		}
		out.SetBool(strings.EqualFold(n.Value, "true"))
	case reflect.Int, reflect.Uint16:
		d.whole(n, key, out)
	case reflect.Float64:
		f, err := strconv.ParseFloat(n.Value, 64)
		if tag := n.ShortTag(); n.Kind != yaml.ScalarNode || tag != "!!int" && tag != "!!float" || err != nil || math.IsNaN(f) || math.IsInf(f, 0) {
			d.wrongType(n, key, "a number")
			return
		}
		out.SetFloat(f)
	default:
		panic("config: no decoder for " + out.Type().String()) // a mistake in config.go, found by any test
	}
}

// whole decodes an integer. What does not fit out is as wrong as text.
func (d *decoder) whole(n *yaml.Node, key string, out reflect.Value) {
	i, err := parseWhole(n.Value)
	if n.Kind != yaml.ScalarNode || n.ShortTag() != "!!int" || err != nil {
		d.wrongType(n, key, "a whole number")
		return
	}
	if out.CanInt() && !out.OverflowInt(i) {
		out.SetInt(i)
		return
	}
	if out.CanUint() && i >= 0 && !out.OverflowUint(uint64(i)) {
		out.SetUint(uint64(i))
		return
	}
	d.fail(key, fmt.Sprintf("%d is out of range", i), "write a value from 0 to 65535")
}

// structure decodes a mapping whose keys are the yaml tags of out's type.
func (d *decoder) structure(n *yaml.Node, key string, out reflect.Value) {
	if n.Kind != yaml.MappingNode {
		d.wrongType(n, key, "a mapping of keys to values")
		return
	}
	fields := map[string]int{}
	var known []string
	for i := range out.NumField() {
		if tag := out.Type().Field(i).Tag.Get("yaml"); tag != "" {
			fields[tag] = i
			known = append(known, tag)
		}
	}
	d.mapping(n, key, func(name, path string, line int, v *yaml.Node) {
		if i, ok := fields[name]; ok {
			d.source.lines[path] = line
			d.value(v, path, out.Field(i))
			return
		}
		hint := "known here: " + strings.Join(known, ", ")
		if near := nearest(name, known); near != "" {
			hint = "did you mean " + near + "?"
		}
		d.failAt(line, path, "unknown key", hint)
	})
}

// mapping calls each for the entries of n, without repeated and unreadable keys.
func (d *decoder) mapping(n *yaml.Node, key string, each func(name, path string, line int, v *yaml.Node)) {
	seen := map[string]int{}
	for i := 0; i+1 < len(n.Content); i += 2 {
		k := n.Content[i]
		if !d.more(k.Line, key) {
			return
		}
		path := show(k.Value)
		if key != "" {
			path = key + "." + path
		}
		first, repeated := seen[k.Value]
		switch {
		case k.Kind != yaml.ScalarNode:
			d.failAt(k.Line, key, "a key must be plain text, not "+describe(k), "")
		case k.ShortTag() == "!!merge":
			d.failAt(k.Line, path, "merge keys are not supported", "write the keys out")
		case repeated:
			d.failAt(k.Line, path, fmt.Sprintf("key given again, first in line %d", first), "keep one of them")
		default:
			seen[k.Value] = k.Line
			each(k.Value, path, k.Line, n.Content[i+1])
		}
	}
}

// list decodes a sequence. A bad item keeps its place, so that the numbers in
// keys are those of the file.
func (d *decoder) list(n *yaml.Node, key, want string, out reflect.Value) {
	if n.Kind != yaml.SequenceNode {
		d.wrongType(n, key, want)
		return
	}
	items := reflect.MakeSlice(out.Type(), 0, min(len(n.Content), maxValues))
	for i, item := range n.Content {
		if d.exhausted {
			break
		}
		path := fmt.Sprintf("%s[%d]", key, i)
		d.source.lines[path] = item.Line
		if isNull(target(item)) {
			d.fail(path, "empty list item", "write a value or remove the item")
		}
		v := reflect.New(out.Type().Elem()).Elem()
		switch p := v.Addr().Interface().(type) {
		case *Client:
			*p = DefaultClient()
		case *Group:
			*p = DefaultGroup()
		case *Route:
			*p = DefaultRoute()
		case *NextHop:
			*p = DefaultNextHop()
		case *NStartTarget:
			p.NStart = 1 // FP-92
		}
		d.value(item, path, v)
		items = reflect.Append(items, v)
	}
	out.Set(items)
}

// names decodes the mapping of host names to addresses. Host names are compared
// without regard to case (RFC 3986 §3.2.2).
func (d *decoder) names(n *yaml.Node, key string, out *map[string][]netip.Addr) {
	if n.Kind != yaml.MappingNode {
		d.wrongType(n, key, "a mapping of names to lists of addresses")
		return
	}
	*out = map[string][]netip.Addr{}
	d.mapping(n, key, func(name, path string, line int, v *yaml.Node) {
		lower := strings.ToLower(name)
		if _, ok := (*out)[lower]; ok {
			d.failAt(line, path, "name given again in another case", "keep one of them")
			return
		}
		var addrs []netip.Addr
		d.source.lines[path], d.source.lines[key+"."+show(lower)] = line, line
		d.value(v, path, reflect.ValueOf(&addrs).Elem())
		(*out)[lower] = addrs
	})
}

// text decodes a value that is written as one scalar.
func text[T any](d *decoder, n *yaml.Node, key, want string, out *T, parse func(string) (T, *fault)) {
	if tag := n.ShortTag(); n.Kind != yaml.ScalarNode || tag != "!!str" && tag != "!!int" && tag != "!!float" {
		d.wrongType(n, key, want)
		return
	}
	v, f := parse(n.Value)
	if f != nil {
		d.fail(key, f.message, f.hint)
		return
	}
	*out = v
}

// textHint says how a number or boolean is written as text.
func textHint(n *yaml.Node) string {
	if n.Kind != yaml.ScalarNode {
		return ""
	}
	return "write " + strconv.Quote(n.Value[:min(len(n.Value), 80)])
}

// target follows an alias to what it stands for.
func target(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}

func isNull(n *yaml.Node) bool { return n.Kind == yaml.ScalarNode && n.ShortTag() == "!!null" }

// describe names n for a message about its type.
func describe(n *yaml.Node) string {
	switch n.Kind {
	case yaml.MappingNode:
		return "a mapping"
	case yaml.SequenceNode:
		return "a list"
	case yaml.AliasNode:
		return "an alias"
	}
	switch n.ShortTag() {
	case "!!int", "!!float":
		return "the number " + show(n.Value)
	case "!!null":
		return "nothing"
	case "!!bool":
		return show(n.Value)
	case "!!str":
		return "the text " + strconv.Quote(n.Value[:min(len(n.Value), 80)])
	default:
		return show(n.Value) + " with the tag " + show(n.ShortTag())
	}
}
