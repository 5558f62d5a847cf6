package httpbridge

import (
	"errors"
	"net/http"
	"os"
	"time"
)

// sender writes a response so that a client that does not read cannot hold its
// goroutine for ever: every piece has its time, and so has the request body
// (HC-97).
type sender struct {
	w          http.ResponseWriter
	controller http.ResponseController
	timeout    time.Duration
	bounded    bool // what it writes to has deadlines of its own: guard.Write
	// expires: a write deadline counts while nothing is written too.
	expires  bool
	deadline time.Time // the one that was set last
	err      error     // of the first write that failed
}

// piece is how much is written under one deadline.
const piece = 32 << 10

// begin makes s the sender of the response to r, which came on conn if that is not
// nil.
func (s *sender) begin(w http.ResponseWriter, r *http.Request, l *Limits, conn *guard) {
	*s = sender{w: w, controller: *http.NewResponseController(w), timeout: l.SendTimeout, bounded: conn != nil, expires: r.ProtoMajor == 2}
	if r.ContentLength != 0 && r.Body != nil && r.Body != http.NoBody {
		// It counts for what the server itself reads of a body that nobody wanted,
		// too.
		_ = s.controller.SetReadDeadline(time.Now().Add(l.ReceiveTimeout))
		if !s.expires { // the server may write 100 Continue before we write anything
			s.arm()
		}
	}
}

// Write implements io.Writer.
func (s *sender) Write(b []byte) (int, error) {
	n := 0
	for s.err == nil && n < len(b) {
		s.arm()
		var m int
		m, s.err = s.w.Write(b[n:min(n+piece, len(b))])
		n += m
	}
	s.disarm()
	return n, s.err
}

// received lifts the deadline of the request body: it is there.
func (s *sender) received() { _ = s.controller.SetReadDeadline(time.Time{}) }

// flush makes what was written leave now.
func (s *sender) flush() error {
	if s.err == nil {
		s.arm()
		s.err = s.controller.Flush()
		s.disarm()
	}
	return s.err
}

// finish bounds the time that the server itself takes to send the rest.
func (s *sender) finish() { s.arm() }

// tooSlow reports whether writing failed because the client did not read.
func (s *sender) tooSlow() bool {
	return errors.Is(s.err, os.ErrDeadlineExceeded) || s.err != nil && !s.bounded && !time.Now().Before(s.deadline)
}

// arm gives the next write its time. A deadline that was set a moment ago, and
// that does not expire meanwhile, is good enough: setting one has its price.
func (s *sender) arm() {
	if s.bounded {
		return
	}
	deadline := time.Now().Add(s.timeout)
	if !s.expires && deadline.Sub(s.deadline) < min(time.Second, s.timeout/8) {
		return
	}
	s.deadline = deadline
	_ = s.controller.SetWriteDeadline(deadline)
}

func (s *sender) disarm() {
	if s.expires {
		_ = s.controller.SetWriteDeadline(time.Time{})
	}
}
