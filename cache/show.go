package cache

import (
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/exchange"
)

// Info describes one entry for an operator.
type Info struct {
	Server netip.AddrPort
	Scheme string
	Host   string // name in the URI, if it had one
	// Path and Query are the segments and items of the URI as they are in the
	// options, unescaped.
	Path, Query []string
	Method      codes.Code
	Code        codes.Code
	Options     message.Options // borrowed, not to be changed
	ETag        []byte
	Payload     int // bytes of the body
	// Private entries are for Client alone (FP-48).
	Private bool
	Client  string
	// Bytes is what the entry is counted with.
	Bytes     int
	Age       time.Duration
	Remaining time.Duration // of freshness; 0 for a stale entry
}

// Filter selects entries; the zero value selects all.
type Filter struct {
	// Servers selects by server; one with port 0 stands for every port. Nil for
	// every server.
	Servers []netip.AddrPort
	// Scheme and Host select by those parts of the URI.
	Scheme, Host string
	// Path selects by the first segments of the path, or by all of it.
	Path      []string
	WholePath bool
	// Query selects by all items of the query; nil for any.
	Query []string
	// Client selects the private entries of one client.
	Client string
	// Stale selects only entries that are not fresh.
	Stale bool
}

// candidate is an entry with what of it is guarded.
type candidate struct {
	entry *entry
	stale bool
}

// candidates lists all entries, the least recently used first.
func (c *Cache) candidates() []candidate {
	c.mu.Lock()
	defer c.mu.Unlock()
	entries := c.store.entries.Values()
	all := make([]candidate, len(entries))
	for i, e := range entries {
		all[i] = candidate{e, e.stale}
	}
	return all
}

// Show describes the selected entries, at most limit, the most recently used
// first, and tells how many there are. Requests are held up only while the
// entries are listed, not while they are described.
func (c *Cache) Show(f Filter, limit int) (infos []Info, total int) {
	now := time.Now()
	for _, k := range slices.Backward(c.candidates()) {
		info := k.entry.info(now, k.stale)
		if !f.selects(&info) {
			continue
		}
		if total++; total <= limit {
			infos = append(infos, info)
		}
	}
	return infos, total
}

// Flush drops the selected entries and returns how many there were. Exchanges
// under way store what they bring all the same.
func (c *Cache) Flush(f Filter) int {
	now := time.Now()
	var chosen []*entry
	for _, k := range c.candidates() {
		if info := k.entry.info(now, k.stale); f.selects(&info) {
			chosen = append(chosen, k.entry)
		}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	count := 0
	for _, e := range chosen {
		if current, ok := c.store.entries.Peek(e.hash); ok && current == e {
			c.store.remove(e)
			count++
		}
	}
	return count
}

// Servers returns the servers whose entries may answer a request to groups, and
// whether they are all current members (GP-75). The slice is the caller's.
func (c *Cache) Servers(groups []exchange.GroupAddr) (servers []netip.AddrPort, complete bool) {
	var buffer []netip.AddrPort
	servers, _, complete = c.membersOf(groups, &buffer)
	return slices.Clone(servers), complete
}

func (f *Filter) selects(i *Info) bool {
	switch {
	case f.Servers != nil && !slices.ContainsFunc(f.Servers, func(s netip.AddrPort) bool {
		return s.Addr() == i.Server.Addr() && (s.Port() == 0 || s.Port() == i.Server.Port())
	}),
		f.Scheme != "" && f.Scheme != i.Scheme,
		f.Host != "" && f.Host != i.Host,
		f.Client != "" && f.Client != i.Client,
		f.Stale && i.Remaining > 0,
		f.Query != nil && !slices.Equal(f.Query, i.Query),
		f.WholePath && len(f.Path) != len(i.Path):
		return false
	}
	return len(f.Path) <= len(i.Path) && slices.Equal(f.Path, i.Path[:len(f.Path)])
}

// info describes e; what is not stored apart is read from the key.
func (e *entry) info(now time.Time, stale bool) Info {
	i := Info{Server: e.server, Method: codes.Code(e.key[0]), Code: e.code, Options: e.options, ETag: e.etag, Payload: len(e.payload),
		Private: e.private, Client: e.client, Bytes: e.cost, Age: now.Sub(e.received)}
	if !stale && now.Before(e.expires) {
		i.Remaining = e.expires.Sub(now)
	}
	for uri := e.key[1:e.uri]; len(uri) >= itemHeader; {
		n := int(uri[1])<<16 | int(uri[2])<<8 | int(uri[3])
		value := string(uri[itemHeader : itemHeader+n])
		if uri[0] == pathItem {
			i.Path = append(i.Path, value)
		} else {
			i.Query = append(i.Query, value)
		}
		uri = uri[itemHeader+n:]
	}
	server := string(e.key[e.request+itemHeader:])
	i.Scheme, server, _ = strings.Cut(server, "\x00")
	_, server, _ = strings.Cut(server[16+2:], "\x00") // the zone
	i.Host, _, _ = strings.Cut(server, "\x00")
	return i
}
