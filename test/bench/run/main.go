// Command run is `make bench`: it measures, side by side on this machine, coapproxy, libcoap's proxy, and null
// relays that only swap bytes and so show what is physically possible here. Rounds are interleaved, every
// program is started fresh for each measurement, and what is printed are medians with their ratios beside the
// targets. It judges nothing by its exit status: a timed test would fail on a busy machine and prove nothing.
//
// All traffic stays on the loopback interface.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

type options struct {
	rounds   int
	duration time.Duration
	clients  int
	only     []string // scenario names, or their first words
	members  []int
	binary   string // coapproxy; built when empty
}

func main() {
	log.SetFlags(0)
	log.SetPrefix("bench: ")
	o := options{only: []string{"non", "con", "group", "cache"}, members: []int{10, 100, 1000, 5000}}
	flag.IntVar(&o.rounds, "rounds", 5, "rounds; what is printed are medians over them")
	flag.DurationVar(&o.duration, "duration", 3*time.Second, "how long each measurement takes")
	flag.IntVar(&o.clients, "clients", 32, "clients of the unicast scenarios, each with one request under way")
	flag.StringVar(&o.binary, "binary", "", "measure this coapproxy `file` instead of building ./cmd/coapproxy")
	flag.Func("only", "measure only these `scenarios`, separated by commas, out of non, con, group, crowd, burst, cache, http, warm, observers (default non,con,group,cache)", func(s string) error {
		o.only = strings.Split(s, ",")
		for _, name := range o.only {
			if !slices.Contains([]string{"non", "con", "group", "crowd", "burst", "cache", "http", "warm", "observers"}, name) {
				return fmt.Errorf("there is no scenario %q", name)
			}
		}
		return nil
	})
	flag.Func("members", "sizes of the `groups`, separated by commas (default 10,100,1000,5000)", func(s string) error {
		o.members = nil
		for _, field := range strings.Split(s, ",") {
			n, err := strconv.Atoi(field)
			if err != nil || n < 1 || n > 10_000 {
				return errors.New("sizes are 1 to 10000")
			}
			o.members = append(o.members, n)
		}
		return nil
	})
	flag.Parse()
	if o.rounds < 1 || o.clients < 1 || o.duration <= 0 || flag.NArg() > 0 {
		flag.Usage()
		os.Exit(2)
	}

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := bench(ctx, &o, os.Stdout); err != nil {
		log.Print(err)
	}
}

// bench measures everything and writes the report to w, also after an interruption as far as it came.
func bench(ctx context.Context, o *options, w io.Writer) error {
	dir, err := os.MkdirTemp("", "coapproxy-bench-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	if err := build(ctx, dir, "./test/bench/nullrelay", "./test/bench/groupnullrelay", "./test/bench/origin", "./test/bench/load", "./test/bench/group", "./test/bench/httpfloor", "./test/bench/httpload"); err != nil {
		return err
	}
	contenders := []string{direct, nullUnbatched, nullBatched, httpFloor}
	if _, err := exec.LookPath(libcoapServer); err == nil {
		contenders = append(contenders, libcoap)
	} else {
		log.Printf("%s is left out: %v (Debian package libcoap3-bin)", libcoap, err)
	}
	switch {
	case o.binary != "":
		contenders = append(contenders, subject)
	default:
		if err := build(ctx, dir, "./cmd/coapproxy"); err != nil {
			log.Printf("%s is left out: %v", subject, err)
			break
		}
		o.binary = filepath.Join(dir, "coapproxy")
		contenders = append(contenders, subject)
	}

	lab := &lab{dir: dir, binary: o.binary, duration: o.duration, clients: o.clients}
	scenarios := scenarios(o)
	var results results
	for round := range o.rounds {
		results = append(results, make(map[measured]sample))
		for _, sc := range scenarios {
			for _, c := range contenders {
				if !sc.has(c) || ctx.Err() != nil {
					continue
				}
				s, err := lab.measure(ctx, sc, c)
				if ctx.Err() != nil {
					continue
				}
				if err != nil {
					log.Printf("round %d, %s, %s: %v", round+1, sc.name, c, err)
					continue
				}
				log.Printf("round %d of %d, %s, %s: %v", round+1, o.rounds, sc.name, c, s)
				results[round][measured{sc.name, c}] = s
			}
		}
	}
	if ctx.Err() != nil {
		log.Print("interrupted; this is how far it came")
	}
	fmt.Fprintf(w, "Medians of %d interleaved rounds of %v on %d cores, %s, %s/%s; ratios are medians of each round's ratio.\n",
		o.rounds, o.duration, runtime.NumCPU(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
	if load, err := os.ReadFile("/proc/loadavg"); err == nil {
		fmt.Fprintf(w, "Load averages at the end (of 1, 5 and 15 minutes): %s.\n", strings.Join(strings.Fields(string(load))[:3], ", "))
	}
	fmt.Fprintf(w, "The null relay is, in each round, the unbatched or the batched one, whichever costs less CPU. NSTART is %d where nothing else is said.\n", nstart)
	for _, sc := range scenarios {
		report(w, sc, results)
	}
	return nil
}

func build(ctx context.Context, dir string, packages ...string) error {
	cmd := exec.CommandContext(ctx, "go", append([]string{"build", "-trimpath", "-o", dir + "/"}, packages...)...)
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd, err, out)
	}
	return nil
}
