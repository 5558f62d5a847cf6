package membership

import (
	"net/netip"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"pgregory.net/rapid"

	"coapproxy/exchange"
	"coapproxy/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	serverA = netip.MustParseAddrPort("[2001:db8::a]:5683")
	serverB = netip.MustParseAddrPort("[2001:db8::b]:5683")
	serverC = netip.MustParseAddrPort("192.0.2.7:61616")
	group   = netip.MustParseAddrPort("[ff05::fd]:5683")
	other   = netip.MustParseAddrPort("[ff05::1:2]:5683")
)

func TestStatic(t *testing.T) {
	mapped := netip.MustParseAddrPort("[::ffff:192.0.2.7]:61616")
	groups := Groups{"lamps": Static([]netip.AddrPort{serverB, serverA, mapped, serverA})}
	servers, version, complete := groups.Members("lamps", group)
	require.Equal(t, []netip.AddrPort{serverC, serverA, serverB}, servers)
	require.NotZero(t, version)
	require.True(t, complete)
	servers, _, complete = groups.Members("unknown", group) // GP-75
	require.Empty(t, servers)
	require.False(t, complete)
}

// leg runs group requests in which these servers answer.
type leg struct {
	servers []netip.AddrPort
	end     error
	asked   int
}

func (l *leg) Exchange(r *exchange.Request, w exchange.Sink) exchange.Canceler {
	l.asked++
	for _, s := range l.servers {
		w.Respond(&exchange.Response{Code: codes.Content, From: s})
	}
	w.End(l.end)
	return exchange.Ended{}
}

type sink struct {
	got  []*exchange.Response
	ends []error
}

func (s *sink) Respond(p *exchange.Response) exchange.Verdict {
	s.got = append(s.got, p.Clone())
	return exchange.Continue
}
func (s *sink) End(err error) { s.ends = append(s.ends, err) }

func request(seconds uint32) *exchange.Request {
	return &exchange.Request{Method: codes.GET, Target: exchange.Target{Scheme: "coap", Addr: group, Group: true, GroupName: "lamps"},
		Timeout: exchange.Timeout{Seconds: seconds, Present: true}}
}

func TestLearned(t *testing.T) {
	learned := NewLearned(LearnedConfig{Within: 2, Trusted: true, Window: 5 * time.Second, MaxMembers: 10})
	l := &leg{}
	listener := &Listener{Next: l, Groups: map[string]*Learned{"lamps": learned}}
	var version uint64
	check := func(complete bool, want ...netip.AddrPort) {
		t.Helper()
		servers, v, all := learned.Members("lamps", group)
		require.ElementsMatch(t, want, servers)
		require.Equal(t, complete, all)
		version = v
	}
	changed := func(yes bool, f func()) {
		t.Helper()
		before := version
		f()
		_, version, _ = learned.Members("lamps", group)
		require.Equal(t, yes, version != before)
	}
	ask := func(r *exchange.Request, servers ...netip.AddrPort) {
		t.Helper()
		l.servers = servers
		w := &sink{}
		listener.Exchange(r, w)
		require.Len(t, w.got, len(servers))
		require.Equal(t, []error{l.end}, w.ends)
	}
	check(false)
	ask(request(10), serverA, serverB)
	check(false, serverA, serverB) // not before two requests
	changed(false, func() { ask(request(10), serverA) })
	check(true, serverA, serverB)
	changed(true, func() { ask(request(10), serverA, serverC) }) // C joins, B leaves
	check(true, serverA, serverC)

	// These say nothing about who is silent.
	short, silence, stopped := request(4), request(10), request(10)
	silence.Options = message.Options{{ID: wire.NoResponse, Value: []byte{2}}}
	zero := request(0)
	for range 3 {
		changed(false, func() { ask(short); ask(silence); ask(zero) })
		l.end = exchange.ErrCanceled
		changed(false, func() { ask(stopped) })
		l.end = nil
	}
	check(true, serverA, serverC)
	changed(true, func() { ask(request(5)); ask(request(5)) })
	check(true)

	// Requests to others pass.
	unicast := request(10)
	unicast.Target.Group = false
	ask(unicast, serverA)
	foreign := request(10)
	foreign.Target.GroupName = "doors"
	ask(foreign, serverA)
	check(true)
	_, _, all := learned.Members("lamps", other)
	require.False(t, all)
}

func TestLearnedIsNotTrusted(t *testing.T) {
	learned := NewLearned(LearnedConfig{Within: 1, MaxMembers: 10})
	listener := &Listener{Next: &leg{servers: []netip.AddrPort{serverA}}, Groups: map[string]*Learned{"lamps": learned}}
	for range 3 {
		listener.Exchange(request(1), &sink{})
	}
	servers, _, complete := learned.Members("lamps", group)
	require.Equal(t, []netip.AddrPort{serverA}, servers)
	require.False(t, complete)
}

func TestLearnedIsBounded(t *testing.T) {
	learned := NewLearned(LearnedConfig{Within: 2, Trusted: true, MaxMembers: 1})
	l := &leg{servers: []netip.AddrPort{serverA, serverB}}
	listener := &Listener{Next: l, Groups: map[string]*Learned{"lamps": learned}}
	complete := func() bool {
		servers, _, all := learned.Members("lamps", group)
		require.Equal(t, []netip.AddrPort{serverA}, servers)
		return all
	}
	for range 3 {
		listener.Exchange(request(1), &sink{})
		require.False(t, complete())
	}
	l.servers = l.servers[:1]
	listener.Exchange(request(1), &sink{})
	require.False(t, complete())
	listener.Exchange(request(1), &sink{})
	require.True(t, complete())
	r := request(1)
	for i := range 200 {
		r.Target.Also = append(r.Target.Also, exchange.GroupAddr{Addr: netip.AddrPortFrom(netip.AddrFrom4([4]byte{224, 0, 1, byte(i)}), 5683), Name: "lamps"})
	}
	listener.Exchange(r, &sink{})
	require.Len(t, learned.groups, maxAddresses)
}

// TestLearnedAgainstModel compares with a list of who answered when.
func TestLearnedAgainstModel(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		within := rapid.IntRange(1, 4).Draw(t, "within")
		learned := NewLearned(LearnedConfig{Within: within, Trusted: true, MaxMembers: 100})
		l := &leg{}
		listener := &Listener{Next: l, Groups: map[string]*Learned{"lamps": learned}}
		var history [][]netip.AddrPort
		var before []netip.AddrPort
		var version uint64
		for range rapid.IntRange(1, 20).Draw(t, "requests") {
			l.servers = rapid.SliceOfNDistinct(rapid.SampledFrom([]netip.AddrPort{serverA, serverB, serverC}), 0, 3, rapid.ID[netip.AddrPort]).Draw(t, "answer")
			listener.Exchange(request(1), &sink{})
			history = append(history, l.servers)
			var want []netip.AddrPort
			for _, answered := range history[max(0, len(history)-within):] {
				want = append(want, answered...)
			}
			want = unique(want)
			servers, v, complete := learned.Members("lamps", group)
			require.ElementsMatch(t, want, servers)
			require.Equal(t, len(history) >= within, complete)
			if len(want) != len(before) {
				require.NotEqual(t, version, v)
			}
			before, version = want, v
		}
	})
}
