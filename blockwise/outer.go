package blockwise

import (
	"errors"
	"strings"
	"sync/atomic"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// OuterStats counts what happens to protected messages that were cut on the way.
type OuterStats struct {
	Fetched atomic.Uint64 `metric:"fetched_total" help:"Protected responses put together that were cut into blocks on the way."`
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

// Outer puts together protected messages that somebody on the way has cut into
// blocks, before anything is done with their protection (OH-75). It is safe for
// concurrent use.
type Outer struct {
	uploads Downstream
	stats   *OuterStats
	fetched atomic.Int64 // bytes of the responses being put together
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

// Fetch completes a protected response that somebody on the way has cut into blocks.
// first is the first of them, and r, which is owned, the request as it went out to leg:
// whoever has cut the response knows it by that again, and gets no payload (RFC 7959
// §2.7). done gets the whole response without options of blocks, or a *Failure; it is
// called once, also after Cancel, possibly before Fetch returns.
func (o *Outer) Fetch(leg exchange.Handler, r *exchange.Request, first *exchange.Response, done func(*exchange.Response, error)) exchange.Canceler {
	s := &steps{leg: leg}
	read := reader(wire.ParseBlock)
	if strings.Contains(r.Target.Scheme, "+") { // over TCP or WebSocket (RFC 8323 §6)
		read = wire.ParseBERTBlock
	}
	whole, reserved := first.Clone(), 0
	reserve := func(n int) bool {
		reserved += n
		return o.fetched.Add(int64(n)) <= maxFragments
	}
	f := &fetch{steps: s, request: continuing(r, false), first: whole, limit: maxUnfragmented, read: read, reserve: reserve, until: time.Now().Add(transferLifetime)}
	f.done = func(err error) {
		o.fetched.Add(-int64(reserved))
		var failure *exchange.Failure
		switch {
		case err == nil:
			o.stats.Fetched.Add(1)
			done(withoutBlocks(whole), nil)
		case errors.Is(err, exchange.ErrCanceled), errors.As(err, &failure):
			done(nil, err)
		case errors.Is(err, errBusy):
			o.stats.Dropped.Add(1)
			done(nil, exchange.Failf(exchange.Overloaded, "too many bodies are under way"))
		default:
			done(nil, &exchange.Failure{Reason: exchange.BadResponse, Detail: "the response was cut into blocks on the way, and they do not fit together", Err: err})
		}
	}
	b, _, err := opening(first, read)
	if err == nil && !reserve(len(whole.Payload)) {
		err = errBusy
	}
	if err != nil {
		f.done(err)
		return exchange.Ended{}
	}
	s.serial.DoAlways(func() { f.next(b.SZX) })
	return s
}
