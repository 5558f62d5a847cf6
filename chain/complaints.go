package chain

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"go.uber.org/zap"
)

// misdeed is what a next proxy does that it should not.
type misdeed uint8

const (
	unnamed misdeed = iota
	malformed
	nonsense
	excess
	late
	stray
	misdeeds // how many there are
)

// text is what the log says of it.
func (m misdeed) text() string {
	return [misdeeds]string{
		unnamed:   "it does not say which server a response is from",
		malformed: "its Reply-From cannot be read",
		nonsense:  "it refuses a timeout and asks for none that would do",
		excess:    "it goes on after the response that ended a request, or has errors between responses",
		late:      "it goes on after the timeout",
		stray:     "it sends responses that no request waits for",
	}[m]
}

func (s *Stats) of(m misdeed) *atomic.Uint64 {
	return [misdeeds]*atomic.Uint64{unnamed: &s.Unnamed, malformed: &s.Malformed, nonsense: &s.Nonsense, excess: &s.Excess, late: &s.Late, stray: &s.Stray}[m]
}

// complaintEvery is how often the log says the same of a next proxy at most.
const complaintEvery = time.Minute

// complaints are when the log last said what of a next proxy. Safe for concurrent
// use.
type complaints struct {
	mu   sync.Mutex
	last [misdeeds]time.Time
}

func (c *complaints) due(m misdeed, now time.Time) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now.Sub(c.last[m]) < complaintEvery {
		return false
	}
	c.last[m] = now
	return true
}

// misbehaves counts what the hop did, and says so now and then; exchange is the ID
// of the exchange, 0 where there is none.
func (h *hop) misbehaves(m misdeed, exchange uint64) {
	counter := h.Stats.of(m)
	total := counter.Add(1)
	if !h.complaints.due(m, time.Now()) {
		return
	}
	fields := []zap.Field{zap.String("hop", h.Name), zap.String("what", m.text()), zap.Uint64("times", total)}
	if exchange != 0 {
		fields = append(fields, zap.Uint64("exchange", exchange))
	}
	h.chain.config.Log.Warn("next hop misbehaves", fields...)
}

// Stray takes note of a response that no request waits for, if it is from a next
// proxy.
func (c *Chain) Stray(scheme string, from netip.AddrPort) {
	for p := range c.all() {
		if to := p.to(); to.Scheme == scheme && to.Addr == from {
			p.hop.misbehaves(stray, 0)
			return
		}
	}
}
