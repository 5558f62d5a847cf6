package main

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

func rowsOf(n int, change func(i int, r *row)) []row {
	rows := make([]row, n)
	for i := range rows {
		rows[i] = row{at: time.Duration(i) * time.Second, rss: 30, goroutines: 40, fds: 50}
		for k := range rows[i].tallies {
			rows[i].tallies[k] = tally{tried: 1000, succeeded: 1000, latencies: []time.Duration{time.Millisecond}}
		}
		change(i, &rows[i])
	}
	return rows
}

func TestReportJudges(t *testing.T) {
	for _, test := range []struct {
		name   string
		change func(i int, r *row)
		chaos  bool
		missed string
	}{
		{"all well", func(int, *row) {}, false, ""},
		{"memory that fills up and stays", func(i int, r *row) { r.rss = 20 + min(float64(i), 10)*5 }, false, ""},
		{"memory that grows", func(i int, r *row) { r.rss += 3 * float64(i) }, false, "RSS"},
		{"goroutines that leak", func(i int, r *row) { r.goroutines += 4 * i }, false, "goroutines"},
		{"descriptors that leak", func(i int, r *row) { r.fds += 4 * i }, false, "descriptors"},
		{"failures", func(i int, r *row) { r.tallies[web].succeeded -= 2 }, false, "http:"},
		{"failures beside hostile peers", func(i int, r *row) {
			if r.hostile = i >= 15; r.hostile {
				r.tallies[single].succeeded -= 2
			}
		}, true, "single beside hostile peers"},
	} {
		t.Run(test.name, func(t *testing.T) {
			var out bytes.Buffer
			require.Equal(t, test.missed == "", report(&out, rowsOf(30, test.change), test.chaos), out.String())
			if test.missed != "" {
				require.Regexp(t, "MISSED +"+test.missed, out.String())
			}
		})
	}
	require.False(t, report(&bytes.Buffer{}, nil, false))
}
