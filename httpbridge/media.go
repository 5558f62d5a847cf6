package httpbridge

import (
	"maps"
	"mime"
	"slices"
	"strconv"
	"strings"

	"github.com/plgd-dev/go-coap/v3/message"

	"coapproxy/wire"
)

// Media says how media types and Content-Formats correspond.
type Media struct {
	// Loose lets media types that have no Content-Format of their own pass as a
	// more general one (HC-45).
	Loose bool
	// PassThrough accepts application/coap-payload;cf=N for Content-Format N
	// (HC-44).
	PassThrough bool
}

const (
	coapPayload = "application/coap-payload" // RFC 8075 §6.2
	octetStream = "application/octet-stream"
	plainText   = "text/plain; charset=utf-8"
)

// mediaTypes is the table of Content-Formats by media type.
type mediaTypes struct {
	Media
	byName map[string][]mediaFormat
}

type mediaFormat struct {
	number uint16
	params map[string]string
	coding string
}

func newMediaTypes(c Media) *mediaTypes {
	t := &mediaTypes{Media: c, byName: make(map[string][]mediaFormat)}
	for n := range 1 << 16 {
		name, ok := wire.ContentFormatName(uint16(n))
		if !ok {
			continue
		}
		name, coding := splitCoding(name)
		typ, params, err := mime.ParseMediaType(name)
		if err != nil {
			continue
		}
		t.byName[typ] = append(t.byName[typ], mediaFormat{uint16(n), params, coding})
	}
	return t
}

// splitCoding cuts a content coding in parentheses off a format's name.
func splitCoding(name string) (mediaType, coding string) {
	if typ, rest, ok := strings.Cut(name, " ("); ok {
		return typ, strings.TrimSuffix(rest, ")")
	}
	return name, ""
}

// format finds the Content-Format of a media type in a content coding, "" for
// none (HC-40). Types are compared without regard to letter case, parameters as
// sets (HC-46).
func (t *mediaTypes) format(mediaType, coding string) (uint16, bool) {
	name, params, err := mime.ParseMediaType(mediaType)
	if err != nil {
		return 0, false
	}
	if name == coapPayload {
		n, err := strconv.ParseUint(params["cf"], 10, 16)
		return uint16(n), t.PassThrough && err == nil && len(params) == 1 && coding == "" // HC-44
	}
	if charset, ok := params["charset"]; ok {
		if !strings.EqualFold(charset, "utf-8") {
			return 0, false // HC-46
		}
		delete(params, "charset") // what JSON, XML and the like have anyway
	}
	if n, ok := t.exactly(name, params, coding); ok {
		return n, true
	}
	if !t.Loose || coding != "" {
		return 0, false
	}
	return t.loosely(name)
}

func (t *mediaTypes) exactly(name string, params map[string]string, coding string) (uint16, bool) {
	if name == "text/plain" {
		params["charset"] = "utf-8" // HC-46
	}
	for _, f := range t.byName[name] {
		if f.coding == coding && maps.EqualFunc(f.params, params, strings.EqualFold) {
			return f.number, true
		}
	}
	return 0, false
}

// loosely carries out HC-45, in its order.
func (t *mediaTypes) loosely(name string) (uint16, bool) {
	general := octetStream
	switch {
	case strings.HasPrefix(name, "application/") && strings.HasSuffix(name, "+xml"), name == "text/xml":
		general = "application/xml"
	case strings.HasPrefix(name, "application/") && strings.HasSuffix(name, "+json"):
		general = "application/json"
	case strings.HasPrefix(name, "application/") && strings.HasSuffix(name, "+cbor"):
		general = "application/cbor"
	case strings.HasPrefix(name, "text/"):
		general = "text/plain"
	}
	return t.exactly(general, map[string]string{}, "")
}

// contentType is the media type and content coding of a response. Without a
// Content-Format it is text for an error and bytes otherwise (HC-31, HC-43).
func contentType(options message.Options, isError bool, valid bool) (mediaType, coding string) {
	value, ok := wire.First(options, wire.ContentFormat)
	n, sane := wire.Uint(value)
	switch {
	case ok && sane && n <= 0xffff:
		name, known := wire.ContentFormatName(uint16(n))
		if !known {
			return coapPayload + ";cf=" + strconv.FormatUint(uint64(n), 10), "" // HC-43
		}
		return splitCoding(name)
	case isError && valid:
		return plainText, "" // HC-31
	default:
		return octetStream, ""
	}
}

// mediaRange is one element of an Accept field.
type mediaRange struct {
	name   string // lower case, without parameters
	params map[string]string
	q      float64
}

// String is the range without its weight, in a form that can be parsed again.
func (m mediaRange) String() string { return mime.FormatMediaType(m.name, m.params) }

// parseAccept reads Accept fields, the most preferred range first; ranges of
// equal weight stay in their order. Elements that break the form are left out.
func parseAccept(values []string) []mediaRange {
	var ranges []mediaRange
	for _, value := range values {
		for _, element := range splitList(value) {
			if len(ranges) == maxRanges {
				break
			}
			name, params, err := mime.ParseMediaType(element)
			if err != nil {
				continue
			}
			m := mediaRange{name: name, params: params, q: 1}
			if text, ok := params["q"]; ok {
				if m.q, err = strconv.ParseFloat(text, 64); err != nil || !(m.q >= 0 && m.q <= 1) {
					continue
				}
				delete(params, "q")
			}
			ranges = append(ranges, m)
		}
	}
	slices.SortStableFunc(ranges, func(a, b mediaRange) int {
		switch {
		case a.q > b.q:
			return -1
		case a.q < b.q:
			return 1
		}
		return 0
	})
	return ranges
}

const maxRanges = 64

// splitList splits a comma-separated field outside of quoted strings (RFC 9110
// §5.6.1). Empty elements are left out.
func splitList(s string) []string {
	var list []string
	start, quoted := 0, false
	add := func(end int) {
		if e := strings.TrimSpace(s[start:end]); e != "" {
			list = append(list, e)
		}
		start = end + 1
	}
	for i := 0; i < len(s); i++ {
		switch {
		case quoted && s[i] == '\\':
			i++
		case s[i] == '"':
			quoted = !quoted
		case s[i] == ',' && !quoted:
			add(i)
		}
	}
	add(len(s))
	return list
}

// maxTries is how many Accept values are tried one after the other (HC-42).
const maxTries = 3

// accepted turns an Accept field into the Accept values to try, none for "no
// preference". ok is false when the field names only types that the proxy
// refuses (HC-44).
func (t *mediaTypes) accepted(ranges []mediaRange, coding string) (formats []uint16, ok bool) {
	refused := false
	for _, m := range ranges {
		if m.q == 0 || len(formats) == maxTries {
			break
		}
		if m.name == "*/*" {
			break // anything goes from here on (HC-42)
		}
		if m.name == coapPayload && !t.PassThrough {
			refused = true
			continue
		}
		if n, ok := t.format(m.String(), coding); ok && !slices.Contains(formats, n) {
			formats = append(formats, n)
		} else if !ok && strings.HasSuffix(m.name, "/*") {
			break
		}
	}
	return formats, !refused || len(formats) > 0 || len(ranges) > 1
}
