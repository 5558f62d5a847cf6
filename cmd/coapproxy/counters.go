package main

import (
	"context"
	"os"
	"syscall"

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
		fields = append(fields, zap.Int64(name, s.Value))
	}
	log.Info("counters", fields...)
}

// countersOnSignal logs the counters at each SIGUSR1 until ctx ends. SIGHUP,
// with which many programs are told to read their configuration again, does not
// end the proxy.
func countersOnSignal(ctx context.Context, signals <-chan os.Signal, r *metrics.Registry, log *zap.Logger) {
	for {
		select {
		case <-ctx.Done():
			return
		case s := <-signals:
			if s == syscall.SIGHUP {
				log.Warn("the configuration is not read again; restart the proxy for that")
				continue
			}
			logCounters(r, log)
		}
	}
}
