package oscorehop

import (
	"errors"
	"maps"
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/require"
)

// disk is a Store with a power switch. What was saved last is in a cache that a
// power cut may take, although it was acknowledged; everything before it is safe.
type disk struct {
	mu    sync.Mutex
	safe  map[Fingerprint][]byte
	cache map[Fingerprint][]byte
	dead  bool
	saves int
	fault func(records map[Fingerprint][]byte) saveFault // nil: none
}

type saveFault uint8

const (
	saved     saveFault = iota
	failed              // an error, and nothing written
	unsure              // an error, and all written
	cutBefore           // the power goes before anything is written
	cutAfter            // the power goes when all is written, before the caller knows
	torn                // the power goes in the middle of a record
)

func newDisk() *disk { return &disk{safe: make(map[Fingerprint][]byte)} }

// inject sets what happens to later writes.
func (d *disk) inject(fault func(map[Fingerprint][]byte) saveFault) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fault = fault
}

func (d *disk) Load(f Fingerprint) (Mark, bool, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return Mark{}, false, errDisk
	}
	data, ok := d.cache[f]
	if !ok {
		data, ok = d.safe[f]
	}
	if !ok {
		return Mark{}, false, nil
	}
	m, err := parseRecord(f, data)
	return m, err == nil, err
}

func (d *disk) Save(marks map[Fingerprint]Mark) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.dead {
		return errDisk
	}
	d.saves++
	records := make(map[Fingerprint][]byte)
	for f, m := range marks {
		records[f] = m.record(f)
	}
	fault := saved
	if d.fault != nil {
		fault = d.fault(records)
	}
	if fault == failed {
		return errDisk
	}
	maps.Copy(d.safe, d.cache) // a sync writes what was before, too
	d.cache = nil
	switch fault {
	case saved:
		d.cache = records
		return nil
	case unsure:
		d.cache = records
		return errDisk
	case cutAfter:
		maps.Copy(d.safe, records)
	case torn:
		for f, record := range records {
			if old, ok := d.safe[f]; ok {
				at := 1 + rand.IntN(len(record)-1)
				d.safe[f] = append(append([]byte{}, record[:at]...), old[at:]...)
			}
		}
	}
	d.dead = true
	return errDisk
}

// cut switches the power off; lost says whether the last acknowledged write goes
// with it.
func (d *disk) cut(lost bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !lost {
		maps.Copy(d.safe, d.cache)
	}
	d.cache, d.dead = nil, true
}

func (d *disk) off() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.dead
}

func (d *disk) restart() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.dead = false
}

// Over any number of restarts, with power cuts at any moment, writes that fail,
// writes that are torn and acknowledged writes that are lost, no number comes
// twice. A context whose record is torn is not used again.
// OC-27, OH-111, OH-112
func TestFaultyDiskNeverRepeatsNonce(t *testing.T) {
	runs := 300
	if testing.Short() {
		runs = 50
	}
	total, restarts, corrupt := 0, 0, 0
	for seed := range uint64(runs) {
		synctest.Test(t, func(t *testing.T) {
			d := newDisk()
			sessions := rand.New(rand.NewPCG(seed, 7))
			random := rand.New(rand.NewPCG(seed, 8)) // used under the lock of the disk
			faults := random.Float64() * 0.5
			d.inject(func(map[Fingerprint][]byte) saveFault {
				if random.Float64() >= faults {
					return saved
				}
				if random.IntN(20) == 0 {
					return torn
				}
				return saveFault(random.IntN(int(torn)))
			})
			used := make(map[uint64]bool)
			for range 30 {
				restarts++
				if !session(t, sessions, d, used) {
					corrupt++
					break
				}
			}
			total += len(used)
		})
	}
	t.Logf("%d runs, %d restarts, %d numbers, %d runs ended by a torn record", runs, restarts, total, corrupt)
	require.Positive(t, corrupt)
	require.Positive(t, total)
}

