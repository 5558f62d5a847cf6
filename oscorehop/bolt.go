package oscorehop

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"time"

	"go.etcd.io/bbolt"
	bolterrors "go.etcd.io/bbolt/errors"
)

// BoltStore is a Store in one bbolt file, which one process at a time can open.
type BoltStore struct{ db *bbolt.DB }

// The bucket holds a record per fingerprint, and under boltManifest a checksum of
// all the fingerprints: pages of bbolt have none, and a context whose record got
// lost must not be taken for one that was never in use.
const (
	boltBucket   = "oscore marks 1"
	boltManifest = "manifest"
)

// boltLockTimeout is how long OpenBoltStore waits for another process that is
// just ending.
const boltLockTimeout = 2 * time.Second

// OpenBoltStore opens the file at path and creates it when there is none, for its
// owner only. It blocks on the disk. Removing the file, or restoring an older one,
// makes every context in it unusable for ever: its keys would meet their old
// nonces (OC-3). That is why a file that is there but empty is an error.
func OpenBoltStore(path string) (*BoltStore, error) {
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		if err := createBolt(path); err != nil {
			return nil, fmt.Errorf("%s: %w", path, err)
		}
	}
	db, err := openBolt(path)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return &BoltStore{db: db}, nil
}

// createBolt makes the file under another name first, so that it is complete when
// it appears; that it has appeared is on the disk when createBolt returns.
func createBolt(path string) error {
	draft := path + ".new"
	if err := os.Remove(draft); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	db, err := bbolt.Open(draft, 0o600, &bbolt.Options{Timeout: boltLockTimeout})
	if err != nil {
		return err
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		bucket, err := tx.CreateBucket([]byte(boltBucket))
		if err != nil {
			return err
		}
		return bucket.Put([]byte(boltManifest), manifest(bucket))
	})
	if err := errors.Join(err, db.Close()); err != nil {
		return err
	}
	if err := os.Link(draft, path); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := os.Remove(draft); err != nil {
		return err
	}
	return syncDir(filepath.Dir(path))
}

// openBolt opens a file that exists.
func openBolt(path string) (db *bbolt.DB, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer recoverCorrupt(&err)
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if info.Size() == 0 {
		return nil, ErrCorrupt // bbolt would begin a new one
	}
	db, err = bbolt.Open(path, 0o600, &bbolt.Options{Timeout: boltLockTimeout})
	if errors.Is(err, bolterrors.ErrTimeout) {
		return nil, errors.New("in use by another process") // OH-112
	}
	if err != nil {
		return nil, err
	}
	err = db.View(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket([]byte(boltBucket))
		if bucket == nil || !bytes.Equal(bucket.Get([]byte(boltManifest)), manifest(bucket)) {
			return ErrCorrupt
		}
		return nil
	})
	if err != nil {
		return nil, errors.Join(err, db.Close())
	}
	return db, nil
}

// Load implements Store.
func (s *BoltStore) Load(f Fingerprint) (m Mark, ok bool, err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer recoverCorrupt(&err)
	err = s.db.View(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket([]byte(boltBucket))
		if bucket == nil {
			return ErrCorrupt
		}
		// Not Get, which says "not there" of a record that is damaged in one way.
		key, data := bucket.Cursor().Seek(f[:])
		if !bytes.Equal(key, f[:]) {
			return nil
		}
		m, err = parseRecord(f, data)
		ok = err == nil
		return err
	})
	return m, ok, err
}

// Save implements Store: one transaction, two syncs.
func (s *BoltStore) Save(marks map[Fingerprint]Mark) (err error) {
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer recoverCorrupt(&err)
	return s.db.Update(func(tx *bbolt.Tx) error {
		bucket := tx.Bucket([]byte(boltBucket))
		if bucket == nil {
			return ErrCorrupt
		}
		grown := false
		for f, m := range marks {
			grown = grown || bucket.Get(f[:]) == nil
			if err := bucket.Put(f[:], m.record(f)); err != nil {
				return err
			}
		}
		if !grown {
			return nil
		}
		return bucket.Put([]byte(boltManifest), manifest(bucket))
	})
}

// manifest is the checksum of all fingerprints in a bucket.
func manifest(bucket *bbolt.Bucket) []byte {
	h := sha256.New()
	cursor := bucket.Cursor()
	for key, _ := cursor.First(); key != nil; key, _ = cursor.Next() {
		if len(key) == len(Fingerprint{}) {
			h.Write(key)
		}
	}
	return h.Sum(nil)
}

// Close closes the file. Every Keeper of the store must be closed before.
func (s *BoltStore) Close() error { return s.db.Close() }

// recoverCorrupt turns a panic into an error: bbolt asserts what it reads, and reads
// it from mapped memory, where a page beyond the end of a damaged file is a fault.
// Neither must take the process with it.
func recoverCorrupt(err *error) {
	if v := recover(); v != nil {
		*err = fmt.Errorf("%w: %v", ErrCorrupt, v)
	}
}

func syncDir(path string) error {
	dir, err := os.Open(path)
	if err != nil {
		return err
	}
	return errors.Join(dir.Sync(), dir.Close())
}
