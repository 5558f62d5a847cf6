package service

import (
	"context"
	"crypto/tls"
	"time"

	"go.uber.org/zap"

	"coapproxy/blockwise"
	"coapproxy/config"
	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/proxy"
)

// upstreams are the legs to single servers.
type upstreams struct {
	// legs are those of all schemes, whole bodies above and blocks below.
	legs proxy.Legs
	// coap is the leg over UDP without that, for further blocks of what members
	// of a group answer.
	coap exchange.Handler
	// single are all legs without it, for next proxies, and streams the one of them
	// that has connections.
	single  proxy.Legs
	streams *endpoint.StreamClient
}

// upstreamStats is what the legs to single servers count in.
type upstreamStats struct {
	sessions endpoint.DTLSStats
	streams  endpoint.StreamStats
	answers  struct {
		Latency exchange.Histogram `metric:"connection_latency_seconds" help:"Time from a request to a single server over TCP, TLS or WebSocket to its response, connecting included."`
	}
}

// connectTime is how long a connection to a server may take to open, up to its CSM: four
// lost SYNs and what comes after.
const connectTime = 30 * time.Second

// unusedUpstream is how long a connection to a server is kept without requests.
const unusedUpstream = 10 * time.Minute

// upstreamsOf makes the legs to single servers, which end with ctx and which g
// waits for.
func (p *Proxy) upstreamsOf(ctx context.Context, c *config.Config, g *generation, log *zap.Logger) (*upstreams, error) {
	datagrams := endpoint.ClientConfig{Engine: p.engine, Params: endpoint.DefaultParams(), Dedup: dedupOf(c), Stats: &p.stats.messages,
		Log: log, Open: openClient(c), KeepType: c.Proxy.ClientTypes == config.ClientTypesKeep, NStart: g.nstart(c), RoundTrips: p.roundTrips, Queue: c.Limits.UpstreamQueue,
		TimeoutCON: c.Limits.ResponseTimeoutCon, TimeoutNON: c.Limits.ResponseTimeout, Ports: c.Limits.UpstreamPorts, Servers: maxServers,
		Observations: c.Limits.Observations, GroupStop: p.earlyStop()}
	stray := g.strays(c)
	datagrams.Stray = strayUnder(stray, "coap")
	plain, err := endpoint.NewClient(ctx, datagrams)
	if err != nil {
		return nil, err
	}
	g.legs = append(g.legs, plain)
	datagrams.Stray = strayUnder(stray, "coaps")
	secure, err := endpoint.NewDTLSLeg(ctx, datagrams, p.secureClient(c, g.secrets, log.Named("dtls")))
	if err != nil {
		return nil, err
	}
	g.legs = append(g.legs, secure)
	limits := endpoint.DefaultStreamLimits()
	limits.Handshake = connectTime
	streams, err := endpoint.NewStreamClient(ctx, endpoint.StreamClientConfig{
		StreamConfig: endpoint.StreamConfig{Engine: p.engine, MaxToken: c.Limits.MaxToken, Limits: limits, Stats: &p.stats.upstream.streams, Log: log},
		Latency:      &p.stats.upstream.answers.Latency,
		TLS:          &tls.Config{RootCAs: g.secrets.ServerAuthorities, Certificates: g.secrets.ServerCertificates, MinVersion: tls.VersionTLS13},
		Timeout:      c.Limits.ResponseTimeout, Connections: c.Limits.UpstreamConnections, Calls: c.Limits.UpstreamPending,
		Observations: c.Limits.Observations, GroupStop: p.earlyStop(), Stray: stray,
		Unused: unusedUpstream, RetryMin: time.Second, RetryMax: time.Minute})
	if err != nil {
		return nil, err
	}
	g.legs = append(g.legs, streams)
	single := proxy.Legs{"coap": plain, "coaps": secure, "coap+tcp": streams, "coaps+tcp": streams, "coap+ws": streams, "coaps+ws": streams}
	legs := make(proxy.Legs)
	for scheme, leg := range single {
		legs[scheme] = blockwise.NewUpstream(leg, maxBody)
	}
	if web := p.httpLegOf(ctx, c, g, log.Named("http")); web != nil {
		g.legs = append(g.legs, web)
		legs["http"], legs["https"] = web, web
	}
	coap := p.protectedServers(c, plain)
	legs["coap"] = blockwise.NewUpstream(coap, maxBody)
	return &upstreams{legs: legs, coap: coap, single: single, streams: streams}, nil
}

// secureClient says how sessions with servers over DTLS are made.
func (p *Proxy) secureClient(c *config.Config, s *config.Loaded, log *zap.Logger) endpoint.DTLSConfig {
	limits := endpoint.DefaultDTLSLimits()
	limits.Wait = min(limits.Wait, c.Limits.ResponseTimeoutCon) // nobody waits for longer
	return endpoint.DTLSConfig{Engine: p.engine, Limits: limits, Stats: &p.stats.upstream.sessions, Log: log,
		Credentials: func() endpoint.DTLSCredentials {
			return endpoint.DTLSCredentials{Certificates: s.ServerCertificates, Authorities: s.ServerAuthorities, KeyFor: s.ServerPSK.For}
		}}
}
