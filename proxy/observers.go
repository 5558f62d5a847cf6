package proxy

import (
	"hash/maphash"
	"iter"
)

// observers are the observations of clients at single servers, by client endpoint
// and Token. There may be many: a map of hashes, with those that have the same in a
// list, takes a sixth of one whose keys are clientTokens. Guarded by Front.mu.
type observers struct {
	seed   maphash.Seed
	byHash map[uint64]*observation
}

func newObservers() observers {
	return observers{seed: maphash.MakeSeed(), byHash: make(map[uint64]*observation)}
}

// add enters x. One of the same client with the same Token has been taken out.
func (o *observers) add(x *observation) {
	hash := maphash.Comparable(o.seed, x.key())
	x.next = o.byHash[hash]
	o.byHash[hash] = x
}

// take takes out and returns the observation that has this key; nil for none.
func (o *observers) take(key clientToken) *observation {
	return o.cut(key, func(x *observation) bool { return x.key() == key })
}

// remove takes out x, if it is there.
func (o *observers) remove(x *observation) {
	o.cut(x.key(), func(y *observation) bool { return y == x })
}

func (o *observers) cut(key clientToken, is func(*observation) bool) *observation {
	hash := maphash.Comparable(o.seed, key)
	var before *observation
	for x := o.byHash[hash]; x != nil; before, x = x, x.next {
		switch {
		case !is(x):
			continue
		case before != nil:
			before.next = x.next
		case x.next != nil:
			o.byHash[hash] = x.next
		default:
			delete(o.byHash, hash)
		}
		x.next = nil
		return x
	}
	return nil
}

// clear takes out all.
func (o *observers) clear() { clear(o.byHash) }

// all are the observations in no order.
func (o *observers) all() iter.Seq[*observation] {
	return func(yield func(*observation) bool) {
		for _, x := range o.byHash {
			for ; x != nil; x = x.next {
				if !yield(x) {
					return
				}
			}
		}
	}
}
