package config

import (
	"path/filepath"
	"reflect"
)

// Control says where the proxy is asked and told things while it runs.
type Control struct {
	// Socket is the path of the Unix socket, [ControlAuto] or [ControlOff]; use
	// [Control.Path].
	Socket string `yaml:"socket"`
	// Group names a group of the system whose members may use the socket beside
	// root and the proxy's own user; none if empty.
	Group string `yaml:"group"`
}

// The values of Control.Socket that are no paths.
const (
	// ControlAuto is DefaultControlSocket, and none if that cannot be made.
	ControlAuto = "auto"
	ControlOff  = "off"
)

// DefaultControlSocket is where the socket is unless the configuration says
// something else.
const DefaultControlSocket = "/run/coapproxy/control.sock"

// maxSocketPath is the longest path that a Unix socket of Linux can have, in
// bytes.
const maxSocketPath = 107

// Path returns the path of the socket, empty for none. required is true if the
// operator asked for it, so that a proxy without it is not what he wanted.
func (c Control) Path() (path string, required bool) {
	switch c.Socket {
	case ControlAuto:
		return DefaultControlSocket, false
	case ControlOff, "":
		return "", false
	}
	return c.Socket, true
}

// ControlIn returns what the file at path says about the control socket whatever
// mistakes there are elsewhere in it, and the default where it cannot be read: the
// proxy that works by an earlier version of the file can be asked all the same.
func ControlIn(path string) Control {
	c := Default()
	data, err := read(path)
	if err != nil {
		return c.Control
	}
	if root, problem := document(data); problem == nil && root != nil {
		d := decoder{source: source{file: path, lines: map[string]int{}}}
		d.value(root, "", reflect.ValueOf(c).Elem())
	}
	c.Control.locate(filepath.Dir(path))
	return c.Control
}

// locate makes a relative path one that starts at the folder of the
// configuration.
func (c *Control) locate(folder string) {
	if _, written := c.Path(); written && !filepath.IsAbs(c.Socket) {
		c.Socket = filepath.Join(folder, c.Socket)
	}
}

// control checks control.
func (v *validator) control() {
	switch c := v.c.Control; {
	case c.Socket == "":
		v.add("control.socket", "empty", "write auto, off or a path")
	case len(c.Socket) > maxSocketPath:
		v.add("control.socket", "the path of a socket has at most 107 bytes", "write a shorter one")
	}
	if g := v.c.Control.Group; g != "" && !isVisible(g) {
		v.add("control.group", show(g)+" is not the name of a group", "write the name of a group of this system")
	}
}
