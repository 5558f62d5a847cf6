package endpoint

import (
	"net/netip"
	"time"
)

// Pending is how many messages wait for their fate.
func (e *Endpoint) Pending() int {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.pending.len()
}

// Remembered is how many received messages are remembered, and for how many
// there is room.
func (e *Endpoint) Remembered() (entries, slab int) {
	e.dedup.mu.Lock()
	defer e.dedup.mu.Unlock()
	return e.dedup.table.len(), e.dedup.table.places
}

// Load is the size of the tables of a client: calls that run, requests that
// are outstanding or wait, servers with any of those that are in no other
// table, and messages of its ports that wait for their fate.
func (c *Client) Load() (calls, outstanding, waiting, busy, pending int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, s := range c.servers.Values() {
		outstanding += s.outstanding
		waiting += len(s.waiting) + len(s.leaving)
	}
	for _, s := range c.busy {
		outstanding += s.outstanding
		waiting += len(s.waiting) + len(s.leaving)
	}
	for _, family := range c.ports {
		for _, e := range family {
			pending += e.Pending()
		}
	}
	return len(c.calls), outstanding, waiting, len(c.busy), pending
}

// SkipMessageIDs uses up IDs towards clients, as if so many messages had been
// sent to all of them.
func (e *Endpoint) SkipMessageIDs(n uint32) {
	for i := range e.ids {
		e.ids[i].next.Add(n)
	}
}

// UseMessageIDs uses up IDs towards a server, as if so many requests had been
// sent to it.
func (c *Client) UseMessageIDs(server netip.AddrPort, n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for range n {
		c.serverOf(server).lane.take(time.Now(), c.config.Ports)
	}
}

// Ports is the number of source ports that are open.
func (c *Client) Ports() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.ports[0]) + len(c.ports[1])
}

// Stuff fills the send queue, and returns a function that empties it.
func (e *Endpoint) Stuff() func() {
	set := func(queue []Datagram) {
		e.out.mu.Lock()
		defer e.out.mu.Unlock()
		e.out.queue = queue
	}
	set(make([]Datagram, outboxLimit))
	return func() { set(nil) }
}

// HoldFates keeps everybody from sending a watched message, and from settling
// one, until the function it returns is called.
func (e *Endpoint) HoldFates() func() {
	e.mu.Lock()
	return e.mu.Unlock
}

// Waiting is the number of calls that wait for their turn with a server.
func (c *Client) Waiting(server netip.AddrPort) int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return len(c.serverOf(server).waiting)
}

// Port is a source port for IPv4 that is open.
func (c *Client) Port(i int) *Endpoint {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ports[0][i]
}

// TCPRoundTrip is what the kernel measured.
var TCPRoundTrip = tcpRoundTrip
