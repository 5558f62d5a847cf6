package proxy

import (
	"sync"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"

	"coapproxy/exchange"
	"coapproxy/wire"
)

// groupObservation is what a group request has beside if its client observes
// (GP-62). It lasts beyond T' once a notification has been relayed: the layers
// below end the exchange then if none has come (GP-64).
type groupObservation struct {
	request *groupRequest
	// established: a notification was relayed. Touched by the serialised calls of
	// the sink alone.
	established bool
	deadline    exchange.Deadline

	mu       sync.Mutex
	sequence uint32 // of the last notification of any server (GP-67)
	nons     int    // non-confirmable notifications in a row
	probe    bool   // the next one asks whether the client is interested
	// confirmedAt is when the client last showed that it is there.
	confirmedAt time.Time
	askedAt     time.Time // see Attend
}

// newGroupObservation returns the observation of x, whose notifications have numbers
// after those of old, which may be nil.
func newGroupObservation(x *groupRequest, old *groupRequest) *groupObservation {
	o := &groupObservation{request: x, confirmedAt: time.Now()}
	o.sequence = uint32(o.confirmedAt.Unix()) & sequenceMask // see Front.observe
	if old != nil {
		old.observation.mu.Lock()
		o.sequence = old.observation.sequence
		old.observation.mu.Unlock()
	}
	o.deadline.Fire = exchange.FireFunc(o.interest)
	return o
}

// established reports whether a notification was relayed. It is called by the
// serialised calls of the sink alone.
func (x *groupRequest) established() bool { return x.observation != nil && x.observation.established }

// notify takes note of a notification to be sent. It returns its options with a
// number of the client's own (GP-67), and whether it has to be confirmable
// (GP-65).
func (o *groupObservation) notify(options message.Options) (_ message.Options, confirm bool) {
	x := o.request
	f := x.front
	if !o.established {
		o.established = true
		f.done() // it is no exchange that ends
		x.in.Stand()
		f.Engine.Schedule(&o.deadline, time.Now().Add(interestInterval))
	}
	f.Stats.Notifications.Add(1)
	o.mu.Lock()
	defer o.mu.Unlock()
	o.sequence = (o.sequence + 1) & sequenceMask
	o.nons++
	if confirm = o.probe || o.nons > maxNonConfirmable || x.relayType == message.Confirmable; confirm {
		o.nons, o.probe = 0, false
	}
	return insertOption(options, wire.Observe, wire.AppendUint(nil, o.sequence)), confirm
}

// confirmed takes note of a sign of life.
func (o *groupObservation) confirmed() {
	o.mu.Lock()
	o.confirmedAt = time.Now()
	o.mu.Unlock()
}

// interest asks for something to send to a client that has had nothing
// confirmable for long (GP-65).
func (o *groupObservation) interest(now time.Time) {
	x := o.request
	f := x.front
	f.mu.Lock()
	renewer, _ := x.cancel.(exchange.Renewer)
	ended := x.ended
	f.mu.Unlock()
	if ended {
		return
	}
	o.mu.Lock()
	due := now.Sub(o.confirmedAt) >= interestInterval && !x.in.Reliable()
	o.probe = o.probe || due
	next := o.confirmedAt.Add(interestInterval)
	o.mu.Unlock()
	if due {
		next = now.Add(time.Hour / 4)
	}
	f.Engine.Schedule(&o.deadline, next)
	if due && renewer != nil {
		renewer.Renew()
	}
}

// replace ends a group observation that another request takes the place of.
func (x *groupRequest) replace() {
	x.front.mu.Lock()
	cancel := x.cancel
	x.front.mu.Unlock()
	if cancel != nil {
		cancel.Cancel()
	}
}

// sayLast tells the client that the proxy ends its observation.
func (x *groupRequest) sayLast(p *exchange.Response) {
	_, _ = x.in.Relay(&wire.Message{Code: p.Code, Options: p.Options, Payload: p.Payload}, message.NonConfirmable, nil)
}
