package httpbridge

import (
	_ "embed"
	"net/http"
	"net/url"
	"strconv"
	"strings"
)

// openAPIDocument describes the bridge. A test holds it against the code.
//
//go:embed openapi.json
var openAPIDocument []byte

// openAPI serves the description. It tells nothing that this source does not.
func (x *call) openAPI() *problem {
	return x.resource("application/openapi+json", openAPIDocument)
}

// core serves the links of RFC 8075 §5.5 (HC-14).
func (x *call) core() *problem {
	link, matches := x.front.coreLink(), true
	if query := x.place.query; query != "" {
		name, value, _ := strings.Cut(query, "=")
		value, err := url.PathUnescape(value)
		prefix, wild := strings.CutSuffix(value, "*")
		matches = err == nil && (name == "rt" && (value == coreType || wild && strings.HasPrefix(coreType, prefix)) ||
			name == "href" && (value == x.front.mapping.Prefix || wild && strings.HasPrefix(x.front.mapping.Prefix, prefix)))
	}
	if !matches {
		link = ""
	} else {
		x.w.Header()["Link"] = []string{link}
	}
	x.w.Header()["Cache-Control"] = []string{"max-age=60"}
	return x.resource("application/link-format", []byte(link))
}

const coreType = "core.hc"

func (f *Front) coreLink() string {
	link := "<" + f.mapping.Prefix + `>;rt="` + coreType + `"`
	if len(f.mapping.templates) > 0 { // the default one needs no attribute
		link += `;hct="` + f.Mapping.Templates[0] + `"`
	}
	return link
}

// CoreLink is the link that a CoAP client finds under /.well-known/core of the
// proxy (HC-14). origin is that of the HTTP side, such as "https://gw.example".
func (f *Front) CoreLink(origin string) string { return f.coreLink() + `;anchor="` + origin + `"` }

// resource answers with something of the proxy's own.
func (x *call) resource(contentType string, body []byte) *problem {
	if !isSafe(x.r.Method) || x.r.Method == http.MethodOptions {
		return refuse(http.StatusMethodNotAllowed, "this resource can only be read", "use GET").with("Allow", "GET, HEAD")
	}
	h := x.w.Header()
	h["Content-Type"] = []string{contentType}
	h["Content-Length"] = []string{strconv.Itoa(len(body))}
	x.w.WriteHeader(http.StatusOK)
	if x.r.Method != http.MethodHead {
		_, _ = x.send.Write(body)
	}
	return nil
}
