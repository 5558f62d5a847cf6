package oscorehop

import "time"

// Level is how far the use of a context has gone (OC-54, OC-55).
type Level uint8

// The levels.
const (
	Normal  Level = iota
	Watch         // half of a limit: tell the operator
	Soft          // 80 % of a limit: no new observations or group requests, rekey
	Refused       // at a limit: nothing is protected, or nothing verified
)

// String names the level for logs.
func (l Level) String() string {
	switch l {
	case Normal:
		return "normal"
	case Watch:
		return "watch"
	case Soft:
		return "soft limit"
	default:
		return "refused"
	}
}

// Usage is how much of a context has been used at one moment.
type Usage struct {
	Encryptions uint64 // count_q, estimated from above (OC-52)
	Failures    uint64 // count_v
	Sequence    uint64 // next Sender Sequence Number
	Limits      Limits
	// Level is the highest of all limits, Limit the one that has it.
	Level Level
	Limit Limit
}

// Usage returns how much has been used. Callers look after protecting or
// verifying, or now and then.
func (c *Context) Usage() Usage {
	u := Usage{Limits: c.limits, Encryptions: c.encryptions()}
	u.Sequence, u.Failures = c.counter.used()
	u.raise(Encryptions, u.Encryptions, c.limits.Encryptions)
	u.raise(Failures, u.Failures, c.limits.Failures)
	u.raise(Sequence, u.Sequence, maxSequence+1) // OH-111
	if created, expires := c.params.Created, c.params.Expires; !expires.IsZero() {
		now := time.Now()
		switch {
		case !now.Before(expires):
			u.raise(Lifetime, 1, 1)
		case !created.IsZero() && expires.After(created) && now.After(created):
			u.raise(Lifetime, uint64(now.Sub(created)), uint64(expires.Sub(created)))
		}
	}
	return u
}

// Risen returns the usage and whether its level is higher than it was at every
// call before: the operator is to be told once of each (OC-54).
func (c *Context) Risen() (Usage, bool) {
	u := c.Usage()
	for {
		told := c.alarm.Load()
		if uint32(u.Level) <= told {
			return u, false
		}
		if c.alarm.CompareAndSwap(told, uint32(u.Level)) {
			return u, true
		}
	}
}

// raise notes the level of one limit if it is the highest so far (OC-55).
func (u *Usage) raise(which Limit, used, limit uint64) {
	level := Normal
	switch {
	case used >= limit:
		level = Refused
	case used >= limit-limit/5:
		level = Soft
	case used >= limit-limit/2:
		level = Watch
	}
	if level > u.Level {
		u.Level, u.Limit = level, which
	}
}
