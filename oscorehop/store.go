package oscorehop

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
)

// Mark is what must survive a crash of one context.
type Mark struct {
	// Sequence is the first Sender Sequence Number that is not reserved: all
	// numbers below it may have been used (OH-112).
	Sequence uint64
	// Failures is an upper bound of the failed decryptions (OC-50).
	Failures uint64
	// Exact says that the context was closed in an orderly way: no number from
	// Sequence on was used.
	Exact bool
}

// Store keeps marks on a disk. A Keeper calls it from one goroutine at a time.
type Store interface {
	// Load returns the mark of a context; ok is false when there never was one.
	Load(Fingerprint) (m Mark, ok bool, err error)
	// Save replaces marks, all of them or none, and returns when they are on the
	// disk. After an error nobody knows whether they are.
	Save(map[Fingerprint]Mark) error
}

// ErrCorrupt means that a stored mark cannot be read. Its context must not be
// used again, because its sequence numbers are lost (OH-112).
var ErrCorrupt = errors.New("OSCORE: stored sequence number is corrupt")

const (
	recordVersion = 1
	recordExact   = 2 // the same of an exact mark
	recordLen     = 1 + 8 + 8 + 8
)

// record is the stored form of a mark. Its checksum covers the fingerprint, so
// that a record which landed in the wrong place is found out as well.
func (m Mark) record(f Fingerprint) []byte {
	buf := make([]byte, 0, recordLen)
	version := byte(recordVersion)
	if m.Exact {
		version = recordExact
	}
	buf = append(buf, version)
	buf = binary.BigEndian.AppendUint64(buf, m.Sequence)
	buf = binary.BigEndian.AppendUint64(buf, m.Failures)
	return append(buf, recordSum(f, buf)...)
}

func parseRecord(f Fingerprint, data []byte) (Mark, error) {
	if len(data) != recordLen || data[0] != recordVersion && data[0] != recordExact {
		return Mark{}, ErrCorrupt
	}
	if !bytes.Equal(recordSum(f, data[:recordLen-8]), data[recordLen-8:]) {
		return Mark{}, ErrCorrupt
	}
	return Mark{
		Sequence: binary.BigEndian.Uint64(data[1:]),
		Failures: binary.BigEndian.Uint64(data[9:]),
		Exact:    data[0] == recordExact,
	}, nil
}

func recordSum(f Fingerprint, body []byte) []byte {
	h := sha256.New()
	h.Write(f[:])
	h.Write(body)
	return h.Sum(nil)[:8]
}
