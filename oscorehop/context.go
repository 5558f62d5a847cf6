package oscorehop

import (
	"bytes"
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Context is a Security Context: keys for sending and receiving, the replay
// window and the limits of both keys (OC-1). Safe for concurrent use.
type Context struct {
	params  Parameters // without the master secret
	limits  Limits
	sealer  aead // under the Sender Key
	opener  aead // under the Recipient Key
	iv      []byte
	counter *counter
	name    string        // see Name; set before the context is in use
	alarm   atomic.Uint32 // the highest Level that Risen has told of

	mu     sync.Mutex
	window window
	// valid is false after a restart. The window then only keeps the same request
	// from being challenged twice (OH-113).
	valid    bool
	peerNext uint64 // highest verified Partial IV of the peer, plus one
	echo     echo
}

// Open derives a Security Context whose sequence numbers survive a crash. It
// blocks on the disk. Errors are ErrInUse (OC-3), ErrCorrupt, ErrClosed, errors of
// the store, and those of [Parameters.Validate].
//
// A context that was in use before, in another run of the process, challenges
// the first request with Echo (OH-113).
func Open(p Parameters, k *Keeper) (*Context, error) {
	c, secret, err := newContext(p)
	if err != nil {
		return nil, err
	}
	counter, fresh, err := k.open(secret.fingerprint(p.Algorithm))
	if err != nil {
		return nil, err
	}
	c.counter, c.valid = counter, fresh
	return c, nil
}

// Ephemeral derives a Security Context that nothing is stored of. Its keys must
// not outlive the process: they are for contexts that a key exchange has just
// established (OC-3).
func Ephemeral(p Parameters) (*Context, error) {
	c, _, err := newContext(p)
	if err != nil {
		return nil, err
	}
	c.counter, c.valid = &counter{}, true
	return c, nil
}

func newContext(p Parameters) (*Context, keys, error) {
	p = p.clone()
	if p.ReplayWindow == 0 {
		p.ReplayWindow = DefaultReplayWindow
	}
	secret, err := p.derive()
	if err != nil {
		return nil, keys{}, fmt.Errorf("security context: %w", err)
	}
	c := &Context{params: p, limits: p.Algorithm.Limits(), iv: secret.iv, window: newWindow(p.ReplayWindow)}
	if c.sealer, err = p.Algorithm.aead(secret.sender); err != nil {
		return nil, keys{}, err
	}
	if c.opener, err = p.Algorithm.aead(secret.recipient); err != nil {
		return nil, keys{}, err
	}
	c.params.MasterSecret, c.params.MasterSalt = nil, nil // needed no more
	return c, secret, nil
}

// Close ends the context: nothing is protected or verified any more, and what it
// has used is stored. It blocks on the disk.
func (c *Context) Close() error {
	if c.counter.keeper != nil {
		return c.counter.keeper.release(c.counter)
	}
	c.counter.close()
	return nil
}

// Name returns the name under which a [Keyring] has the context, else "".
func (c *Context) Name() string { return c.name }

// SenderID returns the Sender ID; the caller must not change it.
func (c *Context) SenderID() []byte { return c.params.SenderID }

// RecipientID returns the Recipient ID, the kid of requests from the peer; the
// caller must not change it.
func (c *Context) RecipientID() []byte { return c.params.RecipientID }

// IDContext returns the ID Context, nil when there is none; the caller must not
// change it.
func (c *Context) IDContext() []byte { return c.params.IDContext }

// Algorithm returns the AEAD algorithm.
func (c *Context) Algorithm() Algorithm { return c.params.Algorithm }

// names reports whether the option of a request means this context: no group
// message (OH-22), our Recipient ID, and no ID Context but ours (OH-20).
func (c *Context) names(o Option) bool {
	return !o.Group && o.KID != nil && bytes.Equal(o.KID, c.params.RecipientID) &&
		(o.KIDContext == nil || c.params.IDContext != nil && bytes.Equal(o.KIDContext, c.params.IDContext))
}

// usable reports a closed or expired context.
func (c *Context) usable() error {
	if !c.params.Expires.IsZero() && !time.Now().Before(c.params.Expires) { // OC-51
		return &LimitError{Limit: Lifetime}
	}
	return c.counter.alive()
}

// seal encrypts a plaintext that fits. The nonce is from ownPartialIV, or that of
// the request which is answered (OC-22); its sequence number is counted already.
func (c *Context) seal(plaintext, nonce, additionalData []byte) ([]byte, error) {
	// OC-51, with the estimate of OC-52: at most one response without a Partial IV
	// for every request of the peer.
	if c.encryptions() > c.limits.Encryptions {
		return nil, &LimitError{Limit: Encryptions}
	}
	return c.sealer.Seal(make([]byte, 0, len(plaintext)+c.overhead()), nonce, plaintext, additionalData), nil
}

func (c *Context) overhead() int {
	spec, _ := c.params.Algorithm.parameters()
	return spec.tag
}

// fits checks the size of a message before a sequence number is spent (OC-50).
func (c *Context) fits(plaintext []byte) error {
	if size := len(plaintext) + c.overhead(); size > c.limits.Size {
		return &TooLargeError{Size: size, Max: c.limits.Size}
	}
	return nil
}

// encryptions estimates count_q from above (OC-52).
func (c *Context) encryptions() uint64 {
	sequence, _ := c.counter.used()
	c.mu.Lock()
	defer c.mu.Unlock()
	return sequence + c.peerNext
}

// ownPartialIV takes a Sender Sequence Number (OC-20).
func (c *Context) ownPartialIV() ([]byte, error) {
	n, err := c.counter.take()
	if err != nil {
		return nil, err
	}
	return partialIV(n), nil
}

// open decrypts into a new buffer that holds wireHeader bytes of room first.
// Errors are *VerifyError: NoContext when the key must not be used, Forged when
// the tag is wrong, which is counted.
func (c *Context) open(ciphertext, nonce, additionalData []byte) ([]byte, error) {
	if err := c.usable(); err != nil {
		return nil, &VerifyError{Reason: NoContext, Err: err}
	}
	if len(ciphertext) > c.limits.Size {
		// The limits hold for messages up to this size only, so a longer one is
		// not given to the key (OC-50).
		return nil, malformed(&TooLargeError{Size: len(ciphertext), Max: c.limits.Size})
	}
	if _, failures := c.counter.used(); failures >= c.limits.Failures { // OC-51
		return nil, &VerifyError{Reason: NoContext, Err: &LimitError{Limit: Failures}}
	}
	room := make([]byte, wireHeader, wireHeader+len(ciphertext))
	plaintext, err := c.opener.Open(room, nonce, ciphertext, additionalData)
	if err != nil {
		c.counter.fail()
		return nil, &VerifyError{Reason: Forged, Err: err}
	}
	return plaintext, nil
}

// heard notes a verified Partial IV of the peer (OC-52). c.mu is held.
func (c *Context) heard(n uint64) { c.peerNext = max(c.peerNext, n+1) }
