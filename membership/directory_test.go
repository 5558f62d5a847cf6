package membership

import (
	"context"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// registry is a resource directory.
type registry struct {
	mu       sync.Mutex
	asked    []*exchange.Request
	at       []time.Time
	response *exchange.Response // nil: does not answer
	hang     bool
	canceled int
	observed *lookup // sink of the running observation
	core     string  // what /.well-known/core has
}

type hanging struct {
	registry *registry
	sink     exchange.Sink
}

func (h *hanging) Cancel() {
	h.registry.mu.Lock()
	h.registry.canceled++
	h.registry.mu.Unlock()
	h.sink.End(exchange.ErrCanceled)
}

// set sets the answer from now on.
func (g *registry) set(p *exchange.Response) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.response = p
}

func (g *registry) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.asked, g.at = append(g.asked, r.Clone()), append(g.at, time.Now())
	switch {
	case g.hang:
		return &hanging{g, w}
	case g.response == nil:
		return exchange.Fail(w, exchange.Failf(exchange.NoAnswer, "no answer"))
	}
	p := g.response
	if path, _ := wire.First(r.Options, wire.URIPath); string(path) == ".well-known" {
		p = links(60, g.core)
	}
	if w.Respond(p) == exchange.Continue {
		g.observed = w.(*lookup)
		return &hanging{g, w}
	}
	w.End(nil)
	return exchange.Ended{}
}

// tell sets what /.well-known/core has.
func (g *registry) tell(core string) {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.core = core
}

// state is how often it was asked, how many questions were given up, and the
// running observation.
func (g *registry) state() (asked, canceled int, observed *lookup) {
	g.mu.Lock()
	defer g.mu.Unlock()
	return len(g.asked), g.canceled, g.observed
}

func (g *registry) interval() time.Duration { return g.at[len(g.at)-1].Sub(g.at[len(g.at)-2]) }

func links(maxAge uint32, body string, options ...message.Option) *exchange.Response {
	return &exchange.Response{Code: codes.Content, Payload: []byte(body), Options: append(append(options, message.Option{ID: wire.ContentFormat, Value: []byte{40}}),
		message.Option{ID: wire.MaxAge, Value: wire.AppendUint(nil, maxAge)})}
}

func withDirectory(t *testing.T, f func(*registry, *Directory)) {
	synctest.Test(t, func(t *testing.T) {
		g := &registry{}
		engine := exchange.NewEngine()
		d := NewDirectory(DirectoryConfig{Unicast: g, Engine: engine, Target: exchange.Target{Scheme: "coap", Addr: serverC},
			Path: []string{"rd-lookup", "ep"}, Query: []string{"et=lamp"}, Zone: "eth0", MaxMembers: 3, Stats: &DirectoryStats{}, Log: zap.NewNop()}, nil)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); engine.Run(ctx) }()
		defer func() { d.Close(); cancel(); <-done }()
		f(g, d)
	})
}

func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

const twoLamps = `</rd/1>;ep="a";base="coap://[2001:db8::a]";rt="core.rd-ep", </rd/2>;ep="b";base="coap://[2001:db8::b]:5683"`

func TestDirectory(t *testing.T) { // RFC 9176 §6.2
	withDirectory(t, func(g *registry, d *Directory) {
		_, _, complete := d.Members("lamps", group)
		require.False(t, complete)
		g.set(links(100, twoLamps, message.Option{ID: wire.ETag, Value: []byte("v1")}))
		d.Start()
		wait(0)
		require.Equal(t, message.Options{{ID: wire.Observe, Value: []byte{}}, {ID: wire.URIPath, Value: []byte("rd-lookup")}, {ID: wire.URIPath, Value: []byte("ep")},
			{ID: wire.URIQuery, Value: []byte("et=lamp")}, {ID: wire.Accept, Value: []byte{40}}}, g.asked[0].Options)
		require.Equal(t, serverC, g.asked[0].Target.Addr)
		servers, version, complete := d.Members("lamps", group)
		require.Equal(t, []netip.AddrPort{serverA, serverB}, servers)
		require.True(t, complete)

		// Asked again before Max-Age is over; nothing has changed.
		g.set(&exchange.Response{Code: codes.Valid, Options: message.Options{{ID: wire.ETag, Value: []byte("v1")}, {ID: wire.MaxAge, Value: []byte{50}}}})
		wait(80 * time.Second)
		require.Len(t, g.asked, 2)
		tag, _ := wire.First(g.asked[1].Options, wire.ETag)
		require.Equal(t, "v1", string(tag))
		_, v, complete := d.Members("lamps", group)
		require.Equal(t, version, v)
		require.True(t, complete)

		// One more, and one gone.
		g.set(links(100, `</rd/2>;base="coap://[2001:db8::b]",</rd/3>;base="coap://192.0.2.7:61616"`))
		wait(40 * time.Second)
		servers, v, complete = d.Members("lamps", group)
		require.Equal(t, []netip.AddrPort{serverC, serverB}, servers)
		require.NotEqual(t, version, v)
		require.True(t, complete)

		// Not there any more: the list is kept and known to be uncertain.
		g.set(nil)
		wait(80 * time.Second)
		_, _, complete = d.Members("lamps", group)
		require.True(t, complete)
		wait(20 * time.Second)
		servers, _, complete = d.Members("lamps", group)
		require.Len(t, servers, 2)
		require.False(t, complete)
		wait(time.Hour)
		require.GreaterOrEqual(t, g.interval(), maxBackoff)
		require.LessOrEqual(t, g.interval(), maxBackoff*5/4)
		g.set(links(0, twoLamps))
		wait(10 * time.Minute)
		require.Equal(t, minRefresh, g.interval())
	})
}

