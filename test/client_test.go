package test

import (
	"encoding/hex"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"

	"coapproxy/test/internal/coap"
)

// client speaks to a proxy with bytes of the test's choosing and keeps every
// message that comes back.
type client struct {
	t      *testing.T
	socket *socket
	proxy  netip.AddrPort
	inbox  chan incoming
	id     uint16

	mu   sync.Mutex
	mute bool // confirmable messages are not acknowledged
}

// inboxSize is more than any test lets a client receive without looking.
const inboxSize = 4096

// newClient opens a client in a host on an address; invalid: any.
func newClient(t *testing.T, h *host, from netip.Addr, proxy netip.AddrPort) *client {
	t.Helper()
	if !from.IsValid() {
		from = netip.MustParseAddr("127.0.0.1")
	}
	c := &client{t: t, socket: mustSocket(t, h, netip.AddrPortFrom(from, 0)), proxy: proxy,
		inbox: make(chan incoming, inboxSize), id: uint16(rand.Uint32())}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.read()
	}()
	t.Cleanup(func() { c.socket.close(); <-ended })
	return c
}

func (c *client) read() {
	for {
		d, err := c.socket.receive()
		if err != nil {
			return
		}
		m, err := coap.Parse(d.data)
		if err != nil {
			c.t.Errorf("the client got no CoAP message from %v: %v: %x", d.from, err, d.data)
			continue
		}
		c.mu.Lock()
		mute := c.mute
		c.mu.Unlock()
		if m.Type == coap.CON && !mute {
			c.sendTo(d.from, &coap.Message{Type: coap.ACK, ID: m.ID})
		}
		c.inbox <- incoming{m, d, c.socket}
	}
}

// keepMute stops or resumes the acknowledging of confirmable responses.
func (c *client) keepMute(mute bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.mute = mute
}

// vanish closes the client's socket, as a client that crashed.
func (c *client) vanish() { c.socket.close() }

func (c *client) sendTo(to netip.AddrPort, m *coap.Message) {
	if err := c.socket.send(to, m.Bytes()); err != nil {
		c.t.Logf("client to %v: %v", to, err)
	}
}

// send sends a message as it is.
func (c *client) send(m *coap.Message) { c.sendTo(c.proxy, m) }

// sendHex sends bytes written in hexadecimal; spaces do not count.
func (c *client) sendHex(s string) {
	c.t.Helper()
	data, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	require.NoError(c.t, err)
	require.NoError(c.t, c.socket.send(c.proxy, data))
}

// fresh gives a request a Message ID and, unless it has one, a Token.
func (c *client) fresh(m *coap.Message) *coap.Message {
	c.id++
	m.ID = c.id
	if m.Token == nil {
		m.Token = fmt.Appendf(nil, "%04x", c.id)
	}
	return m
}

// next is the next message within a time, nil if there is none.
func (c *client) next(within time.Duration) *incoming {
	select {
	case in := <-c.inbox:
		return &in
	case <-time.After(within):
		return nil
	}
}

// expect is the next message.
func (c *client) expect() incoming {
	c.t.Helper()
	in := c.next(patience)
	require.NotNil(c.t, in, "the proxy does not answer")
	return *in
}

// nothing checks that no message comes for a time.
func (c *client) nothing(within time.Duration) {
	c.t.Helper()
	if in := c.next(within); in != nil {
		require.FailNow(c.t, "unexpected message from the proxy", "%v", in.Message)
	}
}

// ask sends a request and returns its response, whether piggybacked or separate.
func (c *client) ask(m *coap.Message) incoming {
	c.t.Helper()
	c.send(c.fresh(m))
	in := c.expect()
	if in.Code == coap.Empty && in.Type == coap.ACK {
		require.Equal(c.t, m.ID, in.ID)
		in = c.expect()
	}
	require.Equal(c.t, m.Token, in.Token, "%v", in.Message)
	return in
}

// ping makes sure that the proxy has handled what was sent before: the answer to
// an empty confirmable message is a RST (RFC 7252 §4.3).
func (c *client) ping() {
	c.t.Helper()
	m := &coap.Message{Type: coap.CON, ID: 0x50}
	c.send(m)
	require.Equal(c.t, coap.Message{Type: coap.RST, ID: m.ID, Token: []byte{}}, *c.expect().Message)
}

// gather sends a group request and returns what comes back until the time is
// over, without the ACK of a confirmable request.
func (c *client) gather(m *coap.Message, window time.Duration) []incoming {
	c.t.Helper()
	c.send(c.fresh(m))
	var out []incoming
	for end := time.Now().Add(window); ; {
		in := c.next(time.Until(end))
		if in == nil {
			return out
		}
		if in.Code == coap.Empty && in.Type == coap.ACK && in.ID == m.ID {
			continue
		}
		require.Equal(c.t, m.Token, in.Token, "%v", in.Message)
		out = append(out, *in)
	}
}

// gatherN is gather that ends with the n-th response.
func (c *client) gatherN(m *coap.Message, n int) []incoming {
	c.t.Helper()
	c.send(c.fresh(m))
	var out []incoming
	for len(out) < n {
		in := c.next(patience)
		require.NotNil(c.t, in, "%d of %d responses", len(out), n)
		if in.Code == coap.Empty && in.Type == coap.ACK && in.ID == m.ID {
			continue
		}
		require.Equal(c.t, m.Token, in.Token, "%v", in.Message)
		out = append(out, *in)
	}
	return out
}

// gatherJust is gatherN, and makes sure that no more than that comes.
func (c *client) gatherJust(m *coap.Message, n int) []incoming {
	c.t.Helper()
	out := c.gatherN(m, n)
	c.nothing(meanwhile)
	return out
}

// meanwhile is how long a test waits to see that something does not happen that
// would happen at once.
const meanwhile = 300 * time.Millisecond

// get is a GET with Proxy-Uri.
func get(kind coap.Type, uri string, more ...coap.Option) *coap.Message {
	return &coap.Message{Type: kind, Code: coap.GET, Options: append(more, coap.Opt(coap.ProxyURI, uri))}
}

// timeout is a Multicast-Timeout.
func timeout(seconds uint32) coap.Option { return coap.Uint(coap.MulticastTimeout, seconds) }

// serverOf is the server that the only Reply-From of a response names.
func serverOf(t *testing.T, in incoming) netip.AddrPort {
	t.Helper()
	values := in.All(coap.ReplyFrom)
	require.Len(t, values, 1, "Reply-From in %v", in.Message) // GP-51
	server, err := coap.ReplyFromServer(values[0])
	require.NoError(t, err, "%x", values[0])
	return server
}

// payloads maps the servers named by Reply-From to the payloads of their
// responses, in the order they came.
func payloads(t *testing.T, responses []incoming) map[netip.AddrPort][]string {
	t.Helper()
	out := make(map[netip.AddrPort][]string)
	for _, in := range responses {
		server := serverOf(t, in)
		out[server] = append(out[server], string(in.Payload))
	}
	return out
}

// clientAddr is where clients on the loopback interface are, unless the test is
// about who they are.
var clientAddr = netip.MustParseAddr("127.0.0.1")
