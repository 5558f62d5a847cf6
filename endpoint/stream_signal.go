package endpoint

import (
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"go.uber.org/zap"

	"coapproxy/wire"
)

// sendCSM sends our capabilities, the first message of a connection (RFC 8323
// §5.3).
func (s *Stream) sendCSM() {
	_ = s.put(&wire.Message{Code: codes.CSM, Options: message.Options{
		{ID: wire.CSMMaxMessageSize, Value: wire.AppendUint(nil, uint32(s.Limits.Message))},
		{ID: wire.CSMBlockWiseTransfer},
	}})
}

// signal handles a signaling message (RFC 8323 §5). These concern one connection
// and are never proxied (FP-89).
func (s *Stream) signal(m *wire.Message) {
	// No critical option is registered for any of them.
	for _, o := range m.Options {
		if !wire.Critical(o.ID) {
			continue
		}
		bad := message.OptionID(0)
		if m.Code == codes.CSM {
			bad = o.ID
		}
		s.abort("unknown critical option of a signaling message", bad) // RFC 8323 §5.2
		return
	}
	switch m.Code {
	case codes.CSM:
		s.peerCSM(m)
	case codes.Ping:
		s.ping(m)
	case codes.Pong: // beside how long it took, that something arrived is all that matters
		s.mu.Lock()
		if !s.pinged.IsZero() {
			s.roundTrip = time.Since(s.pinged)
		}
		s.mu.Unlock()
	case codes.Release:
		s.Stats.ReleasesReceived.Add(1)
		s.mu.Lock()
		s.released = true
		s.mu.Unlock()
		s.closeIfReleased()
	case codes.Abort:
		s.Stats.AbortsReceived.Add(1)
		s.Log.Info("peer aborted the connection", zap.Stringer("peer", s.peer), zap.ByteString("why", diagnostic(m.Payload)))
		s.end(errAborted)
	default:
		s.Stats.Ignored.Add(1)
	}
}

// diagnostic shortens a text of the peer for the log.
func diagnostic(payload []byte) []byte { return payload[:min(len(payload), 200)] }

// peerCSM takes over what the peer says it can do; what it does not repeat stays
// as it was.
func (s *Stream) peerCSM(m *wire.Message) {
	size, hasSize := wire.First(m.Options, wire.CSMMaxMessageSize)
	limit, ok := wire.Uint(size)
	if hasSize && !ok {
		s.abort("Max-Message-Size is malformed", wire.CSMMaxMessageSize)
		return
	}
	s.mu.Lock()
	if hasSize {
		s.peerMessage = int(limit)
	}
	s.peerBlocks = s.peerBlocks || wire.Has(m.Options, wire.CSMBlockWiseTransfer)
	first := !s.settled
	s.settled = true
	s.mu.Unlock()
	if first {
		s.owner.ready(s)
		s.Engine.Schedule(&s.watchdog, time.Now().Add(s.Limits.Idle))
	}
}

// ping answers a Ping (RFC 8323 §5.4): at once, or, if the peer asks for
// Custody, when all requests that came before it have been answered. One Pong may
// wait like this; another Ping meanwhile is answered at once.
func (s *Stream) ping(m *wire.Message) {
	s.Stats.PingsReceived.Add(1)
	custody := wire.Has(m.Options, wire.PingCustody)
	kept := s.open.count() == 0
	s.mu.Lock()
	later := custody && !kept && !s.waiting
	if later {
		s.waiting, s.custody = true, append([]byte(nil), m.Token...)
	}
	s.mu.Unlock()
	if later && s.open.count() == 0 { // the last one was answered meanwhile
		s.finished(nil)
	}
	if !later {
		s.pong(m.Token, custody && kept)
	}
}

func (s *Stream) pong(token []byte, custody bool) {
	m := wire.Message{Code: codes.Pong, Token: token}
	if custody {
		m.Options = message.Options{{ID: wire.PingCustody}}
	}
	_ = s.put(&m)
}

// abort ends the connection with a last word to the peer (RFC 8323 §5.6). bad
// names a CSM option; 0: none.
func (s *Stream) abort(why string, bad message.OptionID) {
	m := wire.Message{Code: codes.Abort, Payload: []byte(why)}
	if bad != 0 {
		m.Options = message.Options{{ID: wire.AbortBadCSMOption, Value: wire.AppendUint(nil, uint32(bad))}}
	}
	if s.last(&m) {
		s.Stats.AbortsSent.Add(1)
		s.Log.Info("connection aborted", zap.Stringer("peer", s.peer), zap.String("why", why))
	}
	s.setCause(errAborted)
}

// release ends the connection in an orderly way (RFC 8323 §5.5): what has been
// put before is still sent.
func (s *Stream) release() {
	s.last(&wire.Message{Code: codes.Release})
	s.setCause(errReleased)
}

// last queues the last message of the connection. It reports false when the
// connection was ending already.
func (s *Stream) last(m *wire.Message) bool {
	s.mu.Lock()
	if s.closing {
		s.mu.Unlock()
		return false
	}
	_ = s.append(m) // what does not fit is not said
	s.closing = true
	s.mu.Unlock()
	s.Engine.MarkDirty(s)
	return true
}

// closeIfReleased closes the connection that the peer wants to end, when nothing
// of it is waiting for an answer.
func (s *Stream) closeIfReleased() {
	if s.open.count() > 0 || s.owner.busy(s) {
		return
	}
	s.mu.Lock()
	done := s.released && !s.closing
	s.closing = s.closing || done
	s.mu.Unlock()
	if done {
		s.setCause(errReleased)
		s.Engine.MarkDirty(s)
	}
}