func TestDirectoryLists(t *testing.T) {
	for name, tt := range map[string]struct {
		body     string
		want     []netip.AddrPort
		complete bool
	}{
		"nobody":               {"", nil, true},
		"resource lookup":      {`<coap://[2001:db8::a]:5683/light>;rt="light";anchor="coap://[2001:db8::a]",<coap://[2001:db8::a]/x>`, []netip.AddrPort{serverA}, true},
		"link-local":           {`</rd/1>;base="coap://[fe80::1]"`, []netip.AddrPort{netip.MustParseAddrPort("[fe80::1%eth0]:5683")}, true},
		"by name":              {`</rd/1>;base="coap://lamp.example",</rd/2>;base="coap://[2001:db8::a]"`, []netip.AddrPort{serverA}, false},
		"secure only":          {`</rd/1>;base="coaps://[2001:db8::b]"`, nil, false},
		"no base":              {`</rd/1>;ep="a"`, nil, false},
		"a group":              {`</rd/1>;base="coap://[ff05::fd]"`, nil, false},
		"more than the bound":  {`<coap://192.0.2.1>,<coap://192.0.2.2>,<coap://192.0.2.3>,<coap://192.0.2.4>`, nil, false},
		"libcoap's":            {`</rd>;rt="core.rd",</rd/1>;A="[0000:0000:0000:0000:0000:ffff:c000:0207]:61616";rt="lamp"`, []netip.AddrPort{serverC}, false},
		"quotes, spaces, flag": {"</rd/1>;title=\"a,b;\\\"c\" ; obs ;base=coap://[2001:db8::a]\n", []netip.AddrPort{serverA}, true},
	} {
		t.Run(name, func(t *testing.T) {
			withDirectory(t, func(g *registry, d *Directory) {
				g.set(links(60, tt.body))
				d.Start()
				wait(0)
				servers, _, complete := d.Members("lamps", group)
				require.Equal(t, tt.complete, complete)
				if tt.want != nil {
					require.Equal(t, tt.want, servers)
				}
				require.LessOrEqual(t, len(servers), 3)
			})
		})
	}
}

func TestDirectoryRefusesBadAnswers(t *testing.T) {
	for name, p := range map[string]*exchange.Response{
		"error":                {Code: codes.NotFound},
		"2.03 out of thin air": {Code: codes.Valid, Options: message.Options{{ID: wire.ETag, Value: []byte("x")}}},
		"other format":         {Code: codes.Content, Options: message.Options{{ID: wire.ContentFormat, Value: []byte{50}}}},
		"one block":            links(60, twoLamps, message.Option{ID: wire.Block2, Value: []byte{0x0e}}),
		"malformed":            links(60, "rd/1"),
		"open target":          links(60, "</rd/1"),
		"open quote":           links(60, `</rd/1>;ep="a`),
		"comma at the end":     links(60, `</rd/1>,`),
		"no name":              links(60, `</rd/1>;=x`),
		"too many links":       links(60, strings.Repeat("</rd/1>,", 100)+"</rd/1>"),
		"too many params":      links(60, "</rd/1>"+strings.Repeat(";a", 100)),
	} {
		t.Run(name, func(t *testing.T) {
			withDirectory(t, func(g *registry, d *Directory) {
				g.set(links(60, twoLamps))
				d.Start()
				wait(0)
				g.set(p)
				wait(time.Minute)
				servers, _, complete := d.Members("lamps", group)
				require.Len(t, servers, 2, "the list is kept")
				require.False(t, complete)
			})
		})
	}
}

