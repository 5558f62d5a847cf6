package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/signal"
	"runtime/debug"
	"syscall"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"

	"coapproxy/config"
)

const defaultConfig = "/etc/coapproxy/config.yaml"

// runServe is the subcommand serve.
func runServe(ctx context.Context, io stdio, args []string) int {
	flags := newFlags(io, "serve", "[--config FILE]", "Runs the proxy until SIGINT or SIGTERM; running exchanges then get limits.grace to finish, a second\n"+
		"signal ends it at once. SIGUSR1 writes the counters that are not zero to the log.\n"+
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
	log := newLog(c.Log, out)
	defer func() { _ = log.Sync() }()
	return serve(ctx, c, log)
}

// gcPercent trades memory for less work: the heap is small and short-lived.
const gcPercent = 200

// serve runs the proxy until ctx ends.
func serve(ctx context.Context, c *config.Config, log *zap.Logger) int {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(gcPercent)
	}
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGHUP) // before "ready": from then on they may come
	defer signal.Stop(signals)
	began := time.Now()
	p, err := startProxy(ctx, c, log)
	if err != nil {
		log.Error("cannot start", zap.Error(err))
		return exitFailed
	}
	log.Info("ready", zap.Duration("after", time.Since(began).Round(time.Millisecond)), zap.String("version", version()))
	countersOnSignal(ctx, signals, p.metrics, log)
	log.Info("stopping", zap.Duration("grace", c.Limits.Grace))
	left := p.stop(c.Limits.Grace)
	logCounters(p.metrics, log)
	log.Info("stopped", zap.Int("exchanges_cut_off", left))
	return exitOK
}

// newLog makes the logger the configuration asks for.
func newLog(c config.Log, w io.Writer) *zap.Logger {
	level, err := zapcore.ParseLevel(string(c.Level))
	if err != nil {
		level = zapcore.InfoLevel
	}
	e := zap.NewProductionEncoderConfig()
	e.EncodeTime = zapcore.RFC3339NanoTimeEncoder
	e.EncodeDuration = zapcore.StringDurationEncoder
	encoder := zapcore.NewJSONEncoder(e)
	if c.Format == config.LogConsole {
		e.EncodeTime = zapcore.TimeEncoderOfLayout("2006-01-02T15:04:05.000Z07:00")
		e.EncodeLevel = zapcore.CapitalLevelEncoder
		e.ConsoleSeparator = " "
		encoder = zapcore.NewConsoleEncoder(e)
	}
	core := zapcore.NewCore(encoder, zapcore.Lock(zapcore.AddSync(w)), level)
	return zap.New(zapcore.NewSamplerWithOptions(core, time.Second, sampleFirst, sampleThen))
}

// Of the same message the log has so many lines per second, and then one of so
// many: strangers must not be able to fill a disk, and counters count the rest.
const (
	sampleFirst = 500
	sampleThen  = 1000
)

// newFlags returns the flag set of a subcommand, with a usage text that shows
// its flags the way they are typed.
func newFlags(io stdio, name, args, text string) *flag.FlagSet {
	flags := flag.NewFlagSet("coapproxy "+name, flag.ContinueOnError)
	flags.SetOutput(usageOutput{io.err, io.out})
	flags.Usage = func() {
		w := flags.Output()
		fmt.Fprintf(w, "usage: coapproxy %s %s\n\n%s\n", name, args, text)
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
