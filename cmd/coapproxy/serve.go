package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"strings"

	"coapproxy/config"
	"coapproxy/service"
)

const defaultConfig = "/etc/coapproxy/config.yaml"

// runServe is the subcommand serve.
func runServe(ctx context.Context, io stdio, args []string) int {
	flags := newFlags(io, "serve", "[--config FILE]", "Runs the proxy until SIGINT or SIGTERM; running exchanges then get limits.grace to finish, a second\n"+
		"signal ends it at once. SIGHUP reads the configuration again: if it is good, the proxy works by it\n"+
		"from then on, and running exchanges are not disturbed. SIGUSR1 writes the counters that are not zero to the log.\n"+
		"Exit codes: 0 ended on request, 1 could not start or run (a port that is taken, an interface that is not there), 2 wrong command\n"+
		"line, 78 wrong configuration.")
	file := flags.String("config", defaultConfig, "configuration `FILE`")
	if code, done := parse(flags, args, 0, 0); done {
		return code
	}
	c, err := config.Load(*file)
	if err != nil {
		lines := strings.Split(err.Error(), "\n")
		var problems config.Problems
		if !errors.As(err, &problems) && errors.Is(err, fs.ErrNotExist) {
			lines = append(lines, "coapproxy init DIR writes a configuration to start from")
		}
		for _, line := range lines {
			fmt.Fprintln(io.err, service.ErrorPrefix(io.err)+line)
		}
		// An interface that is missing now can come, as while the system starts.
		if _, err := config.Load(*file, config.WithInterfaces(nil)); err == nil {
			return exitFailed
		}
		return exitConfig
	}
	out := io.err
	if c.Log.Output == config.LogStdout {
		out = io.out
	}
	if service.Run(ctx, *file, c, out) != nil { // the log has told
		return exitFailed
	}
	return exitOK
}
