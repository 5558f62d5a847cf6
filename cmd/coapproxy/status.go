package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/http"
	"os"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"coapproxy/config"
	"coapproxy/control"
	"coapproxy/membership"
)

// status is what an operator asks first.
type status struct {
	Version string    `json:"version"`
	PID     int       `json:"pid"`
	Started time.Time `json:"started"`
	Uptime  float64   `json:"uptime_seconds"`
	Ready   bool      `json:"ready"`
	// Config is the file, Read when it was read last.
	Config    string           `json:"config"`
	Read      time.Time        `json:"config_read"`
	Listeners []string         `json:"listeners"`
	Clients   []statusClient   `json:"clients"`
	Groups    []statusGroup    `json:"groups"`
	NextHops  []statusHop      `json:"next_hops,omitempty"`
	Exchanges statusExchanges  `json:"exchanges"`
	Cache     *statusCache     `json:"cache"` // null: not enabled
	Refusals  map[string]int64 `json:"refusals"`
	// Warnings are what should be looked at.
	Warnings []string `json:"warnings"`
}

type statusClient struct {
	Name     string     `json:"name"`
	Requests uint64     `json:"requests"` // since the configuration was read
	Last     *time.Time `json:"last"`     // null: never
	Running  int        `json:"group_exchanges"`
}

type statusGroup struct {
	Name       string   `json:"name"`
	URI        string   `json:"uri"`
	Interfaces []string `json:"interfaces"`
	// Heard is how many servers answered in the last hour.
	Heard int `json:"heard"`
}

// statusHop is a next proxy.
type statusHop struct {
	Name string `json:"name"`
	URI  string `json:"uri"`
	// Up is how many of its addresses can be reached.
	Up        int64 `json:"up"`
	Requests  int64 `json:"requests"`
	Responses int64 `json:"responses"`
	// RoundTrip is measured or at most, 0 if it is not known.
	RoundTrip float64 `json:"round_trip_seconds"`
}

type statusExchanges struct {
	Running  int              `json:"running"`
	Queued   int              `json:"queued"`
	Outcomes map[string]int64 `json:"outcomes"`
}

type statusCache struct {
	Entries int64 `json:"entries"`
	Bytes   int64 `json:"bytes"`
	Hits    int64 `json:"hits"`
	Misses  int64 `json:"misses"`
}

// register adds what serve answers over the control interface:
//
//	GET  /v1/status
//	POST /v1/reload    reads the configuration again; 422 if it is refused
func (s *service) register() {
	s.proxy.control.Handle("GET /v1/status", func(*http.Request) (any, error) { return s.status(), nil })
	s.proxy.control.Handle("POST /v1/reload", func(*http.Request) (any, error) {
		r, err := s.reload()
		if err != nil {
			return nil, control.Errorf(http.StatusUnprocessableEntity, "%v", err)
		}
		return r, nil
	})
}

