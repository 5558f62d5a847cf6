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
}
