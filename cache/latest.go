package cache

import (
	"iter"
	"net/netip"
)

// latest has the latest response of each server, nil for one that is not stored;
// without a map as long as there is but one server, as for an observation.
type latest struct {
	any    bool // there is a first one
	server netip.AddrPort
	entry  *entry
	more   map[netip.AddrPort]*entry
}

func (l *latest) of(server netip.AddrPort) (*entry, bool) {
	if l.any && l.server == server {
		return l.entry, true
	}
	e, ok := l.more[server]
	return e, ok
}

func (l *latest) set(server netip.AddrPort, e *entry) {
	switch {
	case !l.any || l.server == server:
		l.any, l.server, l.entry = true, server, e
	case l.more == nil:
		l.more = map[netip.AddrPort]*entry{server: e}
	default:
		l.more[server] = e
	}
}

func (l *latest) len() int {
	if !l.any {
		return 0
	}
	return 1 + len(l.more)
}

func (l *latest) all() iter.Seq[*entry] {
	return func(yield func(*entry) bool) {
		if !l.any || !yield(l.entry) {
			return
		}
		for _, e := range l.more {
			if !yield(e) {
				return
			}
		}
	}
}
