package test

import (
	"sync"
	"testing"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// observed is a server or member that can be observed: it remembers who has
// registered and notifies them when told to.
type observed struct {
	mu        sync.Mutex
	observers map[*server][]*request
	ended     map[*server]int // deregistrations, by Observe 1 or RST
	count     uint32
}

func newObserved() *observed {
	return &observed{observers: make(map[*server][]*request), ended: make(map[*server]int)}
}

func (o *observed) handle(s *server, r *request) {
	value, ok := r.Option(coap.Observe)
	o.mu.Lock()
	defer o.mu.Unlock()
	switch {
	case ok && value.Uint() == 0:
		o.observers[s] = append(o.observers[s], r)
		s.answer(r, o.state(s.name+" 0"))
	case ok:
		o.ended[s]++
		delete(o.observers, s)
		s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Payload: []byte(s.name)})
	default:
		s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Payload: []byte(s.name + " plain")})
	}
}

func (o *observed) state(text string) coap.Message {
	o.count++
	return coap.Message{Code: coap.CodeOf(2, 5), Options: []coap.Option{coap.Uint(coap.Observe, o.count), coap.Opt(coap.ContentFormat, []byte{})}, Payload: []byte(text)}
}

// notify sends a notification of every server to those who have registered.
func (o *observed) notify(text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for s, all := range o.observers {
		for _, r := range all {
			m := o.state(s.name + " " + text)
			m.Type, m.ID = coap.NON, s.nextID()
			s.send(r, m)
		}
	}
}

func (o *observed) registered() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.observers)
}

// Server-sent events of one server: one for each notification; closing the stream
// removes the observer (HC-92).
func TestHTTPEvents(t *testing.T) {
	t.Parallel()
	o := newObserved()
	origin := single(t, o.handle)
	p := startProxy(t, group0, web(newAuthority(t), "", forwarding.client))
	url := "http://" + p.addrs[1].String() + "/hc/coap://" + origin.addr().String() + "/x"
	stream := start(t, here, "curl", "curl", "-sN", "--globoff", "-H", "Accept: text/event-stream", url)
	stream.waitFor(`id: 0\ndata: .*"body":"server 0"`)
	o.notify("1")
	stream.waitFor(`id: 1\ndata: .*"body":"server 1"`)
	o.notify("2")
	stream.waitFor(`id: 2\ndata: .*"body":"server 2"`)
	require.Equal(t, 1, o.registered())
	stream.kill() // closing the stream removes the observer
	eventually(t, func() bool {
		o.notify("gone")
		o.mu.Lock()
		defer o.mu.Unlock()
		return o.ended[origin] > 0 || len(origin.empties(coap.RST)) > 0
	}, "the end of the observation")
}
