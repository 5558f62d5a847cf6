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

// joiner is an Outer as a handler: what it has put together goes to next.
type joiner struct {
	outer *Outer
	next  exchange.Handler
}

func (j joiner) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	if !j.outer.Join(r, w) {
		return exchange.Ended{}
	}
	return j.next.Exchange(r, w)
}

// OH-75: outer blocks are put together, up to MAX_UNFRAGMENTED_SIZE.
func TestOuterBlocks(t *testing.T) {
	oscore := option(wire.OSCORE, []byte{9, 1, 'k'})
	join := func(t *testing.T) (joiner, *fakeLeg, *OuterStats) {
		leg, stats := echoLeg(t), &OuterStats{}
		return joiner{NewOuter(stats), leg}, leg, stats
	}
	t.Run("whole", func(t *testing.T) {
		j, leg, stats := join(t)
		body := bodyOf(maxUnfragmented)
		last := len(body)/1024 - 1
		for num := range last {
			requireContinue(t, talk(t, j, put(body, num, 6, oscore, option(wire.RequestTag, []byte{7}))), num, 6)
			require.Empty(t, leg.requests())
		}
		talk(t, j, put(body, last, 6, oscore, option(wire.RequestTag, []byte{7}))).one()
		require.True(t, bytes.Equal(body, leg.last().Payload))
		require.Equal(t, message.Options{oscore, option(wire.URIPath, []byte("r"))}, leg.last().Options)
		require.EqualValues(t, 1, stats.Joined.Load())
	})
	t.Run("another request", func(t *testing.T) {
		j, leg, _ := join(t)
		body := bodyOf(40)
		requireContinue(t, talk(t, j, put(body, 0, 1, oscore)), 0, 1)
		w := talk(t, j, put(body, 1, 1, option(wire.OSCORE, []byte{9, 2, 'k'})))
		require.Equal(t, exchange.Incomplete, exchange.AsFailure(w.err).Reason)
		other := put(body, 1, 1, oscore)
		other.Peer = bob
		require.Equal(t, exchange.Incomplete, exchange.AsFailure(talk(t, j, other).err).Reason)
		other = put(body, 1, 1, oscore)
		other.Target.Host = "in another layer"
		require.Equal(t, exchange.Incomplete, exchange.AsFailure(talk(t, j, other).err).Reason)
		require.Empty(t, leg.requests())
	})
	t.Run("too long", func(t *testing.T) {
		j, leg, _ := join(t)
		body := bodyOf(maxUnfragmented + 1024)
		for num := range 64 {
			requireContinue(t, talk(t, j, put(body, num, 6, oscore)), num, 6)
		}
		f := exchange.AsFailure(talk(t, j, put(body, 64, 6, oscore)).err)
		require.Equal(t, exchange.TooLarge, f.Reason)
		require.EqualValues(t, maxUnfragmented, f.Limit)
		require.Empty(t, leg.requests())
	})
	t.Run("bad", func(t *testing.T) {
		j, _, _ := join(t)
		r := request(codes.POST, []byte("x"), oscore, option(wire.Block1, []byte{0x0f}))
		require.Equal(t, exchange.BadRequest, exchange.AsFailure(talk(t, j, r).err).Reason)
	})
	t.Run("bounded", func(t *testing.T) {
		j, _, stats := join(t)
		body := bodyOf(2048)
		for i := range 3 * maxTransfers {
			r := put(body, 0, 6, option(wire.OSCORE, []byte{10, byte(i), byte(i >> 8), 'k'}))
			requireContinue(t, talk(t, j, r), 0, 6)
		}
		require.LessOrEqual(t, j.outer.uploads.bodies.bytes, maxFragments)
		require.NotZero(t, stats.Dropped.Load())
	})
	t.Run("bounded bytes", func(t *testing.T) {
		j, _, stats := join(t)
		body := bodyOf(maxUnfragmented)
		const documented = 8 << 20
		for i := range documented / (32 << 10) * 3 / 2 { // fewer than maxTransfers
			r := request(codes.POST, body[:32<<10], option(wire.OSCORE, []byte{10, byte(i), byte(i >> 8), 'k'}), option(wire.Block1, []byte{0x0f}))
			r.BERT = true
			talk(t, j, r).one()
			require.LessOrEqual(t, j.outer.uploads.bodies.bytes, documented)
		}
		require.NotZero(t, stats.Dropped.Load())
	})
}

