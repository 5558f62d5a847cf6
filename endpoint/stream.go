package endpoint

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// StreamConfig is what all connections of one server or client have in common.
type StreamConfig struct {
	Engine *exchange.Engine
	// Requests takes the requests of the peers; nil where nothing is served,
	// they get 5.01 then (RFC 8323 §3.3).
	Requests RequestHandler
	// MaxToken is the longest Token accepted in a request (FP-83).
	MaxToken int
	Limits   StreamLimits
	Stats    *StreamStats
	Log      *zap.Logger
}

// StreamLimits bound what one connection may cost.
type StreamLimits struct {
	// Message is the own Max-Message-Size in bytes; above 1152 it offers BERT
	// (RFC 8323 §5.3.2). A longer message aborts the connection.
	Message int
	// Queue is how many bytes may wait to be written. A connection whose peer
	// reads so slowly that more would wait is ended.
	Queue int
	// Requests is how many requests of a peer may be unanswered; more get 5.03.
	Requests int
	// Handshake bounds the time until the peer's CSM has arrived, transport and
	// security handshakes included.
	Handshake time.Duration
	// Write bounds how long one write may make no progress.
	Write time.Duration
	// Idle is how long nothing may arrive before the peer is asked by a Ping
	// whether it is there, and Pong how long it may take to say so.
	Idle, Pong time.Duration
	// Linger is how long a connection that we end waits for the peer to read our
	// last message and to close.
	Linger time.Duration
}

// DefaultStreamLimits returns the documented defaults.
func DefaultStreamLimits() StreamLimits {
	return StreamLimits{
		Message: 64<<10 + wire.BaseMessageSize, Queue: 1<<20 + 64<<10, Requests: 256,
		Handshake: 10 * time.Second, Write: 10 * time.Second, Idle: 5 * time.Minute, Pong: 10 * time.Second, Linger: time.Second,
	}
}

// Why a connection ended.
var (
	errStreamClosed  = errors.New("connection closed")
	errQueueFull     = errors.New("peer reads too slowly")
	errPeerSilent    = errors.New("peer does not answer")
	errNoCSM         = errors.New("no CSM in time")
	errAborted       = errors.New("connection aborted")
	errReleased      = errors.New("connection released")
	errMessageTooBig = errors.New("message larger than the peer accepts")
)

// transport carries whole messages over one connection. read is used by one
// goroutine, write by one.
type transport interface {
	// read returns the next message, borrowed until the next call, and whether
	// another one is complete already. A message longer than limit is
	// errFrameTooBig.
	read(limit int) (frame []byte, more bool, err error)
	decode(m *wire.Message, frame []byte) error
	encode(m *wire.Message, buf []byte) ([]byte, error)
	// write writes messages that stand one behind the other and end at ends,
	// within the time.
	write(frames []byte, ends []int, within time.Duration) error
	// closeWrite says that no more will be written. Reading ends within the time.
	closeWrite(within time.Duration)
	// discard reads and throws away what arrives, within reason.
	discard()
	// close ends read and write at once. It does not block and may be called
	// by any goroutine, more than once.
	close()
}

// streamOwner is the server or client that a connection belongs to. It is called
// on the reading goroutine but where it says otherwise.
type streamOwner interface {
	// ready is called when the peer's first CSM has arrived.
	ready(*Stream)
	// response takes a response; it reports whether the Token was known.
	response(*Stream, *wire.Message) bool
	// busy reports whether responses of the peer are still awaited. It is called
	// by any goroutine, under no lock.
	busy(*Stream) bool
}

// Stream is one CoAP connection over a reliable transport (RFC 8323): TCP, TLS
// or WebSocket. One goroutine reads and another one writes. Its methods are safe
// for concurrent use.
type Stream struct {
	StreamConfig
	id          uint64
	owner       streamOwner
	conn        transport
	raw         net.Conn // what is under it, for the kernel's round trip
	peer, local netip.AddrPort
	scheme      string // coap+tcp, coaps+tcp, coap+ws or coaps+ws
	security    *exchange.Security
	place       *place // of a connection that was accepted

	start    time.Time
	lastRead atomic.Int64 // when the last message arrived, nanoseconds since start
	watchdog exchange.Deadline

	rx Reception // lent to the RequestHandler; the reading goroutine's alone

	mu sync.Mutex
	// The messages that wait for the writer, and where each ends.
	queue []byte
	ends  []int
	// closing: nothing is put into the queue any more; the writer empties it.
	closing bool
	// cause is why the connection ends, nil while it does not.
	cause   error
	settled bool // the peer's CSM has arrived
	pinged  time.Time
	// roundTrip is that of the last Ping, 0 before the first.
	roundTrip time.Duration
	released  bool // the peer sent Release
	// peerMessage is the peer's Max-Message-Size.
	peerMessage int
	peerBlocks  bool // the peer can do block-wise transfer
	// custody is the Token of a Ping whose Pong waits until open is empty.
	custody []byte
	waiting bool // custody is set

	open openRequests // of the peer

	wake chan struct{} // the writer has something to do
}

