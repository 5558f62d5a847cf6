package service

import (
	"go.uber.org/zap"

	"coapproxy/metrics"
)

// logCounters writes every counter that is not zero in one log line.
func logCounters(r *metrics.Registry, log *zap.Logger) {
	var fields []zap.Field
	for _, s := range r.Samples() {
		if s.Value == 0 {
			continue
		}
		name := s.Name
		if s.Label != "" {
			name += "{" + s.LabelValue + "}"
		}
		if s.Micro {
			fields = append(fields, zap.Float64(name, s.Number()))
			continue
		}
		fields = append(fields, zap.Int64(name, s.Value))
	}
	log.Info("counters", fields...)
}
