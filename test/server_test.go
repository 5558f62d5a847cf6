package test

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// incoming is a message that arrived.
type incoming struct {
	*coap.Message
	datagram
	via *socket // what it came through
}

// server is a CoAP server whose behaviour is a function, so that tests can have
// it answer as no well-behaved server would. It may be a member of groups.
type server struct {
	t      *testing.T
	name   string
	handle handler
	wg     sync.WaitGroup

	mu       sync.Mutex
	unicast  []*socket
	id       uint16
	received []incoming
}

// handler answers a request. It runs on a goroutine of its own.
type handler func(s *server, r *request)

// request is a request to a server.
type request struct {
	incoming
	group bool
	reply *socket // what answers it
}

// place says where a server is.
type place struct {
	host   *host
	iface  string       // on which it joins its groups
	addrs  []netip.Addr // its own addresses; link-local ones without zone
	groups []netip.Addr
	port   uint16 // 0: any
}

// serve starts a server that ends with the test.
func serve(t *testing.T, name string, p place, handle handler) *server {
	t.Helper()
	index := 0
	if p.iface != "" {
		index = p.host.index(t, p.iface)
	}
	zoned := func(a netip.Addr) netip.Addr {
		if a.IsLinkLocalUnicast() || a.IsLinkLocalMulticast() && a.Is6() {
			return a.WithZone(strconv.Itoa(index))
		}
		return a
	}
	port := p.port
	var unicast, groups []*socket
	for _, a := range p.addrs {
		u := mustSocket(t, p.host, netip.AddrPortFrom(zoned(a), port))
		port = u.local.Port()
		unicast = append(unicast, u)
	}
	for _, g := range p.groups {
		groups = append(groups, mustSocket(t, p.host, netip.AddrPortFrom(zoned(g), port), membership{g, index}))
	}
	return serveOn(t, name, unicast, groups, handle)
}

// serveOn starts a server on open sockets.
func serveOn(t *testing.T, name string, unicast, groups []*socket, handle handler) *server {
	s := &server{t: t, name: name, unicast: unicast, handle: handle, id: uint16(rand.Uint32())}
	all := slices.Concat(unicast, groups)
	for _, u := range all {
		s.wg.Add(1)
		go s.read(u)
	}
	t.Cleanup(func() {
		for _, u := range all {
			u.close()
		}
		s.wg.Wait()
	})
	return s
}

func (s *server) read(u *socket) {
	defer s.wg.Done()
	for {
		d, err := u.receive()
		if err != nil {
			return
		}
		m, err := coap.Parse(d.data)
		if err != nil {
			s.t.Errorf("%s got no CoAP message from %v: %v: %x", s.name, d.from, err, d.data)
			continue
		}
		in := incoming{m, d, u}
		s.mu.Lock()
		s.received = append(s.received, in)
		s.mu.Unlock()
		if m.Code == coap.Empty || m.Code>>5 != 0 {
			continue
		}
		own := *m // handlers may change it
		r := &request{incoming: incoming{&own, d, u}, group: d.to.IsMulticast(), reply: u}
		if r.group {
			r.reply = s.towards(d.from)
		}
		s.wg.Go(func() { s.handle(s, r) })
	}
}

// towards is the socket that a group request from a client is answered by: one
// of the same kind of address.
func (s *server) towards(client netip.AddrPort) *socket {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, u := range s.unicast {
		if a := u.local.Addr(); a.Is4() == client.Addr().Is4() && a.IsLinkLocalUnicast() == client.Addr().IsLinkLocalUnicast() {
			return u
		}
	}
	s.t.Errorf("%s cannot answer %v", s.name, client)
	return s.unicast[0]
}

// answerFrom has the server answer group requests from another socket.
func (s *server) answerFrom(u *socket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unicast = []*socket{u}
}

// addr is the server's first own address.
func (s *server) addr() netip.AddrPort {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unicast[0].local
}

// nextID is a Message ID of the server's own.
func (s *server) nextID() uint16 {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.id++
	return s.id
}

// answer sends a response: with the Token of the request, piggybacked if that is
// confirmable, else non-confirmable.
func (s *server) answer(r *request, m coap.Message) {
	m.Type, m.ID = coap.NON, s.nextID()
	if r.Type == coap.CON {
		m.Type, m.ID = coap.ACK, r.ID
	}
	s.send(r, m)
}

// send sends a message with the Token of the request.
func (s *server) send(r *request, m coap.Message) {
	m.Token = r.Token
	s.sendBytes(r, m.Bytes())
}

func (s *server) sendBytes(r *request, data []byte) {
	if err := r.reply.send(r.from, data); err != nil {
		s.t.Logf("%s to %v: %v", s.name, r.from, err)
	}
}

