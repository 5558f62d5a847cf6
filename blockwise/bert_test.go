package blockwise

import (
	"bytes"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// bertBlock reads the one option of a number as over a reliable transport.
func bertBlock(t tester, options message.Options, id message.OptionID) (wire.Block, bool) {
	value, ok := wire.First(options, id)
	b, err := wire.ParseBERTBlock(value)
	require.NoError(t, err)
	return b, ok
}

// overTCP makes the request one of a client whose connection knows BERT.
func overTCP(r *exchange.Request, limit int) *exchange.Request {
	r.BERT, r.BodyLimit = true, limit
	return r
}

// RFC 8323 §6: a request body in blocks of several KiB each. A block that is not
// the last and no multiple of 1024 bytes is a bad request.
func TestBERTUpload(t *testing.T) {
	leg := echoLeg(t)
	d, _ := newDownstream(leg)
	body := bodyOf(24*1024 + 1500)
	at := 0
	for _, size := range []int{8192, 1024, 15 * 1024} {
		r := overTCP(request(codes.PUT, body[at:at+size], blockOption(wire.Block1, at/1024, true, wire.BERT)), 65536)
		p := talk(t, d, r).one()
		require.Equal(t, codes.Continue, p.Code)
		b, _ := bertBlock(t, p.Options, wire.Block1)
		require.Equal(t, wire.Block{Num: uint32(at / 1024), More: true, SZX: wire.BERT}, b)
		at += size
	}
	talk(t, d, overTCP(request(codes.PUT, body[at:at+1000], blockOption(wire.Block1, at/1024, true, wire.BERT)), 65536)).failure(exchange.BadRequest)
	talk(t, d, overTCP(request(codes.PUT, nil, blockOption(wire.Block1, at/1024, true, wire.BERT)), 65536)).failure(exchange.BadRequest)
	p := talk(t, d, overTCP(request(codes.PUT, body[at:], blockOption(wire.Block1, at/1024, false, wire.BERT)), 65536)).one()
	require.Equal(t, codes.Changed, p.Code)
	require.True(t, bytes.Equal(body, leg.last().Payload))
}

// RFC 8323 §6: a response body is cut into blocks as large as the client takes, up
// to a bound; who asks for other blocks gets those.
func TestBERTDownload(t *testing.T) {
	body := bodyOf(200_000)
	for _, tt := range []struct {
		limit int
		want  int // payload of the first block
	}{{1024, 1024}, {5000, 4096}, {65536, 65536}, {150_000, maxBERT}, {1 << 20, maxBERT}} {
		leg := &fakeLeg{t: t, answer: func(*exchange.Request) *exchange.Response { return content(body) }}
		d, _ := newDownstream(leg)
		var got []byte
		for more := true; more; {
			r := overTCP(request(codes.GET, nil), tt.limit)
			if len(got) > 0 {
				r.Options = append(r.Options, blockOption(wire.Block2, len(got)/1024, false, wire.BERT))
			}
			p := talk(t, d, r).one()
			b, ok := bertBlock(t, p.Options, wire.Block2)
			require.True(t, ok)
			require.EqualValues(t, wire.BERT, b.SZX)
			require.Equal(t, len(got), b.Offset())
			require.True(t, b.Fits(len(p.Payload)))
			if len(got) == 0 {
				require.Len(t, p.Payload, tt.want)
			}
			got, more = append(got, p.Payload...), b.More
		}
		require.True(t, bytes.Equal(body, got))
		require.Len(t, leg.requests(), 1)
	}
	leg := &fakeLeg{t: t, answer: func(*exchange.Request) *exchange.Response { return content(body) }}
	d, _ := newDownstream(leg)
	require.Len(t, talk(t, d, overTCP(request(codes.GET, nil, blockOption(wire.Block2, 0, false, 2)), 65536)).one().Payload, 64)
	require.Len(t, talk(t, d, overTCP(request(codes.GET, nil, blockOption(wire.Block2, 0, false, wire.BERT)), 500)).one().Payload, 256)
}

// Members of a group know no BERT, whatever the client speaks (GC-50).
func TestBERTToGroup(t *testing.T) {
	leg := echoLeg(t)
	d, _ := newDownstream(leg)
	r := overTCP(request(codes.GET, nil, blockOption(wire.Block2, 3, false, wire.BERT)), 65536)
	r.Target.Group = true
	talk(t, d, r)
	b, ok := leg.last().block(wire.Block2)
	require.True(t, ok)
	require.Equal(t, wire.Block{Num: 3, SZX: 6}, b)
}

// sizedLeg is a leg over a reliable transport.
type sizedLeg struct {
	*fakeLeg
	payload int
	bert    bool
}

func (l *sizedLeg) Capacity(*exchange.Target) (int, bool) { return l.payload, l.bert }

// RFC 8323 §5.3.1, §6: a request body goes up in one piece if the server's
// Max-Message-Size has room for it, or else in blocks as large as it takes.
func TestBERTUpstreamUpload(t *testing.T) {
	for _, tt := range []struct {
		payload int
		bert    bool
		body    int
		want    []int // payloads
	}{
		{1024, false, 1024, []int{1024}},
		{1024, false, 2500, []int{1024, 1024, 452}},
		{300, false, 600, []int{256, 256, 88}},
		{10_000, true, 9000, []int{9000}},
		{10_000, true, 20_000, []int{9216, 9216, 1568}},
		{1 << 20, true, 200_000, []int{65536, 65536, 65536, 3392}},
		{1 << 20, false, 200_000, []int{200_000}}, // no block-wise transfer there
	} {
		t.Run(name(tt.body, " bytes, ", tt.payload, " in a message"), func(t *testing.T) {
			body := bodyOf(tt.body)
			var got []byte
			var sizes []int
			leg := &sizedLeg{payload: tt.payload, bert: tt.bert}
			leg.fakeLeg = &fakeLeg{t: t, answer: func(r *exchange.Request) *exchange.Response {
				sizes, got = append(sizes, len(r.Payload)), append(got, r.Payload...)
				b, ok := bertBlock(t, r.Options, wire.Block1)
				if !ok || !b.More {
					return &exchange.Response{Code: codes.Changed}
				}
				require.Equal(t, len(got)-len(r.Payload), b.Offset())
				require.Equal(t, tt.bert, b.SZX == wire.BERT)
				return &exchange.Response{Code: codes.Continue, Options: message.Options{option(wire.Block1, b.Append(nil))}}
			}}
			require.Equal(t, codes.Changed, talk(t, NewUpstream(leg, testLimit), request(codes.PUT, body)).one().Code)
			require.Equal(t, tt.want, sizes)
			require.True(t, bytes.Equal(body, got))
		})
	}
}

// RFC 8323 §6: a response body comes down in BERT blocks of the server's choice;
// over UDP such a block is none.
func TestBERTUpstreamDownload(t *testing.T) {
	body := bodyOf(50_000)
	answer := func(r *exchange.Request) *exchange.Response {
		b, _ := bertBlock(t, r.Options, wire.Block2)
		size := []int{4096, 16384, 1024}[int(b.Num)%3]
		at := b.Offset()
		end := min(at+size, len(body))
		next := wire.Block{Num: b.Num, More: end < len(body), SZX: wire.BERT}
		return content(body[at:end], option(wire.Block2, next.Append(nil)))
	}
	sized := &sizedLeg{fakeLeg: &fakeLeg{t: t, answer: answer}, payload: 65536, bert: true}
	p := talk(t, NewUpstream(sized, testLimit), request(codes.GET, nil)).one()
	require.True(t, bytes.Equal(body, p.Payload))
	require.False(t, wire.Has(p.Options, wire.Block2))

	talk(t, NewUpstream(&fakeLeg{t: t, answer: answer}, testLimit), request(codes.GET, nil)).failure(exchange.BadResponse)
	short := func(*exchange.Request) *exchange.Response {
		return content(body[:1500], option(wire.Block2, wire.Block{More: true, SZX: wire.BERT}.Append(nil)))
	}
	talk(t, NewUpstream(&sizedLeg{fakeLeg: &fakeLeg{t: t, answer: short}, payload: 65536, bert: true}, testLimit), request(codes.GET, nil)).failure(exchange.BadResponse)
}
