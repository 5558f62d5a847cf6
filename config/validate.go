package config

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Validate checks every value of c and how they fit together. The error is nil
// or of type [Problems]. A Config from [Load] or [Parse] has passed it already.
func (c *Config) Validate(opts ...Option) error {
	return c.validate(newSettings(opts), nil).err()
}

// validate returns what is wrong with c apart from the values that known, the
// problems found while decoding, has reported already.
func (c *Config) validate(s settings, known Problems) Problems {
	v := validator{c: c, lookup: s.lookup, reported: map[string]bool{}, interfaces: map[string]bool{}}
	for _, p := range known {
		v.reported[p.Key] = true
	}
	v.listeners()
	v.names()
	v.groups()
	v.nextHops()
	v.clients()
	v.routes()
	v.proxy()
	v.limits()
	v.cache()
	v.metrics()
	v.control()
	v.http()
	v.oscore()
	v.credentials()
	oneOf(&v, "log.level", c.Log.Level, LogDebug, LogInfo, LogWarn, LogError)
	oneOf(&v, "log.format", c.Log.Format, LogConsole, LogJSON)
	oneOf(&v, "log.output", c.Log.Output, LogStderr, LogStdout)
	return v.problems
}

// validator collects the problems of one Config.
type validator struct {
	c          *Config
	lookup     InterfaceLookup
	interfaces map[string]bool // answers of lookup
	reported   map[string]bool // keys whose problem is known already
	problems   Problems
}

// add reports a problem with the value at key, unless that value or one around
// it could not be read, so that one mistake is told once.
func (v *validator) add(key, message, hint string) {
	for k := key; k != ""; k = parent(k) {
		if v.reported[k] {
			return
		}
	}
	v.problems = append(v.problems, Problem{File: v.c.source.file, Line: v.c.source.line(key), Key: key, Message: message, Hint: hint})
}

// where names the value at key for a message about another value.
func (v *validator) where(key string) string {
	if line := v.c.source.lines[key]; line > 0 {
		return fmt.Sprintf("%s in line %d", key, line)
	}
	return key
}

// between checks low <= value <= high; NaN is outside of every range.
func between[T cmp.Ordered](v *validator, key string, value, low, high T) {
	if value >= low && value <= high {
		return
	}
	v.add(key, written(value)+" is out of range", fmt.Sprintf("write a value from %s to %s", written(low), written(high)))
}

// written returns a number as it is written in the file.
func written(value any) string {
	switch n := value.(type) {
	case float64:
		return strconv.FormatFloat(n, 'f', -1, 64)
	case time.Duration:
		switch {
		case n != 0 && n%time.Hour == 0:
			return fmt.Sprintf("%dh", n/time.Hour)
		case n != 0 && n%time.Minute == 0:
			return fmt.Sprintf("%dm", n/time.Minute)
		}
	}
	return fmt.Sprint(value)
}

// wholeSeconds is between for a time that travels in Multicast-Timeout, which
// counts whole seconds (GP-2).
func wholeSeconds(v *validator, key string, value, low, high time.Duration) {
	if value%time.Second != 0 {
		v.add(key, written(value)+" is not a whole number of seconds", "write e.g. "+written(max(low, value.Round(time.Second))))
		return
	}
	between(v, key, value, low, high)
}

// oneOf checks that value is one of the allowed ones.
func oneOf[T ~string](v *validator, key string, value T, allowed ...T) {
	if slices.Contains(allowed, value) {
		return
	}
	names := make([]string, len(allowed))
	for i, a := range allowed {
		names[i] = string(a)
	}
	hint := "write " + strings.Join(names, " or ")
	if len(names) > 2 {
		hint = "write one of " + strings.Join(names, ", ")
	}
	v.add(key, show(string(value))+" is not a known value", hint)
}

// unique reports the items of the list at key that are there twice.
func unique[T comparable](v *validator, key string, items []T) {
	seen := map[T]int{}
	for i, item := range items {
		first, ok := seen[item]
		if !ok {
			seen[item] = i
			continue
		}
		v.add(fmt.Sprintf("%s[%d]", key, i), "same as "+v.where(fmt.Sprintf("%s[%d]", key, first)), "remove one of them")
	}
}

// name checks the name of the entry at key and that taken, which has the keys of
// the names so far, does not have it.
func (v *validator) name(key, name string, taken map[string]string) {
	key += ".name"
	switch first, ok := taken[name]; {
	case name == "":
		v.add(key, "missing", "give the entry a name")
	case !isVisible(name):
		v.add(key, show(name)+" is not a name", "write at most 64 visible ASCII characters without spaces")
	case name == "*":
		v.add(key, "* stands for all names", "write another name")
	case ok:
		v.add(key, fmt.Sprintf("%s is the name of %s too", show(name), v.where(first)), "give each its own name")
	default:
		taken[name] = key
	}
}

