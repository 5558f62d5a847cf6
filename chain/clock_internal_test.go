package chain

import (
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"coapproxy/exchange"
)

// A next hop counts as heard by the clock that nobody sets: times have to come with
// the monotonic reading, and those of the wall clock say nothing.
func TestHeardSince(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &peer{hop: &hop{chain: &Chain{config: Config{Engine: exchange.NewEngine(), Log: zap.NewNop()}}, Hop: Hop{Stats: &Stats{}}}, began: time.Now()}
		require.False(t, p.heardSince(time.Now()), "never")
		time.Sleep(time.Second)
		before := time.Now()
		time.Sleep(time.Second)
		p.up.Store(true)
		p.known.Store(true)
		p.alive()
		time.Sleep(time.Second)
		require.True(t, p.heardSince(before))
		require.False(t, p.heardSince(time.Now()))

		p.atMost.Store(int64(40 * time.Millisecond))
		after := &peer{hop: p.hop}
		after.takeOver(p)
		require.Equal(t, 40*time.Millisecond, after.roundTrip(), "what an earlier configuration has found out") // GP-94
		require.True(t, after.heardSince(before))
		require.False(t, after.heardSince(time.Now()))
	})
}
