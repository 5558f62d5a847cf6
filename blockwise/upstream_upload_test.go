package blockwise

import (
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// changed is the response of a server that has taken a whole body.
func changed(*exchange.Request, []byte) *exchange.Response {
	return &exchange.Response{Code: codes.Changed, Options: message.Options{option(wire.ETag, []byte{1})}}
}

// requireBlocks checks the offsets and sizes of the Block1 blocks sent.
func requireBlocks(t tester, leg *fakeLeg, body []byte, want ...wire.Block) {
	t.Helper()
	var got []wire.Block
	for _, a := range leg.requests() {
		b, ok := a.block(wire.Block1)
		require.True(t, ok)
		require.Equal(t, body[b.Offset():min(b.Offset()+b.Size(), len(body))], a.Payload)
		got = append(got, b)
	}
	require.Equal(t, want, got)
}

// FP-72: a body that does not fit one message goes up in blocks; one that does
// goes as it is.
func TestUpstreamUpload(t *testing.T) {
	for _, size := range []int{0, 1, 1023, 1024, 1025, 2048, 2049, 65536, testLimit} {
		s := &modelServer{t: t, szx1: 6, szx2: 6, respond: changed}
		leg := s.leg()
		body := bodyOf(size)
		r := request(codes.PUT, body, option(wire.IfNoneMatch, nil), uintOption(wire.Size1, 5), option(wire.RequestTag, []byte("theirs")),
			blockOption(wire.Block2, 0, false, 6))
		r.Confirmable = false
		p := talk(t, NewUpstream(leg, testLimit), r).one()
		require.Equal(t, codes.Changed, p.Code)
		require.Equal(t, message.Options{option(wire.ETag, []byte{1})}, p.Options)
		require.Equal(t, [][]byte{body}, s.bodies)
		require.Len(t, leg.requests(), max(1, (size+1023)/1024))
		for i, a := range leg.requests() {
			require.Equal(t, i == 0, wire.Has(a.Options, wire.IfNoneMatch)) // FP-77
			require.Equal(t, i == 0, wire.Has(a.Options, wire.Size1))
			require.Equal(t, size > 1024, a.Confirmable)
			require.Equal(t, origin, a.Target.Addr)
		}
		if size > 1024 {
			require.EqualValues(t, size, uintOf(t, leg.requests()[0].Options, wire.Size1))
			tag, _ := wire.First(leg.last().Options, wire.RequestTag)
			require.NotEqual(t, "theirs", string(tag))
		} else {
			require.False(t, wire.Has(leg.last().Options, wire.Block1))
		}
	}
}

// Every block has the time of a request of its own.
func TestUpstreamUploadTakesItsTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leg := (&modelServer{t: t, szx1: 6, szx2: 6, respond: changed}).leg()
		leg.delay = func() time.Duration { return time.Minute }
		began := time.Now()
		w := talk(t, NewUpstream(leg, testLimit), request(codes.PUT, bodyOf(4000)))
		leg.wg.Wait()
		w.one()
		for i, a := range leg.requests() {
			require.Equal(t, began.Add(time.Duration(i)*time.Minute), a.Arrival)
		}
	})
}

// RFC 7959 §2.5, §3.2: a server that names a smaller size with the first
// block has taken that one whole; the number goes on in the smaller size.
func TestUpstreamUploadServerWantsSmaller(t *testing.T) {
	s := &modelServer{t: t, szx1: 4, szx2: 6, respond: changed}
	leg := s.leg()
	body := bodyOf(1600)
	talk(t, NewUpstream(leg, testLimit), request(codes.PUT, body)).one()
	requireBlocks(t, leg, body, wire.Block{More: true, SZX: 6}, wire.Block{Num: 4, More: true, SZX: 4},
		wire.Block{Num: 5, More: true, SZX: 4}, wire.Block{Num: 6, SZX: 4})
	require.Equal(t, [][]byte{body}, s.bodies)
}

// RFC 7959 §2.3: the size goes down, never up.
func TestUpstreamUploadServerWantsLarger(t *testing.T) {
	leg := &fakeLeg{t: t}
	body := bodyOf(3000)
	ask(NewUpstream(leg, testLimit), request(codes.PUT, body), &checkingSink{t: t})
	leg.last().answer(&exchange.Response{Code: codes.Continue, Options: message.Options{blockOption(wire.Block1, 0, true, 4)}})
	leg.last().answer(&exchange.Response{Code: codes.Continue, Options: message.Options{blockOption(wire.Block1, 4, true, 6)}})
	requireBlocks(t, leg, body, wire.Block{More: true, SZX: 6}, wire.Block{Num: 4, More: true, SZX: 4}, wire.Block{Num: 5, More: true, SZX: 4})
	leg.last().end(nil)
}

