package oscorehop

import (
	"fmt"
	"sync"
	"time"
)

// How much is reserved at a time. An orderly end costs nothing, a crash at most
// twice sequenceBlock plus the margin in sequence numbers, and as many of the
// encryptions that limit_q permits, because these are estimated from the sequence
// number (OC-52).
const (
	// sequenceBlock is K of RFC 8613 Appendix B.1.1. The next block is reserved
	// when half of one is left, so that nobody waits for the disk: half a block is
	// also how many responses of a large group can come at once, between two syncs.
	sequenceBlock = 1024
	// sequenceMargin is F: with it, a reservation that the disk acknowledged and
	// then lost does not repeat a nonce (OH-112).
	sequenceMargin = sequenceBlock
	// failureBlock is the same for failed decryptions, which have no margin: an
	// attacker would gain a few more attempts, not a nonce.
	failureBlock = 64
	// retryAfter is the pause after a failed Save.
	retryAfter = 250 * time.Millisecond
)

// Keeper reserves sequence numbers of all contexts of one Store ahead of their
// use. Safe for concurrent use. Its goroutine ends with Close.
type Keeper struct {
	store Store
	wake  chan struct{} // holds one element while a counter wants more
	stop  chan struct{}
	done  sync.WaitGroup

	// saving is held while the store is used, so that marks reach it in the order
	// in which they were made. It is never taken with mu or a counter's lock held.
	saving sync.Mutex

	mu       sync.Mutex
	closed   bool
	counters map[Fingerprint]*counter
	saveErr  error // of the last Save, nil when it went well
}

// NewKeeper starts a Keeper. The store must not be used by anybody else and is
// not closed with the Keeper.
func NewKeeper(store Store) *Keeper {
	k := &Keeper{
		store:    store,
		wake:     make(chan struct{}, 1),
		stop:     make(chan struct{}),
		counters: make(map[Fingerprint]*counter),
	}
	k.done.Go(k.run)
	return k
}

// Err returns why the last reservation failed, or nil. While it fails, contexts
// use up what they have and then return ErrNotReserved.
func (k *Keeper) Err() error {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.saveErr
}

// Close closes all contexts, stores exactly what they have used and stops the
// goroutine. It blocks on the disk.
func (k *Keeper) Close() error {
	k.mu.Lock()
	if k.closed {
		k.mu.Unlock()
		return nil
	}
	k.closed = true
	k.mu.Unlock()
	close(k.stop)
	k.done.Wait()

	k.saving.Lock()
	defer k.saving.Unlock()
	k.mu.Lock()
	marks := make(map[Fingerprint]Mark, len(k.counters))
	for f, c := range k.counters {
		marks[f] = c.close()
	}
	clear(k.counters)
	k.mu.Unlock()
	if len(marks) == 0 {
		return nil
	}
	return k.store.Save(marks)
}

// open returns the counter of a context (OH-112). fresh says that the context was
// never used before, so that its replay window is known to be empty.
func (k *Keeper) open(f Fingerprint) (c *counter, fresh bool, err error) {
	k.saving.Lock()
	defer k.saving.Unlock()
	k.mu.Lock()
	closed, other := k.closed, k.counters[f]
	k.mu.Unlock()
	switch {
	case closed:
		return nil, false, ErrClosed
	case other != nil:
		return nil, false, ErrInUse // OC-3
	}

	mark, known, err := k.store.Load(f)
	if err != nil {
		return nil, false, fmt.Errorf("sequence number store: %w", err)
	}
	c = &counter{keeper: k, fingerprint: f}
	if known {
		c.next, c.failures = mark.Sequence, mark.Failures
		if !mark.Exact {
			c.next += sequenceMargin
		}
	}
	// Two writes: if the disk loses the second after it was acknowledged, the
	// first still tells the next start that numbers from there on were in use, and
	// the margin covers them; it is not exact.
	for _, more := range [...]uint64{0, sequenceBlock} {
		c.saved = Mark{Sequence: c.next + more, Failures: c.failures + failureBlock}
		if err := k.store.Save(map[Fingerprint]Mark{f: c.saved}); err != nil {
			return nil, false, fmt.Errorf("sequence number store: %w", err)
		}
	}

	k.mu.Lock()
	defer k.mu.Unlock()
	if k.closed {
		return nil, false, ErrClosed
	}
	k.counters[f] = c
	return c, !known, nil
}

