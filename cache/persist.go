package cache

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/fxamacker/cbor/v2"
	"github.com/google/renameio/v2"
	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/wire"
)

// persistHeader begins a file of entries. Its number changes with the form of
// keys and records. A SHA-256 of what is before it ends the file.
const persistHeader = "coapproxy cache 2\n"

// record is an entry in a file.
type record struct {
	_        struct{} `cbor:",toarray"`
	Key      []byte
	URI      int
	Request  int
	Server   string
	Code     uint8
	Options  []recordOption
	Payload  []byte
	Valid    bool  // the ETag validates
	Received int64 // Unix milliseconds
	MaxAge   uint32
	HopLimit uint8
	Announce []byte
}

type recordOption struct {
	_     struct{} `cbor:",toarray"`
	ID    uint16
	Value []byte
}

// DamagedError says that a file of entries could not be used and was moved
// aside.
type DamagedError struct {
	Path, MovedTo string
	Err           error
}

func (e *DamagedError) Error() string {
	return fmt.Sprintf("cache file %s is damaged, moved to %s: %v", e.Path, e.MovedTo, e.Err)
}

// Unwrap returns what is wrong with the file.
func (e *DamagedError) Unwrap() error { return e.Err }

// Save writes the fresh public entries to a file that only its owner can read, or
// who else could read the one it replaces, and returns how many there were. Private
// entries (FP-48) do not go to disk. The file takes its name when it is whole.
func (c *Cache) Save(path string) (int, error) {
	now := time.Now()
	c.mu.Lock()
	var keep []*entry
	for _, e := range c.store.entries.Values() {
		if e.fresh(now) && !e.private {
			keep = append(keep, e)
		}
	}
	c.mu.Unlock()
	data := bytes.NewBufferString(persistHeader)
	enc := cbor.NewEncoder(data)
	for _, e := range keep { // oldest use first, so that loading keeps the order
		if err := enc.Encode(e.record()); err != nil {
			return 0, fmt.Errorf("encode cache entry: %w", err)
		}
	}
	digest := sha256.Sum256(data.Bytes())
	data.Write(digest[:])
	err := renameio.WriteFile(path, data.Bytes(), 0o600, renameio.WithTempDir(filepath.Dir(path)))
	if err != nil {
		return 0, fmt.Errorf("save cache: %w", err)
	}
	return len(keep), nil
}

// CanSave tries whether Save will find a place for its file. It changes nothing.
func CanSave(path string) error {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		return fmt.Errorf("%s is no file", path)
	}
	f, err := renameio.NewPendingFile(path, renameio.WithTempDir(filepath.Dir(path)))
	if err != nil {
		return err
	}
	return f.Cleanup()
}

func (e *entry) record() record {
	r := record{Key: e.key, URI: int(e.uri), Request: int(e.request), Server: e.server.String(), Code: uint8(e.code), Payload: e.payload,
		Valid: e.etag != nil, Received: e.received.UnixMilli(), MaxAge: e.maxAge, HopLimit: e.hopLimit, Announce: e.announce}
	for _, o := range e.options {
		r.Options = append(r.Options, recordOption{ID: uint16(o.ID), Value: o.Value})
	}
	return r
}

// Load stores the entries of a file that are still fresh, and returns how many
// there were. A missing file has none. A file that cannot be used is moved aside
// and reported with a *DamagedError: the cache is empty then, and works.
func (c *Cache) Load(path string) (int, error) {
	f, err := os.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("load cache: %w", err)
	}
	limit := 2*int64(c.config.MaxBytes) + 1<<20
	data, err := io.ReadAll(io.LimitReader(f, limit))
	_ = f.Close()
	if err != nil {
		return 0, fmt.Errorf("load cache: %w", err)
	}
	entries, err := c.read(data, time.Now())
	if err != nil {
		aside := path + ".damaged"
		if e := os.Rename(path, aside); e != nil {
			return 0, fmt.Errorf("load cache: %w", errors.Join(err, e))
		}
		return 0, &DamagedError{Path: path, MovedTo: aside, Err: err}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, e := range entries {
		c.store.put(e)
	}
	return len(entries), nil
}

var errRecord = errors.New("malformed record")

// read decodes a file.
func (c *Cache) read(data []byte, now time.Time) ([]*entry, error) {
	body, ok := bytes.CutPrefix(data, []byte(persistHeader))
	if !ok || len(body) < sha256.Size {
		return nil, errors.New("not a file of this version")
	}
	end := len(data) - sha256.Size
	if digest := sha256.Sum256(data[:end]); !bytes.Equal(digest[:], data[end:]) {
		return nil, errors.New("checksum does not match")
	}
	dec := cbor.NewDecoder(bytes.NewReader(body[:len(body)-sha256.Size]))
	var all []*entry
	for {
		var r record
		err := dec.Decode(&r)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, fmt.Errorf("decode: %w", err)
		}
		e, err := c.entryOf(&r, now)
		if err != nil {
			return nil, err
		}
		if e != nil {
			all = append(all, e)
		}
	}
}

// entryOf makes an entry of a record; nil if it is not fresh any more, by a clock
// that may have been set meanwhile.
func (c *Cache) entryOf(r *record, now time.Time) (*entry, error) {
	server, err := netip.ParseAddrPort(r.Server)
	if err != nil || !wellFormed(r.Key, r.URI, r.Request) {
		return nil, errRecord
	}
	received := time.UnixMilli(r.Received)
	maxAge := min(r.MaxAge, c.config.MaxAge)
	age := now.Sub(received)
	if age < 0 || age >= time.Duration(maxAge)*time.Second || len(r.Payload) > c.config.MaxBody || len(r.Key) > 2*c.config.MaxKey {
		return nil, nil
	}
	e := &entry{code: codes.Code(r.Code), payload: r.Payload, received: now.Add(-age), maxAge: maxAge,
		expires: now.Add(time.Duration(maxAge)*time.Second - age), hopLimit: r.HopLimit, announce: r.Announce}
	last := message.OptionID(0)
	for _, o := range r.Options {
		id := message.OptionID(o.ID)
		if id < last {
			return nil, errRecord
		}
		last = id
		e.options = append(e.options, message.Option{ID: id, Value: o.Value})
		if id == wire.ETag && r.Valid && len(o.Value) >= 1 && len(o.Value) <= 8 {
			e.etag = o.Value
		}
	}
	c.store.complete(e, r.Key, r.URI, r.Request, server, nil, "")
	return e, nil
}

// wellFormed reports whether the parts of a key that info reads are in place.
func wellFormed(key []byte, uri, request int) bool {
	if uri < 1 || request < uri || len(key) < request+itemHeader {
		return false
	}
	for items := key[1:uri]; len(items) > 0; {
		if len(items) < itemHeader {
			return false
		}
		n := int(items[1])<<16 | int(items[2])<<8 | int(items[3])
		if len(items) < itemHeader+n {
			return false
		}
		items = items[itemHeader+n:]
	}
	_, server, ok := strings.Cut(string(key[request+itemHeader:]), "\x00")
	if !ok || len(server) < 16+2 {
		return false
	}
	return strings.Count(server[16+2:], "\x00") >= 2
}
