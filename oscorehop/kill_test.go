package oscorehop

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

const (
	// killChildMark in the environment makes the test binary a process that
	// protects until it is killed. Its store is in its working directory.
	killChildMark  = "OSCOREHOP_KILL_CHILD"
	killChildStore = "marks.db"
)

// killChild protects in a loop and writes every Partial IV to descriptor 3 as
// soon as it was used.
func killChild() {
	out := os.NewFile(3, "partial IVs")
	fail := func(err error) {
		fmt.Fprintln(os.Stderr, "child:", err)
		os.Exit(1)
	}
	store, err := OpenBoltStore(killChildStore)
	if err != nil {
		fail(err)
	}
	c, err := Open(testParameters(DefaultAlgorithm), NewKeeper(store))
	if err != nil {
		fail(err)
	}
	for {
		protected, _, err := c.ProtectRequest(getRequest(), DefaultClasses)
		if errors.Is(err, ErrNotReserved) {
			time.Sleep(50 * time.Microsecond)
			continue
		}
		if err != nil {
			var limit *LimitError
			if errors.As(err, &limit) {
				// So many restarts use the key up; the test starts another store.
				os.Exit(limitReached)
			}
			fail(err)
		}
		option, err := RequestOption(protected)
		if err != nil {
			fail(err)
		}
		var record [8]byte
		binary.BigEndian.PutUint64(record[:], sequenceOf(option.PartialIV))
		if _, err := out.Write(record[:]); err != nil {
			fail(err)
		}
	}
}

const limitReached = 7 // exit status of a child

// A process that is killed at any moment never uses a nonce again.
// OC-27, OH-112
func TestKilledProcessNeverRepeatsNonce(t *testing.T) {
	kills := 200
	if testing.Short() {
		kills = 20
	}
	dir := t.TempDir()
	var used map[uint64]bool
	store, stores := "", 0
	next := func() {
		stores++
		store = filepath.Join(dir, fmt.Sprintf("store-%d", stores))
		require.NoError(t, os.Mkdir(store, 0o700))
		used = make(map[uint64]bool)
	}
	next()
	total, silent := 0, 0
	for round := range kills {
		numbers, exhausted := killOnce(t, store, time.Duration(rand.Int64N(int64(25*time.Millisecond))))
		for _, n := range numbers {
			require.False(t, used[n], "round %d: nonce %d used twice", round, n)
			used[n] = true
		}
		total += len(numbers)
		if len(numbers) == 0 {
			silent++
		}
		if exhausted {
			next()
		}
	}
	t.Logf("%d kills, %d messages, %d kills before the first message, %d stores", kills, total, silent, stores)
	require.Greater(t, total, kills, "children must get to work")
}

// killOnce runs a child and kills it: half of the time after a message, so that it
// dies at work, half of the time whenever it is, opening the store included.
func killOnce(t *testing.T, dir string, after time.Duration) (numbers []uint64, exhausted bool) {
	t.Helper()
	read, write, err := os.Pipe()
	require.NoError(t, err)
	defer read.Close()
	child := exec.Command(os.Args[0])
	child.Env = append(os.Environ(), killChildMark+"=1")
	child.Dir = dir
	child.ExtraFiles = []*os.File{write}
	child.Stderr = os.Stderr
	require.NoError(t, child.Start())
	require.NoError(t, write.Close())

	var first [8]byte
	n := 0
	if rand.IntN(2) == 0 {
		n, err = io.ReadFull(read, first[:])
		if err != nil {
			require.ErrorIs(t, err, io.EOF)
		}
	}
	timer := time.AfterFunc(after, func() { _ = child.Process.Kill() })
	data, err := io.ReadAll(read)
	require.NoError(t, err)
	state := child.Wait()
	timer.Stop()
	var exit *exec.ExitError
	require.ErrorAs(t, state, &exit)
	if code := exit.ExitCode(); code != -1 { // not killed
		require.Equal(t, limitReached, code)
		exhausted = true
	}
	data = append(first[:n], data...)
	for ; len(data) >= 8; data = data[8:] {
		numbers = append(numbers, binary.BigEndian.Uint64(data))
	}
	return numbers, exhausted
}
