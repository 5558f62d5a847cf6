package blockwise

import (
	"bytes"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// sender answers requests with the blocks of a body.
func sender(t tester, body []byte, szx uint8, options ...message.Option) *fakeLeg {
	return &fakeLeg{t: t, answer: func(r *exchange.Request) *exchange.Response { return slice(t, body, r.Options, szx, options...) }}
}

// FP-72: a body that a server sends in blocks goes up as a whole.
func TestUpstreamFetch(t *testing.T) {
	for _, size := range []int{0, 1, 16, 17, 64, 65, 1024, 1025, 65536, testLimit} {
		for _, szx := range []uint8{0, 3, 6} {
			if szx == 0 && size == testLimit {
				continue
			}
			leg := sender(t, bodyOf(size), szx, option(wire.ETag, []byte{7}), uintOption(wire.MaxAge, 9), uintOption(wire.Size2, uint32(size)))
			p := talk(t, NewUpstream(leg, testLimit), request(codes.GET, nil, uintOption(wire.Accept, 50))).one()
			require.Equal(t, codes.Content, p.Code)
			require.True(t, bytes.Equal(bodyOf(size), p.Payload), size)
			require.Equal(t, []byte{7}, p.Options[0].Value)
			require.False(t, wire.Has(p.Options, wire.Block2))
			require.Equal(t, origin, p.From)
			for num, a := range leg.requests() {
				require.Equal(t, codes.GET, a.Method)
				require.Equal(t, "r", string(a.Options[0].Value))
				require.EqualValues(t, 50, uintOf(t, a.Options, wire.Accept))
				b, ok := a.block(wire.Block2)
				require.Equal(t, num > 0, ok)
				if ok {
					require.Equal(t, wire.Block{Num: uint32(num), SZX: szx}, b) // GC-55: the server's size
				}
			}
		}
	}
}

// A body at the limit passes, one byte more is 5.02 (FP-72), whether the server
// says so beforehand or not.
func TestUpstreamFetchAboveLimit(t *testing.T) {
	const limit = 1000
	for _, says := range []bool{false, true} {
		for _, size := range []int{limit, limit + 1, limit + 500} {
			var options []message.Option
			if says {
				options = append(options, uintOption(wire.Size2, uint32(size)))
			}
			leg := sender(t, bodyOf(size), 5, options...)
			w := talk(t, NewUpstream(leg, limit), request(codes.GET, nil))
			switch {
			case size == limit:
				require.Len(t, w.one().Payload, limit)
			case says:
				w.failure(exchange.BadResponse)
				require.Len(t, leg.requests(), 1)
			default:
				w.failure(exchange.BadResponse)
				require.Len(t, leg.requests(), 2)
			}
		}
	}
}

// A server that always says More is stopped by the limit.
func TestUpstreamFetchWithoutEnd(t *testing.T) {
	leg := &fakeLeg{t: t, answer: func(r *exchange.Request) *exchange.Response {
		b, _ := blockOf(t, r.Options, wire.Block2)
		return content(bodyOf(16), blockOption(wire.Block2, int(b.Num), true, 0))
	}}
	const limit = 1 << 15
	talk(t, NewUpstream(leg, limit), request(codes.GET, nil)).failure(exchange.BadResponse)
	require.Len(t, leg.requests(), limit/16+1)
}

// The number of blocks is bounded by what the option can carry.
func TestUpstreamFetchNumberTooLarge(t *testing.T) {
	var got error
	f := &fetch{steps: &steps{}, first: &exchange.Response{Payload: make([]byte, (wire.MaxBlockNum+1)*16)}, done: func(err error) { got = err }}
	f.next(0)
	require.ErrorIs(t, got, errTooLarge)
}

// FP-75: an ETag that changes midway makes the download begin anew once.
func TestUpstreamFetchChanged(t *testing.T) {
	etag := func(v byte) message.Option { return option(wire.ETag, []byte{v}) }
	for _, method := range []codes.Code{codes.GET, wire.FETCH, codes.POST} {
		for changes := range 3 {
			version, asked := byte(1), 0
			leg := &fakeLeg{t: t}
			leg.answer = func(r *exchange.Request) *exchange.Response {
				asked++
				if b, _ := blockOf(t, r.Options, wire.Block2); b.Num == 2 && int(version) <= changes {
					version++
				}
				return slice(t, bytes.Repeat([]byte{version}, 200), r.Options, 2, etag(version))
			}
			var payload []byte
			if method != codes.GET {
				payload = []byte("q")
			}
			r := request(method, payload, option(wire.URIQuery, []byte("q")), uintOption(wire.Observe, 0), blockOption(wire.Block2, 0, false, 6))
			w := talk(t, NewUpstream(leg, testLimit), r)
			switch {
			case changes == 0 || changes == 1 && method != codes.POST:
				p := w.one()
				require.Equal(t, bytes.Repeat([]byte{byte(changes + 1)}, 200), p.Payload)
				require.Equal(t, message.Options{etag(byte(changes + 1))}, p.Options)
			default:
				w.failure(exchange.BadResponse)
			}
			require.LessOrEqual(t, asked, 7)
			for i, a := range leg.requests() {
				require.Equal(t, i == 0, wire.Has(a.Options, wire.Observe)) // RFC 7959 §2.6
				require.Equal(t, method == wire.FETCH || method == codes.POST && i == 0, len(a.Payload) > 0)
				require.True(t, wire.Has(a.Options, wire.URIQuery))
			}
		}
	}
}

// The request that begins anew has its own time.
func TestUpstreamFetchChangedLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leg := &fakeLeg{t: t}
		w := &checkingSink{t: t}
		ask(NewUpstream(leg, testLimit), request(codes.GET, nil), w)
		for i := range 3 {
			time.Sleep(time.Second)
			leg.last().answer(content(bodyOf(64), option(wire.ETag, []byte{byte(i)}), blockOption(wire.Block2, i%2, i < 2, 2)))
		}
		require.Equal(t, bodyOf(64), w.one().Payload)
		require.Equal(t, leg.requests()[0].Arrival.Add(2*time.Second), leg.last().Arrival)
	})
}

