package blockwise

import (
	"bytes"
	"net/netip"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// script is fuzz input read as numbers.
type script []byte

// next returns a number below n; zero when the script is over.
func (s *script) next(n int) int {
	if len(*s) == 0 {
		return 0
	}
	v := int((*s)[0])
	*s = (*s)[1:]
	return v % n
}

// modelClients says what a Downstream does with the blocks of a few clients, as
// simply as it can be said.
type modelClients struct {
	limit   int
	uploads map[modelKey][]byte
	bodies  map[modelKey][]byte
}

type modelKey struct{ client, resource int }

// upload says what becomes of a block of a request body.
func (m *modelClients) upload(k modelKey, b wire.Block, payload []byte) (whole []byte, done bool, refused exchange.Reason) {
	have, known := m.uploads[k]
	end := b.Offset() + len(payload)
	switch {
	case b.More && len(payload) != b.Size() || len(payload) > b.Size():
		return nil, false, exchange.BadRequest
	case end > m.limit:
		delete(m.uploads, k)
		return nil, false, exchange.TooLarge
	case b.Num == 0:
		have = nil
	case !known || b.Offset() > len(have):
		return nil, false, exchange.Incomplete
	case b.Offset() < len(have):
		if !b.More || end > len(have) || !bytes.Equal(have[b.Offset():end], payload) {
			return nil, false, exchange.Incomplete
		}
		return nil, false, exchange.Internal // nothing new, and no refusal
	}
	have = append(bytes.Clone(have), payload...)
	if b.More {
		m.uploads[k] = have
		return nil, false, exchange.Internal
	}
	delete(m.uploads, k)
	return have, true, exchange.Internal
}

// FuzzDownstream lets a few clients send blocks and ask for blocks in any order
// and of any form, and compares what they get with the model.
func FuzzDownstream(f *testing.F) {
	f.Add([]byte{0, 1, 0, 1, 2, 64, 5, 0, 1, 1, 0, 2, 10, 5, 40})
	f.Add([]byte{0, 2, 0, 0, 2, 0, 0, 200, 0, 2, 1, 0, 2, 0, 0, 0, 2, 2, 0, 2})
	f.Add([]byte{3, 1, 0, 1, 0, 16, 1, 3, 1, 1, 1, 0, 16, 2, 3, 1, 1, 1, 0, 16, 2, 3, 3, 2, 0, 0, 9, 2, 0, 1, 250})
	f.Add([]byte{9, 4, 0, 0, 7, 0, 0, 0, 9, 4, 1, 1, 7, 0, 0, 0})
	f.Fuzz(func(t *testing.T, data []byte) {
		s := script(data)
		size, version := 0, byte(0)
		leg := &fakeLeg{t: t, answer: func(*exchange.Request) *exchange.Response {
			version++
			return content(bytes.Repeat([]byte{version}, size))
		}}
		m := &modelClients{limit: 700, uploads: make(map[modelKey][]byte), bodies: make(map[modelKey][]byte)}
		d := NewDownstream(leg, m.limit, 1<<20, &DownstreamStats{})
		for len(s) > 0 {
			who, what := s.next(4), s.next(5)
			k := modelKey{client: who & 1, resource: who >> 1}
			r := request(wire.FETCH, nil)
			r.Peer = netip.AddrPortFrom(alice.Addr(), uint16(k.client))
			r.Options[0].Value = []byte{byte(k.resource)}
			r.BodyLimit = 64
			var b1, b2 wire.Block
			has1, has2 := what == 1 || what >= 3, what >= 2
			if has2 {
				b2 = wire.Block{Num: uint32(s.next(20)), SZX: uint8(s.next(8))}
				r.Options = withOption(r.Options, wire.Block2, b2.Append(nil))
			}
			if has1 {
				b1 = wire.Block{Num: uint32(s.next(20)), More: s.next(2) == 1, SZX: uint8(s.next(8))}
				r.Options = withOption(r.Options, wire.Block1, b1.Append(nil))
				n := s.next(256)
				if b1.More && n < 128 {
					n = b1.Size()
				}
				r.Payload = bytes.Repeat([]byte{byte(s.next(3))}, n)
			}
			size = s.next(256)
			asked, before := len(leg.requests()), version
			w := talk(t, d, r)
			if has1 && b1.SZX == 7 || has2 && b2.SZX == 7 {
				w.failure(exchange.BadRequest)
				continue
			}
			if has1 {
				whole, done, refused := m.upload(k, b1, r.Payload)
				if refused != exchange.Internal {
					w.failure(refused)
					continue
				}
				if !done {
					requireContinue(t, w, int(b1.Num), b1.SZX)
					continue
				}
				require.True(t, bytes.Equal(whole, leg.last().Payload))
			}
			body, stored := m.bodies[k]
			if stored = stored && !has1 && b2.Num > 0; !stored {
				if !has1 && b2.Num > 0 {
					w.failure(exchange.Incomplete) // a FETCH of nothing
					continue
				}
				body = bytes.Repeat([]byte{before + 1}, size)
			}
			require.Len(t, leg.requests(), asked+map[bool]int{true: 0, false: 1}[stored])
			block := b2
			if !has2 {
				block.SZX = 2
			}
			block.SZX = min(block.SZX, 2)
			block.Num = uint32(b2.Offset() / block.Size())
			end := min(block.Offset()+block.Size(), len(body))
			switch {
			case block.Num > 0 && block.Offset() >= len(body):
				w.failure(exchange.BadRequest)
				continue
			case block.Num == 0 && end == len(body):
				require.False(t, wire.Has(w.one().Options, wire.Block2))
			default:
				got, ok := blockOf(t, w.one().Options, wire.Block2)
				block.More = end < len(body)
				require.True(t, ok)
				require.Equal(t, block, got)
				if m.bodies[k] = body; !block.More {
					delete(m.bodies, k)
				}
			}
			require.True(t, bytes.Equal(body[block.Offset():end], w.one().Payload))
			got, ok := blockOf(t, w.one().Options, wire.Block1)
			require.Equal(t, has1, ok)
			require.Equal(t, wire.Block{Num: b1.Num, SZX: b1.SZX}, got)
		}
	})
}

// FuzzUpstream lets a server answer as it likes: the exchange ends once when the
// leg does, and no body is above the limit.
func FuzzUpstream(f *testing.F) {
	f.Add(0, byte(0), []byte{0, 2, 64, 0, 1, 0, 2, 64, 1, 1, 0, 2, 10, 2, 0})
	f.Add(3000, byte(1), []byte{1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 2, 1, 0, 0, 0})
	f.Add(2000, byte(2), []byte{3, 1, 0, 0, 2, 4, 0, 0, 0, 0, 5, 0, 0, 0, 0})
	f.Add(100, byte(0), []byte{3, 5, 0, 0, 2})
	f.Fuzz(func(t *testing.T, size int, method byte, data []byte) {
		const limit = 1500
		s := script(data)
		requestCodes := []codes.Code{codes.GET, codes.POST, wire.FETCH}
		responseCodes := []codes.Code{codes.Content, codes.Continue, codes.Changed, codes.RequestEntityTooLarge,
			codes.RequestEntityIncomplete, codes.BadOption, codes.NotFound, codes.BadRequest}
		rounds, largest := 0, 0
		leg := &fakeLeg{t: t, answer: func(r *exchange.Request) *exchange.Response {
			if len(s) == 0 {
				return nil
			}
			rounds++
			p := &exchange.Response{Code: responseCodes[s.next(len(responseCodes))]}
			shape := s.next(8)
			n := s.next(256)
			for _, id := range []message.OptionID{wire.Block2, wire.Block1} {
				sent, _ := wire.ParseBlock(func() []byte { v, _ := wire.First(r.Options, id); return v }())
				b := sent
				switch v := s.next(6); v {
				case 0: // as it should be
					b.More = id == wire.Block1 && sent.More
				case 1:
					b.More = true
				case 2:
					b.SZX, b.More = uint8(n%7), n&1 == 1
				case 3:
					b.Num, b.More = uint32(n), n&1 == 0
				case 4:
					p.Options = withOption(p.Options, id, bytes.Repeat([]byte{byte(n)}, n%5))
					continue
				default:
					continue
				}
				if shape&1 == 0 && id == wire.Block2 {
					n = b.Size()
				}
				p.Options = withOption(p.Options, id, b.Append(nil))
			}
			if shape&2 != 0 {
				p.Options = withOption(p.Options, wire.ETag, []byte{byte(shape >> 2)})
			}
			if shape&4 != 0 {
				p.Options = withOption(p.Options, wire.Size2, wire.AppendUint(nil, uint32(n*10)))
			}
			p.Payload = bodyOf(n)
			largest = max(largest, n)
			return p
		}}
		r := request(requestCodes[int(method)%len(requestCodes)], bodyOf(min(max(size, 0), 5000)), option(wire.IfNoneMatch, nil))
		w := &checkingSink{t: t}
		u := NewUpstream(leg, limit)
		c := ask(u, r, w)
		if ends, _ := w.ended(); ends == 0 {
			if method >= 128 {
				c.Cancel()
			} else {
				leg.last().end(&exchange.Failure{Reason: exchange.NoAnswer, Detail: "silence"})
			}
		}
		ends, err := w.ended()
		require.Equal(t, 1, ends)
		require.LessOrEqual(t, len(leg.requests()), rounds+1)
		require.LessOrEqual(t, len(w.responses()), 1)
		require.Equal(t, err == nil, len(w.responses()) == 1)
		require.Zero(t, u.bytes.Load())
		for _, p := range w.responses() {
			require.LessOrEqual(t, len(p.Payload), max(limit, largest))
			require.False(t, wire.Has(p.Options, wire.Block1) || wire.Has(p.Options, wire.Block2))
		}
		for i, a := range leg.requests() {
			b1, has1 := a.block(wire.Block1)
			b2, has2 := a.block(wire.Block2)
			require.False(t, has1 && has2)
			require.False(t, wire.Has(a.Options, wire.IfNoneMatch) && b1.Num+b2.Num > 0) // FP-77
			require.LessOrEqual(t, len(a.Payload), 1024, i)
		}
	})
}
