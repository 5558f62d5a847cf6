package httpbridge

import (
	"errors"
	"net/url"
	"regexp"
	"strings"
)

// template is a URI template of RFC 8075 §5.4: with the variable tu alone, or
// with some of s, hp, p, q and qq (HC-7, HC-9).
type template struct {
	pattern *regexp.Regexp
	names   []string
	inQuery bool
}

var (
	errTemplateForm     = errors.New("not of the form text{+name}text")
	errTemplateVariable = errors.New("unknown or repeated variable")
	errTemplateTarget   = errors.New("needs tu, or hp and no tu")
)

func parseTemplate(text string) (template, error) {
	var t template
	var pattern strings.Builder
	pattern.WriteString("^")
	rest, seen := text, make(map[string]bool)
	for rest != "" {
		literal, tail, found := strings.Cut(rest, "{+")
		if strings.ContainsAny(literal, "{}") {
			return t, errTemplateForm
		}
		pattern.WriteString(regexp.QuoteMeta(literal))
		t.inQuery = t.inQuery || strings.Contains(literal, "?")
		if !found {
			break
		}
		name, after, ok := strings.Cut(tail, "}")
		if !ok {
			return t, errTemplateForm
		}
		expression, ok := t.variable(name, after == "")
		if !ok || seen[name] {
			return t, errTemplateVariable
		}
		seen[name] = true
		t.names = append(t.names, name)
		pattern.WriteString("(" + expression + ")")
		rest = after
	}
	if seen["tu"] && len(seen) > 1 || !seen["tu"] && !seen["hp"] || seen["q"] && seen["qq"] {
		return t, errTemplateTarget
	}
	pattern.WriteString("$")
	var err error
	t.pattern, err = regexp.Compile(pattern.String())
	return t, err
}

// variable is what a variable can stand for, at this place of the template.
func (t *template) variable(name string, last bool) (expression string, ok bool) {
	switch name {
	case "tu":
		return ".+", true
	case "s":
		return "[A-Za-z][A-Za-z0-9+.%-]*", true
	case "hp":
		return "[^/?&]+", true
	case "p":
		if t.inQuery {
			return "[^&]*", true
		}
		return "(?:/[^?]*)?", true
	case "q":
		if last {
			return ".*", true
		}
		return "[^&]*", true
	case "qq":
		return `(?:\?.*)?`, true
	}
	return "", false
}

// match puts the target URI together from what follows the base.
func (t *template) match(s string) (uri string, ok bool) {
	found := t.pattern.FindStringSubmatch(s)
	if found == nil {
		return "", false
	}
	values := map[string]string{"s": "coap"}
	for i, name := range t.names {
		values[name] = found[i+1]
	}
	if tu, ok := values["tu"]; ok {
		return tu, true
	}
	if t.inQuery { // encoded values are decoded once (HC-8)
		for name, mark := range map[string]string{"s": "%", "hp": "%3", "p": "%2"} {
			if value := values[name]; strings.Contains(value, mark) && !strings.HasPrefix(value, "/") {
				if decoded, err := url.PathUnescape(value); err == nil {
					values[name] = decoded
				}
			}
		}
	}
	uri = values["s"] + "://" + values["hp"] + values["p"] + values["qq"]
	if values["q"] != "" {
		uri += "?" + values["q"]
	}
	return uri, true
}