func newStream(c StreamConfig, owner streamOwner, conn transport) *Stream {
	return &Stream{StreamConfig: c, id: c.Engine.NextID(), owner: owner, conn: conn, peerMessage: wire.BaseMessageSize,
		wake: make(chan struct{}, 1)}
}

// run carries the connection from our CSM to its end, which ctx brings about in
// an orderly way. until is when the peer's CSM must have arrived. It returns why
// the connection ended.
func (s *Stream) run(ctx context.Context, until time.Time) error {
	s.start = time.Now()
	s.watchdog.Fire = exchange.FireFunc(s.watch)
	s.Engine.Schedule(&s.watchdog, until)
	s.sendCSM()
	s.Engine.Flush()
	var writer sync.WaitGroup
	writer.Go(s.writeAll)
	stop := context.AfterFunc(ctx, func() { s.release(); s.Engine.Flush() })
	s.readAll()
	stop()

	s.mu.Lock()
	s.closing = true
	cause := s.cause
	s.mu.Unlock()
	s.Flush()
	writer.Wait()
	s.Engine.Unschedule(&s.watchdog)
	s.conn.close()
	s.open.cancelAll() // GP-44
	s.Engine.Flush()
	return cause
}

// end ends the connection at once.
func (s *Stream) end(cause error) {
	s.setCause(cause)
	s.mu.Lock()
	s.closing = true
	s.mu.Unlock()
	s.conn.close()
}

func (s *Stream) setCause(cause error) {
	s.mu.Lock()
	if s.cause == nil {
		s.cause = cause
	}
	s.mu.Unlock()
}

// readAll reads until the connection ends.
func (s *Stream) readAll() {
	m := &wire.Message{Options: make(message.Options, 0, 16)}
	for {
		frame, more, err := s.conn.read(s.Limits.Message)
		switch {
		case errors.Is(err, errFrameTooBig):
			s.abort("message larger than Max-Message-Size", 0)
			s.drain()
			return
		case err != nil:
			s.setCause(err)
			return
		}
		now := time.Now()
		s.lastRead.Store(int64(now.Sub(s.start)))
		s.receive(m, frame, now)
		if !more {
			s.Engine.Flush()
		}
		if s.isClosing() {
			s.drain()
			return
		}
	}
}

// drain gives the peer time to read our last message: closing at once a
// connection that has unread bytes would discard it.
func (s *Stream) drain() {
	s.Engine.Flush()
	s.conn.discard()
}

func (s *Stream) isClosing() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.closing
}

// receive handles one message.
func (s *Stream) receive(m *wire.Message, frame []byte, now time.Time) {
	s.Stats.Received.Add(1)
	if err := s.conn.decode(m, frame); err != nil {
		s.Stats.Malformed.Add(1)
		s.abort(err.Error(), 0) // RFC 8323 §5.6
		return
	}
	if m.Code == codes.Empty { // RFC 8323 §3.4: it keeps the connection alive
		return
	}
	s.mu.Lock()
	settled := s.settled
	s.mu.Unlock()
	switch {
	case !settled && m.Code != codes.CSM:
		s.abort("the first message must be a CSM", 0) // RFC 8323 §3.3
	case m.Code>>5 == 7:
		s.signal(m)
	case wire.IsRequest(m.Code):
		s.request(m, now)
	case wire.IsResponse(m.Code):
		if !s.owner.response(s, m) {
			s.Stats.Ignored.Add(1)
		}
	default:
		s.Stats.Malformed.Add(1)
		s.abort("code of a reserved class", 0)
	}
}

func (s *Stream) request(m *wire.Message, now time.Time) {
	rx := &s.rx
	*rx = Reception{Peer: Peer{Addr: s.peer}, Now: now, entry: none, stream: s}
	switch {
	case s.Requests == nil:
		rx.refuse(m, codes.NotImplemented, "no server here")
	case s.open.count() >= s.Limits.Requests:
		s.Stats.RequestsRefused.Add(1)
		rx.refuse(m, codes.ServiceUnavailable, "too many requests on this connection")
	case len(m.Token) > s.MaxToken:
		rx.refuse(m, codes.BadRequest, "token too long") // FP-83
	default:
		s.Requests.HandleRequest(rx, m)
	}
}

// finished takes a request out that needs no further answer.
func (s *Stream) finished(in *Incoming) {
	if s.open.leave(in) {
		s.quiet()
	}
}

