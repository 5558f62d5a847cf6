package oscorehop

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
)

// keyringBed is a folder of context files and a Keyring.
type keyringBed struct {
	t    *testing.T
	dir  string
	ring *Keyring
}

func newKeyringBed(t *testing.T) *keyringBed {
	dir := filepath.Join(t.TempDir(), "contexts")
	require.NoError(t, os.Mkdir(dir, 0o700))
	store, err := OpenBoltStore(filepath.Join(t.TempDir(), "store"))
	require.NoError(t, err)
	keeper := NewKeeper(store)
	t.Cleanup(func() {
		require.NoError(t, keeper.Close())
		require.NoError(t, store.Close())
	})
	return &keyringBed{t, dir, NewKeyring(keeper)}
}

// write makes or replaces the file of a context and returns the client's end.
func (b *keyringBed) write(name string, o PairOptions) Parameters {
	b.t.Helper()
	client, proxy, err := NewPair(o)
	require.NoError(b.t, err)
	b.put(name, proxy)
	return client
}

func (b *keyringBed) put(name string, p Parameters) {
	b.t.Helper()
	_ = os.Remove(contextFile(b.dir, name))
	require.NoError(b.t, p.WriteFile(contextFile(b.dir, name)))
}

// answers reports whether a request with a context finds its way.
func (b *keyringBed) answers(client Parameters) bool {
	b.t.Helper()
	c, err := Ephemeral(client)
	require.NoError(b.t, err)
	m, _, err := c.ProtectRequest(Message{Code: codes.GET}, DefaultClasses)
	require.NoError(b.t, err)
	option, err := RequestOption(m)
	require.NoError(b.t, err)
	found, err := b.ring.Find(option)
	if err != nil {
		return false
	}
	_, _, err = found.UnprotectRequest(m, option, DefaultClasses)
	return err == nil
}

func TestKeyring(t *testing.T) {
	b := newKeyringBed(t)
	one, two, hop := b.write("one", PairOptions{}), b.write("two", PairOptions{}), b.write("hop", PairOptions{})
	change, err := b.ring.Load(b.dir, []string{"one"}, []string{"hop"})
	require.NoError(t, err)
	require.Equal(t, Change{Opened: []string{"hop", "one"}}, change)
	require.True(t, b.answers(one))
	require.False(t, b.answers(two), "nobody named it")
	require.False(t, b.answers(hop), "OH-21: one for a next hop is none for requests")
	require.Equal(t, "hop", b.ring.Get("hop").Name())
	require.Nil(t, b.ring.Get("two"))

	// Nothing has changed.
	kept := b.ring.Get("one")
	change, err = b.ring.Load(b.dir, []string{"one"}, []string{"hop"})
	require.NoError(t, err)
	require.Equal(t, Change{}, change)
	require.Same(t, kept, b.ring.Get("one"))

	// OH-116: new keys; what runs on the old ones goes on, for the time being.
	again := b.write("one", PairOptions{})
	change, err = b.ring.Load(b.dir, []string{"one", "two"}, nil)
	require.NoError(t, err)
	require.Equal(t, Change{Opened: []string{"two"}, Replaced: []string{"one"}}, change)
	require.Len(t, b.ring.All(), 3)
	gone, err := b.ring.Keep("one", "two", "three")
	require.NoError(t, err)
	require.Equal(t, []string{"hop"}, gone)
	require.True(t, b.answers(again))
	require.True(t, b.answers(two))
	require.False(t, b.answers(one))
	require.NoError(t, kept.usable())
	require.Len(t, b.ring.All(), 2)

	_, err = b.ring.Load(b.dir, nil, nil)
	require.NoError(t, err)
	require.ErrorIs(t, kept.usable(), ErrClosed)
	require.Len(t, b.ring.All(), 2)
	_, err = b.ring.Keep()
	require.NoError(t, err)
	require.False(t, b.answers(again))
	require.Empty(t, b.ring.All())
}

// A file that says something else of the same keys: they are opened anew, with the
// numbers going on.
func TestKeyringSameKeys(t *testing.T) {
	b := newKeyringBed(t)
	client, proxy, err := NewPair(PairOptions{})
	require.NoError(t, err)
	b.put("one", proxy)
	_, err = b.ring.Load(b.dir, []string{"one"}, nil)
	require.NoError(t, err)
	before := b.ring.Get("one").Usage().Sequence
	proxy.ReplayWindow = 64
	b.put("one", proxy)
	change, err := b.ring.Load(b.dir, []string{"one"}, nil)
	require.NoError(t, err)
	require.Equal(t, Change{Replaced: []string{"one"}}, change)
	require.GreaterOrEqual(t, b.ring.Get("one").Usage().Sequence, before)
	require.False(t, b.answers(client), "OH-113: nobody knows what was received")
	// From a client's to a next hop's.
	_, err = b.ring.Load(b.dir, nil, []string{"one"})
	require.NoError(t, err)
	require.NotNil(t, b.ring.Get("one"))
}

// What is wrong with a file changes nothing.
func TestKeyringRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		spoil         func(b *keyringBed)
		clients, hops []string
		want          string
	}{
		"missing":        {func(*keyringBed) {}, []string{"one", "nine"}, nil, "nine.json: no such file"},
		"open to others": {func(b *keyringBed) { _ = os.Chmod(contextFile(b.dir, "two"), 0o640) }, []string{"one", "two"}, nil, "chmod 600"},
		"open folder":    {func(b *keyringBed) { _ = os.Chmod(b.dir, 0o777) }, []string{"one"}, nil, "chmod go-w"},
		"no folder":      {func(b *keyringBed) { b.dir += "x" }, []string{"one"}, nil, "no such file"},
		"a file":         {func(b *keyringBed) { b.dir = contextFile(b.dir, "one") }, []string{"one"}, nil, "not a folder"},
		"not JSON":       {func(b *keyringBed) { _ = os.WriteFile(contextFile(b.dir, "two"), []byte("x"), 0o600) }, []string{"two"}, nil, "two.json: not JSON"},
		"OH-20 same ID": {func(b *keyringBed) {
			b.write("two", PairOptions{ClientID: []byte{7}})
			b.write("three", PairOptions{ClientID: []byte{7}})
		}, []string{"two", "three"}, nil, "same recipient_id 07"},
		"client and hop": {func(*keyringBed) {}, []string{"one"}, []string{"one"}, "both a client's and for a next hop"},
	} {
		t.Run(name, func(t *testing.T) {
			b := newKeyringBed(t)
			one := b.write("one", PairOptions{})
			b.write("two", PairOptions{})
			dir := b.dir
			_, err := b.ring.Load(dir, []string{"one"}, nil)
			require.NoError(t, err)
			tt.spoil(b)
			_, err = b.ring.Load(b.dir, tt.clients, tt.hops)
			require.ErrorContains(t, err, tt.want)
			require.ErrorContains(t, CheckKeyring(b.dir, tt.clients, tt.hops), tt.want)
			b.dir = dir
			require.True(t, b.answers(one))
		})
	}
	require.NoError(t, CheckKeyring("/nowhere", nil, nil), "nobody asks")
}
