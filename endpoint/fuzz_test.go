package endpoint

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"go.uber.org/zap"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// sounding is a PacketConn that nothing comes from; what is written to it must
// be CoAP.
type sounding struct {
	t    *testing.T
	last []byte
}

func (s *sounding) ReadBatch([]Datagram) (int, error) { return 0, net.ErrClosed }

func (s *sounding) WriteBatch(batch []Datagram) (int, error) {
	var m wire.Message
	for _, d := range batch {
		if err := m.Decode(d.Data); err != nil {
			s.t.Errorf("sent %x: %v", d.Data, err)
		}
		s.last = append(s.last[:0], d.Data...)
	}
	return len(batch), nil
}

func (s *sounding) LocalAddr() netip.AddrPort { return netip.MustParseAddrPort("192.0.2.1:5683") }

func (s *sounding) Close() error { return nil }

// fuzzedHandler does with a request what its payload says.
type fuzzedHandler struct{ waiting []*Incoming }

func (h *fuzzedHandler) HandleRequest(rx *Reception, m *wire.Message) {
	in := &Incoming{}
	in.Accept(rx, m)
	reply := &wire.Message{Code: codes.Content, Options: m.Options, Payload: m.Payload}
	what := byte(0)
	if len(m.Payload) > 0 {
		what = m.Payload[0]
	}
	switch what % 5 {
	case 0:
		in.Respond(reply, message.NonConfirmable, nil)
	case 1:
		in.Ack()
		in.Respond(reply, message.Confirmable, nil)
	case 2:
		in.Finish()
	default:
		in.AckLater()
		h.waiting = append(h.waiting, in)
	}
}

// fuzzedSink counts its ends.
type fuzzedSink struct{ ends *int }

func (fuzzedSink) Respond(*exchange.Response) exchange.Verdict { return exchange.Continue }
func (s fuzzedSink) End(error)                                 { *s.ends++ }

// fuzzDatagrams takes an input apart: a length, a byte that says from where and
// how, the datagram.
func fuzzDatagrams(input []byte, each func(how byte, data []byte)) {
	for len(input) >= 2 {
		n, how := int(input[0]), input[1]
		input = input[2:]
		n = min(n, len(input))
		each(how, input[:n])
		input = input[n:]
	}
}

