package memnet

import (
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"coapproxy/endpoint"
)

// Conn is a connection to a Network; unlike other packet connections it may be
// read and written by any goroutine.
type Conn struct {
	host    *Host
	local   netip.AddrPort
	options Options

	// guarded by the network's lock
	readable sync.Cond
	queue    []endpoint.Datagram
	lent     []endpoint.Datagram // what the last ReadBatch returned
	free     [][]byte
	groups   []netip.Addr
	refuse   func(*endpoint.Datagram) error
	closed   bool
}

var _ endpoint.PacketConn = (*Conn)(nil)

// Join has the connection hear what is sent to a group, on its own port.
func (c *Conn) Join(group netip.Addr) {
	n := c.host.network
	n.mu.Lock()
	defer n.mu.Unlock()
	c.groups = append(c.groups, group.WithZone(""))
}

// Refuse has WriteBatch fail for the datagrams that f has an error for, before
// anybody else sees them; nil ends it.
func (c *Conn) Refuse(f func(*endpoint.Datagram) error) {
	n := c.host.network
	n.mu.Lock()
	defer n.mu.Unlock()
	c.refuse = f
}

// ReadBatch implements endpoint.PacketConn.
func (c *Conn) ReadBatch(batch []endpoint.Datagram) (int, error) {
	n := c.host.network
	n.mu.Lock()
	defer n.mu.Unlock()
	for i := range c.lent {
		c.free = append(c.free, c.lent[i].Data[:0])
	}
	c.lent = c.lent[:0]
	for len(c.queue) == 0 && !c.closed {
		c.readable.Wait()
	}
	if c.closed {
		return 0, &net.OpError{Op: "read", Net: "mem", Err: net.ErrClosed}
	}
	count := copy(batch, c.queue)
	c.lent = append(c.lent, c.queue[:count]...)
	c.queue = slices.Delete(c.queue, 0, count)
	return count, nil
}

// WriteBatch implements endpoint.PacketConn. It never waits.
func (c *Conn) WriteBatch(batch []endpoint.Datagram) (int, error) {
	for i := range batch {
		if err := c.host.network.send(c, &batch[i]); err != nil {
			return i, err
		}
	}
	return len(batch), nil
}

// Send sends one datagram, for peers that are no endpoints.
func (c *Conn) Send(to netip.AddrPort, data []byte) error {
	return c.host.network.send(c, &endpoint.Datagram{Peer: endpoint.Peer{Addr: to}, Data: data})
}

// Received takes everything that waits to be read, without waiting; the caller
// owns it.
func (c *Conn) Received() []endpoint.Datagram {
	n := c.host.network
	n.mu.Lock()
	defer n.mu.Unlock()
	taken := c.queue
	c.queue = nil
	return taken
}

// LocalAddr implements endpoint.PacketConn.
func (c *Conn) LocalAddr() netip.AddrPort { return c.local }

// Close implements endpoint.PacketConn.
func (c *Conn) Close() error {
	n := c.host.network
	n.mu.Lock()
	defer n.mu.Unlock()
	if c.closed {
		return net.ErrClosed
	}
	c.close()
	return nil
}

func (c *Conn) close() {
	c.closed = true
	n := c.host.network
	n.conns = slices.DeleteFunc(n.conns, func(o *Conn) bool { return o == c })
	c.readable.Broadcast()
}

// source is the address and port that d leaves from: the one asked for, or the
// host's first of the family. Called under the lock.
func (c *Conn) source(d *endpoint.Datagram) (netip.AddrPort, error) {
	refused := func(err error) (netip.AddrPort, error) {
		return netip.AddrPort{}, &net.OpError{Op: "write", Net: "mem", Err: err}
	}
	if c.closed {
		return refused(net.ErrClosed)
	}
	if d.Peer.Addr.Addr().Is4() != c.local.Addr().Is4() {
		return refused(syscall.EAFNOSUPPORT)
	}
	if !c.local.Addr().IsUnspecified() {
		return netip.AddrPortFrom(c.host.owned(c.local.Addr()), c.local.Port()), nil
	}
	if d.Path.Local.IsValid() {
		if own := c.host.owned(d.Path.Local); own.IsValid() {
			return netip.AddrPortFrom(own, c.local.Port()), nil
		}
		return refused(syscall.EINVAL)
	}
	for _, own := range c.host.addrs {
		if own.Is4() == c.local.Addr().Is4() {
			return netip.AddrPortFrom(own, c.local.Port()), nil
		}
	}
	return refused(syscall.ENETUNREACH)
}

// push hands a datagram to the reader. Called under the lock.
func (c *Conn) push(d endpoint.Datagram, data []byte) {
	if c.closed || len(c.queue) >= c.options.Queue {
		return
	}
	if limit := c.options.MaxDatagram; limit > 0 && len(data) > limit {
		data, d.Truncated = data[:limit], true
	}
	var buf []byte
	if last := len(c.free) - 1; last >= 0 {
		buf, c.free = c.free[last], c.free[:last]
	}
	d.Data = append(buf, data...)
	c.queue = append(c.queue, d)
	c.readable.Signal()
}
