package cache

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"pgregory.net/rapid"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// The model says in the plainest way what the rules demand of requests that come
// one after the other, of three servers and two resources each.

type resource struct {
	server netip.AddrPort
	path   string
	accept uint32
	client string // whose representation it is, over a secured scheme; "" for everybody's
}

// representation is what a server would answer with.
type representation struct {
	code   codes.Code
	body   string
	etag   string
	maxAge uint32
}

type modelEntry struct {
	representation
	expires time.Time
	version int
}

type modelTag struct {
	print string
	tag   string
}

// model is the slow and obvious cache, and the servers behind both caches.
type model struct {
	servers  map[resource]representation
	silent   map[netip.AddrPort]bool
	entries  map[resource]*modelEntry
	versions int
	heard    []netip.AddrPort
	members  *roster
	tags     map[string]modelTag
	used     map[string]bool // tags ever seen
}

// seen is one response as client and model compare it.
type seen struct {
	server netip.AddrPort
	code   codes.Code
	body   string
	maxAge int // -1: none
}

func (m *model) fresh(r resource) *modelEntry {
	e := m.entries[r]
	if e == nil || !time.Now().Before(e.expires) {
		return nil
	}
	return e
}

func (m *model) store(r resource, p representation) *modelEntry { // FP-40, FP-42, FP-44
	m.versions++
	if p.maxAge == 0 && p.etag == "" {
		delete(m.entries, r)
		return nil
	}
	m.entries[r] = &modelEntry{representation: p, expires: time.Now().Add(time.Duration(p.maxAge) * time.Second), version: m.versions}
	return m.entries[r]
}

func (m *model) invalidate(server netip.AddrPort, path string) { // FP-47
	for r, e := range m.entries {
		if r.server == server && r.path == path {
			e.expires = time.Time{}
		}
	}
}

func cached(r resource, e *modelEntry, listed []string) seen {
	left := int(time.Until(e.expires) / time.Second)
	if e.etag != "" && slices.Contains(listed, e.etag) { // FP-46
		return seen{r.server, codes.Valid, "", max(left, 0)}
	}
	return seen{r.server, e.code, e.body, max(left, 0)}
}

// answer is what a server sends upon a request with these ETags.
func (m *model) answer(r resource, etags []string) *exchange.Response {
	p := m.servers[r]
	out := &exchange.Response{Code: p.code, From: r.server, Options: message.Options{maxAge(p.maxAge)}, Payload: []byte(p.body)}
	if p.etag != "" {
		out.Options = message.Options{etag(p.etag), maxAge(p.maxAge)}
		if slices.Contains(etags, p.etag) {
			out.Code, out.Payload = codes.Valid, nil
		}
	}
	return out
}

// asked returns what a client gets that caused the server to be asked, and does
// to the entries what the response does.
func (m *model) asked(r resource, listed []string) seen {
	p, old := m.servers[r], m.entries[r]
	switch {
	case p.etag != "" && old != nil && old.etag == p.etag: // FP-45: the server sends 2.03
		p.code, p.body = old.code, old.body
		m.store(r, p)
	case p.etag != "" && slices.Contains(listed, p.etag):
		if old != nil { // it has something else now
			old.expires = time.Time{}
		}
	default:
		m.store(r, p)
	}
	s := seen{r.server, p.code, p.body, int(p.maxAge)}
	if p.etag != "" && slices.Contains(listed, p.etag) {
		s.code, s.body = codes.Valid, ""
	}
	return s
}

func (m *model) print(path string, accept uint32) (string, bool) { // GP-82
	print := fmt.Sprint(m.members.version)
	if !m.members.complete || len(m.members.servers) == 0 {
		return "", false
	}
	for _, server := range m.members.servers {
		e := m.fresh(resource{server, path, accept, ""})
		if e == nil {
			return "", false
		}
		print += fmt.Sprint(" ", e.version)
	}
	return print, true
}

