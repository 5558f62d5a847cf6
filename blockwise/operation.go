package blockwise

import (
	"encoding/binary"
	"errors"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// operation carries out one request in blocks with one server: the request body
// up, then the response body down (RFC 7959 §2.7).
type operation struct {
	upstream *Upstream
	sink     exchange.Sink
	request  *exchange.Request // owned, the whole of it, without block options
	steps    steps

	// Touched by what the serial of steps runs.
	uploaded  bool      // the request went up in blocks, under tag
	tag       []byte    // Request-Tag of the upload
	lost      int       // how often the server had lost blocks of the upload
	restarted bool      // the download began anew once
	until     time.Time // when nothing further is asked of the server
	reserved  int       // bytes of bodies that count against the bound of upstream
}

func newOperation(u *Upstream, w exchange.Sink, r *exchange.Request) *operation {
	return &operation{upstream: u, sink: w, request: r, steps: steps{leg: u.next},
		until: time.Now().Add(operationTime)}
}

// operationTime bounds how long an operation may go on, that a server cannot have
// its bodies kept for ever, however slowly it answers. What is under way then may
// still end as the leg says. A body of 1 MiB in blocks of 1024 bytes has a second
// for each of them.
const operationTime = 20 * time.Minute

// maxLost is how often an upload begins anew because the server has lost blocks of
// it. Over links that lose packets the session with it may change more than once in an
// upload, and its state with that.
const maxLost = 3

// late ends an operation whose time is over, and reports whether it is. Run by the
// serial.
func (o *operation) late() bool {
	if time.Now().Before(o.until) {
		return false
	}
	o.end(&exchange.Failure{Reason: exchange.NoAnswer, Detail: "the transfer with the server took too long"}) // FP-32
	return true
}

// begin sends the request body in blocks. Run by the serial.
func (o *operation) begin(szx uint8) {
	if !o.reserve(len(o.request.Payload)) {
		o.busy()
		return
	}
	o.upload(0, szx)
}

// reserve counts bytes of a body, and reports false when there is no room.
func (o *operation) reserve(n int) bool {
	if o.upstream.bytes.Add(int64(n)) > maxUnderWay {
		o.upstream.bytes.Add(-int64(n))
		return false
	}
	o.reserved += n
	return true
}

// release gives back what was reserved for so many bytes.
func (o *operation) release(n int) {
	o.upstream.bytes.Add(-int64(n))
	o.reserved -= n
}

// upload sends the block of the request body at offset. Run by the serial.
func (o *operation) upload(offset int, szx uint8) {
	if o.late() {
		return
	}
	body := o.request.Payload
	b := wire.Block{SZX: szx}
	if offset/b.Size() > wire.MaxBlockNum {
		o.end(tooLargeForServer())
		return
	}
	b.Num = uint32(offset / b.Size())
	end := min(offset+o.upstream.blockLen(&o.request.Target, b), len(body))
	b.More = end < len(body)
	r := *o.request
	r.Arrival = time.Now()
	r.Confirmable = true
	if offset == 0 {
		o.uploaded = true
		o.tag = binary.BigEndian.AppendUint32(nil, o.upstream.tags.Add(1)) // FP-74
		r.Options = withOption(r.Options, wire.Size1, wire.AppendUint(nil, uint32(len(body))))
	} else {
		r.Options = withoutOptions(r.Options, wire.IfNoneMatch) // FP-77
	}
	r.Options = withOption(withOption(r.Options, wire.Block1, b.Append(nil)), wire.RequestTag, o.tag)
	r.Payload = body[offset:end]
	o.steps.begin(&r, &stage{operation: o, upload: true, block: b, offset: offset, end: end})
}

// again makes the whole request once more. Run by the serial.
func (o *operation) again() {
	if o.uploaded {
		o.upload(0, o.upstream.largest(&o.request.Target))
		return
	}
	r := *o.request
	r.Arrival = time.Now()
	o.steps.begin(&r, &stage{operation: o})
}

// end ends the exchange. It is called once, and nothing is begun after it.
func (o *operation) end(err error) {
	o.release(o.reserved)
	o.sink.End(err)
}

func (o *operation) fail(err error, detail string) {
	o.end(&exchange.Failure{Reason: exchange.BadResponse, Detail: detail, Err: err})
}

// stage is the sink of one request of an operation whose response may be the
// last: a block of the upload, or a whole request. next is what comes after it,
// nil when the response has been handed on.
type stage struct {
	operation *operation
	upload    bool
	block     wire.Block // of an upload, with its place in the body
	offset    int
	end       int

	next func()
}

// Respond implements exchange.Sink.
func (s *stage) Respond(p *exchange.Response) exchange.Verdict {
	o := s.operation
	if s.upload {
		if s.next = s.uploaded(p); s.next != nil {
			return exchange.Stop
		}
	}
	s.next = o.answered(p, !s.upload && o.request.Method == wire.FETCH)
	return exchange.Stop
}

// End implements exchange.Sink.
func (s *stage) End(err error) {
	o := s.operation
	o.steps.then(func() {
		if s.next == nil || err != nil {
			o.end(err)
			return
		}
		s.next()
	})
}

// uploaded says how an upload goes on after the response to one of its blocks;
// nil when it is the response to the request.
func (s *stage) uploaded(p *exchange.Response) func() {
	o := s.operation
	value, ok := wire.First(p.Options, wire.Block1)
	b, err := o.upstream.read(value)
	known := ok && err == nil
	switch {
	case p.Code>>5 == 2 && s.block.More:
		// Success with or without more blocks to come: the server may as well
		// act on every block by itself (RFC 7959 §2.3).
		if !known || b.Num != s.block.Num {
			return func() { o.fail(nil, "the server answered a body in blocks wrongly") }
		}
		// It may want smaller blocks from here on; this one it has taken whole
		// (RFC 7959 §2.5).
		offset, szx := s.end, min(b.SZX, s.block.SZX)
		return func() { o.upload(offset, szx) }
	case p.Code == codes.RequestEntityTooLarge && s.offset == 0 && known && b.SZX < s.block.SZX:
		return func() { o.upload(0, b.SZX) } // RFC 7959 §2.9.3
	case p.Code == codes.RequestEntityIncomplete && s.offset > 0 && o.lost < maxLost:
		// The server has lost the blocks before this one (RFC 7959 §2.9.2), or
		// counts them otherwise after it named a smaller size.
		o.lost++
		return func() { o.upload(0, s.block.SZX) }
	case p.Code == codes.BadOption && s.offset == 0 && !ok && o.blamesBlock1():
		o.upstream.noteRefusal(o.request.Target.Addr)
		return func() { o.end(tooLargeForServer()) }
	}
	return nil
}

// blamesBlock1 reports whether a server that could not process an option can
// only have meant Block1: all other critical ones belong to the base protocol.
// One request with a strange option must not spoil the uploads of all clients.
func (o *operation) blamesBlock1() bool {
	for _, option := range o.request.Options {
		switch option.ID {
		case wire.URIHost, wire.URIPort, wire.URIPath, wire.URIQuery, wire.Accept:
			continue
		}
		if wire.Critical(option.ID) {
			return false
		}
	}
	return true
}

// answered takes the response to the whole request: it hands it on, or returns
// what to do when its exchange has ended. payload says that the requests for
// further blocks repeat the payload.
func (o *operation) answered(p *exchange.Response, payload bool) func() {
	b, more, err := opening(p, o.upstream.read)
	switch {
	case err != nil:
		return func() { o.fail(err, "the server's blocks do not fit together") }
	case p.Code == codes.Continue:
		return func() { o.fail(nil, "the server wants blocks that do not exist") }
	case !more:
		o.sink.Respond(withoutBlocks(p))
		return nil
	case announced(p) > int64(o.upstream.limit):
		return o.tooLarge
	}
	request := continuing(o.request, payload)
	if o.uploaded {
		request.Options = withOption(request.Options, wire.RequestTag, o.tag) // RFC 9175 §3.4
	}
	if !o.reserve(len(p.Payload)) {
		return o.busy
	}
	f := &fetch{steps: &o.steps, request: request, first: p.Clone(), limit: o.upstream.limit, read: o.upstream.read, reserve: o.reserve, until: o.until}
	f.done = func(err error) { o.fetched(f.first, err) }
	return func() { f.next(b.SZX) }
}

// fetched hands on the whole response. Run by the serial.
func (o *operation) fetched(p *exchange.Response, err error) {
	var refused *refusal
	switch {
	case err == nil:
		o.sink.Respond(withoutBlocks(p))
		o.end(nil)
	case errors.As(err, &refused):
		o.sink.Respond(withoutBlocks(refused.response))
		o.end(nil)
	case errors.Is(err, errChanged) && !o.restarted && isSafe(o.request.Method):
		o.restarted = true // FP-75
		o.release(len(p.Payload))
		o.again()
	case errors.Is(err, errTooLarge):
		o.tooLarge()
	case errors.Is(err, errBusy):
		o.busy()
	case errors.Is(err, errLate):
		o.late()
	case errors.Is(err, errChanged), errors.Is(err, errBlock):
		o.fail(err, "the server's blocks do not fit together") // FP-75
	default:
		o.end(err)
	}
}

// tooLarge ends the exchange for the size of the response body (FP-72).
func (o *operation) tooLarge() {
	o.end(exchange.Failf(exchange.BadResponse, "the response body is larger than %d bytes", o.upstream.limit))
}

// busy ends the exchange because too many bodies are under way.
func (o *operation) busy() {
	o.end(&exchange.Failure{Reason: exchange.Overloaded, Detail: errBusy.Error(), RetryAfter: time.Second}) // FP-34
}
