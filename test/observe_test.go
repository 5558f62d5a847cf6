package test

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// observable is a resource that can be observed; its handler may serve several
// servers, each of which has a state of its own.
type observable struct {
	maxAge uint32
	mu     sync.Mutex
	number uint32
	state  map[*server]string
	// observers are by server, client and Token.
	observers map[*server]map[string]*request
	ended     []string // Tokens that were deregistered
}

func newObservable(maxAge uint32) *observable {
	return &observable{maxAge: maxAge, number: 7, state: make(map[*server]string), observers: make(map[*server]map[string]*request)}
}

func (o *observable) message(s *server, observes bool) coap.Message {
	m := coap.Message{Code: coap.CodeOf(2, 5), Payload: []byte(s.name + " " + o.state[s])}
	if observes {
		o.number++
		m.Options = append(m.Options, coap.Uint(coap.Observe, o.number))
	}
	m.Options = append(m.Options, coap.Uint(coap.ContentFormat, 0), coap.Uint(coap.MaxAge, o.maxAge)) // text
	return m
}

// handle is the handler.
func (o *observable) handle(s *server, r *request) {
	o.mu.Lock()
	wish, ok := r.Option(coap.Observe)
	key := fmt.Sprintf("%v %x", r.from, r.Token)
	switch {
	case ok && wish.Uint() == 0:
		if o.observers[s] == nil {
			o.observers[s] = make(map[string]*request)
		}
		o.observers[s][key] = r
	case ok:
		delete(o.observers[s], key)
		o.ended = append(o.ended, fmt.Sprintf("%x", r.Token))
	}
	m := o.message(s, ok && wish.Uint() == 0)
	o.mu.Unlock()
	s.answer(r, m)
}

// set changes the state at a server, and notifies.
func (o *observable) set(s *server, state string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.state[s] = state
	for _, r := range o.observers[s] {
		m := o.message(s, true)
		m.Type, m.ID = coap.NON, s.nextID()
		s.send(r, m)
	}
}

func (o *observable) count(s *server) int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.observers[s])
}

func (o *observable) deregistered() int {
	o.mu.Lock()
	defer o.mu.Unlock()
	return len(o.ended)
}

func observe(kind coap.Type, uri string, options ...coap.Option) *coap.Message {
	return get(kind, uri, append([]coap.Option{coap.Uint(coap.Observe, 0)}, options...)...)
}

// A thousand clients observe one resource with one registration at its server
// (FP-60); each has every state, with growing numbers of its own (FP-63); the last
// one gone ends it (FP-67).
func TestThousandObservers(t *testing.T) {
	t.Parallel()
	o := newObservable(60)
	origin := single(t, o.handle)
	p := startProxy(t, netip.AddrPort{}, forwarding)
	uri := "coap://" + origin.addr().String() + "/x"
	const clients, each = 20, 50
	var all []*client
	last := make(map[string]uint64)
	note := func(i int, in incoming) {
		number, ok := in.Option(coap.Observe)
		require.True(t, ok, "%v", in.Message)
		key := fmt.Sprintf("%d %x", i, in.Token)
		require.Greater(t, number.Uint(), last[key])
		last[key] = number.Uint()
	}
	for i := range clients {
		c := newClient(t, here, clientAddr, p.addr())
		all = append(all, c)
		for range each {
			in := c.ask(observe(coap.CON, uri))
			require.Equal(t, "server ", string(in.Payload))
			note(i, in)
		}
	}
	require.Equal(t, 1, o.count(origin))
	for _, state := range []string{"one", "two"} {
		o.set(origin, state)
		for i, c := range all {
			for range each {
				in := c.expect()
				require.Equal(t, "server "+state, string(in.Payload))
				note(i, in)
			}
		}
	}
	require.Len(t, last, clients*each)
	require.Len(t, origin.requests(), 1)
	for i, c := range all {
		for key := range last {
			var of int
			var token []byte
			_, err := fmt.Sscanf(key, "%d %x", &of, &token)
			require.NoError(t, err)
			if of != i {
				continue
			}
			m := get(coap.NON, uri, coap.Uint(coap.Observe, 1))
			m.Token = token
			c.send(c.fresh(m))
			in := c.expect()
			for in.Has(coap.Observe) { // a busy machine: a notification is repeated, since its ACK took long
				in = c.expect()
			}
			require.Equal(t, m.Token, in.Token)
		}
	}
	eventually(t, func() bool { return o.count(origin) == 0 }, "it is still observed")
	require.Equal(t, 1, o.deregistered())
}

