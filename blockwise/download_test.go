package blockwise

import (
	"bytes"
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

// bodyLeg answers every request with a body and some options.
func bodyLeg(t tester, body []byte, options ...message.Option) *fakeLeg {
	return &fakeLeg{t: t, answer: func(*exchange.Request) *exchange.Response { return content(body, options...) }}
}

// get returns a request for one block.
func get(num int, szx uint8, options ...message.Option) *exchange.Request {
	return request(codes.GET, nil, append(options, blockOption(wire.Block2, num, false, szx))...)
}

// download fetches a body as a client does that wants blocks of one size.
func download(t tester, d exchange.Handler, first *exchange.Request, next func(num int, szx uint8) *exchange.Request) []byte {
	t.Helper()
	p := talk(t, d, first).one()
	body := p.Payload
	b, more := blockOf(t, p.Options, wire.Block2)
	more = more && b.More
	for more {
		require.Len(t, p.Payload, b.Size())
		require.Zero(t, len(body)%b.Size())
		num := len(body) / b.Size()
		p = talk(t, d, next(num, b.SZX)).one()
		got, ok := blockOf(t, p.Options, wire.Block2)
		require.True(t, ok)
		require.Equal(t, len(body), got.Offset())
		body, b, more = append(body, p.Payload...), got, got.More
	}
	return body
}

func getNext(num int, szx uint8) *exchange.Request { return get(num, szx) }

// FP-72: a body goes to the client in blocks of the size it wishes, or of the
// largest when it is too long for one message; the server is asked once.
func TestDownload(t *testing.T) {
	for _, size := range []int{0, 1, 16, 17, 1023, 1024, 1025, 65536, testLimit} {
		for _, wish := range []int{-1, 0, 4, 6} {
			if wish >= 0 && wish < 6 && size == testLimit {
				continue
			}
			t.Run(name(size, " with SZX ", wish), func(t *testing.T) {
				body := bodyOf(size)
				leg := bodyLeg(t, body)
				d, stats := newDownstream(leg)
				first := request(codes.GET, nil)
				szx := uint8(6)
				if wish >= 0 {
					szx = uint8(wish)
					first = get(0, szx)
				}
				require.True(t, bytes.Equal(body, download(t, d, first, getNext)))
				require.Len(t, leg.requests(), 1)
				require.False(t, wire.Has(leg.last().Options, wire.Block2))
				require.Zero(t, d.bodies.bodies.Len(), "nothing stays after the last block")
				blocks := (size + 16<<szx - 1) / (16 << szx)
				if blocks < 2 {
					blocks = 0
				}
				require.EqualValues(t, blocks, stats.Cut.Load())
			})
		}
	}
}

// RFC 7959 §2.4, §4: every block has the options of the response, the first one
// the size too.
func TestDownloadOptions(t *testing.T) {
	leg := bodyLeg(t, bodyOf(100), option(wire.ETag, []byte("e1")), uintOption(wire.ContentFormat, 50), uintOption(wire.MaxAge, 30))
	d, _ := newDownstream(leg)
	p := talk(t, d, get(0, 2)).one()
	require.Equal(t, codes.Content, p.Code)
	require.Equal(t, message.Options{option(wire.ETag, []byte("e1")), uintOption(wire.ContentFormat, 50), uintOption(wire.MaxAge, 30),
		blockOption(wire.Block2, 0, true, 2), uintOption(wire.Size2, 100)}, p.Options)
	require.Equal(t, origin, p.From)
	p = talk(t, d, get(1, 2)).one()
	require.Equal(t, message.Options{option(wire.ETag, []byte("e1")), uintOption(wire.ContentFormat, 50), uintOption(wire.MaxAge, 30),
		blockOption(wire.Block2, 1, false, 2)}, p.Options)
	require.Equal(t, bodyOf(100)[64:], p.Payload)
	require.Equal(t, origin, p.From)
	require.Len(t, leg.requests(), 1)
}

// FP-42: later blocks say how long the body stays fresh from then on.
func TestDownloadAges(t *testing.T) {
	for _, tt := range []struct {
		name    string
		options []message.Option
		code    codes.Code
		want    []uint32 // after 0, 1.5, 50 and 200 s; none: no Max-Age
	}{
		{"named", []message.Option{uintOption(wire.MaxAge, 55)}, codes.Content, []uint32{55, 54, 5, 0}},
		{"by default", nil, codes.Content, []uint32{1 << 31, 59, 10, 0}},
		{"not fresh", []message.Option{uintOption(wire.MaxAge, 0)}, codes.Content, []uint32{0, 0, 0, 0}},
		{"without a meaning", nil, codes.Changed, nil},
	} {
		t.Run(tt.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				leg := &fakeLeg{t: t, answer: func(*exchange.Request) *exchange.Response {
					return &exchange.Response{Code: tt.code, Payload: bodyOf(300), Options: tt.options}
				}}
				d, _ := newDownstream(leg)
				talk(t, d, get(0, 2)).one()
				began := time.Now()
				for i, after := range []time.Duration{0, 1500 * time.Millisecond, 50 * time.Second, 200 * time.Second} {
					time.Sleep(time.Until(began.Add(after)))
					p := talk(t, d, get(1, 2)).one()
					if len(tt.want) == 0 || tt.want[i] == 1<<31 {
						require.False(t, wire.Has(p.Options, wire.MaxAge))
						continue
					}
					require.Equal(t, tt.want[i], uintOf(t, p.Options, wire.MaxAge))
				}
				require.Len(t, leg.requests(), 1)
			})
		})
	}
}

