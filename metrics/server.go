package metrics

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/http/pprof"
	"runtime"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
	"go.uber.org/zap"
)

// Server tells over HTTP, to whoever can reach it, how the proxy is:
//
//	/metrics       all counters for Prometheus, those of the Go runtime and the process too
//	/healthz       200 as long as the proxy works, else 503
//	/readyz        200 as long as it takes requests, else 503
//	/debug/pprof/  profiles, if enabled
type Server struct {
	// Registry has the counters, Version is that of the program.
	Registry *Registry
	Version  string
	// Healthy and Ready return what is wrong; nil if nothing is. They are given
	// little time.
	Healthy, Ready func(ctx context.Context) error
	// Profiles enables /debug/pprof/.
	Profiles bool
	Log      *zap.Logger
}

// Bounds of the server: it is for a scraper or two and the operator.
const (
	maxConnections = 32
	maxHeader      = 8 << 10
	headerTime     = 5 * time.Second
	checkTime      = 2 * time.Second
	idleTime       = 2 * time.Minute
	writeTime      = 2 * time.Minute // a profile may take a while
)

// Handler returns what answers the requests. The error is about metrics that
// contradict each other.
func (s *Server) Handler() (http.Handler, error) {
	r := prometheus.NewRegistry()
	build := prometheus.NewGauge(prometheus.GaugeOpts{Name: prefix + "build_info", Help: "1, with the version of the program.",
		ConstLabels: prometheus.Labels{"version": s.Version, "goversion": runtime.Version()}})
	build.Set(1)
	for _, c := range []prometheus.Collector{s.Registry, build, collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{})} {
		if err := r.Register(c); err != nil {
			return nil, err
		}
	}
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(r, promhttp.HandlerOpts{ErrorLog: zap.NewStdLog(s.Log), MaxRequestsInFlight: 4}))
	mux.HandleFunc("GET /healthz", answer(s.Healthy))
	mux.HandleFunc("GET /readyz", answer(s.Ready))
	if s.Profiles {
		mux.HandleFunc("GET /debug/pprof/", pprof.Index)
		mux.HandleFunc("GET /debug/pprof/cmdline", pprof.Cmdline)
		mux.HandleFunc("GET /debug/pprof/profile", pprof.Profile)
		mux.HandleFunc("GET /debug/pprof/symbol", pprof.Symbol)
		mux.HandleFunc("GET /debug/pprof/trace", pprof.Trace)
	}
	return mux, nil
}

func answer(check func(context.Context) error) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		ctx, cancel := context.WithTimeout(r.Context(), checkTime)
		defer cancel()
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		if err := check(ctx); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			fmt.Fprintln(w, err)
			return
		}
		fmt.Fprintln(w, "ok")
	}
}

// Serve answers on l until ctx ends, which closes it.
func (s *Server) Serve(ctx context.Context, l net.Listener) error {
	handler, err := s.Handler()
	if err != nil {
		return errors.Join(err, l.Close())
	}
	h := http.Server{Handler: handler, MaxHeaderBytes: maxHeader, ReadHeaderTimeout: headerTime, ReadTimeout: headerTime,
		WriteTimeout: writeTime, IdleTimeout: idleTime, ErrorLog: zap.NewStdLog(s.Log),
		BaseContext: func(net.Listener) context.Context { return ctx }}
	stop := context.AfterFunc(ctx, func() { _ = h.Close() })
	defer stop()
	if err := h.Serve(&bounded{Listener: l}); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

// bounded closes connections at once when there are too many.
type bounded struct {
	net.Listener
	open atomic.Int64
}

// Accept implements net.Listener.
func (b *bounded) Accept() (net.Conn, error) {
	for {
		c, err := b.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if b.open.Add(1) <= maxConnections {
			return &counted{Conn: c, of: b}, nil
		}
		b.open.Add(-1)
		_ = c.Close()
	}
}

type counted struct {
	net.Conn
	of     *bounded
	closed atomic.Bool
}

// Close implements net.Conn.
func (c *counted) Close() error {
	if c.closed.CompareAndSwap(false, true) {
		c.of.open.Add(-1)
	}
	return c.Conn.Close()
}
