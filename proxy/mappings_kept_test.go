package proxy

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"go.uber.org/zap"
)

// GP-54, GP-56, GP-102: what was announced is good again after a restart, each target
// for the server that it stood for; what is too old, or at an address that is not of the
// pool any more, is not.
func TestMappingsAreKept(t *testing.T) {
	now := time.Now()
	pool := []netip.AddrPort{addrPort("198.51.100.1:6000"), addrPort("198.51.100.1:6001"), addrPort("[2001:db8::1]:6000")}
	make1 := func(pool []netip.AddrPort) (*Mappings, *[]string) {
		var opened []string
		return NewMappings(MappingsConfig{Lifetime: time.Hour, Max: 9, Pool: pool, Stats: &Stats{}, Log: zap.NewNop(), Open: func(scheme string, at netip.AddrPort) error {
			if at.Port() == 6001 && scheme == "coap+tcp" {
				return errors.New("no")
			}
			opened = append(opened, scheme+"://"+at.String())
			return nil
		}}), &opened
	}
	m, _ := make1(pool)
	of := func(server string) (serverKey, behind) {
		key, to, ok := behindOf(addrPort(server), nil)
		require.True(t, ok)
		return key, to
	}
	old, to := of("192.0.2.9:5683")
	m.host(old, to, nil, old.addr.Addr(), 0, 5683, now.Add(-2*time.Hour))
	a, toA := of("192.0.2.1:5683")
	m.host(a, toA, []string{"lights"}, a.addr.Addr(), 0, 5683, now)
	id := m.path(a, toA, []string{"lamps"}, now)
	b, toB := of("192.0.2.2:5683")
	atB, ok := m.address(b, toB, []string{"lights"}, "coap", pool[0].Addr(), now)
	require.True(t, ok)
	at6, ok := m.address(b, toB, nil, "coap+tcp", pool[2].Addr(), now)
	require.True(t, ok)
	far, toFar, ok := behindOf(netip.AddrPort{}, unhex(t, "822681440a000001"))
	require.True(t, ok)
	far.nextHop, toFar.nextHop, toFar.asServer = "up", "up", true
	farID := m.path(far, toFar, []string{"far"}, now)
	<-m.Changed()

	data, err := json.Marshal(m)
	require.NoError(t, err)
	select {
	case <-m.Changed():
		t.Fatal("nothing has changed")
	default:
	}
	now = now.Add(time.Minute)
	n, opened := make1(pool)
	count, err := n.Restore(data, now)
	require.NoError(t, err)
	require.Equal(t, 3, count)
	require.ElementsMatch(t, []string{"coap://" + atB.String(), "coap+tcp://" + at6.String()}, *opened)
	find := func(local netip.AddrPort, host hostKey, rest ...string) *behind {
		var segments [][]byte
		for _, s := range rest {
			segments = append(segments, []byte(s))
		}
		found, _, _ := n.at(local, host, segments, now)
		return found
	}
	none := netip.AddrPort{}
	require.Equal(t, a.addr.Addr(), find(none, hostKey{a.addr.Addr(), 0}).addr)
	require.Equal(t, []string{"lights", "lamps"}, find(none, hostKey{a.addr.Addr(), 5683}).groups)
	require.Equal(t, a.addr.Addr(), find(none, hostKey{}, id).addr)
	require.Equal(t, b.addr.Addr(), find(atB, hostKey{}).addr)
	require.Equal(t, b.addr.Addr(), find(at6, hostKey{}).addr)
	require.Equal(t, "up", find(none, hostKey{}, farID).nextHop)
	require.True(t, find(none, hostKey{}, farID).asServer)
	require.Nil(t, find(none, hostKey{old.addr.Addr(), 0}))
	// A server that is new does not get what stands for another.
	c, toC := of("192.0.2.3:5683")
	atC, ok := n.address(c, toC, nil, "coap", pool[0].Addr(), now)
	require.True(t, ok)
	require.NotEqual(t, atB, atC)

	less, opened := make1(pool[1:2])
	_, err = less.Restore(data, now)
	require.NoError(t, err)
	require.Empty(t, *opened)
	for _, bad := range []string{"", "{", `[{"server":"x"}]`, `{"a":1}`} {
		_, err := less.Restore([]byte(bad), now)
		require.Error(t, err, bad)
	}
	for _, odd := range []string{`[]`, `[{}]`, `[{"server":"192.0.2.1:1"}]`, `[{"via":"AAAA","used":"` + now.Format(time.RFC3339) + `"}]`} {
		count, err := less.Restore([]byte(odd), now)
		require.NoError(t, err, odd)
		require.Zero(t, count)
	}

	// What somebody has written into the file: of two that claim one address the first
	// has it, and what was used tomorrow is of another clock.
	claims := fmt.Sprintf(`[{"server":"192.0.2.1:1","used":%[1]q,"addresses":[{"at":%[2]q,"schemes":["coap"]}]},
		{"server":"192.0.2.2:1","used":%[1]q,"addresses":[{"at":%[2]q,"schemes":["coap"]}]}, {"server":"192.0.2.3:1","used":%[3]q}]`,
		now.Format(time.RFC3339), pool[0], now.Add(24*time.Hour).Format(time.RFC3339))
	claimed, _ := make1(pool)
	count, err = claimed.Restore([]byte(claims), now)
	require.NoError(t, err)
	require.Equal(t, 2, count)
	found, _, _ := claimed.at(pool[0], hostKey{}, nil, now)
	require.Equal(t, "192.0.2.1", found.addr.String())
}
