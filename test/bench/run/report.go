package main

import (
	"fmt"
	"io"
	"math"
	"strings"
	"unicode/utf8"

	"coapproxy/test/bench/internal/measure"
)

// report writes a scenario's table of medians and its targets, in Markdown.
func report(w io.Writer, sc *scenario, r results) {
	each, added := "exchange", ""
	if sc.members > 0 {
		each, added = "response", "added "
	}
	table := [][]string{{
		"", each + "s/s", added + "p50 ms", added + "p99 ms", "CPU µs/" + each,
		"÷ null relay", "÷ libcoap", "RSS MiB", "peak RSS MiB", "lost", "other",
	}}
	for _, c := range []string{direct, null, libcoap, httpFloor, subject} {
		m := measured{sc.name, c}
		if len(r.of(m, func(sample) float64 { return 0 })) == 0 {
			continue
		}
		median := func(f func(sample) float64) float64 { return measure.Median(r.of(m, f)) }
		sum := func(f func(sample) uint64) string {
			var n uint64
			for round := range r {
				if s, ok := r.in(round, m); ok {
					n += f(s)
				}
			}
			return fmt.Sprint(n)
		}
		cpu := func(s sample) float64 { return s.cpu }
		table = append(table, []string{
			c,
			number(median(func(s sample) float64 { return s.rate }), 0),
			number(median(func(s sample) float64 { return s.p50 }), 2),
			number(median(func(s sample) float64 { return s.p99 }), 2),
			number(median(cpu), 2),
			number(ratio(sc.name, cpu, c, null)(r), 2),
			number(ratio(sc.name, cpu, c, libcoap)(r), 2),
			number(median(func(s sample) float64 { return s.rss }), 1),
			number(median(func(s sample) float64 { return s.peak }), 1),
			sum(func(s sample) uint64 { return s.lost }),
			sum(func(s sample) uint64 { return s.errors + s.duplicates + s.late }),
		})
	}
	fmt.Fprintf(w, "\n## %s\n\n", sc.title)
	if len(table) == 1 {
		fmt.Fprintln(w, "Not measured.")
		return
	}
	write(w, table)

	goals := [][]string{{"coapproxy's target", "wanted", "is", ""}}
	for _, t := range sc.targets {
		goals = append(goals, t.row(r))
	}
	fmt.Fprintln(w)
	write(w, goals)
}

// row is a target's line: what, the bound, the value, and whether it is met.
func (t target) row(r results) []string {
	relation := "≥ "
	if t.atMost {
		relation = "≤ "
	}
	v, verdict := t.value(r), "missed"
	switch {
	case math.IsNaN(v):
		verdict = "not measured"
	case t.atMost && v <= t.bound, !t.atMost && v >= t.bound:
		verdict = "met"
	}
	return []string{t.what, fmt.Sprint(relation, t.bound), number(v, 2), verdict}
}

// number writes v with so many decimals, and a dash for what was not measured.
func number(v float64, decimals int) string {
	if math.IsNaN(v) || math.IsInf(v, 0) {
		return "–"
	}
	return fmt.Sprintf("%.*f", decimals, v)
}

// write writes a Markdown table that reads well on a terminal too. The first row is the header; all columns but
// the first are flush right.
func write(w io.Writer, rows [][]string) {
	width := make([]int, len(rows[0]))
	for _, row := range rows {
		for i, cell := range row {
			width[i] = max(width[i], utf8.RuneCountInString(cell), 3)
		}
	}
	for n, row := range rows {
		for i, cell := range row {
			pad := strings.Repeat(" ", width[i]-utf8.RuneCountInString(cell))
			if i == 0 {
				fmt.Fprintf(w, "| %s%s |", cell, pad)
			} else {
				fmt.Fprintf(w, " %s%s |", pad, cell)
			}
		}
		fmt.Fprintln(w)
		if n > 0 {
			continue
		}
		for i := range row {
			if i == 0 {
				fmt.Fprintf(w, "|-%s-|", strings.Repeat("-", width[i]))
			} else {
				fmt.Fprintf(w, "-%s:|", strings.Repeat("-", width[i]))
			}
		}
		fmt.Fprintln(w)
	}
}
