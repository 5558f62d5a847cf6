package endpoint

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// errorQueue is what came back of the datagrams of a socket: ICMP errors that
// the kernel keeps in a queue beside those received, each with the peer that
// could not be reached and the beginning of the datagram.
//
// That something is in the queue the kernel tells only once, by failing
// whatever is tried next, whether it has to do with it or not. So both reader
// and writer empty it when that happens to them, into a list for the reader.
type errorQueue struct {
	socket syscall.RawConn

	mu       sync.Mutex // held while the kernel's queue is emptied
	returned []Datagram
}

const (
	// maxReturned bounds the datagrams that wait for the reader; further ones
	// are forgotten, as if no ICMP error had come.
	maxReturned = 1024
	// maxEchoes is how often in a row a datagram is tried again that failed
	// with what may be the error of another one. The queue is empty then, so
	// that a further error is either the datagram's own or a new arrival.
	maxEchoes = 8
)

var errUndeliverable = errors.New("destination unreachable")

// drain empties the kernel's queue. It reports whether anything waits for the
// reader.
func (q *errorQueue) drain() bool {
	q.mu.Lock()
	defer q.mu.Unlock()
	// Not with Read, which waits for a reader that is waiting.
	_ = q.socket.Control(func(fd uintptr) {
		for {
			var header [16]byte // all that is looked at is Message ID and type
			n, _, _, from, err := unix.Recvmsg(int(fd), header[:], nil, unix.MSG_ERRQUEUE|unix.MSG_DONTWAIT)
			if err != nil {
				return // it is empty
			}
			if len(q.returned) < maxReturned {
				q.returned = append(q.returned, Datagram{Peer: Peer{Addr: sockaddrAddrPort(from)}, Data: header[:n], Undeliverable: errUndeliverable})
			}
		}
	})
	return len(q.returned) > 0
}

// sockaddrAddrPort is an address as peers have it.
func sockaddrAddrPort(a unix.Sockaddr) netip.AddrPort {
	switch a := a.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(a.Addr), uint16(a.Port))
	case *unix.SockaddrInet6:
		addr := netip.AddrFrom16(a.Addr)
		if a.ZoneId != 0 {
			if iface, err := net.InterfaceByIndex(int(a.ZoneId)); err == nil {
				addr = addr.WithZone(iface.Name)
			}
		}
		return netip.AddrPortFrom(addr, uint16(a.Port))
	}
	return netip.AddrPort{}
}

// take moves what came back to batch and reports whether there is more.
func (q *errorQueue) take(batch []Datagram) (n int, more bool) {
	q.mu.Lock()
	defer q.mu.Unlock()
	n = copy(batch, q.returned)
	q.returned = slices.Delete(q.returned, 0, n)
	return n, len(q.returned) > 0
}

// isICMP reports errors that a socket with an error queue raises for what an
// earlier datagram met. Some of them may just as well be the datagram's own.
func isICMP(err error) bool {
	for _, e := range []syscall.Errno{unix.ECONNREFUSED, unix.EHOSTUNREACH, unix.ENETUNREACH, unix.EACCES,
		unix.EMSGSIZE, unix.EPROTO, unix.ENOPROTOOPT, unix.EHOSTDOWN, unix.EPERM} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}