// libcoap's client over UDP and TCP: all share the observation of libcoap's
// server.
func TestObserveWithLibcoap(t *testing.T) {
	t.Parallel()
	port := newSocketPort(t)
	start(t, here, "coap-server", "coap-server-notls", "-A", "127.0.0.1", "-p", port, "-d", "10", "-v", "7").waitFor("created UDP")
	p := startProxy(t, group0, overTCP(forwarding))
	uri := fmt.Sprintf("coap://127.0.0.1:%s/time", port)
	var all []*process
	for i, scheme := range []string{"coap", "coap+tcp", "coap", "coap+tcp"} {
		via := fmt.Sprintf("%s://%v", scheme, p.addrs[i%2])
		all = append(all, start(t, here, "coap-client", "coap-client-notls", "-s", "3", "-B", "6", "-P", via, uri))
	}
	for _, c := range all {
		require.Zero(t, c.wait())
		require.GreaterOrEqual(t, strings.Count(c.text(), ":"), 6, "three times of day: %s", c.text())
	}
	p.logged("observation", 4)
}

// A connection that ends ends its observations (FP-67); on it numbers grow, too,
// though nobody needs them (FP-64).
func TestObserveOverTCP(t *testing.T) {
	t.Parallel()
	o := newObservable(60)
	origin := single(t, o.handle)
	p := startProxy(t, netip.AddrPort{}, overTCP(forwarding))
	conn, err := net.Dial("tcp", p.addrs[1].String())
	require.NoError(t, err)
	defer conn.Close()
	require.NoError(t, conn.SetDeadline(time.Now().Add(20*time.Second)))
	sendFrame(t, conn, &coap.Message{Code: 0xe1}) // CSM
	m := observe(coap.NON, "coap://"+origin.addr().String()+"/x")
	m.Token = []byte{0xa1}
	sendFrame(t, conn, m)
	last := uint64(0)
	expect := func(payload string) {
		in := readFrame(t, conn)
		for in.Code>>5 == 7 {
			in = readFrame(t, conn)
		}
		require.Equal(t, payload, string(in.Payload))
		require.Equal(t, []byte{0xa1}, in.Token)
		number, ok := in.Option(coap.Observe)
		require.True(t, ok)
		require.Greater(t, number.Uint(), last)
		last = number.Uint()
	}
	expect("server ")
	for i := range 5 {
		o.set(origin, fmt.Sprint(i))
		expect(fmt.Sprint("server ", i))
	}
	require.NoError(t, conn.Close())
	eventually(t, func() bool { return o.count(origin) == 0 }, "it is still observed")
}

// A server that forgets its observers, as by a restart, is registered with again
// when Max-Age is over (FP-65), with the same Token.
func TestObservedServerRestarts(t *testing.T) {
	t.Parallel()
	o := newObservable(1)
	origin := single(t, o.handle)
	p := startProxy(t, netip.AddrPort{}, forwarding)
	c := newClient(t, here, clientAddr, p.addr())
	c.ask(observe(coap.CON, "coap://"+origin.addr().String()+"/x"))
	first := origin.requests()[0]
	o.mu.Lock()
	clear(o.observers)
	o.number = 1 // and it counts anew
	o.state[origin] = "after the restart"
	o.mu.Unlock()
	in := c.next(25 * time.Second)
	require.NotNil(t, in, "no notification after the restart")
	require.Equal(t, "server after the restart", string(in.Payload))
	require.Equal(t, first.Token, origin.requests()[1].Token)
	o.set(origin, "later")
	require.Equal(t, "server later", string(c.expect().Payload))
}

// A proxy that stops says so to the observers, and deregisters (FP-67).
func TestStopWithObservers(t *testing.T) {
	t.Parallel()
	o := newObservable(60)
	origin := single(t, o.handle)
	p := startProxy(t, netip.AddrPort{}, forwarding)
	c := newClient(t, here, clientAddr, p.addr())
	for range 3 {
		c.ask(observe(coap.CON, "coap://"+origin.addr().String()+"/x"))
	}
	p.signal(syscall.SIGTERM)
	for range 3 {
		in := c.expect()
		require.Equal(t, coap.CodeOf(5, 3), in.Code)
		require.False(t, in.Has(coap.Observe))
	}
	require.Zero(t, p.wait())
	require.Equal(t, 1, o.deregistered())
}

// A server with many observed resources hears of the end of each when the proxy
// stops, though it bears one request at a time (FP-67, FP-92).
func TestStopWithManyObservations(t *testing.T) {
	t.Parallel()
	o := newObservable(60)
	origin := single(t, o.handle)
	s := forwarding
	s.limits = "grace: 20s"
	p := startProxy(t, netip.AddrPort{}, s)
	c := newClient(t, here, clientAddr, p.addr())
	const resources = 200 // more than may wait for a server otherwise
	for i := range resources {
		c.ask(observe(coap.CON, fmt.Sprintf("coap://%v/x%d", origin.addr(), i)))
	}
	require.Equal(t, resources, o.count(origin))
	p.signal(syscall.SIGTERM)
	require.Zero(t, p.wait())
	require.Equal(t, resources, o.deregistered())
	require.Zero(t, o.count(origin))
}

