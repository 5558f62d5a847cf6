package membership

import (
	"maps"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// LearnedConfig says what a Learned goes by.
type LearnedConfig struct {
	// Within is the number of requests, at least 1: a server that answered none
	// of the latest so many is a member no more.
	Within int
	// Trusted makes who answered count as all members, once Within requests have
	// run to their end. Otherwise they are never all.
	Trusted bool
	// Window is the shortest T' that gives every member time to answer; requests
	// with a shorter one do not count against the silent.
	Window time.Duration
	// MaxMembers bounds the servers; further ones are not members, and the list
	// is not complete while there are any.
	MaxMembers int
}

// Learned is a Source for one group that goes by who answers. A Listener feeds
// it.
type Learned struct {
	config LearnedConfig

	mu     sync.Mutex
	groups map[netip.AddrPort]*learning
}

// learning is what is known of one address of the group.
type learning struct {
	requests uint64                    // that ran to their end
	answered map[netip.AddrPort]uint64 // requests at the latest answer
	servers  []netip.AddrPort          // of answered; nil: to be made
	version  uint64
	overflow uint64 // requests when a server last found no place, from 1
}

// NewLearned returns a Learned that knows nobody.
func NewLearned(config LearnedConfig) *Learned {
	return &Learned{config: config, groups: make(map[netip.AddrPort]*learning)}
}

// Members implements Source.
func (l *Learned) Members(_ string, addr netip.AddrPort) ([]netip.AddrPort, uint64, bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.groups[addr]
	if g == nil {
		return nil, 0, false
	}
	if g.servers == nil {
		g.servers = slices.SortedFunc(maps.Keys(g.answered), netip.AddrPort.Compare)
	}
	within := uint64(max(l.config.Within, 1))
	overflows := g.overflow > 0 && g.requests+1-g.overflow <= within
	return g.servers, g.version, l.config.Trusted && g.requests >= within && !overflows
}

// maxAddresses bounds the addresses of one group: a name may resolve to many.
const maxAddresses = 64

func (l *Learned) at(addr netip.AddrPort) *learning {
	g := l.groups[addr]
	if g == nil && len(l.groups) < maxAddresses {
		g = &learning{answered: make(map[netip.AddrPort]uint64)}
		l.groups[addr] = g
	}
	return g
}

// heard notes an answer.
func (l *Learned) heard(addr, server netip.AddrPort) {
	server = netip.AddrPortFrom(server.Addr().Unmap(), server.Port())
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.at(addr)
	if g == nil {
		return
	}
	if _, known := g.answered[server]; !known {
		if len(g.answered) >= l.config.MaxMembers {
			g.overflow = g.requests + 1
			return
		}
		g.servers = nil
		g.version++
	}
	g.answered[server] = g.requests
}

// over notes the end of a request that every member had time to answer.
func (l *Learned) over(addr netip.AddrPort) {
	l.mu.Lock()
	defer l.mu.Unlock()
	g := l.at(addr)
	if g == nil {
		return
	}
	g.requests++
	for server, at := range g.answered {
		if g.requests-at > uint64(max(l.config.Within, 1)) {
			delete(g.answered, server)
			g.servers = nil
			g.version++
		}
	}
}

// Listener is the layer in front of the group leg that tells each Learned who
// answers. It must see only requests that really go to the group: it stands
// behind the cache.
type Listener struct {
	Next exchange.Handler
	// Groups are the sources by the names of their groups.
	Groups map[string]*Learned
}

// Exchange implements exchange.Handler.
func (t *Listener) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	if !r.Target.Group || r.Timeout.Seconds == 0 {
		return t.Next.Exchange(r, w)
	}
	s := &listening{sink: w}
	s.add(t.Groups[r.Target.GroupName], r.Target.Addr)
	for _, g := range r.Target.Also {
		s.add(t.Groups[g.Name], g.Addr)
	}
	if len(s.groups) == 0 {
		return t.Next.Exchange(r, w)
	}
	value, _ := wire.First(r.Options, wire.NoResponse)
	silence, _ := wire.Uint(value)
	s.fair = !wire.Suppressed(silence, codes.Content)
	s.timeout = r.Timeout.Duration()
	return t.Next.Exchange(r, s)
}

// listening is the sink of a request to groups that learn.
type listening struct {
	sink    exchange.Sink
	groups  []learnedAt
	fair    bool // members were asked to answer
	timeout time.Duration
}

type learnedAt struct {
	learned *Learned
	addr    netip.AddrPort
}

func (s *listening) add(l *Learned, addr netip.AddrPort) {
	if l != nil {
		s.groups = append(s.groups, learnedAt{l, addr})
	}
}

// Respond implements exchange.Sink.
func (s *listening) Respond(p *exchange.Response) exchange.Verdict {
	if p.From.IsValid() {
		for _, g := range s.groups {
			g.learned.heard(g.addr, p.From)
		}
	}
	return s.sink.Respond(p)
}

// End implements exchange.Sink. An exchange that failed or was stopped says
// nothing about those who were silent.
func (s *listening) End(err error) {
	for _, g := range s.groups {
		if err == nil && s.fair && s.timeout >= g.learned.config.Window {
			g.learned.over(g.addr)
		}
	}
	s.sink.End(err)
}
