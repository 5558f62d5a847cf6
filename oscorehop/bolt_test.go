package oscorehop

import (
	"bytes"
	"math/rand/v2"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/require"
)

// OC-3, OH-112
func TestBoltStore(t *testing.T) {
	path := filepath.Join(t.TempDir(), "marks.db")
	s, err := OpenBoltStore(path)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

	f, other := Fingerprint{1}, Fingerprint{2}
	_, ok, err := s.Load(f)
	require.NoError(t, err)
	require.False(t, ok)
	want := Mark{Sequence: 1 << 39, Failures: 5}
	require.NoError(t, s.Save(map[Fingerprint]Mark{f: want, other: {Sequence: 1}}))

	_, err = OpenBoltStore(path)
	require.ErrorContains(t, err, "in use by another process")

	require.NoError(t, s.Close())
	require.Error(t, s.Save(map[Fingerprint]Mark{f: want}))
	s, err = OpenBoltStore(path)
	require.NoError(t, err)
	defer s.Close()
	got, ok, err := s.Load(f)
	require.NoError(t, err)
	require.True(t, ok)
	require.Equal(t, want, got)
}

// A transaction that a power cut interrupts leaves the old marks or the new ones:
// data pages are written first, in any order and in part, then the page that makes
// them count, in part or whole.
// OH-112
func TestBoltTornTransaction(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "marks.db")
	s, err := OpenBoltStore(path)
	require.NoError(t, err)
	f := Fingerprint{1}
	save := func(n uint64) []byte {
		marks := map[Fingerprint]Mark{f: {Sequence: n}}
		for i := range byte(50) {
			marks[Fingerprint{2, i}] = Mark{Sequence: n}
		}
		require.NoError(t, s.Save(marks))
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		return data
	}
	page := os.Getpagesize()
	before := save(0)
	for n := uint64(1); n <= 60; n++ {
		after := save(n)
		mixed := before
		if len(after) > len(mixed) {
			mixed = append(bytes.Clone(mixed), after[len(mixed):]...)
		}
		mixed = bytes.Clone(mixed)
		metaReached := rand.IntN(2) == 0
		for at := 2 * page; at < len(after); at += 512 { // the first two pages are meta pages
			if metaReached || rand.IntN(2) == 0 {
				copy(mixed[at:min(at+512, len(after))], after[at:])
			}
		}
		if metaReached {
			for at := 0; at < 2*page; at += 8 {
				if rand.IntN(2) == 0 {
					copy(mixed[at:at+8], after[at:])
				}
			}
		}
		cut := filepath.Join(dir, "cut.db")
		require.NoError(t, os.WriteFile(cut, mixed, 0o600))
		broken, err := OpenBoltStore(cut)
		require.NoError(t, err)
		got, ok, err := broken.Load(f)
		require.NoError(t, err)
		require.True(t, ok)
		require.Contains(t, []uint64{n - 1, n}, got.Sequence)
		require.NoError(t, broken.Close())
		before = after
	}
	require.NoError(t, s.Close())
}

// A file of which a power cut took the end, or left a sector of zeros, is an error
// or has the marks; no context is taken for one that was never in use.
// OC-3, OH-112
func TestBoltDamaged(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "marks.db")
	s, err := OpenBoltStore(path)
	require.NoError(t, err)
	f := Fingerprint{1}
	// Twice, as a Keeper does it: damage to the newer of the two meta pages is the
	// loss of one transaction.
	require.NoError(t, s.Save(map[Fingerprint]Mark{f: {Sequence: 98}}))
	require.NoError(t, s.Save(map[Fingerprint]Mark{f: {Sequence: 99}}))
	require.NoError(t, s.Close())
	whole, err := os.ReadFile(path)
	require.NoError(t, err)

	damaged := filepath.Join(dir, "damaged.db")
	refused := 0
	try := func(data []byte, at int) {
		require.NoError(t, os.RemoveAll(damaged))
		require.NoError(t, os.WriteFile(damaged, data, 0o600))
		s, err := OpenBoltStore(damaged)
		if err != nil {
			refused++
			return
		}
		m, ok, err := s.Load(f)
		if err != nil {
			refused++
		} else {
			require.True(t, ok, "damage at %d", at)
			require.Contains(t, []uint64{98, 99}, m.Sequence)
		}
		require.NoError(t, s.Close())
	}
	for at := 0; at < len(whole); at += 512 {
		try(whole[:at], at)
		data := bytes.Clone(whole)
		clear(data[at : at+512])
		try(data, at)
	}
	require.Positive(t, refused)
}
