//go:build unix

package oscorehop

import (
	"os"
	"syscall"
)

// ownedByUs reports whether a file belongs to the user of this process or to root.
func ownedByUs(info os.FileInfo) bool {
	stat, ok := info.Sys().(*syscall.Stat_t)
	return ok && (stat.Uid == 0 || int(stat.Uid) == os.Geteuid())
}
