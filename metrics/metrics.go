// Package metrics is the one place where counters come together: every room
// counts in a struct of its own, and a Registry reads them all.
package metrics

import (
	"fmt"
	"reflect"
	"sync"
	"sync/atomic"
)

// Sample is the value of one counter at one moment.
type Sample struct {
	// Name has the form room_what_unit, e.g. coap_datagrams_sent_total.
	Name string
	// Help is one sentence for the operator.
	Help string
	// Label and LabelValue tell the elements of an array of counters apart;
	// both are empty for a single one.
	Label, LabelValue string
	// Value of the counter; a gauge may be negative.
	Value int64
}

// Registry knows all counters. Safe for concurrent use.
type Registry struct {
	mu      sync.Mutex
	sources []source
}

type source struct {
	sample Sample // without Value
	load   func() int64
}

// Register adds the counters of stats, a pointer to a struct whose fields of
// type atomic.Uint64 or atomic.Int64, or arrays of atomic.Uint64, carry the
// tags `metric` (the name), `help`, and for arrays `label`. names gives the
// label values of arrays by index. It panics on any other struct: that is a
// mistake in the program, not in its input.
func (r *Registry) Register(room string, stats any, names func(i int) string) {
	v := reflect.ValueOf(stats).Elem()
	r.mu.Lock()
	defer r.mu.Unlock()
	for i := range v.NumField() {
		tag := v.Type().Field(i).Tag
		s := Sample{Name: room + "_" + tag.Get("metric"), Help: tag.Get("help")}
		switch field := v.Field(i).Addr().Interface().(type) {
		case *atomic.Uint64:
			r.sources = append(r.sources, source{s, func() int64 { return int64(field.Load()) }})
		case *atomic.Int64:
			r.sources = append(r.sources, source{s, field.Load})
		default:
			if v.Field(i).Kind() != reflect.Array {
				panic(fmt.Sprintf("metrics: %T is no counter", field))
			}
			for j := range v.Field(i).Len() {
				s.Label, s.LabelValue = tag.Get("label"), names(j)
				element := v.Field(i).Index(j).Addr().Interface().(*atomic.Uint64)
				r.sources = append(r.sources, source{s, func() int64 { return int64(element.Load()) }})
			}
		}
	}
}

// Samples returns all counters in the order of their registration.
func (r *Registry) Samples() []Sample {
	r.mu.Lock()
	defer r.mu.Unlock()
	out := make([]Sample, len(r.sources))
	for i, s := range r.sources {
		out[i] = s.sample
		out[i].Value = s.load()
	}
	return out
}
