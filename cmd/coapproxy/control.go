package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"syscall"
	"time"

	"coapproxy/config"
	"coapproxy/control"
)

// controlFlags are the flags of subcommands that ask a running proxy.
type controlFlags struct {
	socket, config string
	json           bool
	// mistakes are those that client found in the configuration.
	mistakes config.Problems
}

func (f *controlFlags) register(flags *flag.FlagSet) {
	flags.StringVar(&f.socket, "socket", "", "control socket of the proxy: `PATH`; default: that of the configuration")
	flags.StringVar(&f.config, "config", defaultConfig, "configuration `FILE` of the proxy")
	flags.BoolVar(&f.json, "json", false, "print JSON")
}

// client returns the client for the proxy that the flags mean. That it can be
// found does not depend on a configuration without mistakes: it may work by an
// earlier one, and that is when one wants to ask.
func (f *controlFlags) client() (*control.Client, string, error) {
	path := f.socket
	if path == "" {
		c, err := config.Load(f.config, config.WithInterfaces(nil))
		switch {
		case errors.As(err, &f.mistakes):
			path, _ = config.ControlIn(f.config).Path()
		case err == nil:
			path, _ = c.Control.Path()
		case f.config == defaultConfig && (errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission)):
			path = config.DefaultControlSocket
		default:
			return nil, "", err
		}
		if path == "" {
			return nil, "", fmt.Errorf("%s has no control socket (control.socket: off)", f.config)
		}
	}
	return control.NewClient(path), path, nil
}

// controlTimeout is how long a proxy that works may take for an answer, at most.
const controlTimeout = 30 * time.Second

// ask asks the proxy, which may hang.
func (f *controlFlags) ask(ctx context.Context, client *control.Client, method, path string, query url.Values, answer any) error {
	ctx, cancel := context.WithTimeout(ctx, controlTimeout)
	defer cancel()
	return client.Do(ctx, method, path, query, nil, answer)
}

// explainControl makes an error of a request to the proxy one that tells the
// operator what to do.
func explainControl(err error, path string) error {
	var status *control.StatusError
	switch {
	case errors.As(err, &status):
		return err
	case errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("the proxy at the control socket %s has not answered within %v: it hangs, or this machine is overloaded", path, controlTimeout)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no proxy answers at the control socket %s: is it running? See --socket and --config", path)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("user %d may not use the control socket %s: see control.group in the configuration", os.Getuid(), path)
	}
	return fmt.Errorf("control socket %s: %w", path, err)
}
