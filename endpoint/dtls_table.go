package endpoint

import (
	"crypto/rand"
	"errors"
	"net/netip"
	"time"

	"github.com/pion/dtls/v3"
)

// helloTime is how long a client has for its second ClientHello, with the cookie,
// however many others want its place.
const helloTime = 100 * time.Millisecond

// accept makes a session for a client's first ClientHello; nil when there are too many
// of the same kind, whose time is not over, or still ending: the client says it again.
// Clients from where somebody has proven who it is have places of their own, which no
// flood of forged addresses takes. Called under the lock.
func (d *DTLSConn) accept(addr netip.AddrPort, path Path) *dtlsSession {
	places, most := &d.unproven, 2*d.Limits.Handshakes
	if d.familiar.Contains(peerPrefix(addr.Addr())) {
		places, most = &d.returning, 4*d.Limits.Handshakes
	}
	if d.opening >= most {
		d.Stats.Refused.Add(1)
		return nil
	}
	now := time.Now()
	if places.Len() >= d.Limits.Handshakes {
		d.Stats.Refused.Add(1)
		oldest := places.Front().Value.(*dtlsSession)
		if now.Sub(oldest.begun) < helloTime {
			return nil
		}
		places.Remove(oldest.element)
		oldest.element = nil
		oldest.endLater(errSessionFull)
	}
	s := d.newSession(addr, path, "")
	a := d.byAddr[addr]
	if a == nil {
		a = &addrSessions{}
		d.byAddr[addr] = a
	}
	a.pending = s
	s.begun = now
	s.element = places.PushBack(s)
	s.opening = true
	d.opening++
	d.Stats.Handshakes.Add(1)
	d.wg.Go(s.serve)
	return s
}

// prove notes that a client has shown our cookie, so that its address is no
// forgery (RFC 6347 §4.2.1), and gives it a place among the handshakes. Called
// under the lock.
func (d *DTLSConn) prove(s *dtlsSession, data []byte) {
	if !s.hasCookie(data) || s.element == nil {
		return
	}
	d.unproven.Remove(s.element)
	d.returning.Remove(s.element)
	s.element = nil
	prefix := peerPrefix(s.addr.Addr())
	if d.peers[prefix] >= d.Limits.PerPeer || d.handshakes >= d.Limits.Handshakes && !d.makeWay(prefix) || !d.makeRoom() {
		d.Stats.Refused.Add(1)
		s.endLater(errSessionFull)
		return
	}
	s.opening = false
	d.opening--
	s.proven, s.counted, s.begun = true, true, time.Now()
	s.element = d.proving.PushBack(s)
	d.handshakes++
	d.peers[prefix]++
}

// isProven reports whether the address of a session's peer is no forgery.
func (d *DTLSConn) isProven(s *dtlsSession) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return s.proven
}

// slowHandshake is how old a handshake may grow while others want its place: more
// than one that loses a flight or two takes.
const slowHandshake = 3 * time.Second

// makeWay has a handshake give way to one of a client whose address has the prefix,
// and reports whether one has: the oldest of the prefix that has most of them, so
// that a few addresses which begin handshakes and stall keep nobody else out; or else
// a slow one; or else, for a client from where somebody has proven who it is, the
// oldest from where nobody has, so that thousands of addresses do not keep out those
// who belong here. Called under the lock.
func (d *DTLSConn) makeWay(prefix netip.Prefix) bool {
	if d.handshakes >= 2*d.Limits.Handshakes { // those that gave way are still ending
		return false
	}
	counts, most := make(map[netip.Prefix]int), 0
	for e := d.proving.Front(); e != nil; e = e.Next() {
		p := peerPrefix(e.Value.(*dtlsSession).addr.Addr())
		counts[p]++
		most = max(most, counts[p])
	}
	crowded, familiar := most > counts[prefix]+1, d.familiar.Contains(prefix)
	for e := d.proving.Front(); e != nil; e = e.Next() {
		s := e.Value.(*dtlsSession)
		from := peerPrefix(s.addr.Addr())
		if crowded && counts[from] == most || !crowded && (time.Since(s.begun) >= slowHandshake || familiar && !d.familiar.Contains(from)) {
			d.proving.Remove(e)
			s.element = nil
			d.Stats.Refused.Add(1)
			s.endLater(errSessionFull)
			return true
		}
		if !crowded && !familiar {
			break // the others are younger
		}
	}
	return false
}