// FuzzEndpointReceive gives arbitrary datagrams to a server and to a client:
// neither panics nor says what is not CoAP, and all tables stay bounded.
func FuzzEndpointReceive(f *testing.F) {
	seed := func(how byte, datagrams ...string) {
		var input []byte
		for _, s := range datagrams {
			data, err := hex.DecodeString(s)
			if err != nil {
				f.Fatal(err)
			}
			input = append(append(input, byte(len(data)), how), data...)
		}
		f.Add(input)
	}
	seed(0, "40000007", "50000007", "70000007", "60000007")             // Empty
	seed(1, "4101000701", "4101000701", "5101000701", "4102000801ff01") // requests, repeated
	seed(2, "4102000901ff03", "4102000a01ff02", "4102000b01ff04")
	seed(3, "42450007cafe", "62450007cafe", "52450007cafeff30", "42450007cafe") // responses
	seed(4, "4d01000700010203040506070809", "4e010007000001")                   // long Tokens
	seed(0x10, "4801000701020304050607", "40010007b272ff", "c0010007", "400100", "40e10007", "4f010007", "40010007ff")
	seed(0x20, "40010007d3010a636f61703a2f2f", "50010007") // to a group
	seed(0x40, "40010007", "5001")                         // came back
	seed(0x80, "68450000", "48450000", "70000000", "60000000", "58450000")

	f.Fuzz(func(t *testing.T, input []byte) {
		const limit = 8
		engine := exchange.NewEngine()
		var stats Stats
		limits := DedupLimits{Idempotent: limit, NonIdempotent: limit, ReplyBytes: 1 << 10, Shortly: time.Second}
		now := time.Now()

		h := &fuzzedHandler{}
		conn := &sounding{t: t}
		server := New(Config{Conn: conn, Engine: engine, Requests: h, Params: DefaultParams(), Dedup: limits, MaxToken: 16,
			Stats: &stats, Log: zap.NewNop()})

		port := &sounding{t: t}
		c, err := NewClient(t.Context(), ClientConfig{Engine: engine, Stats: &stats, Log: zap.NewNop(), KeepType: true, NStart: func(netip.AddrPort) int { return 2 },
			Queue: 2, TimeoutCON: time.Minute, TimeoutNON: time.Minute, Ports: 1, Servers: 1})
		if err != nil {
			t.Fatal(err)
		}
		// Without a goroutine that reads: the fuzzer wants to see the same twice.
		upstream := New(Config{Conn: port, Engine: engine, Responses: c, Params: DefaultParams(), Dedup: limits, Stats: &stats, Log: zap.NewNop()})
		c.ports[0] = []*Endpoint{upstream}
		c.tokens = rand.NewChaCha8([32]byte{})
		for i := range c.lanes[0].lanes {
			c.lanes[0].lanes[i].spaces = []*idSpace{{next: 0x0100}}
		}
		for i := range server.ids {
			server.ids[i].next.Store(0x0200)
		}
		peers := [2]netip.AddrPort{netip.MustParseAddrPort("198.51.100.1:5683"), netip.MustParseAddrPort("[fe80::1%lo]:61616")}
		begun, ends := 0, 0
		ask := func() {
			begun++
			c.Exchange(&exchange.Request{Method: codes.GET, Confirmable: begun%2 == 0, Target: exchange.Target{Addr: peers[0]}, Arrival: now}, fuzzedSink{&ends})
			engine.Flush()
		}
		ask()
		ask()

		var m, mine wire.Message
		requests := 0
		fuzzDatagrams(input, func(how byte, data []byte) {
			now = now.Add(time.Duration(how>>3&1) * 100 * time.Second)
			d := Datagram{Peer: Peer{Addr: peers[how&1]}, Data: data, Truncated: how&4 != 0}
			if how&0x20 != 0 {
				d.Path.Local = netip.MustParseAddr("224.0.1.187")
			}
			if how&0x40 != 0 {
				d.Undeliverable = ErrUndeliverable
			}
			requests++
			server.receive(&d, &m, now)
			if how&0x80 != 0 && mine.Decode(port.last) == nil {
				// As if it knew the Message ID and Token of the last request.
				if len(data) >= 4 {
					binary.BigEndian.PutUint16(data[2:], mine.ID)
				}
				if len(data) >= 12 {
					copy(data[4:], mine.Token)
				}
			}
			upstream.receive(&d, &m, now)
			engine.Flush()
			if how&0x10 != 0 {
				ask()
			}
			if how&2 != 0 && len(h.waiting) > 0 {
				h.waiting[0].Respond(&wire.Message{Code: codes.Changed}, message.Confirmable, nil)
				h.waiting = h.waiting[1:]
			}
		})
		for _, e := range []*Endpoint{server, upstream} {
			checkDedup(t, e.dedup)
			// Idempotent requests, non-idempotent ones, responses of two kinds,
			// and what is under way.
			if n := e.dedup.table.len(); n > 4*limit+len(h.waiting)+requests {
				t.Fatalf("%d messages remembered", n)
			}
			for life, q := range e.dedup.queues {
				if q.count > limit {
					t.Fatalf("%d messages in queue %d", q.count, life)
				}
			}
		}
		if n := server.pending.len(); n > requests {
			t.Fatalf("%d messages pending after %d requests", n, requests)
		}
		if n, calls := upstream.pending.len(), len(c.calls); n > calls {
			t.Fatalf("%d messages pending for %d calls", n, calls)
		}
		c.Wait()
		if begun != ends {
			t.Fatalf("%d exchanges, %d ends", begun, ends)
		}
		if upstream.pending.len() > 0 {
			t.Fatal("messages of ended exchanges are pending")
		}
		for _, in := range h.waiting {
			in.Finish()
		}
	})
}
