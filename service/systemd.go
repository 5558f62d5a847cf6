package service

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"github.com/coreos/go-systemd/v22/activation"
	"github.com/coreos/go-systemd/v22/daemon"
	"go.uber.org/zap"
	"golang.org/x/sys/unix"

	"coapproxy/httpbridge"
)

// manager is the service manager that started the proxy, if there is one that
// wants to know how it is (sd_notify(3)). Without one everything does nothing.
type manager struct{ log *zap.Logger }

func (m manager) tell(state string) {
	if _, err := daemon.SdNotify(false, state); err != nil {
		m.log.Warn("the service manager cannot be told", zap.Error(err))
	}
}

func (m manager) ready()    { m.tell(daemon.SdNotifyReady + "\nSTATUS=serving") }
func (m manager) stopping() { m.tell(daemon.SdNotifyStopping + "\nSTATUS=finishing what runs") }

// reloading says that a new configuration is about to be used; ready follows.
func (m manager) reloading() {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return
	}
	m.tell(fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, now.Nano()/int64(time.Microsecond)))
}

// watch tells the watchdog, if there is one, that the proxy is healthy, as long as
// it is and ctx lasts.
func (m manager) watch(ctx context.Context, healthy func(context.Context) error) {
	interval, err := daemon.SdWatchdogEnabled(false)
	if err != nil || interval <= 0 {
		return
	}
	ticker := time.NewTicker(interval / 3)
	defer ticker.Stop()
	for {
		within, cancel := context.WithTimeout(ctx, interval/3)
		err := healthy(within)
		cancel()
		switch {
		case ctx.Err() != nil:
			return
		case err != nil:
			m.log.Error("unhealthy", zap.Error(err))
		default:
			m.tell(daemon.SdNotifyWatchdog)
		}
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
	}
}

// sockets are those that a service manager opened for the proxy (socket
// activation): whoever listens at the address of one uses that. Safe for
// concurrent use.
type sockets struct {
	mu    sync.Mutex
	all   map[socketAddr]*os.File
	taken map[socketAddr]bool // by a listener, now or earlier
}

// socketAddr tells sockets apart.
type socketAddr struct {
	addr netip.AddrPort
	kind int // unix.SOCK_STREAM or SOCK_DGRAM
}

// passedSockets takes over the sockets that this process was started with. The
// error is about one that is no IP socket.
func passedSockets() (*sockets, error) {
	s := &sockets{all: make(map[socketAddr]*os.File), taken: make(map[socketAddr]bool)}
	var errs error
	for _, f := range activation.Files(true) {
		addr, err := addrOfSocket(f)
		if err != nil {
			errs = errors.Join(errs, fmt.Errorf("socket %s of the service manager: %w", f.Name(), err), f.Close())
			continue
		}
		s.all[addr] = f
	}
	return s, errs
}

func addrOfSocket(f *os.File) (socketAddr, error) {
	kind, err := unix.GetsockoptInt(int(f.Fd()), unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil {
		return socketAddr{}, err
	}
	sa, err := unix.Getsockname(int(f.Fd()))
	if err != nil {
		return socketAddr{}, err
	}
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return socketAddr{netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port)), kind}, nil
	case *unix.SockaddrInet6:
		addr := netip.AddrFrom16(sa.Addr)
		if sa.ZoneId != 0 {
			i, err := net.InterfaceByIndex(int(sa.ZoneId))
			if err != nil {
				return socketAddr{}, err
			}
			addr = addr.WithZone(i.Name)
		}
		return socketAddr{netip.AddrPortFrom(addr, uint16(sa.Port)), kind}, nil
	}
	return socketAddr{}, errors.New("it is not one of IP")
}

// take returns a copy of the socket for an address, which is then the caller's;
// nil if none was passed. The socket stays here too, so that a listener that was
// closed can come back.
func (s *sockets) take(addr netip.AddrPort, kind int) (*os.File, error) {
	if s == nil {
		return nil, nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	f := s.all[socketAddr{addr, kind}]
	if f == nil {
		return nil, nil
	}
	fd, err := unix.FcntlInt(f.Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	s.taken[socketAddr{addr, kind}] = true
	return os.NewFile(uintptr(fd), f.Name()), nil
}

// listenTCP opens a socket for a listener over TCP, or takes the one that was
// passed.
func (s *sockets) listenTCP(ctx context.Context, addr netip.AddrPort) (net.Listener, error) {
	f, err := s.take(addr, unix.SOCK_STREAM)
	if err != nil {
		return nil, err
	}
	if f != nil {
		defer f.Close() // it is copied
		return net.FileListener(f)
	}
	network := "tcp4"
	if addr.Addr().Is6() {
		network = "tcp6"
	}
	var lc net.ListenConfig
	return lc.Listen(ctx, network, addr.String())
}

// forHTTP hands over what was passed for the address of a listener for HTTP: a
// TCP socket, and a UDP socket for HTTP/3.
func (s *sockets) forHTTP(c *httpbridge.ListenConfig) error {
	f, err := s.take(c.Addr, unix.SOCK_STREAM)
	if err != nil || f == nil {
		return err
	}
	defer f.Close() // it is copied
	l, err := net.FileListener(f)
	if err != nil {
		return err
	}
	c.TCP = l.(*net.TCPListener)
	u, err := s.take(c.Addr, unix.SOCK_DGRAM)
	if err != nil || u == nil {
		return err
	}
	defer u.Close()
	c.UDP, err = net.FilePacketConn(u)
	return err
}

// unused warns about sockets that no listener has taken.
func (s *sockets) unused(log *zap.Logger) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for a := range s.all {
		if !s.taken[a] {
			log.Warn("no listener of the configuration has the address of this socket of the service manager", zap.Stringer("address", a.addr),
				zap.String("protocol", map[int]string{unix.SOCK_DGRAM: "udp", unix.SOCK_STREAM: "tcp"}[a.kind]))
		}
	}
}

// close closes what is left.
func (s *sockets) close() {
	if s == nil {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, f := range s.all {
		_ = f.Close()
	}
	s.all = nil
}