// RFC 7959 §2.9.3: 4.13 with a smaller size at the first block is answered by
// beginning anew with that size.
func TestUpstreamUploadTooLargeBlock(t *testing.T) {
	s := &modelServer{t: t, szx1: 2, szx2: 6, wants413: true, respond: changed}
	leg := s.leg()
	talk(t, NewUpstream(leg, testLimit), request(codes.PUT, bodyOf(1100), option(wire.IfNoneMatch, nil))).one()
	require.Equal(t, [][]byte{bodyOf(1100)}, s.bodies)
	b, _ := leg.requests()[1].block(wire.Block1)
	require.Equal(t, wire.Block{More: true, SZX: 2}, b)
	require.True(t, wire.Has(leg.requests()[1].Options, wire.IfNoneMatch)) // FP-77: it is block 0 again
}

// RFC 7959 §2.5: 4.13 for a body that went in one message is a hint to send it
// in blocks.
func TestUpstreamSmallBodyInBlocks(t *testing.T) {
	refuses := func(r *exchange.Request) *exchange.Response {
		return &exchange.Response{Code: codes.RequestEntityTooLarge, Options: message.Options{blockOption(wire.Block1, 0, false, 2)}}
	}
	s := &modelServer{t: t, szx1: 2, szx2: 6, respond: changed}
	leg := &fakeLeg{t: t, answer: func(r *exchange.Request) *exchange.Response {
		if !wire.Has(r.Options, wire.Block1) {
			return refuses(r)
		}
		return s.answer(r)
	}}
	u := NewUpstream(leg, testLimit)
	talk(t, u, request(codes.PUT, bodyOf(150))).one()
	require.Equal(t, [][]byte{bodyOf(150)}, s.bodies)
	require.Len(t, leg.requests(), 4)

	p := talk(t, u, request(codes.PUT, bodyOf(60))).one() // smaller than what it takes
	require.Equal(t, codes.RequestEntityTooLarge, p.Code)
	require.Empty(t, p.Options)

	leg.answer = func(*exchange.Request) *exchange.Response {
		return &exchange.Response{Code: codes.RequestEntityTooLarge}
	}
	require.Equal(t, codes.RequestEntityTooLarge, talk(t, u, request(codes.PUT, bodyOf(150))).one().Code)

	leg.asked = nil // and one that is never content: the size goes down, so it ends
	leg.answer = func(r *exchange.Request) *exchange.Response {
		p := refuses(r)
		if b, ok := blockOf(t, r.Options, wire.Block1); ok {
			p.Options = message.Options{blockOption(wire.Block1, 0, false, max(b.SZX, 1)-1)}
		}
		return p
	}
	require.Equal(t, codes.RequestEntityTooLarge, talk(t, u, request(codes.PUT, bodyOf(150))).one().Code)
	require.Len(t, leg.requests(), 4)
}

// RFC 7959 §2.3: a server may act on every block by itself; the response to the
// last one is the response.
func TestUpstreamUploadStatelessServer(t *testing.T) {
	s := &modelServer{t: t, szx1: 6, szx2: 6, stateless: true, respond: func(*exchange.Request, []byte) *exchange.Response {
		return &exchange.Response{Code: codes.Changed, Payload: []byte("done")}
	}}
	p := talk(t, NewUpstream(s.leg(), testLimit), request(codes.PUT, bodyOf(4000))).one()
	require.Equal(t, "done", string(p.Payload))
	require.Equal(t, [][]byte{bodyOf(4000)}, s.bodies)
}

// RFC 7959 §2.9.2: a server that has lost the first blocks gets them anew, with a new
// Request-Tag, up to three times; after that the client hears about it.
func TestUpstreamUploadLost(t *testing.T) {
	for _, losses := range []int{1, 3, 4} {
		for _, at := range []int{1, 2, 3} {
			s := &modelServer{t: t, szx1: 6, szx2: 6, respond: changed}
			left := losses
			leg := &fakeLeg{t: t, answer: func(r *exchange.Request) *exchange.Response {
				if b, _ := blockOf(t, r.Options, wire.Block1); int(b.Num) == at && left > 0 {
					left--
					return &exchange.Response{Code: codes.RequestEntityIncomplete, Payload: []byte("what?")}
				}
				return s.answer(r)
			}}
			p := talk(t, NewUpstream(leg, testLimit), request(codes.PUT, bodyOf(4000))).one()
			if losses < 4 {
				require.Equal(t, codes.Changed, p.Code)
				require.Equal(t, [][]byte{bodyOf(4000)}, s.bodies)
				require.Len(t, leg.requests(), losses*(at+1)+4)
				continue
			}
			require.Len(t, leg.requests(), 4*(at+1))
			require.Equal(t, codes.RequestEntityIncomplete, p.Code)
			require.Equal(t, "what?", string(p.Payload))
			require.Empty(t, s.bodies)
		}
	}
	leg := &fakeLeg{t: t, answer: func(*exchange.Request) *exchange.Response {
		return &exchange.Response{Code: codes.RequestEntityIncomplete}
	}}
	require.Equal(t, codes.RequestEntityIncomplete, talk(t, NewUpstream(leg, testLimit), request(codes.PUT, bodyOf(4000))).one().Code)
	require.Len(t, leg.requests(), 1, "nothing can be missing before the first block")
}