// RFC 7959 §2.4: a client may ask for another size midway; the number counts in
// blocks of that size.
func TestDownloadChangesSize(t *testing.T) {
	body := bodyOf(1000)
	leg := bodyLeg(t, body)
	d, _ := newDownstream(leg)
	talk(t, d, get(0, 4)).one()       // 0..255
	p := talk(t, d, get(8, 1)).one()  // 256..287
	q := talk(t, d, get(18, 0)).one() // 288..303
	s := talk(t, d, get(1, 5)).one()  // 512..1000
	require.Equal(t, body[256:288], p.Payload)
	require.Equal(t, body[288:304], q.Payload)
	require.Equal(t, body[512:], s.Payload)
	b, _ := blockOf(t, p.Options, wire.Block2)
	require.Equal(t, wire.Block{Num: 8, More: true, SZX: 1}, b)
	require.Len(t, leg.requests(), 1)
}

// A block is never larger than what the front can hand on, whatever the client
// wishes.
func TestDownloadToSmallFront(t *testing.T) {
	body := bodyOf(300)
	d, _ := newDownstream(bodyLeg(t, body))
	small := func(r *exchange.Request) *exchange.Request { r.BodyLimit = 100; return r }
	p := talk(t, d, small(get(0, 6))).one()
	b, _ := blockOf(t, p.Options, wire.Block2)
	require.Equal(t, wire.Block{More: true, SZX: 2}, b)
	p = talk(t, d, small(get(1, 3))).one() // byte 128
	b, _ = blockOf(t, p.Options, wire.Block2)
	require.Equal(t, wire.Block{Num: 2, More: true, SZX: 2}, b)
	require.Equal(t, body[128:192], p.Payload)
}

// What the front can hand on in one piece is not cut unless the client wishes.
func TestDownloadToLargeFront(t *testing.T) {
	d, _ := newDownstream(bodyLeg(t, bodyOf(5000)))
	for _, r := range []*exchange.Request{request(codes.GET, nil), get(0, 6)} {
		r.BodyLimit = 5000
		p := talk(t, d, r).one()
		wishes := wire.Has(r.Options, wire.Block2)
		require.Equal(t, wishes, wire.Has(p.Options, wire.Block2))
		require.Equal(t, wishes, len(p.Payload) < 5000)
	}
}

