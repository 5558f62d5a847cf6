package blockwise

import (
	"testing"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"github.com/stretchr/testify/require"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// nullLeg answers at once and allocates nothing.
type nullLeg struct{ response exchange.Response }

func (l *nullLeg) Exchange(_ *exchange.Request, w exchange.Sink) exchange.Canceler {
	w.Respond(&l.response)
	w.End(nil)
	return exchange.Ended{}
}

type nullSink struct{}

func (nullSink) Respond(*exchange.Response) exchange.Verdict { return exchange.Continue }
func (nullSink) End(error)                                   {}

func plainGet() *exchange.Request {
	return request(codes.GET, nil, option(wire.URIPath, []byte("sensors")), option(wire.URIPath, []byte("temperature")),
		option(wire.URIQuery, []byte("unit=celsius")), uintOption(wire.Accept, 50), uintOption(wire.HopLimit, 16))
}

func layers(name string) (exchange.Handler, *exchange.Request) {
	leg := &nullLeg{exchange.Response{Code: codes.Content, Payload: bodyOf(64), From: origin,
		Options: message.Options{option(wire.ETag, []byte{1}), uintOption(wire.MaxAge, 30)}}}
	stats := &DownstreamStats{}
	r := plainGet()
	switch name {
	case "downstream":
		return NewDownstream(leg, testLimit, testTotal, stats), r
	case "upstream":
		return NewUpstream(leg, testLimit), r
	case "post of 256 bytes":
		r.Method, r.Payload = codes.POST, bodyOf(256)
	}
	return NewDownstream(NewUpstream(leg, testLimit), testLimit, testTotal, stats), r
}

// What needs no blocks costs one allocation, that of the canceler, beside the room
// for a payload that has to be kept.
func TestAllocations(t *testing.T) {
	for name, want := range map[string]float64{"downstream": 0, "upstream": 1, "both": 1, "post of 256 bytes": 2} {
		h, r := layers(name)
		options := r.Options
		require.Equal(t, want, testing.AllocsPerRun(1000, func() {
			r.Options = options
			h.Exchange(r, nullSink{})
		}), name)
	}
}

func BenchmarkPassThrough(b *testing.B) {
	for _, name := range []string{"downstream", "upstream", "both", "post of 256 bytes"} {
		b.Run(name, func(b *testing.B) {
			h, r := layers(name)
			b.ReportAllocs()
			for b.Loop() {
				h.Exchange(r, nullSink{})
			}
		})
	}
}
