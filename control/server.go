package control

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// Bounds of the interface.
const (
	maxConnections = 16
	maxHeader      = 16 << 10 // bytes of the header of a request
	maxRequest     = 64 << 10 // bytes of the body of a request
	requestTime    = 30 * time.Second
	idleTime       = time.Minute
)

// Resource answers one kind of request. The value becomes the JSON body of a 200;
// nil becomes a 204 without one. The body of r is bounded and its context ends
// when the peer goes away, the server ends or the time is up.
type Resource func(r *http.Request) (any, error)

// StatusError is an error with the HTTP status that tells of it. Any other error
// is a 500.
type StatusError struct {
	Status  int
	Message string
}

func (e *StatusError) Error() string { return e.Message }

// Errorf makes a StatusError.
func Errorf(status int, format string, args ...any) error {
	return &StatusError{Status: status, Message: fmt.Sprintf(format, args...)}
}

// Stats counts what became of requests to the control interface.
type Stats struct {
	Requests atomic.Uint64 `metric:"requests_total" help:"Requests to the control interface."`
	Failed   atomic.Uint64 `metric:"failed_total" help:"Requests to the control interface answered with an error."`
	Refused  atomic.Uint64 `metric:"connections_refused_total" help:"Connections to the control interface refused: another user's, or too many."`
}

// Server is the control interface. Resources may be registered before and after
// it listens. Safe for concurrent use.
type Server struct {
	stats *Stats
	log   *zap.Logger
	mux   *http.ServeMux

	mu       sync.Mutex
	patterns []string
}

// NewServer returns a Server with the one resource that lists the others.
func NewServer(stats *Stats, log *zap.Logger) *Server {
	s := &Server{stats: stats, log: log, mux: http.NewServeMux()}
	s.Handle("GET /v1/{$}", func(*http.Request) (any, error) {
		s.mu.Lock()
		defer s.mu.Unlock()
		return struct {
			Resources []string `json:"resources"`
		}{slices.Sorted(slices.Values(s.patterns))}, nil
	})
	s.mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		s.write(w, http.StatusNotFound, failure{"no such resource: " + r.Method + " " + r.URL.Path})
	})
	return s
}

// Handle registers a resource under a pattern of http.ServeMux with a method,
// e.g. "GET /v1/cache/entries". It panics when there is one already.
func (s *Server) Handle(pattern string, answer Resource) {
	s.HandleHTTP(pattern, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		value, err := answer(r)
		var status *StatusError
		var tooLong *http.MaxBytesError
		switch {
		case errors.As(err, &status):
			s.write(w, status.Status, failure{status.Message})
		case errors.As(err, &tooLong):
			s.write(w, http.StatusRequestEntityTooLarge, failure{fmt.Sprintf("the body is longer than %d bytes", tooLong.Limit)})
		case err != nil:
			s.write(w, http.StatusInternalServerError, failure{err.Error()})
		case value == nil:
			w.WriteHeader(http.StatusNoContent)
		default:
			s.write(w, http.StatusOK, value)
		}
	}))
}

// HandleHTTP registers what answers in another form than JSON.
func (s *Server) HandleHTTP(pattern string, h http.Handler) {
	s.mux.Handle(pattern, h)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.patterns = append(s.patterns, pattern)
}

// failure is the body of every error.
type failure struct {
	Error string `json:"error"`
}

func (s *Server) write(w http.ResponseWriter, status int, value any) {
	body, err := json.Marshal(value)
	if err != nil {
		status, body = http.StatusInternalServerError, []byte(`{"error":"the answer cannot be written as JSON"}`)
		s.log.Error("an answer of the control interface cannot be written as JSON", zap.Error(err))
	}
	if status >= http.StatusBadRequest {
		s.stats.Failed.Add(1)
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}

// ServeHTTP implements http.Handler: the resources, within their bounds.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.stats.Requests.Add(1)
	r.Body = http.MaxBytesReader(w, r.Body, maxRequest)
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		caller, _ := CallerOf(r.Context())
		s.log.Info("control", zap.String("request", r.Method+" "+r.URL.RequestURI()), zap.Uint32("uid", caller.UID), zap.Int32("pid", caller.PID))
	}
	s.mux.ServeHTTP(w, r)
}

// Serve answers on l until ctx ends, then closes it and returns when running
// requests have ended, after a short time at the latest.
func (s *Server) Serve(ctx context.Context, l *Listener) {
	l.stats = s.stats
	h := http.Server{
		Handler: s, MaxHeaderBytes: maxHeader, ReadTimeout: requestTime, WriteTimeout: requestTime, IdleTimeout: idleTime,
		ErrorLog:    zap.NewStdLog(s.log),
		BaseContext: func(net.Listener) context.Context { return ctx },
		ConnContext: func(ctx context.Context, c net.Conn) context.Context {
			if c, ok := c.(*conn); ok {
				return context.WithValue(ctx, callerKey{}, c.caller)
			}
			return ctx
		},
	}
	ended := make(chan struct{})
	stop := context.AfterFunc(ctx, func() {
		defer close(ended)
		grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		if h.Shutdown(grace) != nil {
			_ = h.Close()
		}
	})
	if err := h.Serve(l); !errors.Is(err, http.ErrServerClosed) {
		s.log.Error("the control interface ended", zap.Error(err))
	}
	if !stop() {
		<-ended
	}
	_ = l.Close()
}