// RFC 7959 §2.4: a number beyond the end is a bad request.
func TestDownloadBeyondEnd(t *testing.T) {
	d, _ := newDownstream(bodyLeg(t, bodyOf(128)))
	talk(t, d, get(0, 2)).one()
	talk(t, d, get(2, 2)).failure(exchange.BadRequest)
	talk(t, d, get(1, 2)).one()
	talk(t, d, get(2, 2)).failure(exchange.BadRequest) // also when it has to be fetched first
	talk(t, d, get(wire.MaxBlockNum, 6)).failure(exchange.BadRequest)
}

// A further block that is not stored any more, or that is asked for out of the
// blue, costs a fetch of the whole if the request can be made again.
func TestDownloadFromTheMiddle(t *testing.T) {
	body := bodyOf(300)
	leg := bodyLeg(t, body)
	d, _ := newDownstream(leg)
	p := talk(t, d, get(2, 2)).one()
	require.Equal(t, body[128:192], p.Payload)
	b, _ := blockOf(t, p.Options, wire.Block2)
	require.Equal(t, wire.Block{Num: 2, More: true, SZX: 2}, b)
	require.False(t, wire.Has(p.Options, wire.Size2))
	talk(t, d, get(3, 2)).one()
	require.Len(t, leg.requests(), 1)

	for _, r := range []*exchange.Request{request(codes.POST, nil, blockOption(wire.Block2, 1, false, 2)),
		request(wire.FETCH, nil, blockOption(wire.Block2, 1, false, 2))} {
		talk(t, d, r).failure(exchange.Incomplete)
	}
	require.Len(t, leg.requests(), 1)
}

// What is not a body answers the request for any block as it is.
func TestDownloadNoBody(t *testing.T) {
	for _, p := range []*exchange.Response{
		{Code: codes.NotFound, Payload: []byte("gone")},
		{Code: codes.TooManyRequests, Options: message.Options{uintOption(wire.MaxAge, 9)}},
		{Code: codes.NotFound, Payload: bodyOf(900)},
		{Code: codes.Valid, Options: message.Options{option(wire.ETag, []byte{1})}},
		{Code: codes.Deleted},
	} {
		leg := &fakeLeg{t: t, answer: func(*exchange.Request) *exchange.Response { return p }}
		d, _ := newDownstream(leg)
		got := talk(t, d, get(3, 2)).one()
		require.Equal(t, p.Code, got.Code)
		require.Equal(t, p.Payload, got.Payload)
		require.Len(t, got.Options, len(p.Options))
	}
	// The error can be too long for the client, too.
	leg := &fakeLeg{t: t, answer: func(*exchange.Request) *exchange.Response {
		return &exchange.Response{Code: codes.NotFound, Payload: bodyOf(3000)}
	}}
	d, _ := newDownstream(leg)
	require.Equal(t, bodyOf(3000), download(t, d, get(0, 6), getNext))
	require.Len(t, leg.requests(), 1)

	leg = &fakeLeg{t: t, answer: func(*exchange.Request) *exchange.Response {
		return &exchange.Response{Code: codes.NotFound, Payload: bodyOf(300)}
	}}
	d, _ = newDownstream(leg)
	require.Equal(t, bodyOf(300), download(t, d, get(0, 2), getNext))
	require.Len(t, leg.requests(), 1)
}