// quiet does what had to wait until no request is unanswered.
func (s *Stream) quiet() {
	s.mu.Lock()
	pong, token := s.waiting, s.custody
	s.waiting, s.custody = false, nil
	s.mu.Unlock()
	if pong {
		s.pong(token, true)
	}
	s.closeIfReleased()
}

// maxPayload is what a response may carry beside options of usual size.
func (s *Stream) maxPayload() int {
	payload, _ := s.capacity()
	return payload
}

// capacity is what a message to the peer may carry beside options of usual size,
// and whether both sides know BERT blocks (RFC 8323 §5.3.2).
func (s *Stream) capacity() (payload int, bert bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	const options = wire.BaseMessageSize - maxDatagramPayload
	bert = s.peerBlocks && s.peerMessage > wire.BaseMessageSize && s.Limits.Message > wire.BaseMessageSize
	return max(min(s.peerMessage, s.Limits.Queue)-options, 0), bert
}

// respond sends a response; one that the peer cannot take becomes an error
// without payload.
func (s *Stream) respond(m *wire.Message) error {
	err := s.put(m)
	if errors.Is(err, errMessageTooBig) {
		s.Stats.ResponsesTooBig.Add(1)
		return s.put(&wire.Message{Code: codes.InternalServerError, Token: m.Token, Payload: []byte("response exceeds your Max-Message-Size")})
	}
	return err
}

// put queues a message. It returns errStreamClosed, errMessageTooBig, or an
// error of the encoding; a full queue ends the connection.
func (s *Stream) put(m *wire.Message) error {
	s.mu.Lock()
	err := s.append(m)
	first := len(s.ends) == 1
	s.mu.Unlock()
	switch {
	case err == nil && first:
		s.Engine.MarkDirty(s)
	case errors.Is(err, errQueueFull):
		s.Stats.QueueFull.Add(1)
		s.end(err)
	}
	return err
}

// append is put under the lock.
func (s *Stream) append(m *wire.Message) error {
	if s.closing {
		return errStreamClosed
	}
	start := len(s.queue)
	queue, err := s.conn.encode(m, s.queue)
	switch {
	case err != nil:
		return err
	case len(queue)-start > s.peerMessage:
		return errMessageTooBig
	case len(queue) > s.Limits.Queue:
		return errQueueFull
	}
	s.queue, s.ends = queue, append(s.ends, len(queue))
	s.Stats.Sent.Add(1)
	return nil
}

// Flush implements exchange.Flusher: it wakes the writer.
func (s *Stream) Flush() {
	select {
	case s.wake <- struct{}{}:
	default:
	}
}

// writeAll writes what is put into the queue until the connection ends.
func (s *Stream) writeAll() {
	var spare []byte
	var spareEnds []int
	for range s.wake {
		s.mu.Lock()
		queue, ends := s.queue, s.ends
		s.queue, s.ends = spare[:0], spareEnds[:0]
		closing := s.closing
		s.mu.Unlock()
		if len(queue) > 0 {
			if err := s.conn.write(queue, ends, s.Limits.Write); err != nil {
				s.end(err)
				return
			}
		}
		if closing {
			s.conn.closeWrite(s.Limits.Linger)
			return
		}
		if spare, spareEnds = queue, ends; cap(spare) > slotKeep {
			spare = nil
		}
	}
}

// watch looks after the time: of the handshake, then of silence. It runs on the
// engine's goroutine.
func (s *Stream) watch(now time.Time) {
	last := s.start.Add(time.Duration(s.lastRead.Load()))
	s.mu.Lock()
	settled, closing, pinged := s.settled, s.closing, s.pinged
	idle := now.Sub(last) >= s.Limits.Idle
	if settled && idle && pinged.IsZero() {
		s.pinged = now
	} else if !idle {
		s.pinged = time.Time{}
	}
	s.mu.Unlock()
	switch {
	case closing:
	case !settled:
		s.Stats.HandshakeTimeouts.Add(1)
		s.setCause(errNoCSM)
		s.abort("no CSM in time", 0)
	case !idle:
		s.Engine.Schedule(&s.watchdog, last.Add(s.Limits.Idle))
	case pinged.IsZero():
		s.Stats.PingsSent.Add(1)
		_ = s.put(&wire.Message{Code: codes.Ping})
		s.Engine.Schedule(&s.watchdog, now.Add(s.Limits.Pong))
	default:
		s.Stats.PeersSilent.Add(1)
		s.end(errPeerSilent)
	}
}

// secured reports a connection over TLS.
func (s *Stream) secured() bool { return strings.HasPrefix(s.scheme, "coaps") }

// usable reports whether requests can still be sent: neither side is ending the
// connection.
func (s *Stream) usable() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.closing && !s.released
}
