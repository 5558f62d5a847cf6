package config

import (
	"fmt"
	"net/url"
	"strings"
	"unicode/utf8"
)

// Directory is a resource directory that knows the members of a group.
type Directory struct {
	// URI is the lookup resource, or the directory alone; the zero value means
	// none.
	URI DirectoryURI `yaml:"uri"`
	// Filter are query items such as et=lamp that select the members among all
	// endpoints.
	Filter []string `yaml:"filter"`
}

// DirectoryURI is the URI of a resource, of any scheme by which servers are
// reached.
type DirectoryURI struct {
	Scheme string
	HostPort
	// Path and Query are decoded. Without a path the directory is asked for it.
	Path, Query []string
}

// IsZero reports whether there is no URI.
func (u DirectoryURI) IsZero() bool { return u.Host == "" && !u.Addr.IsValid() }

// String returns the URI.
func (u DirectoryURI) String() string {
	if u.IsZero() {
		return ""
	}
	var b strings.Builder
	b.WriteString(u.Scheme + "://" + u.HostPort.String())
	for _, s := range u.Path {
		b.WriteString("/" + url.PathEscape(s))
	}
	separator := "?"
	for _, q := range u.Query {
		b.WriteString(separator + strings.ReplaceAll(url.PathEscape(q), "&", "%26"))
		separator = "&"
	}
	return b.String()
}

// parseDirectory reads the URI of a lookup resource.
func parseDirectory(s string) (DirectoryURI, *fault) {
	const hint = "write e.g. coap://[2001:db8::1]/rd-lookup/ep"
	scheme, rest, f := cutScheme(s, hint)
	if f != nil {
		return DirectoryURI{}, f
	}
	if scheme == "http" || scheme == "https" {
		return DirectoryURI{}, faultf(hint, "resource directories are not reached by %s", scheme)
	}
	authority, query, _ := strings.Cut(rest, "?")
	authority, path, _ := strings.Cut(authority, "/")
	h, f := parseHostPortOf(authority, schemes[scheme])
	if f != nil {
		return DirectoryURI{}, f
	}
	u := DirectoryURI{Scheme: scheme, HostPort: h}
	for _, part := range []struct {
		text, separator string
		into            *[]string
	}{{path, "/", &u.Path}, {query, "&", &u.Query}} {
		if part.text == "" {
			continue
		}
		for _, item := range strings.Split(part.text, part.separator) {
			decoded, err := url.PathUnescape(item)
			if err != nil || !utf8.ValidString(decoded) || len(decoded) > 255 || strings.Contains(item, "#") {
				return DirectoryURI{}, faultf(hint, "%s cannot stand in a coap URI", show(item))
			}
			*part.into = append(*part.into, decoded)
		}
	}
	return u, nil
}

// directory checks the resource directory of a group.
func (v *validator) directory(key string, g *Group) {
	if g.RD.URI.IsZero() {
		if len(g.RD.Filter) > 0 {
			v.add(key+".filter", "a filter without a directory", "write uri, too")
		}
		return
	}
	switch {
	case len(g.Members) > 0:
		v.add(key, "given together with members", "write the members or where they are registered")
	case g.Learned.Within > 0:
		v.add(key, "given together with learned", "have the members learned or write where they are registered")
	}
	uri := key + ".uri"
	switch addrs, known := v.c.Names[g.RD.URI.Host]; {
	case g.RD.URI.Port == 0:
		v.add(uri, "0 is not the port of a server", "write a port from 1 to 65535")
	case g.RD.URI.Host != "" && !known:
		v.add(uri, show(g.RD.URI.Host)+" is not in names", "write an address, or give the name one under names")
	case g.RD.URI.Addr.IsMulticast() || known && len(addrs) > 0 && addrs[0].IsMulticast():
		v.add(uri, "a resource directory has a unicast address", "write e.g. coap://[2001:db8::1]/rd-lookup/ep")
	case g.RD.URI.Addr.IsLinkLocalUnicast() && g.RD.URI.Addr.Zone() == "":
		v.add(uri, "a link-local address needs its interface", "write e.g. coap://["+g.RD.URI.Addr.String()+"%eth0]")
	case g.RD.URI.Addr.Zone() != "":
		v.networkInterface(uri, g.RD.URI.Addr.Zone())
	}
	for i, f := range g.RD.Filter {
		if f == "" || len(f) > 255 || !utf8.ValidString(f) {
			v.add(fmt.Sprintf("%s.filter[%d]", key, i), show(f)+" is not a query item", "write e.g. et=lamp")
		}
	}
}
