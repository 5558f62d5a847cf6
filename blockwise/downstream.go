package blockwise

import (
	"sync/atomic"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// DownstreamStats counts what happens to clients' blocks.
type DownstreamStats struct {
	Uploads    atomic.Uint64 `metric:"uploads_completed_total" help:"Request bodies put together from blocks."`
	Incomplete atomic.Uint64 `metric:"uploads_incomplete_total" help:"Blocks refused because those before them were missing."`
	TooLarge   atomic.Uint64 `metric:"uploads_too_large_total" help:"Request bodies refused for their size."`
	Cut        atomic.Uint64 `metric:"blocks_cut_total" help:"Blocks of response bodies that had to be cut for a client."`
	Dropped    atomic.Uint64 `metric:"bodies_dropped_total" help:"Bodies in transfer forgotten early because there were too many."`
}

// Downstream is the layer below the front: it puts request bodies together from
// the client's blocks, and cuts response bodies that are too long for one
// message to this client, so that all layers below see whole bodies (FP-72,
// FP-73). Group requests pass untouched; their bodies are the business of other
// layers (GC-52, GC-54). It is safe for concurrent use.
type Downstream struct {
	next   exchange.Handler
	stats  *DownstreamStats
	limit  int
	bodies *store
}

// NewDownstream returns a Downstream in front of next. limit is the largest
// request body, total bounds all bodies in transfer together, both in bytes.
func NewDownstream(next exchange.Handler, limit, total int, stats *DownstreamStats) *Downstream {
	return &Downstream{next: next, stats: stats, limit: min(limit, total), bodies: newStore(total, &stats.Dropped)}
}

// Exchange implements exchange.Handler.
func (d *Downstream) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	if r.Target.Group {
		if r.BERT {
			r.Options = withoutBERT(r.Options)
		}
		return d.next.Exchange(r, w)
	}
	s := cuts.Get().(*cut)
	*s = cut{layer: d, sink: w, limit: r.BodyLimit, bert: r.BERT}
	if r.BERT {
		s.limit = min(s.limit, maxBERT)
	}
	for _, o := range r.Options {
		var f *exchange.Failure
		switch o.ID {
		case wire.Block1:
			s.block1, f = requestBlock(o, r.BERT)
			s.has1 = true
		case wire.Block2:
			s.wish, f = requestBlock(o, r.BERT)
			s.wishes = true
		}
		if f != nil {
			return exchange.Fail(w, f)
		}
	}
	s.transfer = d.bodies.transferOf(r)
	if s.has1 {
		// Who asks for the further blocks of the response does not repeat the
		// payload (RFC 7959 §2.7): the transfer stays without one.
		if !d.upload(r, w, s.block1, s.transfer) {
			return exchange.Ended{}
		}
	} else {
		s.transfer.payload = d.bodies.payloadHash(r.Payload)
		if s.wish.Num > 0 && d.further(r, s) {
			return exchange.Ended{}
		}
	}
	if s.has1 || s.wishes {
		r.Options = withoutOptions(r.Options, wire.Block1, wire.Block2, wire.Size1, wire.RequestTag)
	}
	return d.next.Exchange(r, s)
}

// further answers the request for a further block of a response. It reports
// false when the server has to be asked: the response is not stored any more,
// and the request is one that can be made again.
func (d *Downstream) further(r *exchange.Request, s *cut) bool {
	p, t := d.bodies.take(s.transfer, r.Arrival)
	switch {
	case p != nil:
		s.transfer, s.stored = t, true
		s.Respond(p)
		s.End(nil)
		return true
	case !isSafe(r.Method) || r.Method == wire.FETCH && len(r.Payload) == 0:
		s.End(exchange.Failf(exchange.Incomplete, "the body of this response is gone"))
		return true
	}
	return false
}

// maxBERT is the payload of the largest BERT blocks that are sent, in bytes: so
// that one body does not keep others waiting.
const maxBERT = 64 << 10

// withoutBERT returns options in which blocks are as members of a group know
// them, over UDP; the unit of the numbers stays.
func withoutBERT(options message.Options) message.Options {
	for _, id := range []message.OptionID{wire.Block1, wire.Block2} {
		value, ok := wire.First(options, id)
		if b, err := wire.ParseBERTBlock(value); ok && err == nil && b.SZX == wire.BERT {
			b.SZX = maxSZX
			options = withOption(withoutOptions(options, id), id, b.Append(nil))
		}
	}
	return options
}

// requestBlock reads a block option of a request. A size exponent of 7 is a bad
// request where there is no BERT (RFC 7959 §2.2), an option too long is one that
// cannot be understood.
func requestBlock(o message.Option, bert bool) (wire.Block, *exchange.Failure) {
	parse := wire.ParseBlock
	if bert {
		parse = wire.ParseBERTBlock
	}
	b, err := parse(o.Value)
	switch {
	case err == nil:
		return b, nil
	case len(o.Value) > maxBlockLen:
		return b, &exchange.Failure{Reason: exchange.BadOption, Detail: "a block option is malformed", Option: o.ID, Err: err} // FP-20
	}
	return b, &exchange.Failure{Reason: exchange.BadRequest, Detail: "a block option has the reserved size", Err: err}
}

// maxBlockLen is the length of the longest block option (RFC 7959 §2.1).
const maxBlockLen = 3

// upload takes one block of a request body. It reports whether the body is
// whole and in r now; otherwise the exchange has ended, the block being stored
// or refused.
func (d *Downstream) upload(r *exchange.Request, w exchange.Sink, b wire.Block, t transfer) bool {
	t.upload = true
	if !b.Fits(len(r.Payload)) {
		exchange.Fail(w, exchange.Failf(exchange.BadRequest, "the payload is not one block"))
		return false
	}
	announced := uint32(0)
	if value, ok := wire.First(r.Options, wire.Size1); ok {
		announced, _ = wire.Uint(value)
	}
	if int64(announced) > int64(d.limit) || b.Offset()+len(r.Payload) > d.limit { // FP-72
		d.bodies.drop(t)
		d.stats.TooLarge.Add(1)
		f := exchange.Failf(exchange.TooLarge, "bodies are limited to %d bytes", d.limit)
		f.Limit = uint32(d.limit)
		exchange.Fail(w, f)
		return false
	}
	whole, ok := d.bodies.addBlock(t, b, r)
	switch {
	case !ok:
		d.stats.Incomplete.Add(1)
		exchange.Fail(w, exchange.Failf(exchange.Incomplete, "a block before this one is missing")) // FP-73
		return false
	case whole == nil:
		w.Respond(&exchange.Response{Code: codes.Continue, Options: message.Options{{ID: wire.Block1, Value: b.Append(nil)}}}) // FP-73
		w.End(nil)
		return false
	}
	d.stats.Uploads.Add(1)
	r.Payload = whole.data
	if whole.created {
		r.Options = withOption(r.Options, wire.IfNoneMatch, nil) // FP-77
	}
	return true
}