// FP-75 for a request that itself went up in blocks: it goes up again.
func TestUpstreamFetchChangedAfterUpload(t *testing.T) {
	version := byte(1)
	s := &modelServer{t: t, szx1: 6, szx2: 2, respond: func(_ *exchange.Request, body []byte) *exchange.Response {
		return content(bytes.Repeat(body[:1], 200), option(wire.ETag, []byte{version}))
	}}
	leg := &fakeLeg{t: t, answer: func(r *exchange.Request) *exchange.Response {
		p := s.answer(r)
		if b, _ := blockOf(t, r.Options, wire.Block2); b.Num == 1 && version == 1 {
			version++
			p.Options = withOption(p.Options, wire.ETag, []byte{version})
		}
		return p
	}}
	require.Len(t, talk(t, NewUpstream(leg, testLimit), request(wire.FETCH, bodyOf(1500))).one().Payload, 200)
	require.Len(t, s.bodies, 2)
	require.Len(t, s.tags, 2)
}

// A server that has no such block any more is asked anew once; other errors are
// the response.
func TestUpstreamFetchError(t *testing.T) {
	for code, restarts := range map[codes.Code]bool{codes.BadRequest: true, codes.BadOption: true, codes.RequestEntityIncomplete: true,
		codes.Valid: true, codes.Unauthorized: false, codes.NotFound: false, codes.TooManyRequests: false, codes.ServiceUnavailable: false} {
		for errors := range 3 {
			left := errors
			leg := &fakeLeg{t: t, answer: func(r *exchange.Request) *exchange.Response {
				if b, _ := blockOf(t, r.Options, wire.Block2); b.Num == 1 && left > 0 {
					left--
					return &exchange.Response{Code: code, Payload: []byte("no"), Options: message.Options{uintOption(wire.MaxAge, 5), blockOption(wire.Block2, 1, true, 2)}}
				}
				return slice(t, bodyOf(100), r.Options, 2)
			}}
			w := talk(t, NewUpstream(leg, testLimit), request(codes.GET, nil))
			switch {
			case errors == 0 || errors == 1 && restarts:
				require.Equal(t, bodyOf(100), w.one().Payload)
			case restarts:
				w.failure(exchange.BadResponse)
			default:
				p := w.one()
				require.Equal(t, code, p.Code)
				require.Equal(t, "no", string(p.Payload))
				require.Equal(t, message.Options{uintOption(wire.MaxAge, 5)}, p.Options)
				require.Equal(t, origin, p.From)
			}
		}
	}
}

