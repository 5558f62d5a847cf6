package config

import (
	"fmt"
	"path/filepath"
	"strings"
)

// OSCORE says where the Security Contexts are. They are opened only when a client
// has one.
type OSCORE struct {
	// Contexts is the folder with the context files; a relative path is relative
	// to the folder of the configuration file. Store is the file that keeps what a
	// restart must not forget of them (OH-112); a relative path is relative to the
	// folder for the state, see statePlace.
	Contexts string `yaml:"contexts"`
	Store    string `yaml:"store"`
	// MaxLayers bounds the layers removed from one message (OH-2).
	MaxLayers int `yaml:"max_layers"`
	// Options are the numbers of further options that may go inside a layer
	// (OH-34).
	Options []uint16 `yaml:"options"`
	// Servers are those that the proxy itself protects requests for (OH-121).
	Servers []OSCOREServer `yaml:"servers"`
}

// OSCOREServer is a server with which the proxy has a Security Context.
type OSCOREServer struct {
	// Target is the server, asked by coap.
	Target HostPort `yaml:"target"`
	// Context is the name of the context.
	Context string `yaml:"context"`
	// Nested protects requests that are protected end to end as well (OH-121).
	Nested bool `yaml:"nested"`
}

// RouteOSCORE says what becomes of a request with OSCORE that a route matches.
type RouteOSCORE string

// The choices: the proxy takes the layer off, or the server behind it does (OH-18).
const (
	OSCOREDecryptFirst RouteOSCORE = "decrypt-first"
	OSCOREPassThrough  RouteOSCORE = "pass-through"
)

// locate makes the path of the contexts independent of the working directory.
func (o *OSCORE) locate(folder string) {
	if o.Contexts != "" && !filepath.IsAbs(o.Contexts) {
		o.Contexts = filepath.Join(folder, o.Contexts)
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

// HopContexts are the names of the contexts that the proxy protects requests with.
func (c *Config) HopContexts() []string {
	var names []string
	for i := range c.OSCORE.Servers {
		names = append(names, c.OSCORE.Servers[i].Context)
	}
	for i := range c.NextHop {
		if name := c.NextHop[i].OSCORE; name != "" {
			names = append(names, name)
		}
	}
	return names
}

// contextName reports whether a file in the folder of contexts can have the name.
func contextName(name string) bool {
	return isVisible(name) && !strings.ContainsAny(name, `/\`) && !strings.HasPrefix(name, ".")
}

const contextHint = "write the name of a file in oscore.contexts without its .json"

// oscore checks oscore.
func (v *validator) oscore() {
	o := &v.c.OSCORE
	if len(v.c.ClientContexts())+len(v.c.HopContexts()) > 0 {
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
	taken, servers := map[string]string{}, map[HostPort]string{}
	for i := range v.c.Clients {
		for j, name := range v.c.Clients[i].OSCORE {
			taken[name] = fmt.Sprintf("clients[%d].oscore[%d]", i, j)
		}
	}
	for i := range v.c.NextHop {
		if name := v.c.NextHop[i].OSCORE; name != "" {
			v.hopContext(fmt.Sprintf("next_hop[%d].oscore", i), name, taken)
		}
	}
	for i, s := range o.Servers {
		key := fmt.Sprintf("oscore.servers[%d]", i)
		v.hopContext(key+".context", s.Context, taken)
		switch first, ok := servers[s.Target]; {
		case s.Target.Host != "" || !s.Target.Addr.IsValid() || s.Target.Port == 0 || s.Target.Addr.IsMulticast():
			v.add(key+".target", "not the address of a server", "write e.g. 192.0.2.7:5683")
		case ok:
			v.add(key+".target", fmt.Sprintf("%s is %s too", s.Target, v.where(first)), "remove one of them")
		default:
			servers[s.Target] = key + ".target"
		}
	}
}

// hopContext checks the name of a context that the proxy protects requests with: it
// is nobody else's.
func (v *validator) hopContext(key, name string, taken map[string]string) {
	switch first, ok := taken[name]; {
	case name == "":
		v.add(key, "missing", contextHint)
	case !contextName(name):
		v.add(key, show(name)+" is not the name of a context", contextHint)
	case ok:
		v.add(key, fmt.Sprintf("%s is %s too", show(name), v.where(first)), "make a context for each")
	default:
		taken[name] = key
	}
}

// clientOSCORE checks the contexts of the client at key; taken has the keys of the
// names so far.
func (v *validator) clientOSCORE(key string, names []string, taken map[string]string) {
	for i, name := range names {
		item := fmt.Sprintf("%s[%d]", key, i)
		switch first, ok := taken[name]; {
		case !contextName(name):
			v.add(item, show(name)+" is not the name of a context", contextHint)
		case ok:
			v.add(item, fmt.Sprintf("%s is %s too", show(name), v.where(first)), "give it to one client") // OH-20
		default:
			taken[name] = item
		}
	}
}
