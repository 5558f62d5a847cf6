package cache

import (
	"bytes"
	"hash/maphash"
	"net/netip"
	"slices"

	lru "github.com/hashicorp/golang-lru/v2/simplelru"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// store holds the entries within their bounds (FP-51). Guarded by Cache.mu.
type store struct {
	config  *Config
	seed    maphash.Seed
	entries *lru.LRU[uint64, *entry]
	// places finds the variants of one resource (FP-47).
	places map[uint64][]*entry
	bytes  int
	tick   uint64 // of uses
	change uint64 // of entries; see entry.version

	// begun numbers the safe exchanges, and unsafe requests note the number
	// after which they made a place stale: an exchange that had begun before
	// must not store what it brings as fresh (FP-47).
	now     uint64
	outdate *lru.LRU[uint64, uint64]
	horizon uint64 // for places that outdate has forgotten
}

// maxOutdated bounds the places whose latest unsafe request is remembered
// exactly.
const maxOutdated = 4096

func newStore(c *Config) (*store, error) {
	s := &store{config: c, seed: maphash.MakeSeed(), places: make(map[uint64][]*entry)}
	var err error
	if s.entries, err = lru.NewLRU(c.MaxEntries, func(_ uint64, e *entry) { s.unlink(e) }); err != nil {
		return nil, err
	}
	s.outdate, err = lru.NewLRU(maxOutdated, func(_ uint64, at uint64) { s.horizon = max(s.horizon, at) })
	return s, err
}

// get returns the entry of a key, nil if there is none.
func (s *store) get(key []byte) *entry {
	if s.entries.Len() == 0 {
		return nil
	}
	e, ok := s.entries.Get(sum(s.seed, key))
	if !ok || !bytes.Equal(e.key, key) {
		return nil
	}
	s.tick++
	e.used = s.tick
	return e
}

// put stores e, whose key, server and uri are set, in place of what has its key
// (FP-44), and keeps the bounds. An entry that no bound has room for is not
// stored, and nothing else makes way for it.
func (s *store) put(e *entry) {
	s.entries.Remove(e.hash)
	if e.cost > s.config.MaxBytes {
		s.config.Stats.TooLarge.Add(1)
		s.count()
		return
	}
	s.tick++
	s.change++
	e.used, e.version = s.tick, s.change
	if siblings := s.places[e.place]; len(siblings) >= s.config.MaxVariants {
		oldest := slices.MinFunc(siblings, func(a, b *entry) int {
			if a.used < b.used {
				return -1
			}
			return 1
		})
		s.entries.Remove(oldest.hash)
		s.config.Stats.Evicted.Add(1)
	}
	if s.entries.Len() >= s.config.MaxEntries {
		s.entries.RemoveOldest()
		s.config.Stats.Evicted.Add(1)
	}
	s.entries.Add(e.hash, e)
	s.places[e.place] = append(s.places[e.place], e)
	s.bytes += e.cost
	for s.bytes > s.config.MaxBytes && s.entries.Len() > 0 {
		s.entries.RemoveOldest()
		s.config.Stats.Evicted.Add(1)
	}
	s.count()
}

// remove drops an entry that is outdated.
func (s *store) remove(e *entry) {
	e.stale = true
	if current, ok := s.entries.Peek(e.hash); ok && current == e {
		s.entries.Remove(e.hash)
		s.count()
	}
}

// unlink takes an entry that leaves entries out of the index.
func (s *store) unlink(e *entry) {
	siblings := s.places[e.place]
	if i := slices.Index(siblings, e); i >= 0 {
		siblings = slices.Delete(siblings, i, i+1)
	}
	if len(siblings) == 0 {
		delete(s.places, e.place)
	} else {
		s.places[e.place] = siblings
	}
	s.bytes -= e.cost
}

func (s *store) count() {
	s.config.Stats.Entries.Store(int64(s.entries.Len()))
	s.config.Stats.Bytes.Store(int64(s.bytes))
}

// invalidate makes every variant of a resource stale: those that can be
// validated stay (FP-47).
func (s *store) invalidate(place uint64) {
	for _, e := range slices.Clone(s.places[place]) {
		if e.stale {
			continue
		}
		s.config.Stats.Invalidated.Add(1)
		s.change++
		e.stale, e.version = true, s.change
		if e.etag == nil {
			s.entries.Remove(e.hash)
		}
	}
	s.now++
	s.outdate.Add(place, s.now)
	s.count()
}

// outdated reports whether the resource was changed since an exchange that began
// at begun.
func (s *store) outdated(place, begun uint64) bool {
	if s.horizon > begun {
		return true
	}
	at, ok := s.outdate.Peek(place)
	return ok && at > begun
}

// placeOf is the index of a resource at a server; the zero server stands for
// that resource at every server.
func (s *store) placeOf(uri []byte, server netip.AddrPort) uint64 {
	var buffer [256]byte
	return sum(s.seed, appendPlace(buffer[:0], uri, server))
}

// complete fills in what places e in the store. key is kept.
func (s *store) complete(e *entry, key []byte, uri, request int, server netip.AddrPort, client *exchange.Identity, scheme string) {
	e.key, e.uri, e.request, e.server = key, int32(uri), int32(request), server
	e.hash = sum(s.seed, key)
	e.place = s.placeOf(key[1:uri], server)
	if wire.SecureScheme(scheme) && client != nil {
		e.private, e.client = true, client.Name
	}
	e.measure()
}
