package proxy

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"time"
)

// This file has what of Mappings outlives the process: clients go on using what was
// announced to them, and an address of the pool must not stand for another server.

// keptMapping is a mapping in a file.
type keptMapping struct {
	NextHop string         `json:"next_hop,omitempty"`
	Server  netip.AddrPort `json:"server,omitzero"`
	Via     []byte         `json:"via,omitempty"` // what a next proxy announced
	Groups  []string       `json:"groups,omitempty"`
	Used    time.Time      `json:"used"`
	Hosts   []keptHost     `json:"hosts,omitempty"`
	ID      string         `json:"id,omitempty"`
	Slots   []keptSlot     `json:"addresses,omitempty"`
}

type keptHost struct {
	Addr netip.Addr `json:"addr"`
	Port uint16     `json:"port,omitempty"`
}

type keptSlot struct {
	At      netip.AddrPort `json:"at"`
	Schemes []string       `json:"schemes"`
}

// Changed tells, by a value in it, that there is more to keep than before. Uses alone
// are no change.
func (m *Mappings) Changed() <-chan struct{} { return m.changed }

// change is called under the lock or before anybody knows m.
func (m *Mappings) change() {
	select {
	case m.changed <- struct{}{}:
	default:
	}
}

// MarshalJSON implements json.Marshaler: a list of mappings, the one not used for the
// longest time first.
func (m *Mappings) MarshalJSON() ([]byte, error) {
	m.mu.Lock()
	all := make([]keptMapping, 0, m.servers.Len())
	for _, known := range m.servers.Values() {
		k := keptMapping{NextHop: known.key.nextHop, Server: known.key.addr, Via: []byte(known.key.via), Groups: known.groups, Used: known.used, ID: known.id}
		for _, h := range known.hosts {
			k.Hosts = append(k.Hosts, keptHost{h.addr, h.port})
		}
		for _, s := range known.slots {
			if s != nil {
				k.Slots = append(k.Slots, keptSlot{s.addr, slices.Clone(s.open)})
			}
		}
		all = append(all, k)
	}
	m.mu.Unlock()
	return json.Marshal(all)
}

// Restore takes over mappings as MarshalJSON has written them, and listens for them
// again. Those whose time is over, and addresses that are not of the pool any more, are
// left out. It returns how many are good again.
func (m *Mappings) Restore(data []byte, now time.Time) (int, error) {
	var all []keptMapping
	if err := json.Unmarshal(data, &all); err != nil {
		return 0, fmt.Errorf("read announced servers: %w", err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	n := 0
	for i := range all {
		if m.restore(&all[i], now) {
			n++
		}
	}
	return n, nil
}

// restore takes over one mapping. Called under the lock.
func (m *Mappings) restore(k *keptMapping, now time.Time) bool {
	var via []byte
	if len(k.Via) > 0 {
		via = k.Via
	}
	key, to, ok := behindOf(k.Server, via)
	if !ok || k.Used.After(now) || now.Sub(k.Used) >= m.Lifetime {
		return false
	}
	key.nextHop, to.nextHop, to.asServer = k.NextHop, k.NextHop, key.via != ""
	if m.servers.Contains(key) { // it has been heard already
		return false
	}
	known := m.note(key, to, k.Groups, k.Used)
	for _, h := range k.Hosts {
		if m.byHost[hostKey{h.Addr, h.Port}] == nil {
			m.index(known, hostKey{h.Addr, h.Port})
		}
	}
	if k.ID != "" && m.byPath[k.ID] == nil {
		known.id = k.ID
		m.byPath[k.ID] = known
	}
	for _, s := range k.Slots {
		own := m.byLocal[s.At]
		if own == nil || own.mapping != nil || known.slots[family(s.At.Addr())] != nil {
			continue
		}
		own.mapping, known.slots[family(s.At.Addr())] = known, own
		for _, scheme := range s.Schemes {
			m.listen(own, scheme, now)
		}
	}
	return true
}
