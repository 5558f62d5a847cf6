package proxy

import (
	"context"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/wire"
)

// Steps of a fuzzed conversation: a step is one of these, a length, and so many
// bytes.
const (
	fuzzClient   = iota // a datagram of a client that is known
	fuzzStranger        // a datagram of one that is not
	fuzzServer          // a datagram of a server to where the last request came from
	fuzzAnswer          // the same with the Token and Message ID of that request
	fuzzReact           // an ACK or RST of the client for what it got last
	fuzzWait            // time passes
	fuzzSteps
)

// script writes a conversation.
type script []byte

func (s script) step(what byte, data []byte) script {
	return append(append(s, what, byte(len(data))), data...)
}

func (s script) message(what byte, m wire.Message) script {
	data, err := m.Append(nil)
	if err != nil {
		panic(err)
	}
	return s.step(what, data)
}

// FuzzFront has clients and servers say anything to a whole proxy. It must not
// panic nor hang, what it holds stays bounded and is given back, every exchange
// ends once, and every confirmable message of a client gets an ACK or RST, and
// only one.
func FuzzFront(f *testing.F) {
	numbered := func(id uint16, m wire.Message) wire.Message { m.ID = id; return m }
	answer := func(typ message.Type, code codes.Code, options ...message.Option) wire.Message {
		return wire.Message{Type: typ, Code: code, ID: 7, Options: options, Payload: []byte("p")}
	}
	group := numbered(1, groupGet(con, "t", 20))
	f.Add([]byte(script{}.message(fuzzClient, group).message(fuzzAnswer, answer(non, codes.Content)).message(fuzzAnswer, answer(con, codes.NotFound)).
		step(fuzzReact, []byte{2}).step(fuzzWait, []byte{250}).message(fuzzClient, numbered(2, earlyStop(con, "t")))))
	f.Add([]byte(script{}.message(fuzzClient, group).message(fuzzAnswer, answer(non, codes.Content, opt(wire.Block2, "\x0e"))).step(fuzzReact, []byte{3}).
		message(fuzzClient, group).message(fuzzClient, numbered(3, groupGet(non, "t", 5))).message(fuzzClient, numbered(4, groupGet(con, "u", 0)))))
	f.Add([]byte(script{}.message(fuzzClient, numbered(5, msg(con, codes.POST, "t", uri(serverURI)))).message(fuzzAnswer, answer(ack, codes.Changed)).
		message(fuzzClient, numbered(6, msg(con, codes.GET, "u", uri("coap://a.example/r")))).step(fuzzWait, []byte{9}).
		message(fuzzAnswer, answer(ack, codes.TooManyRequests, opt(wire.MaxAge, "\x05"))).message(fuzzClient, numbered(7, msg(non, codes.GET, "u", uri("coap://a.example/r"))))))
	f.Add([]byte(script{}.message(fuzzClient, numbered(8, msg(con, codes.GET, "", opt(wire.ProxyScheme, "coap"), opt(wire.URIHost, "fe80::9%lo"), opt(wire.URIPathAbbrev, ""), opt(wire.HopLimit, "\x02"))))))
	f.Add([]byte(script{}.message(fuzzClient, numbered(9, msg(con, codes.GET, "x", opt(wire.ProxyCRI, "\x83\x20\x81\x44\xc0\x00\x02\x0b\x81\x61r")))).message(fuzzAnswer, answer(ack, wire.HopLimitReached))))
	block := answer(non, codes.Content, opt(wire.Block2, "\x08"))
	block.Payload = []byte("sixteen bytes :)")
	last := answer(ack, codes.Content, opt(wire.Block2, "\x10"))
	f.Add([]byte(script{}.message(fuzzClient, group).message(fuzzAnswer, block).message(fuzzAnswer, last)))
	f.Add([]byte(script{}.message(fuzzClient, numbered(10, msg(con, codes.PUT, "x", uri(serverURI), opt(wire.Block1, "\x08")))).message(fuzzAnswer, answer(ack, codes.Changed)).
		message(fuzzClient, numbered(11, msg(con, codes.GET, "x", uri(serverURI), opt(wire.Block2, "\x10")))).message(fuzzAnswer, last)))
	f.Add([]byte(script{}.message(fuzzStranger, group).message(fuzzStranger, wire.Message{Type: con}).step(fuzzClient, []byte{0x41, 1, 0, 1}).step(fuzzClient, []byte{0x40, 1, 0, 1, 0xff})))
	f.Add([]byte(script{}.message(fuzzClient, group).message(fuzzServer, answer(con, codes.Content)).message(fuzzServer, wire.Message{Type: rst, ID: 7}).step(fuzzWait, []byte{60})))

	for _, path := range []string{"o", "n"} {
		f.Add([]byte(script{}.message(fuzzClient, numbered(12, msg(con, codes.GET, "t", timeout(9), opt(wire.URIPath, path), opt(wire.URIPath, "r")))).
			message(fuzzAnswer, answer(non, codes.Content)).step(fuzzReact, []byte{1}).
			message(fuzzClient, numbered(13, msg(con, codes.POST, "u", opt(wire.URIHost, "192.0.2.11"), opt(wire.URIPath, "x")))).message(fuzzAnswer, answer(ack, codes.Created, opt(wire.LocationPath, "y")))))
	}
	f.Add([]byte(script{}.message(fuzzClient, numbered(14, msg(con, codes.GET, "", opt(wire.URIHost, "b"), opt(wire.URIPathAbbrev, ""), opt(wire.Echo, "123456789012"))))))

	observes := func(n string) message.Option { return opt(wire.Observe, n) }
	f.Add([]byte(script{}.message(fuzzClient, numbered(15, observeGet(con, "t"))).message(fuzzAnswer, answer(ack, codes.Content, observes("\x05"))).
		message(fuzzAnswer, answer(non, codes.Content, observes("\x06"))).message(fuzzAnswer, answer(con, codes.Content, observes("\x04"))).step(fuzzReact, []byte{2}).
		step(fuzzWait, []byte{250}).message(fuzzAnswer, answer(con, codes.Content, observes(""), opt(wire.MaxAge, ""))).step(fuzzWait, []byte{30}).
		message(fuzzClient, numbered(16, observeGet(non, "u"))).message(fuzzClient, numbered(17, msg(con, codes.GET, "t", observes("\x01"), uri(serverURI)))).
		message(fuzzAnswer, answer(non, codes.NotFound))))
	f.Add([]byte(script{}.message(fuzzClient, numbered(18, observeGroup(non, "g", 2))).message(fuzzAnswer, answer(non, codes.Content, observes("\x05"))).
		step(fuzzWait, []byte{20}).message(fuzzAnswer, answer(con, codes.Content, observes("\x06"))).message(fuzzAnswer, answer(non, codes.Content, observes("\x07"), opt(wire.Block2, "\x08"))).
		step(fuzzWait, []byte{250}).message(fuzzClient, numbered(19, observeGroup(con, "g", 2))).message(fuzzAnswer, answer(non, codes.Content, observes("\xff\xff\xff\xff"))).
		message(fuzzAnswer, answer(non, codes.Content, observes("\x08"))).step(fuzzReact, []byte{3}).message(fuzzClient, numbered(20, earlyStop(con, "g")))))

	f.Fuzz(func(t *testing.T, data []byte) {
		synctest.Test(t, func(t *testing.T) { converse(t, data) })
	})
}

