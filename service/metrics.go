package service

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync/atomic"
	"time"

	"go.uber.org/zap"

	"coapproxy/config"
	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/metrics"
	"coapproxy/oscorehop"
)

// reloads counts new configurations.
type reloads struct {
	Outcomes [2]atomic.Uint64 `metric:"reloads_total" help:"Configurations read again, by what became of them." label:"outcome"`
	Refused  atomic.Int64     `metric:"refused" help:"1 if the configuration that was read last was refused, so that the one before is in use."`
	Last     atomic.Int64     `metric:"last_success_timestamp_seconds" help:"When the configuration in use was read, in Unix time."`
}

// LabelValues implements metrics.Labelled.
func (*reloads) LabelValues(string) [][]string { return [][]string{{"accepted", "refused"}} }

func (r *reloads) note(err error) {
	if err != nil {
		r.Outcomes[1].Add(1)
		r.Refused.Store(1)
		return
	}
	r.Outcomes[0].Add(1)
	r.Refused.Store(0)
	r.Last.Store(time.Now().Unix())
}

// registerGauges adds what is computed when somebody asks.
func (p *Proxy) registerGauges() {
	var drops endpoint.ReceiveDrops
	p.metrics.Func("coap_receive_buffer_drops_total", "Datagrams the kernel dropped because a receive buffer was full.", func() int64 { return int64(drops.Read()) })
	p.metrics.Func("coap_deadlines", "Deadlines scheduled: retransmissions, timeouts, what grows old.", func() int64 { return int64(p.engine.Scheduled()) })
	p.metrics.Func("proxy_exchanges", "Exchanges of CoAP clients under way.", func() int64 { return int64(p.front.Active()) })
	p.metrics.Func("proxy_responses_waiting", "Group responses that wait for their client's acknowledgements.", func() int64 { return int64(p.front.Waiting()) })
	p.metrics.Func("certificate_expires_timestamp_seconds", "When the first of the proxy's own certificates expires, in Unix time; 0: it has none.", func() int64 {
		if first := p.secrets.Load().FirstExpiry(); !first.IsZero() {
			return first.Unix()
		}
		return 0
	})
	p.metrics.Func("membership_directories_silent", "Resource directories that do not tell the members of their group.", func() int64 {
		return int64(len(p.silentDirectories()))
	})
	p.metrics.Func("config_generations", "Configurations in use: the one that serves, and those before it that have exchanges running.", func() int64 {
		return int64(len(p.generations()))
	})
	sum := func(of func(*generation) int) func() int64 {
		return func() (n int64) {
			for _, g := range p.generations() {
				n += int64(of(g))
			}
			return n
		}
	}
	p.metrics.Func("coap_upstream_queued", "Requests that wait for their turn with a single server.", sum(func(g *generation) int { _, n := g.queued(); return n }))
	p.metrics.Func("group_queued", "Requests that wait for their turn with a group.", sum(func(g *generation) int { n, _ := g.queued(); return n }))
	p.metrics.Func("proxy_lookups", "Names being resolved.", sum(func(g *generation) int { return g.names.Pending() }))
}

// registerKeyUse adds how far the keys of the OSCORE contexts are used up (OC-54).
func (p *Proxy) registerKeyUse() {
	most := func(of func(u oscorehop.Usage) int64, add bool) func() int64 {
		return func() (n int64) {
			p.mu.Lock()
			hop := p.oscore
			p.mu.Unlock()
			if hop == nil {
				return 0
			}
			for _, c := range hop.ring.All() {
				if v := of(c.Usage()); add {
					n += v
				} else {
					n = max(n, v)
				}
			}
			return n
		}
	}
	atLeast := func(l oscorehop.Level) func(oscorehop.Usage) int64 {
		return func(u oscorehop.Usage) int64 {
			if u.Level >= l {
				return 1
			}
			return 0
		}
	}
	p.metrics.Func("oscore_contexts", "OSCORE contexts that are open.", most(atLeast(oscorehop.Normal), true))
	p.metrics.Func("oscore_contexts_wearing_out", "OSCORE contexts that have used half of what one of their limits allows: make new ones.", most(atLeast(oscorehop.Watch), true))
	p.metrics.Func("oscore_contexts_used_up", "OSCORE contexts at one of their limits, which do not work any more.", most(atLeast(oscorehop.Refused), true))
	p.metrics.Func("oscore_aead_encryptions", "Messages protected with one key, at most: the OSCORE context that has the most.", most(func(u oscorehop.Usage) int64 { return int64(u.Encryptions) }, false))
	p.metrics.Func("oscore_aead_failures", "Messages that were forged for one key, at most: the OSCORE context that has the most.", most(func(u oscorehop.Usage) int64 { return int64(u.Failures) }, false))
}

// generations are the one that serves and the old ones.
func (p *Proxy) generations() []*generation {
	out := p.old.list()
	if g := p.serving.Load(); g != nil {
		out = append(out, g)
	}
	return out
}

// serveMetrics tells over HTTP how the proxy is, as long as it lives. A listener
// that the configuration does not ask for may be missing.
func (p *Proxy) serveMetrics(c config.Metrics, log *zap.Logger) error {
	addr, required := c.Addr()
	if !addr.IsValid() {
		return nil
	}
	var lc net.ListenConfig
	l, err := lc.Listen(p.ctx, "tcp", addr.String())
	switch {
	case err != nil && required:
		return err
	case err != nil:
		log.Warn("no metrics; write metrics.listen to have them elsewhere", zap.Error(err))
		return nil
	}
	if !addr.Addr().IsLoopback() {
		log.Warn("whoever can reach this address can read the metrics", zap.Stringer("address", l.Addr()), zap.Bool("pprof", c.PProf))
	}
	if bound, ok := l.Addr().(*net.TCPAddr); ok { // not for clients, wherever they may be forwarded to (FP-8)
		at := bound.AddrPort()
		p.own.add("http", netip.AddrPortFrom(at.Addr().Unmap(), at.Port()))
	}
	log.Info("metrics", zap.String("uri", "http://"+l.Addr().String()+"/metrics"))
	s := &metrics.Server{Registry: p.metrics, Version: Version(), Healthy: p.healthy, Ready: p.ready, Profiles: c.PProf, Log: log}
	p.wg.Go(func() {
		if err := s.Serve(p.ctx, l); err != nil {
			log.Error("metrics are not served any more", zap.Error(err))
		}
	})
	return nil
}

// healthy reports whether the proxy works: its deadlines fire, on which every
// exchange depends.
func (p *Proxy) healthy(ctx context.Context) error {
	fired := make(chan struct{})
	d := &exchange.Deadline{Fire: exchange.FireFunc(func(time.Time) { close(fired) })}
	p.engine.Schedule(d, time.Now())
	select {
	case <-fired:
		return nil
	case <-ctx.Done():
		p.engine.Unschedule(d)
		return errors.New("deadlines do not fire")
	}
}

// ready reports whether the proxy takes requests.
func (p *Proxy) ready(context.Context) error {
	if p.front.Draining() {
		return errors.New("stopping")
	}
	return nil
}
