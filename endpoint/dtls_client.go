package endpoint

import (
	"bytes"
	"errors"
	"net"
	"net/netip"
	"time"
)

// This file has what a DTLSConn does as a client.

// sessionTo returns the session with a server, which may be just being opened.
func (d *DTLSConn) sessionTo(dg *Datagram) (*dtlsSession, error) {
	addr := dg.Peer.Addr
	d.mu.Lock()
	defer d.mu.Unlock()
	if a := d.byAddr[addr]; a != nil {
		s := a.established
		if s == nil {
			s = a.pending
		}
		switch {
		case s.provenFor(dg.Peer.name):
			if !d.fallenSilent(s) {
				return s, nil
			}
			s.replaced.Store(true)
			s.endLater(errServerSilent)
		case s.isEstablished && time.Since(s.used) >= minSilence:
			s.endLater(errReplaced)
		default:
			return nil, errOtherName
		}
		d.remembering.Add(addr, struct{}{})
		delete(d.byAddr, addr)
	}
	if f, failed := d.failures.Get(serverName{addr, dg.Peer.name}); failed && time.Now().Before(f.until) {
		return nil, f.err
	}
	if d.closing {
		return nil, net.ErrClosed
	}
	if d.handshakes >= d.Limits.Handshakes || !d.makeRoom() {
		d.Stats.Refused.Add(1)
		return nil, errSessionFull
	}
	s := d.newSession(addr, dg.Path, dg.Peer.name)
	s.apart = d.Dial != nil && d.remembering.Contains(addr)
	s.proven = true
	s.counted = true
	d.handshakes++
	d.peers[peerPrefix(addr.Addr())]++
	d.byAddr[addr] = &addrSessions{pending: s}
	d.Stats.Handshakes.Add(1)
	d.wg.Go(s.dial)
	return s, nil
}

// serverSilence is how long a server may leave everything unanswered before the
// session with it counts as lost: it may have restarted, and then takes what we
// send for noise. It is more than a server may take to acknowledge a message
// twice over (RFC 7252 §4.8), and less than the time for which one is repeated.
const serverSilence = 5 * time.Second

// fallenSilent reports whether nothing has been heard in an established session
// since we wrote, for too long; s is about to be written to. Called under the lock.
func (d *DTLSConn) fallenSilent(s *dtlsSession) bool {
	now := time.Now()
	s.used = now
	if !s.isEstablished {
		return false
	}
	if !s.asked.After(s.heard) {
		s.asked = now
	}
	if now.Sub(s.asked) < serverSilence {
		return false
	}
	d.Stats.Silent.Add(1)
	return true
}

var errServerSilent = errors.New("the server does not answer any more")

// serverName is a server under the name that it has to prove.
type serverName struct {
	addr netip.AddrPort
	name string
}

// maxMute is how many handshakes are begun with a server that answers, and falls
// silent when it is to show that it has our pre-shared key: most likely it has
// another one.
const maxMute = 2

// again begins another handshake with the server of s, whose own has taken too long,
// for what has not waited too long; the rest stays with s. It reports false if there
// is nothing to begin it for, or it would be in vain.
func (d *DTLSConn) again(s *dtlsSession) bool {
	if s.identity != "" && s.answered.Load() && s.attempt+1 >= maxMute {
		return false
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	a := d.byAddr[s.addr]
	if d.closing || a == nil || a.pending != s || d.handshakes > d.Limits.Handshakes*3/4 { // others have not had their first one
		return false
	}
	next := d.newSession(s.addr, s.path, s.name)
	next.attempt, next.apart = s.attempt+1, d.Dial != nil
	d.remembering.Add(s.addr, struct{}{})
	now := time.Now()
	s.mu.Lock()
	var late []waitingDatagram
	for _, w := range s.waiting {
		if now.Sub(w.since) < d.Limits.Wait {
			next.waiting = append(next.waiting, w)
		} else {
			late = append(late, w)
		}
	}
	if len(next.waiting) == 0 {
		s.mu.Unlock()
		return false
	}
	s.waiting, s.ended = late, true
	s.mu.Unlock()
	next.proven, next.counted, s.counted = true, s.counted, false // it takes its place
	a.pending = next
	d.Stats.Handshakes.Add(1)
	d.Stats.HandshakesFailed.Add(1)
	d.Stats.HandshakesRepeated.Add(1)
	d.wg.Go(next.dial)
	return true
}

// openSocket opens the socket of a session apart, and begins to read from it.
func (s *dtlsSession) openSocket() error {
	d := s.owner
	socket, err := d.Dial(s.ctx, s.addr)
	if err != nil {
		return err
	}
	s.mu.Lock()
	if s.ended {
		s.mu.Unlock()
		return errors.Join(net.ErrClosed, socket.Close())
	}
	s.socket = socket
	s.mu.Unlock()
	d.wg.Go(func() {
		buf := make([]byte, maxDatagram)
		for {
			n, err := socket.Read(buf)
			if errors.Is(err, net.ErrClosed) {
				return
			}
			if err != nil {
				s.end(errUndeliverable)
				return
			}
			d.mu.Lock()
			d.hears(s)
			d.mu.Unlock()
			s.push(buf[:n], s.addr)
		}
	})
	return nil
}

var errOtherName = errors.New("the server has a certificate for another name")

// provenFor reports whether the server may be known by the name, as far as that
// can be said: by a certificate only when it has shown it.
func (s *dtlsSession) provenFor(name string) bool {
	if name == s.name {
		return true
	}
	s.mu.Lock()
	shown := s.conn != nil
	s.mu.Unlock()
	if shown && s.leaf != nil {
		if name == "" {
			name = s.addr.Addr().WithZone("").String()
		}
		return s.leaf.VerifyHostname(name) == nil
	}
	c := s.owner.Credentials()
	if c.KeyFor == nil {
		return false
	}
	identity, key, ok := c.KeyFor(s.addr, s.name)
	other, otherKey, otherOK := c.KeyFor(s.addr, name)
	return ok && otherOK && identity == other && bytes.Equal(key, otherKey)
}
