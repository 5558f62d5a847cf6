package endpoint

import (
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// reusing answers every request at once, out of memory that it keeps.
type reusing struct{ in Incoming }

func (h *reusing) HandleRequest(rx *Reception, m *wire.Message) {
	h.in = Incoming{}
	h.in.Accept(rx, m)
	h.in.Respond(&wire.Message{Code: codes.Content, Options: m.Options, Payload: m.Payload}, message.NonConfirmable, nil)
}

// Receiving a request and answering it costs no memory once the tables have their
// size, not even for what is kept for a repeated one.
func TestAnsweringDoesNotAllocate(t *testing.T) {
	for _, typ := range []message.Type{message.NonConfirmable, message.Confirmable} {
		engine := exchange.NewEngine()
		limits := DefaultDedupLimits()
		limits.Idempotent = 100
		e := New(Config{Conn: &script{}, Engine: engine, Requests: &reusing{}, Params: DefaultParams(), Dedup: limits, MaxToken: 8,
			Stats: &Stats{}, Log: zap.NewNop()})
		request := wire.Message{Type: typ, Code: codes.GET, Token: []byte("token"),
			Options: message.Options{{ID: message.URIPath, Value: []byte("temperature")}}, Payload: []byte("payload")}
		data, err := request.Append(nil)
		require.NoError(t, err)
		d := Datagram{Peer: PeerOf(netip.MustParseAddrPort("192.0.2.9:5683")), Data: data}
		var m wire.Message
		id := uint16(0)
		receive := func() {
			id++
			binary.BigEndian.PutUint16(data[2:], id)
			e.receive(&d, &m, time.Now())
			e.out.queue = e.out.queue[:0]
		}
		for range 1000 { // until all tables have their size
			receive()
		}
		require.Zero(t, testing.AllocsPerRun(1000, receive))
	}
}
