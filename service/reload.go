package service

import (
	"context"
	"errors"
	"slices"
	"strings"
	"sync"
	"time"

	"go.uber.org/zap"

	"coapproxy/config"
	"coapproxy/control"
)

// atStart are the keys, or what they begin with, that only a start looks at: they
// size what lives as long as the process, or mean something to exchanges under
// way.
var atStart = [...]string{
	"proxy.option_numbers",
	"proxy.zone_in_reply_from",
	"cache",
	"limits.exchanges",
	"limits.max_token",
	"limits.dedup_entries",
	"limits.dedup_non_idempotent",
	"limits.receive_buffer",
	"log.format",
	"log.output",
	"control",
	"metrics",
	"oscore.store",
	"oscore.options",
	"proxy.server_addresses",
	"proxy.server_targets",
	"limits.reverse_mappings",
	"limits.reverse_lifetime",
	"http.http3",
	"http.limits.header",
	"http.limits.connections",
	"http.limits.peer_connections",
	"http.limits.streams",
	"http.limits.header_timeout",
	"http.limits.idle_timeout",
	"http.limits.total_bytes",
	"http.session_lifetime",
}

// needsStart reports whether a change waits for the next start.
func needsStart(c config.Change) bool {
	for _, key := range atStart {
		if rest, ok := strings.CutPrefix(c.Key, key); ok && (rest == "" || rest[0] == '.') {
			return true
		}
	}
	return false
}

// reload makes the proxy work by another configuration, or, with an error, leaves
// it altogether as it is. Clients keep their sockets and sessions, and exchanges
// under way go on in the generation in which they began.
func (p *Proxy) reload(c *config.Config, log *zap.Logger) (control.Reloaded, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.stopping {
		return control.Reloaded{}, errors.New("the proxy is stopping")
	}
	g, err := p.generationOf(c, log)
	if err != nil {
		return control.Reloaded{}, err
	}
	t, err := p.listen(c, g, log)
	if err == nil {
		if err = p.protect(g, log); err != nil {
			t.abandon()
		}
	}
	if err != nil {
		g.close()
		return control.Reloaded{}, err
	}
	var r control.Reloaded
	changes := config.Changes(p.config.Load(), c)
	for _, change := range changes {
		if !needsStart(change) {
			r.Changed = append(r.Changed, change.String())
		}
	}
	for _, change := range config.Changes(p.started, c) {
		if needsStart(change) {
			r.Restart = append(r.Restart, change.String())
		}
	}
	before := p.serving.Load()
	g.policy.Inherit(before.policy)
	p.serve(g)
	t.apply()
	stale := replaced(before.secrets, g.secrets)
	for _, l := range slices.Concat(p.listeners, p.pool.all()) {
		if l.revoke != nil {
			l.revoke(stale)
		}
	}
	p.streams.EndConnections(stale)
	p.moveObservations(before, g, changes)
	p.retire(before, log)
	warnings(c, g.secrets, log)
	return r, nil
}

// maxOld is how many generations may be finishing what they have begun, beside
// the one that serves.
const maxOld = 4

// oldGenerations are those that only finish what they have begun.
type oldGenerations struct {
	mu  sync.Mutex
	all []*oldGeneration // the oldest first
}

type oldGeneration struct {
	*generation
	hurry context.CancelFunc
}

// retire lets a generation finish what it has begun, for as long as a group
// request may last at most, and then ends it. When there are more than maxOld, one goes at
// once: one that has nothing to do, or else the oldest.
func (p *Proxy) retire(g *generation, log *zap.Logger) {
	ctx, hurry := context.WithTimeout(p.ctx, g.lifetime)
	o := &oldGeneration{g, hurry}
	p.old.add(o)
	p.wg.Go(func() {
		defer hurry()
		g.finish(ctx)
		if left := g.route.Running(); left > 0 && p.ctx.Err() == nil {
			log.Warn("exchanges of an earlier configuration are cut off", zap.Int("exchanges", left))
		}
		g.close()
		p.engine.Flush()
		p.old.remove(o)
	})
}

func (s *oldGenerations) add(o *oldGeneration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = append(s.all, o)
	if len(s.all) <= maxOld {
		return
	}
	first := max(0, slices.IndexFunc(s.all[:maxOld], func(o *oldGeneration) bool { return o.idle() }))
	s.all[first].hurry()
	s.all = slices.Delete(s.all, first, first+1)
}

func (s *oldGenerations) remove(o *oldGeneration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.all = slices.DeleteFunc(s.all, func(other *oldGeneration) bool { return other == o })
}

// list returns those that are left.
func (s *oldGenerations) list() []*generation {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []*generation
	for _, o := range s.all {
		out = append(out, o.generation)
	}
	return out
}

// idle reports whether the generation has nothing to do, nor to tell to a server.
func (g *generation) idle() bool {
	_, servers := g.queued()
	return servers == 0 && g.route.Running() == 0 && g.names.Pending() == 0
}

// finish waits until g has had nothing to do for a while, in which what one part
// has handed to the next has arrived there, or ctx ends.
func (g *generation) finish(ctx context.Context) {
	const interval = 500 * time.Millisecond
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for quiet := 0; quiet < 2; {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		if quiet++; !g.idle() {
			quiet = 0
		}
	}
}
