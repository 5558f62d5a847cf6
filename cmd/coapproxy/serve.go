package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
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
		"Exit codes: 0 ended on request, 1 could not start or run, 2 wrong command line, 78 wrong configuration.")
	file := flags.String("config", defaultConfig, "configuration `FILE`")
	if code, done := parse(flags, args, 0, 0); done {
		return code
	}
	c, err := config.Load(*file)
	if err != nil {
		fmt.Fprintln(io.err, err)
		var problems config.Problems
		if !errors.As(err, &problems) && errors.Is(err, fs.ErrNotExist) {
			fmt.Fprintln(io.err, "coapproxy init DIR writes a configuration to start from")
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

// newFlags returns the flag set of a subcommand, with a usage text that shows
// its flags the way they are typed.
func newFlags(io stdio, name, args, text string) *flag.FlagSet {
	flags := flag.NewFlagSet("coapproxy "+name, flag.ContinueOnError)
	flags.SetOutput(usageOutput{io.err, io.out})
	flags.Usage = func() {
		w := flags.Output()
		fmt.Fprintf(w, "%s\n\n%s\n", strings.TrimSpace("usage: coapproxy "+name+" "+args), text)
		any := false
		flags.VisitAll(func(f *flag.Flag) {
			if !any {
				fmt.Fprintln(w)
			}
			any = true
			value, help := flag.UnquoteUsage(f)
			shown := "--" + f.Name
			if value != "" {
				shown += " " + value
			}
			fmt.Fprintf(w, "  %-28s %s", shown, help)
			if f.DefValue != "" && f.DefValue != "false" && f.DefValue != "0" && f.DefValue != "0s" {
				fmt.Fprintf(w, " (default %s)", f.DefValue)
			}
			fmt.Fprintln(w)
		})
	}
	return flags
}

// usageOutput is where a usage text goes that nobody asked for, and where one
// goes that was.
type usageOutput struct {
	io.Writer
	asked io.Writer
}

// parse parses a subcommand's arguments. done means that the program ends with
// the code: help was asked for, or the arguments are wrong.
func parse(flags *flag.FlagSet, args []string, least, most int) (code int, done bool) {
	for _, a := range args {
		if a == "-h" || a == "-help" || a == "--help" {
			if u, ok := flags.Output().(usageOutput); ok {
				flags.SetOutput(u.asked)
			}
		}
	}
	switch err := flags.Parse(args); {
	case errors.Is(err, flag.ErrHelp):
		return exitOK, true
	case err != nil:
		return exitUsage, true
	case flags.NArg() < least || flags.NArg() > most:
		fmt.Fprintf(flags.Output(), "%s: wrong number of arguments\n\n", flags.Name())
		flags.Usage()
		return exitUsage, true
	}
	return exitOK, false
}
