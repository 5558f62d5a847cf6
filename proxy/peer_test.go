package proxy

import (
	"context"
	"encoding/hex"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"

	"coapproxy/endpoint/memnet"
	"coapproxy/wire"
)

const (
	con = message.Confirmable
	non = message.NonConfirmable
	ack = message.Acknowledgement
	rst = message.Reset

	// What clients know the proxy by, one address per family.
	proxy4, proxy6 = "198.51.100.1", "2001:db8:100::1"
	// A client of the entry "user", and the group and server it talks to.
	userAddr = "203.0.113.5:40000"
	nodesURI = "coap://224.0.1.187/r"
	member1  = "192.0.2.11:5683"
	from1    = "248=82208144c000020b" // Reply-From of member1
)

// peer is a client or a server, as a test plays it.
type peer struct {
	*memnet.Conn
	t  testing.TB
	id uint16
}

// peer opens a port of a host, which it makes if there is none.
func (g *gateway) peer(local string, groups ...string) *peer {
	at := netip.MustParseAddrPort(local)
	host := g.hosts[at.Addr()]
	if host == nil {
		host = g.network.Host(at.Addr())
		g.hosts[at.Addr()] = host
	}
	conn, err := host.Listen(at, memnet.Options{})
	require.NoError(g.t, err)
	for _, group := range groups {
		conn.Join(netip.MustParseAddr(group))
	}
	return &peer{Conn: conn, t: g.t, id: 100}
}

// ask sends a message to the proxy with the next Message ID.
func (c *peer) ask(m wire.Message) {
	c.id++
	m.ID = c.id
	to := proxy4
	if c.LocalAddr().Addr().Is6() {
		to = proxy6
	}
	c.transmit(netip.AddrPortFrom(netip.MustParseAddr(to), 5683), &m)
}

func (c *peer) transmit(to netip.AddrPort, m *wire.Message) {
	c.t.Helper()
	data, err := m.Append(nil)
	require.NoError(c.t, err)
	require.NoError(c.t, c.Send(to, data))
	synctest.Wait()
}

// received is a message with where it came from.
type received struct {
	wire.Message
	from netip.AddrPort
	raw  []byte
}

// take returns what has arrived since the last call.
func (c *peer) take() []received {
	synctest.Wait()
	var out []received
	for _, d := range c.Received() {
		r := received{from: d.Peer.Addr, raw: slices.Clone(d.Data)}
		require.NoError(c.t, r.Decode(r.raw))
		out = append(out, r)
	}
	return out
}

// expect requires that exactly these messages have arrived, in the words of
// describe.
func (c *peer) expect(want ...string) []received {
	c.t.Helper()
	got := c.take()
	texts := []string{}
	for _, r := range got {
		texts = append(texts, describe(&r.Message))
	}
	require.Equal(c.t, append([]string{}, want...), texts)
	return got
}

// request returns the one request that has arrived at a server.
func (c *peer) request() received {
	c.t.Helper()
	got := c.take()
	require.Len(c.t, got, 1)
	require.True(c.t, wire.IsRequest(got[0].Code), "%s", describe(&got[0].Message))
	return got[0]
}

// answer sends a 2.05 to a request, with a new Message ID.
func (c *peer) answer(to received, typ message.Type, payload string, options ...message.Option) {
	c.respond(to, typ, codes.Content, payload, options...)
}

func (c *peer) respond(to received, typ message.Type, code codes.Code, payload string, options ...message.Option) {
	c.t.Helper()
	c.id++
	id := c.id
	if typ == message.Acknowledgement {
		id = to.ID
	}
	c.transmit(to.from, &wire.Message{Type: typ, Code: code, ID: id, Token: to.Token, Options: options, Payload: []byte(payload)})
}

// react sends an empty ACK or RST for a message.
func (c *peer) react(to received, typ message.Type) {
	c.transmit(to.from, &wire.Message{Type: typ, ID: to.ID})
}

// describe writes a message as "TYPE CODE number=value ... |payload".
func describe(m *wire.Message) string {
	types := map[message.Type]string{con: "CON", non: "NON", message.Acknowledgement: "ACK", message.Reset: "RST"}
	text := types[m.Type]
	if m.Code == codes.Empty {
		return text
	}
	text += fmt.Sprintf(" %d.%02d", m.Code>>5, m.Code&31)
	for _, o := range m.Options {
		text += fmt.Sprintf(" %d=%s", o.ID, hex.EncodeToString(o.Value))
	}
	if len(m.Payload) > 0 {
		text += " |" + string(m.Payload)
	}
	return text
}

// msg is a request with a Token; its options are put in order.
func msg(typ message.Type, method codes.Code, token string, options ...message.Option) wire.Message {
	slices.SortStableFunc(options, func(a, b message.Option) int { return int(a.ID) - int(b.ID) })
	return wire.Message{Type: typ, Code: method, Token: []byte(token), Options: options}
}

// groupGet is a GET to the group "nodes" with T' = seconds.
func groupGet(typ message.Type, token string, seconds uint32, options ...message.Option) wire.Message {
	return msg(typ, codes.GET, token, append([]message.Option{timeout(seconds), uri(nodesURI)}, options...)...)
}

func opt(id message.OptionID, value string) message.Option {
	return message.Option{ID: id, Value: []byte(value)}
}

func timeout(seconds uint32) message.Option {
	return message.Option{ID: wire.MulticastTimeout, Value: wire.AppendUint(nil, seconds)}
}

func uri(text string) message.Option { return opt(wire.ProxyURI, text) }

func addrPort(text string) netip.AddrPort { return netip.MustParseAddrPort(text) }

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, s := range texts {
		out = append(out, netip.MustParseAddr(s))
	}
	return out
}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, s := range texts {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

func unhex(t testing.TB, text string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(text, " ", ""))
	require.NoError(t, err)
	return b
}

// resolverFunc is a Resolver made of a function.
type resolverFunc func(ctx context.Context, host string) ([]netip.Addr, error)

func (f resolverFunc) LookupNetIP(ctx context.Context, _, host string) ([]netip.Addr, error) {
	return f(ctx, host)
}