// OH-75: the rest of a protected response is asked for without a payload, and its
// pieces are put together up to MAX_UNFRAGMENTED_SIZE, over all of them up to a bound.
func TestOuterFetch(t *testing.T) {
	oscore := option(wire.OSCORE, []byte{9, 1})
	begin := func(t *testing.T, o *Outer, first *exchange.Response) (*fakeLeg, *checkingSink, exchange.Canceler) {
		leg, w := &fakeLeg{t: t}, &checkingSink{t: t}
		r := request(codes.POST, []byte("ciphertext"), oscore)
		c := o.Fetch(leg, r.Clone(), first, func(p *exchange.Response, err error) {
			if p != nil {
				w.Respond(p)
			}
			w.End(err)
		})
		return leg, w, c
	}
	reply := func(body []byte, num, szx int) *exchange.Response {
		end := min((num+1)<<(szx+4), len(body))
		return &exchange.Response{Code: codes.Changed, Options: message.Options{oscore, blockOption(wire.Block2, num, end < len(body), uint8(szx))}, Payload: body[num<<(szx+4) : end]}
	}
	reasonOf := func(w *checkingSink) exchange.Reason {
		_, err := w.ended()
		return exchange.AsFailure(err).Reason
	}
	t.Run("whole", func(t *testing.T) {
		body := bodyOf(200)
		o := NewOuter(&OuterStats{})
		leg, w, _ := begin(t, o, reply(body, 0, 2))
		for num := 1; num < 4; num++ {
			a := leg.last()
			require.Empty(t, a.Payload)
			require.Equal(t, codes.POST, a.Method)
			require.True(t, a.Confirmable)
			require.Equal(t, message.Options{oscore, option(wire.URIPath, []byte("r")), blockOption(wire.Block2, num, false, 2)}, a.Options)
			require.Positive(t, o.fetched.Load())
			a.answer(reply(body, num, 2))
		}
		require.Equal(t, body, w.one().Payload)
		require.Equal(t, message.Options{oscore}, w.one().Options)
		require.EqualValues(t, 1, o.stats.Fetched.Load())
		require.Zero(t, o.fetched.Load())
	})
	for name, tt := range map[string]struct {
		answer func(a *asked)
		reason exchange.Reason
	}{
		"out of order":     {func(a *asked) { a.answer(reply(bodyOf(200), 2, 2)) }, exchange.BadResponse},
		"an error instead": {func(a *asked) { a.answer(&exchange.Response{Code: codes.Unauthorized}) }, exchange.BadResponse},
		"silence":          {func(a *asked) { a.end(&exchange.Failure{Reason: exchange.NoAnswer}) }, exchange.NoAnswer},
		"nothing":          {func(a *asked) { a.end(nil) }, exchange.BadResponse},
	} {
		t.Run(name, func(t *testing.T) {
			o := NewOuter(&OuterStats{})
			leg, w, _ := begin(t, o, reply(bodyOf(200), 0, 2))
			tt.answer(leg.last())
			require.Equal(t, tt.reason, reasonOf(w))
			require.Empty(t, w.responses())
			require.Zero(t, o.fetched.Load())
		})
	}
	t.Run("too long", func(t *testing.T) {
		body := bodyOf(maxUnfragmented + 1)
		o := NewOuter(&OuterStats{})
		leg, w, _ := begin(t, o, reply(body, 0, 6))
		for num := 1; ; num++ {
			if ends, _ := w.ended(); ends > 0 {
				require.Equal(t, maxUnfragmented/1024, num-1)
				break
			}
			leg.last().answer(reply(body, num, 6))
		}
		require.Equal(t, exchange.BadResponse, reasonOf(w))
		require.Zero(t, o.fetched.Load())
	})
	t.Run("too many", func(t *testing.T) {
		o := NewOuter(&OuterStats{})
		var cancels []exchange.Canceler
		o.fetched.Store(maxFragments - 3*1024)
		for range 3 {
			_, w, c := begin(t, o, reply(bodyOf(3000), 0, 6))
			require.Empty(t, w.responses())
			cancels = append(cancels, c)
		}
		_, w, _ := begin(t, o, reply(bodyOf(3000), 0, 6))
		require.Equal(t, exchange.Overloaded, reasonOf(w))
		require.EqualValues(t, 1, o.stats.Dropped.Load())
		for _, c := range cancels {
			c.Cancel()
		}
		require.EqualValues(t, maxFragments-3*1024, o.fetched.Load())
	})
}
