package endpoint

import (
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// watched is the sink of an observation.
type watched struct {
	mu     sync.Mutex
	bodies []string
	ends   []error
}

func (w *watched) Respond(p *exchange.Response) exchange.Verdict {
	w.mu.Lock()
	defer w.mu.Unlock()
	if len(w.ends) > 0 {
		panic("a response after the end")
	}
	w.bodies = append(w.bodies, string(p.Payload))
	return exchange.Continue
}

func (w *watched) End(err error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.ends = append(w.ends, err)
}

func (w *watched) got(t *testing.T, bodies []string, ends ...error) {
	t.Helper()
	synctest.Wait()
	w.mu.Lock()
	defer w.mu.Unlock()
	require.Equal(t, bodies, w.bodies)
	require.Equal(t, ends, w.ends)
}

// observe registers at pipeServer.
func (b *clientBench) observe(timeout exchange.Timeout) (*watched, exchange.Canceler) {
	w := &watched{}
	c := b.Exchange(&exchange.Request{
		Method: codes.GET, Options: append(message.Options{{ID: wire.Observe}}, pathOptions("r")...), Arrival: time.Now(), Timeout: timeout,
		Target: exchange.Target{Scheme: "coap+tcp", Addr: pipeServer},
	}, w)
	b.config.Engine.Flush()
	return w, c
}

func notify(m *wire.Message, body string, observe ...byte) *wire.Message {
	return &wire.Message{Code: codes.Content, Token: m.Token, Options: message.Options{{ID: wire.Observe, Value: observe}}, Payload: []byte(body)}
}

func fewObservations(c *StreamClientConfig) { c.Observations, c.Calls = 2, 2 }

// FP-62, FP-64, FP-66, FP-67: over a connection the order is given, values may be
// empty, and observations take nobody's place.
func TestStreamObservation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newClientBench(t, fewObservations)
		w, cancel := b.observe(exchange.Timeout{})
		p := b.settled()
		m := p.expect(codes.GET)
		p.send(notify(m, "one"))
		p.send(notify(m, "two"))
		p.send(notify(m, "three", 7))
		p.send(notify(m, "four", 6))
		w.got(t, []string{"one", "two", "three", "four"})
		gone, _ := b.observe(exchange.Timeout{})
		second := p.expect(codes.GET)
		p.send(notify(second, "1"))
		gone.got(t, []string{"1"})

		third, _ := b.observe(exchange.Timeout{}) // beyond the bound
		plain := p.expect(codes.GET)
		require.False(t, wire.Has(plain.Options, wire.Observe))
		p.send(&wire.Message{Code: codes.Content, Token: plain.Token})
		third.got(t, []string{""}, nil)
		require.EqualValues(t, 1, b.config.Stats.ObservationsRefused.Load())

		p.send(&wire.Message{Code: codes.NotFound, Token: second.Token})
		gone.got(t, []string{"1", ""}, nil)
		cancel.Cancel()
		b.config.Engine.Flush()
		off := p.expect(codes.GET)
		require.Equal(t, m.Token, off.Token)
		value, ok := wire.ObserveOf(off.Options)
		require.True(t, ok)
		require.EqualValues(t, 1, value)
		require.Equal(t, m.Options[1:], off.Options[1:])
		p.send(notify(m, "under way"))
		p.send(&wire.Message{Code: codes.Content, Token: off.Token})
		w.got(t, []string{"one", "two", "three", "four"}, exchange.ErrCanceled)
		require.Zero(t, b.config.Stats.Observations.Load())
	})
}

