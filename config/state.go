package config

import (
	"os"
	"path/filepath"
)

// A configuration in systemFolder is an installation's: what the proxy itself
// writes belongs to stateFolder then, which its service can write to.
const (
	systemFolder = "/etc/coapproxy"
	stateFolder  = "/var/lib/coapproxy"
)

// statePlace says where files are that the proxy writes and reads again.
type statePlace struct{ system, state string }

// path makes name, when it is relative, one in the folder of the configuration,
// or in the state's if the configuration is the system's and that folder exists.
//
// Nothing but the file system decides: a proxy that somebody starts by hand has
// to find the sequence numbers of the service, whatever its environment
// (OH-112). For the same reason a file that is beside the configuration stays in
// use.
func (s statePlace) path(folder, name string) string {
	if name == "" || filepath.IsAbs(name) {
		return name
	}
	beside := filepath.Join(folder, name)
	if exists(beside) || !s.isSystem(folder) {
		return beside
	}
	if info, err := os.Stat(s.state); err != nil || !info.IsDir() {
		return beside
	}
	return filepath.Join(s.state, name)
}

func (s statePlace) isSystem(folder string) bool {
	a, err := filepath.Abs(folder)
	return err == nil && a == s.system
}
