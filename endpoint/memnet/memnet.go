// Package memnet is a network of packet connections in memory, for tests of
// whatever is built on endpoint.PacketConn.
//
// Hosts with addresses open connections and join groups; a Fate may lose,
// duplicate, delay and so reorder datagrams. Everything waits on condition
// variables and timers only, so that a network made inside a testing/synctest
// bubble lives in virtual time, and datagrams due at the same time arrive in
// the order they were sent.
package memnet

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"coapproxy/endpoint"
)

// Fate decides what becomes of one datagram: the delays of the copies that
// arrive, none when it is lost. It may be called by several goroutines at once,
// must not block, and borrows data. It is the place to look on, too.
type Fate func(from, to netip.AddrPort, data []byte) []time.Duration

// At is the fate of a datagram of which one copy arrives after each delay.
func At(delays ...time.Duration) []time.Duration { return delays }

// Lost is the fate of a datagram that never arrives.
func Lost() []time.Duration { return nil }

// Network connects hosts. Safe for concurrent use.
type Network struct {
	mu    sync.Mutex
	fate  Fate
	hosts map[netip.Addr]*Host // by address without zone
	conns []*Conn              // in the order they were opened
	next  uint16               // ephemeral port
	seq   uint64
	air   []flight // on their way, in the order of arrival
}

// flight is a datagram on its way.
type flight struct {
	at       time.Time
	seq      uint64
	from, to netip.AddrPort
	sender   *Conn
	data     []byte
}

// New returns a network on which every datagram arrives at once.
func New() *Network {
	return &Network{hosts: make(map[netip.Addr]*Host), next: firstEphemeral}
}

const firstEphemeral = 49152

// Shape decides the fate of all datagrams sent from now on; nil lets each
// arrive at once.
func (n *Network) Shape(f Fate) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.fate = f
}

// Close closes all connections; what is on its way is lost.
func (n *Network) Close() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.air = nil
	for len(n.conns) > 0 {
		n.conns[0].close()
	}
}

// Host is somebody on the network, with the addresses it owns.
type Host struct {
	network *Network
	addrs   []netip.Addr
}

// Host adds a host, or returns the one that has the first of the addresses. Its
// first address of a family is the one that datagrams leave from when nothing
// says otherwise; a link-local one may have a zone, which its peers see and may
// leave out when they send to it.
func (n *Network) Host(addrs ...netip.Addr) *Host {
	n.mu.Lock()
	defer n.mu.Unlock()
	if h := n.hosts[addrs[0].WithZone("")]; h != nil {
		return h
	}
	h := &Host{network: n, addrs: addrs}
	for _, a := range addrs {
		n.hosts[a.WithZone("")] = h
	}
	return h
}

// Options say how a connection behaves.
type Options struct {
	// Errors has datagrams to a port that nobody listens on come back with
	// endpoint.ErrUndeliverable, if the host exists.
	Errors bool
	// Queue is how many datagrams may wait to be read, further ones are lost;
	// 0 stands for 4096.
	Queue int
	// MaxDatagram is the receive buffer in bytes, longer datagrams are
	// truncated; 0 is no bound.
	MaxDatagram int
}

// Listen opens a connection bound to the address, or to all addresses of its
// family if it is unspecified: then the path of what it reads names the address
// that was asked. Port 0 takes a free port. The errors are syscall.EADDRINUSE
// and syscall.EADDRNOTAVAIL.
func (h *Host) Listen(local netip.AddrPort, o Options) (*Conn, error) {
	n := h.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if !local.Addr().IsUnspecified() && h.owned(local.Addr()) == (netip.Addr{}) {
		return nil, &net.OpError{Op: "listen", Net: "mem", Err: syscall.EADDRNOTAVAIL}
	}
	if local.Port() == 0 {
		local = netip.AddrPortFrom(local.Addr(), n.next)
		if n.next++; n.next == 0 {
			n.next = firstEphemeral
		}
	}
	for _, c := range n.conns {
		if c.host == h && c.local.Port() == local.Port() && c.local.Addr().Is4() == local.Addr().Is4() &&
			(c.local.Addr() == local.Addr() || c.local.Addr().IsUnspecified() || local.Addr().IsUnspecified()) {
			return nil, &net.OpError{Op: "listen", Net: "mem", Err: syscall.EADDRINUSE}
		}
	}
	if o.Queue == 0 {
		o.Queue = 4096
	}
	c := &Conn{host: h, local: local, options: o}
	c.readable.L = &n.mu
	n.conns = append(n.conns, c)
	return c, nil
}

