package config

import (
	"fmt"
	"path/filepath"
	"strings"
)

// OSCORE says where the Security Contexts are. They are opened only when a client
// has one.
type OSCORE struct {
	// Contexts is the folder with the context files, Store the file that keeps
	// what a restart must not forget of them (OH-112). A relative path is relative
	// to the folder of the configuration file.
	Contexts string `yaml:"contexts"`
	Store    string `yaml:"store"`
	// MaxLayers bounds the layers removed from one message (OH-2).
	MaxLayers int `yaml:"max_layers"`
	// Options are the numbers of further options that may go inside a layer
	// (OH-34).
	Options []uint16 `yaml:"options"`
}

// RouteOSCORE says what becomes of a request with OSCORE that a route matches.
type RouteOSCORE string

// The choices: the proxy takes the layer off, or the server behind it does (OH-18).
const (
	OSCOREDecryptFirst RouteOSCORE = "decrypt-first"
	OSCOREPassThrough  RouteOSCORE = "pass-through"
)

// relativeTo makes the paths independent of the working directory.
func (o *OSCORE) relativeTo(dir string) {
	for _, path := range [...]*string{&o.Contexts, &o.Store} {
		if *path != "" && !filepath.IsAbs(*path) {
			*path = filepath.Join(dir, *path)
		}
	}
}

// ClientContexts are the names of the contexts of all clients.
func (c *Config) ClientContexts() []string {
	var names []string
	for i := range c.Clients {
		names = append(names, c.Clients[i].OSCORE...)
	}
	return names
}

// oscore checks oscore.
func (v *validator) oscore() {
	o := &v.c.OSCORE
	if len(v.c.ClientContexts()) > 0 {
		if o.Contexts == "" {
			v.add("oscore.contexts", "missing", "write the folder with the context files of the clients")
		}
		if o.Store == "" {
			v.add("oscore.store", "missing", "write a file that the proxy may create and keep")
		}
	}
	between(v, "oscore.max_layers", o.MaxLayers, 1, 8) // OH-2
	unique(v, "oscore.options", o.Options)
	for i, n := range o.Options {
		between(v, fmt.Sprintf("oscore.options[%d]", i), int(n), 1, 65535)
	}
}

// clientOSCORE checks the contexts of the client at key; taken has the keys of the
// names so far.
func (v *validator) clientOSCORE(key string, names []string, taken map[string]string) {
	for i, name := range names {
		item := fmt.Sprintf("%s[%d]", key, i)
		switch first, ok := taken[name]; {
		case !isVisible(name) || strings.ContainsAny(name, `/\`) || strings.HasPrefix(name, "."):
			v.add(item, show(name)+" is not the name of a context", "write the name of a file in oscore.contexts without its .json")
		case ok:
			v.add(item, fmt.Sprintf("%s is %s too", show(name), v.where(first)), "give it to one client") // OH-20
		default:
			taken[name] = item
		}
	}
}
