package blockwise

import (
	"slices"
	"sync"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// kept is a request that outlives its Exchange, in case its response turns out
// to be the first of several blocks, with memory of its own. It must not be copied.
type kept struct {
	exchange.Kept
	room exchange.Room
}

// keptPool lends kept requests: nearly all are given back unused.
var keptPool = sync.Pool{New: func() any { return new(kept) }}

// keepRequest keeps r until release.
func keepRequest(r *exchange.Request) *kept {
	k := keptPool.Get().(*kept)
	k.keep(r)
	return k
}

// release gives k back, of which nothing is in use: not after Request.
func (k *kept) release() {
	k.Kept = exchange.Kept{}
	keptPool.Put(k)
}

// keep copies r.
func (k *kept) keep(r *exchange.Request) { k.Keep(r, &k.room, perBlock) }

// perBlock names the options that are not repeated with every block.
func perBlock(id message.OptionID) bool {
	switch id {
	case wire.Block1, wire.Block2, wire.Size1, wire.Size2, wire.Observe, wire.NoResponse:
		return true
	}
	return false
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
