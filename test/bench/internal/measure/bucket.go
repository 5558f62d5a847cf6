package measure

import "math/bits"

// bucket is the index of the bucket that counts v: exact below 2^(subBits+1), then 2^subBits buckets for
// each power of two.
func bucket(v uint64) int {
	exp := max(bits.Len64(v)-subBits-1, 0)
	return exp<<subBits + int(v>>exp)
}

// bounds are the smallest and largest values that bucket counts at index i.
func bounds(i int) (lo, hi uint64) {
	exp := max(i>>subBits-1, 0)
	lo = uint64(i-exp<<subBits) << exp
	return lo, lo + 1<<exp - 1
}
