package membership

import (
	"errors"
	"strings"
)

// link is one link of a document in the CoRE Link Format (RFC 6690).
type link struct {
	target string
	params []param
}

type param struct{ name, value string }

// param returns the value of the first parameter with a name.
func (l *link) param(name string) (string, bool) {
	for _, p := range l.params {
		if p.name == name {
			return p.value, true
		}
	}
	return "", false
}

var errLinkFormat = errors.New("malformed link-format document")

// maxParams bounds the parameters of one link.
const maxParams = 64

// parseLinks reads a document of at most limit links.
func parseLinks(s string, limit int) ([]link, error) {
	var all []link
	for s = strings.TrimSpace(s); s != ""; {
		if len(all) >= limit {
			return all, errors.New("too many links")
		}
		if s[0] != '<' {
			return all, errLinkFormat
		}
		target, rest, ok := strings.Cut(s[1:], ">")
		if !ok {
			return all, errLinkFormat
		}
		l := link{target: target}
		var err error
		if s, err = l.parseParams(rest); err != nil {
			return all, err
		}
		all = append(all, l)
	}
	return all, nil
}

// parseParams reads what follows the target and returns what follows the link
// and its comma.
func (l *link) parseParams(s string) (rest string, err error) {
	for {
		s = strings.TrimLeft(s, " \t\r\n")
		switch {
		case s == "":
			return "", nil
		case s[0] == ',':
			if s = strings.TrimLeft(s[1:], " \t\r\n"); s == "" {
				return "", errLinkFormat
			}
			return s, nil
		case s[0] != ';' || len(l.params) >= maxParams:
			return "", errLinkFormat
		}
		s = strings.TrimLeft(s[1:], " \t\r\n")
		end := strings.IndexAny(s, "=;, \t\r\n")
		if end < 0 {
			end = len(s)
		}
		p := param{name: s[:end]}
		if p.name == "" {
			return "", errLinkFormat
		}
		if s = s[end:]; strings.HasPrefix(s, "=") {
			if p.value, s, err = paramValue(s[1:]); err != nil {
				return "", err
			}
		}
		l.params = append(l.params, p)
	}
}

// paramValue reads a token or a quoted string.
func paramValue(s string) (value, rest string, err error) {
	if !strings.HasPrefix(s, `"`) {
		end := strings.IndexAny(s, ";, \t\r\n")
		if end < 0 {
			end = len(s)
		}
		return s[:end], s[end:], nil
	}
	var b strings.Builder
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '"':
			return b.String(), s[i+1:], nil
		case '\\':
			if i++; i == len(s) {
				return "", "", errLinkFormat
			}
		}
		b.WriteByte(s[i])
	}
	return "", "", errLinkFormat
}
