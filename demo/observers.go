package demo

import (
	"net/netip"
	"slices"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"

	"coapproxy/endpoint"
	"coapproxy/exchange"
	"coapproxy/wire"
)

// observers are the clients that observe resources of one device (RFC 7641). The
// device's lock guards them.
type observers struct {
	all  map[observerKey]*observer
	next exchange.Deadline // when all of them are notified
}

// observerKey is what a registration is known by (RFC 7641 §4.1).
type observerKey struct {
	peer  netip.AddrPort
	token string
}

// observer is one registration.
type observer struct {
	device   *device
	key      observerKey
	peer     endpoint.Peer
	resource *resource
	options  message.Options // of the registration, owned
	sequence uint32
	sent     int
	id       uint16 // of the last notification
	watched  bool
	waiting  bool // the last notification was confirmable and has had no ACK
}

const (
	// maxObservers bounds the registrations at one device; who comes too late gets
	// a plain response.
	maxObservers = 64
	// confirmEvery is how many notifications it takes until one asks whether the
	// client is still there (GC-47).
	confirmEvery = 10
)

// observe enters a registration, or its end, and puts Observe into the answer to
// it. Called with what the request was answered with.
func (d *device) observe(in *endpoint.Incoming, m, answer *wire.Message) {
	value, ok := wire.ObserveOf(m.Options)
	r := d.find(m.Options)
	if !ok || r == nil || !r.changes {
		return
	}
	key := observerKey{in.Peer.Addr, string(m.Token)}
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.observers.all[key]
	if old != nil {
		d.forget(old)
	}
	if value != wire.ObserveRegister || answer.Code>>5 != 2 || len(d.observers.all) >= maxObservers {
		return
	}
	o := &observer{device: d, key: key, peer: in.Peer, resource: r, options: exchange.CloneOptions(m.Options)}
	if old != nil {
		o.sequence = old.sequence
	}
	d.observers.all[key] = o
	if len(d.observers.all) == 1 {
		d.schedule(time.Now())
	}
	o.number(answer)
}

// number puts the next value of Observe into a message.
func (o *observer) number(m *wire.Message) {
	o.sequence++
	at := slices.IndexFunc(m.Options, func(v message.Option) bool { return v.ID > wire.Observe })
	if at < 0 {
		at = len(m.Options)
	}
	m.Options = slices.Insert(m.Options, at, message.Option{ID: wire.Observe, Value: wire.AppendUint(nil, o.sequence)})
}

// schedule has all observers notified with the next step of the temperature.
// Called under the lock.
func (d *device) schedule(now time.Time) {
	d.engine.Schedule(&d.observers.next, now.Add(driftEvery-now.Sub(d.began)%driftEvery))
}

// due notifies everybody, also of what has not changed: its Max-Age is over
// (FP-71).
func (d *device) due(now time.Time) {
	d.notify(nil, now)
	d.mu.Lock()
	defer d.mu.Unlock()
	if len(d.observers.all) > 0 {
		d.schedule(now)
	}
}

// notify sends a notification to those who observe a resource; nil: any.
func (d *device) notify(r *resource, now time.Time) {
	d.mu.Lock()
	var all []*observer
	for _, o := range d.observers.all {
		if (r == nil || o.resource == r) && !o.waiting {
			all = append(all, o)
		}
	}
	d.mu.Unlock()
	for _, o := range all {
		m := o.resource.read(o.options, now) // takes the lock
		d.mu.Lock()
		if d.observers.all[o.key] == o {
			o.send(m)
		}
		d.mu.Unlock()
	}
}

// send sends a notification. Called under the lock of the device.
func (o *observer) send(m *wire.Message) {
	own := o.device.own
	if o.watched {
		own.Settle(o.peer.Addr, o.id)
	}
	m.Type, m.Token, m.ID = message.NonConfirmable, []byte(o.key.token), own.NextID(o.peer.Addr)
	if o.sent++; o.sent%confirmEvery == 0 {
		m.Type = message.Confirmable
	}
	o.number(m)
	o.id, o.watched, o.waiting = m.ID, true, m.Type == message.Confirmable
	if own.Send(o.peer, endpoint.Path{}, m, o) != nil { // a full send queue is counted there
		o.watched, o.waiting = false, false
	}
}

// forget takes a registration out. Called under the lock of the device.
func (d *device) forget(o *observer) {
	if d.observers.all[o.key] != o {
		return
	}
	delete(d.observers.all, o.key)
	if o.watched {
		d.own.Settle(o.peer.Addr, o.id)
	}
	if len(d.observers.all) == 0 {
		d.engine.Unschedule(&d.observers.next)
	}
}

// Acknowledged implements endpoint.Watcher.
func (o *observer) Acknowledged(id uint16) {
	o.device.mu.Lock()
	defer o.device.mu.Unlock()
	if id == o.id {
		o.watched, o.waiting = false, false
	}
}

// Failed implements endpoint.Watcher: the client does not want it any more, or is
// gone (RFC 7641 §3.6, §4.5).
func (o *observer) Failed(id uint16, _ error) {
	o.device.mu.Lock()
	defer o.device.mu.Unlock()
	if id == o.id {
		o.watched = false
		o.device.forget(o)
	}
}
