package exchange

import "sync"

// Serial runs functions strictly one after another without making anybody
// wait: who finds it free runs its function at once, and after it what others
// brought in the meantime; who finds it busy leaves its function behind. It is
// how the calls on a Sink are serialised when several goroutines have something
// for it. A function may call Do on the Serial that runs it. The zero value is
// ready for use.
type Serial struct {
	mu     sync.Mutex
	busy   bool
	queued int32 // functions in queue that count against a limit
	queue  []func()
}

// maxSerialQueue bounds the functions left behind that may be dropped.
const maxSerialQueue = 1024

// Do runs now, or keeps what later returns to be run soon; later makes copies
// of what now only borrows, and must not use the Serial itself. Do reports
// false, having done nothing, when too many functions wait already.
func (s *Serial) Do(now func(), later func() func()) bool {
	s.mu.Lock()
	if s.busy {
		if s.queued >= maxSerialQueue {
			s.mu.Unlock()
			return false
		}
		s.queued++
		kept := later()
		s.queue = append(s.queue, func() {
			s.mu.Lock()
			s.queued--
			s.mu.Unlock()
			kept()
		})
		s.mu.Unlock()
		return true
	}
	s.busy = true
	s.mu.Unlock()
	s.run(now)
	return true
}

// DoAlways is Do for a function that borrows nothing and must not be dropped.
func (s *Serial) DoAlways(f func()) {
	s.mu.Lock()
	if s.busy {
		s.queue = append(s.queue, f)
		s.mu.Unlock()
		return
	}
	s.busy = true
	s.mu.Unlock()
	s.run(f)
}

func (s *Serial) run(f func()) {
	for {
		f()
		s.mu.Lock()
		if len(s.queue) == 0 {
			s.busy = false
			s.queue = nil
			s.mu.Unlock()
			return
		}
		f = s.queue[0]
		s.queue[0] = nil
		s.queue = s.queue[1:]
		s.mu.Unlock()
	}
}
