package proxy

import (
	"net/netip"
	"slices"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// delivery paces the confirmable responses towards one client: only so many
// wait for their ACK at a time, the others stand in a bounded queue (GP-33). It
// exists while there are any. Guarded by the front's lock.
type delivery struct {
	outstanding int
	// listens: the client has acknowledged something, or proven its address. Before
	// that only one response waits for its ACK, whoever may be at that address.
	listens bool
	waiting []waitingResponse
}

// Clients that take responses and acknowledge none cost the proxy no more than
// this, however many they are: what goes beyond is dropped and counted.
const (
	maxDeliveries = 8192  // clients with responses that wait for an ACK
	maxWaiting    = 65536 // responses that wait for their turn, over all clients
)

type waitingResponse struct {
	x       *groupRequest
	from    netip.AddrPort
	message *wire.Message // owned
}

// deliver sends a confirmable response when its turn comes. A notification takes
// the place of an older one of the same server that waits (FP-68). m is borrowed.
func (f *Front) deliver(x *groupRequest, from netip.AddrPort, m *wire.Message) {
	key := x.in.Origin()
	f.mu.Lock()
	d := f.deliveries[key]
	if d == nil && len(f.deliveries) >= maxDeliveries {
		f.mu.Unlock()
		f.Stats.DeliveryDropped.Add(1)
		return
	}
	if d == nil {
		d = &delivery{listens: !x.in.Unproven() || x.key.context != "" || f.echoes.has(x.in.Peer.Addr, time.Now())}
		f.deliveries[key] = d
	}
	switch {
	case d.outstanding < d.limit(x):
		d.outstanding++
		f.mu.Unlock()
		f.transmit(x, m)
		return
	case x.observes && replaces(d.waiting, x, from, m):
		f.Stats.NotificationsReplaced.Add(1)
	case len(d.waiting) < x.delivery.Queue && f.waiting < maxWaiting:
		f.waiting++
		d.waiting = append(d.waiting, waitingResponse{x, from, ownedMessage(x, m)})
	default:
		f.Stats.DeliveryDropped.Add(1)
	}
	f.mu.Unlock()
}

// limit is how many responses may wait for their ACK.
func (d *delivery) limit(x *groupRequest) int {
	if !d.listens {
		return 1
	}
	return max(x.delivery.Outstanding, 1)
}

func ownedMessage(x *groupRequest, m *wire.Message) *wire.Message {
	return &wire.Message{Code: m.Code, Token: x.in.Token, Options: exchange.CloneOptions(m.Options), Payload: append([]byte(nil), m.Payload...)}
}

// replaces puts a notification where an older one of the same server waits, and
// reports whether there is one. Called under the lock.
func replaces(waiting []waitingResponse, x *groupRequest, from netip.AddrPort, m *wire.Message) bool {
	i := slices.IndexFunc(waiting, func(w waitingResponse) bool {
		return w.x == x && w.from == from && wire.Has(w.message.Options, wire.Observe)
	})
	if i < 0 {
		return false
	}
	waiting[i].message = ownedMessage(x, m)
	return true
}

func (f *Front) transmit(x *groupRequest, m *wire.Message) {
	if _, err := x.in.Relay(m, message.Confirmable, confirmation{x}); err != nil {
		f.Stats.DeliveryDropped.Add(1)
		f.delivered(x, false)
		return
	}
	f.Stats.Relayed.Add(1)
}

// delivered gives the next waiting responses their turn. An exchange that had all
// its responses early, from a cache, has until T' to deliver them (GP-33).
func (f *Front) delivered(x *groupRequest, acknowledged bool) {
	key := x.in.Origin()
	f.mu.Lock()
	defer f.mu.Unlock()
	d := f.deliveries[key]
	if d == nil {
		return
	}
	d.outstanding--
	d.listens = d.listens || acknowledged
	for d != nil && len(d.waiting) > 0 && d.outstanding < d.limit(d.waiting[0].x) {
		next := d.waiting[0]
		d.waiting[0] = waitingResponse{}
		d.waiting = d.waiting[1:]
		f.waiting--
		if (next.x.ended || !next.x.observes) && !time.Now().Before(next.x.until) {
			f.Stats.Late.Add(1)
			continue
		}
		d.outstanding++
		f.mu.Unlock()
		f.transmit(next.x, next.message)
		f.mu.Lock()
		d = f.deliveries[key]
	}
	if d != nil && d.outstanding == 0 {
		delete(f.deliveries, key)
	}
}

// withdraw takes what still waits out of the queue of a client whose exchange
// is over or was stopped: none of it may be sent for the first time any more
// (GP-33, GP-41), and the client's other exchanges need the room. x is that
// exchange, nil for any. Called under the lock.
func (f *Front) withdraw(key clientToken, host netip.Addr, x *groupRequest) {
	if f.waiting == 0 {
		return
	}
	f.withdrawPaced(key, host, x)
	d := f.deliveries[key.origin]
	if d == nil {
		return
	}
	waiting := len(d.waiting)
	d.waiting = slices.DeleteFunc(d.waiting, func(w waitingResponse) bool { return w.x.key == key && (x == nil || w.x == x) })
	f.waiting -= waiting - len(d.waiting)
	f.Stats.Late.Add(uint64(waiting - len(d.waiting)))
}

// confirmation watches a confirmable response.
type confirmation struct{ x *groupRequest }

// Acknowledged implements endpoint.Watcher.
func (c confirmation) Acknowledged(uint16) {
	if c.x.observes {
		c.x.observation.confirmed()
	}
	c.x.front.delivered(c.x, true)
}

// Failed implements endpoint.Watcher: a client that resets a response or does
// not take it wants no more of them (GP-44).
func (c confirmation) Failed(id uint16, err error) {
	c.x.unwanted()
	c.x.front.delivered(c.x, false)
}
