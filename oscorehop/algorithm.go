package oscorehop

import (
	"crypto/aes"
	"crypto/cipher"
	"errors"
	"fmt"

	"github.com/pion/dtls/v3/pkg/crypto/ccm"
	"golang.org/x/crypto/chacha20poly1305"
)

// Algorithm is an AEAD algorithm by its number in the IANA registry "COSE
// Algorithms" (OC-4).
type Algorithm int

// The AEAD algorithms that are implemented. AESCCM16Tag64 is mandatory in RFC
// 8613 §5; the others have tags of 16 bytes and with them far better limits.
const (
	A128GCM          Algorithm = 1
	A256GCM          Algorithm = 3
	AESCCM16Tag64    Algorithm = 10 // AES-CCM-16-64-128
	ChaCha20Poly1305 Algorithm = 24
	AESCCM16Tag128   Algorithm = 30 // AES-CCM-16-128-128
)

// DefaultAlgorithm is the one for new contexts of a hop: anybody who knows a kid
// can use up the failed decryptions that an 8-byte tag permits (OC-54).
const DefaultAlgorithm = AESCCM16Tag128

// ErrAlgorithm means that an AEAD algorithm or a hash is not implemented.
var ErrAlgorithm = errors.New("algorithm not implemented")

// Limits bound the use of one key (draft-ietf-core-oscore-key-limits §2.1.1).
type Limits struct {
	Encryptions uint64 // limit_q: messages protected with one Sender Key
	Failures    uint64 // limit_v: failed decryptions with one Recipient Key
	Size        int    // bytes of COSE plaintext and tag of one message
}

// aead is what OSCORE needs of an AEAD algorithm under one key. Both methods may
// be called concurrently. Open compares tags in constant time and returns
// nothing of the plaintext when they differ.
type aead interface {
	Seal(dst, nonce, plaintext, additionalData []byte) []byte
	Open(dst, nonce, ciphertext, additionalData []byte) ([]byte, error)
}

// parameters of an AEAD algorithm, lengths in bytes.
type algorithmParameters struct {
	name               string
	key, nonce, tag    int
	encryptions, fails uint64
	size               int
}

// parameters returns the row of the algorithm in OC-4 and OC-50.
func (a Algorithm) parameters() (algorithmParameters, bool) {
	switch a {
	case AESCCM16Tag64:
		return algorithmParameters{"AES-CCM-16-64-128", 16, 13, 8, 1 << 20, 1 << 14, 4096}, true
	case AESCCM16Tag128:
		return algorithmParameters{"AES-CCM-16-128-128", 16, 13, 16, 1 << 20, 1 << 20, 16384}, true
	case A128GCM:
		return algorithmParameters{"A128GCM", 16, 12, 16, 1 << 20, 1 << 20, 16384}, true
	case A256GCM:
		return algorithmParameters{"A256GCM", 32, 12, 16, 1 << 20, 1 << 20, 16384}, true
	case ChaCha20Poly1305:
		return algorithmParameters{"ChaCha20/Poly1305", 32, 12, 16, 1 << 20, 1 << 20, 65536}, true
	}
	return algorithmParameters{}, false
}

// String returns the name in the registry "COSE Algorithms".
func (a Algorithm) String() string {
	if p, ok := a.parameters(); ok {
		return p.name
	}
	return fmt.Sprintf("COSE algorithm %d", int(a))
}

// ParseAlgorithm returns the algorithm with the given registered name.
func ParseAlgorithm(name string) (Algorithm, error) {
	for _, a := range [...]Algorithm{AESCCM16Tag64, AESCCM16Tag128, A128GCM, A256GCM, ChaCha20Poly1305} {
		if a.String() == name {
			return a, nil
		}
	}
	return 0, fmt.Errorf("%w: AEAD %q", ErrAlgorithm, name)
}

// Limits returns the usage limits of a key of this algorithm (OC-50); the zero
// Limits for an algorithm that is not implemented.
func (a Algorithm) Limits() Limits {
	p, _ := a.parameters()
	return Limits{Encryptions: p.encryptions, Failures: p.fails, Size: p.size}
}

// MaxID returns the length in bytes of the longest Sender ID (OC-3).
func (a Algorithm) MaxID() int {
	p, _ := a.parameters()
	return max(0, p.nonce-maxPartialIV-1)
}

// aead returns the algorithm under a key of the right length.
func (a Algorithm) aead(key []byte) (aead, error) {
	p, ok := a.parameters()
	if !ok || len(key) != p.key {
		return nil, fmt.Errorf("%w: AEAD %v with a key of %d bytes", ErrAlgorithm, a, len(key))
	}
	if a == ChaCha20Poly1305 {
		return chacha20poly1305.New(key)
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	if a == A128GCM || a == A256GCM {
		return cipher.NewGCM(block)
	}
	return ccm.NewCCM(block, p.tag, p.nonce)
}
