package endpoint

import (
	"math/rand/v2"
	"testing"

	"github.com/stretchr/testify/require"
)

// The table is a map, whatever comes and goes in whatever order, and however the
// hashes collide.
func TestKeyTableIsAMap(t *testing.T) {
	for _, bits := range []uint32{0, 1, 0xf, 0xffffffff} { // of the hash
		random := rand.New(rand.NewPCG(1, uint64(bits)))
		table := newKeyTable[uint64]()
		model := make(map[messageKey]handle)
		var outdated []handle
		hash := func(key *messageKey) uint32 { return table.hash(key) & bits }
		for range 20_000 {
			key := messageKey{low: uint64(random.IntN(3)), id: uint16(random.IntN(100))}
			h := table.find(&key, hash(&key))
			want, ok := model[key]
			if !ok {
				want = none
			}
			require.Equal(t, want, h)
			switch {
			case h == none:
				h = table.insert(&key, hash(&key))
				*table.at(h) = key.low<<16 | uint64(key.id)
				model[key] = h
			case random.IntN(3) == 0: // the key is for another entry, this one stays
				table.unindex(h)
				delete(model, key)
				outdated = append(outdated, h)
			default:
				require.Equal(t, key.low<<16|uint64(key.id), *table.at(h))
				require.Equal(t, key, *table.key(h))
				table.unindex(h)
				table.release(h)
				delete(model, key)
			}
			if len(outdated) > 20 {
				table.release(outdated[0])
				outdated = outdated[1:]
			}
			require.Equal(t, len(model), table.len())
		}
		require.LessOrEqual(t, table.places, 3*100+21, "places are used again")
		require.LessOrEqual(t, table.used*4, len(table.slots)*3)
	}
}
