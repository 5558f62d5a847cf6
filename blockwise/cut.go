package blockwise

import (
	"sync"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// cut is the sink that cuts response bodies for a client. It is lent for the time
// until End.
type cut struct {
	layer    *Downstream
	sink     exchange.Sink
	failure  *exchange.Failure // replaces the regular end
	transfer transfer
	limit    int        // what the client can take in one message
	block1   wire.Block // the last block of the request, if has1
	wish     wire.Block // what the client asked for, if wishes
	has1     bool
	wishes   bool
	bert     bool
	stored   bool // the response comes from the store
}

// Respond implements exchange.Sink.
func (s *cut) Respond(p *exchange.Response) exchange.Verdict {
	size, szx := s.blockSize()
	offset := s.wish.Offset()
	switch {
	case s.isWhole(p, size, offset) && !s.has1:
		return s.sink.Respond(p)
	case s.isWhole(p, size, offset):
		q := *p
		q.Options = s.acknowledged(p.Options)
		return s.sink.Respond(&q)
	case offset >= len(p.Payload):
		s.failure = exchange.Failf(exchange.BadRequest, "there is no such block")
		return exchange.Stop
	}
	end := min(offset+size, len(p.Payload))
	block := wire.Block{SZX: szx, More: end < len(p.Payload)}
	block.Num = uint32(offset / block.Size())
	s.layer.stats.Cut.Add(1)
	s.remember(p, block.More)
	q := *p
	q.Payload = p.Payload[offset:end]
	q.Options = withOption(s.acknowledged(p.Options), wire.Block2, block.Append(nil))
	if block.Num == 0 {
		q.Options = withOption(q.Options, wire.Size2, wire.AppendUint(nil, uint32(len(p.Payload))))
	}
	return s.sink.Respond(&q)
}

// End implements exchange.Sink.
func (s *cut) End(err error) {
	if s.failure != nil {
		err = s.failure
	}
	w := s.sink
	*s = cut{}
	cuts.Put(s)
	w.End(err)
}

var cuts = sync.Pool{New: func() any { return new(cut) }}

// isWhole reports whether a response goes to the client in one message.
func (s *cut) isWhole(p *exchange.Response, size, offset int) bool {
	switch {
	case offset > 0 && !s.stored && (p.Code>>5 != 2 || p.Code != codes.Content && len(p.Payload) == 0):
		// The client asked for a further block, but the answer is another one
		// than a body.
		return len(p.Payload) <= s.limit
	case offset > 0:
		return false
	}
	return len(p.Payload) <= size || !s.wishes && len(p.Payload) <= s.limit
}

// blockSize is the size of the blocks for the client: what it wishes, but not
// more than it can take. Without a wish a body that it can take is not cut.
func (s *cut) blockSize() (size int, szx uint8) {
	szx = maxSZX
	if s.bert {
		szx = wire.BERT
	}
	if s.wishes {
		szx = s.wish.SZX
	}
	if szx == wire.BERT && s.limit >= maxBlockSize {
		return s.limit / maxBlockSize * maxBlockSize, szx
	}
	szx = min(szx, maxSZX)
	for szx > 0 && 16<<szx > s.limit {
		szx--
	}
	return 16 << szx, szx
}

// maxSZX is the size exponent of the largest blocks, 1024 bytes (RFC 7959 §2.2).
const maxSZX = 6

// acknowledged returns the options of a response with the block options of this
// leg and none of another.
func (s *cut) acknowledged(options message.Options) message.Options {
	options = withoutOptions(options, wire.Block1, wire.Block2, wire.Size2)
	if s.wish.Num > 0 { // a notification is but the first block (RFC 7959 §2.6)
		options = withoutOptions(options, wire.Observe)
	}
	if s.has1 {
		options = withOption(options, wire.Block1, wire.Block{Num: s.block1.Num, SZX: s.block1.SZX}.Append(nil))
	}
	return options
}

// remember sees to it that the client can ask for the other blocks. After the
// last one a body that could be fetched again is forgotten.
func (s *cut) remember(p *exchange.Response, more bool) {
	bodies := s.layer.bodies
	switch {
	case more && !s.stored:
		bodies.keep(s.transfer, p, time.Now())
	case !more && isSafe(s.transfer.method):
		bodies.drop(s.transfer)
	}
}
