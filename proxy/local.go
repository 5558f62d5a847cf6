package proxy

import (
	"bytes"
	"crypto/sha256"
	"strings"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// Local is the handler of requests for the proxy itself. The zero value offers
// nothing.
type Local struct {
	// Links returns what the proxy offers to the client of a request; nil for
	// nothing. It does not block.
	Links func(r *exchange.Request) []Link
}

// Exchange implements exchange.Handler.
func (l Local) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	path := ""
	for segment := range wire.All(r.Options, wire.URIPath) {
		path += "/" + string(segment)
	}
	switch {
	case path != "/.well-known/core":
		return exchange.Fail(w, exchange.Failf(exchange.NotFound, "this is a proxy; name a target with Proxy-Uri or Proxy-Scheme"))
	case r.Method != codes.GET:
		return exchange.Fail(w, exchange.Failf(exchange.MethodNotAllowed, "only GET"))
	case !accepts(r.Options, linkFormat):
		w.Respond(&exchange.Response{Code: codes.NotAcceptable, Payload: []byte("only application/link-format")})
		w.End(nil)
		return exchange.Ended{}
	}
	var links []Link
	if l.Links != nil {
		links = l.Links(r)
	}
	p, f := document(r, format(links, wire.All(r.Options, wire.URIQuery)))
	if f != nil {
		return exchange.Fail(w, f)
	}
	w.Respond(p)
	w.End(nil)
	return exchange.Ended{}
}

// document makes the response that gives the client a body: whole, in blocks (RFC
// 7959 §2.4), or confirming the one that it has (RFC 7252 §5.10.6).
func document(r *exchange.Request, body []byte) (*exchange.Response, *exchange.Failure) {
	sum := sha256.Sum256(body)
	etag := sum[:8]
	for known := range wire.All(r.Options, wire.ETag) {
		if bytes.Equal(known, etag) {
			return &exchange.Response{Code: codes.Valid, Options: message.Options{{ID: wire.ETag, Value: etag}}}, nil
		}
	}
	p := &exchange.Response{Code: codes.Content, Options: message.Options{
		{ID: wire.ETag, Value: etag}, {ID: wire.ContentFormat, Value: []byte{linkFormat}}}, Payload: body}
	value, asked := wire.First(r.Options, wire.Block2)
	if !asked && len(body) <= max(r.BodyLimit, smallestBody) {
		return p, nil
	}
	b := wire.Block{SZX: largestSZX}
	if asked {
		var err error
		// Over a connection BERT may be meant (RFC 8323 §6): it is answered in blocks
		// of the largest usual size, which start where that one would.
		if b, err = wire.ParseBERTBlock(value); err != nil || b.SZX == wire.BERT && !reliable(r.Scheme) {
			return nil, badOption(wire.Block2, "Block2 is malformed")
		}
		b.SZX = min(b.SZX, largestSZX)
	}
	from := b.Offset()
	if from > 0 && from >= len(body) {
		return nil, badOption(wire.Block2, "the block is beyond the end")
	}
	to := min(from+b.Size(), len(body))
	b.More = to < len(body)
	p.Options = insertOption(p.Options, wire.Block2, b.Append(nil))
	if from == 0 {
		p.Options = insertOption(p.Options, wire.Size2, wire.AppendUint(nil, uint32(len(body))))
	}
	p.Payload = body[from:to]
	return p, nil
}

// reliable reports whether a scheme is one of connections.
func reliable(scheme string) bool { return strings.Contains(scheme, "+") }

const (
	linkFormat   = 40 // application/link-format
	largestSZX   = 6  // blocks of 1024 bytes
	smallestBody = 64 // is never cut unasked
)

// accepts reports whether a client takes a content format (RFC 7252 §5.10.4).
func accepts(options message.Options, format uint32) bool {
	value, ok := wire.First(options, wire.Accept)
	if !ok {
		return true
	}
	wanted, _ := wire.Uint(value)
	return wanted == format
}

// Link is a link in the format of RFC 6690.
type Link struct {
	// Target is the URI reference between the angle brackets.
	Target string
	// Attributes are written as they are, values in quotes.
	Attributes []LinkAttribute
}

// LinkAttribute is an attribute of a link. Neither part has a quote or a backslash.
type LinkAttribute struct{ Name, Value string }

func (l *Link) append(buf []byte) []byte {
	buf = append(append(append(buf, '<'), l.Target...), '>')
	for _, a := range l.Attributes {
		buf = append(append(append(append(append(buf, ';'), a.Name...), '=', '"'), a.Value...), '"')
	}
	return buf
}

// matches reports whether a link has what a query asks for (RFC 6690 §4.1): the
// attribute, or href for the target, with the value or, in front of a final "*",
// beginning with it. Of rt, if and rel, which are lists, one item will do.
func (l *Link) matches(query string) bool {
	name, wanted, ok := strings.Cut(query, "=")
	if !ok {
		return false
	}
	prefix, open := strings.CutSuffix(wanted, "*")
	fits := func(value string) bool { return value == wanted || open && strings.HasPrefix(value, prefix) }
	if name == "href" {
		return fits(l.Target)
	}
	for _, a := range l.Attributes {
		if a.Name != name {
			continue
		}
		switch name {
		case "rt", "if", "rel":
			for item := range strings.FieldsSeq(a.Value) {
				if fits(item) {
					return true
				}
			}
		default:
			if fits(a.Value) {
				return true
			}
		}
	}
	return false
}

// format writes the links that match all queries.
func format(links []Link, queries func(func([]byte) bool)) []byte {
	buf := []byte{}
	for i := range links {
		matches := true
		for q := range queries {
			matches = matches && links[i].matches(string(q))
		}
		if !matches {
			continue
		}
		if len(buf) > 0 {
			buf = append(buf, ',')
		}
		buf = links[i].append(buf)
	}
	return buf
}
