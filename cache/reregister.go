package cache

// Reregister has all observations registered anew, by what carries out requests
// now: a configuration has been replaced. Their clients notice nothing but a
// notification of the current state. The caller flushes.
func (c *Cache) Reregister() {
	c.mu.Lock()
	var all []*shared
	for _, s := range c.flights {
		if s.observe {
			all = append(all, s)
		}
	}
	c.mu.Unlock()
	for _, s := range all {
		s.serial.DoAlways(s.reregister)
	}
}

// reregister ends the upstream exchange and has the next begin, in finish. Run by
// serial.
func (s *shared) reregister() {
	c := s.cache
	c.mu.Lock()
	upstream := s.upstream
	ready := upstream != nil && !s.abandoned && !s.closed && s.again.Bare() != nil
	c.mu.Unlock()
	if s.ended || s.repeat || !ready {
		return
	}
	s.repeat, s.moved = true, true
	upstream.Cancel()
}
