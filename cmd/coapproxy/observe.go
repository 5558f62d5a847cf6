package main

import (
	"coapproxy/cache"
	"coapproxy/config"
	"coapproxy/exchange"
)

// sharing puts in front of next what has clients share their observations
// (FP-60), where no cache does that: it stores nothing.
func (p *runningProxy) sharing(c *config.Config, next exchange.Handler) (exchange.Handler, error) {
	settings := cache.Defaults()
	settings.Next, settings.Engine, settings.Numbers = next, p.engine, p.numbers
	settings.HopLimit = uint8(c.Proxy.HopLimit)
	settings.Observe, settings.ObserveOnly = true, true
	return cache.New(settings)
}
