package access

import (
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// canceling is a leg whose exchanges end when they are canceled.
type canceling struct{ sinks map[exchange.Sink]bool }

type cancelFunc func()

func (f cancelFunc) Cancel() { f() }

func (l *canceling) Exchange(_ *exchange.Request, w exchange.Sink) exchange.Canceler {
	l.sinks[w] = true
	return cancelFunc(func() {
		if l.sinks[w] {
			delete(l.sinks, w)
			w.End(exchange.ErrCanceled)
		}
	})
}

// GP-36: what nobody wants the responses of is no observation, and has no place
// among those that a client may have.
func TestSilentRegistrationsAreNone(t *testing.T) {
	l := &canceling{make(map[exchange.Sink]bool)}
	p := New(Config{Clients: []Client{{Identity: exchange.Identity{Name: "c"}, HTTP: "c", MaxObservations: 1, MaxExchanges: 8,
		Forward: []Target{{Scheme: "coap", Any: true, AnyPort: true}}}}}, l, NewHeard())
	ask := func(timeout exchange.Timeout) {
		p.Exchange(&exchange.Request{Method: codes.GET, Options: message.Options{{ID: wire.Observe}}, Client: p.IdentifyHTTP("c"), Timeout: timeout,
			Target: exchange.Target{Scheme: "coap", Addr: worker}}, &outcome{})
	}
	for range 3 {
		ask(exchange.Timeout{Present: true})
	}
	ask(exchange.Timeout{})
	require.Zero(t, p.config.Stats.ObservationsRefused.Load())
	ask(exchange.Timeout{})
	require.EqualValues(t, 1, p.config.Stats.ObservationsRefused.Load())
}

// The observations of a client whose entry has changed end with what it is told;
// those of others count for them in the next policy too.
func TestEndObservations(t *testing.T) {
	anywhere := []Target{{Scheme: "coap", Any: true, AnyPort: true}}
	of := func(name string) Client {
		return Client{Identity: exchange.Identity{Name: name}, HTTP: name, MaxObservations: 1, Forward: anywhere}
	}
	l := &canceling{make(map[exchange.Sink]bool)}
	before := New(Config{Clients: []Client{of("stays"), of("goes")}}, l, NewHeard())
	ask := func(p *Policy, name string) *outcome {
		o := &outcome{}
		p.Exchange(&exchange.Request{Method: codes.GET, Options: message.Options{{ID: wire.Observe}}, Client: p.IdentifyHTTP(name),
			Target: exchange.Target{Scheme: "coap", Addr: worker}}, o)
		return o
	}
	stays, goes := ask(before, "stays"), ask(before, "goes")
	require.Zero(t, stays.ends+goes.ends, "%v %v", stays.failure, goes.failure)
	after := New(Config{Clients: []Client{of("stays")}}, l, NewHeard())
	after.Inherit(before)
	require.True(t, after.Knows("stays"))
	require.False(t, after.Knows("goes"))
	f := exchange.Failf(exchange.Overloaded, "changed")
	before.EndObservations(func(name string) bool { return !after.Knows(name) }, f)
	require.Equal(t, 1, goes.ends)
	require.Equal(t, f, goes.failure)
	require.Zero(t, stays.ends)
	ask(after, "stays")
	require.EqualValues(t, 1, after.config.Stats.ObservationsRefused.Load(), "it has its one observation")
	before.EndObservations(func(string) bool { return true }, f)
	require.Equal(t, 1, stays.ends)
	require.Equal(t, 1, goes.ends)
}