// release stores what a counter has used and forgets it.
func (k *Keeper) release(c *counter) error {
	k.saving.Lock()
	defer k.saving.Unlock()
	k.mu.Lock()
	mine := k.counters[c.fingerprint] == c
	if mine {
		delete(k.counters, c.fingerprint)
	}
	k.mu.Unlock()
	mark := c.close()
	if !mine {
		return nil
	}
	return k.store.Save(map[Fingerprint]Mark{c.fingerprint: mark})
}

func (k *Keeper) run() {
	for {
		select {
		case <-k.stop:
			return
		case <-k.wake:
		}
		for k.reserve() != nil {
			select {
			case <-k.stop:
				return
			case <-time.After(retryAfter):
			}
		}
	}
}

// reserve gives every counter that runs low a further block, all in one Save.
func (k *Keeper) reserve() error {
	k.saving.Lock()
	defer k.saving.Unlock()
	k.mu.Lock()
	marks := make(map[Fingerprint]Mark)
	low := make(map[Fingerprint]*counter)
	for f, c := range k.counters {
		if mark, ok := c.wants(); ok {
			marks[f], low[f] = mark, c
		}
	}
	k.mu.Unlock()
	if len(marks) == 0 {
		return nil
	}
	err := k.store.Save(marks)
	if err == nil {
		for f, c := range low {
			c.grant(marks[f])
		}
	}
	k.mu.Lock()
	k.saveErr = err
	k.mu.Unlock()
	return err
}

// counter hands out the Sender Sequence Numbers of one context, and counts its
// failed decryptions. Safe for concurrent use; it never blocks on the disk.
type counter struct {
	keeper      *Keeper // nil: nothing is stored
	fingerprint Fingerprint

	mu       sync.Mutex
	closed   bool
	next     uint64 // the number to hand out next
	failures uint64
	saved    Mark // what is on the disk, or was tried to be written
}

// take returns a number that was never returned before, not by another process
// either (OH-111). Errors are ErrNotReserved, ErrClosed or a *LimitError.
func (c *counter) take() (uint64, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.closed:
		return 0, ErrClosed
	case c.next > maxSequence:
		return 0, &LimitError{Limit: Sequence}
	case c.keeper == nil:
	case c.next >= c.saved.Sequence:
		c.kick()
		return 0, ErrNotReserved
	case c.saved.Sequence-c.next <= sequenceBlock/2:
		c.kick()
	}
	n := c.next
	c.next++
	return n, nil
}

// used returns the number of sequence numbers below the next one, and the failed
// decryptions.
func (c *counter) used() (sequence, failures uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.next, c.failures
}

// alive returns ErrClosed once the counter is closed.
func (c *counter) alive() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return ErrClosed
	}
	return nil
}

// fail counts a failed decryption (OC-51).
func (c *counter) fail() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.failures++
	if c.keeper != nil && c.failures+failureBlock/2 > c.saved.Failures {
		c.kick()
	}
}

func (c *counter) kick() {
	select {
	case c.keeper.wake <- struct{}{}:
	default: // the keeper has yet to look
	}
}

// wants returns the mark that the counter needs on the disk.
func (c *counter) wants() (Mark, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	mark := c.saved
	if c.next+sequenceBlock/2 >= mark.Sequence {
		mark.Sequence = max(mark.Sequence, c.next) + sequenceBlock
	}
	if c.failures+failureBlock/2 > mark.Failures {
		mark.Failures = c.failures + failureBlock
	}
	return mark, mark != c.saved && !c.closed
}

// grant says that a mark is on the disk.
func (c *counter) grant(mark Mark) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.saved = mark
}

// close ends the counter and returns what it has used; no number is handed out
// after it.
func (c *counter) close() Mark {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	return Mark{Sequence: c.next, Failures: c.failures, Exact: true}
}
