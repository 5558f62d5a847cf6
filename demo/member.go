package demo

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"

	"golang.org/x/net/ipv4"
	"golang.org/x/sys/unix"

	"coapproxy/endpoint"
)

// memberConn hears what is sent to a group. It is bound to the group's address
// and not to the wildcard, so that it gets no datagram that is meant for
// somebody else on this host, and it sends nothing: what a member answers
// leaves from the member's own address (RFC 7252 §8.2).
type memberConn struct {
	conn  *net.UDPConn
	group netip.AddrPort
	index int // of the interface
	buf   [maxDatagram]byte
}

var _ endpoint.PacketConn = (*memberConn)(nil)

// maxDatagram is the longest group request that is heard whole.
const maxDatagram = 2048

// joinGroup makes a member of the group on the interface. Package net binds a
// socket for a multicast address to the wildcard, hence the system calls.
func joinGroup(group netip.AddrPort, iface *net.Interface) (*memberConn, error) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, fmt.Errorf("socket for group %v: %w", group, err)
	}
	f := os.NewFile(uintptr(fd), group.String())
	defer f.Close()    // net works on a duplicate
	err = errors.Join( // every member binds the same address, and hears only what it joined
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
		unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0),
		unix.Bind(fd, &unix.SockaddrInet4{Port: int(group.Port()), Addr: group.Addr().As4()}),
	)
	if err != nil {
		return nil, fmt.Errorf("bind to group %v: %w", group, err)
	}
	pc, err := net.FilePacketConn(f)
	if err != nil {
		return nil, fmt.Errorf("socket for group %v: %w", group, err)
	}
	if err := ipv4.NewPacketConn(pc).JoinGroup(iface, &net.UDPAddr{IP: group.Addr().AsSlice()}); err != nil {
		return nil, errors.Join(fmt.Errorf("join group %v on %s: %w", group, iface.Name, err), pc.Close())
	}
	return &memberConn{conn: pc.(*net.UDPConn), group: group, index: iface.Index}, nil
}

// ReadBatch implements endpoint.PacketConn.
func (c *memberConn) ReadBatch(batch []endpoint.Datagram) (int, error) {
	n, _, flags, from, err := c.conn.ReadMsgUDPAddrPort(c.buf[:], nil)
	if err != nil {
		return 0, err
	}
	batch[0] = endpoint.Datagram{
		Peer:      endpoint.PeerOf(netip.AddrPortFrom(from.Addr().Unmap(), from.Port())),
		Path:      endpoint.Path{Local: c.group.Addr(), Interface: c.index},
		Data:      c.buf[:n],
		Truncated: flags&unix.MSG_TRUNC != 0,
	}
	return 1, nil
}

// WriteBatch implements endpoint.PacketConn. What the message layer has to say
// by itself about a group request is an error, and those are suppressed
// (RFC 7252 §8.2).
func (c *memberConn) WriteBatch(batch []endpoint.Datagram) (int, error) { return len(batch), nil }

// LocalAddr implements endpoint.PacketConn.
func (c *memberConn) LocalAddr() netip.AddrPort { return c.group }

// Close implements endpoint.PacketConn.
func (c *memberConn) Close() error { return c.conn.Close() }
