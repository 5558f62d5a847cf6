package httpbridge

import (
	"context"
	"sync"
	"time"
)

// SetReadDeadline implements net.Conn, but for calls of Read that begin after it: the
// server sets four deadlines for a request, and reads once.
func (g *guard) SetReadDeadline(t time.Time) error {
	g.readBy = t
	return nil
}

// Write implements net.Conn. It bounds its time on its own, so that a client that does
// not read cannot hold the goroutine of its request for ever (HC-97): the server lifts
// a deadline of the handler at the end of each request. One that was set a moment ago
// is good enough: setting it has its price.
func (g *guard) Write(p []byte) (int, error) {
	if by := time.Now().Add(g.sendTime); by.Sub(g.sendBy) >= min(time.Second, g.sendTime/8) {
		g.sendBy = by
		_ = g.Conn.SetWriteDeadline(by) // fails if Write will
	}
	return g.Conn.Write(p)
}

// SetWriteDeadline implements net.Conn; see Write.
func (g *guard) SetWriteDeadline(time.Time) error { return nil }

// SetWriteDeadline implements net.Conn. Over TLS there are things to write that nobody
// has asked for, so that the deadline has to be lifted indeed.
func (g secureGuard) SetWriteDeadline(t time.Time) error {
	g.sendBy = t
	return g.tls.SetWriteDeadline(t)
}

// watch looks whether the client of a request that is under way has gone. net/http
// reads a byte from the start of every request on, with a goroutine that has to be
// called back before the response: that costs a tenth of all a GET costs. Most are
// over soon; only when one is not, somebody waits.
type watch struct {
	socket *tcpConn // nil: there is no watch
	// gone ends all requests on the connection.
	gone context.CancelFunc

	mu      sync.Mutex
	busy    bool // a request is under way
	closed  bool
	ticking bool // look will be called
	timer   *time.Timer
	waiting chan struct{} // closed when nobody waits any more; nil: nobody does
}

// watchAfter is how long a request may go on, at least, before somebody waits. Quick
// ones have one timer in that time.
const watchAfter = 100 * time.Millisecond

// begin is called when a request has been read.
func (w *watch) begin() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.busy = true
	switch {
	case w.ticking || w.closed:
		return
	case w.timer == nil:
		w.timer = time.AfterFunc(watchAfter, w.look)
	default:
		w.timer.Reset(watchAfter)
	}
	w.ticking = true
}

func (w *watch) look() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ticking = false
	if w.busy && w.waiting == nil && !w.closed {
		w.waiting = make(chan struct{})
		go w.wait(w.waiting)
	}
}

// wait ends requests when the client has gone. It returns when it did, at the read
// deadline, or when the connection is closed.
func (w *watch) wait(over chan<- struct{}) {
	defer close(over)
	if w.socket.awaitHangUp() == nil {
		w.gone()
	}
}

// end is called when something is to be read. It reports whether it has lifted the
// read deadline of the connection.
func (w *watch) end() bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.busy = false
	if w.waiting == nil {
		return false
	}
	_ = w.socket.SetReadDeadline(time.Unix(1, 0))
	<-w.waiting
	_ = w.socket.SetReadDeadline(time.Time{})
	w.waiting = nil
	return true
}

// close is called when the connection is closed.
func (w *watch) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	if w.timer != nil {
		w.timer.Stop()
	}
	if w.waiting != nil {
		<-w.waiting
	}
	if w.gone != nil {
		w.gone()
	}
}
