package service

import (
	"math"
	"strings"

	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"coapproxy/config"
	"coapproxy/endpoint"
)

// connectionLimits are how many connections of clients there may be.
type connectionLimits struct {
	streams endpoint.ServerLimits // of all listeners together
	web     int                   // of one HTTP listener
	wanted  int                   // of all listeners, before they were lowered
	lowered bool
}

// leastConnections is what a listener has in any case.
const leastConnections = 16

// connectionsWithin returns the limits of a configuration for a process that may
// have so many file descriptors. Clients get half of them at most, so that those
// who open connections without end cannot keep the proxy from its servers and its
// operator from the proxy.
func connectionsWithin(descriptors uint64, c *config.Config) connectionLimits {
	l := connectionLimits{streams: endpoint.DefaultServerLimits(), web: c.HTTP.Limits.Connections}
	streams, web := 0, 0
	for _, listener := range c.Listen {
		switch {
		case strings.HasPrefix(listener.Scheme, "http"):
			web++
		case strings.HasSuffix(listener.Scheme, "+tcp"), strings.HasSuffix(listener.Scheme, "+ws"):
			streams = 1
		}
	}
	l.wanted = streams*l.streams.Connections + web*l.web
	half := int(min(descriptors/2, math.MaxInt32))
	if l.wanted <= half {
		return l
	}
	l.lowered = true
	share := func(n int) int { return max(leastConnections, int(float64(n)*float64(half)/float64(l.wanted))) }
	l.streams.Connections, l.web = share(l.streams.Connections), share(l.web)
	l.streams.Handshakes = min(l.streams.Handshakes, l.streams.Connections)
	return l
}

// descriptorLimit is how many file descriptors this process may have.
func descriptorLimit() uint64 {
	var r unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &r); err != nil {
		return math.MaxUint64
	}
	return r.Cur
}

// tell logs limits that were lowered.
func (l *connectionLimits) tell(log *zap.Logger) {
	if l.lowered {
		log.Warn("few file descriptors (LimitNOFILE, ulimit -n): fewer connections of clients than configured",
			zap.Uint64("descriptors", descriptorLimit()), zap.Int("wanted", l.wanted),
			zap.Int("coap_connections", l.streams.Connections), zap.Int("connections_per_http_listener", l.web))
	}
}
