package blockwise

import (
	"bytes"
	"fmt"
	"sync"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// modelServer is an origin server that takes and gives bodies in blocks of at
// most one size, and complains about requests that no client may send it.
type modelServer struct {
	t    tester
	szx1 uint8 // wants request blocks of at most this size
	szx2 uint8 // sends response blocks of at most this size
	// wants413: refuses a first block larger than szx1 instead of taking it.
	wants413 bool
	// stateless: acts on every block by itself (RFC 7959 §2.3).
	stateless bool
	// respond makes the response to a whole request.
	respond func(r *exchange.Request, body []byte) *exchange.Response

	mu      sync.Mutex
	uploads map[string][]byte
	results map[string]*exchange.Response
	tags    map[string]bool
	bodies  [][]byte // whole request bodies, in order
}

func (s *modelServer) leg() *fakeLeg { return &fakeLeg{t: s.t, answer: s.answer} }

func (s *modelServer) complain(r *exchange.Request, format string, args ...any) {
	s.t.Helper()
	s.t.Errorf("%s in %v", fmt.Sprintf(format, args...), r.Options)
}

func (s *modelServer) answer(r *exchange.Request) *exchange.Response {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.uploads == nil {
		s.uploads, s.results, s.tags = make(map[string][]byte), make(map[string]*exchange.Response), make(map[string]bool)
	}
	b1, has1 := blockOf(s.t, r.Options, wire.Block1)
	b2, has2 := blockOf(s.t, r.Options, wire.Block2)
	tag, tagged := wire.First(r.Options, wire.RequestTag)
	key := fmt.Sprintf("%v %d %s", tagged, r.Method, tag)
	switch {
	case has1 && has2:
		s.complain(r, "both block options")
	case (has1 && b1.Num > 0 || has2 && b2.Num > 0) && (wire.Has(r.Options, wire.IfNoneMatch) || wire.Has(r.Options, wire.Observe)):
		s.complain(r, "an option for the first block only") // FP-77
	case has1 && !tagged:
		s.complain(r, "no Request-Tag")
	}
	if has2 && b2.Num > 0 {
		return s.block(r, key)
	}
	body := r.Payload
	if has1 {
		if b1.Num == 0 {
			if s.tags[key] {
				s.complain(r, "Request-Tag used again")
			}
			s.tags[key] = true
			s.uploads[key] = nil
		}
		if p := s.take(r, b1, key); p != nil {
			return p
		}
		body = s.uploads[key]
		delete(s.uploads, key)
	}
	s.bodies = append(s.bodies, bytes.Clone(body))
	p := s.respond(r, body)
	if r.Method == wire.FETCH && !has1 {
		key = fmt.Sprintf("payload %s", r.Payload)
	}
	s.results[key] = p
	q := s.cut(p, wire.Block{SZX: s.szx2}, has2)
	if has1 {
		q.Options = withOption(q.Options, wire.Block1, wire.Block{Num: b1.Num, SZX: b1.SZX}.Append(nil))
	}
	return q
}

// take takes one block of a request body; nil when it is the last.
func (s *modelServer) take(r *exchange.Request, b wire.Block, key string) *exchange.Response {
	answer := func(code codes.Code, more bool) *exchange.Response {
		return &exchange.Response{Code: code, Options: message.Options{blockOption(wire.Block1, int(b.Num), more, min(b.SZX, s.szx1))}}
	}
	if b.More && len(r.Payload) != b.Size() || len(r.Payload) > b.Size() || len(r.Payload) == 0 {
		s.complain(r, "%d bytes of payload", len(r.Payload))
	}
	if b.Offset() != len(s.uploads[key]) {
		return &exchange.Response{Code: codes.RequestEntityIncomplete}
	}
	switch {
	case b.SZX <= s.szx1:
	case b.Num > 0:
		s.complain(r, "a block larger than agreed")
	case s.wants413:
		return answer(codes.RequestEntityTooLarge, false)
	}
	s.uploads[key] = append(s.uploads[key], r.Payload...)
	switch {
	case b.More && s.stateless:
		return answer(codes.Changed, false)
	case b.More:
		return answer(codes.Continue, true)
	}
	return nil
}

// block returns a further block of a response.
func (s *modelServer) block(r *exchange.Request, key string) *exchange.Response {
	p := s.results[key]
	switch q := s.results[fmt.Sprintf("payload %s", r.Payload)]; {
	case r.Method == wire.FETCH && q != nil:
		p = q
	case len(r.Payload) > 0:
		s.complain(r, "payload with a further block")
	}
	if p == nil {
		s.complain(r, "no such transfer")
		return &exchange.Response{Code: codes.RequestEntityIncomplete}
	}
	b, _ := blockOf(s.t, r.Options, wire.Block2)
	if b.SZX > s.szx2 {
		s.complain(r, "a block larger than agreed")
	}
	return s.cut(p, b, true)
}

// cut returns one block of a response.
func (s *modelServer) cut(p *exchange.Response, b wire.Block, always bool) *exchange.Response {
	offset := b.Offset()
	if len(p.Payload) <= b.Size() && offset == 0 && !always {
		return p.Clone()
	}
	if offset > 0 && offset >= len(p.Payload) {
		return &exchange.Response{Code: codes.BadRequest}
	}
	end := min(offset+b.Size(), len(p.Payload))
	q := *p
	q.Payload = p.Payload[offset:end]
	q.Options = withOption(p.Options, wire.Block2, wire.Block{Num: b.Num, More: end < len(p.Payload), SZX: b.SZX}.Append(nil))
	return &q
}
