package proxy

import (
	"hash/maphash"
	"slices"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/wire"
)

// Observations whose keys have the same hash are told apart all the same.
func TestObserversWithTheSameHash(t *testing.T) {
	inGateway(t, nil, func(g *gateway) {
		client, a := g.peer(userAddr), g.peer(member1)
		for _, token := range []string{"one", "two", "tri"} {
			client.ask(observeGet(con, token))
		}
		a.notify(a.expect("CON 0.01 6= 11=72 16=10")[0], ack, 9, "a")
		client.notified("ACK 2.05 |a #", "ACK 2.05 |a #", "ACK 2.05 |a #")
		f := g.front
		haveOneHash(t, f)
		client.ask(msg(con, codes.GET, "two", uri(serverURI), opt(wire.Observe, "\x01"))) // ends that of this Token
		f.mu.Lock()
		defer f.mu.Unlock()
		require.Len(t, slices.Collect(f.observers.all()), 2)
	})
}

// haveOneHash puts the three observations of a front into tables in which all have
// the hash of one of them, and takes them out.
func haveOneHash(t *testing.T, f *Front) {
	t.Helper()
	f.mu.Lock() // which guards what links observations, too
	defer f.mu.Unlock()
	all := slices.Collect(f.observers.all())
	require.Len(t, all, 3)
	defer func() {
		for _, x := range all {
			x.next = nil
		}
	}()
	for _, x := range all {
		o := newObservers()
		all[0].next, all[1].next, all[2].next = all[1], all[2], nil
		o.byHash[maphash.Comparable(o.seed, x.key())] = all[0]
		require.Equal(t, all, slices.Collect(o.all()))
		require.Same(t, x, o.take(x.key()))
		require.Nil(t, o.take(x.key()))
		require.Equal(t, slices.DeleteFunc(slices.Clone(all), func(y *observation) bool { return y == x }), slices.Collect(o.all()))
		o.add(x)
		require.Same(t, x, o.take(x.key()))
		require.Len(t, slices.Collect(o.all()), 2)
		o.add(x)
		for y := range o.all() {
			require.True(t, slices.Contains(all, y))
			break
		}
		o.remove(x)
		o.remove(x)
		require.Len(t, slices.Collect(o.all()), 2)
		o.clear()
		require.Empty(t, slices.Collect(o.all()))
	}
}
