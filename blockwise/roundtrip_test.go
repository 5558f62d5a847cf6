package blockwise

import (
	"bytes"
	"slices"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"pgregory.net/rapid"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// FP-72: whatever sizes client and server deal in, the server gets the body that
// the client sent, and the client the body that the server answered.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(rt *rapid.T) {
		szx := func(name string) uint8 { return rapid.Uint8Range(0, 6).Draw(rt, name) }
		size := func(name string) []byte {
			return bodyOf(rapid.OneOf(rapid.IntRange(0, 130), rapid.IntRange(1000, 1100), rapid.IntRange(0, 9000)).Draw(rt, name))
		}
		body, answer := size("body"), size("answer")
		slices.Reverse(answer)
		s := &modelServer{t: rt, szx1: szx("server szx1"), szx2: szx("server szx2"), stateless: rapid.Bool().Draw(rt, "stateless"),
			wants413: rapid.Bool().Draw(rt, "4.13"), respond: func(*exchange.Request, []byte) *exchange.Response {
				return &exchange.Response{Code: codes.Changed, Payload: answer, Options: message.Options{option(wire.ETag, []byte{1})}}
			}}
		leg := s.leg()
		stats := &DownstreamStats{}
		d := NewDownstream(NewUpstream(leg, testLimit), testLimit, testTotal, stats)
		method := rapid.SampledFrom([]codes.Code{codes.POST, codes.PUT, wire.FETCH}).Draw(rt, "method")
		var tag []message.Option
		if rapid.Bool().Draw(rt, "tagged") {
			tag = append(tag, option(wire.RequestTag, []byte("mine")))
		}
		limit := rapid.SampledFrom([]int{64, 1024, testLimit}).Draw(rt, "front")
		ask := func(payload []byte, options ...message.Option) *exchange.Response {
			r := request(method, payload, append(options, tag...)...)
			r.BodyLimit = limit
			return talk(rt, d, r).one()
		}

		// Up, in blocks whose size may go down.
		wish := rapid.Bool().Draw(rt, "wish")
		down := szx("client szx2")
		last := func(options ...message.Option) []message.Option {
			if wish {
				options = append(options, blockOption(wire.Block2, 0, false, down))
			}
			return options
		}
		var p *exchange.Response
		if up := szx("client szx1"); len(body) <= 1024 && rapid.Bool().Draw(rt, "in one message") {
			p = ask(body, last()...)
		} else {
			for offset := 0; p == nil; {
				b := wire.Block{SZX: up}
				b.Num = uint32(offset / b.Size())
				end := min(offset+b.Size(), len(body))
				if end == len(body) {
					p = ask(body[offset:], last(blockOption(wire.Block1, int(b.Num), false, up))...)
					break
				}
				q := ask(body[offset:end], blockOption(wire.Block1, int(b.Num), true, up))
				require.Equal(rt, codes.Continue, q.Code)
				offset = end
				up = rapid.Uint8Range(0, up).Draw(rt, "next szx1")
			}
		}

		// Down, in blocks whose size may change.
		got := bytes.Clone(p.Payload)
		for b, more := blockOf(rt, p.Options, wire.Block2); more && b.More; b, _ = blockOf(rt, p.Options, wire.Block2) {
			next := rapid.Uint8Range(0, b.SZX).Draw(rt, "next szx2")
			p = ask(nil, blockOption(wire.Block2, len(got)/(16<<next), false, next))
			got = append(got, p.Payload...)
		}
		require.Equal(rt, codes.Changed, p.Code)
		require.Equal(rt, []byte{1}, p.Options[0].Value)
		require.True(rt, bytes.Equal(answer, got))
		require.Len(rt, s.bodies, 1)
		require.True(rt, bytes.Equal(body, s.bodies[0]))
		require.Zero(rt, stats.Dropped.Load())
	})
}
