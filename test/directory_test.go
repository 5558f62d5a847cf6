package test

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// directory is a resource directory (RFC 9176) whose every answer is the test's.
type directory struct {
	*server
	mu        sync.Mutex
	list      string
	maxAge    uint32
	observers []*request
	sequence  uint32
	mute      bool
}

func newDirectory(t *testing.T, maxAge uint32) *directory {
	d := &directory{maxAge: maxAge}
	d.server = single(t, d.handle)
	return d
}

func (d *directory) handle(s *server, r *request) {
	d.mu.Lock()
	defer d.mu.Unlock()
	format := coap.Uint(coap.ContentFormat, 40)
	switch {
	case d.mute:
	case r.Path() == "/.well-known/core":
		s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Options: []coap.Option{format},
			Payload: []byte(`</rd>;rt="core.rd",</find/ep>;rt="core.rd-lookup-ep";obs`)})
	case r.Path() != "/find/ep":
		s.answer(r, coap.Message{Code: coap.CodeOf(4, 4)})
	default:
		options := []coap.Option{format, coap.Uint(coap.MaxAge, d.maxAge)}
		if o, ok := r.Option(coap.Observe); ok && o.Uint() == 0 {
			d.observers = append(d.observers, r)
			d.sequence++
			options = append(options, coap.Uint(coap.Observe, d.sequence))
		}
		s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Options: options, Payload: []byte(d.list)})
	}
}

// register makes these all endpoints, and tells who observes.
func (d *directory) register(servers ...netip.AddrPort) {
	d.mu.Lock()
	defer d.mu.Unlock()
	var links []string
	for i, s := range servers {
		links = append(links, fmt.Sprintf(`</reg/%d>;ep="node%d";base="coap://%v"`, i, i, s))
	}
	d.list = strings.Join(links, ",")
	for _, r := range d.observers {
		d.sequence++
		d.send(r, coap.Message{Type: coap.NON, Code: coap.CodeOf(2, 5), ID: d.nextID(), Payload: []byte(d.list),
			Options: []coap.Option{coap.Uint(coap.ContentFormat, 40), coap.Uint(coap.MaxAge, d.maxAge), coap.Uint(coap.Observe, d.sequence)}})
	}
}

// knows waits until the proxy knows so many members, and that they are all.
func (d *directory) knows(t *testing.T, socket string, n int, complete bool) {
	t.Helper()
	eventually(t, func() bool {
		g := shown[shownEntries](t, "cache", "show", "--socket", socket, "--group", "devices").Group
		return len(g.Members) == n && g.Complete == complete
	}, "the proxy does not know %d members, complete %v", n, complete)
}

// Members that are registered in a resource directory make a set complete; who
// joins or leaves there changes it at once (GP-75, GP-82, GP-83).
func TestResourceDirectory(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 3, stored)
	d := newDirectory(t, 60)
	d.register(servers[0].addr(), servers[1].addr())
	socket, control := controlSocket(t)
	p := startProxy(t, group, settings{cache: "enabled: true", control: control, group: fmt.Sprintf(
		"nstart: 16\nleisure: 1s\nprobing_rate: 0\nrd:\n  uri: coap://%v\n  filter: [et=lamp]", d.addr())})
	d.knows(t, socket, 2, true)
	require.Contains(t, d.requestsTo("/find/ep")[0].Message.String(), "et=lamp")

	c := newClient(t, here, clientAddr, p.addr())
	uri := fmt.Sprintf("coap://%v/x", group)
	c.gatherN(get(coap.NON, uri, timeout(30)), 3)
	tagOf := func(responses []incoming) string {
		values := responses[0].All(coap.GroupETag)
		require.Len(t, values, 1)
		return string(values[0])
	}
	two := tagOf(c.gatherJust(get(coap.NON, uri, timeout(30)), 2))
	d.register(servers[0].addr(), servers[1].addr(), servers[2].addr())
	d.knows(t, socket, 3, true)
	three := tagOf(c.gatherJust(get(coap.NON, uri, timeout(30)), 3))
	require.NotEqual(t, two, three)
	d.register(servers[2].addr())
	d.knows(t, socket, 1, true)
	require.NotEqual(t, three, tagOf(c.gatherJust(get(coap.NON, uri, timeout(30)), 1)))
	for _, s := range servers {
		require.Len(t, s.requests(), 1)
	}
}

