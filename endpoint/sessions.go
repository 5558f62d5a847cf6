package endpoint

import (
	"errors"
	"time"
)

// PeerGoneHandler is a ResponseHandler that wants to know when the session with
// a server has ended: nothing that is under way there will be answered.
type PeerGoneHandler interface {
	// PeerGone is called on the reading goroutine. What was begun after at is under way
	// in another session.
	PeerGone(e *Endpoint, peer Peer, at time.Time, err error)
}

// sessionEnd is why and when a session with a server has ended.
type sessionEnd struct {
	cause error
	at    time.Time
}

// Error implements error.
func (e *sessionEnd) Error() string { return e.cause.Error() }

// Unwrap returns the cause.
func (e *sessionEnd) Unwrap() error { return e.cause }

// peerGone handles the end of a session with a server: of messages that await their
// ACK, too, which a PeerGoneHandler sees to itself.
func (e *Endpoint) peerGone(peer Peer, err error) {
	at := e.Now()
	var end *sessionEnd
	if errors.As(err, &end) {
		at = end.at
	}
	err = errors.Join(ErrUndeliverable, err)
	if h, ok := e.Responses.(PeerGoneHandler); ok {
		h.PeerGone(e, peer, at, err)
		return
	}
	var lost []uint16
	e.mu.Lock()
	for key := range e.pending.keys() {
		if key == keyOf(peer.key(), key.id) {
			lost = append(lost, key.id)
		}
	}
	e.mu.Unlock()
	for _, id := range lost {
		if p, ok := e.settle(peer.key(), id, false); ok {
			p.watcher.Failed(id, err)
		}
	}
}

// PeerGone implements PeerGoneHandler: the session with a server has ended, so
// that no response will come any more.
func (c *Client) PeerGone(e *Endpoint, peer Peer, at time.Time, err error) {
	var lost []*call
	c.mu.Lock()
	for _, k := range c.calls {
		if k.port == e && k.server.peer.Addr == peer.Addr && !k.begun.After(at) {
			lost = append(lost, k)
		}
	}
	c.mu.Unlock()
	for _, k := range lost {
		if k.open == nil || !k.retries(sessionLost, err) {
			k.fail(err)
		}
	}
}
