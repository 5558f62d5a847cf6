package cache

import (
	"net/netip"
	"strings"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"
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
	ETag        []byte
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
	// Server with port 0 stands for every port; invalid for every server.
	Server netip.AddrPort
	// Path selects by the first segments of the path.
	Path []string
	// Client selects the private entries of one client.
	Client string
	// Stale selects only entries that are not fresh.
	Stale bool
}

// Show describes the selected entries, at most limit, the most recently used
// last. It holds up requests for a time that grows with limit.
func (c *Cache) Show(f Filter, limit int) []Info {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	var all []Info
	for _, e := range c.store.entries.Values() {
		if len(all) >= limit {
			break
		}
		if info := e.info(now); f.selects(&info) {
			all = append(all, info)
		}
	}
	return all
}

// Flush drops the selected entries and returns how many there were. Exchanges
// under way store what they bring all the same.
func (c *Cache) Flush(f Filter) int {
	now := time.Now()
	c.mu.Lock()
	defer c.mu.Unlock()
	count := 0
	for _, e := range c.store.entries.Values() {
		if info := e.info(now); f.selects(&info) {
			c.store.remove(e)
			count++
		}
	}
	return count
}

func (f *Filter) selects(i *Info) bool {
	switch {
	case f.Server.IsValid() && f.Server.Addr() != i.Server.Addr(),
		f.Server.Port() != 0 && f.Server.Port() != i.Server.Port(),
		f.Client != "" && f.Client != i.Client,
		f.Stale && i.Remaining > 0,
		len(f.Path) > len(i.Path):
		return false
	}
	for n, segment := range f.Path {
		if i.Path[n] != segment {
			return false
		}
	}
	return true
}

// info describes e; what is not stored apart is read from the key. Called under
// Cache.mu.
func (e *entry) info(now time.Time) Info {
	i := Info{Server: e.server, Method: codes.Code(e.key[0]), Code: e.code, ETag: e.etag, Private: e.private, Client: e.client,
		Bytes: e.cost, Age: now.Sub(e.received)}
	if e.fresh(now) {
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
