package oscorehop

import (
	"bytes"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"time"
)

// maxFile bounds the size of a context file in bytes.
const maxFile = 16 << 10

// ErrPermissions means that others than its owner can read or write a context
// file, or that it belongs to somebody else.
var ErrPermissions = errors.New("context file is not private")

// document is a context file: one JSON object, byte strings in hexadecimal.
type document struct {
	Algorithm    string     `json:"algorithm"`
	HKDF         string     `json:"hkdf,omitempty"`
	MasterSecret hexString  `json:"master_secret"`
	MasterSalt   hexString  `json:"master_salt,omitempty"`
	IDContext    *hexString `json:"id_context,omitempty"` // absent is not empty (OC-1)
	SenderID     *hexString `json:"sender_id"`
	RecipientID  *hexString `json:"recipient_id"`
	ReplayWindow int        `json:"replay_window,omitempty"`
	Created      *time.Time `json:"created,omitempty"`
	Expires      *time.Time `json:"expires,omitempty"`
}

type hexString []byte

// MarshalText implements encoding.TextMarshaler.
func (h hexString) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h), nil }

// UnmarshalText must not repeat the text in its error: it may be a secret.
func (h *hexString) UnmarshalText(text []byte) error {
	value, err := hex.AppendDecode([]byte{}, text)
	if err != nil {
		return errors.New("a byte string is not in hexadecimal")
	}
	*h = value
	return nil
}

// ReadFile reads a context file. It refuses a file that is not a regular one, or
// that anybody but its owner, who must be the user of this process or root, has
// access to (ErrPermissions).
func ReadFile(path string) (Parameters, error) {
	f, err := os.Open(path)
	if err != nil {
		return Parameters{}, err
	}
	defer f.Close()
	info, err := f.Stat() // of what was opened, whatever happens to the name
	if err != nil {
		return Parameters{}, err
	}
	if err := checkPrivate(path, info); err != nil {
		return Parameters{}, err
	}
	data, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err != nil {
		return Parameters{}, err
	}
	p, err := ParseFile(data)
	if err != nil {
		return Parameters{}, fmt.Errorf("%s: %w", path, err)
	}
	return p, nil
}

func checkPrivate(path string, info os.FileInfo) error {
	if !info.Mode().IsRegular() {
		return fmt.Errorf("%s is not a regular file", path)
	}
	if mode := info.Mode().Perm(); mode&0o077 != 0 {
		return fmt.Errorf("%w: %s has mode %04o, so that others than its owner have access to the keys; run: chmod 600 %s",
			ErrPermissions, path, mode, path)
	}
	if !ownedByUs(info) {
		return fmt.Errorf("%w: %s belongs neither to the user who runs this process nor to root", ErrPermissions, path)
	}
	return nil
}

// ParseFile reads the content of a context file. It is strict: unknown keys and
// whatever Validate refuses are errors. No error repeats a byte of a secret.
func ParseFile(data []byte) (Parameters, error) {
	if len(data) > maxFile {
		return Parameters{}, fmt.Errorf("more than %d bytes", maxFile)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	decoder.DisallowUnknownFields()
	var d document
	if err := decoder.Decode(&d); err != nil {
		return Parameters{}, describe(err)
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return Parameters{}, errors.New("something follows the context")
	}
	if d.SenderID == nil || d.RecipientID == nil { // empty IDs are written out
		return Parameters{}, errors.New("sender_id or recipient_id is missing")
	}
	p := Parameters{
		MasterSecret: d.MasterSecret, MasterSalt: d.MasterSalt,
		SenderID: *d.SenderID, RecipientID: *d.RecipientID,
		ReplayWindow: d.ReplayWindow,
	}
	var err error
	if p.Algorithm, err = ParseAlgorithm(d.Algorithm); err != nil {
		return Parameters{}, err
	}
	if d.HKDF != "" {
		if p.Hash, err = ParseHash(d.HKDF); err != nil {
			return Parameters{}, err
		}
	}
	if d.IDContext != nil {
		p.IDContext = *d.IDContext
	}
	if d.Created != nil {
		p.Created = *d.Created
	}
	if d.Expires != nil {
		p.Expires = *d.Expires
	}
	if err := p.Validate(); err != nil {
		return Parameters{}, err
	}
	return p, nil
}

// describe keeps what is useful of an error of the JSON decoder.
func describe(err error) error {
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax):
		return fmt.Errorf("not JSON at byte %d", syntax.Offset)
	case errors.As(err, &kind) && kind.Field == "":
		return errors.New("not a JSON object")
	case errors.As(err, &kind):
		return fmt.Errorf("%s: wrong type at byte %d", kind.Field, kind.Offset)
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("not a whole JSON object")
	}
	return err
}