// FP-73: stored bodies are kept apart by client and by everything the response
// depends on.
func TestDownloadsAtOnce(t *testing.T) {
	other := &exchange.Identity{Name: "other"}
	for _, tt := range []struct {
		name string
		b    func(*exchange.Request)
	}{
		{"clients", func(r *exchange.Request) { r.Peer = bob }},
		{"identities", func(r *exchange.Request) { r.Client = other }},
		{"servers", func(r *exchange.Request) { r.Target.Addr = bob }},
		{"names of a server", func(r *exchange.Request) { r.Target.Host = "b.example" }},
		{"schemes", func(r *exchange.Request) { r.Target.Scheme = "coaps" }},
		{"methods", func(r *exchange.Request) { r.Method = codes.POST }},
		{"queries", func(r *exchange.Request) { r.Options = withOption(r.Options, wire.URIQuery, []byte("q")) }},
		{"Accept", func(r *exchange.Request) { r.Options = withOption(r.Options, wire.Accept, []byte{50}) }},
		{"payloads", func(r *exchange.Request) { r.Payload = []byte("another") }},
		{"Request-Tags", func(r *exchange.Request) { r.Options = withOption(r.Options, wire.RequestTag, []byte("q")) }},
	} {
		t.Run(tt.name, func(t *testing.T) {
			n := byte(0)
			leg := &fakeLeg{t: t, answer: func(*exchange.Request) *exchange.Response {
				n++
				return content(bytes.Repeat([]byte{n}, 150))
			}}
			d, _ := newDownstream(leg)
			ask := func(num int, other bool) []byte {
				r := request(wire.FETCH, []byte("query"), blockOption(wire.Block2, num, false, 2))
				if other {
					tt.b(r)
				}
				return talk(t, d, r).one().Payload
			}
			require.Equal(t, bytes.Repeat([]byte{1}, 64), ask(0, false))
			require.Equal(t, bytes.Repeat([]byte{2}, 64), ask(0, true))
			require.Equal(t, bytes.Repeat([]byte{1}, 64), ask(1, false))
			require.Equal(t, bytes.Repeat([]byte{2}, 64), ask(1, true))
			require.Equal(t, bytes.Repeat([]byte{1}, 22), ask(2, false))
			require.Equal(t, bytes.Repeat([]byte{2}, 22), ask(2, true))
		})
	}
}

// Some clients do not repeat the payload of a FETCH or POST when they ask for
// the further blocks of its response: they get those of the latest one.
func TestDownloadWithoutPayloadRepeated(t *testing.T) {
	for _, method := range []codes.Code{wire.FETCH, codes.POST} {
		leg := &fakeLeg{t: t, answer: func(r *exchange.Request) *exchange.Response { return content(bytes.Repeat(r.Payload, 300)) }}
		d, _ := newDownstream(leg)
		block := func(payload string, num int) byte {
			return talk(t, d, request(method, []byte(payload), blockOption(wire.Block2, num, false, 2))).one().Payload[0]
		}
		require.Equal(t, byte('a'), block("a", 0))
		require.Equal(t, byte('a'), block("", 1))
		require.Equal(t, byte('b'), block("b", 0))
		require.Equal(t, byte('b'), block("", 1))
		require.Equal(t, byte('a'), block("a", 1))
		require.Len(t, leg.requests(), 2)

		// The latest may have come in blocks itself.
		talk(t, d, request(method, []byte("c"), blockOption(wire.Block1, 0, false, 2), blockOption(wire.Block2, 0, false, 2))).one()
		require.Equal(t, byte('c'), block("", 1))
		require.Equal(t, byte('d'), block("d", 0))
		require.Equal(t, byte('d'), block("", 1))
		require.Len(t, leg.requests(), 4)
		if method == wire.FETCH { // after its last block none of those before it comes back
			talk(t, d, request(method, []byte("e"), blockOption(wire.Block1, 0, false, 2), blockOption(wire.Block2, 0, false, 2))).one()
			require.Equal(t, byte('e'), block("", 4))
			talk(t, d, request(method, nil, blockOption(wire.Block2, 1, false, 2))).failure(exchange.Incomplete)
		}
	}
}

