package oscorehop

import (
	"crypto/hmac"
	"crypto/sha512"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
)

// HKDF written out for one block of output (RFC 5869 §2).
// OC-2, OC-4
func TestDeriveSHA512(t *testing.T) {
	p := testParameters(A256GCM)
	p.Hash = SHA512
	k, err := p.derive()
	require.NoError(t, err)
	mac := func(key, data []byte) []byte {
		h := hmac.New(sha512.New, key)
		h.Write(data)
		return h.Sum(nil)
	}
	secret := mac(p.MasterSalt, p.MasterSecret)
	require.Equal(t, mac(secret, append(p.info(p.SenderID, "Key", 32), 1))[:32], k.sender)
	require.Equal(t, mac(secret, append(p.info(p.RecipientID, "Key", 32), 1))[:32], k.recipient)
	require.Equal(t, mac(secret, append(p.info(nil, "IV", 12), 1))[:12], k.iv)
}

// OC-1: an absent ID Context is not an empty one.
func TestInfoIDContext(t *testing.T) {
	p := testParameters(ChaCha20Poly1305)
	require.Equal(t, []byte{0x85, 0x41, 0x01, 0xf6, 0x18, 24, 0x63, 'K', 'e', 'y', 0x18, 32}, p.info(p.SenderID, "Key", 32))
	p.IDContext = []byte{}
	require.Equal(t, []byte{0x85, 0x41, 0x01, 0x40, 0x18, 24, 0x63, 'K', 'e', 'y', 0x18, 32}, p.info(p.SenderID, "Key", 32))
	p.IDContext = make([]byte, 255)
	require.Equal(t, []byte{0x85, 0x41, 0x01, 0x58, 0xff, 0}, p.info(p.SenderID, "Key", 32)[:6])
}

// OC-3, OC-4
func TestValidate(t *testing.T) {
	require.NoError(t, testParameters(AESCCM16Tag64).Validate())
	for name, change := range map[string]func(*Parameters){
		"algorithm":         func(p *Parameters) { p.Algorithm = 12 }, // CCM-64: IDs of one byte, skipped
		"hash":              func(p *Parameters) { p.Hash = 2 },
		"short secret":      func(p *Parameters) { p.MasterSecret = p.MasterSecret[:15] },
		"long secret":       func(p *Parameters) { p.MasterSecret = make([]byte, 256) },
		"long salt":         func(p *Parameters) { p.MasterSalt = make([]byte, 256) },
		"sender ID":         func(p *Parameters) { p.SenderID = make([]byte, 8) },
		"recipient ID":      func(p *Parameters) { p.RecipientID = make([]byte, 8) },
		"same IDs":          func(p *Parameters) { p.RecipientID = p.SenderID },
		"long ID context":   func(p *Parameters) { p.IDContext = make([]byte, 256) },
		"negative window":   func(p *Parameters) { p.ReplayWindow = -1 },
		"window out of all": func(p *Parameters) { p.ReplayWindow = 1025 },
	} {
		t.Run(name, func(t *testing.T) {
			p := testParameters(AESCCM16Tag64)
			change(&p)
			require.Error(t, p.Validate())
			_, err := Ephemeral(p)
			require.Error(t, err)
		})
	}
	p := testParameters(A128GCM)
	p.SenderID = make([]byte, 7)
	require.Error(t, p.Validate(), "a nonce of 12 bytes has room for an ID of 6")
}

// OC-3: what a context is called, and who the peer is, makes no difference to its
// nonces.
func TestFingerprint(t *testing.T) {
	of := func(change func(*Parameters)) Fingerprint {
		p := testParameters(AESCCM16Tag128)
		change(&p)
		k, err := p.derive()
		require.NoError(t, err)
		return k.fingerprint(p.Algorithm)
	}
	same := of(func(*Parameters) {})
	require.Equal(t, same, of(func(p *Parameters) { p.RecipientID = []byte{9}; p.Created = time.Unix(1, 0) }))
	for _, change := range []func(*Parameters){
		func(p *Parameters) { p.SenderID = []byte{9} },
		func(p *Parameters) { p.MasterSalt = nil },
		func(p *Parameters) { p.IDContext = []byte{} },
		func(p *Parameters) { p.MasterSecret = []byte("another  secret!") },
		func(p *Parameters) { p.Hash = SHA512 },
		func(p *Parameters) { p.Algorithm = AESCCM16Tag64 },
	} {
		require.NotEqual(t, same, of(change))
	}
}

// OC-4, OC-50
func TestAlgorithms(t *testing.T) {
	for a, want := range map[Algorithm]struct {
		name   string
		maxID  int
		limits Limits
	}{
		AESCCM16Tag64:    {"AES-CCM-16-64-128", 7, Limits{1048576, 16384, 4096}},
		AESCCM16Tag128:   {"AES-CCM-16-128-128", 7, Limits{1048576, 1048576, 16384}},
		A128GCM:          {"A128GCM", 6, Limits{1048576, 1048576, 16384}},
		A256GCM:          {"A256GCM", 6, Limits{1048576, 1048576, 16384}},
		ChaCha20Poly1305: {"ChaCha20/Poly1305", 6, Limits{1048576, 1048576, 65536}},
	} {
		require.Equal(t, want.name, a.String())
		require.Equal(t, want.maxID, a.MaxID())
		require.Equal(t, want.limits, a.Limits())
		parsed, err := ParseAlgorithm(want.name)
		require.NoError(t, err)
		require.Equal(t, a, parsed)
	}
	_, err := ParseAlgorithm("AES-CCM-64-64-128")
	require.ErrorIs(t, err, ErrAlgorithm)
	require.Zero(t, Algorithm(12).Limits())
	require.Zero(t, Algorithm(12).MaxID())
	for _, h := range []Hash{SHA256, SHA512} {
		parsed, err := ParseHash(h.String())
		require.NoError(t, err)
		require.Equal(t, h, parsed)
	}
	_, err = ParseHash("MD5")
	require.ErrorIs(t, err, ErrAlgorithm)
}
