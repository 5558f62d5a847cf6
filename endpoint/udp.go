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
	conn  *net.UDPConn
	batch interface {
		ReadBatch([]ipv4.Message, int) (int, error)
		WriteBatch([]ipv4.Message, int) (int, error)
	}
	local      netip.AddrPort
	packetInfo bool
	errors     *errorQueue // nil: no ICMP errors are asked for
	rcvbuf     int
	in, out    []ipv4.Message
	inOOB      []byte
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
		u.batch = p
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
		u.batch = p
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
	u.in, u.out = make([]ipv4.Message, BatchSize), make([]ipv4.Message, BatchSize)
	buffers := make([]byte, BatchSize*maxDatagram)
	const oob = 64
	if u.packetInfo {
		u.inOOB = make([]byte, BatchSize*oob)
	}
	for i := range u.in {
		u.in[i].Buffers = [][]byte{buffers[i*maxDatagram : (i+1)*maxDatagram : (i+1)*maxDatagram]}
		u.out[i].Buffers = make([][]byte, 1)
		if u.packetInfo {
			u.in[i].OOB = u.inOOB[i*oob : (i+1)*oob]
		}
	}
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
		n, err := u.batch.ReadBatch(u.in[:min(len(batch), len(u.in))], 0)
		switch {
		case err == nil:
			for i := range batch[:n] {
				u.fill(&batch[i], &u.in[i])
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

func (u *UDPConn) fill(d *Datagram, m *ipv4.Message) {
	from, _ := m.Addr.(*net.UDPAddr)
	ap := from.AddrPort()
	*d = Datagram{
		Peer:      Peer{Addr: netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), raw: from},
		Data:      m.Buffers[0][:m.N],
		Truncated: m.Flags&unix.MSG_TRUNC != 0,
	}
	if u.packetInfo {
		d.Path = parsePath(m.OOB[:m.NN], u.local.Addr().Is6())
	}
}

func parsePath(oob []byte, v6 bool) Path {
	var dst net.IP
	var index int
	if v6 {
		var cm ipv6.ControlMessage
		if cm.Parse(oob) != nil {
			return Path{}
		}
		dst, index = cm.Dst, cm.IfIndex
	} else {
		var cm ipv4.ControlMessage
		if cm.Parse(oob) != nil {
			return Path{}
		}
		dst, index = cm.Dst, cm.IfIndex
	}
	local, _ := netip.AddrFromSlice(dst)
	return Path{Local: local.Unmap(), Interface: index}
}

// appendPath encodes the source address and interface for sending.
func appendPath(p Path) []byte {
	switch {
	case !p.Local.IsValid():
		return nil
	case p.Local.Is4():
		cm := ipv4.ControlMessage{Src: p.Local.AsSlice(), IfIndex: 0}
		return cm.Marshal()
	default:
		cm := ipv6.ControlMessage{Src: p.Local.AsSlice()}
		if p.Local.IsLinkLocalUnicast() {
			cm.IfIndex = p.Interface
		}
		return cm.Marshal()
	}
}

// WriteBatch implements PacketConn.
func (u *UDPConn) WriteBatch(batch []Datagram) (int, error) {
	batch = batch[:min(len(batch), len(u.out))]
	for i := range batch {
		d, m := &batch[i], &u.out[i]
		m.Buffers[0] = d.Data
		if d.Peer.raw == nil {
			d.Peer.raw = net.UDPAddrFromAddrPort(d.Peer.Addr)
		}
		m.Addr, m.OOB = d.Peer.raw, nil
		if u.packetInfo {
			m.OOB = appendPath(d.Path)
		}
	}
	sent, echoes := 0, 0
	for sent < len(batch) {
		rest := u.out[sent:len(batch)]
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
func (u *UDPConn) writeWaiting(batch []ipv4.Message) (int, error) {
	if err := u.conn.SetWriteDeadline(time.Now().Add(writeWait)); err != nil {
		return 0, err
	}
	n, err := u.batch.WriteBatch(batch, 0)
	return n, errors.Join(err, u.conn.SetWriteDeadline(time.Time{}))
}