// session is the life of one process; false when its context is lost.
func session(t *testing.T, random *rand.Rand, d *disk, used map[uint64]bool) bool {
	d.restart()
	k := NewKeeper(d)
	defer func() {
		if random.IntN(3) > 0 {
			d.cut(random.IntN(2) == 0)
		}
		_ = k.Close() // of a dead disk: writes nothing
		if random.IntN(3) == 0 {
			d.cut(random.IntN(2) == 0) // right after a clean end
		}
	}()
	c, err := Open(testParameters(DefaultAlgorithm), k)
	if err != nil {
		return !errors.Is(err, ErrCorrupt)
	}
	c.limits.Encryptions = 1 << 50 // this is about numbers
	for range random.IntN(2000) {
		n, err := c.counter.take()
		if err != nil {
			require.ErrorIs(t, err, ErrNotReserved)
			time.Sleep(retryAfter)
			if d.off() {
				break
			}
			continue
		}
		require.False(t, used[n], "number %d came twice", n)
		used[n] = true
		if random.IntN(200) == 0 {
			synctest.Wait() // let the keeper catch up
		}
	}
	return true
}

func fingerprintOf(t testing.TB, p Parameters) Fingerprint {
	t.Helper()
	k, err := p.derive()
	require.NoError(t, err)
	return k.fingerprint(p.Algorithm)
}

// OC-3, OH-113, OH-114
func TestKeeperLifecycle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		p := testParameters(DefaultAlgorithm)
		k := NewKeeper(d)
		c, err := Open(p, k)
		require.NoError(t, err)
		require.True(t, c.valid, "a context that never was in use has an empty window")

		renamed := p
		renamed.RecipientID = []byte{9}
		_, err = Open(renamed, k)
		require.ErrorIs(t, err, ErrInUse, "the same Sender Key")

		_, _, err = c.ProtectRequest(getRequest(), DefaultClasses)
		require.NoError(t, err)
		require.NoError(t, c.Close())
		require.NoError(t, c.Close())
		_, _, err = c.ProtectRequest(getRequest(), DefaultClasses)
		require.ErrorIs(t, err, ErrClosed)

		again, err := Open(p, k)
		require.NoError(t, err)
		require.False(t, again.valid, "the window is lost")
		require.EqualValues(t, 1, again.Usage().Sequence, "a clean end gives back what was reserved")
		require.NoError(t, c.Close(), "the old one has no say any more")
		_, _, err = again.ProtectRequest(getRequest(), DefaultClasses)
		require.NoError(t, err)

		require.NoError(t, k.Close())
		require.NoError(t, k.Close())
		_, _, err = again.ProtectRequest(getRequest(), DefaultClasses)
		require.ErrorIs(t, err, ErrClosed)
		_, err = Open(p, k)
		require.ErrorIs(t, err, ErrClosed)
	})
}

// While the disk fails, a context goes on with what it has, then waits, and
// nothing is used before it is stored.
// OH-112
func TestKeeperDiskFails(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		k := NewKeeper(d)
		defer func() { require.NoError(t, k.Close()) }()
		c, err := Open(testParameters(DefaultAlgorithm), k)
		require.NoError(t, err)
		d.inject(func(map[Fingerprint][]byte) saveFault { return failed })
		for range sequenceBlock {
			_, _, err := c.ProtectRequest(getRequest(), DefaultClasses)
			require.NoError(t, err)
		}
		synctest.Wait()
		require.ErrorIs(t, k.Err(), errDisk)
		_, _, err = c.ProtectRequest(getRequest(), DefaultClasses)
		require.ErrorIs(t, err, ErrNotReserved)

		d.inject(nil)
		time.Sleep(retryAfter)
		synctest.Wait()
		require.NoError(t, k.Err())
		protected, _, err := c.ProtectRequest(getRequest(), DefaultClasses)
		require.NoError(t, err)
		require.Equal(t, partialIV(sequenceBlock), partialIVOf(t, protected))
	})
}

