package proxy

import (
	"crypto/rand"
	"encoding/hex"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/golang-lru/v2/simplelru"
	"go.uber.org/zap"

	"coapproxy/wire"
)

// MappingsConfig says how targets at the proxy are remembered.
type MappingsConfig struct {
	// Lifetime is how long a mapping lasts after its last use (GP-102).
	Lifetime time.Duration
	// Max bounds the mappings; the one not used for the longest time goes first.
	Max int
	// Pool are the addresses and ports for servers that get one of their own
	// (GP-54). Open makes the proxy listen on one of them, by the given scheme;
	// it does not block.
	Pool  []netip.AddrPort
	Open  func(scheme string, at netip.AddrPort) error
	Stats *Stats
	Log   *zap.Logger
}

// Mappings remembers as which targets at this proxy servers were announced to
// clients of its reverse side, so that what is sent to such a target reaches the
// server (GP-56, GP-102). Safe for concurrent use.
type Mappings struct {
	MappingsConfig

	mu      sync.Mutex
	servers *simplelru.LRU[serverKey, *mapping]
	byHost  map[hostKey]*mapping
	byPath  map[string]*mapping
	slots   []*slot
	byLocal map[netip.AddrPort]*slot
	// full is until when no address of the pool can be free, by family.
	full    [2]time.Time
	changed chan struct{} // see Changed
}

// serverKey tells servers apart: by address or, behind a next proxy that stands
// in for its servers, by what that one announced. Behind several next proxies there
// can be the same addresses.
type serverKey struct {
	nextHop string
	addr    netip.AddrPort
	via     string
}

// hostKey is what a client has in Uri-Host and Uri-Port, port 0 standing for
// no Uri-Port.
type hostKey struct {
	addr netip.Addr
	port uint16
}

// mapping is one server. Guarded by the lock of its owner.
type mapping struct {
	key    serverKey
	to     behind
	groups []string // in whose responses it was announced; replaced, never changed
	used   time.Time
	hosts  []hostKey
	id     string // in the path of by-path targets; empty: none
	slots  [2]*slot
}

// behind is what a target at the proxy stands for: a destination, and what a
// request there has in Uri-Host, Uri-Port and at the beginning of Uri-Path where
// another reverse-proxy wants to see it.
type behind struct {
	destination
	uriHost string
	uriPort uint16
	path    []string
	groups  []string
}

// slot is an address and port for one server.
type slot struct {
	addr    netip.AddrPort
	mapping *mapping
	open    []string             // the schemes by which the proxy listens there
	failed  map[string]time.Time // when listening failed
}

// slotRetry is how long an address where the proxy could not listen is left
// alone.
const slotRetry = time.Minute

// maxMappingGroups bounds the groups remembered per server.
const maxMappingGroups = 16

// NewMappings returns an empty table.
func NewMappings(c MappingsConfig) *Mappings {
	m := &Mappings{MappingsConfig: c, byHost: make(map[hostKey]*mapping), byPath: make(map[string]*mapping),
		byLocal: make(map[netip.AddrPort]*slot), changed: make(chan struct{}, 1)}
	servers, err := simplelru.NewLRU(max(c.Max, 1), func(_ serverKey, gone *mapping) { m.forget(gone) })
	if err != nil {
		panic(err) // the size is positive
	}
	m.servers = servers
	for _, addr := range c.Pool {
		s := &slot{addr: addr}
		m.slots = append(m.slots, s)
		m.byLocal[addr] = s
	}
	return m
}

// forget takes a mapping that has left the table out of the indexes.
func (m *Mappings) forget(gone *mapping) {
	for _, h := range gone.hosts {
		if m.byHost[h] == gone {
			delete(m.byHost, h)
		}
	}
	delete(m.byPath, gone.id)
	for _, s := range gone.slots {
		if s != nil {
			s.mapping = nil
			m.full[family(s.addr.Addr())] = time.Time{}
		}
	}
}

// family is the index of an address family.
func family(addr netip.Addr) int {
	if addr.Is4() {
		return 0
	}
	return 1
}

// note returns the mapping of a server heard in a group, made if need be. Called
// under the lock.
func (m *Mappings) note(key serverKey, to behind, groups []string, now time.Time) *mapping {
	known, ok := m.servers.Get(key)
	if ok && now.Sub(known.used) >= m.Lifetime {
		m.servers.Remove(key)
		ok = false
	}
	if !ok {
		m.change()
		known = &mapping{key: key, to: to}
		if m.servers.Add(key, known) {
			m.Stats.MappingsEvicted.Add(1)
		}
	}
	known.to, known.used = to, now // where it was heard last
	for _, g := range groups {
		if !slices.Contains(known.groups, g) {
			m.change()
			kept := known.groups[max(0, len(known.groups)+1-maxMappingGroups):]
			known.groups = append(slices.Clone(kept), g)
		}
	}
	return known
}

// host notes that a server is announced as Uri-Host addr with a written port, 0
// for none where the port that goes without saying is standing.
func (m *Mappings) host(key serverKey, to behind, groups []string, addr netip.Addr, written, standing uint16, now time.Time) {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := m.note(key, to, groups, now)
	m.index(known, hostKey{addr, written})
	if written == 0 { // a client may write it out all the same
		m.index(known, hostKey{addr, standing})
	}
}

func (m *Mappings) index(known *mapping, h hostKey) {
	if !slices.Contains(known.hosts, h) {
		m.change()
		const max = 8 // ports of the proxy under which the server goes
		if len(known.hosts) >= max {
			if m.byHost[known.hosts[0]] == known {
				delete(m.byHost, known.hosts[0])
			}
			known.hosts = slices.Delete(known.hosts, 0, 1)
		}
		known.hosts = append(known.hosts, h)
	}
	m.byHost[h] = known
}

