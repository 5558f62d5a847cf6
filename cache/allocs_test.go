//go:build !race

package cache

import (
	"testing"

	"github.com/stretchr/testify/require"
)

func TestHitAllocatesNothing(t *testing.T) {
	c, r, w := benchCache(t, answering(benchResponse), nil), benchRequest(), &discard{}
	c.Exchange(r, w)
	allocs := testing.AllocsPerRun(1000, func() { c.Exchange(r, w) })
	require.Less(t, allocs, 0.5)
	require.Equal(t, w.responses, w.ends)
}