// checkTag holds a Group-ETag against what it stands for (GP-83).
func (m *model) checkTag(t *rapid.T, key, print, tag string) {
	if last, ok := m.tags[key]; ok && last.print == print {
		if tag != last.tag {
			t.Fatalf("Group-ETag changed from %x to %x without reason", last.tag, tag)
		}
		return
	}
	if m.used[tag] || len(tag) != 8 {
		t.Fatalf("Group-ETag %x used again", tag)
	}
	m.used[tag] = true
	m.tags[key] = modelTag{print, tag}
}

type machine struct {
	x    *fixture
	m    *model
	body int
}

func resourceOf(r *exchange.Request, server netip.AddrPort) resource {
	path, _ := wire.First(r.Options, wire.URIPath)
	accept, _ := wire.First(r.Options, wire.Accept)
	v, _ := wire.Uint(accept)
	of := resource{server, string(path), v, ""}
	if r.Target.Scheme == "coaps" {
		of.client = r.Client.Name
	}
	return of
}

var modelServers = []netip.AddrPort{serverA, serverB, serverC}

func (k *machine) draw(t *rapid.T) resource {
	return resource{rapid.SampledFrom(modelServers).Draw(t, "server"), rapid.SampledFrom([]string{"t", "u"}).Draw(t, "path"),
		rapid.SampledFrom([]uint32{0, 50}).Draw(t, "accept"), rapid.SampledFrom(modelClients).Draw(t, "client")}
}

var modelClients = []string{"", "", "alice", "bob"}

func drawETags(t *rapid.T) []string {
	return rapid.SliceOfNDistinct(rapid.SampledFrom([]string{"a1", "a2", "b1", "b2", "c1"}), 0, 2, rapid.ID[string]).Draw(t, "etags")
}

func (r resource) request(etags []string) []message.Option {
	options := []message.Option{uintOption(wire.Accept, r.accept)}
	for _, v := range etags {
		options = append(options, etag(v))
	}
	return options
}

func look(p *exchange.Response) seen {
	s := seen{p.From, p.Code, string(p.Payload), -1}
	if value, ok := wire.First(p.Options, wire.MaxAge); ok {
		v, _ := wire.Uint(value)
		s.maxAge = int(v)
	}
	return s
}

func compare(t *rapid.T, what string, want, got []seen) {
	order := func(a, b seen) int {
		return cmp.Or(a.server.Compare(b.server), int(a.code)-int(b.code), cmp.Compare(a.body, b.body), a.maxAge-b.maxAge)
	}
	slices.SortFunc(want, order)
	slices.SortFunc(got, order)
	if !slices.Equal(want, got) {
		t.Fatalf("%s: want %v, got %v", what, want, got)
	}
}

// change gives a resource another representation.
func (k *machine) change(t *rapid.T) {
	r := k.draw(t)
	k.body++
	p := representation{codes.Content, fmt.Sprint("body ", k.body), "", rapid.SampledFrom([]uint32{0, 1, 5, 60}).Draw(t, "Max-Age")}
	switch rapid.IntRange(0, 3).Draw(t, "kind") {
	case 0:
		p.code = codes.NotFound
	case 1, 2:
		// An ETag names one body of one server; servers may choose the same ones.
		p.etag = rapid.SampledFrom([]string{"a1", "a2", "b1"}).Draw(t, "etag")
		p.body = r.server.String() + r.path + r.client + fmt.Sprint(r.accept) + p.etag
	}
	k.m.servers[r] = p
}

func (k *machine) single(t *rapid.T) {
	r, listed := k.draw(t), drawETags(t)
	var want seen
	e := k.m.fresh(r)
	hit := e != nil
	if hit {
		want = cached(r, e, listed)
	} else {
		want = k.m.asked(r, listed)
	}
	before := len(k.x.origin.calls)
	request := to(r.server, get(r.path, r.request(listed)...))
	if r.client != "" { // FP-48
		request.Target.Scheme, request.Client = "coaps", &exchange.Identity{Name: r.client, Authenticated: true}
	}
	c := k.x.ask(request)
	if asked := len(k.x.origin.calls) > before; asked == hit {
		t.Fatalf("asked %v, want %v", asked, !hit)
	}
	if len(c.ends) != 1 || len(c.got) != 1 {
		t.Fatalf("%d responses, %d ends", len(c.got), len(c.ends))
	}
	compare(t, "single", []seen{want}, []seen{look(c.got[0])})
}