// isVisible reports whether s can name something in a log line or a response.
func isVisible(s string) bool {
	return s != "" && len(s) <= 64 && !strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r > '~' })
}

// networkInterface checks that the interface called name exists (GC-7).
func (v *validator) networkInterface(key, name string) {
	if name == "" {
		v.add(key, "empty", "write the name of an interface, e.g. eth0")
		return
	}
	if v.lookup == nil {
		return
	}
	exists, ok := v.interfaces[name]
	if !ok {
		_, err := v.lookup(name)
		exists = err == nil
		v.interfaces[name] = exists
	}
	if !exists {
		v.add(key, "this host has no interface "+show(name), "write one that `ip link` lists")
	}
}

// listeners checks listen.
func (v *validator) listeners() {
	if len(v.c.Listen) == 0 {
		v.add("listen", "no listener", "remove the key to listen on the loopback addresses, or write e.g. coap://127.0.0.1:5683")
	}
	type socket struct { // UDP and TCP ports are independent
		addr netip.AddrPort
		tcp  bool
	}
	taken := map[socket]string{}
	for i, l := range v.c.Listen {
		key := fmt.Sprintf("listen[%d]", i)
		addr := l.Addr.Addr()
		switch {
		case schemes[l.Scheme] == 0:
			v.add(key, show(l.Scheme)+" is not supported by this version", "write a coap:// URI")
			continue
		case l.Scheme == "coaps" && v.c.Credentials.PSK == "" && v.c.Credentials.Certificate == "":
			v.add(key, "coaps needs the keys of its clients, or a certificate", "write credentials: {psk: FILE}, or {certificate: FILE, key: FILE}")
			continue
		case (l.Scheme == "coaps+tcp" || l.Scheme == "coaps+ws" || l.Scheme == "https") && v.c.Credentials.Certificate == "":
			v.add(key, l.Scheme+" needs a certificate", "write credentials: {certificate: FILE, key: FILE}")
			continue
		case !addr.IsValid():
			v.add(key, "no address", "write e.g. coap://127.0.0.1:5683")
			continue
		case addr.IsMulticast() || addr == netip.AddrFrom4([4]byte{255, 255, 255, 255}):
			v.add(key, addr.String()+" is not a unicast address", "write an address of this host; groups to reach go under groups") // GC-94
		case addr.Zone() != "" && !addr.IsLinkLocalUnicast():
			v.add(key, addr.String()+" has a zone, which only a link-local address has", "write "+addr.WithZone("").String())
		case addr.Zone() != "":
			v.networkInterface(key, addr.Zone())
		case addr.Is6() && addr.IsLinkLocalUnicast():
			v.add(key, "a link-local address needs its interface", "write e.g. coap://["+addr.String()+"%eth0]")
		}
		if l.Addr.Port() == 0 {
			continue // each gets a port of its own
		}
		at := socket{l.Addr, l.overTCP()}
		if first, ok := taken[at]; ok {
			v.add(key, fmt.Sprintf("%s is %s too", l, v.where(first)), "remove one of them")
			continue
		}
		taken[at] = key
	}
	// A wildcard takes the port on every address of its family.
	for i, l := range v.c.Listen {
		wildcard := netip.IPv6Unspecified()
		if l.Addr.Addr().Is4() {
			wildcard = netip.IPv4Unspecified()
		}
		first, ok := taken[socket{netip.AddrPortFrom(wildcard, l.Addr.Port()), l.overTCP()}]
		if ok && l.Addr.Addr().IsValid() && l.Addr.Addr() != wildcard {
			v.add(fmt.Sprintf("listen[%d]", i), fmt.Sprintf("%s is part of %s", l, v.where(first)), "remove one of them")
		}
	}
}

// names checks names.
func (v *validator) names() {
	hosts := make([]string, 0, len(v.c.Names))
	for host := range v.c.Names {
		hosts = append(hosts, host)
	}
	slices.Sort(hosts)
	for _, host := range hosts {
		key := "names." + show(host)
		addrs := v.c.Names[host]
		if !isHostName(host) || host != strings.ToLower(host) {
			v.add(key, show(host)+" is not a host name", "write e.g. lights.example, in lower case")
		}
		if len(addrs) == 0 {
			v.add(key, "no address", "write e.g. [192.0.2.7]")
			continue
		}
		unique(v, key, addrs)
		for i, addr := range addrs {
			if addr.IsMulticast() != addrs[0].IsMulticast() { // GC-3
				v.add(fmt.Sprintf("%s[%d]", key, i), "a name has multicast or unicast addresses, not both", "give them two names")
				break
			}
		}
	}
}

