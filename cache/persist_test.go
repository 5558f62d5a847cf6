package cache

import (
	"crypto/sha256"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

func TestSaveAndLoad(t *testing.T) {
	path := filepath.Join(t.TempDir(), "cache")
	run(t, nil, func(x *fixture) {
		n, err := x.Load(path)
		require.NoError(t, err)
		require.Zero(t, n)
		x.miss(get("old"), content("old", maxAge(5)))
		x.miss(get("a", option(wire.URIQuery, "q")), content("one", etag("v1"), uintOption(wire.ContentFormat, 50), maxAge(600)))
		linkLocal := netip.MustParseAddrPort("[fe80::1%eth0]:5683")
		x.miss(to(linkLocal, get("b")), from(linkLocal, content("two", maxAge(600))))
		private := get("a")
		private.Target.Scheme, private.Client = "coaps", &exchange.Identity{Name: "alice"}
		x.miss(private, content("secret", maxAge(600)))
		wait(10 * time.Second)
		n, err = x.Save(path)
		require.NoError(t, err)
		require.Equal(t, 2, n)
		data, err := os.ReadFile(path)
		require.NoError(t, err)
		require.NotContains(t, string(data), "secret") // FP-48
		info, err := os.Stat(path)
		require.NoError(t, err)
		require.Equal(t, os.FileMode(0o600), info.Mode().Perm())

		// The next start, 100 s later.
		wait(100 * time.Second)
		y := newFixture(t, nil)
		n, err = y.Load(path)
		require.NoError(t, err)
		require.Equal(t, 2, n)
		p := y.hit(get("a", option(wire.URIQuery, "q")))
		require.Equal(t, "one", string(p.Payload))
		require.EqualValues(t, 490, maxAgeOf(t, p)) // FP-43
		require.Equal(t, "two", string(y.hit(to(linkLocal, get("b"))).Payload))
		require.Len(t, shown(y.Cache, Filter{Path: []string{"a"}, Query: []string{"q"}}), 1)
		put := get("a", option(wire.URIQuery, "q"))
		put.Method = 3
		y.miss(put, &exchange.Response{Code: 2<<5 | 4})
		y.ask(get("a", option(wire.URIQuery, "q")))
		require.Equal(t, []string{"v1"}, y.last().etags())
		y.last().end(nil)

		// Much later.
		wait(time.Hour)
		y = newFixture(t, nil)
		n, err = y.Load(path)
		require.NoError(t, err)
		require.Zero(t, n)
	})
}

func TestDamagedFile(t *testing.T) {
	whole := func(records ...record) []byte {
		data := []byte(persistHeader)
		for _, r := range records {
			encoded, err := cbor.Marshal(r)
			require.NoError(t, err)
			data = append(data, encoded...)
		}
		digest := sha256.Sum256(data)
		return append(data, digest[:]...)
	}
	var good []byte
	run(t, nil, func(x *fixture) {
		x.miss(get("a"), content("one"))
		path := filepath.Join(t.TempDir(), "cache")
		_, err := x.Save(path)
		require.NoError(t, err)
		good, err = os.ReadFile(path)
		require.NoError(t, err)
	})
	flipped := append([]byte(nil), good...)
	flipped[len(flipped)/2] ^= 1
	for name, data := range map[string][]byte{
		"empty": {}, "other": []byte("something else"), "cut": good[:len(good)-1], "flipped": flipped, "header alone": []byte(persistHeader),
		"no record":   whole(record{}),
		"bad server":  whole(record{Key: make([]byte, 100), URI: 1, Request: 1, Server: "x"}),
		"bad offsets": whole(record{Key: make([]byte, 100), URI: 50, Request: 1, Server: "192.0.2.1:1"}),
		"bad items":   whole(record{Key: append([]byte{1, 1, 255, 255, 255}, make([]byte, 100)...), URI: 9, Request: 9, Server: "192.0.2.1:1"}),
		"short key":   whole(record{Key: make([]byte, 10), URI: 1, Request: 1, Server: "192.0.2.1:1"}),
		"unsorted options": whole(record{Key: make([]byte, 100), URI: 1, Request: 1, Server: "192.0.2.1:1", MaxAge: 60, Received: time.Now().UnixMilli(),
			Options: []recordOption{{ID: 12}, {ID: 4}}}),
		"not CBOR": func() []byte {
			d := append([]byte(persistHeader), 0xff, 0xff)
			s := sha256.Sum256(d)
			return append(d, s[:]...)
		}(),
	} {
		t.Run(name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "cache")
			require.NoError(t, os.WriteFile(path, data, 0o600))
			x := newFixture(t, nil)
			n, err := x.Load(path)
			var damaged *DamagedError
			require.ErrorAs(t, err, &damaged)
			require.Zero(t, n)
			require.Equal(t, path+".damaged", damaged.MovedTo)
			require.NoFileExists(t, path)
			require.FileExists(t, damaged.MovedTo)
			_, err = x.Load(path)
			require.NoError(t, err)
		})
	}
}