// conversation is a fuzzed one under way.
type conversation struct {
	*gateway
	client, stranger *peer
	servers          []*peer
	latest           *received // request at a server
	at               *peer     // that server
	got              *received // message at the client

	// Confirmable messages sent, by client and Message ID, and what came back.
	sent, confirmed map[exchangeID]int
	ambiguous       map[exchangeID]bool // the Message ID was used for another kind of message, too
}

type exchangeID struct {
	from netip.AddrPort
	id   uint16
}

func converse(t *testing.T, data []byte) {
	s := defaults()
	s.front.MaxExchanges, s.front.MaxEnded = 8, 8
	s.access.Clients[0].Identity.Delivery.Outstanding = 2
	for i := range s.groups {
		s.groups[i].NStart, s.groups[i].Queue, s.groups[i].MaxResponses = 1, 2, 20
	}
	s.resolver = resolverFunc(func(context.Context, string) ([]netip.Addr, error) { return addrs("192.0.2.11"), nil })
	s.reverse = &Reverse{ServersPath: []string{"servers"}, Routes: []ReverseRoute{
		{Name: "own", Path: []string{"o"}, Scheme: "coap", Addr: netip.MustParseAddr("224.0.1.187"), Port: 5683, Group: true, Groups: []string{"nodes"}, Servers: OwnAddress},
		{Name: "nodes", Path: []string{"n"}, Scheme: "coap", Addr: netip.MustParseAddr("224.0.1.187"), Port: 5683, Group: true, Groups: []string{"nodes"}},
		{Name: "self", Hosts: []string{"b"}, Scheme: "coap", Host: "a.example", Port: 5683, Base: []string{"base"}}}}
	s.mappings.Max, s.mappings.Pool = 2, []netip.AddrPort{addrPort(proxy4 + ":6000")}
	c := &conversation{gateway: newGateway(t, s), sent: make(map[exchangeID]int), confirmed: make(map[exchangeID]int), ambiguous: make(map[exchangeID]bool)}
	defer c.shut()
	c.client, c.stranger = c.peer(userAddr), c.peer("203.0.200.1:1")
	c.servers = []*peer{c.peer(member1, "224.0.1.187"), c.peer("[2001:db8::11]:5683", "ff05::fd"), c.peer(linkLocalMember, "ff02::fd")}
	for steps := 0; len(data) >= 2 && steps < 100; steps++ {
		what, n := data[0]%fuzzSteps, min(int(data[1]), len(data)-2)
		c.step(what, data[2:2+n])
		data = data[2+n:]
		c.look()
		c.bounded()
	}
	for range 20 {
		c.after(time.Minute)
		c.look()
	}
	c.idle()
	c.shut()
	c.sinks.check()
	for id, n := range c.sent {
		if !c.ambiguous[id] {
			require.NotZero(t, c.confirmed[id], "message %d of %s was not confirmed", id.id, id.from)
			require.LessOrEqual(t, c.confirmed[id], n, "message %d of %s", id.id, id.from)
		}
	}
}

