package demo

import (
	"context"
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/plgd-dev/go-coap/v3/message"
	"github.com/plgd-dev/go-coap/v3/message/codes"
	"github.com/stretchr/testify/require"
	"go.uber.org/goleak"
	"go.uber.org/zap"
	"golang.org/x/net/ipv4"

	"coapproxy/wire"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// start makes devices on a free port; they are gone when the test ends.
func start(t *testing.T, o Options) *Group {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	if !o.Group.IsValid() {
		o.Group = netip.AddrPortFrom(DefaultGroup().Addr(), 0)
	}
	o.Log = zap.NewNop()
	g, err := Start(ctx, o)
	if err != nil {
		cancel()
		require.NoError(t, err)
	}
	t.Cleanup(func() { cancel(); g.Wait() })
	return g
}

// client is a CoAP client with a socket of its own and nothing else.
type client struct {
	t    *testing.T
	conn *net.UDPConn
	id   uint16
}

func newClient(t *testing.T) *client {
	t.Helper()
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	lo, err := net.InterfaceByName(Interface)
	require.NoError(t, err)
	require.NoError(t, ipv4.NewPacketConn(conn).SetMulticastInterface(lo))
	return &client{t: t, conn: conn}
}

// send sends a request with a Message ID of its own, which is its Token too,
// unless it has one.
func (c *client) send(to netip.AddrPort, m wire.Message) (id uint16) {
	c.t.Helper()
	c.id++
	m.ID, m.Token = c.id, tokenOf(m, c.id)
	data, err := m.Append(nil)
	require.NoError(c.t, err)
	_, err = c.conn.WriteToUDPAddrPort(data, to)
	require.NoError(c.t, err)
	return c.id
}

func tokenOf(m wire.Message, id uint16) []byte {
	if m.Token != nil {
		return m.Token
	}
	return binary.BigEndian.AppendUint16(nil, id)
}

// receive returns the next message and whom it is from.
func (c *client) receive() (wire.Message, netip.AddrPort) {
	c.t.Helper()
	require.NoError(c.t, c.conn.SetReadDeadline(time.Now().Add(5*time.Second)))
	buf := make([]byte, 4096)
	n, from, err := c.conn.ReadFromUDPAddrPort(buf)
	require.NoError(c.t, err, "no answer")
	var m wire.Message
	require.NoError(c.t, m.Decode(buf[:n]))
	return m, netip.AddrPortFrom(from.Addr().Unmap(), from.Port())
}

// ask sends a confirmable request to one device and returns its piggybacked
// answer.
func (c *client) ask(to netip.AddrPort, m wire.Message) wire.Message {
	c.t.Helper()
	m.Type = message.Confirmable
	id := c.send(to, m)
	answer, from := c.receive()
	require.Equal(c.t, to, from)
	require.Equal(c.t, message.Acknowledgement, answer.Type)
	require.Equal(c.t, id, answer.ID)
	require.Equal(c.t, tokenOf(m, id), answer.Token)
	return answer
}

// askGroup sends a request to the group and returns the payloads of the answers
// of so many members, and their codes, by server.
func (c *client) askGroup(g *Group, m wire.Message) map[netip.AddrPort]wire.Message {
	c.t.Helper()
	m.Type = message.NonConfirmable
	token := tokenOf(m, c.send(g.Addr(), m))
	answers := make(map[netip.AddrPort]wire.Message)
	for range g.Devices() {
		answer, from := c.receive()
		require.Equal(c.t, message.NonConfirmable, answer.Type)
		require.Equal(c.t, token, answer.Token, "an answer to another request")
		require.NotContains(c.t, answers, from)
		answers[from] = answer
	}
	return answers
}

func get(path ...string) wire.Message {
	m := wire.Message{Code: codes.GET}
	for _, segment := range path {
		m.Options = append(m.Options, message.Option{ID: wire.URIPath, Value: []byte(segment)})
	}
	return m
}

func put(body string, path ...string) wire.Message {
	m := get(path...)
	m.Code, m.Payload = codes.PUT, []byte(body)
	return m
}

// with adds an option behind those of lower numbers.
func with(m wire.Message, id message.OptionID, value string) wire.Message {
	var options message.Options
	placed := false
	for _, o := range m.Options {
		if !placed && o.ID > id {
			options, placed = append(options, message.Option{ID: id, Value: []byte(value)}), true
		}
		options = append(options, o)
	}
	if !placed {
		options = append(options, message.Option{ID: id, Value: []byte(value)})
	}
	m.Options = options
	return m
}

func option(m wire.Message, id message.OptionID) string {
	value, ok := wire.First(m.Options, id)
	if !ok {
		return "none"
	}
	return string(value)
}
