package service

import (
	"strings"
	"time"

	"coapproxy/cache"
	"coapproxy/config"
	"coapproxy/exchange"
)

// sharing puts in front of next what has clients share their observations
// (FP-60), where no cache does that: it stores nothing.
func (p *Proxy) sharing(c *config.Config, next exchange.Handler) (*cache.Cache, error) {
	settings := cache.Defaults()
	settings.Next, settings.Engine, settings.Numbers = next, p.engine, p.numbers
	settings.HopLimit = uint8(c.Proxy.HopLimit)
	settings.Observe, settings.ObserveOnly = true, true
	return cache.New(settings)
}

// moveObservations has the observations go on in the configuration that serves
// now: they are registered anew with their servers, groups and next proxies. Those
// of clients whose entry has changed, and all if groups, targets or what proves who
// a client is have changed, end with 5.03: the clients register again, and what they
// may observe now is decided as for any request.
func (p *Proxy) moveObservations(before, after *generation, changes []config.Change) {
	all, clients := false, make(map[string]bool)
	for _, change := range changes {
		section, rest, _ := strings.Cut(change.Key, ".")
		section, _, _ = strings.Cut(section, " ")
		switch section {
		case "clients":
			clients[rest] = true
		case "groups", "proxy", "names", "routes", "next_hop", "credentials", "oscore":
			all = true
		}
	}
	before.policy.EndObservations(func(client string) bool { return all || clients[client] || !after.policy.Knows(client) },
		&exchange.Failure{Reason: exchange.Overloaded, Detail: "the configuration has changed", RetryAfter: time.Second})
	p.shared.Reregister()
	p.engine.Flush()
}

// settle waits until the servers whose observations have ended with the clients'
// have been told, one after the other as NSTART has it (FP-67, FP-92), or over is
// closed. A server that does not answer costs the others nothing but that time.
func (p *Proxy) settle(over <-chan struct{}) {
	const interval = 10 * time.Millisecond
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		waiting := 0
		for _, g := range append(p.old.list(), p.serving.Load()) {
			_, servers := g.queued()
			waiting += servers
		}
		if waiting == 0 {
			return
		}
		select {
		case <-over:
			return
		case <-ticker.C:
		}
	}
}
