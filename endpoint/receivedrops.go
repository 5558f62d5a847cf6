package endpoint

import (
	"bufio"
	"os"
	"strconv"
	"strings"
	"sync"
)

// ReceiveDrops counts the datagrams that the kernel dropped because the receive
// buffer of one of this process's UDP sockets was full. It costs nothing until it
// is read. Safe for concurrent use.
type ReceiveDrops struct {
	mu     sync.Mutex
	total  uint64
	before map[string]uint64 // by inode
}

// Read returns the number so far, those of sockets that were closed since the
// last call left out.
func (d *ReceiveDrops) Read() uint64 {
	d.mu.Lock()
	defer d.mu.Unlock()
	own := ownSockets()
	now := make(map[string]uint64, len(own))
	for _, table := range []string{"/proc/self/net/udp", "/proc/self/net/udp6"} {
		readUDPTable(table, own, now)
	}
	for inode, drops := range now {
		if old := d.before[inode]; drops >= old {
			d.total += drops - old
		} else { // another socket, with the same number
			d.total += drops
		}
	}
	d.before = now
	return d.total
}

// ownSockets returns the inodes of this process's sockets.
func ownSockets() map[string]bool {
	const folder = "/proc/self/fd"
	own := make(map[string]bool)
	entries, err := os.ReadDir(folder)
	if err != nil {
		return own
	}
	for _, e := range entries {
		link, err := os.Readlink(folder + "/" + e.Name())
		if inode, ok := strings.CutPrefix(link, "socket:["); err == nil && ok {
			own[strings.TrimSuffix(inode, "]")] = true
		}
	}
	return own
}

// Columns of /proc/net/udp, from 0; see proc_pid_net(5).
const (
	inodeColumn = 9
	dropsColumn = 12
)

func readUDPTable(name string, own map[string]bool, drops map[string]uint64) {
	f, err := os.Open(name)
	if err != nil {
		return
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		columns := strings.Fields(lines.Text())
		if len(columns) <= dropsColumn || !own[columns[inodeColumn]] {
			continue
		}
		if n, err := strconv.ParseUint(columns[dropsColumn], 10, 64); err == nil {
			drops[columns[inodeColumn]] = n
		}
	}
}
