package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"math"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"coapproxy/test/bench/internal/measure"
)

// idleObservers is how many observations the scenario observers has.
const idleObservers = 10_000

// observersScenario measures what an observation costs that nothing happens to: the notification that answers
// its registration is the last for as long as the measurement takes.
func observersScenario(name, title string, own bool) *scenario {
	return &scenario{
		name: name, title: title, contenders: []string{subject}, observers: idleObservers, own: own, maxAge: 255,
		targets: []target{
			{"bytes of RSS per idle observer", value(name, func(s sample) float64 { return s.grown }), true, 4096},
			{"bytes of live heap per idle observer", value(name, func(s sample) float64 { return s.heap }), true, 4096},
			{"observers that were not registered", worst(name, func(s sample) float64 { return float64(s.lost) }), true, 0},
		},
	}
}

// register lets endpoints ask once, so that the tables of requests have their size, then has each of them
// register to observe, and tells by how much the process has grown.
func (l *lab) register(ctx context.Context, sc *scenario, proxy *process, listen, source netip.AddrPort) (s sample, err error) {
	s = sample{cpu: math.NaN()}
	uri := "coap://" + source.String() + "/x"
	if sc.own {
		uri += "/{client}"
	}
	ask := func(more ...string) (lost uint64, err error) {
		var r measure.Load
		args := []string{"-to", listen.String(), "-uri", uri, "-warm", strconv.Itoa(sc.observers), "-clients", "1", "-duration", "1ms"}
		err = l.run(ctx, &r, "load", append(args, more...)...)
		return r.WarmLost, err
	}
	if _, err := ask(); err != nil {
		return s, err
	}
	rss, heap, err := l.memory(ctx, proxy)
	if err != nil {
		return s, err
	}
	begun := time.Now()
	if s.lost, err = ask("-observe"); err != nil {
		return s, err
	}
	s.exchanges = uint64(sc.observers) - s.lost
	s.rate = float64(s.exchanges) / time.Since(begun).Seconds()
	after, live, err := l.memory(ctx, proxy)
	if err != nil {
		return s, fmt.Errorf("%w\n%s", err, proxy.output())
	}
	s.grown, s.heap = float64(after-rss)/float64(sc.observers), float64(live-heap)/float64(sc.observers)
	_, peak, err := measure.RSS(proxy.pid())
	s.rss, s.peak = float64(after)/(1<<20), float64(peak)/(1<<20)
	return s, err
}

// memory has the proxy collect its garbage, and returns its resident set and its live heap in bytes.
func (l *lab) memory(ctx context.Context, proxy *process) (rss, heap int64, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+l.private.String()+"/debug/pprof/heap?gc=1&debug=1", nil)
	if err != nil {
		return 0, 0, err
	}
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		return 0, 0, err
	}
	defer response.Body.Close()
	lines := bufio.NewScanner(response.Body)
	for heap == 0 && lines.Scan() {
		if text, ok := strings.CutPrefix(lines.Text(), "# HeapAlloc = "); ok {
			if heap, err = strconv.ParseInt(text, 10, 64); err != nil {
				return 0, 0, err
			}
		}
	}
	if heap == 0 {
		return 0, 0, errors.Join(errors.New("the heap profile does not tell the heap"), lines.Err())
	}
	rss, _, err = measure.RSS(proxy.pid())
	return rss, heap, err
}
