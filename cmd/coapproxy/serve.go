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
	"strings"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"coapproxy/config"
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
	log, level := newLog(c.Log, out)
	defer func() { _ = log.Sync() }()
	return (&service{file: *file, log: log, level: level}).run(ctx, c)
}

// service is the subcommand serve at work.
type service struct {
	file    string
	proxy   *runningProxy
	log     *zap.Logger
	level   logControl
	manager manager
	began   time.Time
}

// run runs the proxy until ctx ends.
func (s *service) run(ctx context.Context, c *config.Config) int {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGHUP) // before "ready": from then on they may come
	defer signal.Stop(signals)
	s.began, s.manager.log = time.Now(), s.log
	passed, err := passedSockets()
	defer passed.close()
	if err == nil {
		s.proxy, err = startProxyOn(ctx, c, passed, s.log)
	}
	if err != nil {
		s.log.Error("cannot start", zap.Error(err))
		return exitFailed
	}
	passed.unused(s.proxy.listeners, s.log)
	s.proxy.metrics.Func("log_lines_dropped_total", "Lines of the log dropped because nobody read them.", func() int64 { return int64(s.level.writer.dropped.Load()) })
	s.register()
	s.log.Info("ready", zap.Duration("after", time.Since(s.began).Round(time.Millisecond)), zap.String("version", version()))
	s.manager.ready()
	var watching sync.WaitGroup
	watching.Go(func() { s.manager.watch(s.proxy.ctx, s.proxy.healthy) })
	for running := true; running; {
		select {
		case <-ctx.Done():
			running = false
		case signal := <-signals:
			if signal == syscall.SIGHUP {
				_, _ = s.reload() // it has told the log
				continue
			}
			logCounters(s.proxy.metrics, s.log)
		}
	}
	s.manager.stopping()
	left := s.proxy.stop(s.log)
	watching.Wait()
	logCounters(s.proxy.metrics, s.log)
	s.log.Info("stopped", zap.Int("exchanges_cut_off", left))
	return exitOK
}

// reload reads the configuration file again and has the proxy work by it. A file
// that cannot be used changes nothing.
func (s *service) reload() (reloaded, error) {
	s.manager.reloading()
	defer s.manager.ready()
	c, err := config.Load(s.file)
	var r reloaded
	if err == nil {
		r, err = s.proxy.reload(c, s.log)
	}
	s.proxy.stats.reloads.note(err)
	var problems config.Problems
	switch {
	case errors.As(err, &problems):
		s.log.Warn("configuration refused, the one before stays", zap.String("file", s.file), zap.Stringers("problems", problems))
		return r, err
	case err != nil:
		s.log.Warn("configuration refused, the one before stays", zap.String("file", s.file), zap.Error(err))
		return r, err
	}
	s.level.SetLevel(levelOf(c.Log))
	s.log.Info("configuration read again", zap.String("file", s.file), zap.Strings("changed", r.Changed))
	if len(r.Restart) > 0 {
		s.log.Warn("some of the configuration takes effect at the next start only", zap.Strings("keys", r.Restart))
	}
	return r, nil
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