// requests are the requests received so far.
func (s *server) requests() []incoming {
	s.mu.Lock()
	defer s.mu.Unlock()
	var out []incoming
	for _, in := range s.received {
		if in.Code != coap.Empty && in.Code>>5 == 0 {
			out = append(out, in)
		}
	}
	return out
}

// requestsTo are the requests received for a path.
func (s *server) requestsTo(path string) []incoming {
	return slices.DeleteFunc(s.requests(), func(in incoming) bool { return in.Path() != path })
}

// empties are the ACK and RST messages received so far.
func (s *server) empties(kind coap.Type) []incoming {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.DeleteFunc(slices.Clone(s.received), func(in incoming) bool { return in.Code != coap.Empty || in.Type != kind })
}

// members starts n servers on loopback addresses of their own that are members
// of one group on one port, and returns them and the group.
func members(t *testing.T, n int, handle handler) ([]*server, netip.AddrPort) {
	t.Helper()
	lo := here.index(t, "lo")
	unicast := sameport(t, n)
	group := netip.AddrPortFrom(group4, unicast[0].local.Port())
	var out []*server
	for i, u := range unicast {
		g := mustSocket(t, here, group, membership{group4, lo})
		out = append(out, serveOn(t, "member"+strconv.Itoa(i+1), []*socket{u}, []*socket{g}, handle))
	}
	return out, group
}

// sameport opens a socket on each of the first n member addresses, all with one
// port that the system chose.
func sameport(t *testing.T, n int) []*socket {
	t.Helper()
	for range 100 {
		port := uint16(0)
		var out []*socket
		for i := 1; i <= n; i++ {
			u, err := openSocket(netip.AddrPortFrom(memberAddr(i), port))
			if err != nil {
				break
			}
			port = u.local.Port()
			out = append(out, u)
		}
		if len(out) == n {
			for _, u := range out {
				t.Cleanup(u.close)
			}
			return out
		}
		for _, u := range out {
			u.close()
		}
	}
	require.FailNow(t, "no port is free on all addresses")
	return nil
}

// memberAddr is the address of the i-th member on the loopback interface.
func memberAddr(i int) netip.Addr { return netip.AddrFrom4([4]byte{127, 0, 1, byte(i)}) }

// single starts a server on a loopback address that is in no group.
func single(t *testing.T, handle handler) *server {
	t.Helper()
	return serve(t, "server", place{host: here, addrs: []netip.Addr{netip.MustParseAddr("127.0.2.1")}}, handle)
}

// content answers 2.05 with the server's name and the path asked.
func content(s *server, r *request) {
	s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Payload: []byte(s.name + r.Path())})
}

// silent never answers.
func silent(*server, *request) {}

// after delays an answer.
func after(d time.Duration, h handler) handler {
	return func(s *server, r *request) {
		time.Sleep(d)
		h(s, r)
	}
}

// with answers 2.05 with options and a payload.
func with(payload string, options ...coap.Option) handler {
	return func(s *server, r *request) {
		s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Options: options, Payload: []byte(payload)})
	}
}

// code answers with a code and a payload.
func code(class, detail uint8, payload string) handler {
	return func(s *server, r *request) {
		s.answer(r, coap.Message{Code: coap.CodeOf(class, detail), Payload: []byte(payload)})
	}
}

// paths chooses a handler by the first segment of the path; content for others.
func paths(handlers map[string]handler) handler {
	return func(s *server, r *request) {
		first, _, _ := strings.Cut(strings.TrimPrefix(r.Path(), "/"), "/")
		if h, ok := handlers[first]; ok {
			h(s, r)
			return
		}
		content(s, r)
	}
}

// block is a Block1 or Block2 option (RFC 7959 §2.2).
func block(number uint16, num uint32, more bool, szx uint32) coap.Option {
	v := num<<4 | szx
	if more {
		v |= 8
	}
	return coap.Uint(number, v)
}

// blockwise serves a body in blocks of 16 << szx bytes (RFC 7959 §2.4).
func blockwise(body []byte, szx uint32, options ...coap.Option) handler {
	return func(s *server, r *request) {
		num, szx := uint32(0), szx
		if o, ok := r.Option(coap.Block2); ok {
			v := uint32(o.Uint())
			num, szx = v>>4, min(szx, v&7)
		}
		size := 16 << szx
		from := min(int(num)*size, len(body))
		to := min(from+size, len(body))
		s.answer(r, coap.Message{Code: coap.CodeOf(2, 5), Payload: body[from:to],
			Options: append([]coap.Option{block(coap.Block2, num, to < len(body), szx)}, options...)})
	}
}

// pattern is a body of n bytes in which a missing or repeated piece shows.
func pattern(n int) []byte {
	var out []byte
	for len(out) < n {
		out = fmt.Appendf(out, "%06d, ", len(out))
	}
	return out[:n]
}
