package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/pprof"
	"os"
	"syscall"

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
func (p *runningProxy) serveControl(c config.Control, log *zap.Logger) error {
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

// controlFlags are the flags of subcommands that ask a running proxy.
type controlFlags struct {
	socket, config string
	json           bool
}

func (f *controlFlags) register(flags *flag.FlagSet) {
	flags.StringVar(&f.socket, "socket", "", "control socket of the proxy: `PATH`; default: that of the configuration")
	flags.StringVar(&f.config, "config", defaultConfig, "configuration `FILE` of the proxy")
	flags.BoolVar(&f.json, "json", false, "print JSON")
}

// client returns the client for the proxy that the flags mean.
func (f *controlFlags) client() (*control.Client, string, error) {
	path := f.socket
	if path == "" {
		c, err := config.Load(f.config, config.WithInterfaces(nil))
		switch {
		case err == nil:
			if path, _ = c.Control.Path(); path == "" {
				return nil, "", fmt.Errorf("%s has no control socket (control.socket: off)", f.config)
			}
		case f.config == defaultConfig && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)):
			path = config.DefaultControlSocket
		default:
			return nil, "", err
		}
	}
	return control.NewClient(path), path, nil
}

// explainControl makes an error of a request to the proxy one that tells the
// operator what to do.
func explainControl(err error, path string) error {
	var status *control.StatusError
	switch {
	case errors.As(err, &status):
		return err
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no proxy answers at the control socket %s: is it running? See --socket and --config", path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("user %d may not use the control socket %s: see control.group in the configuration", os.Getuid(), path)
	}
	return fmt.Errorf("control socket %s: %w", path, err)
}
