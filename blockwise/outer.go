package blockwise

import (
	"sync/atomic"

	"github.com/plgd-dev/go-coap/v3/message"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// OuterStats counts what happens to protected requests that were cut on the way.
type OuterStats struct {
	Joined  atomic.Uint64 `metric:"joined_total" help:"Protected requests put together that were cut into blocks on the way."`
	Dropped atomic.Uint64 `metric:"dropped_total" help:"Pieces of protected requests forgotten early because there were too many."`
}

const (
	// maxUnfragmented is the longest message with its protection, in bytes: what
	// RFC 8613 calls MAX_UNFRAGMENTED_SIZE.
	maxUnfragmented = 64 << 10
	// maxFragments bounds all that are being put together, in bytes. Nothing is
	// known yet of who sends them.
	maxFragments = 8 << 20
)

// Outer puts together protected requests that somebody on the way has cut into
// blocks, before anything is done with their protection (OH-75). It is safe for
// concurrent use.
type Outer struct {
	uploads Downstream
	stats   *OuterStats
}

// NewOuter returns an Outer.
func NewOuter(stats *OuterStats) *Outer {
	return &Outer{stats: stats, uploads: Downstream{limit: maxUnfragmented, stats: new(DownstreamStats), bodies: newStore(maxFragments, &stats.Dropped)}}
}

// Join takes r, a request with Block1. It reports whether r has the whole payload
// now, and no options of blocks; otherwise w has got the answer to the block, and
// the exchange has ended. Two requests are one if they differ in nothing but
// their blocks; Target.Host may tell apart what looks alike.
func (o *Outer) Join(r *exchange.Request, w exchange.Sink) bool {
	value, _ := wire.First(r.Options, wire.Block1)
	block, f := requestBlock(message.Option{ID: wire.Block1, Value: value}, r.BERT)
	if f != nil {
		exchange.Fail(w, f)
		return false
	}
	if !o.uploads.upload(r, w, block, o.uploads.bodies.transferOf(r)) {
		return false
	}
	o.stats.Joined.Add(1)
	r.Options = withoutOptions(r.Options, wire.Block1, wire.Size1, wire.RequestTag)
	return true
}
