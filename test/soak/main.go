// Command soak is `make soak`: it lets a proxy work for a long time under a mixed load on the loopback interface
// and looks whether anything grows: CoAP requests to single servers and groups, observers that come and go or just
// vanish, HTTP, clients on ever new ports, servers that lose some of what they are sent and one that dies and
// returns.
//
// With -chaos strangers and a misbehaving client do their worst in the second half, and what the well-behaved ones
// see then is set beside what they saw in the quiet first half.
//
// It says at the end what was met and what was missed, and exits with 1 when something grew or was refused that
// should not have been. Numbers about time are printed and judge nothing: the machine may be busy.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"math/rand/v2"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"sync"
	"syscall"
	"time"
)

type options struct {
	duration, interval time.Duration
	chaos              bool
	binary             string
	rate               int
	observers          int
	profiles           string
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("soak: ")
	var o options
	flag.DurationVar(&o.duration, "duration", 20*time.Minute, "how long the load lasts")
	flag.DurationVar(&o.interval, "interval", 30*time.Second, "time between the rows that are printed")
	flag.BoolVar(&o.chaos, "chaos", false, "hostile peers in the second half")
	flag.StringVar(&o.binary, "binary", "", "try this coapproxy `file` instead of building ./cmd/coapproxy")
	flag.IntVar(&o.rate, "rate", 400, "requests per second of the well-behaved clients together")
	flag.IntVar(&o.observers, "observers", 100, "observers at a time")
	flag.StringVar(&o.profiles, "profiles", "", "keep heap profiles of the proxy in this `directory`, taken at a tenth, the half and the end")
	flag.Parse()
	if flag.NArg() > 0 || o.duration < 10*o.interval || o.rate < 10 {
		fmt.Fprintln(os.Stderr, "soak: the duration has to be ten intervals at least, the rate 10")
		flag.Usage()
		os.Exit(2)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	ok, err := soak(ctx, &o, os.Stdout)
	stop()
	if err != nil {
		log.Print(err)
	}
	if !ok || err != nil {
		os.Exit(1)
	}
}

// soak runs the load and reports; it tells whether all was as it should be.
func soak(ctx context.Context, o *options, w io.Writer) (bool, error) {
	dir, err := os.MkdirTemp("", "coapproxy-soak-")
	if err != nil {
		return false, err
	}
	defer os.RemoveAll(dir)
	if o.binary == "" {
		o.binary = filepath.Join(dir, "coapproxy")
		build := exec.CommandContext(ctx, "go", "build", "-o", o.binary, "./cmd/coapproxy")
		if out, err := build.CombinedOutput(); err != nil {
			return false, fmt.Errorf("%w\n%s", err, out)
		}
	}
	devices, err := newDevices(deviceCount)
	if err != nil {
		return false, err
	}
	p, err := startProxy(ctx, o.binary, dir, devices.port)
	if err != nil {
		return false, errors.Join(err, devices.close())
	}
	defer p.stop()

	load, end := context.WithTimeout(ctx, o.duration)
	defer end()
	var wg sync.WaitGroup
	wg.Go(func() { devices.serve(load) })
	l := &clients{proxy: p, devices: devices, seed: rand.Uint64()}
	l.start(load, &wg, o)
	began := time.Now()
	halfway := began.Add(o.duration / 2)
	if o.chaos {
		wg.Go(func() {
			select {
			case <-time.After(time.Until(halfway)):
				log.Print("the hostile ones begin")
				hostile(load, p)
			case <-load.Done():
			}
		})
	}

	fmt.Fprintf(w, "%d devices, %d requests/s, %d observers, %v\n\n", deviceCount, o.rate, o.observers, o.duration)
	var rows []row
	profiles := heapProfiles{shares: []float64{0.1, 0.5, 0.95}}
	fmt.Fprintln(w, rowHeader)
	tick := time.NewTicker(o.interval)
	defer tick.Stop()
	for load.Err() == nil {
		select {
		case <-load.Done():
		case <-tick.C:
			r, err := p.sample(ctx)
			if err != nil {
				end()
				wg.Wait()
				return false, errors.Join(fmt.Errorf("after %v: %w", time.Since(began).Round(time.Second), err), devices.close())
			}
			r.at, r.hostile, r.tallies = time.Since(began), o.chaos && time.Now().After(halfway), l.take()
			rows = append(rows, r)
			fmt.Fprintln(w, r)
			if err := profiles.take(ctx, p, r.at, o); err != nil {
				log.Print("heap profile: ", err)
			}
		}
	}
	wg.Wait()
	if err := devices.close(); err != nil {
		return false, err
	}
	if ctx.Err() != nil {
		return false, errors.New("interrupted")
	}
	return report(w, rows, o.chaos), nil
}
