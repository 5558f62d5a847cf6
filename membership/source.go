package membership

import (
	"net/netip"
	"slices"
)

// Source knows the members of groups. Safe for concurrent use; it never blocks.
type Source interface {
	// Members returns the servers in a group, given by the name and the address
	// it has in the configuration: the addresses and ports they answer from. The
	// slice is never changed afterwards. version is another one after every join
	// or leave (GP-83). complete is true if these are known to be all current
	// members.
	Members(group string, addr netip.AddrPort) (servers []netip.AddrPort, version uint64, complete bool)
}

// Groups is a Source that asks another one per group, by its name. A group that
// is not in it has unknown members. It is not changed after it is made.
type Groups map[string]Source

// Members implements Source.
func (g Groups) Members(group string, addr netip.AddrPort) ([]netip.AddrPort, uint64, bool) {
	if s := g[group]; s != nil {
		return s.Members(group, addr)
	}
	return nil, 0, false
}

// static is a list of members.
type static []netip.AddrPort

// Static is a Source for one group whose members are listed. A link-local
// address needs its zone, an interface name.
func Static(servers []netip.AddrPort) Source { return static(unique(servers)) }

// Members implements Source.
func (s static) Members(string, netip.AddrPort) ([]netip.AddrPort, uint64, bool) { return s, 1, true }

// unique is a copy in one order and form, without repetitions.
func unique(servers []netip.AddrPort) []netip.AddrPort {
	all := make([]netip.AddrPort, len(servers))
	for i, s := range servers {
		all[i] = netip.AddrPortFrom(s.Addr().Unmap(), s.Port())
	}
	slices.SortFunc(all, netip.AddrPort.Compare)
	return slices.Compact(all)
}
