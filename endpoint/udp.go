package endpoint

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
	"golang.org/x/sys/unix"
)

// UDPOptions are the settings of a UDP socket.
type UDPOptions struct {
	// ReceiveBuffer and SendBuffer are wanted sizes of the socket buffers in
	// bytes; the kernel may give less, see UDPConn.ReceiveBuffer.
	ReceiveBuffer, SendBuffer int
	// PacketInfo tells the own address of each datagram on a wildcard socket,
	// so that replies leave from the address that was asked.
	PacketInfo bool
	// Errors asks for ICMP errors of what was sent (client ports).
	Errors bool
	// Multicast makes it a socket for sending to groups.
	Multicast *MulticastOptions
	// Socket is one that is bound to the address already; it is closed. Nil: a new
	// one is opened.
	Socket *os.File
}

// MulticastOptions say how datagrams to a group leave (GC-6, GC-7).
type MulticastOptions struct {
	Interface *net.Interface
	HopLimit  int
	Loopback  bool
}

// UDPConn is a PacketConn on a UDP socket of one address family.
type UDPConn struct {
	conn       *net.UDPConn
	batch      batchConn
	local      netip.AddrPort
	packetInfo bool
	errors     *errorQueue // nil: no ICMP errors are asked for
	rcvbuf     int
	in, out    *messages
	filled     int // of in, by the last read
	buffers    []byte
}

// maxDatagram is the longest datagram accepted: CoAP over UDP stays below one
// IP packet (RFC 7252 §4.6), generous block sizes included.
const maxDatagram = 4 << 10

// writeWait is how long a write waits for room in the socket buffer.
const writeWait = 50 * time.Millisecond

// ListenUDP opens a UDP socket on the address; its port may be 0.
func ListenUDP(ctx context.Context, local netip.AddrPort, o UDPOptions) (*UDPConn, error) {
	network := "udp4"
	if local.Addr().Is6() {
		network = "udp6"
	}
	pc, err := openUDP(ctx, network, local, o.Socket)
	if err != nil {
		return nil, err
	}
	u := &UDPConn{conn: pc, packetInfo: local.Addr().IsUnspecified() && o.PacketInfo}
	bound := u.conn.LocalAddr().(*net.UDPAddr).AddrPort()
	u.local = netip.AddrPortFrom(bound.Addr().Unmap(), bound.Port())
	if err := u.setUp(network == "udp6", o); err != nil {
		return nil, errors.Join(fmt.Errorf("set up UDP socket %v: %w", u.local, err), u.conn.Close())
	}
	return u, nil
}

func openUDP(ctx context.Context, network string, local netip.AddrPort, socket *os.File) (*net.UDPConn, error) {
	var lc net.ListenConfig
	var pc net.PacketConn
	var err error
	if socket != nil {
		defer socket.Close() // it is copied
		pc, err = net.FilePacketConn(socket)
	} else {
		pc, err = lc.ListenPacket(ctx, network, local.String())
	}
	if err != nil {
		return nil, err
	}
	u, ok := pc.(*net.UDPConn)
	if !ok {
		return nil, errors.Join(errors.New("not a UDP socket"), pc.Close())
	}
	return u, nil
}

func (u *UDPConn) setUp(v6 bool, o UDPOptions) error {
	var err error
	note := func(e error) { err = errors.Join(err, e) }
	if v6 {
		p := ipv6.NewPacketConn(u.conn)
		if u.packetInfo {
			note(p.SetControlMessage(ipv6.FlagDst|ipv6.FlagInterface, true))
		}
		if m := o.Multicast; m != nil {
			note(p.SetMulticastInterface(m.Interface))
			note(p.SetMulticastHopLimit(m.HopLimit))
			note(p.SetMulticastLoopback(m.Loopback))
		}
	} else {
		p := ipv4.NewPacketConn(u.conn)
		if u.packetInfo {
			note(p.SetControlMessage(ipv4.FlagDst|ipv4.FlagInterface, true))
		}
		if m := o.Multicast; m != nil {
			note(p.SetMulticastInterface(m.Interface))
			note(p.SetMulticastTTL(m.HopLimit))
			note(p.SetMulticastLoopback(m.Loopback))
		}
	}
	raw, e := u.conn.SyscallConn()
	if e != nil {
		return errors.Join(err, e)
	}
	if o.Errors {
		u.errors = &errorQueue{socket: raw}
	}
	note(raw.Control(func(fd uintptr) { note(setSocket(int(fd), v6, o)); u.rcvbuf = receiveBuffer(int(fd)) }))
	zones := &zoneIndices{}
	u.batch, u.in, u.out = newSocketBatches(raw), newMessages(zones), newMessages(zones)
	u.buffers, u.filled = make([]byte, BatchSize*maxDatagram), BatchSize
	return err
}

