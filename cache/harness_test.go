package cache

import (
	"context"
	"net/netip"
	"slices"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"

	"coapproxy/exchange"
	"coapproxy/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// origin is everything behind the cache: it keeps what reaches it.
type origin struct {
	calls []*call
	// answer, if set, responds at once.
	answer func(*call)
}

// call is one upstream exchange.
type call struct {
	*exchange.Request
	sink     exchange.Sink
	until    time.Time
	ended    bool
	canceled bool
	cannot   bool // be extended
}

func (o *origin) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	k := &call{Request: r.Clone(), sink: w}
	o.calls = append(o.calls, k)
	if o.answer != nil {
		o.answer(k)
	}
	return k
}

func (k *call) Cancel() {
	k.canceled = true
	k.end(exchange.ErrCanceled)
}

func (k *call) Extend(until time.Time) bool {
	if k.ended || k.cannot {
		return false
	}
	k.until = until
	return true
}

func (k *call) end(err error) {
	if !k.ended {
		k.ended = true
		k.sink.End(err)
	}
}

// respond is the single response of one server.
func (k *call) respond(p *exchange.Response) {
	k.sink.Respond(p)
	k.end(nil)
}

func (k *call) etags() (all []string) {
	for v := range wire.All(k.Options, wire.ETag) {
		all = append(all, string(v))
	}
	return all
}

// client is the sink of one client's exchange.
type client struct {
	t        *testing.T
	got      []*exchange.Response
	at       []time.Time
	ends     []error
	cancel   exchange.Canceler
	stopAt   int
	onAnswer func()
}

func (c *client) Respond(p *exchange.Response) exchange.Verdict {
	require.Empty(c.t, c.ends, "Respond after End")
	require.True(c.t, slices.IsSortedFunc(p.Options, func(a, b message.Option) int { return int(a.ID) - int(b.ID) }))
	c.got = append(c.got, p.Clone())
	c.at = append(c.at, time.Now())
	if c.onAnswer != nil {
		c.onAnswer()
	}
	if c.stopAt > 0 && len(c.got) >= c.stopAt {
		return exchange.Stop
	}
	return exchange.Continue
}

func (c *client) End(err error) {
	c.ends = append(c.ends, err)
	require.Len(c.t, c.ends, 1, "End more than once")
}

// one returns the only response, of an exchange that ended well.
func (c *client) one() *exchange.Response {
	c.t.Helper()
	require.Len(c.t, c.got, 1)
	require.Equal(c.t, []error{nil}, c.ends)
	return c.got[0]
}

func (c *client) bodies() (all []string) {
	for _, p := range c.got {
		all = append(all, string(p.Payload))
	}
	return all
}

// fixture is a cache in front of an origin, in virtual time.
type fixture struct {
	*Cache
	t      *testing.T
	origin *origin
	stats  *Stats
}

// run runs a test in virtual time with an engine.
func run(t *testing.T, change func(*Config), f func(*fixture)) {
	synctest.Test(t, func(t *testing.T) {
		x := newFixture(t, change)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan struct{})
		go func() { defer close(done); x.config.Engine.Run(ctx) }()
		defer func() { cancel(); <-done }()
		f(x)
		require.Empty(t, x.flights, "exchanges left")
	})
}

func newFixture(t *testing.T, change func(*Config)) *fixture {
	o := &origin{}
	config := Defaults()
	numbers := wire.DefaultNumbers()
	config.Next, config.Engine, config.Numbers, config.Stats = o, exchange.NewEngine(), &numbers, &Stats{}
	if change != nil {
		change(&config)
	}
	c, err := New(config)
	require.NoError(t, err)
	return &fixture{Cache: c, t: t, origin: o, stats: config.Stats}
}

func (x *fixture) ask(r *exchange.Request) *client {
	x.t.Helper()
	c := &client{t: x.t}
	x.askWith(r, c)
	return c
}