// owned returns the host's own form of an address, with its zone; the zero
// address if it is not one of the host's.
func (h *Host) owned(a netip.Addr) netip.Addr {
	for _, own := range h.addrs {
		if own.WithZone("") == a.WithZone("") {
			return own
		}
	}
	return netip.Addr{}
}

// send puts a datagram of c on its way.
func (n *Network) send(c *Conn, d *endpoint.Datagram) error {
	n.mu.Lock()
	fate, refuse := n.fate, c.refuse
	from, err := c.source(d)
	n.mu.Unlock()
	if err == nil && refuse != nil {
		err = refuse(d)
	}
	if err != nil {
		return err
	}
	to := d.Peer.Addr
	if fate == nil {
		n.mu.Lock()
		n.arrive(c, from, to, d.Data)
		n.mu.Unlock()
		return nil
	}
	for _, delay := range fate(from, to, d.Data) {
		n.mu.Lock()
		if delay <= 0 {
			n.arrive(c, from, to, d.Data)
		} else {
			n.fly(flight{at: time.Now().Add(delay), from: from, to: to, sender: c, data: slices.Clone(d.Data)})
			time.AfterFunc(delay, n.land)
		}
		n.mu.Unlock()
	}
	return nil
}

func (n *Network) fly(f flight) {
	n.seq++
	f.seq = n.seq
	i, _ := slices.BinarySearchFunc(n.air, f, func(a, b flight) int {
		if c := a.at.Compare(b.at); c != 0 {
			return c
		}
		return int(a.seq) - int(b.seq)
	})
	n.air = slices.Insert(n.air, i, f)
}

// land delivers what is due, in the order it was sent, whichever timer comes
// first.
func (n *Network) land() {
	n.mu.Lock()
	defer n.mu.Unlock()
	now := time.Now()
	for len(n.air) > 0 && !n.air[0].at.After(now) {
		f := n.air[0]
		n.air = slices.Delete(n.air, 0, 1)
		n.arrive(f.sender, f.from, f.to, f.data)
	}
}

// arrive hands a datagram to everybody it is for. Called under the lock.
func (n *Network) arrive(sender *Conn, from, to netip.AddrPort, data []byte) {
	if to.Addr().IsMulticast() {
		for _, c := range n.conns {
			if c != sender && c.local.Port() == to.Port() && slices.Contains(c.groups, to.Addr().WithZone("")) {
				c.push(endpoint.Datagram{Peer: endpoint.Peer{Addr: from}, Path: endpoint.Path{Local: to.Addr().WithZone(""), Interface: 1}}, data)
			}
		}
		return
	}
	h := n.hosts[to.Addr().WithZone("")]
	if h == nil {
		return
	}
	own := h.owned(to.Addr())
	for _, c := range n.conns {
		if c.host != h || c.local.Port() != to.Port() || c.local.Addr().Is4() != own.Is4() {
			continue
		}
		if c.local.Addr().IsUnspecified() {
			c.push(endpoint.Datagram{Peer: endpoint.Peer{Addr: from}, Path: endpoint.Path{Local: own, Interface: 1}}, data)
			return
		}
		if c.local.Addr().WithZone("") == own.WithZone("") {
			c.push(endpoint.Datagram{Peer: endpoint.Peer{Addr: from}}, data)
			return
		}
	}
	if sender.options.Errors && !sender.closed {
		sender.push(endpoint.Datagram{Peer: endpoint.Peer{Addr: to}, Undeliverable: endpoint.ErrUndeliverable}, data)
	}
}
