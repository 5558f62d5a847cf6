package oscorehop

import (
	"fmt"
	"sync"
)

// Namespace is the set of contexts that one listener, or one source where
// contexts are bound to sources, may use (OH-20, OH-21). A context that belongs
// elsewhere is not in the map, so that "ineligible" and "unknown" cannot be told
// apart. The zero value is empty and ready. Safe for concurrent use; its size is
// what the operator configured.
type Namespace struct {
	mu       sync.RWMutex
	contexts map[string]*Context // by Recipient ID
}

// Add makes a context available. A Recipient ID can be there once, whatever its
// ID Context, so that a request never has to be tried with several keys.
func (n *Namespace) Add(c *Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	id := string(c.params.RecipientID)
	if n.contexts[id] != nil {
		return fmt.Errorf("two contexts have the recipient ID %x", id)
	}
	if n.contexts == nil {
		n.contexts = make(map[string]*Context)
	}
	n.contexts[id] = c
	return nil
}

// Remove takes a context out; exchanges that run on it go on until it is closed.
func (n *Namespace) Remove(c *Context) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if id := string(c.params.RecipientID); n.contexts[id] == c {
		delete(n.contexts, id)
	}
}

// Find returns the context that the option of a request names. The error is a
// *[VerifyError] with reason NoContext, also for messages in group mode, which
// are for somebody else (OH-22).
func (n *Namespace) Find(o Option) (*Context, error) {
	n.mu.RLock()
	c := n.contexts[string(o.KID)]
	n.mu.RUnlock()
	if c == nil || !c.names(o) {
		return nil, &VerifyError{Reason: NoContext} // OH-51
	}
	return c, nil
}
