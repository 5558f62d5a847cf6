package main

import (
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"syscall"

	"coapproxy/config"
	"coapproxy/control"
)

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