// An error can be in blocks, too.
func TestUpstreamFetchLongError(t *testing.T) {
	leg := &fakeLeg{t: t, answer: func(r *exchange.Request) *exchange.Response {
		p := slice(t, bodyOf(100), r.Options, 2)
		p.Code = codes.NotFound
		return p
	}}
	p := talk(t, NewUpstream(leg, testLimit), request(codes.GET, nil)).one()
	require.Equal(t, codes.NotFound, p.Code)
	require.Equal(t, bodyOf(100), p.Payload)
}

// FP-75: blocks that do not fit together are a bad response, and never a body.
func TestUpstreamFetchBadBlock(t *testing.T) {
	body := bodyOf(300)
	block := func(num int, more bool, szx uint8, payload []byte, options ...message.Option) *exchange.Response {
		return content(payload, append(options, blockOption(wire.Block2, num, more, szx))...)
	}
	etag := option(wire.ETag, []byte{1})
	for _, tt := range []struct {
		name  string
		first *exchange.Response // default: a good one
		then  *exchange.Response
	}{
		{"duplicate", nil, block(0, true, 2, body[:64])},
		{"out of order", nil, block(2, true, 2, body[128:192])},
		{"short", nil, block(1, true, 2, body[64:127])},
		{"long", nil, block(1, true, 2, body[64:129])},
		{"long last", nil, block(1, false, 2, body[64:129])},
		{"empty", nil, block(1, true, 2, nil)},
		{"reserved size", nil, content(body[64:128], option(wire.Block2, []byte{0x1f}))},
		{"option too long", nil, content(body[64:128], option(wire.Block2, []byte{0, 0, 0, 0x1a}))},
		{"without Block2", nil, content(body[64:128])},
		{"first with another number", block(1, true, 2, body[:64]), nil},
		{"last as first", block(3, false, 2, body[:64]), nil},
		{"short first", block(0, true, 2, body[:63]), nil},
		{"long first", block(0, true, 2, body[:65]), nil},
		{"long first and last", block(0, false, 2, body[:65]), nil},
		{"first with the reserved size", content(body[:64], option(wire.Block2, []byte{0x0f})), nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			leg := &fakeLeg{t: t, answer: func(r *exchange.Request) *exchange.Response {
				switch b, _ := blockOf(t, r.Options, wire.Block2); {
				case b.Num == 0 && tt.first != nil:
					return tt.first
				case b.Num == 0:
					return block(0, true, 2, body[:64])
				}
				return tt.then
			}}
			talk(t, NewUpstream(leg, testLimit), request(codes.GET, nil)).failure(exchange.BadResponse)
			require.Len(t, leg.requests(), map[bool]int{true: 2, false: 1}[tt.first == nil])
		})
	}
	t.Run("larger than asked", func(t *testing.T) {
		leg := &fakeLeg{t: t}
		w := &checkingSink{t: t}
		ask(NewUpstream(leg, testLimit), request(codes.GET, nil), w)
		for num := range 2 {
			leg.last().answer(block(num, true, 2, body[64*num:64*num+64]))
		}
		leg.last().answer(block(1, false, 3, body[128:200]))
		w.failure(exchange.BadResponse)
	})
	t.Run("ETag gone", func(t *testing.T) {
		leg := &fakeLeg{t: t, answer: func(r *exchange.Request) *exchange.Response {
			if b, _ := blockOf(t, r.Options, wire.Block2); b.Num == 0 {
				return block(0, true, 2, body[:64], etag)
			}
			return block(1, false, 2, body[64:100])
		}}
		talk(t, NewUpstream(leg, testLimit), request(codes.GET, nil)).failure(exchange.BadResponse)
		require.Len(t, leg.requests(), 4)
	})
}

// The server may choose smaller blocks as it goes, and end with an empty one.
func TestUpstreamFetchSizeGoesDown(t *testing.T) {
	leg := &fakeLeg{t: t}
	w := &checkingSink{t: t}
	ask(NewUpstream(leg, testLimit), request(codes.GET, nil), w)
	body := bodyOf(64 + 16 + 16)
	leg.last().answer(content(body[:64], blockOption(wire.Block2, 0, true, 2)))
	leg.last().answer(content(body[64:80], blockOption(wire.Block2, 4, true, 0)))
	b, _ := leg.last().block(wire.Block2)
	require.Equal(t, wire.Block{Num: 5}, b)
	leg.last().answer(content(body[80:96], blockOption(wire.Block2, 5, true, 0)))
	leg.last().answer(content(nil, blockOption(wire.Block2, 6, false, 0)))
	require.Equal(t, body, w.one().Payload)
}

