package metrics

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"
)

// prefix begins every name under which Prometheus knows a counter.
const prefix = "coapproxy_"

// Describe implements prometheus.Collector. Nothing is described beforehand:
// rooms may register at any time.
func (r *Registry) Describe(chan<- *prometheus.Desc) {}

// Collect implements prometheus.Collector: every counter, under its name with
// coapproxy_ before it.
func (r *Registry) Collect(out chan<- prometheus.Metric) {
	descs := make(map[string]*prometheus.Desc)
	for _, s := range r.Samples() {
		desc := descs[s.Name]
		if desc == nil {
			desc = prometheus.NewDesc(prefix+s.Name, s.Help, split(s.Label), nil)
			descs[s.Name] = desc
		}
		kind := prometheus.GaugeValue
		if strings.HasSuffix(s.Name, "_total") {
			kind = prometheus.CounterValue
		}
		m, err := prometheus.NewConstMetric(desc, kind, s.Number(), split(s.LabelValue)...)
		if err != nil {
			m = prometheus.NewInvalidMetric(desc, err)
		}
		out <- m
	}
	r.mu.Lock()
	histograms := r.histograms
	r.mu.Unlock()
	for _, h := range histograms {
		buckets, count, sum := h.of.Read()
		limits := make(map[float64]uint64, len(buckets))
		for _, b := range buckets {
			limits[b.Limit.Seconds()] = b.Count
		}
		desc := prometheus.NewDesc(prefix+h.name, h.help, nil, nil)
		m, err := prometheus.NewConstHistogram(desc, count, sum.Seconds(), limits)
		if err != nil {
			m = prometheus.NewInvalidMetric(desc, err)
		}
		out <- m
	}
}

func split(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, ",")
}