func (k *machine) put(t *rapid.T) {
	r := k.draw(t)
	put := to(r.server, get(r.path))
	put.Method = codes.PUT
	k.m.invalidate(r.server, r.path)
	k.x.ask(put)
}

// putAll is a PUT to the group: whoever is in it may have carried it out.
func (k *machine) putAll(t *rapid.T) {
	put := groupGet(rapid.Uint32Range(0, 2).Draw(t, "T'"), rapid.SampledFrom([]string{"t", "u"}).Draw(t, "path"))
	put.Method = codes.PUT
	path, _ := wire.First(put.Options, wire.URIPath)
	servers := k.m.members.servers
	if !k.m.members.complete {
		servers = append(slices.Clone(servers), k.m.heard...)
	}
	for _, server := range servers {
		k.m.invalidate(server, string(path))
	}
	k.x.ask(put)
}

func (k *machine) sleep(t *rapid.T) {
	time.Sleep(time.Duration(rapid.IntRange(1, 8000).Draw(t, "ms")) * time.Millisecond)
}

func (k *machine) join(t *rapid.T) {
	servers := rapid.SliceOfNDistinct(rapid.SampledFrom(modelServers), 0, 3, rapid.ID[netip.AddrPort]).Draw(t, "members")
	k.m.members.set(servers...)
	k.m.members.complete = rapid.Bool().Draw(t, "known")
}

func (k *machine) hush(t *rapid.T) {
	s := rapid.SampledFrom(modelServers).Draw(t, "server")
	k.m.silent[s] = !k.m.silent[s]
}

func (k *machine) group(t *rapid.T) {
	r, listed := k.draw(t), drawETags(t)
	timeout := rapid.Uint32Range(1, 30).Draw(t, "T'")
	request := groupGet(timeout, r.path, r.request(listed)...)
	key := fmt.Sprint(r.path, r.accept)
	print, complete := k.m.print(r.path, r.accept)
	if last, ok := k.m.tags[key]; ok && rapid.Bool().Draw(t, "Group-ETag") {
		request.Options = append(request.Options, option(wire.GroupETag, last.tag))
		if complete && last.print == print { // GP-85
			c := k.x.ask(request)
			if len(c.got) != 1 || c.got[0].Code != codes.Valid || c.got[0].From.IsValid() || len(c.ends) != 1 {
				t.Fatalf("no 2.03 for the Group-ETag: %v", c.got)
			}
			return
		}
	}
	before := len(k.x.origin.calls)
	start := time.Now()
	at := func(server netip.AddrPort) resource { return resource{server, r.path, r.accept, ""} }
	var want []seen
	if complete { // GP-75
		for _, server := range k.m.members.servers {
			want = append(want, cached(at(server), k.m.fresh(at(server)), listed))
		}
		c := k.x.ask(request)
		if len(k.x.origin.calls) != before {
			t.Fatalf("complete, and the group was asked")
		}
		var got []seen
		for _, p := range c.got {
			got = append(got, look(p))
			if p.Code == codes.Content {
				k.m.checkTag(t, key, print, groupTagOf(p))
			}
		}
		compare(t, "complete", want, got)
		return
	}
	// The live responses come at once; who is silent is stood in for (GP-76).
	candidates := k.m.members.servers
	if !k.m.members.complete {
		candidates = appendNew(slices.Clone(candidates), k.m.heard)
	} else if len(candidates) == 0 {
		candidates = nil
	}
	stored := make(map[netip.AddrPort]bool)
	for _, server := range candidates {
		stored[server] = k.m.fresh(at(server)) != nil
	}
	for _, server := range modelServers {
		if !k.m.silent[server] {
			want = append(want, k.m.asked(at(server), listed))
			k.m.heard = appendNew(k.m.heard, []netip.AddrPort{server})
		}
	}
	until := start.Add(time.Duration(timeout) * time.Second)
	for _, server := range candidates {
		if e := k.m.entries[at(server)]; stored[server] && k.m.silent[server] && e.expires.Before(until) { // GP-77
			want = append(want, cached(at(server), e, listed))
		}
	}
	c := k.x.ask(request)
	if len(k.x.origin.calls) == before {
		t.Fatalf("not complete, and the group was not asked")
	}
	group := k.x.origin.calls[before]
	time.Sleep(time.Until(until) - time.Nanosecond)
	synctest.Wait()
	group.end(nil)
	var got []seen
	for i, p := range c.got {
		s := look(p)
		if left := until.Sub(c.at[i]); i >= len(want) && left > 0 { // GP-78, GP-79
			e := k.m.entries[at(p.From)]
			if !stored[p.From] || !k.m.silent[p.From] || e.expires.Before(until) || left > margin(until.Sub(start)) {
				t.Fatalf("stored response of %v, %v before T'", p.From, left)
			}
			delete(stored, p.From)
			continue
		}
		got = append(got, s)
		if tag := groupTagOf(p); tag != "" {
			k.m.used[tag] = true // several in one exchange: the last counts, if at all (GP-84)
		}
	}
	for server, is := range stored {
		if e := k.m.entries[at(server)]; is && k.m.silent[server] && !e.expires.Before(until) {
			t.Fatalf("%v's stored response was held back for ever", server)
		}
	}
	compare(t, "group", want, got)
	delete(k.m.tags, key)
	k.tag(t, r, key)
}

