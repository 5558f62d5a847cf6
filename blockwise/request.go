package blockwise

import (
	"encoding/binary"
	"slices"
	"sync"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// kept is a request that outlives its Exchange, in case its response turns out
// to be the first of several blocks. That is rare, so keeping is cheap: the
// options and the payload are packed into an array of the struct itself, and
// unpacked only when they are needed. It must not be copied.
type kept struct {
	request exchange.Request // without options and payload
	packed  []byte           // number, length and value of each option; then the payload
	payload int              // where in packed the payload begins
	inline  [inlineRequest]byte
}

// inlineRequest is room for the options of nearly every request without a
// payload.
const inlineRequest = 96

// keptPool lends kept requests: nearly all are given back unused.
var keptPool = sync.Pool{New: func() any { return new(kept) }}

// keepRequest keeps r until release.
func keepRequest(r *exchange.Request) *kept {
	k := keptPool.Get().(*kept)
	k.keep(r)
	return k
}

// release gives k back, of which nothing is in use: not after restore.
func (k *kept) release() {
	k.request, k.packed = exchange.Request{}, nil
	keptPool.Put(k)
}

// keep copies r. Options that are not repeated with every block are left out.
func (k *kept) keep(r *exchange.Request) {
	k.request = *r
	k.request.Options, k.request.Payload, k.request.Target.Also = nil, nil, slices.Clone(r.Target.Also)
	packed := k.inline[:0]
	if size := len(r.Payload); size > len(k.inline) {
		packed = make([]byte, 0, size+inlineRequest)
	}
	for _, o := range r.Options {
		switch o.ID {
		case wire.Block1, wire.Block2, wire.Size1, wire.Size2, wire.Observe, wire.NoResponse:
			continue
		}
		packed = binary.AppendUvarint(packed, uint64(o.ID))
		packed = binary.AppendUvarint(packed, uint64(len(o.Value)))
		packed = append(packed, o.Value...)
	}
	k.payload = len(packed)
	k.packed = append(packed, r.Payload...)
}

// restore returns the request. It owns its bytes together with k.
func (k *kept) restore() *exchange.Request {
	r := k.request
	for rest := k.packed[:k.payload]; len(rest) > 0; {
		id, n := binary.Uvarint(rest)
		size, m := binary.Uvarint(rest[n:])
		start, end := n+m, n+m+int(size)
		r.Options = append(r.Options, message.Option{ID: message.OptionID(id), Value: rest[start:end:end]})
		rest = rest[end:]
	}
	r.Payload = k.packed[k.payload:len(k.packed):len(k.packed)]
	return &r
}

// withOption returns a copy of options with one in its place. It replaces
// options of the same number.
func withOption(options message.Options, id message.OptionID, value []byte) message.Options {
	start, end := 0, len(options)
	for start < end && options[start].ID < id {
		start++
	}
	for end > start && options[end-1].ID > id {
		end--
	}
	out := make(message.Options, 0, len(options)-(end-start)+1)
	out = append(append(out, options[:start]...), message.Option{ID: id, Value: value})
	return append(out, options[end:]...)
}

// withoutOptions returns a copy of options without those of some numbers.
func withoutOptions(options message.Options, ids ...message.OptionID) message.Options {
	out := make(message.Options, 0, len(options))
	for _, o := range options {
		if !slices.Contains(ids, o.ID) {
			out = append(out, o)
		}
	}
	return out
}

// isSafe reports whether a request with this method may be made again to get
// the same (RFC 7252 §5.1, RFC 8132 §2).
func isSafe(method codes.Code) bool { return method == codes.GET || method == wire.FETCH }