// A resource directory that does not answer any more is believed until the
// Max-Age of its last answer; after that the group is asked.
func TestResourceDirectoryGone(t *testing.T) {
	t.Parallel()
	servers, group := members(t, 2, stored)
	d := newDirectory(t, 2)
	d.register(servers[0].addr(), servers[1].addr())
	socket, control := controlSocket(t)
	p := startProxy(t, group, settings{cache: "enabled: true", control: control, group: fmt.Sprintf(
		"nstart: 16\nleisure: 1s\nprobing_rate: 0\nrd:\n  uri: coap://%v/find/ep", d.addr())})
	d.knows(t, socket, 2, true)
	c := newClient(t, here, clientAddr, p.addr())
	uri := fmt.Sprintf("coap://%v/x", group)
	c.gatherN(get(coap.NON, uri, timeout(1)), 2)
	d.mu.Lock()
	d.mute = true
	d.mu.Unlock()
	d.knows(t, socket, 2, false)
	c.gatherN(get(coap.NON, uri, timeout(1)), 2)
	for _, s := range servers {
		require.Len(t, s.requests(), 2)
	}
	eventually(t, func() bool {
		return slices.ContainsFunc(shown[shownStatus](t, "status", "--socket", socket).Warnings, func(w string) bool {
			return strings.HasPrefix(w, "the resource directory does not tell the members of the group ")
		})
	}, "status says nothing of the directory")
}

// got reports whether a server has received a message with a code.
func (s *server) got(code coap.Code) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.ContainsFunc(s.received, func(in incoming) bool { return in.Code == code })
}

// libcoap's resource directory has no lookup. Its list of resources tells from
// which address who registered, and that is enough (docs/cache.md).
func TestLibcoapDirectory(t *testing.T) {
	inLab(t, "3", func(t *testing.T, l *lab) {
		devices := l.devices(2, stored)
		rd := start(t, l.sv(3), "coap-rd", "coap-rd-notls", "-v", "7")
		for i, d := range devices {
			m := coap.Message{Type: coap.CON, Code: coap.POST, ID: d.nextID(), Token: []byte("register"), Payload: []byte("</x>"), Options: []coap.Option{
				coap.Opt(coap.URIPath, "rd"), coap.Uint(coap.ContentFormat, 40), coap.Opt(coap.URIQuery, fmt.Sprintf("ep=sv%d", i+1)),
				coap.Opt(coap.URIQuery, "rt=lamp"), coap.Opt(coap.URIQuery, fmt.Sprintf("ins=sv%d", i+1))}}
			attempt := 0
			eventually(t, func() bool {
				if attempt++; attempt%100 == 1 { // the directory may be just starting
					require.NoError(t, d.unicast[0].send(netip.AddrPortFrom(sv6(3), coapPort), m.Bytes()))
				}
				return d.got(coap.CodeOf(2, 1))
			}, "sv%d is not registered", i+1)
		}
		socket, control := controlSocket(t)
		s := labSettings()
		s.cache, s.control = "enabled: true", control
		s.groups = strings.Replace(labGroups, `{name: site,`, `{name: site, rd: {uri: "coap://[fd00:5::5:3]/.well-known/core", filter: ["rt=lamp"]},`, 1)
		l.startProxy(s)
		known := func() shownEntries {
			return shown[shownEntries](t, "cache", "show", "--socket", socket, "--group", "site")
		}
		eventually(t, func() bool {
			g := known().Group
			return len(g.Members) == 2 && g.Complete
		}, "two registered members, known to be all\n%s", rd.text())

		c := l.client6(0)
		for range 2 {
			c.gatherJust(get(coap.NON, "coap://[ff05::fd]/x", timeout(60)), 2)
		}
		for _, d := range devices {
			require.Len(t, d.requestsTo("/x"), 1)
		}
	})
}