// status looks at everything once.
func (s *service) status() status {
	p := s.proxy
	g, now := p.serving.Load(), time.Now()
	out := status{Version: version(), PID: os.Getpid(), Started: s.began, Uptime: seconds(now.Sub(s.began)), Config: s.file,
		Ready: p.ready(context.Background()) == nil, Read: time.Unix(p.stats.reloads.Last.Load(), 0), Refusals: make(map[string]int64),
		Exchanges: statusExchanges{Running: p.front.Active(), Outcomes: make(map[string]int64)}}
	p.mu.Lock()
	for _, l := range p.listeners {
		out.Listeners = append(out.Listeners, l.uri)
	}
	restart := config.Changes(p.started, g.config)
	p.mu.Unlock()
	for _, a := range g.policy.Activity() {
		c := statusClient{Name: a.Name, Requests: a.Requests, Running: a.Running}
		if !a.Last.IsZero() {
			c.Last = &a.Last
		}
		out.Clients = append(out.Clients, c)
	}
	for i := range g.config.Groups {
		c := &g.config.Groups[i]
		out.Groups = append(out.Groups, statusGroup{c.Name, c.URI.String(), c.Interfaces, p.heard.In(c.Name, now)})
		if d, ok := (*p.members.Load())[c.Name].(*membership.Directory); ok {
			switch valid, err := d.Status(); {
			case err != nil:
				out.Warnings = append(out.Warnings, fmt.Sprintf("the resource directory does not tell the members of the group %s: %v", c.Name, err))
			case valid == 0:
				out.Warnings = append(out.Warnings, fmt.Sprintf("the resource directory does not tell the members of the group %s: no answer yet, or none since the last one ran out", c.Name))
			}
		}
	}
	for _, old := range p.generations() {
		groups, servers := old.queued()
		out.Exchanges.Queued += groups + servers
	}
	counters, hops := make(map[string]int64), make(map[string]map[string]int64)
	for _, sample := range p.metrics.Samples() {
		switch sample.Name {
		case "proxy_failures_total", "http_failures_total":
			if sample.Value > 0 {
				out.Refusals[sample.LabelValue] += sample.Value
			}
		case "proxy_exchanges_total":
			if sample.Value > 0 {
				out.Exchanges.Outcomes[strings.Replace(sample.LabelValue, ",", " ", 1)] = sample.Value
			}
		}
		if sample.Label == "hop" {
			if hops[sample.LabelValue] == nil {
				hops[sample.LabelValue] = make(map[string]int64)
			}
			hops[sample.LabelValue][sample.Name] = sample.Value
		}
		counters[sample.Name] = sample.Value
	}
	for i := range g.config.NextHop {
		h := &g.config.NextHop[i]
		n := hops[h.Name]
		out.NextHops = append(out.NextHops, statusHop{h.Name, h.URI.String(), n["next_hop_up"], n["next_hop_requests_total"], n["next_hop_responses_total"],
			float64(n["next_hop_round_trip_seconds"]) / 1e6})
		if n["next_hop_up"] == 0 {
			out.Warnings = append(out.Warnings, "the next proxy "+h.Name+" cannot be reached")
		}
	}
	if p.started.Cache.Enabled {
		out.Cache = &statusCache{counters["cache_entries"], counters["cache_bytes"], counters["cache_hits_total"] + counters["cache_group_hits_total"], counters["cache_misses_total"]}
	}
	for _, change := range restart {
		if needsStart(change) {
			out.Warnings = append(out.Warnings, change.Key+" was changed in the file and takes effect at the next start")
		}
	}
	for _, w := range statusWarnings {
		if n := counters[w.counter]; n > 0 {
			out.Warnings = append(out.Warnings, fmt.Sprintf("%d %s", n, w.text))
		}
	}
	if p.stats.reloads.Refused.Load() != 0 {
		out.Warnings = append(out.Warnings, "the configuration file was refused when it was read last; the log says why")
	}
	return out
}

// statusWarnings are the counters that should be 0, with what they mean.
var statusWarnings = [...]struct{ counter, text string }{
	{"coap_receive_buffer_drops_total", "datagrams were lost because a receive buffer was full: raise limits.receive_buffer and net.core.rmem_max"},
	{"coap_datagrams_send_failed_total", "datagrams could not be sent: the log says where to"},
	{"group_send_failed_total", "group requests could not be sent on an interface"},
	{"proxy_responses_undelivered_total", "group responses were dropped because their clients did not acknowledge those before"},
	{"coap_dedup_refused_total", "requests were refused because too many are remembered: limits.dedup_non_idempotent"},
	{"coap_message_id_wraps_total", "times Message IDs were used again too early"},
	{"oscore_contexts_used_up", "OSCORE contexts are used up and do not work any more: make new ones"},
	{"oscore_contexts_wearing_out", "OSCORE contexts have used half of what their keys are good for, or more: make new ones"},
	{"log_lines_dropped_total", "lines of the log were dropped because nobody read them"},
}

// runStatus is the subcommand status.
func runStatus(ctx context.Context, stdio stdio, args []string) int {
	flags := newFlags(stdio, "status", "[flags]", "Tells how the running proxy is: listeners, clients, groups, exchanges, cache, refusals, and what should be\nlooked at. Exit codes: 0 told, 1 the proxy could not be asked, 2 wrong command line.")
	var c controlFlags
	c.register(flags)
	if code, done := parse(flags, args, 0, 0); done {
		return code
	}
	return ask(ctx, stdio, &c, http.MethodGet, "/v1/status", nil, printStatus)
}

