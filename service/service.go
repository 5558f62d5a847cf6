package service

import (
	"context"
	"errors"
	"io"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"go.uber.org/zap"

	"coapproxy/config"
	"coapproxy/control"
)

// service is a proxy that works by a file and tells its operator how it is: by
// signals, the control socket, the service manager.
type service struct {
	file    string
	proxy   *Proxy
	log     *zap.Logger
	level   logControl
	manager manager
	began   time.Time
}

// ErrNotStarted is what Run returns when the proxy could not be started; the log
// has the reason.
var ErrNotStarted = errors.New("not started")

// Run runs a proxy by a configuration that was read from file, with its log on w,
// until ctx ends; running exchanges then have limits.grace. SIGHUP has it read the
// file again, SIGUSR1 write its counters to the log.
func Run(ctx context.Context, file string, c *config.Config, w io.Writer) error {
	log, level := newLog(c.Log, w)
	defer func() { _ = log.Sync() }()
	return (&service{file: file, log: log, level: level}).run(ctx, c)
}

func (s *service) run(ctx context.Context, c *config.Config) error {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1, syscall.SIGHUP) // before "ready": from then on they may come
	defer signal.Stop(signals)
	s.began, s.manager.log = time.Now(), s.log
	passed, err := passedSockets()
	defer passed.close()
	if err == nil {
		s.proxy, err = startOn(ctx, c, passed, s.log)
	}
	if err != nil {
		s.log.Error("cannot start", zap.Error(err))
		return ErrNotStarted
	}
	passed.unused(s.log)
	s.proxy.metrics.Func("log_lines_dropped_total", "Lines of the log dropped because nobody read them.", func() int64 { return int64(s.level.writer.dropped.Load()) })
	s.register()
	s.log.Info("ready", zap.Duration("after", time.Since(s.began).Round(time.Millisecond)), zap.String("version", Version()))
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
	left := s.proxy.Stop(s.log)
	watching.Wait()
	logCounters(s.proxy.metrics, s.log)
	s.log.Info("stopped", zap.Int("exchanges_cut_off", left))
	return nil
}

// reload reads the configuration file again and has the proxy work by it. A file
// that cannot be used changes nothing.
func (s *service) reload() (control.Reloaded, error) {
	s.manager.reloading()
	defer s.manager.ready()
	c, err := config.Load(s.file)
	var r control.Reloaded
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
