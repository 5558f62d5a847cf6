package blockwise

import (
	"bytes"
	"errors"
	"fmt"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// Why a body could not be completed.
var (
	errTooLarge = errors.New("body too large")
	errChanged  = errors.New("the resource changed between two blocks")
	errBlock    = errors.New("block out of order")
	errBusy     = errors.New("too many bodies under way")
	errLate     = errors.New("the transfer took too long")
)

// refusal is the end of a fetch whose server answered the request for a block
// with an error.
type refusal struct {
	response *exchange.Response // owned
}

// Error implements error.
func (r *refusal) Error() string {
	return fmt.Sprintf("the server answered with %s", wire.CodeString(r.response.Code))
}

// reader reads block options: wire.ParseBlock, or wire.ParseBERTBlock over
// reliable transports.
type reader func(value []byte) (wire.Block, error)

// opening looks at the block option of the response to a whole request. more
// says that the response is the first of several blocks.
func opening(p *exchange.Response, read reader) (b wire.Block, more bool, err error) {
	value, ok := wire.First(p.Options, wire.Block2)
	if !ok {
		return b, false, nil
	}
	b, err = read(value)
	switch {
	case err != nil:
		return b, false, err
	case b.Num != 0 || !b.Fits(len(p.Payload)):
		return b, false, errBlock
	}
	return b, b.More, nil
}

// announced returns the size of the whole body as its server estimates it, 0
// when it does not (RFC 7959 §4).
func announced(p *exchange.Response) int64 {
	value, _ := wire.First(p.Options, wire.Size2)
	n, _ := wire.Uint(value)
	return int64(n)
}

// fetch completes one body whose first block has arrived, block by block, in
// blocks of the size that the server chose (RFC 7959 §2.4, GC-55).
type fetch struct {
	steps   *steps
	request *exchange.Request  // for the blocks but for Block2; owned, shared by fetches
	first   *exchange.Response // owned; its payload grows
	limit   int                // of the body, in bytes
	read    reader
	// reserve asks for room for so many bytes more; nil: there always is.
	reserve func(n int) bool
	until   time.Time // when no further block is asked for; zero: there is another end
	// done is called once, by the steps' serial: with nil when first is whole.
	done func(err error)
}

// continuing makes of the request for a whole body the one for its further
// blocks. The payload of a FETCH is part of what it asks for (RFC 8132 §2);
// another one has done its work, as has If-None-Match (FP-77).
func continuing(r *exchange.Request, payload bool) *exchange.Request {
	c := *r
	c.Confirmable = true
	c.Timeout = exchange.Timeout{}
	c.Options = withoutOptions(r.Options, wire.IfNoneMatch)
	if !payload {
		c.Payload = nil
	}
	return &c
}

// next asks for the block after those that are there. Run by the serial.
func (f *fetch) next(szx uint8) {
	if !f.until.IsZero() && !time.Now().Before(f.until) {
		f.done(errLate)
		return
	}
	b := wire.Block{SZX: szx}
	num := len(f.first.Payload) / b.Size()
	if num > wire.MaxBlockNum {
		f.done(errTooLarge)
		return
	}
	b.Num = uint32(num)
	r := *f.request
	r.Arrival = time.Now()
	r.Options = withOption(f.request.Options, wire.Block2, b.Append(nil))
	f.steps.begin(&r, &blockSink{fetch: f, want: b})
}

// add takes the next block. It reports whether more are to come, in blocks of
// size szx.
func (f *fetch) add(p *exchange.Response, want wire.Block) (more bool, szx uint8, err error) {
	if p.Code != f.first.Code {
		switch {
		case p.Code>>5 == 2, p.Code == codes.BadRequest, p.Code == codes.BadOption, p.Code == codes.RequestEntityIncomplete:
			return false, 0, errChanged // there is no such block any more
		}
		return false, 0, &refusal{p.Clone()}
	}
	value, ok := wire.First(p.Options, wire.Block2)
	b, parseErr := f.read(value)
	switch {
	case !ok || parseErr != nil || b.Offset() != want.Offset() || b.SZX > want.SZX:
		return false, 0, errBlock
	case !sameETag(f.first, p):
		return false, 0, errChanged // GC-55, FP-75
	case !b.Fits(len(p.Payload)):
		return false, 0, errBlock
	case len(f.first.Payload)+len(p.Payload) > f.limit:
		return false, 0, errTooLarge
	case f.reserve != nil && !f.reserve(len(p.Payload)):
		return false, 0, errBusy
	}
	f.first.Payload = append(f.first.Payload, p.Payload...)
	return b.More, b.SZX, nil
}

func sameETag(a, b *exchange.Response) bool {
	x, hasX := wire.First(a.Options, wire.ETag)
	y, hasY := wire.First(b.Options, wire.ETag)
	return hasX == hasY && bytes.Equal(x, y)
}

// blockSink takes the response with one block.
type blockSink struct {
	fetch *fetch
	want  wire.Block
	got   bool
	more  bool
	szx   uint8
	err   error
}

// Respond implements exchange.Sink.
func (s *blockSink) Respond(p *exchange.Response) exchange.Verdict {
	s.got = true
	s.more, s.szx, s.err = s.fetch.add(p, s.want)
	return exchange.Stop
}

// End implements exchange.Sink.
func (s *blockSink) End(err error) {
	switch {
	case s.got:
		err = s.err
	case err == nil:
		err = errBlock
	}
	f := s.fetch
	f.steps.then(func() {
		if err == nil && s.more {
			f.next(s.szx)
			return
		}
		f.done(err)
	})
}
