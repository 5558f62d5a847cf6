package access

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
)

// Rates of requests: of one client to groups and of one group (GP-113), and of
// one client to anything (FP-37), which keep a client from having a whole group
// answer at its will (GC-93). Whoever is over gets 4.29 with the time to wait.
func TestRates(t *testing.T) {
	other := netip.MustParseAddrPort("198.51.100.1:1")
	for name, tt := range map[string]struct {
		change       func(*Config)
		wait         time.Duration
		sparesOthers bool // another client of the same group goes on
		sparesGroup  bool // the same client may still reach another group
		sparesServer bool // the same client may still reach a server
	}{
		"client, groups": {func(c *Config) { c.GroupRate, c.GroupBurst = 0.5, 2 }, 2 * time.Second, true, false, true},
		"client, all":    {func(c *Config) { c.RequestRate, c.RequestBurst = 10, 2 }, time.Second, true, false, false},
		"group":          {func(c *Config) { c.Groups[0].Rate, c.Groups[0].Burst = 0.25, 2 }, 4 * time.Second, false, true, true},
	} {
		t.Run(name, func(t *testing.T) {
			l := &leg{}
			p := New(config(tt.change, func(c *Config) {
				c.Clients[0].Forward = []Target{{Any: true, AnyPort: true}}
				second := c.Clients[0]
				second.Identity.Name, second.Networks = "second", []netip.Prefix{netip.PrefixFrom(other.Addr(), 32)}
				c.Clients = append(c.Clients, second)
			}), l, NewHeard())
			now := time.Now()
			at := func(r *exchange.Request, d time.Duration) *exchange.Request { r.Arrival = now.Add(d); return r }
			expect := func(ok bool, o *outcome) {
				t.Helper()
				if ok {
					allowed(t, l, o)
				} else {
					refused(t, l, o, exchange.TooManyRequests)
				}
			}
			for range 2 {
				expect(true, try(p, worker, at(toGroup(allNodes), 0)))
			}
			o := try(p, worker, at(toGroup(allNodes), 0))
			refused(t, l, o, exchange.TooManyRequests)
			require.Equal(t, tt.wait, o.failure.RetryAfter)

			expect(tt.sparesOthers, try(p, other, at(toGroup(allNodes), 0)))
			expect(tt.sparesGroup, try(p, worker, at(toGroup(lights), 0)))
			expect(tt.sparesServer, try(p, worker, at(toServer("203.0.113.1:5683"), 0)))
			expect(true, try(p, worker, at(toGroup(allNodes), tt.wait)))
		})
	}
}

// A request for several groups counts for each of them (GP-113).
func TestRateOfFurtherGroup(t *testing.T) {
	l := &leg{}
	p := New(config(func(c *Config) { c.Groups[1].Rate, c.Groups[1].Burst = 1, 1 }), l, NewHeard())
	both := toGroup(allNodes)
	both.Target.Host = "both.example"
	both.Target.Also = []exchange.GroupAddr{{Addr: lights}}
	allowed(t, l, try(p, worker, both.Clone()))
	refused(t, l, try(p, worker, both.Clone()), exchange.TooManyRequests)
	allowed(t, l, try(p, worker, toGroup(allNodes)))
}

// The running group exchanges of one client are bounded (FP-37); one that ends
// makes room, and another client is not concerned.
func TestRunningExchanges(t *testing.T) {
	l := &leg{}
	p := New(config(), l, NewHeard())
	for range 2 {
		require.Zero(t, try(p, worker, toGroup(allNodes)).ends)
	}
	o := try(p, worker, toGroup(lights))
	require.Equal(t, 1, o.ends)
	require.Equal(t, exchange.TooManyRequests, o.failure.Reason)
	require.Positive(t, o.failure.RetryAfter)
	require.Len(t, l.requests, 2)
	l.end()
	allowed(t, l, try(p, worker, toGroup(allNodes)))
}
