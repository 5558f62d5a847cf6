package service

import (
	"net/http"
	"net/http/pprof"

	"go.uber.org/zap"

	"coapproxy/config"
	"coapproxy/control"
)

// profiles lets the operator look at where a running proxy spends its time and
// memory, in the form that `go tool pprof` reads.
func profiles(s *control.Server) {
	s.HandleHTTP("GET /debug/pprof/", http.HandlerFunc(pprof.Index))
	s.HandleHTTP("GET /debug/pprof/profile", http.HandlerFunc(pprof.Profile))
	s.HandleHTTP("GET /debug/pprof/trace", http.HandlerFunc(pprof.Trace))
}

// serveControl opens the control socket and serves it as long as the proxy lives.
// A socket that the configuration does not ask for may be missing.
func (p *Proxy) serveControl(c config.Control, log *zap.Logger) error {
	path, required := c.Path()
	if path == "" {
		return nil
	}
	l, err := control.Listen(p.ctx, path, c.Group)
	switch {
	case err != nil && required:
		return err
	case err != nil:
		log.Info("no control socket; write control.socket to have one elsewhere", zap.Error(err))
		return nil
	}
	profiles(p.control)
	log.Info("control socket", zap.String("path", path))
	p.wg.Go(func() { p.control.Serve(p.ctx, l) })
	return nil
}
