package blockwise

import (
	"errors"
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// observable is a leg to a server of which the test gives the notifications, and
// which answers requests for blocks from body.
func observable(t tester, body *[]byte) *fakeLeg {
	return &fakeLeg{t: t, answer: func(r *exchange.Request) *exchange.Response {
		if wire.Has(r.Options, wire.Observe) || !wire.Has(r.Options, wire.Block2) {
			return nil
		}
		return slice(t, *body, r.Options, 4, option(wire.ETag, (*body)[:1]))
	}}
}

// notifies is the notification of a body, in blocks if need be.
func notifies(t tester, body []byte, n uint32) *exchange.Response {
	return slice(t, body, nil, 4, option(wire.ETag, body[:1]), uintOption(wire.Observe, n))
}

func bodiesOf(w *checkingSink) (sizes []int) {
	for _, p := range w.responses() {
		sizes = append(sizes, len(p.Payload))
	}
	return sizes
}

func letter(c byte, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = c
	}
	return b
}

// RFC 7959 §2.6, §3.4 and FP-72: what goes up are whole notifications, in their
// order, with their numbers.
func TestObservedBodies(t *testing.T) {
	body := letter('a', 1000)
	leg := observable(t, &body)
	w := &checkingSink{t: t}
	cancel := ask(NewUpstream(leg, testLimit), request(codes.GET, nil, message.Option{ID: wire.Observe}), w)
	registration := leg.requests()[0]
	registration.respond(notifies(t, body, 3))
	body = letter('b', 10)
	registration.respond(notifies(t, body, 4))
	body = letter('c', 64<<10)
	registration.respond(notifies(t, body, 5))
	require.Equal(t, []int{1000, 10, 64 << 10}, bodiesOf(w))
	for i, p := range w.responses() {
		require.EqualValues(t, i+3, uintOf(t, p.Options, wire.Observe))
		require.False(t, wire.Has(p.Options, wire.Block2))
	}
	for _, a := range leg.requests()[1:] {
		require.False(t, wire.Has(a.Options, wire.Observe), "RFC 7959 §2.6: further blocks are asked for without Observe")
	}
	ends, _ := w.ended()
	require.Zero(t, ends)
	cancel.Cancel()
	require.Positive(t, registration.canceled.Load())
	ends, err := w.ended()
	require.Equal(t, 1, ends)
	require.ErrorIs(t, err, exchange.ErrCanceled)
}

// A newer notification takes the place of one whose body is still coming, and
// one whose blocks do not fit together is made good by asking again (FP-75).
func TestObservedBodyIsOvertaken(t *testing.T) {
	body := letter('a', 1000)
	leg := observable(t, &body)
	answer := leg.answer
	leg.answer = func(*exchange.Request) *exchange.Response { return nil }
	w := &checkingSink{t: t}
	ask(NewUpstream(leg, testLimit), request(codes.GET, nil, message.Option{ID: wire.Observe}), w)
	registration := leg.requests()[0]
	registration.respond(notifies(t, letter('a', 1000), 3))
	slow := leg.requests()[1]
	leg.answer = answer
	body = letter('b', 500)
	registration.respond(notifies(t, body, 4))
	require.Positive(t, slow.canceled.Load())
	require.Equal(t, []int{500}, bodiesOf(w))

	body = letter('d', 700)
	registration.respond(notifies(t, letter('c', 600), 5)) // it has changed since
	again := leg.requests()[len(leg.requests())-1]
	require.False(t, wire.Has(again.Options, wire.Block2))
	again.respond(slice(t, body, nil, 4, option(wire.ETag, body[:1])))
	again.end(nil)
	require.Equal(t, []int{500, 700}, bodiesOf(w))
	require.EqualValues(t, 5, uintOf(t, w.responses()[1].Options, wire.Observe))
	registration.end(nil)
	_, err := w.ended()
	require.NoError(t, err)
}

// The last response may come in blocks too, and one that nobody wants is not
// fetched.
func TestObservedEnds(t *testing.T) {
	observe := message.Option{ID: wire.Observe}
	t.Run("plain", func(t *testing.T) { // FP-62
		body := letter('a', 1000)
		leg := observable(t, &body)
		answer := leg.answer
		leg.answer = func(*exchange.Request) *exchange.Response { return nil }
		w := &checkingSink{t: t}
		ask(NewUpstream(leg, testLimit), request(codes.GET, nil, observe), w)
		registration := leg.requests()[0]
		registration.respond(slice(t, body, nil, 4, option(wire.ETag, body[:1])))
		registration.end(nil)
		ends, _ := w.ended()
		require.Zero(t, ends)
		leg.answer = answer
		block := leg.requests()[1]
		block.respond(answer(block.Request))
		block.end(nil)
		require.Len(t, w.one().Payload, 1000)
		require.False(t, wire.Has(w.one().Options, wire.Observe))
	})
	t.Run("without its body", func(t *testing.T) {
		leg := observable(t, nil)
		leg.answer = func(*exchange.Request) *exchange.Response { return nil }
		w := &checkingSink{t: t}
		ask(NewUpstream(leg, testLimit), request(codes.GET, nil, observe), w)
		registration := leg.requests()[0]
		registration.respond(notifies(t, letter('a', 1000), 3))
		leg.requests()[1].end(exchange.Failf(exchange.NoAnswer, "gone"))
		w.failure(exchange.NoAnswer)
		require.Positive(t, registration.canceled.Load())
	})
	t.Run("in the leg", func(t *testing.T) {
		leg := observable(t, nil)
		leg.answer = func(*exchange.Request) *exchange.Response { return nil }
		w := &checkingSink{t: t}
		ask(NewUpstream(leg, testLimit), request(codes.GET, nil, observe), w)
		registration := leg.requests()[0]
		registration.respond(notifies(t, letter('a', 10), 3))
		registration.respond(notifies(t, letter('a', 1000), 4))
		registration.end(exchange.Failf(exchange.Unreachable, "gone"))
		require.Positive(t, leg.requests()[1].canceled.Load())
		_, err := w.ended()
		var f *exchange.Failure
		require.True(t, errors.As(err, &f))
		require.Equal(t, exchange.Unreachable, f.Reason)
	})
	t.Run("by its sink", func(t *testing.T) {
		leg := observable(t, nil)
		w := &checkingSink{t: t, verdict: func(int) exchange.Verdict { return exchange.Stop }}
		ask(NewUpstream(leg, testLimit), request(codes.GET, nil, observe), w)
		registration := leg.requests()[0]
		registration.respond(notifies(t, letter('a', 10), 3))
		require.Len(t, w.one().Payload, 10)
	})
	t.Run("too large to register", func(t *testing.T) {
		leg := &fakeLeg{t: t}
		w := &checkingSink{t: t}
		ask(NewUpstream(leg, testLimit), request(wire.FETCH, letter('q', 3000), observe), w)
		require.False(t, wire.Has(leg.requests()[0].Options, wire.Observe))
		leg.requests()[0].end(errors.New("enough"))
	})
}
