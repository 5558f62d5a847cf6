package service

import (
	"encoding/hex"
	"math"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/cache"
	"coapproxy/config"
	"coapproxy/control"
	"coapproxy/exchange"
	"coapproxy/membership"
	"coapproxy/metrics"
	"coapproxy/wire"
)

// cacheControl is what the control interface tells of the cache and does to it:
//
//	GET  /v1/cache           bounds, counters
//	GET  /v1/cache/entries   entries; ?group= uri= server= path= client= stale=true limit=
//	POST /v1/cache/flush     drops the entries selected in the same way
//	GET  /v1/groups          groups and their members
type cacheControl struct {
	cache   *cache.Cache // nil: not enabled
	bounds  config.Cache
	metrics *metrics.Registry
	members *atomic.Pointer[membership.Groups]
	config  *atomic.Pointer[config.Config] // of the generation that serves
}

func (k *cacheControl) register(s *control.Server) {
	s.Handle("GET /v1/cache", k.summary)
	s.Handle("GET /v1/cache/entries", k.entries)
	s.Handle("POST /v1/cache/flush", k.flush)
	s.Handle("GET /v1/groups", k.listGroups)
}

func (k *cacheControl) summary(*http.Request) (any, error) {
	if k.cache == nil {
		return control.CacheSummary{}, nil
	}
	s := control.CacheSummary{Enabled: true, MaxEntries: k.bounds.MaxEntries, MaxBytes: int(k.bounds.MaxBytes), Counters: map[string]int64{}}
	for _, sample := range k.metrics.Samples() {
		name, ok := strings.CutPrefix(sample.Name, "cache_")
		if !ok {
			continue
		}
		if sample.Label != "" {
			name += "{" + sample.LabelValue + "}"
		}
		s.Counters[name] = sample.Value
	}
	return s, nil
}

// maxShown is the largest limit of entries to show.
const maxShown = 100_000

func (k *cacheControl) entries(r *http.Request) (any, error) {
	query := r.URL.Query()
	limit := 1000
	if text := query.Get("limit"); text != "" {
		n, err := strconv.Atoi(text)
		if err != nil || n < 0 || n > maxShown {
			return nil, control.Errorf(http.StatusBadRequest, "limit: not a number from 0 to %d", maxShown)
		}
		limit = n
	}
	f, group, err := k.filter(query, "limit")
	if err != nil {
		return nil, err
	}
	infos, total := k.cache.Show(f, limit)
	answer := control.CacheEntries{Total: total, Entries: make([]control.CacheEntry, 0, len(infos))}
	if group != nil {
		m := k.membersOf(group)
		answer.Group = &m
	}
	for i := range infos {
		answer.Entries = append(answer.Entries, shownEntry(&infos[i]))
	}
	return answer, nil
}

func shownEntry(i *cache.Info) control.CacheEntry {
	host := i.Server.Addr()
	uri := wire.URI{Scheme: i.Scheme, Host: i.Host, Port: i.Server.Port(), Path: i.Path, Query: i.Query}
	if i.Host == "" {
		uri.Addr = host
	}
	e := control.CacheEntry{URI: uri.String(), Server: i.Server.String(), Method: methodName(i.Method), Code: wire.CodeString(i.Code),
		ETag: hex.EncodeToString(i.ETag), Payload: i.Payload, Bytes: i.Bytes, Age: seconds(i.Age), Fresh: seconds(i.Remaining),
		Private: i.Private, Client: i.Client}
	if value, ok := wire.First(i.Options, wire.ContentFormat); ok {
		if format, ok := wire.Uint(value); ok {
			e.ContentFormat = &format
		}
	}
	return e
}

// methodName is the name of a method without its number.
func methodName(code codes.Code) string {
	_, name, _ := strings.Cut(wire.CodeString(code), " ")
	return name
}

// seconds rounds down to a tenth.
func seconds(d time.Duration) float64 { return math.Floor(d.Seconds()*10) / 10 }

func (k *cacheControl) flush(r *http.Request) (any, error) {
	f, _, err := k.filter(r.URL.Query())
	if err != nil {
		return nil, err
	}
	return control.CacheFlushed{Flushed: k.cache.Flush(f)}, nil
}