// The first request is the client's; those for the other blocks are confirmable
// and have their own time.
func TestUpstreamFetchRequests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leg := sender(t, bodyOf(200), 2)
		leg.delay = func() time.Duration { return time.Minute }
		r := request(wire.FETCH, []byte("query"), uintOption(wire.Size2, 0), uintOption(wire.NoResponse, 2), option(wire.Echo, []byte{3}), option(wire.ETag, []byte{9}))
		r.Confirmable = false
		r.Timeout = exchange.Timeout{Seconds: 5, Present: true}
		r.Target.Also = []exchange.GroupAddr{{Addr: bob}}
		r.Client = &exchange.Identity{Name: "c"}
		w := talk(t, NewUpstream(leg, testLimit), r)
		leg.wg.Wait()
		w.one()
		all := leg.requests()
		require.Equal(t, r, all[0].Request)
		for i, a := range all[1:] {
			require.True(t, a.Confirmable)
			require.Equal(t, exchange.Timeout{}, a.Timeout)
			require.Equal(t, r.Arrival.Add(time.Duration(i+1)*time.Minute), a.Arrival)
			require.Equal(t, r.Payload, a.Payload)
			require.Equal(t, r.Target, a.Target)
			require.Same(t, r.Client, a.Client)
			require.Equal(t, message.Options{option(wire.ETag, []byte{9}), option(wire.URIPath, []byte("r")), blockOption(wire.Block2, i+1, false, 2),
				option(wire.Echo, []byte{3})}, a.Options)
		}
	})
}

// FP-76: a request for one further block passes through, with its response.
func TestUpstreamPassesSingleBlock(t *testing.T) {
	leg := sender(t, bodyOf(1000), 2)
	p := talk(t, NewUpstream(leg, testLimit), request(codes.GET, nil, blockOption(wire.Block2, 3, false, 2))).one()
	require.Equal(t, bodyOf(1000)[192:256], p.Payload)
	require.Equal(t, message.Options{blockOption(wire.Block2, 3, true, 2)}, p.Options)
	require.Len(t, leg.requests(), 1)
}

// What is no body in blocks passes as it is, Block2 of a single block aside.
func TestUpstreamPassesWhole(t *testing.T) {
	for _, options := range []message.Options{nil, {blockOption(wire.Block2, 0, false, 2)}, {blockOption(wire.Block2, 0, false, 2), blockOption(wire.Block1, 0, false, 2)}} {
		leg := &fakeLeg{t: t, answer: func(*exchange.Request) *exchange.Response { return content([]byte("x"), options...) }}
		p := talk(t, NewUpstream(leg, testLimit), request(codes.GET, nil)).one()
		require.Equal(t, "x", string(p.Payload))
		require.Empty(t, p.Options)
	}
}

// The leg's end is the exchange's, at any stage.
func TestUpstreamLegFails(t *testing.T) {
	for n := range 6 {
		s := &modelServer{t: t, szx1: 6, szx2: 4, respond: func(_ *exchange.Request, body []byte) *exchange.Response { return content(bodyOf(1000)) }}
		leg := s.leg()
		leg.fail = func(*exchange.Request) error {
			if len(leg.asked) == n+1 {
				return errTest
			}
			return nil
		}
		w := talk(t, NewUpstream(leg, testLimit), request(codes.POST, bodyOf(3000)))
		ends, err := w.ended()
		require.Equal(t, 1, ends)
		require.ErrorIs(t, err, errTest, n)
		require.Empty(t, w.responses())
		require.Len(t, leg.requests(), n+1)
	}
	for _, r := range []*exchange.Request{request(codes.GET, nil), request(codes.PUT, bodyOf(2000))} { // in spite of a response
		leg := &fakeLeg{t: t}
		w := &checkingSink{t: t}
		u := NewUpstream(leg, testLimit)
		ask(u, r, w)
		leg.last().respond(content(bodyOf(64), blockOption(wire.Block2, 0, true, 2), blockOption(wire.Block1, 0, true, 6)))
		leg.last().end(errTest)
		_, err := w.ended()
		require.ErrorIs(t, err, errTest)
		require.Len(t, leg.requests(), 1)
		require.Zero(t, u.bytes.Load())
	}
	leg := &fakeLeg{t: t} // one that ends without a response
	w := &checkingSink{t: t}
	ask(NewUpstream(leg, testLimit), request(codes.GET, nil), w)
	leg.last().answer(content(bodyOf(64), blockOption(wire.Block2, 0, true, 2)))
	leg.last().end(nil)
	w.failure(exchange.BadResponse)
}