// An error in the middle is the response, and nothing is sent after it.
func TestUpstreamUploadErrorInTheMiddle(t *testing.T) {
	options := message.Options{uintOption(wire.MaxAge, 9), blockOption(wire.Block1, 2, true, 3)}
	for i, code := range []codes.Code{codes.BadOption, codes.BadOption, codes.Forbidden, codes.RequestEntityTooLarge, codes.ServiceUnavailable, codes.PreconditionFailed} {
		s := &modelServer{t: t, szx1: 6, szx2: 6, respond: changed}
		leg := &fakeLeg{t: t, answer: func(r *exchange.Request) *exchange.Response {
			if b, _ := blockOf(t, r.Options, wire.Block1); b.Num == 2 {
				return &exchange.Response{Code: code, Payload: []byte("no"), Options: options[:1+min(i, 1)]}
			}
			return s.answer(r)
		}}
		u := NewUpstream(leg, testLimit)
		p := talk(t, u, request(codes.PUT, bodyOf(4000))).one()
		require.Equal(t, code, p.Code)
		require.Equal(t, "no", string(p.Payload))
		require.Equal(t, message.Options{uintOption(wire.MaxAge, 9)}, p.Options)
		require.Len(t, leg.requests(), 3)
		require.False(t, u.isRefusing(origin)) // FP-78: it took a block before
	}
}

// A server that answers a block with something that makes no sense.
func TestUpstreamUploadNonsense(t *testing.T) {
	for name, p := range map[string]*exchange.Response{
		"no Block1":           {Code: codes.Continue},
		"another block":       {Code: codes.Continue, Options: message.Options{blockOption(wire.Block1, 1, true, 6)}},
		"reserved size":       {Code: codes.Continue, Options: message.Options{option(wire.Block1, []byte{7})}},
		"success too early":   {Code: codes.Changed},
		"content for a block": content([]byte("x")),
	} {
		leg := &fakeLeg{t: t, answer: func(*exchange.Request) *exchange.Response { return p }}
		talk(t, NewUpstream(leg, testLimit), request(codes.PUT, bodyOf(2000))).failure(exchange.BadResponse)
		require.Len(t, leg.requests(), 1, name)
	}
	leg := &fakeLeg{t: t, answer: func(r *exchange.Request) *exchange.Response {
		b, _ := blockOf(t, r.Options, wire.Block1)
		return &exchange.Response{Code: codes.Continue, Options: message.Options{blockOption(wire.Block1, int(b.Num), true, 6)}}
	}}
	talk(t, NewUpstream(leg, testLimit), request(codes.PUT, bodyOf(2000))).failure(exchange.BadResponse) // more after the last
	require.Len(t, leg.requests(), 2)
	talk(t, NewUpstream(leg, testLimit), request(codes.PUT, bodyOf(20))).failure(exchange.BadResponse) // and without a block
}

// FP-78: a server that does not know Block1 is remembered for a while, and only
// for that.
func TestUpstreamServerWithoutBlock1(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leg := &fakeLeg{t: t, answer: func(r *exchange.Request) *exchange.Response {
			if wire.Has(r.Options, wire.Block1) {
				return &exchange.Response{Code: codes.BadOption}
			}
			return changed(nil, nil)
		}}
		u := NewUpstream(leg, testLimit)
		large := func() *exchange.Request { return request(codes.PUT, bodyOf(1025)) }
		for range 3 {
			f := talk(t, u, large()).failure(exchange.TooLarge)
			require.EqualValues(t, 1024, f.Limit)
			require.Len(t, leg.requests(), 1)
		}
		talk(t, u, request(codes.PUT, bodyOf(1024))).one()
		require.Len(t, leg.requests(), 2)
		other := large()
		other.Target.Addr = bob
		talk(t, u, other).failure(exchange.TooLarge)
		require.Len(t, leg.requests(), 3, "that is another server")
		time.Sleep(refusalLifetime)
		talk(t, u, large()).failure(exchange.TooLarge)
		require.Len(t, leg.requests(), 4)
	})
}

