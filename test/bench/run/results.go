package main

import (
	"fmt"
	"math"

	"coapproxy/test/bench/internal/measure"
)

// A sample is what one measurement found. An exchange is, for a group, one relayed response.
type sample struct {
	exchanges  uint64
	rate       float64 // exchanges per second
	p50, p99   float64 // milliseconds; for a group from the member's sending to the client's receiving
	cpu        float64 // microseconds of the proxy process per exchange; NaN without such a process
	rss        float64 // of the proxy process after the load in MiB; NaN without
	peak       float64 // largest RSS in MiB; NaN without
	lost       uint64
	errors     uint64 // responses that were not the expected ones
	duplicates uint64
	late       uint64  // responses after T'
	origin     uint64  // requests that reached the origin
	grown      float64 // bytes of RSS per idle observer
	heap       float64 // bytes of the live heap per idle observer
}

func (s sample) String() string {
	return fmt.Sprintf("%.0f/s, %.2f µs CPU each, %d lost, %d other", s.rate, s.cpu, s.lost, s.errors+s.duplicates+s.late)
}

// measured names a measurement of a round.
type measured struct{ scenario, contender string }

// results has one map per round.
type results []map[measured]sample

// in returns the sample of a measurement in a round. That of the null relay is the better of the two.
func (r results) in(round int, m measured) (sample, bool) {
	if m.contender != null {
		s, ok := r[round][m]
		return s, ok
	}
	a, okA := r[round][measured{m.scenario, nullUnbatched}]
	b, okB := r[round][measured{m.scenario, nullBatched}]
	if okA && (!okB || a.cpu <= b.cpu) {
		return a, true
	}
	return b, okB
}

// of collects f over all rounds in which m was measured.
func (r results) of(m measured, f func(sample) float64) []float64 {
	var v []float64
	for round := range r {
		if s, ok := r.in(round, m); ok {
			v = append(v, f(s))
		}
	}
	return v
}

// across is the median of the rounds' ratios of f between two measurements.
func across(f func(sample) float64, over, under measured) func(results) float64 {
	return func(r results) float64 {
		var v []float64
		for round := range r {
			a, okA := r.in(round, over)
			b, okB := r.in(round, under)
			if okA && okB && f(b) > 0 {
				v = append(v, f(a)/f(b))
			}
		}
		return measure.Median(v)
	}
}

// growth is the median of how many bytes the peak RSS of one measurement is above that of another, divided by n.
func growth(with, without measured, n int) func(results) float64 {
	return func(r results) float64 {
		var v []float64
		for round := range r {
			a, okA := r.in(round, with)
			b, okB := r.in(round, without)
			if okA && okB {
				v = append(v, (a.peak-b.peak)*(1<<20)/float64(n))
			}
		}
		return measure.Median(v)
	}
}

// ratio is across for two contenders of one scenario.
func ratio(scenario string, f func(sample) float64, over, under string) func(results) float64 {
	return across(f, measured{scenario, over}, measured{scenario, under})
}

// value is coapproxy's median of f.
func value(scenario string, f func(sample) float64) func(results) float64 {
	return func(r results) float64 { return measure.Median(r.of(measured{scenario, subject}, f)) }
}

// worst is coapproxy's largest f of all rounds.
func worst(scenario string, f func(sample) float64) func(results) float64 {
	return func(r results) float64 {
		w := math.NaN()
		for _, v := range r.of(measured{scenario, subject}, f) {
			if !(v <= w) {
				w = v
			}
		}
		return w
	}
}
