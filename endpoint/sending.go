package endpoint

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// Watcher waits for what becomes of a message that was sent. One of its methods
// is called, under no lock, unless Settle comes first.
type Watcher interface {
	// Acknowledged is called when an ACK for the message arrived, after the
	// response in it, if any, has been handed on.
	Acknowledged(id uint16)
	// Failed is called when the message was reset (ErrReset), never
	// acknowledged (ErrNoAck) or could not be delivered (ErrUndeliverable).
	Failed(id uint16, err error)
}

// What can become of a message.
var (
	ErrReset         = errors.New("reset by peer")
	ErrNoAck         = errors.New("not acknowledged")
	ErrUndeliverable = errUndeliverable
)

// pending is a message that somebody waits for the fate of.
type pending struct {
	watcher Watcher
	// t is nil for a message that is not retransmitted.
	t *transmission
}

// Send sends a message whose type, Message ID and Token are set. A confirmable
// one is retransmitted until it is acknowledged, reset or given up; w learns
// which. For a non-confirmable one w, if not nil, learns of a RST or that it
// was undeliverable, until Settle. After an error w is not called.
func (e *Endpoint) Send(peer Peer, path Path, m *wire.Message, w Watcher) error {
	if w == nil {
		return e.out.put(peer, path, m, nil)
	}
	key := keyOf(peer.key(), m.ID)
	p := pending{watcher: w}
	if m.Type == message.Confirmable {
		p.t = &transmission{endpoint: e, watcher: w, peer: peer, path: path, id: m.ID, timeout: e.Params.initialTimeout(), sent: time.Now()}
		p.t.deadline.Fire = p.t
	}
	e.mu.Lock()
	e.pending.set(&key, p)
	e.mu.Unlock()
	err := e.out.put(peer, path, m, func(encoded []byte) {
		if p.t != nil {
			p.t.encoded = append([]byte(nil), encoded...)
		}
	})
	if err != nil {
		e.Settle(peer.key(), m.ID)
		return err
	}
	if p.t != nil {
		e.Engine.Schedule(&p.t.deadline, p.t.sent.Add(p.t.timeout))
	}
	return nil
}

// Settle stops waiting for an ACK or RST of the message: its watcher is not
// called any more, unless it is being called right now.
func (e *Endpoint) Settle(peer netip.AddrPort, id uint16) { e.settle(peer, id, false) }

// settle takes the message out of what waits, and stops its retransmission.
// onlyConfirmable leaves a message that cannot be acknowledged where it is.
func (e *Endpoint) settle(peer netip.AddrPort, id uint16, onlyConfirmable bool) (pending, bool) {
	key := keyOf(peer, id)
	e.mu.Lock()
	h := e.pending.find(&key, e.pending.hash(&key))
	if h == none || onlyConfirmable && e.pending.at(h).t == nil {
		e.mu.Unlock()
		return pending{}, false
	}
	p := *e.pending.at(h)
	e.pending.unindex(h)
	e.pending.release(h)
	if p.t != nil {
		p.t.settled = true
	}
	e.mu.Unlock()
	if p.t != nil {
		e.Engine.Unschedule(&p.t.deadline)
	}
	return p, true
}

// undeliverable handles a message of our own that came back.
func (e *Endpoint) undeliverable(d *Datagram) {
	e.Stats.Undeliverable.Add(1)
	id, ok := ownID(d.Data)
	if !ok {
		return
	}
	if p, ok := e.settle(d.Peer.key(), id, false); ok {
		err := d.Undeliverable
		if !errors.Is(err, ErrUndeliverable) { // a handshake that failed, say
			err = fmt.Errorf("%w: %w", ErrUndeliverable, err)
		}
		p.watcher.Failed(id, err)
	}
}

// sendFailed handles a message that the kernel refused to send. It runs under
// the lock of writes, so the watcher learns it on the engine's goroutine.
func (e *Endpoint) sendFailed(d *Datagram, err error) {
	if d.Peer.Addr.Addr().IsMulticast() { // nobody else learns it: no member would have said anything
		e.Log.Warn("not sent to the group", zap.Stringer("group", d.Peer.Addr), zap.Stringer("from", e.LocalAddr()), zap.Error(err))
	} else if ce := e.Log.Check(zap.DebugLevel, "not sent"); ce != nil {
		ce.Write(zap.Stringer("peer", d.Peer.Addr), zap.Error(err))
	}
	id, ok := ownID(d.Data)
	if !ok {
		return
	}
	_, handles := e.Requests.(FailureHandler)
	e.mu.Lock()
	key := keyOf(d.Peer.key(), id)
	watched := e.pending.find(&key, e.pending.hash(&key)) != none
	e.mu.Unlock()
	if !watched && !handles {
		return
	}
	later := &exchange.Deadline{}
	peer := d.Peer
	later.Fire = exchange.FireFunc(func(time.Time) {
		err := errors.Join(ErrUndeliverable, err)
		if p, ok := e.settle(peer.key(), id, false); ok {
			p.watcher.Failed(id, err)
			return
		}
		e.failed(peer, id, err)
	})
	e.Engine.Schedule(later, time.Now())
}

// ownID returns the Message ID of a message that was sent, if it is one of our
// own and not of the peer: that of an ACK or RST is not. ICMP errors quote
// datagrams only in part, so that no more is looked at than the header.
func ownID(data []byte) (id uint16, ok bool) {
	if len(data) < 4 {
		return 0, false
	}
	switch message.Type(data[0] >> 4 & 3) {
	case message.Confirmable, message.NonConfirmable:
		return uint16(data[2])<<8 | uint16(data[3]), true
	}
	return 0, false
}

// transmission is a confirmable message on its way (RFC 7252 §4.2).
type transmission struct {
	endpoint *Endpoint
	watcher  Watcher
	deadline exchange.Deadline
	peer     Peer
	path     Path
	id       uint16
	encoded  []byte
	sent     time.Time
	timeout  time.Duration // doubles each time
	repeats  int           // guarded by the endpoint's lock, like settled
	settled  bool
}

// Fire implements exchange.Firer: nobody has acknowledged it.
func (t *transmission) Fire(now time.Time) {
	e := t.endpoint
	key := keyOf(t.peer.key(), t.id)
	e.mu.Lock()
	if t.settled {
		e.mu.Unlock()
		return
	}
	// A message that is neither settled nor pending has lost its Message ID to
	// a newer one after a wrap (FP-91), and cannot be acknowledged any more.
	h := e.pending.find(&key, e.pending.hash(&key))
	current := h != none && e.pending.at(h).t == t
	over := !current || t.repeats >= e.Params.MaxRetransmit
	if over {
		t.settled = true
		if current {
			e.pending.unindex(h)
			e.pending.release(h)
		}
	}
	if !over {
		t.repeats++
	}
	e.mu.Unlock()
	if over {
		e.Stats.Timeouts.Add(1)
		t.watcher.Failed(t.id, ErrNoAck)
		return
	}
	t.timeout *= 2
	e.Stats.Retransmissions.Add(1)
	_ = e.out.putBytes(t.peer, t.path, t.encoded)
	e.Engine.Schedule(&t.deadline, now.Add(t.timeout))
}