func (x *fixture) askWith(r *exchange.Request, c *client) {
	r = r.Clone()
	r.Arrival = time.Now()
	c.cancel = x.Exchange(r, c)
	require.NotNil(x.t, c.cancel)
}

// miss asks and has the origin answer.
func (x *fixture) miss(r *exchange.Request, p *exchange.Response) *client {
	x.t.Helper()
	before := len(x.origin.calls)
	c := x.ask(r)
	require.Len(x.t, x.origin.calls, before+1, "the origin was not asked")
	x.last().respond(p)
	return c
}

// hit asks and fails if the origin hears of it.
func (x *fixture) hit(r *exchange.Request) *exchange.Response {
	x.t.Helper()
	before := len(x.origin.calls)
	c := x.ask(r)
	require.Len(x.t, x.origin.calls, before, "the origin was asked")
	return c.one()
}

func (x *fixture) last() *call { return x.origin.calls[len(x.origin.calls)-1] }

func wait(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

var (
	serverA = netip.MustParseAddrPort("[2001:db8::a]:5683")
	serverB = netip.MustParseAddrPort("[2001:db8::b]:5683")
	serverC = netip.MustParseAddrPort("[2001:db8::c]:61616")
	allCoAP = netip.MustParseAddrPort("[ff05::fd]:5683")
)

func option(id message.OptionID, value string) message.Option {
	return message.Option{ID: id, Value: []byte(value)}
}

func uintOption(id message.OptionID, v uint32) message.Option {
	return message.Option{ID: id, Value: wire.AppendUint(nil, v)}
}

func sorted(options message.Options) message.Options {
	slices.SortStableFunc(options, func(a, b message.Option) int { return int(a.ID) - int(b.ID) })
	return options
}

func get(path string, options ...message.Option) *exchange.Request {
	return &exchange.Request{Method: codes.GET, Confirmable: true,
		Options: sorted(append(message.Options{option(wire.URIPath, path)}, options...)),
		Target:  exchange.Target{Scheme: "coap", Addr: serverA}}
}

func to(server netip.AddrPort, r *exchange.Request) *exchange.Request {
	r.Target.Addr = server
	return r
}

func groupGet(seconds uint32, path string, options ...message.Option) *exchange.Request {
	r := get(path, options...)
	r.Target = exchange.Target{Scheme: "coap", Addr: allCoAP, Group: true, GroupName: "all"}
	r.Timeout = exchange.Timeout{Seconds: seconds, Present: true}
	return r
}

func content(body string, options ...message.Option) *exchange.Response {
	return &exchange.Response{Code: codes.Content, Options: sorted(options), Payload: []byte(body), From: serverA}
}

func from(server netip.AddrPort, p *exchange.Response) *exchange.Response {
	p.From = server
	return p
}

func groupFrom(server netip.AddrPort, p *exchange.Response) *exchange.Response {
	p.From, p.GroupPort = server, allCoAP.Port()
	return p
}

func maxAge(seconds uint32) message.Option { return uintOption(wire.MaxAge, seconds) }
func etag(v string) message.Option         { return option(wire.ETag, v) }

func maxAgeOf(t *testing.T, p *exchange.Response) uint32 {
	t.Helper()
	value, ok := wire.First(p.Options, wire.MaxAge)
	require.True(t, ok, "no Max-Age") // FP-42
	v, ok := wire.Uint(value)
	require.True(t, ok)
	return v
}

// set is a Membership that tests change.
type roster struct {
	servers  []netip.AddrPort
	version  uint64
	complete bool
}

func (m *roster) Members(string, netip.AddrPort) ([]netip.AddrPort, uint64, bool) {
	return m.servers, m.version, m.complete
}

func (m *roster) set(servers ...netip.AddrPort) {
	m.servers, m.complete = servers, true
	m.version++
}

func members(servers ...netip.AddrPort) (*roster, func(*Config)) {
	m := &roster{}
	if servers != nil {
		m.set(servers...)
	}
	return m, func(c *Config) { c.Members = m }
}
