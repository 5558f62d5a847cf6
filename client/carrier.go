package client

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"

	"github.com/plgd-dev/go-coap/v3/message"

	"coapproxy/endpoint"
	"coapproxy/wire"
)

// Way is how a peer is reached.
type Way struct {
	// Scheme is coap, which an empty one stands for, coaps, coap+tcp, coaps+tcp,
	// coap+ws or coaps+ws.
	Scheme string
	// Name is the host as it stands in the peer's URI, for which it has to have a
	// certificate or a key; empty: its address.
	Name string
	// DTLS is for coaps, TLS for coaps+tcp and coaps+ws.
	DTLS endpoint.DTLSCredentials
	TLS  *tls.Config
}

// overDatagrams reports whether messages are datagrams, which may go to other
// peers, too.
func (w *Way) overDatagrams() bool { return w.Scheme == "coap" || w.Scheme == "coaps" }

// carrier is what messages leave by.
type carrier interface {
	// Send sends a message whose type, Message ID and Token are set; see
	// endpoint.Endpoint.Send.
	Send(to endpoint.Peer, path endpoint.Path, m *wire.Message, w endpoint.Watcher) error
	NextID(peer netip.AddrPort) uint16
	// Settle says that nobody wants to know any more what becomes of a message.
	Settle(peer netip.AddrPort, id uint16)
	LocalAddr() netip.AddrPort
}

// openDatagrams opens a port.
func (c *Client) openDatagrams(ctx context.Context) error {
	local := c.config.Local
	if !local.IsValid() {
		local = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
		if c.peer.Addr.Addr().Is6() {
			local = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
		}
	}
	socket, err := endpoint.ListenUDP(ctx, local, endpoint.UDPOptions{ReceiveBuffer: receiveBuffer, Errors: true})
	if err != nil {
		return fmt.Errorf("open port: %w", err)
	}
	var conn endpoint.PacketConn = socket
	if c.config.Way.Scheme == "coaps" {
		credentials := c.config.Way.DTLS
		secured, err := endpoint.NewDTLSClient(endpoint.DTLSConfig{Conn: socket, Engine: c.engine, Limits: endpoint.DefaultDTLSLimits(),
			Credentials: func() endpoint.DTLSCredentials { return credentials }, Stats: &endpoint.DTLSStats{}, Log: c.config.Log})
		if err != nil {
			return errors.Join(err, socket.Close())
		}
		conn = secured
	}
	c.serve(conn)
	return nil
}

// serve makes messages leave by conn, which it owns from then on.
func (c *Client) serve(conn endpoint.PacketConn) {
	e := endpoint.New(endpoint.Config{Conn: conn, Engine: c.engine, Responses: c, Params: c.config.Params,
		Dedup: endpoint.DefaultDedupLimits(), DedupResponses: true, Stats: &endpoint.Stats{}, Log: c.config.Log})
	c.carrier = e
	c.wg.Go(func() { _ = e.Serve(c.ctx) })
}

// connectionLimits are those of the one connection to a proxy or server.
func connectionLimits() endpoint.StreamLimits {
	l := endpoint.DefaultStreamLimits()
	l.Message = 1<<20 + wire.BaseMessageSize // whatever does not know of blocks
	return l
}

// openConnection connects to the peer.
func (c *Client) openConnection(ctx context.Context) error {
	config := endpoint.StreamClientConfig{TLS: c.config.Way.TLS, StreamConfig: endpoint.StreamConfig{Engine: c.engine, MaxToken: 8,
		Limits: connectionLimits(), Stats: &endpoint.StreamStats{}, Log: c.config.Log}}
	if local := c.config.Local; local.IsValid() {
		from := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(local)}
		config.Dial = func(ctx context.Context, server netip.AddrPort) (net.Conn, error) {
			return from.DialContext(ctx, "tcp", server.String())
		}
	}
	x := &connection{peer: c.peer.Addr, watchers: make(map[uint16]endpoint.Watcher)}
	var err error
	x.conn, err = endpoint.Connect(ctx, c.ctx, &config, c.config.Way.Scheme, c.config.Way.Name, c.peer.Addr, func(m *wire.Message) bool {
		return c.take(c.peer.Addr, m)
	})
	if err != nil {
		return fmt.Errorf("connect to %s: %w", c.peer.Addr, err)
	}
	c.carrier, c.bert = x, true
	c.wg.Go(x.watch)
	return nil
}

// connection is the carrier over a connection.
type connection struct {
	conn *endpoint.Connection
	peer netip.AddrPort
	next atomic.Uint32

	mu       sync.Mutex
	watchers map[uint16]endpoint.Watcher // of requests under way; nil once it has ended
	cause    error
}

// watch tells those who wait when the connection ends.
func (x *connection) watch() {
	<-x.conn.Ended()
	x.mu.Lock()
	watchers := x.watchers
	x.watchers, x.cause = nil, fmt.Errorf("the connection has ended: %w", errors.Join(endpoint.ErrUndeliverable, x.conn.Cause()))
	x.mu.Unlock()
	for id, w := range watchers {
		w.Failed(id, x.cause)
	}
}

// Send implements carrier. There is no acknowledgement: what the connection has
// taken counts as arrived.
func (x *connection) Send(to endpoint.Peer, _ endpoint.Path, m *wire.Message, w endpoint.Watcher) error {
	if to.Addr != x.peer {
		return errOtherPlace
	}
	x.mu.Lock()
	if x.watchers == nil {
		defer x.mu.Unlock()
		return x.cause
	}
	x.watchers[m.ID] = w
	x.mu.Unlock()
	if err := x.conn.Send(m); err != nil {
		x.Settle(to.Addr, m.ID)
		return err
	}
	if m.Type == message.Confirmable {
		w.Acknowledged(m.ID)
	}
	return nil
}

// NextID implements carrier; it tells messages apart here and is not sent.
func (x *connection) NextID(netip.AddrPort) uint16 { return uint16(x.next.Add(1)) }

// Settle implements carrier.
func (x *connection) Settle(_ netip.AddrPort, id uint16) {
	x.mu.Lock()
	delete(x.watchers, id)
	x.mu.Unlock()
}

// LocalAddr implements carrier.
func (x *connection) LocalAddr() netip.AddrPort { return x.conn.LocalAddr() }
