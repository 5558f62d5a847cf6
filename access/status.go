package access

import (
	"time"
)

// Whose limit a request was refused for; see Stats.
const (
	byClient = iota
	byClientGroup
	byGroup
	byPrefix
	byExchanges
	limits
)

// LabelValues names the elements of Stats.Limited.
func (*Stats) LabelValues(string) [][]string {
	return [][]string{{"client", "client_group", "group", "prefix", "max_exchanges"}}
}

// Activity is what a client entry is doing.
type Activity struct {
	Name string
	// Requests is how many it has made since the configuration was read, Last when
	// the latest came; zero for never.
	Requests uint64
	Last     time.Time
	// Running is its group exchanges.
	Running int
}

// Activity returns what each client entry is doing, in the order of the
// configuration.
func (p *Policy) Activity() []Activity {
	var all []Activity
	for _, c := range p.clients {
		a := Activity{Name: c.identity.Name, Requests: c.requests.Load(), Running: int(c.running.Load())}
		if last := c.last.Load(); last != 0 {
			a.Last = time.Unix(last, 0)
		}
		all = append(all, a)
	}
	return all
}

// note counts a request of c.
func (c *client) note(at time.Time) {
	c.requests.Add(1)
	if s := at.Unix(); c.last.Load() != s { // once a second: other processors read it with every request
		c.last.Store(s)
	}
}

// In returns how many servers were heard in a group lately (FP-11).
func (h *Heard) In(group string, now time.Time) int {
	h.mu.Lock()
	defer h.mu.Unlock()
	n := 0
	for _, known := range h.servers.Values() {
		for i, g := range known.groups {
			if g == group && now.Sub(known.at[i]) < heardFor {
				n++
			}
		}
	}
	return n
}