// filter reads which entries are meant; group is the one of group= or uri=.
func (k *cacheControl) filter(query url.Values, other ...string) (f cache.Filter, group *config.Group, err error) {
	if k.cache == nil {
		return f, nil, control.Errorf(http.StatusConflict, "the cache is not enabled (cache.enabled)")
	}
	wrong := func(key, problem string) (cache.Filter, *config.Group, error) {
		return cache.Filter{}, nil, control.Errorf(http.StatusBadRequest, "%s: %s", key, problem)
	}
	for key, values := range query {
		value := values[0]
		if len(values) > 1 {
			return wrong(key, "given twice")
		}
		switch key {
		case "uri":
			u, err := wire.ParseURI(value)
			if err != nil {
				return wrong(key, err.Error())
			}
			if group, err = k.uri(u, &f, group); err != nil {
				return f, nil, err
			}
		case "group":
			named := k.groupNamed(value)
			if named == nil {
				return wrong(key, "no group "+strconv.Quote(value)+" in the configuration")
			}
			group = named
		case "server":
			server, err := parseServer(value)
			if err != nil {
				return wrong(key, "not an address, nor one with a port")
			}
			f.Servers = append(f.Servers, server)
		case "path":
			f.Path = strings.Split(strings.Trim(value, "/"), "/")
		case "client":
			f.Client = value
		case "stale":
			f.Stale = value == "true"
		default:
			if !slices.Contains(other, key) {
				return wrong(key, "not a filter; known: uri, group, server, path, client, stale")
			}
		}
	}
	if group != nil {
		servers := []netip.AddrPort{} // none is not the same as any
		for _, g := range k.addresses(group) {
			found, _ := k.cache.Servers([]exchange.GroupAddr{g})
			servers = append(servers, found...)
		}
		f.Servers = servers
	}
	return f, group, nil
}

// uri makes a filter of a URI: of that resource at one server or, with the URI
// of a group, at each of the servers in it.
func (k *cacheControl) uri(u wire.URI, f *cache.Filter, group *config.Group) (*config.Group, error) {
	f.Path, f.WholePath, f.Query = u.Path, true, u.Query
	groups := k.config.Load().Groups
	for i := range groups {
		for _, g := range k.addresses(&groups[i]) {
			if (u.Addr.IsValid() && u.Addr.WithZone("") == g.Addr.Addr().WithZone("") || u.Host != "" && u.Host == groups[i].URI.Host) && u.Port == g.Addr.Port() {
				return &groups[i], nil
			}
		}
	}
	switch {
	case u.Addr.IsMulticast():
		return nil, control.Errorf(http.StatusBadRequest, "uri: %s is no group of the configuration", u.Authority())
	case u.Addr.IsValid():
		f.Servers = append(f.Servers, netip.AddrPortFrom(u.Addr, u.Port))
	default:
		f.Host = u.Host
	}
	f.Scheme = u.Scheme
	return group, nil
}

func parseServer(text string) (netip.AddrPort, error) {
	if addr, err := netip.ParseAddr(strings.Trim(text, "[]")); err == nil {
		return netip.AddrPortFrom(addr.Unmap(), 0), nil
	}
	server, err := netip.ParseAddrPort(text)
	return netip.AddrPortFrom(server.Addr().Unmap(), server.Port()), err
}

func (k *cacheControl) groupNamed(name string) *config.Group {
	groups := k.config.Load().Groups
	if i := slices.IndexFunc(groups, func(g config.Group) bool { return g.Name == name }); i >= 0 {
		return &groups[i]
	}
	return nil
}

// addresses returns the known multicast addresses of a group.
func (k *cacheControl) addresses(g *config.Group) []exchange.GroupAddr {
	addrs := k.config.Load().Names[g.URI.Host]
	if g.URI.Addr.IsValid() {
		addrs = []netip.Addr{g.URI.Addr}
	}
	var all []exchange.GroupAddr
	for _, a := range addrs {
		all = append(all, exchange.GroupAddr{Addr: netip.AddrPortFrom(a, g.URI.Port), Name: g.Name})
	}
	return all
}

func (k *cacheControl) listGroups(*http.Request) (any, error) {
	groups := k.config.Load().Groups
	all := make([]control.GroupMembers, 0, len(groups))
	for i := range groups {
		all = append(all, k.membersOf(&groups[i]))
	}
	return struct {
		Groups []control.GroupMembers `json:"groups"`
	}{all}, nil
}

func (k *cacheControl) membersOf(g *config.Group) control.GroupMembers {
	m := control.GroupMembers{Name: g.Name, URI: g.URI.String(), Source: sourceName(g), Members: []string{}}
	sources := *k.members.Load()
	if d, ok := sources[g.Name].(*membership.Directory); ok {
		valid, err := d.Status()
		m.Directory = &control.DirectoryStatus{URI: g.RD.URI.String(), Valid: seconds(valid)}
		if err != nil {
			m.Directory.Error = err.Error()
		}
	}
	for i, a := range k.addresses(g) {
		servers, _, complete := sources.Members(a.Name, a.Addr)
		m.Complete = complete && (i == 0 || m.Complete)
		for _, s := range servers {
			if text := s.String(); !slices.Contains(m.Members, text) {
				m.Members = append(m.Members, text)
			}
		}
	}
	return m
}

func sourceName(g *config.Group) string {
	switch {
	case len(g.Members) > 0:
		return "static"
	case g.Learned.Within > 0:
		return "learned"
	case !g.RD.URI.IsZero():
		return "directory"
	}
	return "unknown"
}