// Nobody waits for a disk that keeps up: the next block is there before the last
// number of this one.
func TestKeeperReservesAhead(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		k := NewKeeper(d)
		defer func() { require.NoError(t, k.Close()) }()
		c, err := Open(testParameters(DefaultAlgorithm), k)
		require.NoError(t, err)
		for i := range 10 * sequenceBlock {
			_, err := c.counter.take()
			require.NoError(t, err, "%d", i)
			if i%(sequenceBlock/2) == 0 {
				synctest.Wait()
			}
		}
		require.InDelta(t, 12, d.saves, 1.5, "one write for each block")
	})
}

// Failed decryptions survive a crash, rounded up.
// OC-50, OC-51
func TestKeeperFailures(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := newDisk()
		p := testParameters(DefaultAlgorithm)
		client := ephemeral(t, peerOf(p), 0)
		junk, _, err := client.ProtectRequest(getRequest(), DefaultClasses)
		require.NoError(t, err)
		junk.Payload[0] ^= 1
		forge := func(server *Context, times int) {
			for range times {
				_, _, err := unprotectRequest(server, junk, DefaultClasses)
				requireRefused(t, Forged, err)
				synctest.Wait()
			}
		}
		k := NewKeeper(d)
		server, err := Open(p, k)
		require.NoError(t, err)
		forge(server, 100)
		d.cut(false)
		require.Error(t, k.Close())

		d.restart()
		k = NewKeeper(d)
		server, err = Open(p, k)
		require.NoError(t, err)
		got := server.Usage().Failures
		require.GreaterOrEqual(t, got, uint64(100))
		require.LessOrEqual(t, got, uint64(100+failureBlock))
		forge(server, 1)
		require.NoError(t, k.Close())

		k = NewKeeper(d)
		server, err = Open(p, k)
		require.NoError(t, err)
		require.Equal(t, got+1, server.Usage().Failures, "exact after a clean end")
		require.NoError(t, k.Close())
	})
}

// OH-112: a record that cannot be read ends the context.
func TestRecordCorrupt(t *testing.T) {
	f := Fingerprint{1, 2, 3}
	record := Mark{Sequence: 12345, Failures: 7}.record(f)
	got, err := parseRecord(f, record)
	require.NoError(t, err)
	require.Equal(t, Mark{Sequence: 12345, Failures: 7}, got)
	exact := Mark{Sequence: 12345, Failures: 7, Exact: true}
	got, err = parseRecord(f, exact.record(f))
	require.NoError(t, err)
	require.Equal(t, exact, got)
	flips(record, func(bit int, changed []byte) {
		_, err := parseRecord(f, changed)
		require.ErrorIs(t, err, ErrCorrupt, "bit %d", bit)
	})
	_, err = parseRecord(Fingerprint{1, 2, 4}, record)
	require.ErrorIs(t, err, ErrCorrupt)
	_, err = parseRecord(f, record[:10])
	require.ErrorIs(t, err, ErrCorrupt)

	d := newDisk()
	k := NewKeeper(d)
	defer k.Close()
	p := testParameters(DefaultAlgorithm)
	d.safe[fingerprintOf(t, p)] = record
	_, err = Open(p, k)
	require.ErrorIs(t, err, ErrCorrupt)
	require.Zero(t, d.saves, "and is not written over")
}

// A whole group answers at once: nobody waits for the disk, as long as it is no more
// than half a block (OH-112).
func TestKeeperBurst(t *testing.T) {
	k := NewKeeper(&stuckStore{release: make(chan struct{})})
	c, _, err := k.open(Fingerprint{1})
	require.NoError(t, err)
	for n := range sequenceBlock / 2 {
		_, err := c.take()
		require.NoError(t, err, "number %d", n)
	}
	close(k.store.(*stuckStore).release)
	require.NoError(t, k.Close())
}

// stuckStore takes the marks of a context that is opened, and the next only when it
// is released.
type stuckStore struct {
	saves   atomic.Int32
	release chan struct{}
}

func (*stuckStore) Load(Fingerprint) (Mark, bool, error) { return Mark{}, false, nil }

func (s *stuckStore) Save(map[Fingerprint]Mark) error {
	if s.saves.Add(1) > 2 {
		<-s.release
	}
	return nil
}