// A block that never comes ends the exchange when the leg gives up.
func TestUpstreamBlockNeverComes(t *testing.T) {
	leg := &fakeLeg{t: t}
	w := &checkingSink{t: t}
	ask(NewUpstream(leg, testLimit), request(codes.GET, nil), w)
	leg.last().answer(content(bodyOf(64), blockOption(wire.Block2, 0, true, 2)))
	require.Len(t, leg.requests(), 2)
	ends, _ := w.ended()
	require.Zero(t, ends)
	leg.last().end(&exchange.Failure{Reason: exchange.NoAnswer, Detail: "silence"})
	w.failure(exchange.NoAnswer)
}

// The bodies under way are bounded; whoever comes too late hears 5.03 (FP-34),
// and what an exchange had is free after it, however it ends.
func TestUpstreamBodiesBounded(t *testing.T) {
	leg := &fakeLeg{t: t}
	u := NewUpstream(leg, testLimit)
	var cancel []exchange.Canceler
	for range maxUnderWay / testLimit {
		cancel = append(cancel, ask(u, request(codes.PUT, make([]byte, testLimit)), &checkingSink{t: t}))
	}
	require.EqualValues(t, maxUnderWay, u.bytes.Load())
	asked := len(leg.requests())
	f := talk(t, u, request(codes.PUT, bodyOf(1025))).failure(exchange.Overloaded)
	require.Positive(t, f.RetryAfter)
	require.Len(t, leg.requests(), asked)

	w := &checkingSink{t: t}
	ask(u, request(codes.GET, nil), w)
	leg.last().answer(content(bodyOf(64), blockOption(wire.Block2, 0, true, 2)))
	w.failure(exchange.Overloaded)

	cancel[0].Cancel()
	w = &checkingSink{t: t}
	ask(u, request(codes.GET, nil), w)
	leg.last().answer(content(bodyOf(64), blockOption(wire.Block2, 0, true, 2)))
	require.EqualValues(t, maxUnderWay-testLimit+64, u.bytes.Load())
	u.bytes.Add(testLimit - 64 - 63)
	leg.last().answer(content(bodyOf(64), blockOption(wire.Block2, 1, true, 2)))
	w.failure(exchange.Overloaded)
	u.bytes.Add(-(testLimit - 64 - 63))

	for _, c := range cancel {
		c.Cancel()
	}
	require.Zero(t, u.bytes.Load())
	for _, changes := range []int{0, 1, 9} { // FP-75: nothing is counted twice
		version := 0
		leg := &fakeLeg{t: t, answer: func(r *exchange.Request) *exchange.Response {
			if b, _ := blockOf(t, r.Options, wire.Block2); b.Num == 1 && version < changes {
				version++
			}
			require.LessOrEqual(t, u.bytes.Load(), int64(200))
			return slice(t, bodyOf(200), r.Options, 2, option(wire.ETag, []byte{byte(version)}))
		}}
		u = NewUpstream(leg, testLimit)
		talk(t, u, request(codes.GET, nil))
		require.Zero(t, u.bytes.Load())
	}
}

// However slowly a server answers, its transfer ends: nothing further is asked when
// the time is over, in neither direction (FP-32).
func TestUpstreamTransferEnds(t *testing.T) {
	for name, body := range map[string][]byte{"down": nil, "up": make([]byte, 1<<20)} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				leg := &fakeLeg{t: t}
				u := NewUpstream(leg, testLimit)
				w := &checkingSink{t: t}
				method := codes.GET
				if body != nil {
					method = codes.PUT
				}
				ask(u, request(method, body), w)
				blocks := 0
				for began := time.Now(); ; blocks++ {
					if ends, _ := w.ended(); ends > 0 {
						require.WithinDuration(t, began.Add(operationTime), time.Now(), 2*time.Minute)
						break
					}
					time.Sleep(59 * time.Second)
					if body == nil {
						leg.last().answer(content(bodyOf(16), blockOption(wire.Block2, blocks, true, 0)))
					} else {
						p := content(nil, blockOption(wire.Block1, blocks, true, 6))
						p.Code = codes.Continue
						leg.last().answer(p)
					}
				}
				w.failure(exchange.NoAnswer)
				require.Zero(t, u.bytes.Load())
				require.Greater(t, blocks, 15)
			})
		})
	}
}
