package endpoint

import "errors"

// PeerGoneHandler is a ResponseHandler that wants to know when the session with
// a server has ended: nothing that is under way there will be answered.
type PeerGoneHandler interface {
	// PeerGone is called on the reading goroutine, after the watchers of messages
	// that were not acknowledged.
	PeerGone(e *Endpoint, peer Peer, err error)
}

// peerGone handles the end of a session with a server.
func (e *Endpoint) peerGone(peer Peer, err error) {
	err = errors.Join(ErrUndeliverable, err)
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
	if h, ok := e.Responses.(PeerGoneHandler); ok {
		h.PeerGone(e, peer, err)
	}
}
