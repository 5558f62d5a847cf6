package endpoint

import (
	"net/netip"
	"sync"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// Reception is a request being handed to a RequestHandler; valid during the
// call.
type Reception struct {
	Peer Peer
	Path Path
	// Now is when the request was read.
	Now time.Time
	// Size is the length of the datagram; 0 for a message on a connection.
	Size int
	// Seal, unless nil, makes of a message that answers this request the one that
	// is sent instead: the handler sets it before Accept, for a request that came
	// protected (OH-4). It is called once for each message, not for its
	// retransmissions, with Code, Options and Payload, which are borrowed. On an
	// error the message is not sent (OH-63). Calls may be concurrent.
	Seal func(*wire.Message) (*wire.Message, error)

	endpoint *Endpoint
	entry    handle  // none when the request is not remembered
	stream   *Stream // the connection it came by, then endpoint is nil
}

// Origin tells client endpoints apart: the local port and the transport address
// of the client, or its DTLS session there, or its connection. It is comparable;
// sessions and connections are never confused with later ones.
type Origin struct {
	layer uint64
	peer  netip.AddrPort
}

// Origin is the client endpoint that a Token belongs to.
func (rx *Reception) Origin() Origin {
	if rx.stream != nil {
		return Origin{layer: rx.stream.id}
	}
	return rx.endpoint.origin(rx.Peer)
}

// Local is the address and port the request was sent to (FP-4).
func (rx *Reception) Local() netip.AddrPort {
	if rx.stream != nil {
		return rx.stream.local
	}
	local := rx.endpoint.LocalAddr()
	if rx.Path.Local.IsValid() {
		return netip.AddrPortFrom(rx.Path.Local, local.Port())
	}
	return local
}

// Security is what the client has proven about itself; nil for nothing.
func (rx *Reception) Security() *exchange.Security {
	if rx.stream != nil {
		return rx.stream.security
	}
	return rx.Peer.Security()
}

// Scheme is that of a URI under which the client reached this port or
// connection.
func (rx *Reception) Scheme() string {
	switch {
	case rx.stream != nil:
		return rx.stream.scheme
	case rx.Peer.session != nil:
		return "coaps"
	default:
		return "coap"
	}
}

// Secured reports that nobody on the way can read or change what is sent.
func (rx *Reception) Secured() bool {
	if rx.stream != nil {
		return rx.stream.secured()
	}
	return rx.Peer.session != nil
}

// Reliable reports a transport that delivers in order or breaks: message types,
// acknowledgements and Message IDs do not exist there (RFC 8323 §3).
func (rx *Reception) Reliable() bool { return rx.stream != nil }

// MaxPayload is the longest response payload in bytes that the client takes in
// one message, beside options of usual size.
func (rx *Reception) MaxPayload() int {
	if rx.stream != nil {
		return rx.stream.maxPayload()
	}
	return maxDatagramPayload
}

// BERT reports whether blocks may hold several of 1024 bytes: both sides of the
// connection have offered it (RFC 8323 §5.3.2, §6).
func (rx *Reception) BERT() bool {
	if rx.stream == nil {
		return false
	}
	_, bert := rx.stream.capacity()
	return bert
}

// maxDatagramPayload is the payload that fits a datagram on any path (RFC 7252
// §4.6).
const maxDatagramPayload = 1024

// refuse answers a request that never reached the handler; one that was sent to
// a group gets no error (GC-95).
func (rx *Reception) refuse(m *wire.Message, code codes.Code, text string) {
	var in Incoming
	in.Accept(rx, m)
	if rx.Path.Local.IsMulticast() {
		in.Finish()
		return
	}
	r := wire.Message{Code: code, Payload: []byte(text)}
	if code == codes.ServiceUnavailable { // FP-34
		r.Options = message.Options{{ID: wire.MaxAge, Value: []byte{refusalMaxAge}}}
	}
	in.Respond(&r, message.NonConfirmable, nil)
}

// refusalMaxAge is after how many seconds a refused client may try again.
const refusalMaxAge = 10

// Incoming is a request waiting for its answer on the message layer. The
// handler owns it from Accept on and finishes it once, with Respond or Finish;
// before that it may Ack and Relay. It is safe for concurrent use.
//
// It serves datagrams and connections alike. On a connection there is nothing
// to acknowledge, and message types are ignored.
type Incoming struct {
	Peer Peer
	// Path is the way back: of a request that was sent to a group, it leaves
	// the choice of the source address to the routing table (RFC 7252 §8.2).
	Path        Path
	Token       []byte                                     // owned, and never changed
	seal        func(*wire.Message) (*wire.Message, error) // Reception.Seal
	endpoint    *Endpoint
	stream      *Stream // the connection it came by, then endpoint is nil
	inline      [8]byte
	entry       handle
	id          uint16
	Confirmable bool // on a connection: true
	stands      bool // guarded by the lock of what open returns

	mu       sync.Mutex
	acked    bool
	finished bool
	notDone  bool // see NotDone
	shared   bool // see Alone

	ackDeadline exchange.Deadline
}

// Accept fills in from the reception. An Incoming is accepted into once and not
// copied afterwards.
func (in *Incoming) Accept(rx *Reception, m *wire.Message) {
	in.Peer, in.Path, in.Confirmable = rx.Peer, rx.Path, m.Type == message.Confirmable
	in.endpoint, in.entry, in.id, in.stream, in.seal = rx.endpoint, rx.entry, m.ID, rx.stream, rx.Seal
	in.Token = append(in.inline[:0], m.Token...)
	if in.Path.Local.IsMulticast() {
		in.Path.Local = netip.Addr{}
	}
	if open := in.open(); open != nil {
		open.enter(in)
	}
}

// Origin is the client endpoint that the Token belongs to.
func (in *Incoming) Origin() Origin {
	if in.stream != nil {
		return Origin{layer: in.stream.id}
	}
	return in.endpoint.origin(in.Peer)
}

// Reliable is Reception.Reliable.
func (in *Incoming) Reliable() bool { return in.stream != nil }

// CancelWhenGone has c canceled when the connection or DTLS session of the
// client ends before the request is finished, at once if it has ended already:
// nobody is left to respond to (GP-44). It does nothing for a request that came
// as a bare datagram or is finished.
func (in *Incoming) CancelWhenGone(c exchange.Canceler) {
	if open := in.open(); open != nil {
		open.bind(in, c)
	}
}

// open is where the request is entered: with its connection or session.
func (in *Incoming) open() *openRequests {
	switch {
	case in.stream != nil:
		return &in.stream.open
	case in.Peer.session != nil:
		return &in.Peer.session.open
	}
	return nil
}

// Relay sends one of several responses as a message of its own, of the given
// type. m needs Code, Options and Payload only. It returns the Message ID, by
// which w is told what becomes of the message, until Settle; w may be nil for a
// non-confirmable one, of whose failure a FailureHandler learns. On a connection w is
// never called and the ID is 0.
func (in *Incoming) Relay(m *wire.Message, typ message.Type, w Watcher) (uint16, error) {
	if in.seal != nil {
		c := *m // which escapes, and m does not
		sealed, err := in.seal(&c)
		if err != nil {
			return 0, err
		}
		m = sealed
	}
	m.Token = in.Token
	if in.stream != nil {
		c := *m // which escapes, and m does not
		return 0, in.stream.respond(&c)
	}
	m.Type, m.ID = typ, in.endpoint.NextID(in.Peer.key())
	return m.ID, in.endpoint.Send(in.Peer, in.Path, m, w)
}

// Settle ends the wait for what becomes of a message that was relayed.
func (in *Incoming) Settle(id uint16) {
	if in.stream == nil {
		in.endpoint.Settle(in.Peer.key(), id)
	}
}

// AckLater has an empty ACK sent if the request is confirmable and not
// answered within the processing delay (FP-30).
func (in *Incoming) AckLater() {
	if !in.Confirmable || in.stream != nil {
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.acked || in.finished {
		return
	}
	in.ackDeadline.Fire = (*lateAck)(in)
	in.endpoint.Engine.Schedule(&in.ackDeadline, time.Now().Add(in.endpoint.Params.ProcessingDelay))
}

// lateAck is an Incoming as the owner of its ackDeadline.
type lateAck Incoming

// Fire implements exchange.Firer.
func (a *lateAck) Fire(time.Time) { (*Incoming)(a).Ack() }

// Ack sends the empty ACK of a confirmable request now; the response will be a
// separate one (RFC 7252 §5.2.2).
func (in *Incoming) Ack() {
	if !in.Confirmable || in.stream != nil {
		return
	}
	in.mu.Lock()
	defer in.mu.Unlock() // the entry is good until finished is set
	if in.acked || in.finished {
		return
	}
	in.acked = true
	if in.entry != none {
		in.endpoint.dedup.acknowledged(in.entry)
	}
	in.endpoint.ack(in.Peer, in.Path, in.id)
}

// Respond sends the one response of the request: piggybacked on the ACK while
// that has not been sent, else as a separate message of the given type. m needs
// Code, Options and Payload only. w is told what becomes of a separate
// response; it may be nil for a non-confirmable one. A response that cannot be
// sealed is as if there were none.
func (in *Incoming) Respond(m *wire.Message, separate message.Type, w Watcher) {
	if in.seal != nil {
		c := *m // which escapes, and m does not
		sealed, err := in.seal(&c)
		if err != nil {
			in.Finish()
			return
		}
		m = sealed
	}
	if !in.finish() {
		return
	}
	m.Token = in.Token
	if in.stream != nil {
		c := *m // which escapes, and m does not
		_ = in.stream.respond(&c)
		in.stream.finished(in)
		return
	}
	e := in.endpoint
	if in.Confirmable && !in.acked {
		m.Type, m.ID = message.Acknowledgement, in.id
		err := e.out.put(in.Peer, in.Path, m, func(encoded []byte) { in.forget(encoded) })
		if err != nil {
			// Lost for want of room, and still there for a repeated request.
			encoded, _ := m.Append(nil)
			in.forget(encoded)
		}
		return
	}
	m.Type, m.ID = separate, e.NextID(in.Peer.key())
	if m.Type == message.Confirmable && w == nil {
		w = unwatched{}
	}
	_ = e.Send(in.Peer, in.Path, m, w)
	in.forget(nil)
}

// NotDone says, before Respond or Finish, that the request was refused and nothing
// was done: there is no harm in forgetting it before a repetition of it arrives.
func (in *Incoming) NotDone() { in.notDone = true }

// Unproven is Reception.Unproven.
func (in *Incoming) Unproven() bool { return in.stream == nil && in.Peer.session == nil }

// Acked reports that an empty ACK has been sent.
func (in *Incoming) Acked() bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.acked
}

// Unproven reports that the peer may be elsewhere than its datagrams say: it has
// neither a connection nor a session.
func (rx *Reception) Unproven() bool { return rx.stream == nil && rx.Peer.session == nil }

// Begin sends the first of several responses, as Respond does, and leaves the
// request open for Relay, until Finish. The client waits for no answer any more:
// the request no longer counts against what its connection may ask at a time.
// id is the Message ID, which w watches, of a message of its own; separate is
// false for a response on the ACK or on a connection.
func (in *Incoming) Begin(m *wire.Message, typ message.Type, w Watcher) (id uint16, separate bool, err error) {
	defer in.Stand()
	if in.stream != nil {
		_, err = in.Relay(m, typ, w)
		return 0, false, err
	}
	in.mu.Lock()
	entry := in.entry
	in.entry = none
	piggybacked := in.Confirmable && !in.acked
	in.acked = true
	in.mu.Unlock()
	e := in.endpoint
	if in.ackDeadline.Fire != nil {
		e.Engine.Unschedule(&in.ackDeadline)
	}
	remember := func(reply []byte) {
		if entry != none {
			e.dedup.finish(entry, reply, false)
		}
	}
	if !piggybacked {
		id, err = in.Relay(m, typ, w)
		remember(nil)
		return id, err == nil, err
	}
	if in.seal != nil {
		c := *m // which escapes, and m does not
		if m, err = in.seal(&c); err != nil {
			e.ack(in.Peer, in.Path, in.id)
			remember(nil)
			return 0, false, err
		}
	}
	m.Token, m.Type, m.ID = in.Token, message.Acknowledgement, in.id
	if e.out.put(in.Peer, in.Path, m, remember) != nil {
		reply, _ := m.Append(nil) // lost for want of room, and still there for a repeated request
		remember(reply)
	}
	return 0, false, nil
}

// Stand notes that nobody waits for an answer any more, and that the request may
// stay open for ever: it does not count against what the client may ask at a time.
func (in *Incoming) Stand() {
	open := in.open()
	if open != nil && open.stand(in) && in.stream != nil {
		in.stream.quiet()
	}
}

// Finish ends the request without a response, or after separate ones; a
// confirmable one that has had no ACK gets it now.
func (in *Incoming) Finish() {
	in.Ack()
	if in.finish() {
		in.forget(nil)
	}
}

func (in *Incoming) finish() bool {
	in.mu.Lock()
	first := !in.finished
	in.finished = true
	in.mu.Unlock()
	if first && in.ackDeadline.Fire != nil {
		in.shared = !in.endpoint.Engine.Unschedule(&in.ackDeadline)
	}
	return first
}

// Alone reports, of a request that is finished, that nobody but its owner refers to
// it any more: no connection, no session and no deadline. Only then may its memory be
// used for another one.
func (in *Incoming) Alone() bool { return in.open() == nil && !in.shared }

// forget tells the duplicate detection what a repetition gets.
func (in *Incoming) forget(reply []byte) {
	if in.stream != nil {
		in.stream.finished(in)
		return
	}
	if in.Peer.session != nil {
		in.Peer.session.open.leave(in)
	}
	if in.entry != none {
		in.endpoint.dedup.finish(in.entry, reply, !in.notDone)
	}
}

// unwatched takes no interest in a confirmable response.
type unwatched struct{}

// Acknowledged does nothing.
func (unwatched) Acknowledged(uint16) {}

// Failed does nothing.
func (unwatched) Failed(uint16, error) {}
