package test

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// socket is a UDP socket made of plain system calls. Package net keeps one list
// of interface names per process, which misleads it as soon as sockets live in
// several network namespaces; here the zone of an address is always the index of
// the interface.
type socket struct {
	file  *os.File
	raw   syscall.RawConn
	v6    bool
	local netip.AddrPort
}

// datagram is what a socket received.
type datagram struct {
	data []byte
	from netip.AddrPort
	to   netip.Addr // the destination address
	hops int        // hop limit or TTL it arrived with
	at   time.Time
}

// membership is a group joined on an interface.
type membership struct {
	group netip.Addr
	iface int
}

// openSocket opens a socket in the network namespace of the calling thread. A
// socket that joins groups shares its address with others.
func openSocket(local netip.AddrPort, joins ...membership) (*socket, error) {
	family := unix.AF_INET
	if local.Addr().Is6() {
		family = unix.AF_INET6
	}
	fd, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socket: %w", err)
	}
	s := &socket{v6: local.Addr().Is6()}
	if err := s.setUp(fd, local, joins); err != nil {
		return nil, errors.Join(fmt.Errorf("socket on %v: %w", local, err), unix.Close(fd))
	}
	s.file = os.NewFile(uintptr(fd), "udp")
	if s.raw, err = s.file.SyscallConn(); err != nil {
		return nil, errors.Join(err, s.file.Close())
	}
	return s, nil
}

func (s *socket) setUp(fd int, local netip.AddrPort, joins []membership) error {
	var err error
	set := func(level, option, value int) { err = errors.Join(err, unix.SetsockoptInt(fd, level, option, value)) }
	if len(joins) > 0 {
		set(unix.SOL_SOCKET, unix.SO_REUSEADDR, 1)
	}
	set(unix.SOL_SOCKET, unix.SO_RCVBUF, 1<<20)
	if s.v6 {
		set(unix.IPPROTO_IPV6, unix.IPV6_V6ONLY, 1)
		set(unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1)
		set(unix.IPPROTO_IPV6, unix.IPV6_RECVHOPLIMIT, 1)
		set(unix.IPPROTO_IPV6, unix.IPV6_MULTICAST_ALL, 0)
	} else {
		set(unix.IPPROTO_IP, unix.IP_PKTINFO, 1)
		set(unix.IPPROTO_IP, unix.IP_RECVTTL, 1)
		set(unix.IPPROTO_IP, unix.IP_MULTICAST_ALL, 0)
	}
	for _, j := range joins {
		if s.v6 {
			mreq := &unix.IPv6Mreq{Multiaddr: j.group.As16(), Interface: uint32(j.iface)}
			err = errors.Join(err, unix.SetsockoptIPv6Mreq(fd, unix.IPPROTO_IPV6, unix.IPV6_JOIN_GROUP, mreq))
		} else {
			mreq := &unix.IPMreqn{Multiaddr: j.group.As4(), Ifindex: int32(j.iface)}
			err = errors.Join(err, unix.SetsockoptIPMreqn(fd, unix.IPPROTO_IP, unix.IP_ADD_MEMBERSHIP, mreq))
		}
	}
	if err != nil {
		return err
	}
	if err := unix.Bind(fd, sockaddr(local)); err != nil {
		return fmt.Errorf("bind: %w", err)
	}
	bound, err := unix.Getsockname(fd)
	if err == nil {
		s.local = addrPort(bound)
	}
	return err
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	zone, _ := strconv.Atoi(a.Addr().Zone())
	return &unix.SockaddrInet6{Port: int(a.Port()), ZoneId: uint32(zone), Addr: a.Addr().As16()}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		addr := netip.AddrFrom16(sa.Addr)
		if sa.ZoneId != 0 {
			addr = addr.WithZone(strconv.Itoa(int(sa.ZoneId)))
		}
		return netip.AddrPortFrom(addr, uint16(sa.Port))
	}
	return netip.AddrPort{}
}

// send sends a datagram; that the receiver of an earlier one is gone is no error.
func (s *socket) send(to netip.AddrPort, data []byte) error {
	var err error
	outer := s.raw.Write(func(fd uintptr) bool {
		err = unix.Sendto(int(fd), data, 0, sockaddr(to))
		return !errors.Is(err, unix.EAGAIN)
	})
	if errors.Is(err, unix.ECONNREFUSED) {
		err = nil
	}
	return errors.Join(outer, err)
}

// receive waits for a datagram. It ends with an error when the socket is closed.
func (s *socket) receive() (datagram, error) {
	buf, oob := make([]byte, 65536), make([]byte, 256)
	for {
		var n, oobn int
		var from unix.Sockaddr
		var err error
		outer := s.raw.Read(func(fd uintptr) bool {
			n, oobn, _, from, err = unix.Recvmsg(int(fd), buf, oob, 0)
			return !errors.Is(err, unix.EAGAIN)
		})
		switch {
		case outer != nil:
			return datagram{}, outer
		case err != nil:
			continue // the echo of something sent to a port that is closed
		}
		d := datagram{data: buf[:n], from: addrPort(from), at: time.Now()}
		d.control(oob[:oobn])
		return d, nil
	}
}

func (d *datagram) control(oob []byte) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return
	}
	for _, m := range messages {
		switch level, kind := int(m.Header.Level), int(m.Header.Type); {
		case level == unix.IPPROTO_IP && kind == unix.IP_PKTINFO:
			d.to = netip.AddrFrom4([4]byte(m.Data[8:12]))
		case level == unix.IPPROTO_IPV6 && kind == unix.IPV6_PKTINFO:
			d.to = netip.AddrFrom16([16]byte(m.Data[:16]))
		case level == unix.IPPROTO_IP && kind == unix.IP_TTL, level == unix.IPPROTO_IPV6 && kind == unix.IPV6_HOPLIMIT:
			d.hops = int(binary.NativeEndian.Uint32(m.Data))
		}
	}
}

func (s *socket) close() { _ = s.file.Close() }

// mustSocket opens a socket in a host and closes it when the test ends.
func mustSocket(t *testing.T, h *host, local netip.AddrPort, joins ...membership) *socket {
	t.Helper()
	var s *socket
	var err error
	h.do(t, func() { s, err = openSocket(local, joins...) })
	require.NoError(t, err)
	t.Cleanup(s.close)
	return s
}
