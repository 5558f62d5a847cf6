package control

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// ErrInUse says that another program answers at the socket's path.
var ErrInUse = errors.New("another program serves this control socket")

// Caller is who is at the other end, as the kernel tells it.
type Caller struct {
	UID, GID uint32
	PID      int32
}

type callerKey struct{}

// CallerOf returns who sent the request with this context.
func CallerOf(ctx context.Context) (Caller, bool) {
	c, ok := ctx.Value(callerKey{}).(Caller)
	return c, ok
}

// Listener is a control socket. It belongs to root and to the user that runs the
// proxy, and to one group if there is one.
type Listener struct {
	net.Listener
	path  string
	lock  *os.File
	group *uint32
	stats *Stats
	// Root and the proxy's own user have slots of their own, so that members of the
	// group cannot shut them out.
	owners, members chan struct{}
	once            sync.Once
}

// Listen makes the socket at path, of mode 0600, or of mode 0660 for a group of
// the system by name. A folder that is missing is made, for the same users; its
// parent is not. What a dead program left at path is replaced; a lock beside the
// socket makes sure that it is dead.
func Listen(ctx context.Context, path, group string) (*Listener, error) {
	l := &Listener{path: path, stats: &Stats{}, owners: make(chan struct{}, maxConnections), members: make(chan struct{}, maxConnections)}
	mode := fs.FileMode(0o600)
	if group != "" {
		id, err := groupID(group)
		if err != nil {
			return nil, err
		}
		l.group, mode = &id, 0o660
	}
	if err := l.folder(filepath.Dir(path)); err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	lock, err := os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("control socket: %w", err)
	}
	l.lock = lock
	if err := l.open(ctx, mode); err != nil {
		_ = lock.Close()
		return nil, fmt.Errorf("control socket %s: %w", path, err)
	}
	return l, nil
}

// folder makes the folder of the socket.
func (l *Listener) folder(path string) error {
	mode := fs.FileMode(0o700)
	if l.group != nil {
		mode = 0o750
	}
	switch err := os.Mkdir(path, mode); {
	case errors.Is(err, fs.ErrExist):
		return nil
	case err != nil || l.group == nil:
		return err
	}
	return l.give(path)
}

// give gives a file to the group.
func (l *Listener) give(path string) error {
	err := os.Chown(path, -1, int(*l.group))
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: the user that runs the proxy has to be in the group, too", err)
	}
	return err
}

func (l *Listener) open(ctx context.Context, mode fs.FileMode) error {
	if err := unix.Flock(int(l.lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		return ErrInUse
	}
	switch info, err := os.Lstat(l.path); {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return err
	case info.Mode().Type() != fs.ModeSocket:
		return errors.New("there is a file that is no socket")
	default:
		if err := os.Remove(l.path); err != nil {
			return err
		}
	}
	// The mode is set before there is a name, so that nobody gets in between.
	config := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
		var err error
		if e := c.Control(func(fd uintptr) { err = unix.Fchmod(int(fd), uint32(mode&0o600)) }); e != nil {
			return e
		}
		return err
	}}
	listener, err := config.Listen(ctx, "unix", l.path)
	if err != nil {
		return err
	}
	l.Listener = listener
	if l.group != nil {
		err = l.give(l.path)
	}
	if err = errors.Join(err, os.Chmod(l.path, mode)); err != nil {
		_ = listener.Close()
	}
	return err
}

func groupID(name string) (uint32, error) {
	g, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("control socket: %w", err)
	}
	id, err := strconv.ParseUint(g.Gid, 10, 32)
	return uint32(id), err
}

// Close removes the socket. The lock file stays: removing it would let two
// programs hold the lock of one path.
func (l *Listener) Close() error {
	err := error(nil)
	l.once.Do(func() {
		err = errors.Join(l.Listener.Close(), l.lock.Close())
	})
	return err
}

// Accept returns the next connection of somebody who may have one.
func (l *Listener) Accept() (net.Conn, error) {
	for {
		c, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		caller, err := credentials(c)
		if err != nil || !l.allows(caller) {
			l.stats.Refused.Add(1)
			_ = c.Close()
			continue
		}
		slots := l.members
		if isOwner(caller) {
			slots = l.owners
		}
		select {
		case slots <- struct{}{}:
			return &conn{Conn: c, caller: caller, slots: slots}, nil
		default:
			l.stats.Refused.Add(1)
			_ = c.Close()
		}
	}
}

// isOwner reports whether a caller is root or the user that runs the proxy.
func isOwner(c Caller) bool { return c.UID == 0 || int(c.UID) == os.Geteuid() }

// allows reports whether a caller may use the interface: root, the user that
// runs the proxy, members of the group.
func (l *Listener) allows(c Caller) bool {
	switch {
	case isOwner(c):
		return true
	case l.group == nil:
		return false
	case c.GID == *l.group:
		return true
	}
	u, err := user.LookupId(strconv.FormatUint(uint64(c.UID), 10))
	if err != nil {
		return false
	}
	groups, err := u.GroupIds()
	return err == nil && slices.Contains(groups, strconv.FormatUint(uint64(*l.group), 10))
}

// credentials asks the kernel who connected.
func credentials(c net.Conn) (Caller, error) {
	u, ok := c.(*net.UnixConn)
	if !ok {
		return Caller{}, errors.New("no Unix socket")
	}
	raw, err := u.SyscallConn()
	if err != nil {
		return Caller{}, err
	}
	var cred *unix.Ucred
	if e := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) }); e != nil {
		return Caller{}, e
	}
	if err != nil {
		return Caller{}, err
	}
	return Caller{UID: cred.Uid, GID: cred.Gid, PID: cred.Pid}, nil
}

// conn gives its slot back when it ends.
type conn struct {
	net.Conn
	caller Caller
	slots  chan struct{}
	once   sync.Once
}

// Close implements net.Conn.
func (c *conn) Close() error {
	err := c.Conn.Close()
	c.once.Do(func() { <-c.slots })
	return err
}
