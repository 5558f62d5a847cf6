package proxy

import (
	"time"

	"coapproxy/exchange"
)

// This file is about observers that have vanished, and hold the place of others until
// the next time that they are asked (FP-68, GP-65): where places get scarce, some are
// asked sooner. Whoever does not acknowledge that gives up its place.

const (
	// attendAfter is how long nothing may have shown that an observer is there before
	// it is asked where places are scarce, and the pause before it is asked again.
	attendAfter = 10 * time.Minute
	// attendAtOnce is how many are asked for each registration then, and
	// attendSample among how many those are looked for.
	attendAtOnce, attendSample = 4, 32
)

// attend asks some observers whether they are there, when most places for them are
// taken.
func (f *Front) attend(taken int64) {
	if taken <= int64(f.MaxObservers)*3/4 {
		return
	}
	var some []exchange.Attended
	f.mu.Lock()
	n := 0
	for x := range f.observers.all() { // in no order
		if n++; n > attendSample {
			break
		}
		some = append(some, x)
	}
	n = 0
	for _, x := range f.running {
		if n++; n > attendSample {
			break
		}
		if x.observes {
			some = append(some, x)
		}
	}
	f.mu.Unlock()
	asked := f.Stats.ObserversAsked.Load()
	for _, x := range some {
		if x.Attend(); f.Stats.ObserversAsked.Load()-asked >= attendAtOnce {
			return
		}
	}
}

// doubted reports whether an observer is to be asked that was last heard, and asked, at
// these times.
func doubted(confirmedAt, askedAt, now time.Time) bool {
	return now.Sub(confirmedAt) >= attendAfter && now.Sub(askedAt) >= attendAfter
}

// Attend implements exchange.Attended: the next notification is confirmable, and comes
// soon.
func (x *observation) Attend() {
	now := time.Now()
	x.mu.Lock()
	renewer, _ := x.cancel.(exchange.Renewer)
	if x.closed || !x.registered || x.unconfirmed || x.in.Reliable() || renewer == nil || !doubted(x.front.time(x.confirmedAt), x.front.time(x.askedAt), now) {
		x.mu.Unlock()
		return
	}
	x.askedAt = x.front.moment(now)
	x.mu.Unlock()
	x.front.Stats.ObserversAsked.Add(1)
	renewer.Renew()
}

// Attend implements exchange.Attended, for an observation of a group.
func (x *groupRequest) Attend() {
	f, o, now := x.front, x.observation, time.Now()
	if o == nil {
		return
	}
	f.mu.Lock()
	renewer, _ := x.cancel.(exchange.Renewer)
	f.mu.Unlock()
	o.mu.Lock()
	ask := renewer != nil && !x.in.Reliable() && !o.confirmedAt.IsZero() && doubted(o.confirmedAt, o.askedAt, now)
	if ask {
		o.probe, o.askedAt = true, now
	}
	o.mu.Unlock()
	if ask {
		f.Stats.ObserversAsked.Add(1)
		renewer.Renew()
	}
}
