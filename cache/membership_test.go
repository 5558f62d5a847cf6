package cache

import (
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/membership"
)

// The sources of package membership fit, and a set is complete when they say so
// (GP-75, GP-82).
func TestMembershipSources(t *testing.T) {
	learned := membership.NewLearned(membership.LearnedConfig{Within: 1, Trusted: true, MaxMembers: 10})
	listener := &membership.Listener{Groups: map[string]*membership.Learned{"all": learned}}
	groups := membership.Groups{"all": learned}
	run(t, func(c *Config) { listener.Next, c.Next, c.Members = c.Next, listener, groups }, func(x *fixture) {
		c := x.fill(groupGet(10, "t"), a("a"), b("b"))
		require.Empty(t, groupTagOf(c.got[1]), "the first request has not ended yet")
		c = x.ask(groupGet(10, "t"))
		require.Len(t, x.origin.calls, 1)
		require.Equal(t, []string{"a", "b"}, c.bodies())
		require.NotEmpty(t, groupTagOf(c.got[0]))
		wait(time.Minute)
		x.fill(groupGet(10, "t"), a("a"))
		require.Equal(t, []string{"a"}, x.ask(groupGet(10, "t")).bodies())
	})
	groups["all"] = membership.Static([]netip.AddrPort{serverA, serverB})
	run(t, func(c *Config) { c.Members = groups }, func(x *fixture) {
		x.fill(groupGet(10, "t"), a("a"), b("b"))
		require.Len(t, x.ask(groupGet(10, "t")).got, 2)
		require.Len(t, x.origin.calls, 1)
	})
}
