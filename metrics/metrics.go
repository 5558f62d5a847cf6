// Package metrics is the one place where counters come together: every room
// counts in a struct of its own, and a Registry reads them all.
package metrics

import (
	"fmt"
	"reflect"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"coapproxy/exchange"
)

// Sample is the value of one counter at one moment.
type Sample struct {
	// Name has the form room_what_unit, e.g. coap_datagrams_sent_total.
	Name string
	// Help is one sentence for the operator.
	Help string
	// Label and LabelValue tell the elements of an array of counters apart; both
	// are empty for a single one. Those of an array of arrays are two names, and
	// two values, with a comma between.
	Label, LabelValue string
	// Value of the counter; a gauge may be negative. It is in microseconds if Micro
	// is true, where the name says seconds.
	Value int64
	Micro bool
}

// Number is the value in the unit of the name.
func (s *Sample) Number() float64 {
	if s.Micro {
		return float64(s.Value) / 1e6
	}
	return float64(s.Value)
}

// Registry knows all counters. Safe for concurrent use.
type Registry struct {
	mu         sync.Mutex
	sources    []source
	histograms []histogram
}

type source struct {
	sample Sample // without Value
	load   func() int64
}

type histogram struct {
	name, help string
	of         *exchange.Histogram
}

// Labelled is a struct of counters that names the elements of its arrays: by
// index, one list per dimension.
type Labelled interface {
	LabelValues(metric string) [][]string
}

// Register adds the counters of stats, a pointer to a struct whose fields of
// type atomic.Uint64, atomic.Int64 or exchange.Histogram, or arrays of
// atomic.Uint64, or arrays of such arrays, carry the tags `metric` (the name),
// `help`, and for arrays `label`. names gives the label values of arrays by index
// where stats is not Labelled. It panics on any other struct: that is a mistake
// in the program, not in its input.
func (r *Registry) Register(room string, stats any, names func(i int) string) {
	r.register(room, stats, Sample{}, names)
}

// RegisterFor is Register for one of several that count the same, told apart by
// a label; its struct has no arrays.
func (r *Registry) RegisterFor(room string, stats any, label, value string) {
	r.register(room, stats, Sample{Label: label, LabelValue: value}, nil)
}

func (r *Registry) register(room string, stats any, of Sample, names func(i int) string) {
	v := reflect.ValueOf(stats).Elem()
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag
		s := of
		s.Name, s.Help = room+"_"+tag.Get("metric"), tag.Get("help")
		switch field := v.Field(i).Addr().Interface().(type) {
		case *atomic.Uint64:
			r.sources = append(r.sources, source{s, func() int64 { return int64(field.Load()) }})
		case *atomic.Int64:
			r.sources = append(r.sources, source{s, field.Load})
		case *exchange.Histogram:
			r.histograms = append(r.histograms, histogram{s.Name, s.Help, field})
		default:
			if v.Field(i).Kind() != reflect.Array {
				panic(fmt.Sprintf("metrics: %T is no counter", field))
			}
			s.Label = tag.Get("label")
			name := func(_, j int) string { return names(j) }
			if l, ok := stats.(Labelled); ok {
				if values := l.LabelValues(tag.Get("metric")); values != nil {
					name = func(dimension, j int) string { return values[dimension][j] }
				}
			}
			r.array(s, v.Field(i), name, nil)
		}
	}
}

// array adds the elements of an array of counters, or of arrays of them.
func (r *Registry) array(s Sample, v reflect.Value, name func(dimension, j int) string, prefix []string) {
	for j := range v.Len() {
		values := append(prefix[:len(prefix):len(prefix)], name(len(prefix), j))
		if e := v.Index(j); e.Kind() == reflect.Array {
			r.array(s, e, name, values)
			continue
		}
		s.LabelValue = strings.Join(values, ",")
		r.sources = append(r.sources, source{s, func() int64 { return int64(v.Index(j).Addr().Interface().(*atomic.Uint64).Load()) }})
	}
}

// Func adds a counter or gauge that is computed when it is asked for, under no
// lock of the proxy's own.
func (r *Registry) Func(name, help string, value func() int64) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sources = append(r.sources, source{Sample{Name: name, Help: help}, value})
}

// DurationFor adds a gauge for one of several, told apart by a label, that is
// computed as for Func.
func (r *Registry) DurationFor(name, help, label, value string, duration func() time.Duration) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.sources = append(r.sources, source{Sample{Name: name, Help: help, Label: label, LabelValue: value, Micro: true}, func() int64 { return duration().Microseconds() }})
}

// Samples returns all counters in the order of their registration.
func (r *Registry) Samples() []Sample {
	r.mu.Lock()
	sources := r.sources
	r.mu.Unlock()
	out := make([]Sample, len(sources))
	for i, s := range sources {
		out[i] = s.sample
		out[i].Value = s.load()
	}
	return out
}
