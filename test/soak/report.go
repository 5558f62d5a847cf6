package main

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"
)

// row is what was seen at one moment, and since the one before.
type row struct {
	at              time.Duration
	rss, anon       float64 // MiB; anon is what is not pages of the binary
	goroutines, fds int
	hostile         bool
	tallies         [kinds]tally
}

const rowHeader = "     time  RSS MiB  of it anonymous  goroutines  fds  successes of tries, and the p99 of the time to the first response"

func (r row) String() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%9v  %7.1f  %15.1f  %10d  %3d ", r.at.Round(time.Second), r.rss, r.anon, r.goroutines, r.fds)
	for k := range kinds {
		t := &r.tallies[k]
		fmt.Fprintf(&b, "  %v %d/%d %v", k, t.succeeded, t.tried, t.quantile(0.99).Round(time.Millisecond))
	}
	return b.String()
}

// What counts as flat: the median of the last third of the time against that of the second third, by which
// everything has filled up that is meant to. With hostile peers tables fill up later, but have to stop growing, too.
const (
	rssGrowth  = 1.15
	rssSlack   = 4 // MiB
	countSlack = 10
	// wanted is the share of the well-behaved clients' requests that have to succeed, whatever the devices lose.
	wanted = 0.999
)

// report judges the rows.
func report(w io.Writer, rows []row, chaos bool) bool {
	third := len(rows) / 3
	if third == 0 {
		fmt.Fprintln(w, "too short to judge")
		return false
	}
	early, late := rows[third:2*third], rows[2*third:]
	if chaos {
		half := rows[len(rows)/2:]
		early, late = half[len(half)/3:2*len(half)/3], half[2*len(half)/3:]
	}
	ok := true
	say := func(good bool, format string, args ...any) {
		verdict := "met"
		if !good {
			verdict, ok = "MISSED", false
		}
		fmt.Fprintf(w, "  %-6s  %s\n", verdict, fmt.Sprintf(format, args...))
	}
	fmt.Fprintln(w)
	for _, f := range []struct {
		name  string
		of    func(row) float64
		slack float64
	}{
		{"RSS in MiB", func(r row) float64 { return r.rss }, rssSlack},
		{"goroutines", func(r row) float64 { return float64(r.goroutines) }, countSlack},
		{"descriptors", func(r row) float64 { return float64(r.fds) }, countSlack},
	} {
		before, after := median(early, f.of), median(late, f.of)
		say(after <= before*rssGrowth+f.slack, "%s flat: %.1f, then %.1f", f.name, before, after)
	}
	failures := make(map[string]int)
	for k := range kinds {
		quiet, loud := &tally{}, &tally{}
		for i := range rows {
			t := quiet
			if rows[i].hostile {
				t = loud
			}
			t.tried += rows[i].tallies[k].tried
			t.succeeded += rows[i].tallies[k].succeeded
			t.latencies = append(t.latencies, rows[i].tallies[k].latencies...)
			for what, n := range rows[i].tallies[k].failures {
				failures[fmt.Sprintf("%v: %s", k, what)] += n
			}
		}
		share := func(t *tally) float64 { return float64(t.succeeded) / float64(max(t.tried, 1)) }
		say(share(quiet) >= wanted, "%v: %.3f %% of %d succeeded, p99 %v", k, 100*share(quiet), quiet.tried, quiet.quantile(0.99).Round(time.Millisecond))
		if chaos {
			say(share(loud) >= wanted, "%v beside hostile peers: %.3f %% of %d succeeded, p99 %v (%.1f times)", k, 100*share(loud), loud.tried,
				loud.quantile(0.99).Round(time.Millisecond), float64(loud.quantile(0.99))/float64(max(quiet.quantile(0.99), 1)))
		}
	}
	for _, what := range slices.Sorted(maps.Keys(failures)) {
		fmt.Fprintf(w, "  %d times  %s\n", failures[what], what)
	}
	return ok
}

func median(rows []row, of func(row) float64) float64 {
	values := make([]float64, len(rows))
	for i, r := range rows {
		values[i] = of(r)
	}
	slices.Sort(values)
	return values[len(values)/2]
}