// RFC 7959 §2.7: the request in blocks, then the response; the client may name
// the size of the response's blocks with the last one of the request. The
// Request-Tag stays until the end (RFC 9175 §3.4).
func TestUploadThenDownload(t *testing.T) {
	for _, wish := range []bool{false, true} {
		for _, tags := range [][]string{{""}, {"a", "b"}} {
			leg := &fakeLeg{t: t, answer: func(r *exchange.Request) *exchange.Response {
				return &exchange.Response{Code: codes.Changed, Payload: append(bytes.Clone(r.Payload), bodyOf(3000)...)}
			}}
			d, _ := newDownstream(leg)
			tagged := func(r *exchange.Request, tag string) *exchange.Request {
				if tag != "" {
					r.Options = withOption(r.Options, wire.RequestTag, []byte(tag))
				}
				return r
			}
			szx, got := uint8(6), make([][]byte, len(tags))
			for i, tag := range tags {
				body := bytes.Repeat([]byte{byte(i + 1)}, 150)
				for num := range 2 {
					r := tagged(put(body, num, 2), tag)
					r.Method = codes.POST
					requireContinue(t, talk(t, d, r), num, 2)
				}
				r := tagged(put(body, 2, 2), tag)
				r.Method = codes.POST
				if wish {
					szx = 3
					r.Options = withOption(r.Options, wire.Block2, wire.Block{SZX: szx}.Append(nil))
				}
				p := talk(t, d, r).one()
				require.Equal(t, codes.Changed, p.Code)
				require.Equal(t, message.Options{blockOption(wire.Block2, 0, true, szx), blockOption(wire.Block1, 2, false, 2),
					uintOption(wire.Size2, 3150)}, message.Options{p.Options[0], p.Options[1], p.Options[2]})
				got[i] = p.Payload
			}
			for i, tag := range tags {
				for num := 1; len(got[i]) < 3150; num++ {
					p := talk(t, d, tagged(request(codes.POST, nil, blockOption(wire.Block2, num, false, szx)), tag)).one()
					require.Equal(t, codes.Changed, p.Code)
					require.False(t, wire.Has(p.Options, wire.Block1))
					got[i] = append(got[i], p.Payload...)
				}
				require.Equal(t, append(bytes.Repeat([]byte{byte(i + 1)}, 150), bodyOf(3000)...), got[i])
			}
			require.Len(t, leg.requests(), len(tags))
		}
	}
}

// An upload does not get in the way of the response to the one before it.
func TestUploadDuringDownload(t *testing.T) {
	leg := &fakeLeg{t: t, answer: func(*exchange.Request) *exchange.Response { return content(bodyOf(200)) }}
	d, _ := newDownstream(leg)
	talk(t, d, request(codes.PUT, []byte("x"), blockOption(wire.Block1, 0, false, 2), blockOption(wire.Block2, 0, false, 2))).one()
	requireContinue(t, talk(t, d, put(bodyOf(100), 0, 2)), 0, 2)
	require.Equal(t, bodyOf(200)[64:128], talk(t, d, request(codes.PUT, nil, blockOption(wire.Block2, 1, false, 2))).one().Payload)
	talk(t, d, put(bodyOf(100), 1, 2)).one()
	require.Equal(t, bodyOf(100), leg.last().Payload)
}

// The last block of the response to a POST can be asked for again: the request
// cannot.
func TestDownloadRepeatedLastBlock(t *testing.T) {
	for _, method := range []codes.Code{codes.GET, codes.POST} {
		leg := bodyLeg(t, bodyOf(100))
		d, _ := newDownstream(leg)
		for _, num := range []int{0, 1, 1, 1} {
			p := talk(t, d, request(method, nil, blockOption(wire.Block2, num, false, 2))).one()
			require.Equal(t, bodyOf(100)[num*64:min(num*64+64, 100)], p.Payload)
		}
		if method == codes.POST {
			require.Len(t, leg.requests(), 1)
		}
	}
}

