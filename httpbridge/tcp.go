package httpbridge

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// tcpConn is a TCP connection that calls the kernel without telling the scheduler, as
// the CoAP sockets do and for the same reason: its calls do not block, and one that the
// scheduler hears of can wake the thread that watches over long ones, which then looks
// every 20 microseconds. Read is used by one goroutine at a time, and so is Write.
type tcpConn struct {
	*net.TCPConn
	socket  syscall.RawConn
	in, out tcpCall
}

// tcpCall is recvfrom(2) or sendto(2) on its way through the poller: kept, so that no
// call costs a closure.
type tcpCall struct {
	number  uintptr
	name    string
	bytes   []byte
	n       int
	errno   syscall.Errno
	attempt func(fd uintptr) bool // false: wait until the socket is ready
}

func newTCPConn(c *net.TCPConn) (*tcpConn, error) {
	socket, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	t := &tcpConn{TCPConn: c, socket: socket, in: tcpCall{number: unix.SYS_RECVFROM, name: "recvfrom"}, out: tcpCall{number: unix.SYS_SENDTO, name: "sendto"}}
	t.in.attempt, t.out.attempt = t.in.try, t.out.try
	return t, nil
}

// Read implements net.Conn.
func (t *tcpConn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	t.in.bytes = p
	n, err := t.in.outcome(t.socket.Read(t.in.attempt))
	if n == 0 && err == nil {
		err = io.EOF
	}
	return n, err
}

// Write implements net.Conn.
func (t *tcpConn) Write(p []byte) (n int, err error) {
	for n < len(p) && err == nil {
		var m int
		t.out.bytes = p[n:]
		m, err = t.out.outcome(t.socket.Write(t.out.attempt))
		n += m
	}
	return n, err
}

func (c *tcpCall) try(fd uintptr) bool {
	for {
		n, _, errno := unix.RawSyscall6(c.number, fd, uintptr(unsafe.Pointer(unsafe.SliceData(c.bytes))), uintptr(len(c.bytes)), unix.MSG_NOSIGNAL, 0, 0)
		if errno == unix.EINTR {
			continue
		}
		c.n, c.errno = int(n), errno
		return errno != unix.EAGAIN
	}
}

// outcome is that of the call, unless waiting for the socket failed.
func (c *tcpCall) outcome(err error) (int, error) {
	c.bytes = nil
	switch {
	case err != nil:
		return 0, err
	case c.errno != 0:
		return 0, os.NewSyscallError(c.name, c.errno)
	}
	return c.n, nil
}

// awaitHangUp returns nil when the peer has closed its side, whatever of what it sent
// has not been read yet. Else it ends as Read does, which waits for it.
func (t *tcpConn) awaitHangUp() error {
	return t.socket.Read(func(fd uintptr) bool {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLRDHUP}}, 0)
		return err == nil && n > 0
	})
}
