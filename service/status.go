package service

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"coapproxy/config"
	"coapproxy/control"
	"coapproxy/membership"
)

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
func (s *service) status() *control.Status {
	p := s.proxy
	g, now := p.serving.Load(), time.Now()
	out := &control.Status{Version: Version(), PID: os.Getpid(), Started: s.began, Uptime: seconds(now.Sub(s.began)), Config: s.file,
		Ready: p.ready(context.Background()) == nil, Read: time.Unix(p.stats.reloads.Last.Load(), 0), Refusals: make(map[string]int64),
		Exchanges: control.ExchangeStatus{Running: p.front.Active(), Outcomes: make(map[string]int64)}}
	p.mu.Lock()
	for _, l := range p.listeners {
		out.Listeners = append(out.Listeners, l.uri)
	}
	restart := config.Changes(p.started, g.config)
	p.mu.Unlock()
	for _, a := range g.policy.Activity() {
		c := control.ClientStatus{Name: a.Name, Requests: a.Requests, Running: a.Running}
		if !a.Last.IsZero() {
			c.Last = &a.Last
		}
		out.Clients = append(out.Clients, c)
	}
	for i := range g.config.Groups {
		c := &g.config.Groups[i]
		out.Groups = append(out.Groups, control.GroupStatus{Name: c.Name, URI: c.URI.String(), Interfaces: c.Interfaces, Heard: p.heard.In(c.Name, now)})
	}
	out.Warnings = append(missingInterfaces(g.config), p.silentDirectories()...)
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
		out.NextHops = append(out.NextHops, control.HopStatus{Name: h.Name, URI: h.URI.String(), Up: n["next_hop_up"], Requests: n["next_hop_requests_total"],
			Responses: n["next_hop_responses_total"], RoundTrip: float64(n["next_hop_round_trip_seconds"]) / 1e6})
		if n["next_hop_up"] == 0 {
			out.Warnings = append(out.Warnings, "the next proxy "+h.Name+" cannot be reached")
		}
	}
	if p.started.Cache.Enabled {
		out.Cache = &control.CacheStatus{Entries: counters["cache_entries"], Bytes: counters["cache_bytes"],
			Hits: counters["cache_hits_total"] + counters["cache_group_hits_total"], Misses: counters["cache_misses_total"]}
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
	out.Warnings = append(out.Warnings, g.secrets.Expiring(now)...)
	if p.stats.reloads.Refused.Load() != 0 {
		out.Warnings = append(out.Warnings, "the configuration file was refused when it was read last; the log says why")
	}
	return out
}

// missingInterfaces says which groups cannot be reached because an interface is not
// there, or down.
func missingInterfaces(c *config.Config) (out []string) {
	for i := range c.Groups {
		for _, name := range c.Groups[i].Interfaces {
			what := ""
			switch found, err := net.InterfaceByName(name); {
			case err != nil:
				what = "not there"
			case found.Flags&net.FlagUp == 0:
				what = "down"
			default:
				continue
			}
			out = append(out, fmt.Sprintf("the interface %s of the group %s is %s", name, c.Groups[i].Name, what))
		}
	}
	return out
}

// silentDirectories says which resource directories do not tell the members of their
// group.
func (p *Proxy) silentDirectories() (out []string) {
	members := *p.members.Load()
	groups := p.serving.Load().config.Groups
	for i := range groups {
		name := groups[i].Name
		d, ok := members[name].(*membership.Directory)
		if !ok {
			continue
		}
		switch valid, err := d.Status(); {
		case err != nil:
			out = append(out, fmt.Sprintf("the resource directory does not tell the members of the group %s: %v", name, err))
		case valid == 0:
			out = append(out, fmt.Sprintf("the resource directory does not tell the members of the group %s: no answer yet, or none since the last one ran out", name))
		}
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