// FP-65, and a lost connection: the registration is repeated, over a new
// connection if need be.
func TestStreamObservationIsRenewed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newClientBench(t, fewObservations)
		w, _ := b.observe(exchange.Timeout{})
		p := b.settled()
		m := p.expect(codes.GET)
		start := time.Now()
		p.send(notify(m, "one"))
		again := p.expect(codes.GET)
		require.GreaterOrEqual(t, time.Since(start), 65*time.Second)
		require.LessOrEqual(t, time.Since(start), 75*time.Second)
		require.Equal(t, m.Token, again.Token)
		require.Equal(t, m.Options, again.Options)
		p.send(notify(m, "two"))
		w.got(t, []string{"one", "two"})

		require.NoError(t, p.Close())
		q := b.settled()
		again = q.expect(codes.GET)
		require.Equal(t, m.Token, again.Token)
		require.Equal(t, m.Options, again.Options)
		q.send(notify(again, "three"))
		w.got(t, []string{"one", "two", "three"})

		q.send(&wire.Message{Code: codes.Release}) // RFC 8323 §5.5
		q.expectEnd()
		r := b.settled()
		r.send(notify(r.expect(codes.GET), "four"))
		w.got(t, []string{"one", "two", "three", "four"})
		require.EqualValues(t, 3, b.config.Stats.ObservationsRenewed.Load())
		require.EqualValues(t, 1, b.config.Stats.Observations.Load())
	})
}

// A server that does not come back ends the observation with a failure; so does
// the end of the client, also while the connection is lost.
func TestStreamObservationIsLost(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newClientBench(t, fewObservations)
		w, _ := b.observe(exchange.Timeout{})
		p := b.settled()
		p.send(notify(p.expect(codes.GET), "one"))
		w.got(t, []string{"one"})
		_ = b.listener.Close()
		_ = p.Close()
		time.Sleep(5 * time.Minute)
		synctest.Wait()
		require.Len(t, w.ends, 1)
		require.Equal(t, exchange.Unreachable, exchange.AsFailure(w.ends[0]).Reason)
		require.Zero(t, b.config.Stats.Observations.Load())
	})
	synctest.Test(t, func(t *testing.T) {
		b := newClientBench(t, fewObservations)
		w, _ := b.observe(exchange.Timeout{})
		p := b.settled()
		p.send(notify(p.expect(codes.GET), "one"))
		_ = p.Close()
		synctest.Wait()
		b.shutdown()
		b.Wait()
		w.got(t, []string{"one"}, errClosing)
	})
	synctest.Test(t, func(t *testing.T) { // it may be canceled meanwhile
		b := newClientBench(t, fewObservations)
		w, cancel := b.observe(exchange.Timeout{})
		p := b.settled()
		p.send(notify(p.expect(codes.GET), "one"))
		_ = p.Close()
		synctest.Wait()
		cancel.Cancel()
		w.got(t, []string{"one"}, exchange.ErrCanceled)
		time.Sleep(time.Minute)
		require.EqualValues(t, 1, b.dials.Load())
	})
	synctest.Test(t, func(t *testing.T) { // a server that takes the requests and is silent
		b := newClientBench(t, fewObservations)
		w, _ := b.observe(exchange.Timeout{})
		p := b.settled()
		p.send(notify(p.expect(codes.GET), "one"))
		for range 4 {
			p.expect(codes.GET)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		require.Len(t, w.ends, 1)
		require.Equal(t, exchange.NoAnswer, exchange.AsFailure(w.ends[0]).Reason)
	})
}

// A group request at a next hop, over a connection (GP-64).
func TestStreamGroupRequest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newClientBench(t, func(c *StreamClientConfig) { fewObservations(c); c.GroupStop = message.Options{{ID: 2}} })
		w, _ := b.observe(exchange.Timeout{Seconds: 10, Present: true})
		p := b.settled()
		m := p.expect(codes.GET)
		p.send(&wire.Message{Code: codes.Content, Token: m.Token, Payload: []byte("a")})
		p.send(&wire.Message{Code: codes.NotFound, Token: m.Token, Payload: []byte("b")})
		time.Sleep(10*time.Second - 1)
		w.got(t, []string{"a", "b"})
		time.Sleep(time.Nanosecond)
		w.got(t, []string{"a", "b"}, nil)

		w, cancel := b.observe(exchange.Timeout{Seconds: 10, Present: true})
		m = p.expect(codes.GET)
		p.send(notify(m, "a"))
		time.Sleep(time.Minute)
		p.send(notify(m, "a2"))
		w.got(t, []string{"a", "a2"})
		cancel.Cancel()
		b.config.Engine.Flush()
		off := p.expect(codes.GET)
		require.Equal(t, m.Token, off.Token)
		require.EqualValues(t, 2, off.Options[0].ID)

		w, _ = b.observe(exchange.Timeout{Present: true})
		p.expect(codes.GET)
		w.got(t, nil, nil)
	})
}
