package exchange_test

import (
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
)

// endLater is a Handler whose exchanges end when they are canceled.
type endLater struct{ begun, canceled int }

type endsLater struct {
	of   *endLater
	sink exchange.Sink
}

func (h *endLater) Exchange(_ *exchange.Request, w exchange.Sink) exchange.Canceler {
	h.begun++
	return endsLater{h, w}
}

func (e endsLater) Cancel() {
	e.of.canceled++
	e.sink.End(exchange.ErrCanceled)
}

type endCounter struct{ ends int }

func (*endCounter) Respond(*exchange.Response) exchange.Verdict { return exchange.Continue }
func (c *endCounter) End(error)                                 { c.ends++ }

func TestSwitch(t *testing.T) {
	var s exchange.Switch
	var first, second endLater
	var sink endCounter
	s.To(&first)
	running := s.Exchange(&exchange.Request{}, &sink)
	s.To(&second)
	s.Exchange(&exchange.Request{}, &sink).Cancel()
	require.Equal(t, endLater{begun: 1, canceled: 1}, second, "new exchanges go to the new handler")
	running.Cancel()
	require.Equal(t, endLater{begun: 1, canceled: 1}, first, "one that runs stays with the handler it began with")
	require.Equal(t, 2, sink.ends)

	allocs := func(h exchange.Handler) float64 {
		return testing.AllocsPerRun(100, func() { h.Exchange(&exchange.Request{}, &sink) })
	}
	require.Equal(t, allocs(&second), allocs(&s), "it costs no memory")
}