// proxy checks proxy.
func (v *validator) proxy() {
	p := &v.c.Proxy
	if p.DefaultInterface != "" {
		v.networkInterface("proxy.default_interface", p.DefaultInterface) // GP-57
	}
	wholeSeconds(v, "proxy.max_timeout", p.MaxTimeout, time.Second, maxTimeout) // GP-29
	oneOf(v, "proxy.max_scope", p.MaxScope, ScopeInterfaceLocal, ScopeLinkLocal, ScopeRealmLocal, ScopeAdminLocal,
		ScopeSiteLocal, ScopeOrganizationLocal, ScopeGlobal) // GC-5
	between(v, "proxy.hop_limit", p.HopLimit, 1, 255)                              // FP-52
	oneOf(v, "proxy.client_types", p.ClientTypes, ClientTypesKeep, ClientTypesCon) // FP-31
	if p.Identifier != "" && !isVisible(p.Identifier) {                            // FP-54
		v.add("proxy.identifier", show(p.Identifier)+" cannot stand in a 5.08 response", "write at most 64 visible ASCII characters without spaces")
	}
	unique(v, "proxy.own_names", p.OwnNames)
	for i, name := range p.OwnNames { // FP-8
		if !isAddr(name) && !isHostName(name) {
			v.add(fmt.Sprintf("proxy.own_names[%d]", i), show(name)+" is neither a host name nor an IP address", "write e.g. gateway.example")
		}
	}
	v.optionNumbers()
}

// cache checks cache.
func (v *validator) cache() {
	k := &v.c.Cache
	between(v, "cache.max_entries", k.MaxEntries, 1, 1<<24)
	between(v, "cache.max_bytes", k.MaxBytes, 64*KiB, 64*GiB)
	between(v, "cache.max_body", k.MaxBody, 64, GiB)
	between(v, "cache.max_variants", k.MaxVariants, 1, 65536)
	wholeSeconds(v, "cache.max_age", k.MaxAge, time.Second, 365*24*time.Hour)
}

// limits checks limits.
func (v *validator) limits() {
	l := &v.c.Limits
	between(v, "limits.max_token", l.MaxToken, 8, 256) // FP-83
	between(v, "limits.exchanges", l.Exchanges, 1, 1<<24)
	between(v, "limits.observations", l.Observations, 0, 1<<20)
	between(v, "limits.dedup_entries", l.DedupEntries, 1, 1<<24)                            // FP-90
	between(v, "limits.dedup_non_idempotent", l.DedupNonIdempotent, 1, 1<<24)               // FP-90
	between(v, "limits.upstream_ports", l.UpstreamPorts, 1, 4096)                           // FP-91
	between(v, "limits.nstart", l.NStart, 1, 65536)                                         // FP-92
	between(v, "limits.upstream_queue", l.UpstreamQueue, 0, 65536)                          // FP-35
	between(v, "limits.response_timeout_con", l.ResponseTimeoutCon, time.Second, time.Hour) // FP-32
	between(v, "limits.response_timeout", l.ResponseTimeout, time.Second, time.Hour)        // FP-32
	between(v, "limits.upstream_connections", l.UpstreamConnections, 1, 1<<20)              // FP-35
	between(v, "limits.upstream_pending", l.UpstreamPending, 1, 1<<20)                      // FP-35
	between(v, "limits.receive_buffer", l.ReceiveBuffer, 64*KiB, GiB)
	between(v, "limits.grace", l.Grace, 0, 10*time.Minute)
	between(v, "limits.group_rate", l.GroupRate, 0, maxRate)     // GP-113
	between(v, "limits.group_burst", l.GroupBurst, 1, maxBurst)  // GP-113
	between(v, "limits.request_rate", l.RequestRate, 0, maxRate) // FP-37
	between(v, "limits.prefix_rate", l.PrefixRate, 0, maxRate)
	between(v, "limits.prefix_burst", l.PrefixBurst, 1, maxBurst)
	between(v, "limits.request_burst", l.RequestBurst, 1, maxBurst)
	between(v, "limits.reuse_list", l.ReuseList, 1, 1<<24) // GC-24
	taken := map[HostPort]string{}
	for i, t := range l.NStartTargets { // FP-92
		key := fmt.Sprintf("limits.nstart_targets[%d]", i)
		between(v, key+".nstart", t.NStart, 1, 65536)
		key += ".target"
		switch first, ok := taken[t.Target]; {
		case t.Target == HostPort{}:
			v.add(key, "missing", "write e.g. 192.0.2.7:5683")
		case t.Target.Port == 0:
			v.add(key, "0 is not the port of a server", "write a port from 1 to 65535")
		case t.Target.Addr.IsMulticast():
			v.add(key, t.Target.Addr.String()+" is a multicast address", "set nstart in its entry under groups") // GC-80
		case ok:
			v.add(key, fmt.Sprintf("%s is %s too", t.Target, v.where(first)), "remove one of them")
		default:
			taken[t.Target] = key
		}
	}
}