// runReload is the subcommand reload.
func runReload(ctx context.Context, stdio stdio, args []string) int {
	flags := newFlags(stdio, "reload", "[flags]", "Has the running proxy read its configuration again and prints what changed. A file with a mistake is refused\n"+
		"with every reason, and the proxy goes on as it was. Exit codes: 0 the proxy works by the file now, 1 refused, or\nthe proxy could not be asked, 2 wrong command line.")
	var c controlFlags
	c.register(flags)
	if code, done := parse(flags, args, 0, 0); done {
		return code
	}
	var problems config.Problems
	if _, _, err := c.client(); errors.As(err, &problems) {
		fmt.Fprintln(stdio.err, err)
		fmt.Fprintln(stdio.err, "coapproxy: refused; the proxy goes on as it was")
		return exitFailed
	}
	return ask(ctx, stdio, &c, http.MethodPost, "/v1/reload", nil, func(out io.Writer, r *reloaded) {
		fmt.Fprintln(out, "read again;", counted(len(r.Changed), "change", "changes"))
		for _, change := range r.Changed {
			fmt.Fprintln(out, " ", change)
		}
		if len(r.Restart) > 0 {
			fmt.Fprintln(out, "takes effect at the next start only:")
		}
		for _, change := range r.Restart {
			fmt.Fprintln(out, " ", change)
		}
	})
}

func printStatus(out io.Writer, s *status) {
	fmt.Fprintf(out, "coapproxy %s, process %d, up %s", s.Version, s.PID, age(s.Uptime))
	if !s.Ready {
		fmt.Fprint(out, ", stopping")
	}
	fmt.Fprintf(out, "\nconfiguration %s, read %s\n", s.Config, s.Read.Format(time.RFC3339))
	for _, w := range s.Warnings {
		fmt.Fprintln(out, "warning:", w)
	}
	fmt.Fprintln(out, "\nlisteners")
	for _, l := range s.Listeners {
		fmt.Fprintln(out, " ", l)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintf(w, "\nclients\trequests\trunning\tlast\n")
	for _, c := range s.Clients {
		last := "never"
		if c.Last != nil {
			last = c.Last.Format(time.RFC3339)
		}
		fmt.Fprintf(w, "  %s\t%d\t%d\t%s\n", c.Name, c.Requests, c.Running, last)
	}
	fmt.Fprintf(w, "\ngroups\theard\tinterfaces\turi\n")
	for _, g := range s.Groups {
		fmt.Fprintf(w, "  %s\t%d\t%s\t%s\n", g.Name, g.Heard, orDash(strings.Join(g.Interfaces, " ")), g.URI)
	}
	if len(s.NextHops) > 0 {
		fmt.Fprintf(w, "\nnext hops\tup\trequests\tresponses\tround trip\turi\n")
	}
	for _, h := range s.NextHops {
		trip := "-"
		if h.RoundTrip > 0 {
			trip = fmt.Sprintf("%.1f ms", 1000*h.RoundTrip)
		}
		fmt.Fprintf(w, "  %s\t%d\t%d\t%d\t%s\t%s\n", h.Name, h.Up, h.Requests, h.Responses, trip, h.URI)
	}
	fmt.Fprintf(w, "\nexchanges\t%d running, %d waiting\n", s.Exchanges.Running, s.Exchanges.Queued)
	printCounts(w, s.Exchanges.Outcomes)
	if s.Cache == nil {
		fmt.Fprintf(w, "\ncache\toff\n")
	} else {
		fmt.Fprintf(w, "\ncache\t%s, %d bytes, %s, %s\n", counted(int(s.Cache.Entries), "entry", "entries"), s.Cache.Bytes,
			counted(int(s.Cache.Hits), "hit", "hits"), counted(int(s.Cache.Misses), "miss", "misses"))
	}
	fmt.Fprintf(w, "\nrefusals\t\n")
	printCounts(w, s.Refusals)
	_ = w.Flush()
}

// printCounts prints what is not 0, the most first.
func printCounts(w io.Writer, counts map[string]int64) {
	names := slices.Collect(maps.Keys(counts))
	slices.SortFunc(names, func(a, b string) int { return cmp.Or(cmp.Compare(counts[b], counts[a]), cmp.Compare(a, b)) })
	for _, name := range names {
		fmt.Fprintf(w, "  %s\t%d\n", name, counts[name])
	}
}