// tag asks for the Group-ETag when a set has just become complete, so that the
// model knows what it stands for.
func (k *machine) tag(t *rapid.T, r resource, key string) {
	print, complete := k.m.print(r.path, r.accept)
	if !complete {
		return
	}
	c := k.x.ask(groupGet(1, r.path, r.request(nil)...))
	for _, p := range c.got {
		if p.Code == codes.Content {
			k.m.tags[key] = modelTag{print, groupTagOf(p)}
			k.m.used[groupTagOf(p)] = true
		}
	}
}

// GP-70, GP-75, GP-77, GP-78, GP-83, GP-85, FP-41, FP-42, FP-44, FP-45, FP-46, FP-47
func TestAgainstModel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		rapid.Check(struct{ rapid.TB }{t}, func(rt *rapid.T) { // a bubble has no deadline
			m := &model{servers: make(map[resource]representation), silent: make(map[netip.AddrPort]bool), entries: make(map[resource]*modelEntry),
				members: &roster{}, tags: make(map[string]modelTag), used: make(map[string]bool)}
			k := &machine{x: newFixture(t, func(c *Config) { c.Members = m.members }), m: m}
			for _, s := range modelServers {
				for _, path := range []string{"t", "u"} {
					for _, accept := range []uint32{0, 50} {
						for _, client := range modelClients {
							m.servers[resource{s, path, accept, client}] = representation{codes.Content, "initial" + client, "", 60}
						}
					}
				}
			}
			k.x.origin.answer = func(c *call) {
				switch {
				case c.Method == codes.PUT:
					c.respond(&exchange.Response{Code: codes.Changed})
				case c.Target.Group:
					for _, s := range modelServers {
						if !m.silent[s] {
							p := m.answer(resourceOf(c.Request, s), c.etags())
							p.GroupPort = allCoAP.Port()
							c.sink.Respond(p)
						}
					}
				default:
					c.respond(m.answer(resourceOf(c.Request, c.Target.Addr), c.etags()))
				}
			}
			ctx, cancel := context.WithCancel(context.Background())
			done := make(chan struct{})
			go func() { defer close(done); k.x.config.Engine.Run(ctx) }()
			defer func() { cancel(); <-done }()
			rt.Repeat(map[string]func(*rapid.T){"change": k.change, "single": k.single, "single again": k.single, "put": k.put, "put to all": k.putAll, "sleep": k.sleep,
				"members": k.join, "silence": k.hush, "group": k.group, "group again": k.group})
			if len(k.x.flights) != 0 {
				rt.Fatalf("exchanges left")
			}
		})
	})
}