// Bodies in blocks: the notification brings the first one, the rest is asked for
// without Observe (RFC 7959 §2.6), on both legs.
func TestObserveInBlocks(t *testing.T) {
	t.Parallel()
	var body atomic.Pointer[[]byte]
	set := func(b []byte) { body.Store(&b) }
	set(pattern(5000))
	registrations := make(chan *request, 1)
	origin := single(t, func(s *server, r *request) {
		options := []coap.Option{coap.Opt(coap.ETag, "e1")}
		if r.Has(coap.Observe) {
			registrations <- r
			options = append(options, coap.Uint(coap.Observe, 12))
		}
		blockwise(*body.Load(), 6, options...)(s, r)
	})
	p := startProxy(t, netip.AddrPort{}, forwarding)
	c := newClient(t, here, clientAddr, p.addr())
	uri := "coap://" + origin.addr().String() + "/x"
	rest := func(got []byte) []byte {
		for num := uint32(1); ; num++ {
			in := c.ask(get(coap.CON, uri, block(coap.Block2, num, false, 6)))
			require.False(t, in.Has(coap.Observe))
			got = append(got, in.Payload...)
			if o, _ := in.Option(coap.Block2); o.Uint()&8 == 0 {
				return got
			}
		}
	}
	in := c.ask(observe(coap.CON, uri))
	require.True(t, in.Has(coap.Observe))
	require.Equal(t, pattern(5000), rest(in.Payload))
	set(pattern(3000))
	origin.send(<-registrations, coap.Message{Type: coap.CON, ID: origin.nextID(), Code: coap.CodeOf(2, 5), Payload: pattern(1024),
		Options: []coap.Option{coap.Opt(coap.ETag, "e1"), coap.Uint(coap.Observe, 13), block(coap.Block2, 0, true, 6)}})
	in = c.expect()
	require.True(t, in.Has(coap.Observe))
	require.Equal(t, pattern(3000), rest(in.Payload))
}

// A whole group is observed beyond T' (GP-64): notifications name their server
// (GP-63), a late client gets the latest of each (GP-68) with no further request
// to the group, a member that leaves is missed by nobody else, and the last
// client gone ends it at all members (GP-66).
func TestObserveGroup(t *testing.T) {
	t.Parallel()
	o := newObservable(60)
	servers, group := members(t, 3, o.handle)
	p := startProxy(t, group, settings{})
	c, late := newClient(t, here, clientAddr, p.addr()), newClient(t, here, loopback(2), p.addr())
	uri := groupURI(group, "/x")
	first := c.gatherN(observe(coap.NON, uri, timeout(1)), 3)
	seen := make(map[netip.AddrPort]bool)
	for _, in := range first {
		require.True(t, in.Has(coap.Observe))
		seen[serverOf(t, in)] = true
	}
	require.Len(t, seen, 3)
	c.nothing(1500 * time.Millisecond) // T' is over
	o.set(servers[1], "changed")
	in := c.expect()
	require.Equal(t, "member2 changed", string(in.Payload))
	require.Equal(t, servers[1].addr(), serverOf(t, in))

	var states []string
	for _, in := range late.gatherN(observe(coap.NON, uri, timeout(1)), 3) {
		states = append(states, string(in.Payload))
	}
	require.ElementsMatch(t, []string{"member1 ", "member2 changed", "member3 "}, states)
	require.Len(t, servers[0].requests(), 1)

	o.mu.Lock()
	delete(o.observers, servers[0]) // it leaves
	o.mu.Unlock()
	late.nothing(1500 * time.Millisecond)
	o.set(servers[2], "too")
	require.Equal(t, "member3 too", string(c.expect().Payload))
	require.Equal(t, "member3 too", string(late.expect().Payload))

	stop := func(c *client, token []byte) {
		m := c.fresh(&coap.Message{Type: coap.NON, Code: coap.GET, Token: token, Options: []coap.Option{timeout(0)}})
		c.send(m)
	}
	stop(c, first[0].Token) // GP-45
	eventually(t, func() bool { return len(p.entries("early stop")) == 1 }, "an early stop")
	o.set(servers[2], "last")
	in = late.expect()
	c.nothing(meanwhile)
	stop(late, in.Token)
	eventually(t, func() bool { return o.count(servers[1]) == 0 && o.count(servers[2]) == 0 }, "the members still have an observer")
}
