package demo

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// attribute is a target attribute of a link (RFC 6690 §3).
type attribute struct{ name, value string }

// discover lists the resources that have attributes in the link format, those
// only that match every item of the query (RFC 6690 §4.1).
func discover(resources []resource, query []string) []byte {
	var out []byte
	for i := range resources {
		r := &resources[i]
		if len(r.attributes) == 0 || slices.ContainsFunc(query, r.differs) {
			continue
		}
		if len(out) > 0 {
			out = append(out, ',')
		}
		out = fmt.Appendf(out, "<%s>", r.href())
		for _, a := range r.attributes {
			switch {
			case a.value == "": // as of obs (RFC 7641 §6)
				out = fmt.Appendf(out, ";%s", a.name)
			case a.name == "sz": // a number (RFC 6690 §3.3)
				out = fmt.Appendf(out, ";%s=%s", a.name, a.value)
			default:
				out = fmt.Appendf(out, `;%s="%s"`, a.name, a.value)
			}
		}
		out = fmt.Appendf(out, ";ct=%d", r.format) // RFC 7252 §7.2.1
	}
	return out
}

func (r *resource) href() string { return "/" + strings.Join(r.path, "/") }

// differs reports whether the resource does not match one item of a query:
// NAME=VALUE, where a "*" at the end of VALUE stands for anything.
func (r *resource) differs(item string) bool {
	name, want, _ := strings.Cut(item, "=")
	var have []string
	switch name {
	case "href":
		have = []string{r.href()}
	case "ct":
		have = []string{strconv.Itoa(int(r.format))}
	default:
		for _, a := range r.attributes {
			switch {
			case a.name != name:
			case a.value == "":
				have = []string{""}
			default:
				have = strings.Fields(a.value) // rt and if hold several values
			}
		}
	}
	prefix, open := strings.CutSuffix(want, "*")
	return !slices.ContainsFunc(have, func(v string) bool { return v == want || open && strings.HasPrefix(v, prefix) })
}
