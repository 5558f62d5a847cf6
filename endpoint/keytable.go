package endpoint

import (
	crand "crypto/rand"
	"encoding/binary"
	"iter"
	"math/bits"
)

// handle names an entry of a keyTable: its place in the slab.
type handle int32

const none handle = -1

// keyTable is a map from messageKey to T whose entries have handles: a slab, and a
// flat index of it by open addressing. Entries come and go with every message, and
// most keys are looked up once, when nothing of the table is in the processor's
// caches: the index touches one cache line for that, and the slab only what is
// found. Its memory is kept for the next entries. Not safe for concurrent use.
type keyTable[T any] struct {
	seed  keySeed
	slots []keySlot // a power of two of them, at most three quarters used
	used  int
	// slab is in parts that never move but for the first, which grows: what is copied
	// when a table grows costs as much memory again.
	slab   [][]keyEntry[T]
	places int // in all parts
	free   handle
}

// slabPart is how many places a part of a slab has.
const slabPart = 256

type keySlot struct {
	hash  uint32
	entry handle // one more than the handle, so that the zero value is a free slot
}

type keyEntry[T any] struct {
	key   messageKey
	value T
	hash  uint32
	next  handle // in the list of free places
}

const firstSlots = 64

func newKeyTable[T any]() keyTable[T] {
	return keyTable[T]{seed: newKeySeed(), slots: make([]keySlot, firstSlots), free: none}
}

// hash of a key, for find and insert.
func (t *keyTable[T]) hash(key *messageKey) uint32 { return uint32(t.seed.hash(key)) }

// at is the value of an entry, valid until the next insert.
func (t *keyTable[T]) at(h handle) *T { return &t.entry(h).value }

func (t *keyTable[T]) entry(h handle) *keyEntry[T] {
	return &t.slab[uint32(h)/slabPart][uint32(h)%slabPart]
}

// key is that of an entry.
func (t *keyTable[T]) key(h handle) *messageKey { return &t.entry(h).key }

// len is the number of keys in the index.
func (t *keyTable[T]) len() int { return t.used }

// keys are those in the index, with their entries. Nothing is changed meanwhile.
func (t *keyTable[T]) keys() iter.Seq2[messageKey, handle] {
	return func(yield func(messageKey, handle) bool) {
		for _, s := range t.slots {
			if s.entry != 0 && !yield(t.entry(s.entry-1).key, s.entry-1) {
				return
			}
		}
	}
}

// find returns the entry of the key, or none.
func (t *keyTable[T]) find(key *messageKey, hash uint32) handle {
	mask := uint32(len(t.slots) - 1)
	for i := hash & mask; ; i = (i + 1) & mask {
		s := t.slots[i]
		switch {
		case s.entry == 0:
			return none
		case s.hash == hash && t.entry(s.entry-1).key == *key:
			return s.entry - 1
		}
	}
}

// insert makes an entry for a key that has none, with the zero value.
func (t *keyTable[T]) insert(key *messageKey, hash uint32) handle {
	h := t.free
	if h == none {
		h = t.place()
	} else {
		t.free = t.entry(h).next
	}
	*t.entry(h) = keyEntry[T]{key: *key, hash: hash, next: none}
	if t.used++; t.used > len(t.slots)/4*3 {
		t.grow()
	}
	t.put(keySlot{hash, h + 1})
	return h
}

// place makes one more place in the slab.
func (t *keyTable[T]) place() handle {
	h := handle(t.places)
	part := t.places / slabPart
	switch {
	case part < len(t.slab):
	case part == 0:
		t.slab = append(t.slab, nil)
	default:
		t.slab = append(t.slab, make([]keyEntry[T], 0, slabPart))
	}
	t.slab[part] = append(t.slab[part], keyEntry[T]{})
	t.places++
	return h
}

// set makes v the value of the key.
func (t *keyTable[T]) set(key *messageKey, v T) {
	hash := t.hash(key)
	h := t.find(key, hash)
	if h == none {
		h = t.insert(key, hash)
	}
	*t.at(h) = v
}

func (t *keyTable[T]) put(s keySlot) {
	mask := uint32(len(t.slots) - 1)
	i := s.hash & mask
	for t.slots[i].entry != 0 {
		i = (i + 1) & mask
	}
	t.slots[i] = s
}

func (t *keyTable[T]) grow() {
	old := t.slots
	t.slots = make([]keySlot, 2*len(old))
	for _, s := range old {
		if s.entry != 0 {
			t.put(s)
		}
	}
}

// unindex makes the key free for another entry; this one stays until release.
func (t *keyTable[T]) unindex(h handle) {
	mask := uint32(len(t.slots) - 1)
	i := t.entry(h).hash & mask
	for t.slots[i].entry != h+1 {
		i = (i + 1) & mask
	}
	t.used--
	// What follows moves up, unless it is where it belongs or would get before it.
	for j := i; ; {
		j = (j + 1) & mask
		s := t.slots[j]
		if s.entry == 0 {
			break
		}
		if (j-s.hash)&mask >= (j-i)&mask {
			t.slots[i] = s
			i = j
		}
	}
	t.slots[i] = keySlot{}
}

// release gives the place of an entry that is not in the index to others.
func (t *keyTable[T]) release(h handle) {
	*t.entry(h) = keyEntry[T]{next: t.free}
	t.free = h
}

// keySeed is what makes hashes of keys unforeseeable: who chooses the keys shall not
// choose the places.
type keySeed [4]uint64

func newKeySeed() (s keySeed) {
	var b [8 * len(s)]byte
	_, _ = crand.Read(b[:]) // never fails
	for i := range s {
		s[i] = binary.NativeEndian.Uint64(b[8*i:])
	}
	return s
}

// hash multiplies as wyhash does, whose few instructions cost less than the call of a
// general hash.
func (s *keySeed) hash(k *messageKey) uint64 {
	address := mix(k.high^s[0], k.low^s[1])
	rest := mix(k.zone^s[2], (uint64(k.port)<<16|uint64(k.id))^s[3])
	return mix(address^s[2], rest^s[0])
}

func mix(a, b uint64) uint64 {
	high, low := bits.Mul64(a, b)
	return high ^ low
}
