package demo

import (
	"math/rand/v2"
	"sync"
	"sync/atomic"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"

	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/wire"
)

// device is one simulated device: a CoAP server behind two sockets.
type device struct {
	name      string
	engine    *exchange.Engine
	own       *endpoint.Endpoint // on its own address
	stats     *Stats
	leisure   time.Duration
	began     time.Time
	resources []resource
	waiting   atomic.Int64 // answers to group requests

	mu          sync.Mutex // guards what changes
	delays      *rand.Rand
	temperature drift
	light       bool
	observers   observers
}

func newDevice(i int, o Options, began time.Time) *device {
	d := &device{name: deviceName(i), leisure: o.Leisure, began: began, delays: randomFor(o.Seed, i, 0),
		temperature: newDrift(randomFor(o.Seed, i, 1))}
	d.resources = d.makeResources()
	d.observers.all = make(map[observerKey]*observer)
	d.observers.next.Fire = exchange.FireFunc(d.due)
	return d
}

// maxWaiting bounds the answers to group requests that wait for their time in
// one device.
const maxWaiting = 256

var _ endpoint.RequestHandler = (*device)(nil)

// HandleRequest implements endpoint.RequestHandler, for requests to the device
// alone and to its group.
func (d *device) HandleRequest(rx *endpoint.Reception, m *wire.Message) {
	in := &endpoint.Incoming{}
	in.Accept(rx, m)
	answer := d.serve(m, rx.Now)
	d.observe(in, m, answer)
	if m.Code == codes.PUT && answer.Code == codes.Changed {
		defer d.notify(d.find(m.Options), rx.Now)
	}
	if rx.Path.Local.IsMulticast() {
		in.Finish()
		if worthSaying(m, answer) {
			d.answerLater(in, answer)
		}
		return
	}
	if silent(m, answer) {
		in.Finish()
		return
	}
	in.Respond(answer, message.NonConfirmable, nil)
}

// worthSaying reports whether the answer to a group request is to be sent at
// all: errors and empty results are not (RFC 7252 §8.2, GC-30).
func worthSaying(request, answer *wire.Message) bool {
	const success = 2
	empty := answer.Code == codes.Content && len(answer.Payload) == 0
	return answer.Code>>5 == success && !empty && !silent(request, answer)
}

// silent reports whether an answer is not to be sent: because the client does
// not want it (GC-32), or because a NON request with an option that is not
// understood is rejected by saying nothing (RFC 7252 §5.4.1).
func silent(request, answer *wire.Message) bool {
	if request.Type == message.NonConfirmable && answer.Code == codes.BadOption {
		return true
	}
	value, _ := wire.First(request.Options, wire.NoResponse)
	unwanted, ok := wire.Uint(value)
	return ok && wire.Suppressed(unwanted, answer.Code)
}

// answerLater answers a group request after a random part of the leisure, from
// the device's own address (RFC 7252 §8.2, GC-35).
func (d *device) answerLater(in *endpoint.Incoming, answer *wire.Message) {
	if d.waiting.Add(1) > maxWaiting {
		d.waiting.Add(-1)
		d.stats.Overrun.Add(1)
		return
	}
	answer.Type, answer.Token = message.NonConfirmable, in.Token
	d.mu.Lock()
	delay := time.Duration(d.delays.Int64N(int64(d.leisure) + 1))
	d.mu.Unlock()
	due := &exchange.Deadline{}
	due.Fire = exchange.FireFunc(func(time.Time) {
		d.waiting.Add(-1)
		answer.ID = d.own.NextID(in.Peer.Addr)
		_ = d.own.Send(in.Peer, endpoint.Path{}, answer, nil) // a full send queue is counted there
	})
	d.engine.Schedule(due, time.Now().Add(delay))
}