// MarshalFile returns the content of the context file.
func (p Parameters) MarshalFile() ([]byte, error) {
	if err := p.Validate(); err != nil {
		return nil, err
	}
	sender, recipient := hexString(p.SenderID), hexString(p.RecipientID)
	d := document{
		Algorithm: p.Algorithm.String(), HKDF: p.Hash.String(),
		MasterSecret: p.MasterSecret, MasterSalt: p.MasterSalt,
		SenderID: &sender, RecipientID: &recipient, ReplayWindow: p.ReplayWindow,
	}
	if p.IDContext != nil {
		id := hexString(p.IDContext)
		d.IDContext = &id
	}
	if !p.Created.IsZero() {
		d.Created = &p.Created
	}
	if !p.Expires.IsZero() {
		d.Expires = &p.Expires
	}
	data, err := json.MarshalIndent(d, "", "  ")
	if err != nil {
		return nil, err
	}
	return append(data, '\n'), nil
}

// WriteFile writes a new context file for its owner only, and returns when it is
// on the disk. It never replaces a file: two contexts under one name are easily
// taken for one.
func (p Parameters) WriteFile(path string) error {
	data, err := p.MarshalFile()
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return errors.Join(err, os.Remove(path))
	}
	return syncDir(filepath.Dir(path))
}

// PairOptions say what a new pair of contexts is like. The zero value is a good
// choice for a client and its proxy.
type PairOptions struct {
	Algorithm Algorithm // 0: DefaultAlgorithm (OC-54)
	Hash      Hash
	// ClientID and ProxyID are the Sender IDs; nil: four random bytes each, so
	// that the contexts of one proxy hardly ever collide (OH-20).
	ClientID, ProxyID []byte
	IDContext         []byte        // nil: none
	Lifetime          time.Duration // 0: no end
}

const (
	newSecretLen = 32 // bytes
	newSaltLen   = 8
	newIDLen     = 4
)

// NewPair makes new keys and returns both ends of their context (OC-3).
func NewPair(o PairOptions) (client, proxy Parameters, err error) {
	client = Parameters{
		Algorithm: o.Algorithm, Hash: o.Hash,
		MasterSecret: random(newSecretLen), MasterSalt: random(newSaltLen),
		IDContext: o.IDContext, SenderID: o.ClientID, RecipientID: o.ProxyID,
		Created: time.Now().UTC().Truncate(time.Second),
	}
	if client.Algorithm == 0 {
		client.Algorithm = DefaultAlgorithm
	}
	if client.SenderID == nil {
		client.SenderID = random(newIDLen)
	}
	for client.RecipientID == nil || o.ProxyID == nil && bytes.Equal(client.RecipientID, client.SenderID) {
		client.RecipientID = random(newIDLen)
	}
	if o.Lifetime > 0 {
		client.Expires = client.Created.Add(o.Lifetime)
	}
	if err := client.Validate(); err != nil {
		return Parameters{}, Parameters{}, err
	}
	client = client.clone()
	proxy = client.clone()
	proxy.SenderID, proxy.RecipientID = proxy.RecipientID, proxy.SenderID
	return client, proxy, nil
}
