package endpoint

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// batchConn moves messages with one system call each way: from the start of the
// given ones, of which it returns how many. Reading waits for at least one, writing
// waits for room unless MSG_DONTWAIT is among the flags.
type batchConn interface {
	ReadBatch(m []mmsghdr) (int, error)
	WriteBatch(m []mmsghdr, flags int) (int, error)
}

// mmsghdr is struct mmsghdr of recvmmsg(2).
type mmsghdr struct {
	header unix.Msghdr
	length uint32
}

// messages are the structs of a batch, made once and filled in for each system
// call: address, buffer and control messages of one datagram each. They are what
// x/net/ipv4.Message stands for, without being packed and unpacked, and without a
// net.UDPAddr, for every datagram.
type messages struct {
	headers []mmsghdr
	slots   []messageSlot
	zones   *zoneIndices
}

type messageSlot struct {
	name    unix.RawSockaddrInet6 // or a RawSockaddrInet4 at its place
	buffer  unix.Iovec
	control [8]uint64 // aligned room for an in_pktinfo or in6_pktinfo
}

func newMessages(zones *zoneIndices) *messages {
	m := &messages{headers: make([]mmsghdr, BatchSize), slots: make([]messageSlot, BatchSize), zones: zones}
	for i := range m.headers {
		h, s := &m.headers[i].header, &m.slots[i]
		h.Name = (*byte)(unsafe.Pointer(&s.name))
		h.Iov = &s.buffer
		h.SetIovlen(1)
	}
	return m
}

// receiveInto makes the i-th message ready for receiving into the buffer, the
// control messages too when they are wanted.
func (m *messages) receiveInto(i int, buffer []byte, control bool) {
	h, s := &m.headers[i].header, &m.slots[i]
	s.buffer.Base = unsafe.SliceData(buffer)
	s.buffer.SetLen(len(buffer))
	h.Namelen, h.Flags = unix.SizeofSockaddrInet6, 0
	if control {
		h.Control = (*byte)(unsafe.Pointer(&s.control))
		h.SetControllen(int(unsafe.Sizeof(s.control)))
	}
}

// from is who sent the i-th message.
func (m *messages) from(i int) netip.AddrPort {
	s := &m.slots[i]
	if s.name.Family == unix.AF_INET {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(&s.name))
		return netip.AddrPortFrom(netip.AddrFrom4(v4.Addr), hostOrder(v4.Port))
	}
	addr := netip.AddrFrom16(s.name.Addr).Unmap()
	if s.name.Scope_id != 0 {
		addr = addr.WithZone(m.zones.name(s.name.Scope_id))
	}
	return netip.AddrPortFrom(addr, hostOrder(s.name.Port))
}

// path is the own side of the i-th message, by its control message.
func (m *messages) path(i int) Path {
	h := &m.headers[i].header
	control := unsafe.Slice((*byte)(unsafe.Pointer(&m.slots[i].control)), unsafe.Sizeof(m.slots[i].control))
	for control = control[:min(int(h.Controllen), len(control))]; len(control) >= unix.SizeofCmsghdr; {
		header, data, rest, err := unix.ParseOneSocketControlMessage(control)
		if err != nil {
			break
		}
		switch {
		case header.Level == unix.IPPROTO_IP && header.Type == unix.IP_PKTINFO && len(data) >= unix.SizeofInet4Pktinfo:
			// ifindex, the address that replies would leave from, that of the header
			return Path{Local: netip.AddrFrom4([4]byte(data[8:12])), Interface: int(binary.NativeEndian.Uint32(data))}
		case header.Level == unix.IPPROTO_IPV6 && header.Type == unix.IPV6_PKTINFO && len(data) >= unix.SizeofInet6Pktinfo:
			return Path{Local: netip.AddrFrom16([16]byte(data[:16])).Unmap(), Interface: int(binary.NativeEndian.Uint32(data[16:]))}
		}
		control = rest
	}
	return Path{}
}

// send makes the i-th message the datagram, whose bytes it borrows; with the source
// address of its path if control is set.
func (m *messages) send(i int, d *Datagram, control bool) {
	h, s := &m.headers[i].header, &m.slots[i]
	s.buffer.Base = unsafe.SliceData(d.Data)
	s.buffer.SetLen(len(d.Data))
	to, port := d.Peer.Addr.Addr(), hostOrder(d.Peer.Addr.Port())
	if to.Is4() {
		v4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(&s.name))
		*v4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: port, Addr: to.As4()}
		h.Namelen = unix.SizeofSockaddrInet4
	} else {
		s.name = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: port, Addr: to.As16()}
		if zone := to.Zone(); zone != "" {
			s.name.Scope_id = m.zones.index(zone)
		}
		h.Namelen = unix.SizeofSockaddrInet6
	}
	h.Control = nil
	h.SetControllen(0)
	local := d.Path.Local
	if !control || !local.IsValid() {
		return
	}
	c := (*unix.Cmsghdr)(unsafe.Pointer(&s.control))
	h.Control = (*byte)(unsafe.Pointer(c))
	info := unsafe.Slice((*byte)(unsafe.Pointer(&s.control)), unsafe.Sizeof(s.control))[unix.CmsgLen(0):]
	if local.Is4() {
		c.Level, c.Type = unix.IPPROTO_IP, unix.IP_PKTINFO
		c.SetLen(unix.CmsgLen(unix.SizeofInet4Pktinfo))
		h.SetControllen(unix.CmsgSpace(unix.SizeofInet4Pktinfo))
		clear(info[:unix.SizeofInet4Pktinfo])
		source := local.As4()
		copy(info[4:], source[:])
		return
	}
	c.Level, c.Type = unix.IPPROTO_IPV6, unix.IPV6_PKTINFO
	c.SetLen(unix.CmsgLen(unix.SizeofInet6Pktinfo))
	h.SetControllen(unix.CmsgSpace(unix.SizeofInet6Pktinfo))
	source, iface := local.As16(), 0
	if local.IsLinkLocalUnicast() {
		iface = d.Path.Interface
	}
	copy(info, source[:])
	binary.NativeEndian.PutUint32(info[16:], uint32(iface))
}