// path returns the path segment that a server is announced by. It says nothing
// about the server (GP-112).
func (m *Mappings) path(key serverKey, to behind, groups []string, now time.Time) string {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := m.note(key, to, groups, now)
	for known.id == "" {
		var random [5]byte
		_, _ = rand.Read(random[:]) // never fails
		if id := hex.EncodeToString(random[:]); m.byPath[id] == nil {
			known.id = id
			m.byPath[id] = known
			m.change()
		}
	}
	return known.id
}

// address returns the address and port of the pool that stands for a server, of
// the address family of near and open for the scheme. It reports false when there
// is none to be had.
func (m *Mappings) address(key serverKey, to behind, groups []string, scheme string, near netip.Addr, now time.Time) (netip.AddrPort, bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	f := family(near)
	known := m.note(key, to, groups, now)
	if s := known.slots[f]; s != nil {
		return s.addr, m.listen(s, scheme, now)
	}
	if now.Before(m.full[f]) {
		m.Stats.PoolExhausted.Add(1)
		return netip.AddrPort{}, false
	}
	first := now.Add(m.Lifetime) // when the first one can become free
	for _, s := range m.slots {
		if family(s.addr.Addr()) != f {
			continue
		}
		if old := s.mapping; old != nil {
			if until := old.used.Add(m.Lifetime); until.After(now) {
				if until.Before(first) {
					first = until
				}
				continue
			}
			m.servers.Remove(old.key)
		}
		if !m.listen(s, scheme, now) {
			first = now.Add(min(slotRetry, m.Lifetime))
			continue
		}
		s.mapping, known.slots[f] = known, s
		m.change()
		return s.addr, true
	}
	m.full[f] = first
	m.Stats.PoolExhausted.Add(1)
	return netip.AddrPort{}, false
}

// listen makes the proxy listen on s by the scheme. Called under the lock.
func (m *Mappings) listen(s *slot, scheme string, now time.Time) bool {
	if slices.Contains(s.open, scheme) {
		return true
	}
	if now.Before(s.failed[scheme].Add(slotRetry)) {
		return false
	}
	if err := m.Open(scheme, s.addr); err != nil {
		m.Log.Warn("cannot listen for a server", zap.String("scheme", scheme), zap.Stringer("at", s.addr), zap.Error(err))
		if s.failed == nil {
			s.failed = make(map[string]time.Time)
		}
		s.failed[scheme] = now
		return false
	}
	s.open = append(s.open, scheme)
	m.change()
	return true
}

// use returns what a mapping stands for, nil when its time is over. Called under
// the lock.
func (m *Mappings) use(known *mapping, now time.Time) *behind {
	switch {
	case known == nil:
		return nil
	case now.Sub(known.used) >= m.Lifetime:
		m.servers.Remove(known.key)
		return nil
	}
	m.servers.Get(known.key) // it is the last one used
	known.used = now
	to := known.to
	to.groups = known.groups
	return &to
}

// at finds the server that a request is for: by the address of the pool that it
// was sent to, by Uri-Host and Uri-Port, or by the first segment of rest, the path
// behind the prefix of servers; rest is nil without that prefix. taken is how many
// segments of rest belong to the target. own is true for an address of the pool,
// where there is nothing but its server.
func (m *Mappings) at(local netip.AddrPort, host hostKey, rest [][]byte, now time.Time) (to *behind, taken int, own bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if s, ok := m.byLocal[local]; ok {
		return m.use(s.mapping, now), 0, true
	}
	if s, ok := m.byLocal[netip.AddrPortFrom(host.addr, host.port)]; ok { // named in a proxy request, say
		return m.use(s.mapping, now), 0, true
	}
	if host.addr.IsValid() {
		if to := m.use(m.byHost[host], now); to != nil {
			return to, 0, false
		}
	}
	if len(rest) > 0 {
		if to := m.use(m.byPath[string(rest[0])], now); to != nil {
			return to, 1, false
		}
	}
	return nil, 0, false
}

// Announced reports whether a server goes by a segment of the path. It is no use of the
// mapping.
func (m *Mappings) Announced(id string, now time.Time) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	known := m.byPath[id]
	return known != nil && now.Sub(known.used) < m.Lifetime
}

// Len is the number of mappings.
func (m *Mappings) Len() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.servers.Len()
}

// behindOf returns what a server of a group is reached by: its address or, where
// a next proxy announced it as something else, that. It reports false for what no
// request can be sent to.
func behindOf(from netip.AddrPort, replyFrom []byte) (serverKey, behind, bool) {
	if from.IsValid() {
		return serverKey{addr: from}, behind{destination: destination{scheme: "coap", addr: from.Addr(), port: from.Port()}}, true
	}
	v, err := wire.ParseReplyFrom(replyFrom)
	if err != nil {
		return serverKey{}, behind{}, false
	}
	if _, ok := v.FollowUp(nil); !ok {
		return serverKey{}, behind{}, false
	}
	to := behind{destination: destination{scheme: v.Server.Scheme, addr: v.Server.Addr.WithZone(""), port: v.Server.Port}}
	if v.Ref != nil { // GP-118
		to.path, to.uriPort, to.uriHost = v.Ref.Path, v.Ref.Port, v.Ref.URIHost()
	}
	return serverKey{via: string(replyFrom)}, to, true
}
