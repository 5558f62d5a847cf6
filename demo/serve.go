package demo

import (
	"hash/fnv"
	"slices"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/wire"
)

// serve carries out a request and returns its answer, of which code, options
// and payload are set. m is borrowed, the answer is not.
func (d *device) serve(m *wire.Message, now time.Time) *wire.Message {
	if code, text := checkOptions(m.Options); code != codes.Empty {
		return failed(code, text)
	}
	r := d.find(m.Options)
	switch {
	case r == nil:
		return failed(codes.NotFound, "no such resource")
	case m.Code == codes.GET:
		return r.read(m.Options, now)
	case m.Code == codes.PUT && r.put != nil:
		return r.write(m, now)
	}
	return failed(codes.MethodNotAllowed, "")
}

func failed(code codes.Code, diagnostic string) *wire.Message {
	return &wire.Message{Code: code, Payload: []byte(diagnostic)}
}

// checkOptions finds critical options that the devices do not know, and values
// and repetitions that make known ones unknown (RFC 7252 §5.4.1, §5.4.3,
// §5.4.5). The code is Empty when all is well.
func checkOptions(options message.Options) (codes.Code, string) {
	previous := message.OptionID(0)
	for _, o := range options {
		again := o.ID == previous
		previous = o.ID
		if !wire.Critical(o.ID) {
			continue
		}
		known := true
		switch o.ID {
		case wire.IfMatch, wire.IfNoneMatch, wire.URIHost, wire.URIPort, wire.URIPath, wire.URIQuery, wire.Accept, wire.Block2:
		case wire.ProxyURI, wire.ProxyScheme:
			return codes.ProxyingNotSupported, "" // RFC 7252 §5.10.2
		default:
			known = false
		}
		definition, _ := wire.Lookup(o.ID)
		if !known || !definition.Valid(o.Value) || again && !definition.Repeatable {
			return codes.BadOption, "option cannot be processed"
		}
	}
	return codes.Empty, ""
}

// find returns the resource that the options name, or nil.
func (d *device) find(options message.Options) *resource {
	var path []string
	for segment := range wire.All(options, wire.URIPath) {
		path = append(path, string(segment))
	}
	for i := range d.resources {
		if slices.Equal(d.resources[i].path, path) {
			return &d.resources[i]
		}
	}
	return nil
}

// read answers a GET.
func (r *resource) read(options message.Options, now time.Time) *wire.Message {
	if accept, ok := uintOption(options, wire.Accept); ok && accept != uint32(r.format) {
		return failed(codes.NotAcceptable, "")
	}
	var query []string
	for item := range wire.All(options, wire.URIQuery) {
		query = append(query, string(item))
	}
	body := r.get(now, query)
	etag := etagOf(body)
	for known := range wire.All(options, wire.ETag) {
		if slices.Equal(known, etag) { // RFC 7252 §5.10.6.2
			return &wire.Message{Code: codes.Valid, Options: message.Options{
				{ID: wire.ETag, Value: etag}, {ID: wire.MaxAge, Value: wire.AppendUint(nil, r.maxAge)}}}
		}
	}
	answer := &wire.Message{Code: codes.Content, Options: message.Options{
		{ID: wire.ETag, Value: etag},
		{ID: wire.ContentFormat, Value: wire.AppendUint(nil, uint32(r.format))},
		{ID: wire.MaxAge, Value: wire.AppendUint(nil, r.maxAge)},
	}}
	return blockOf(body, options, answer)
}

// write answers a PUT.
func (r *resource) write(m *wire.Message, now time.Time) *wire.Message {
	if format, ok := uintOption(m.Options, wire.ContentFormat); ok && format != uint32(r.format) {
		return failed(codes.UnsupportedMediaType, "")
	}
	if !r.permitted(m.Options, now) {
		return failed(codes.PreconditionFailed, "")
	}
	if err := r.put(m.Payload); err != nil {
		return failed(codes.BadRequest, err.Error())
	}
	return &wire.Message{Code: codes.Changed}
}

// permitted checks If-Match and If-None-Match (RFC 7252 §5.10.8).
func (r *resource) permitted(options message.Options, now time.Time) bool {
	if wire.Has(options, wire.IfNoneMatch) {
		return false // all resources exist
	}
	if !wire.Has(options, wire.IfMatch) {
		return true
	}
	etag := etagOf(r.get(now, nil))
	for wanted := range wire.All(options, wire.IfMatch) {
		if len(wanted) == 0 || slices.Equal(wanted, etag) {
			return true
		}
	}
	return false
}

// wholeSize is the longest body that is sent in one piece unasked, and the
// size of its blocks otherwise (RFC 7959 §2.2).
const (
	wholeSize = 1024
	wholeSZX  = 6
)

// blockOf puts the block of body that the request asks for into the answer
// (RFC 7959 §2.4).
func blockOf(body []byte, options message.Options, answer *wire.Message) *wire.Message {
	value, asked := wire.First(options, wire.Block2)
	if !asked && len(body) <= wholeSize {
		answer.Payload = body
		return answer
	}
	block := wire.Block{SZX: wholeSZX}
	if asked {
		var err error
		if block, err = wire.ParseBlock(value); err != nil {
			return failed(codes.BadRequest, "bad Block2")
		}
	}
	start := block.Offset()
	if start > 0 && start >= len(body) {
		return failed(codes.BadRequest, "no such block")
	}
	end := min(start+block.Size(), len(body))
	block.More = end < len(body)
	answer.Options = append(answer.Options, message.Option{ID: wire.Block2, Value: block.Append(nil)})
	if wire.Has(options, wire.Size2) || block.Num == 0 && block.More {
		answer.Options = append(answer.Options, message.Option{ID: wire.Size2, Value: wire.AppendUint(nil, uint32(len(body)))})
	}
	answer.Payload = body[start:end]
	return answer
}

func uintOption(options message.Options, id message.OptionID) (uint32, bool) {
	value, ok := wire.First(options, id)
	if !ok {
		return 0, false
	}
	return wire.Uint(value)
}

// etagOf tells bodies of one resource apart.
func etagOf(body []byte) []byte {
	h := fnv.New32a()
	_, _ = h.Write(body)
	return h.Sum(nil)
}
