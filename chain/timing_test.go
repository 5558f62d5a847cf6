package chain

import (
	"math"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// GP-94, GP-95: T” leaves the previous hop its round trip, in whole seconds.
func TestWindow(t *testing.T) {
	for _, tt := range []struct {
		asked       uint32
		previous    time.Duration
		margin, cap uint32
		told        uint32
		lowered     bool
		least       uint32
	}{
		{asked: 2, told: 1, least: 2}, // the smallest T' there is at a proxy that is not the last
		{asked: 60, told: 59, least: 2},
		{asked: 60, previous: time.Millisecond, told: 59, least: 2},
		{asked: 60, previous: time.Second, told: 59, least: 2},
		{asked: 60, previous: time.Second + 1, told: 58, least: 3},
		{asked: 60, previous: 2500 * time.Millisecond, told: 57, least: 4},
		{asked: 4, previous: 2500 * time.Millisecond, told: 1, least: 4},
		{asked: 60, margin: 5, told: 54, lowered: true, least: 2},
		{asked: 3, margin: 5, told: 1, lowered: true, least: 2},
		{asked: 2, margin: 5, told: 1, least: 2}, // nothing to take off
		{asked: 60, cap: 10, told: 10, lowered: true, least: 2},
		{asked: 60, cap: 59, told: 59, least: 2},
		{asked: 60, cap: 57, margin: 1, told: 57, lowered: true, least: 2},
		{asked: math.MaxUint32, told: math.MaxUint32 - 1, least: 2},
	} {
		h := &Hop{Margin: tt.margin, MaxTimeout: tt.cap}
		w, ok := h.window(tt.asked, tt.previous)
		require.True(t, ok, "%+v", tt)
		require.Equal(t, tt.told, w.told, "%+v", tt)
		require.Equal(t, tt.lowered, w.lowered, "%+v", tt)
		require.Equal(t, tt.least, w.least(), "%+v", tt) // GP-96
	}
}

// GP-96: there is no T” between 1 and T' less the round trip.
func TestNoWindow(t *testing.T) {
	for _, tt := range []struct {
		asked    uint32
		previous time.Duration
		least    uint32
	}{{1, 0, 2}, {1, 5 * time.Second, 6}, {3, 2500 * time.Millisecond, 4}, {5, time.Hour, 3601}} {
		w, ok := (&Hop{}).window(tt.asked, tt.previous)
		require.False(t, ok)
		require.Equal(t, tt.least, w.least())
		_, ok = (&Hop{}).window(tt.least, tt.previous)
		require.True(t, ok, "what is asked for is enough")
	}
}

// GP-97: once, only where T” had been lowered, to more than before and at least
// what was asked for, with time for the client.
func TestRaise(t *testing.T) {
	for _, tt := range []struct {
		name   string
		h      Hop
		asked  uint32
		m      uint32
		spent  time.Duration
		raised bool
		told   uint32
	}{
		{"not lowered", Hop{}, 60, 60, 0, false, 59},
		{"by the cap", Hop{MaxTimeout: 10}, 60, 20, 0, true, 20},
		{"to all there is", Hop{MaxTimeout: 10}, 60, 59, 0, true, 59},
		{"beyond it", Hop{MaxTimeout: 10}, 60, 60, 0, false, 10},
		{"by the margin", Hop{Margin: 5}, 20, 16, 0, true, 16},
		{"in time", Hop{MaxTimeout: 10}, 60, 58, 900 * time.Millisecond, true, 58},
		{"too late", Hop{MaxTimeout: 10}, 60, 59, 900 * time.Millisecond, false, 10},
		{"always greater", Hop{MaxTimeout: 10}, 60, 3, 0, true, 11},
		{"not any number", Hop{MaxTimeout: 10}, 60, math.MaxUint32, 0, false, 10},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w, ok := tt.h.window(tt.asked, 0)
			require.True(t, ok)
			require.Equal(t, tt.raised, w.raise(tt.m, tt.spent))
			require.Equal(t, tt.told, w.told)
			if tt.raised {
				require.False(t, w.raise(w.told+1, tt.spent), "only once")
			}
		})
	}
}

// GP-98: what the next proxy asks for and the own difference.
func TestUpwards(t *testing.T) {
	w, _ := (&Hop{}).window(60, 2500*time.Millisecond)
	m, ok := w.upwards(70)
	require.True(t, ok)
	require.EqualValues(t, 73, m)
	_, ok = w.upwards(math.MaxUint32)
	require.False(t, ok)
}

// GP-93, GP-94: T is more than T', and more than T” by the round trip to the next
// hop.
func TestToken(t *testing.T) {
	w, _ := (&Hop{}).window(60, 0)
	require.EqualValues(t, 61, w.token(0))
	require.EqualValues(t, 61, w.token(300*time.Millisecond))
	require.EqualValues(t, 63, w.token(2500*time.Millisecond))
	w, _ = (&Hop{}).window(math.MaxUint32, 0)
	require.EqualValues(t, uint32(math.MaxUint32), w.token(0))
}

// A second attempt has less time, in whole seconds (GP-95).
func TestAgain(t *testing.T) {
	w, _ := (&Hop{}).window(5, 0)
	require.True(t, w.again(2*time.Second))
	require.EqualValues(t, 2, w.told)
	require.True(t, w.again(2500*time.Millisecond))
	require.EqualValues(t, 1, w.told)
	require.False(t, w.again(3500*time.Millisecond))
	require.False(t, w.again(time.Hour))
}