// setSocket sets what x/net has no call for.
func setSocket(fd int, v6 bool, o UDPOptions) error {
	// The forced variants go beyond net.core.rmem_max but need a privilege;
	// what was got is logged, so that no error is returned here.
	if o.ReceiveBuffer > 0 && unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, o.ReceiveBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, o.ReceiveBuffer)
	}
	if o.SendBuffer > 0 && unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, o.SendBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, o.SendBuffer)
	}
	// Go allows every UDP socket to send to broadcast addresses (GC-9).
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_BROADCAST, 0); err != nil {
		return err
	}
	// Sockets hear only what they themselves joined, not what other sockets of
	// this host did (GC-94).
	if v6 {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_ALL, 0)
	} else if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0); err != nil {
		return err
	}
	if !o.Errors {
		return nil
	}
	if v6 {
		return unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVERR, 1)
	}
	return unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_RECVERR, 1)
}

func receiveBuffer(fd int) int {
	n, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	if err != nil {
		return 0
	}
	return n / 2 // the kernel doubles it for its own bookkeeping
}

// ReceiveBuffer is the size in bytes of the receive buffer the kernel gave.
func (u *UDPConn) ReceiveBuffer() int { return u.rcvbuf }

// LocalAddr implements PacketConn.
func (u *UDPConn) LocalAddr() netip.AddrPort { return u.local }

// Close implements PacketConn.
func (u *UDPConn) Close() error { return u.conn.Close() }

// ReadBatch implements PacketConn.
func (u *UDPConn) ReadBatch(batch []Datagram) (int, error) {
	for {
		for i := range u.filled {
			u.in.receiveInto(i, u.buffers[i*maxDatagram:(i+1)*maxDatagram], u.packetInfo)
		}
		n, err := u.batch.ReadBatch(u.in.headers[:min(len(batch), BatchSize)])
		u.filled = n
		switch {
		case err == nil:
			for i := range batch[:n] {
				u.fill(&batch[i], i)
			}
			return n, nil
		case u.errors == nil:
			return 0, err
		case errors.Is(err, os.ErrDeadlineExceeded): // the writer has something
			if err := u.conn.SetReadDeadline(time.Time{}); err != nil {
				return 0, err
			}
		case !isICMP(err):
			return 0, err
		}
		u.errors.drain()
		n, more := u.errors.take(batch)
		if more {
			u.wakeReader()
		}
		if n > 0 {
			return n, nil
		}
	}
}

// wakeReader makes ReadBatch look for what came back.
func (u *UDPConn) wakeReader() { _ = u.conn.SetReadDeadline(time.Unix(1, 0)) }

// fill makes the i-th received message a datagram.
func (u *UDPConn) fill(d *Datagram, i int) {
	m := &u.in.headers[i]
	start := i * maxDatagram
	end := start + int(m.length)
	*d = Datagram{
		Peer:      Peer{Addr: u.in.from(i)},
		Data:      u.buffers[start:end:end],
		Truncated: m.header.Flags&unix.MSG_TRUNC != 0,
	}
	if u.packetInfo {
		d.Path = u.in.path(i)
	}
}

// WriteBatch implements PacketConn.
func (u *UDPConn) WriteBatch(batch []Datagram) (int, error) {
	batch = batch[:min(len(batch), BatchSize)]
	for i := range batch {
		u.out.send(i, &batch[i], u.packetInfo)
	}
	sent, echoes := 0, 0
	for sent < len(batch) {
		rest := u.out.headers[sent:len(batch)]
		n, err := u.batch.WriteBatch(rest, unix.MSG_DONTWAIT)
		if errors.Is(err, unix.EAGAIN) {
			n, err = u.writeWaiting(rest)
		}
		if n > 0 {
			sent += n
			echoes = 0
		}
		// The kernel tells of an ICMP error once, to whoever asks first for
		// anything, and swallows it when it has sent some of the datagrams.
		told := u.errors != nil && (err == nil && n < len(rest) || isICMP(err))
		if told && u.errors.drain() {
			u.wakeReader()
		}
		switch {
		case err == nil:
		case errors.Is(err, unix.ENOBUFS):
			return sent, os.ErrDeadlineExceeded
		case told && echoes < maxEchoes:
			echoes++
		default:
			return sent, err
		}
	}
	return sent, nil
}

// writeWaiting is WriteBatch for a socket buffer that is full.
func (u *UDPConn) writeWaiting(batch []mmsghdr) (int, error) {
	if err := u.conn.SetWriteDeadline(time.Now().Add(writeWait)); err != nil {
		return 0, err
	}
	n, err := u.batch.WriteBatch(batch, 0)
	return n, errors.Join(err, u.conn.SetWriteDeadline(time.Time{}))
}
