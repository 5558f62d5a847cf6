package oscorehop

import (
	"bytes"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"time"
)

// Hash is the hash function of the HKDF (RFC 8613 §3.2). The zero value is the
// default, SHA-256.
type Hash uint8

// The hash functions that are implemented (OC-4).
const (
	SHA256 Hash = iota
	SHA512
)

// String returns the name used in context files.
func (h Hash) String() string {
	switch h {
	case SHA256:
		return "SHA-256"
	case SHA512:
		return "SHA-512"
	}
	return fmt.Sprintf("hash %d", uint8(h))
}

// ParseHash returns the hash with the name used in context files.
func ParseHash(name string) (Hash, error) {
	switch name {
	case "SHA-256":
		return SHA256, nil
	case "SHA-512":
		return SHA512, nil
	}
	return 0, fmt.Errorf("%w: hash %q", ErrAlgorithm, name)
}

// Parameters are what two endpoints share to have a Security Context (OC-1). The
// quartet of Master Secret, Master Salt, ID Context and Sender ID must be used
// for one context only, in one process only (OC-3).
type Parameters struct {
	Algorithm    Algorithm
	Hash         Hash
	MasterSecret []byte
	MasterSalt   []byte // may be empty
	// IDContext is nil when there is none, which is not the same as an empty one.
	IDContext   []byte
	SenderID    []byte
	RecipientID []byte
	// ReplayWindow is how many Partial IVs below the highest one are still
	// accepted, 1 to 1024; 0 means 32 (OC-25).
	ReplayWindow int
	// Created and Expires are the beginning and the end of the time in which the
	// keys may be used; a zero Expires means no end (OC-51).
	Created, Expires time.Time
}

// DefaultReplayWindow is the width of the replay window (OC-25, OH-110).
const DefaultReplayWindow = 32

const (
	maxReplayWindow = 1024
	minSecret       = 16  // bytes
	maxSecret       = 255 // bytes, also of the salt
	maxIDContext    = 255 // its length is one byte in the option (OC-14)
)

// Validate reports why no context can be derived.
func (p Parameters) Validate() error {
	if _, ok := p.Algorithm.parameters(); !ok {
		return fmt.Errorf("%w: AEAD %v", ErrAlgorithm, p.Algorithm)
	}
	if p.Hash > SHA512 {
		return fmt.Errorf("%w: %v", ErrAlgorithm, p.Hash)
	}
	longest := p.Algorithm.MaxID()
	switch {
	case len(p.MasterSecret) < minSecret || len(p.MasterSecret) > maxSecret:
		return fmt.Errorf("master secret has %d bytes, not %d to %d", len(p.MasterSecret), minSecret, maxSecret)
	case len(p.MasterSalt) > maxSecret:
		return fmt.Errorf("master salt has %d bytes, more than %d", len(p.MasterSalt), maxSecret)
	case len(p.SenderID) > longest || len(p.RecipientID) > longest: // OC-3
		return fmt.Errorf("sender or recipient ID is longer than the %d bytes that %v permits", longest, p.Algorithm)
	case bytes.Equal(p.SenderID, p.RecipientID):
		return errors.New("sender ID and recipient ID are the same")
	case len(p.IDContext) > maxIDContext:
		return fmt.Errorf("ID context has %d bytes, more than %d", len(p.IDContext), maxIDContext)
	case p.ReplayWindow < 0 || p.ReplayWindow > maxReplayWindow:
		return fmt.Errorf("replay window of %d is not within 0 to %d", p.ReplayWindow, maxReplayWindow)
	}
	return nil
}

// clone returns a copy that owns its bytes.
func (p Parameters) clone() Parameters {
	p.MasterSecret = bytes.Clone(p.MasterSecret)
	p.MasterSalt = bytes.Clone(p.MasterSalt)
	p.IDContext = bytes.Clone(p.IDContext)
	p.SenderID = bytes.Clone(p.SenderID)
	p.RecipientID = bytes.Clone(p.RecipientID)
	return p
}

// keys are the secrets derived from Parameters.
type keys struct {
	sender, recipient, iv []byte
}

// derive carries out RFC 8613 §3.2.1 (OC-2).
func (p Parameters) derive() (keys, error) {
	if err := p.Validate(); err != nil {
		return keys{}, err
	}
	spec, _ := p.Algorithm.parameters()
	sender, err := p.expand(p.SenderID, "Key", spec.key)
	if err != nil {
		return keys{}, err
	}
	recipient, err := p.expand(p.RecipientID, "Key", spec.key)
	if err != nil {
		return keys{}, err
	}
	iv, err := p.expand(nil, "IV", spec.nonce)
	if err != nil {
		return keys{}, err
	}
	return keys{sender: sender, recipient: recipient, iv: iv}, nil
}

func (p Parameters) expand(id []byte, kind string, length int) ([]byte, error) {
	newHash := sha256.New
	if p.Hash == SHA512 {
		newHash = sha512.New
	}
	return hkdf.Key(newHash, p.MasterSecret, p.MasterSalt, string(p.info(id, kind, length)), length)
}

// info is the CBOR array that the HKDF is given (OC-2).
func (p Parameters) info(id []byte, kind string, length int) []byte {
	buf := appendHead(nil, cborArray, 5)
	buf = appendBytes(buf, id)
	if p.IDContext == nil {
		buf = append(buf, cborNull)
	} else {
		buf = appendBytes(buf, p.IDContext)
	}
	buf = appendHead(buf, cborUint, int(p.Algorithm))
	buf = append(appendHead(buf, cborText, len(kind)), kind...)
	return appendHead(buf, cborUint, length)
}

// Fingerprint names a Sender Key without revealing it. Two contexts whose nonces
// must not meet have the same Fingerprint, whatever their files are called.
type Fingerprint [16]byte

func (k keys) fingerprint(a Algorithm) Fingerprint {
	h := sha256.New()
	h.Write([]byte("coapproxy OSCORE sender key\x00"))
	h.Write([]byte{byte(a)})
	h.Write(k.iv)
	h.Write(k.sender)
	return Fingerprint(h.Sum(nil)[:len(Fingerprint{})])
}