// A new request for the first block goes to the server, and its body takes the
// place of the old one.
func TestDownloadAnew(t *testing.T) {
	n := byte(0)
	leg := &fakeLeg{t: t, answer: func(*exchange.Request) *exchange.Response {
		n++
		return content(bytes.Repeat([]byte{n}, 150))
	}}
	d, _ := newDownstream(leg)
	require.EqualValues(t, 1, talk(t, d, get(0, 2)).one().Payload[0])
	require.EqualValues(t, 2, talk(t, d, get(0, 2)).one().Payload[0])
	require.EqualValues(t, 2, talk(t, d, get(1, 2)).one().Payload[0])
	require.Equal(t, 150, d.bodies.bytes)
}

// FP-73: a body waits EXCHANGE_LIFETIME for the request for its next block.
func TestDownloadExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		leg := bodyLeg(t, bodyOf(300))
		d, _ := newDownstream(leg)
		talk(t, d, get(0, 2)).one()
		time.Sleep(transferLifetime)
		talk(t, d, get(1, 2)).one()
		time.Sleep(transferLifetime)
		talk(t, d, get(2, 2)).one()
		require.Len(t, leg.requests(), 1)
		time.Sleep(transferLifetime + 1)
		talk(t, d, get(3, 2)).one()
		require.Len(t, leg.requests(), 2)
	})
}

// The bodies in transfer are bounded; a client whose body is lost asks the
// server again without noticing.
func TestDownloadsBounded(t *testing.T) {
	leg := bodyLeg(t, bodyOf(4000), option(wire.ETag, []byte("12345678")))
	stats := &DownstreamStats{}
	d := NewDownstream(leg, 10000, 10000, stats)
	block := func(client, num int) {
		r := get(num, 6)
		r.Peer = netip.AddrPortFrom(alice.Addr(), uint16(client))
		talk(t, d, r).one()
	}
	for client := range 3 {
		block(client, 0)
	}
	require.Equal(t, 2*4008, d.bodies.bytes, "the options count")
	require.EqualValues(t, 1, stats.Dropped.Load())
	require.Len(t, leg.requests(), 3)
	block(2, 1)
	require.Len(t, leg.requests(), 3)
	block(0, 1)
	require.Len(t, leg.requests(), 4)
	require.EqualValues(t, 2, stats.Dropped.Load())

	leg = bodyLeg(t, bodyOf(20000)) // larger than all may be together
	d = NewDownstream(leg, 10000, 10000, stats)
	talk(t, d, get(0, 6)).one()
	require.Zero(t, d.bodies.bytes)
	require.Equal(t, bodyOf(20000)[1024:2048], talk(t, d, get(1, 6)).one().Payload)
	require.Len(t, leg.requests(), 2)
}

// Block options of the leg below do not reach the client.
func TestDownloadDropsForeignBlockOptions(t *testing.T) {
	leg := bodyLeg(t, bodyOf(100), blockOption(wire.Block2, 9, true, 6), blockOption(wire.Block1, 9, true, 6), uintOption(wire.Size2, 7))
	d, _ := newDownstream(leg)
	p := talk(t, d, get(0, 2)).one()
	require.Equal(t, message.Options{blockOption(wire.Block2, 0, true, 2), uintOption(wire.Size2, 100)}, p.Options)
}

// A request without block options passes as it is.
func TestDownstreamPassesThrough(t *testing.T) {
	leg := bodyLeg(t, bodyOf(1024), option(wire.ETag, []byte{1}))
	d, _ := newDownstream(leg)
	r := request(wire.FETCH, []byte("q"), uintOption(wire.Size1, 1), option(wire.RequestTag, []byte{1}), uintOption(wire.Size2, 0))
	p := talk(t, d, r).one()
	require.Equal(t, r.Options, leg.last().Options)
	require.Equal(t, r.Payload, leg.last().Payload)
	require.Equal(t, message.Options{option(wire.ETag, []byte{1})}, p.Options)
	require.Equal(t, bodyOf(1024), p.Payload)
	require.Zero(t, d.bodies.bodies.Len())
}