// FP-78: a 4.02 that another option may have caused says nothing about Block1.
func TestUpstreamBadOptionForAnotherReason(t *testing.T) {
	for _, tt := range []struct {
		option   message.Option
		response message.Options
		remember bool
	}{
		{option(wire.IfMatch, []byte{1}), nil, false},
		{option(65001, nil), nil, false},
		{option(65000, nil), nil, true}, // elective
		{uintOption(wire.Accept, 50), nil, true},
		{uintOption(wire.ContentFormat, 50), message.Options{blockOption(wire.Block1, 0, true, 6)}, false}, // it knows the option
	} {
		leg := &fakeLeg{t: t, answer: func(*exchange.Request) *exchange.Response {
			return &exchange.Response{Code: codes.BadOption, Payload: []byte("which?"), Options: tt.response}
		}}
		u := NewUpstream(leg, testLimit)
		w := talk(t, u, request(codes.PUT, bodyOf(2000), tt.option))
		require.Equal(t, tt.remember, u.isRefusing(origin))
		if tt.remember {
			w.failure(exchange.TooLarge)
			continue
		}
		require.Equal(t, "which?", string(w.one().Payload))
	}
}

func TestUpstreamRemembersBounded(t *testing.T) {
	u := NewUpstream(nil, testLimit)
	for i := range maxRefusing + 5 {
		u.noteRefusal(netip.AddrPortFrom(origin.Addr(), uint16(i)))
	}
	require.Equal(t, maxRefusing, u.refuses.Len())
	require.False(t, u.isRefusing(netip.AddrPortFrom(origin.Addr(), 4)))
	require.True(t, u.isRefusing(netip.AddrPortFrom(origin.Addr(), 5)))
}

// FP-74: uploads of several clients to one resource at once have Request-Tags
// of their own, and so have two processes (RFC 9175 §3.4).
func TestUpstreamUploadsAtOnce(t *testing.T) {
	s := &modelServer{t: t, szx1: 6, szx2: 6, respond: func(_ *exchange.Request, body []byte) *exchange.Response { return content(body[:10]) }}
	leg := &fakeLeg{t: t}
	u := NewUpstream(leg, testLimit)
	var sinks []*checkingSink
	for i := range 3 {
		body := bodyOf(5000)
		body[0] = byte(i)
		w := &checkingSink{t: t}
		ask(u, request(codes.PUT, body), w)
		sinks = append(sinks, w)
	}
	for i := 0; i < len(leg.requests()); i++ {
		a := leg.requests()[i]
		a.answer(s.answer(a.Request))
	}
	for i, w := range sinks {
		require.EqualValues(t, i, w.one().Payload[0])
	}
	require.Len(t, s.tags, 3)
	require.NotEqual(t, NewUpstream(leg, 0).tags.Load(), NewUpstream(leg, 0).tags.Load())
}

// RFC 7959 §2.7: the response to the last block may be the first of several. The
// requests for the others have the Request-Tag (RFC 9175 §3.4) and no payload.
func TestUpstreamUploadThenDownload(t *testing.T) {
	for _, method := range []codes.Code{codes.POST, wire.FETCH} {
		s := &modelServer{t: t, szx1: 6, szx2: 4, respond: func(_ *exchange.Request, body []byte) *exchange.Response {
			return &exchange.Response{Code: codes.Changed, Payload: append([]byte("got "), body...)}
		}}
		leg := s.leg()
		body := bodyOf(3000)
		p := talk(t, NewUpstream(leg, testLimit), request(method, body, option(wire.IfNoneMatch, nil), uintOption(wire.Observe, 0))).one()
		require.Equal(t, codes.Changed, p.Code)
		require.Equal(t, append([]byte("got "), body...), p.Payload)
		require.Empty(t, p.Options)
		require.Len(t, leg.requests(), 3+11)
		for _, a := range leg.requests()[3:] {
			require.Empty(t, a.Payload)
			require.True(t, wire.Has(a.Options, wire.RequestTag))
			require.False(t, wire.Has(a.Options, wire.Size1))
		}
	}
}

// The blocks of a body end where the numbers do.
func TestUpstreamUploadNumberTooLarge(t *testing.T) {
	leg := &fakeLeg{t: t}
	w := &checkingSink{t: t}
	o := newOperation(NewUpstream(leg, testLimit), w, request(codes.PUT, nil))
	o.steps.serial.DoAlways(func() { o.upload((wire.MaxBlockNum+1)*16, 0) })
	w.failure(exchange.TooLarge)
	require.Empty(t, leg.requests())
}