// makeRoom reports whether there may be one more session; the longest silent one
// gives way if it has been silent long enough. Called under the lock.
func (d *DTLSConn) makeRoom() bool {
	if d.silent.Len()+d.handshakes < d.Limits.Sessions {
		return true
	}
	front := d.silent.Front()
	if front == nil {
		return false
	}
	s := front.Value.(*dtlsSession)
	if time.Since(s.heard) < minSilence {
		return false
	}
	d.Stats.Evicted.Add(1)
	d.silent.Remove(s.element)
	s.element = nil
	s.endLater(errSessionFull)
	return true
}

// establish enters a session whose handshake is over.
func (d *DTLSConn) establish(s *dtlsSession, conn *dtls.Conn) {
	d.mu.Lock()
	defer d.mu.Unlock()
	s.isEstablished = true
	s.heard = time.Now()
	if s.element != nil {
		d.proving.Remove(s.element)
	}
	s.element = d.silent.PushBack(s)
	if s.counted {
		d.handshakes--
	}
	a := d.byAddr[s.addr]
	if a == nil || a.pending != s {
		return
	}
	a.pending = nil
	if old := a.established; old != nil && old.at() == s.addr {
		old.endLater(errReplaced)
	}
	a.established = s
	if !d.client && s.security != nil {
		d.familiar.Add(peerPrefix(s.addr.Addr()), struct{}{})
	}
	d.failures.Remove(serverName{s.addr, s.name})
	d.Stats.Established.Add(1)
	d.Stats.Sessions.Add(1)
}

var errReplaced = errors.New("the peer has opened a new session")

// remove takes a session out that has ended.
func (d *DTLSConn) remove(s *dtlsSession, cause error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if a := d.byAddr[s.addr]; a != nil {
		if a.pending == s {
			a.pending = nil
		}
		if a.established == s {
			a.established = nil
		}
		if *a == (addrSessions{}) {
			delete(d.byAddr, s.addr)
		}
	}
	if d.byCID[s.cid] == s {
		delete(d.byCID, s.cid)
	}
	if s.counted {
		prefix := peerPrefix(s.addr.Addr())
		if d.peers[prefix]--; d.peers[prefix] == 0 {
			delete(d.peers, prefix)
		}
	}
	if d.client {
		if errors.Is(cause, errSessionClosed) {
			d.remembering.Remove(s.addr) // it has said so
		} else {
			d.remembering.Add(s.addr, struct{}{})
		}
	}
	if s.isEstablished {
		d.Stats.Sessions.Add(-1)
		if s.element != nil {
			d.silent.Remove(s.element)
		}
		return
	}
	if s.counted {
		d.handshakes--
	}
	if s.opening {
		d.opening--
	}
	if s.element != nil { // in one of them
		d.unproven.Remove(s.element)
		d.returning.Remove(s.element)
		d.proving.Remove(s.element)
	}
	d.Stats.HandshakesFailed.Add(1)
	if d.client && !d.closing {
		old, _ := d.failures.Get(serverName{s.addr, s.name})
		pause := min(max(2*old.pause, d.Limits.RetryMin), d.Limits.RetryMax)
		d.failures.Add(serverName{s.addr, s.name}, failedServer{until: time.Now().Add(pause), pause: pause, err: cause})
	}
}

// dropIdle ends the sessions of which nothing has been heard for long.
func (d *DTLSConn) dropIdle(now time.Time) {
	d.mu.Lock()
	for e := d.silent.Front(); e != nil && !d.closing; e = d.silent.Front() {
		s := e.Value.(*dtlsSession)
		if now.Sub(s.heard) < d.Limits.Idle {
			break
		}
		d.silent.Remove(e)
		s.element = nil
		d.Stats.Idle.Add(1)
		s.endLater(errIdleSession)
	}
	closing := d.closing
	d.mu.Unlock()
	if !closing {
		d.Engine.Schedule(&d.sweep, now.Add(d.Limits.Idle/4))
	}
}

var errIdleSession = errors.New("nothing heard for a long time")

// newConnectionID gives a session its Connection ID. Called by the handshake.
func (d *DTLSConn) newConnectionID(s *dtlsSession) []byte {
	var id connectionID
	_, _ = rand.Read(id[:]) // never fails
	d.mu.Lock()
	if d.byCID[s.cid] == s {
		delete(d.byCID, s.cid)
	}
	s.cid = id
	d.byCID[id] = s
	d.mu.Unlock()
	return id[:]
}
