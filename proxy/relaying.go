package proxy

import (
	"slices"
	"sync"

	"coapproxy/endpoint"
)

// relaying are the group exchanges that may have sent non-confirmable responses, by
// client endpoint: a RST names one of those by its Message ID (GP-44). Guarded by the
// front's lock.
type relaying map[endpoint.Origin][]*groupRequest

func (r relaying) add(x *groupRequest) { r[x.key.origin] = append(r[x.key.origin], x) }

func (r relaying) remove(x *groupRequest) {
	all := r[x.key.origin]
	i := slices.Index(all, x)
	switch {
	case i < 0:
	case len(all) == 1:
		delete(r, x.key.origin)
	default:
		r[x.key.origin] = slices.Delete(all, i, i+1)
	}
}

// who returns the exchange that has sent a client endpoint the message with the ID,
// the latest of several, nil for none.
func (r relaying) who(client endpoint.Origin, id uint16) *groupRequest {
	for _, x := range slices.Backward(r[client]) {
		if x.watched.has(id) {
			return x
		}
	}
	return nil
}

var _ endpoint.FailureHandler = (*Front)(nil)

// HandleFailure implements endpoint.FailureHandler.
func (f *Front) HandleFailure(client endpoint.Origin, id uint16, _ error) bool {
	f.mu.Lock()
	x := f.relaying.who(client, id)
	f.mu.Unlock()
	if x == nil {
		return false
	}
	x.unwanted()
	return true
}

// relayedIDs are Message IDs in the order in which they were used. Towards one client
// they mostly follow each other, so that they are kept as runs. Safe for concurrent
// use.
type relayedIDs struct {
	mu    sync.Mutex
	count int // of all runs
	runs  []idRun
	room  [12]idRun // for the first runs
}

// idRun is so many Message IDs from the first one on.
type idRun struct{ first, count uint16 }

// add adds an ID; if there are more than limit then, the oldest is forgotten.
func (s *relayedIDs) add(id uint16, limit int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.count++
	if last := len(s.runs) - 1; last >= 0 && s.runs[last].first+s.runs[last].count == id && s.runs[last].count < 1<<15 {
		s.runs[last].count++
	} else {
		if s.runs == nil {
			s.runs = s.room[:0]
		}
		s.runs = append(s.runs, idRun{id, 1})
	}
	for ; s.count > limit; s.count-- {
		s.runs[0].first++
		if s.runs[0].count--; s.runs[0].count == 0 {
			s.runs = append(s.runs[:0], s.runs[1:]...)
		}
	}
}

func (s *relayedIDs) has(id uint16) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.runs, func(r idRun) bool { return id-r.first < r.count })
}