func (c *conversation) step(what byte, data []byte) {
	front := addrPort(proxy4 + ":5683")
	switch what {
	case fuzzClient, fuzzStranger:
		from := c.client
		if what == fuzzStranger {
			from = c.stranger
		}
		c.note(from, data)
		_ = from.Send(front, data)
	case fuzzServer, fuzzAnswer:
		if c.latest == nil {
			return
		}
		if what == fuzzAnswer {
			data = c.fitting(data)
		}
		_ = c.at.Send(c.latest.from, data)
	case fuzzReact:
		if c.got != nil && len(data) > 0 {
			c.client.transmit(front, &wire.Message{Type: ack + message.Type(data[0]&1), ID: c.got.ID})
		}
	case fuzzWait:
		if len(data) > 0 {
			c.after(time.Duration(data[0]) * 100 * time.Millisecond)
		}
	}
}

// note remembers a message of a client that has to be confirmed.
func (c *conversation) note(from *peer, data []byte) {
	if len(data) < 4 || data[0]>>6 != 1 {
		return
	}
	id := exchangeID{from.LocalAddr(), uint16(data[2])<<8 | uint16(data[3])}
	if data[0]>>4&3 != uint8(con) {
		c.ambiguous[id] = true
		return
	}
	c.sent[id]++
}

// fitting makes a message fit the latest request: with its Token, and, when it
// is an ACK, its Message ID.
func (c *conversation) fitting(data []byte) []byte {
	var m wire.Message
	if m.Decode(data) != nil || m.Code == codes.Empty {
		return data
	}
	m.Token = c.latest.Token
	if m.Type == ack {
		m.ID = c.latest.ID
	}
	if fitted, err := m.Append(nil); err == nil {
		return fitted
	}
	return data
}

// look sees what has arrived where.
func (c *conversation) look() {
	for _, from := range []*peer{c.client, c.stranger} {
		for _, m := range from.take() {
			if m.Type == ack || m.Type == rst {
				c.confirmed[exchangeID{from.LocalAddr(), m.ID}]++
			}
			if from == c.client {
				c.got = &m
			}
		}
	}
	for _, s := range c.servers {
		for _, m := range s.take() {
			if wire.IsRequest(m.Code) {
				c.latest, c.at = &m, s
			}
		}
	}
}

// bounded requires that the front holds no more than it may.
func (c *conversation) bounded() {
	f := c.front
	f.mu.Lock()
	defer f.mu.Unlock()
	require.LessOrEqual(c.t, len(f.running), f.MaxExchanges)
	require.LessOrEqual(c.t, len(f.ended.when), f.MaxEnded)
	require.LessOrEqual(c.t, len(f.deliveries), 2)
}
