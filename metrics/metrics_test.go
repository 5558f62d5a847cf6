package metrics

import (
	"sync/atomic"
	"testing"

	"github.com/stretchr/testify/require"
)

type stats struct {
	Sent    atomic.Uint64    `metric:"sent_total" help:"Sent."`
	Running atomic.Int64     `metric:"running" help:"Running."`
	Failed  [2]atomic.Uint64 `metric:"failed_total" help:"Failed." label:"reason"`
}

func TestRegistry(t *testing.T) {
	var r Registry
	require.Empty(t, r.Samples())
	var a, b stats
	reason := func(i int) string { return []string{"denied", "lost"}[i] }
	r.Register("north", &a, reason)
	r.Register("south", &b, reason)
	a.Sent.Add(3)
	a.Running.Add(-2)
	b.Failed[1].Add(7)

	require.Equal(t, []Sample{
		{Name: "north_sent_total", Help: "Sent.", Value: 3},
		{Name: "north_running", Help: "Running.", Value: -2},
		{Name: "north_failed_total", Help: "Failed.", Label: "reason", LabelValue: "denied"},
		{Name: "north_failed_total", Help: "Failed.", Label: "reason", LabelValue: "lost"},
		{Name: "south_sent_total", Help: "Sent."},
		{Name: "south_running", Help: "Running."},
		{Name: "south_failed_total", Help: "Failed.", Label: "reason", LabelValue: "denied"},
		{Name: "south_failed_total", Help: "Failed.", Label: "reason", LabelValue: "lost", Value: 7},
	}, r.Samples())

	a.Sent.Add(1)
	require.EqualValues(t, 4, r.Samples()[0].Value)
}

func TestRegisterRefusesWhatIsNoCounter(t *testing.T) {
	var r Registry
	require.Panics(t, func() {
		r.Register("bad", &struct {
			Name string `metric:"name"`
		}{}, nil)
	})
}
