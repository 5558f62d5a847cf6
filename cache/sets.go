package cache

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"

	crand "crypto/rand"

	lru "github.com/hashicorp/golang-lru/v2/simplelru"

	"coapproxy/exchange"
)

// sets remembers, per group request, the Group-ETag of the set of entries that
// satisfies it (J of GP-82) and which ETags can validate there. Guarded by
// Cache.mu.
type sets struct {
	store  *store
	known  *lru.LRU[uint64, *set]
	buffer []byte
	// Tags are first + n*step: unpredictable per process start, and none twice.
	first, step, count uint64
}

// set is what is known of one group request.
type set struct {
	key    []byte
	print  uint64 // of the entries and the membership that tag stands for
	tagged bool
	tag    [8]byte
	etags  *etagOwners
}

func newSets(s *store, size int) (*sets, error) {
	known, err := lru.NewLRU[uint64, *set](size, nil)
	if err != nil {
		return nil, err
	}
	var seed [32]byte
	if _, err := crand.Read(seed[:]); err != nil {
		return nil, err
	}
	random := rand.NewChaCha8(seed)
	return &sets{store: s, known: known, first: random.Uint64(), step: random.Uint64() | 1}, nil
}

// of returns the set of a request to groups.
func (s *sets) of(request []byte, groups []exchange.GroupAddr) *set {
	s.buffer = append(s.buffer[:0], request...)
	for _, g := range groups {
		s.buffer = appendGroup(s.buffer, g)
	}
	hash := sum(s.store.seed, s.buffer)
	if known, ok := s.known.Get(hash); ok && bytes.Equal(known.key, s.buffer) {
		return known
	}
	fresh := &set{key: append([]byte(nil), s.buffer...), etags: &etagOwners{}}
	s.known.Add(hash, fresh)
	return fresh
}

// tag returns the Group-ETag of a complete set: a new one when an entry or the
// membership is another than last time (GP-83).
func (s *sets) tag(t *set, n *census) []byte {
	s.buffer = binary.BigEndian.AppendUint64(s.buffer[:0], n.version)
	for _, e := range n.fresh {
		s.buffer = binary.BigEndian.AppendUint64(s.buffer, e.version)
	}
	if print := sum(s.store.seed, s.buffer); !t.tagged || t.print != print {
		t.tagged, t.print = true, print
		s.count++
		binary.BigEndian.PutUint64(t.tag[:], s.first+s.count*s.step)
	}
	tag := t.tag
	return tag[:]
}

// noteETag notes that a server used an ETag.
func (s *sets) noteETag(t *set, etag string, server netip.AddrPort) {
	if t.etags.note(etag, server) {
		s.store.config.Stats.SharedETag.Add(1)
	}
}

// etagOwners tells which server of a group uses which ETag. One seen from two is
// not used for validation any more (GC-64, GP-80).
type etagOwners struct {
	owner map[string]netip.AddrPort // invalid: more than one
}

// maxOwners bounds the ETags that are remembered per set; what is beyond it is
// forgotten as a whole, which costs requests and not correctness.
const maxOwners = 256

// note reports whether the ETag is one of two servers as of now.
func (o *etagOwners) note(etag string, server netip.AddrPort) (shared bool) {
	owner, known := o.owner[etag]
	switch {
	case known && owner == server:
	case known:
		o.owner[etag] = netip.AddrPort{}
		return owner.IsValid()
	default:
		if o.owner == nil || len(o.owner) >= maxOwners {
			o.owner = make(map[string]netip.AddrPort)
		}
		o.owner[etag] = server
	}
	return false
}

func (o *etagOwners) ambiguous(etag string) bool {
	owner, known := o.owner[etag]
	return known && !owner.IsValid()
}