// hostOrder swaps the bytes of a port between the network's order, which sockaddrs
// have, and the host's, either way.
func hostOrder(port uint16) uint16 {
	var b [2]byte
	binary.NativeEndian.PutUint16(b[:], port)
	return binary.BigEndian.Uint16(b[:])
}

// socketBatches is the batchConn of a socket. ReadBatch is used by one goroutine at
// a time, and so is WriteBatch.
type socketBatches struct {
	socket  syscall.RawConn
	in, out batchCall
}

// batchCall is recvmmsg(2) or sendmmsg(2) on its way through the poller: kept, so
// that no call costs a closure.
type batchCall struct {
	number   uintptr
	name     string
	messages []mmsghdr
	flags    int
	n        int
	errno    syscall.Errno
	attempt  func(fd uintptr) bool // false: wait until the socket is ready
}

func newSocketBatches(socket syscall.RawConn) *socketBatches {
	b := &socketBatches{socket: socket, in: batchCall{number: unix.SYS_RECVMMSG, name: "recvmmsg"}, out: batchCall{number: unix.SYS_SENDMMSG, name: "sendmmsg"}}
	b.in.attempt, b.out.attempt = b.in.try, b.out.try
	return b
}

// ReadBatch implements batchConn.
func (b *socketBatches) ReadBatch(m []mmsghdr) (int, error) {
	b.in.prepare(m, 0)
	return b.in.outcome(b.socket.Read(b.in.attempt))
}

// WriteBatch implements batchConn.
func (b *socketBatches) WriteBatch(m []mmsghdr, flags int) (int, error) {
	b.out.prepare(m, flags)
	return b.out.outcome(b.socket.Write(b.out.attempt))
}

func (c *batchCall) prepare(m []mmsghdr, flags int) {
	c.messages, c.flags, c.n, c.errno = m, flags, 0, 0
}

// outcome is that of the call, unless waiting for the socket failed.
func (c *batchCall) outcome(err error) (int, error) {
	switch {
	case err != nil:
		return 0, err
	case c.errno != 0:
		return 0, os.NewSyscallError(c.name, c.errno)
	}
	return c.n, nil
}

// try makes the call without telling the scheduler, as the runtime's own poller does:
// the socket does not block, so that the call is over after some ten microseconds at
// most. Telling it wakes, each time a quiet process has something to do, the thread
// that watches for calls that take long; that thread then cost a seventh of all CPU.
func (c *batchCall) try(fd uintptr) bool {
	for {
		n, _, errno := unix.RawSyscall6(c.number, fd, uintptr(unsafe.Pointer(unsafe.SliceData(c.messages))), uintptr(len(c.messages)), uintptr(c.flags), 0, 0)
		if errno == unix.EINTR {
			continue
		}
		c.n, c.errno = int(n), errno
		return errno != unix.EAGAIN || c.flags&unix.MSG_DONTWAIT != 0
	}
}

// zoneIndices translates between the names of interfaces, which are the zones of
// addresses, and their numbers. Safe for concurrent use.
type zoneIndices struct {
	mu      sync.Mutex
	names   map[uint32]string
	numbers map[string]uint32
	until   time.Time // when all is looked up anew: interfaces come, go and are renamed
}

const zonesKept = 30 * time.Second

// fresh is called under the lock.
func (z *zoneIndices) fresh() {
	if now := time.Now(); z.names == nil || now.After(z.until) {
		z.names, z.numbers, z.until = make(map[uint32]string), make(map[string]uint32), now.Add(zonesKept)
	}
}

func (z *zoneIndices) name(number uint32) string {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.fresh()
	if name, ok := z.names[number]; ok {
		return name
	}
	i, err := net.InterfaceByIndex(int(number))
	if err != nil {
		return strconv.FormatUint(uint64(number), 10)
	}
	z.names[number] = i.Name
	return i.Name
}

// index is 0 for a zone that there is not.
func (z *zoneIndices) index(zone string) uint32 {
	z.mu.Lock()
	defer z.mu.Unlock()
	z.fresh()
	if number, ok := z.numbers[zone]; ok {
		return number
	}
	i, err := net.InterfaceByName(zone)
	if err != nil {
		number, _ := strconv.ParseUint(zone, 10, 32)
		return uint32(number)
	}
	z.numbers[zone] = uint32(i.Index)
	return uint32(i.Index)
}