// A directory that can be observed tells of members at once; before the list's
// Max-Age is over it is observed anew.
func TestDirectoryIsObserved(t *testing.T) { // RFC 9176 §6.2, GP-83
	observe := func(n byte) message.Option { return message.Option{ID: wire.Observe, Value: []byte{n}} }
	withDirectory(t, func(g *registry, d *Directory) {
		g.set(links(100, twoLamps, observe(1)))
		d.Start()
		wait(time.Second)
		_, _, first := g.state()
		require.NotNil(t, first)
		_, version, _ := d.Members("lamps", group)

		require.Equal(t, exchange.Continue, first.Respond(links(100, `</rd/1>;base="coap://[2001:db8::a]"`, observe(2))))
		servers, v, complete := d.Members("lamps", group)
		require.Equal(t, []netip.AddrPort{serverA}, servers)
		require.NotEqual(t, version, v)
		require.True(t, complete)
		require.EqualValues(t, 1, d.config.Stats.Notifications.Load())
		require.EqualValues(t, 2, d.config.Stats.Joined.Load())
		require.EqualValues(t, 1, d.config.Stats.Left.Load())
		require.EqualValues(t, 1, d.config.Stats.Members.Load())

		wait(79 * time.Second)
		asked, _, _ := g.state()
		require.Equal(t, 1, asked)
		wait(time.Second)
		asked, canceled, second := g.state()
		require.Equal(t, 2, asked)
		require.Equal(t, 1, canceled)
		require.NotSame(t, first, second)

		// What a question that was replaced still brings does not count.
		first.Respond(links(100, "", observe(3)))
		servers, _, _ = d.Members("lamps", group)
		require.Equal(t, []netip.AddrPort{serverA, serverB}, servers)

		// An error ends the observation; the directory is asked again.
		require.Equal(t, exchange.Stop, second.Respond(&exchange.Response{Code: codes.ServiceUnavailable}))
		second.End(nil)
		_, failure := d.Status()
		require.ErrorContains(t, failure, "5.03")
		wait(10 * time.Second)
		asked, _, _ = g.state()
		require.Equal(t, 3, asked)
		valid, failure := d.Status()
		require.NoError(t, failure)
		require.Greater(t, valid, 80*time.Second)
	})
}

func TestDirectoryIsDiscovered(t *testing.T) { // RFC 9176 §4.3
	core := `</rd>;rt="core.rd";ct=40,</rd-lookup/res>;rt="core.rd-lookup-res",</my/lookup>;rt="x core.rd-lookup-ep";obs`
	withDirectory(t, func(g *registry, d *Directory) {
		d.config.Path, d.path = nil, nil
		g.core = `</rd>;rt="core.rd"`
		g.set(links(60, twoLamps))
		d.Start()
		wait(time.Second)
		require.Equal(t, message.Options{{ID: wire.URIPath, Value: []byte(".well-known")}, {ID: wire.URIPath, Value: []byte("core")},
			{ID: wire.URIQuery, Value: []byte("rt=core.rd-lookup-ep")}, {ID: wire.Accept, Value: []byte{40}}}, g.asked[0].Options)
		_, failure := d.Status()
		require.ErrorContains(t, failure, "no endpoint lookup")
		for _, list := range []string{core, `<coap://192.0.2.7:61616/my/lookup>;rt=core.rd-lookup-ep`} {
			g.tell(list)
			g.set(links(60, twoLamps))
			wait(3 * time.Minute)
			require.Contains(t, g.asked[len(g.asked)-1].Options, message.Option{ID: wire.URIPath, Value: []byte("lookup")})
			servers, _, complete := d.Members("lamps", group)
			require.Len(t, servers, 2)
			require.True(t, complete)

			g.tell("")
			g.set(&exchange.Response{Code: codes.NotFound}) // it has moved
			wait(3 * time.Minute)
			_, _, complete = d.Members("lamps", group)
			require.False(t, complete)
		}
	})
	withDirectory(t, func(g *registry, d *Directory) { // another host's
		d.config.Path, d.path = nil, nil
		g.core = `<coap://192.0.2.8/lookup>;rt="core.rd-lookup-ep"`
		g.set(links(60, twoLamps))
		d.Start()
		wait(time.Second)
		_, failure := d.Status()
		require.ErrorContains(t, failure, "no endpoint lookup")
	})
}

// What one Directory knows the next begins with.
func TestDirectoryIsSucceeded(t *testing.T) {
	withDirectory(t, func(g *registry, d *Directory) {
		g.set(links(100, twoLamps))
		d.Start()
		wait(0)
		_, version, _ := d.Members("lamps", group)
		next := NewDirectory(d.config, d)
		servers, v, complete := next.Members("lamps", group)
		require.Len(t, servers, 2)
		require.Equal(t, version, v)
		require.True(t, complete)
		d.Close()
		d.Close()
		require.Zero(t, d.config.Stats.Members.Load())
		next.Start()
		require.EqualValues(t, 2, d.config.Stats.Members.Load())
		next.Close()
	})
}

func TestDirectoryCloses(t *testing.T) {
	withDirectory(t, func(g *registry, d *Directory) {
		g.hang = true
		d.Start()
		wait(0)
		d.Close()
		require.Equal(t, 1, g.canceled)
		wait(time.Hour)
		require.Len(t, g.asked, 1)
		d.ask()
		require.Len(t, g.asked, 1)
	})
}

func FuzzLinks(f *testing.F) {
	for _, s := range []string{twoLamps, "", `<>;a="\"",<x>`, "</a>;b=c , </d>;e"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		all, err := parseLinks(s, 10)
		require.LessOrEqual(t, len(all), 10)
		if err == nil && strings.TrimSpace(s) != "" {
			require.NotEmpty(t, all)
		}
	})
}