func TestCanSave(t *testing.T) {
	folder := t.TempDir()
	require.NoError(t, CanSave(filepath.Join(folder, "cache")))
	require.Error(t, CanSave(filepath.Join(folder, "missing", "cache")))
	require.Error(t, CanSave(folder))
	left, err := os.ReadDir(folder)
	require.NoError(t, err)
	require.Empty(t, left)
}

// A file cut off anywhere, as a full disk or a crash leaves it, is damaged and
// nothing worse.
func TestTruncatedFile(t *testing.T) {
	run(t, nil, func(x *fixture) {
		x.miss(get("a"), content("one", etag("v1")))
		path := filepath.Join(t.TempDir(), "cache")
		_, err := x.Save(path)
		require.NoError(t, err)
		whole, err := os.ReadFile(path)
		require.NoError(t, err)
		for n := range whole {
			_, err := x.read(whole[:n], time.Now())
			require.Error(t, err, "%d of %d bytes", n, len(whole))
		}
	})
}

func TestSaveFails(t *testing.T) {
	_, err := newFixture(t, nil).Save(filepath.Join(t.TempDir(), "missing", "cache"))
	require.Error(t, err)
	_, err = newFixture(t, nil).Load(t.TempDir())
	require.Error(t, err)
}

// Whatever a file holds, what is loaded can be shown and flushed.
func FuzzLoad(f *testing.F) {
	encoded, err := cbor.Marshal(record{Key: make([]byte, 100), URI: 1, Request: 1, Server: "192.0.2.1:5683", MaxAge: 1 << 20, Received: time.Now().UnixMilli()})
	require.NoError(f, err)
	f.Add(encoded)
	f.Fuzz(func(t *testing.T, records []byte) {
		data := append([]byte(persistHeader), records...)
		digest := sha256.Sum256(data)
		config := Defaults()
		numbers := wire.DefaultNumbers()
		config.Numbers = &numbers
		c, err := New(config)
		require.NoError(t, err)
		entries, err := c.read(append(data, digest[:]...), time.Now())
		if err != nil {
			return
		}
		for _, e := range entries {
			c.store.put(e)
		}
		c.Show(Filter{}, 10)
		c.Flush(Filter{})
		require.Zero(t, c.store.bytes)
	})
}

// What was there before is replaced as a whole, and its permissions stay; where it cannot
// be, nothing is left behind.
func TestSaveReplaces(t *testing.T) {
	folder := t.TempDir()
	path := filepath.Join(folder, "cache")
	require.NoError(t, os.WriteFile(path, []byte("before"), 0o640))
	require.NoError(t, os.Chmod(path, 0o640))
	x := newFixture(t, nil)
	_, err := x.Save(path)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	require.Equal(t, os.FileMode(0o640), info.Mode().Perm())
	n, err := x.Load(path)
	require.NoError(t, err)
	require.Zero(t, n)
	other := filepath.Join(folder, "other")
	require.NoError(t, os.MkdirAll(filepath.Join(other, "full"), 0o700))
	_, err = x.Save(other)
	require.Error(t, err)
	left, err := os.ReadDir(folder)
	require.NoError(t, err)
	require.Len(t, left, 2)
}
